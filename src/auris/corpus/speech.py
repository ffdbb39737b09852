"""Speech with exact word times, through the eSpeak NG library that the PyPI package `espeakng-loader` carries.

Two things are unusual. Words are joined by no-break spaces: across plain spaces eSpeak merges common pairs ("in the")
and loses their times. And every utterance is spoken in a forked child, with a fixed seed: the flutter and breath in
eSpeak's voices go on from call to call and even start from the time of day, so only a fresh copy says the same twice.
"""

from __future__ import annotations

import ctypes
import json
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import soxr

from auris.corpus.signal import SAMPLE_RATE, Signal

# eSpeak's natural-sounding voice variants, dealt to the splits so that a test voice is never heard in training: variants
# that share their formants (linda and belinda, f2 and f5) stand on the same side. Left out: robots, whispers, and variants
# that overload 16 bits.
VOICES = {
    "train": {
        "male": ("m1", "m2", "m3", "m5", "m7", "m8", "Diogo", "Mike"),
        "female": ("f1", "f2", "f3", "f5", "Alicia", "Annie", "steph"),
    },
    "valid": {"male": ("max",), "female": ("Andrea",)},
    "test": {"male": ("m4", "m6", "victor"), "female": ("f4", "linda", "belinda")},
}
_LANGUAGES = {"en": "en-us", "zh": "cmn", "de": "de", "es": "es", "fr": "fr", "it": "it", "ja": "ja"}

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
class Voice:
    """How something is said: variant (see `VOICES`), speaking rate in words per minute, pitch from 0 to 99."""

    variant: str
    rate: int
    pitch: int


@dataclass(frozen=True)
class Utterance:
    """Speech at 16 kHz with the boundaries of its words in seconds: word i spans `boundaries[i]` to `boundaries[i+1]`."""

    samples: Signal
    boundaries: tuple[float, ...]


def version() -> str:
    """The synthesiser's version, as 'espeak-ng 1.52.0'."""
    library, _ = _load()
    return f"espeak-ng {library.espeak_Info(None).decode()}"


def say(words: Sequence[str], language: str, voice: Voice) -> Utterance:
    """Speak `words`, a sentence cut into the units that are to carry times.

    Raises:
        RuntimeError: when eSpeak does not report one start time per word (it never happened with this grammar).
    """
    text = "\u00a0".join(words)
    rate, events, pcm = _speak_in_child(text, f"{_LANGUAGES[language]}+{voice.variant}", voice)
    spoken = [(position, sample) for kind, position, length, sample in events if kind == _WORD and length > 0]
    expected = [1 + sum(len(word) + 1 for word in words[:index]) for index in range(len(words))]
    ends = [sample for kind, _, _, sample in events if kind == _END]
    if [position for position, _ in spoken] != expected or len(ends) != 1:
        raise RuntimeError(f"eSpeak gave no time for every word of {text!r} ({language}, {voice}): events {events}")
    # Very high quality runs in float64: at lower settings the result would depend on the processor's instructions.
    signal = soxr.resample(np.frombuffer(pcm, np.int16) / 32768.0, rate, SAMPLE_RATE, quality="VHQ")
    return Utterance(signal, tuple(sample / rate for sample in [*(sample for _, sample in spoken), ends[0]]))


@cache
def _load() -> tuple[ctypes.CDLL, int]:
    """The initialised library and its sample rate in Hz.

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


def _speak_in_child(text: str, name: str, voice: Voice) -> tuple[int, list[list[int]], bytes]:
    """Synthesise in a fork. Returns the sample rate, eSpeak's events [type, position, length, sample], 16-bit samples."""
    _load()  # in the parent, so that every child starts from the same state
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 1
        try:
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(_synthesise(text, name, voice))
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)  # not sys.exit: the parent's cleanup is not the child's
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        header, _, pcm = pipe.read().partition(b"\n")
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise RuntimeError(f"eSpeak failed on {text!r} with voice {name!r} (status {status})")
    rate, events = json.loads(header)
    return rate, events, pcm


def _synthesise(text: str, name: str, voice: Voice) -> bytes:
    """A line of JSON (sample rate and events), then the samples."""
    library, rate = _load()
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

    library.espeak_ng_SetRandSeed(0)
    callback = _Callback(receive)  # a name of its own keeps it alive while eSpeak calls it
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(name.encode()) != 0:
        raise RuntimeError(f"eSpeak has no voice {name!r}")
    for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_VOLUME, _HEADROOM)):
        library.espeak_SetParameter(parameter, value, 0)
    encoded = text.encode()
    if library.espeak_Synth(encoded, len(encoded) + 1, 0, _BY_CHARACTER, 0, _UTF8, None, None) != 0:
        raise RuntimeError(f"eSpeak refused {text!r}")
    library.espeak_Synchronize()
    return json.dumps([rate, events]).encode() + b"\n" + b"".join(pcm)
