"""Building blocks of recipes: the specification of a row, the choice of a voice, and the simulated microphone.

A recipe turns a `RowSpec` and a random generator into a `Recording`. For a task with speech it returns a `Script`
instead, because eSpeak synthesises the speech of several rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from auris.corpus import grammar, speech
from auris.corpus.draws import Rng, pick
from auris.corpus.signal import SAMPLE_RATE, Signal, add_background, n_samples, reverberate, to_pcm

Fields = dict[str, Any]

_SPEEDS = (0.88, 1.14)  # range of the factor of the playback speed in training


@dataclass(frozen=True)
class RowSpec:
    """Specification of a row to make.

    Attributes:
        split: Split of the row.
        task: Code of the task, or kind of a dialogue.
        variant: What distinguishes rows of one task: for instance a language (asr, lid), a translation direction such
            as 'de-en' (s2tt), or the class that is the answer (sec).
        index: Index among the rows of the same split, task and variant.
        seed: Random seed of the row.
        prefix: Prefix of the task in the row's id.
        text: Text to speak; None if the recipe of the task draws it.
    """

    split: str
    task: str
    variant: str
    index: int
    seed: int
    prefix: str = ""
    text: str | None = None

    @property
    def id(self) -> str:
        """Id of the row."""
        return f"{self.split}-{self.prefix}{self.task}-{self.variant.replace(' ', '_')}-{self.index:05d}"

    @property
    def position(self) -> tuple[str, int]:
        """Name of the row's series (split, task and variant), and index of the row in the series."""
        return f"{self.split} {self.task} {self.variant}", self.index

    @property
    def audio_path(self) -> str:
        """Path of the audio file if the row has one clip, relative to the manifest."""
        return f"audio/{self.split}/{self.id}.wav"

    def audio_paths(self, n_clips: int) -> list[str]:
        """Return the paths of the audio files if the row has `n_clips` clips, relative to the manifest."""
        if n_clips == 1:
            return [self.audio_path]
        return [f"audio/{self.split}/{self.id}-{number}.wav" for number in range(1, n_clips + 1)]


@dataclass(frozen=True)
class Recording:
    """Labels of a row, and its clips as 16-bit samples."""

    fields: Fields
    clips: tuple[NDArray[np.int16], ...]


@dataclass(frozen=True)
class Script:
    """Lines to synthesise, and a function that turns the synthesised utterances into a recording."""

    lines: tuple[speech.Line, ...]
    record: Callable[[Sequence[speech.Utterance]], Recording]


class VoiceSettings(TypedDict, total=False):
    """Fields of a `speech.Line` that describe the voice."""

    rate: int
    pitch: int
    speed: float
    accent: str | None


class LineSettings(VoiceSettings, total=False):
    """Keyword arguments of `draw_line`."""

    gender: str | None
    voice: str | None


def draw_line(
    rng: Rng,
    spec: RowSpec,
    text: str,
    language: str,
    *,
    gender: str | None = None,
    voice: str | None = None,
    **settings: Unpack[VoiceSettings],
) -> speech.Line:
    """Return a line to synthesise: a text, and a randomly drawn voice of the row's split.

    In the training split the speed varies, because a model that hears only fifteen voices does not generalise to
    other voices.

    Args:
        rng: Random generator.
        spec: Specification of the row.
        text: Text to speak.
        language: Language of the text.
        gender: Gender of the voice; None to draw one.
        voice: Name of the voice; None to draw one.
        **settings: Fields of the line that replace the drawn ones.
    """
    voices = (voice,) if voice else speech.VOICES[spec.split][gender or pick(rng, ("male", "female"))]
    speed = round(float(rng.uniform(*_SPEEDS)), 2) if spec.split == "train" else 1.0
    voice = pick(rng, voices)
    rate = round(rng.integers(160, 211) / speed)  # divided by the speed, so that the tempo is the same at every speed
    pitch = int(rng.integers(42, 59))  # eSpeak's default is 50; this range keeps male and female voices apart
    line = speech.Line(tuple(grammar.split_words(text, language)), language, voice, rate, pitch, speed)
    return replace(line, **settings)


def record_utterance(fields: Fields, line: speech.Line, utterance: speech.Utterance, rng: Rng) -> Recording:
    """Record an utterance with silence around it.

    The fields of the recording are `fields`, the speaker and, if eSpeak reports word times in this language, the words
    with their times.
    """
    lead, signal = pad_with_silence(utterance.samples, rng)
    speech_fields: Fields = {"speaker": line.voice}
    if line.language not in speech.UNTIMED_LANGUAGES:
        times = [round(lead + boundary, 4) for boundary in utterance.boundaries]
        spans = zip(line.words, times[:-1], times[1:], strict=True)
        words = [{"word": word, "start": start, "end": end} for word, start, end in spans]
        speech_fields = {"words": words, **speech_fields}
    return Recording({**fields, **speech_fields}, (record_speech(signal, rng),))


def pad_with_silence(samples: Signal, rng: Rng) -> tuple[float, Signal]:
    """Put a little silence around speech; return the time at which the speech begins in seconds, and the signal."""
    lead = n_samples(rng.uniform(0.04, 0.2))
    signal = np.zeros(lead + len(samples) + n_samples(rng.uniform(0.08, 0.2)))
    signal[lead : lead + len(samples)] = samples
    return lead / SAMPLE_RATE, signal


def record_speech(signal: Signal, rng: Rng) -> NDArray[np.int16]:
    """Return speech as a microphone records it: often in a small room, often with noise, at a random level."""
    if rng.random() < 0.4:
        signal = reverberate(rng, signal, seconds=rng.uniform(0.1, 0.4), ratio=rng.uniform(0.02, 0.25))
    if rng.random() < 0.6:
        signal = add_background(rng, signal, snr=rng.uniform(15, 30))
    return to_pcm(signal, rng.uniform(-15, -2))


def record_sound(signal: Signal, rng: Rng) -> NDArray[np.int16]:
    """Return a sound or music as a microphone records it: with noise, at a random level."""
    return to_pcm(add_background(rng, signal, snr=rng.uniform(25, 45)), rng.uniform(-15, -2))


def record_class(spec: RowSpec, signal: Signal, rng: Rng) -> Recording:
    """Record a sound whose class is the row's variant."""
    return Recording({"language": "en", "text": spec.variant, "content": spec.variant}, (record_sound(signal, rng),))
