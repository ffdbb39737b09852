"""Speech synthesis with exact word times by eSpeak NG, from the PyPI package `espeakng-loader`.

Two things are unusual. First, words are joined by no-break spaces, because across plain spaces eSpeak merges common
pairs such as "in the" and loses their times. Second, eSpeak runs in a forked child process with a fixed seed: the
flutter and breath of its voices depend on earlier calls and on the time of day, so only a fresh copy is reproducible.
"""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import soxr

from auris.corpus.signal import SAMPLE_RATE, Signal

# Natural-sounding voice variants of eSpeak by split, so that no test voice occurs in training. Variants with the same
# formants (linda and belinda, f2 and f5) are in the same split. Robots, whispers and variants that clip at 16 bits are
# excluded.
VOICES = {
    "train": {
        "male": ("m1", "m2", "m3", "m5", "m7", "m8", "Diogo", "Mike"),
        "female": ("f1", "f2", "f3", "f5", "Alicia", "Annie", "steph", "anika", "grandma", "shelby"),
    },
    "valid": {"male": ("max",), "female": ("Andrea",)},
    "test": {"male": ("m4", "m6", "victor"), "female": ("f4", "linda", "belinda")},
}
# Voices with the same formants as another voice. They are excluded from rows with several speakers.
TWINS = {"f5": "f2", "belinda": "linda"}
_LANGUAGES = {"en": "en-us", "zh": "cmn", "de": "de", "es": "es", "fr": "fr", "it": "it", "ja": "ja"}
_LANGUAGES |= {"ko": "ko", "yue": "yue"}
UNTIMED_LANGUAGES = ("ko",)  # languages without word times, because eSpeak does not report all words

# Constants of speak_lib.h in eSpeak NG 1.52.
_SYNCHRONOUS, _UTF8, _BY_CHARACTER = 2, 1, 1
_RATE, _VOLUME, _PITCH = 1, 2, 3
_WORD, _END = 1, 5
_VOLUME_LEVEL = 80  # some voices clip at 100


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds; unused, because `sample` is more exact
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


# An event of eSpeak as (type, position in the text, length of the word, sample).
_WordEvent = tuple[int, int, int, int]
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Line:
    """A sentence to synthesise, and its voice.

    Attributes:
        words: The units whose start and end times are known (`grammar.split_words`).
        language: Language of the sentence.
        voice: Name of the voice in `VOICES`, which eSpeak calls a voice variant.
        rate: Words per minute.
        pitch: Pitch from 0 to 99.
        speed: Factor of the playback speed (Ko et al. 2015). A higher speed raises formants and pitch, as if the
            speaker were smaller. The times of the words refer to the speech at this speed.
        accent: eSpeak's name of a variety of the language, such as 'en-gb-scotland'; None for the default.
    """

    words: tuple[str, ...]
    language: str
    voice: str
    rate: int
    pitch: int
    speed: float = 1.0
    accent: str | None = None


@dataclass(frozen=True)
class Utterance:
    """Speech at 16 kHz with word boundaries in seconds: word i spans `boundaries[i]` to `boundaries[i+1]`.

    In a language of `UNTIMED_LANGUAGES` there are only two boundaries, the beginning and the end of the utterance.
    """

    samples: Signal
    boundaries: tuple[float, ...]


def get_version() -> str:
    """Return the name and version of the synthesiser, such as 'espeak-ng 1.52.0'."""
    library, _ = _load_espeak()
    return f"espeak-ng {library.espeak_Info(None).decode()}"


def say(lines: Sequence[Line]) -> list[Utterance]:
    """Synthesise lines in order. An utterance depends only on its line and on the lines before it.

    Raises:
        RuntimeError: eSpeak fails, or does not report one start time per word. This happens with no sentence of the
            grammar; `are_timed` finds the sentences of other texts with which it happens.
        ImportError: eSpeak NG is not installed.
    """
    _, sample_rate = _load_espeak()
    utterances = []
    for line, (events, pcm) in zip(lines, _synthesise_in_child(lines), strict=True):
        boundary_samples = _find_boundaries(line, events)
        if boundary_samples is None:
            raise RuntimeError(f"eSpeak did not report a time for every word of {line}: events {events}")
        # VHQ computes in float64; with lower qualities the result depends on the instruction set of the processor.
        played_rate = sample_rate * line.speed
        signal = soxr.resample(np.frombuffer(pcm, np.int16) / 32768.0, played_rate, SAMPLE_RATE, quality="VHQ")
        utterances.append(Utterance(signal, tuple(sample / played_rate for sample in boundary_samples)))
    return utterances


def are_timed(lines: Sequence[Line]) -> list[bool]:
    """Return for each line whether eSpeak reports a start time for every word, so that `say` can synthesise it.

    It does not for Roman numerals and some names that it spells: about one of a thousand words of written English.
    """
    results = zip(lines, _synthesise_in_child(lines), strict=True)
    return [_find_boundaries(line, events) is not None for line, (events, _) in results]


def _synthesise_in_child(lines: Sequence[Line]) -> list[tuple[list[_WordEvent], bytes]]:
    """Return the events and samples of lines (`_synthesise`), spoken in order by a new child process."""
    _load_espeak()  # before the fork, so that every child starts from the same state
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as child:
        return list(child.map(_synthesise, lines))


def _find_boundaries(line: Line, events: Sequence[_WordEvent]) -> list[int] | None:
    """Return the starts of the words and the end of the last one as sample numbers; None if eSpeak reports others."""
    # Starts of words as (position in the text, sample).
    starts = [(position, sample) for kind, position, length, sample in events if kind == _WORD and length > 0]
    expected_positions = [1 + sum(len(word) + 1 for word in line.words[:index]) for index in range(len(line.words))]
    if line.language in UNTIMED_LANGUAGES:
        starts, expected_positions = [(1, 0)], [1]
    ends = [sample for kind, _, _, sample in events if kind == _END]
    if [position for position, _ in starts] != expected_positions or len(ends) != 1:
        return None
    return [*(sample for _, sample in starts), ends[0]]


@cache
def _load_espeak() -> tuple[ctypes.CDLL, int]:
    """Initialise the library; return it and its sample rate in Hz.

    Raises:
        ImportError: The package with eSpeak NG is not installed.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise ImportError("the synthetic corpus needs eSpeak NG: pip install 'auris[corpus]'") from None
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Info.restype = ctypes.c_char_p
    library.espeak_ng_SetRandSeed.argtypes = (ctypes.c_long,)
    sample_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if sample_rate <= 0:
        raise ImportError(
            f"eSpeak NG cannot be initialised (code {sample_rate}); reinstall it: pip install 'auris[corpus]'"
        )
    return library, sample_rate


def _synthesise(line: Line) -> tuple[list[_WordEvent], bytes]:
    """Return eSpeak's events, and its 16-bit samples."""
    library, _ = _load_espeak()
    events: list[_WordEvent] = []
    pcm: list[bytes] = []

    def receive(wave: ctypes.Array, count: int, reported: ctypes.Array) -> int:
        if wave and count > 0:
            pcm.append(ctypes.string_at(wave, 2 * count))
        index = 0
        while reported[index].type != 0:
            event = reported[index]
            events.append((event.type, event.text_position, event.length, event.sample))
            index += 1
        return 0

    callback = _Callback(receive)  # this reference keeps the callback alive while eSpeak calls it
    library.espeak_SetSynthCallback(callback)
    library.espeak_ng_SetRandSeed(0)
    espeak_voice = f"{line.accent or _LANGUAGES[line.language]}+{line.voice}"
    if library.espeak_SetVoiceByName(espeak_voice.encode()) != 0:
        raise RuntimeError(f"eSpeak does not know the voice {espeak_voice!r}")
    for parameter, value in ((_RATE, line.rate), (_PITCH, line.pitch), (_VOLUME, _VOLUME_LEVEL)):
        library.espeak_SetParameter(parameter, value, 0)
    text = "\u00a0".join(line.words).encode()
    if library.espeak_Synth(text, len(text) + 1, 0, _BY_CHARACTER, 0, _UTF8, None, None) != 0:
        raise RuntimeError(f"eSpeak cannot synthesise {line}")
    library.espeak_Synchronize()
    return events, b"".join(pcm)
