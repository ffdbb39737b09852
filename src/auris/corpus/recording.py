"""Building blocks of recipes: a row's place in the corpus, the choice of a voice, and the simulated microphone.

A recipe turns a place and its random generator into a `Recording`. For a task with speech it returns a `Script`
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
from auris.corpus.signal import SAMPLE_RATE, Signal, add_background, reverberate, samples, to_pcm

Fields = dict[str, Any]

_SPEEDS = (0.88, 1.14)


@dataclass(frozen=True)
class Job:
    """One row to make.

    Attributes:
        split: Split of the row.
        task: Code of the task.
        variant: The language (asr, lid), the direction such as 'de-en' (s2tt), or the class that is the answer.
        index: Index among the rows of the same split, task and variant.
        seed: Random seed of the row.
        prefix: Prefix of the task in the row's id.
    """

    split: str
    task: str
    variant: str
    index: int
    seed: int
    prefix: str = ""

    @property
    def id(self) -> str:
        """Id of the row."""
        return f"{self.split}-{self.prefix}{self.task}-{self.variant.replace(' ', '_')}-{self.index:05d}"

    @property
    def place(self) -> tuple[str, int]:
        """Name of the row's series, and the row's index there."""
        return f"{self.split} {self.task} {self.variant}", self.index

    @property
    def audio(self) -> str:
        """Path of the audio of a row with one clip."""
        return f"audio/{self.split}/{self.id}.wav"

    def audios(self, clips: int) -> list[str]:
        """Return the paths of the audio of a row with `clips` clips."""
        return [self.audio] if clips == 1 else [f"audio/{self.split}/{self.id}-{n}.wav" for n in range(1, clips + 1)]


@dataclass(frozen=True)
class Recording:
    """Labels of a row, and its clips as 16-bit samples."""

    fields: Fields
    clips: tuple[NDArray[np.int16], ...]


@dataclass(frozen=True)
class Script:
    """Lines to synthesise, and the function that turns the utterances into a recording."""

    lines: tuple[speech.Line, ...]
    record: Callable[[Sequence[speech.Utterance]], Recording]


class VoiceSettings(TypedDict, total=False):
    """Fields of a `speech.Line` that describe the voice."""

    rate: int
    pitch: int
    speed: float
    accent: str | None


class CastSettings(VoiceSettings, total=False):
    """Keyword arguments of `cast`."""

    gender: str | None
    voice: str | None


def cast(
    rng: Rng,
    job: Job,
    text: str,
    language: str,
    *,
    gender: str | None = None,
    voice: str | None = None,
    **settings: Unpack[VoiceSettings],
) -> speech.Line:
    """Draw a voice of the job's split for a text.

    In training the speed varies, because a model that hears only fifteen voices does not generalise to others.

    Args:
        rng: Random generator.
        job: The row.
        text: Text to speak.
        language: Language of the text.
        gender: Gender of the voice; None draws one.
        voice: Name of the voice; None draws one.
        **settings: Fields of the line that replace those drawn.
    """
    variants = (voice,) if voice else speech.VOICES[job.split][gender or pick(rng, ("male", "female"))]
    speed = round(float(rng.uniform(*_SPEEDS)), 2) if job.split == "train" else 1.0
    variant = pick(rng, variants)
    rate = round(rng.integers(160, 211) / speed)  # the tempo does not depend on the speed
    pitch = int(rng.integers(42, 59))  # eSpeak's default is 50; this range keeps male and female voices apart
    line = speech.Line(tuple(grammar.split_words(text, language)), language, variant, rate, pitch, speed)
    return replace(line, **settings)


def record_utterance(fields: Fields, line: speech.Line, utterance: speech.Utterance, rng: Rng) -> Recording:
    """Record an utterance with silence around it; times of its words are added to `fields` if they are known."""
    lead, signal = pad_with_silence(utterance.samples, rng)
    speech_fields: Fields = {"speaker": line.variant}
    if line.language not in speech.UNTIMED:
        times = [round(lead + boundary, 4) for boundary in utterance.boundaries]
        spans = zip(line.words, times[:-1], times[1:], strict=True)
        words = [{"word": word, "start": start, "end": end} for word, start, end in spans]
        speech_fields = {"words": words, **speech_fields}
    return Recording({**fields, **speech_fields}, (record_speech(signal, rng),))


def pad_with_silence(speech: Signal, rng: Rng) -> tuple[float, Signal]:
    """Return the time in seconds at which the speech begins, and the speech with a little silence around it."""
    lead = samples(rng.uniform(0.04, 0.2))
    signal = np.zeros(lead + len(speech) + samples(rng.uniform(0.08, 0.2)))
    signal[lead : lead + len(speech)] = speech
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


def record_class(job: Job, signal: Signal, rng: Rng) -> Recording:
    """Record a sound whose class is the job's variant."""
    return Recording({"language": "en", "text": job.variant, "content": job.variant}, (record_sound(signal, rng),))
