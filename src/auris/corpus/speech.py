"""Speech with exact word times, through the eSpeak NG library that the PyPI package `espeakng-loader` carries.

Two things are unusual. Words are joined by no-break spaces: across plain spaces eSpeak merges common pairs ("in the")
and loses their times. And it speaks in a forked child, with a fixed seed: the flutter and breath of eSpeak's
voices go on from call to call, and even start from the time of day, so only a fresh copy says the same twice.
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

# eSpeak's natural-sounding voice variants, dealt to the splits so that a test voice is never heard in training:
# variants that share their formants (linda and belinda, f2 and f5) stand on the same side. Left out: robots, whispers,
# and variants that overload 16 bits.
VOICES = {
    "train": {
        "male": ("m1", "m2", "m3", "m5", "m7", "m8", "Diogo", "Mike"),
        "female": ("f1", "f2", "f3", "f5", "Alicia", "Annie", "steph"),
    },
    "valid": {"male": ("max",), "female": ("Andrea",)},
    "test": {"male": ("m4", "m6", "victor"), "female": ("f4", "linda", "belinda")},
}
TWINS = {"f5": "f2", "belinda": "linda"}  # voices with the formants of another: never the other speaker of a row
_LANGUAGES = {"en": "en-us", "zh": "cmn", "de": "de", "es": "es", "fr": "fr", "it": "it", "ja": "ja"}
_LANGUAGES |= {"ko": "ko", "yue": "yue"}
UNTIMED = ("ko",)  # languages of whose words eSpeak loses some, so that no word has a time

# speak_lib.h of eSpeak NG 1.52.
_SYNCHRONOUS, _UTF8, _BY_CHARACTER = 2, 1, 1
_RATE, _VOLUME, _PITCH = 1, 2, 3
_WORD, _END = 1, 5
_HEADROOM = 80  # of eSpeak's volume; at 100 some voices clip


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds: too coarse
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Line:
    """Something to say and how.

    `words` are the units that are to carry times, `variant` a voice of `VOICES`, `rate` in words per minute, `pitch`
    from 0 to 99. `speed` plays the result that much faster (Ko et al. 2015): formants and pitch rise with it, as in a
    smaller speaker; times are those of what is heard. `accent` is eSpeak's name of a language's variety, such as
    'en-gb-scotland'; None for the usual one.
    """

    words: tuple[str, ...]
    language: str
    variant: str
    rate: int
    pitch: int
    speed: float = 1.0
    accent: str | None = None


@dataclass(frozen=True)
class Utterance:
    """Speech at 16 kHz with word boundaries in seconds: word i spans `boundaries[i]` to `boundaries[i+1]`.

    In a language of `UNTIMED` there are two, the beginning and the end of all.
    """

    samples: Signal
    boundaries: tuple[float, ...]


def version() -> str:
    """The synthesiser's version, as 'espeak-ng 1.52.0'."""
    library, _ = _load()
    return f"espeak-ng {library.espeak_Info(None).decode()}"


def say(lines: Sequence[Line]) -> list[Utterance]:
    """Speak `lines` one after the other: each depends on itself and the lines before it, and on nothing else.

    Raises:
        RuntimeError: when eSpeak fails, or does not report one start time per word (never, with this grammar).
    """
    _, rate = _load()  # before the fork, so that every child starts from the same state
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as child:
        spoken = list(child.map(_synthesise, lines))
    utterances = []
    for line, (events, pcm) in zip(lines, spoken, strict=True):
        starts = [(position, sample) for kind, position, length, sample in events if kind == _WORD and length > 0]
        expected = [1 + sum(len(word) + 1 for word in line.words[:index]) for index in range(len(line.words))]
        if line.language in UNTIMED:
            starts, expected = [(1, 0)], [1]
        ends = [sample for kind, _, _, sample in events if kind == _END]
        if [position for position, _ in starts] != expected or len(ends) != 1:
            raise RuntimeError(f"eSpeak gave no time for every word of {line}: events {events}")
        # Very high quality runs in float64: at lower settings the result would depend on the processor's instructions.
        heard = rate * line.speed
        signal = soxr.resample(np.frombuffer(pcm, np.int16) / 32768.0, heard, SAMPLE_RATE, quality="VHQ")
        boundaries = [*(sample for _, sample in starts), ends[0]]
        utterances.append(Utterance(signal, tuple(sample / heard for sample in boundaries)))
    return utterances


@cache
def _load() -> tuple[ctypes.CDLL, int]:
    """The initialised library, and its sample rate in Hz.

    Raises:
        ImportError: when the package that carries eSpeak NG is not installed.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise ImportError("the embedded corpus speaks through eSpeak NG: pip install 'auris[corpus]'") from None
    library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
    library.espeak_Info.restype = ctypes.c_char_p
    library.espeak_ng_SetRandSeed.argtypes = (ctypes.c_long,)
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0)
    if rate <= 0:
        raise ImportError(f"eSpeak NG did not start (code {rate}); reinstall it: pip install 'auris[corpus]'")
    return library, rate


def _synthesise(line: Line) -> tuple[list[tuple[int, int, int, int]], bytes]:
    library, _ = _load()
    events: list[tuple[int, int, int, int]] = []
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

    callback = _Callback(receive)  # a name of its own keeps it alive while eSpeak calls it
    library.espeak_SetSynthCallback(callback)
    library.espeak_ng_SetRandSeed(0)
    voice = f"{line.accent or _LANGUAGES[line.language]}+{line.variant}"
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise RuntimeError(f"eSpeak does not take the voice {voice!r}")
    for parameter, value in ((_RATE, line.rate), (_PITCH, line.pitch), (_VOLUME, _HEADROOM)):
        library.espeak_SetParameter(parameter, value, 0)
    text = "\u00a0".join(line.words).encode()
    if library.espeak_Synth(text, len(text) + 1, 0, _BY_CHARACTER, 0, _UTF8, None, None) != 0:
        raise RuntimeError(f"eSpeak refused {line}")
    library.espeak_Synchronize()
    return events, b"".join(pcm)
