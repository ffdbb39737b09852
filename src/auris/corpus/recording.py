"""What recipes share: a row's place in the corpus, who speaks it, and the recording as a microphone gets it.

A recipe turns a place and its random numbers into a `Recording`, or where somebody speaks into a `Script`: eSpeak
speaks for several rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auris.corpus import grammar, speech
from auris.corpus.draws import Rng, pick
from auris.corpus.signal import SAMPLE_RATE, Signal, add_background, reverberate, samples, to_pcm

Fields = dict[str, Any]

_SPEEDS = (0.88, 1.14)


@dataclass(frozen=True)
class Job:
    """One row to make: its place in the corpus and what is decided by place rather than by chance.

    `variant` is the language (asr, lid), the direction such as 'de-en' (s2tt), or the class that is the answer; `mark`
    stands before the task in the row's name.
    """

    split: str
    task: str
    variant: str
    index: int
    seed: int
    mark: str = ""

    @property
    def id(self) -> str:
        return f"{self.split}-{self.mark}{self.task}-{self.variant.replace(' ', '_')}-{self.index:05d}"

    @property
    def place(self) -> tuple[str, int]:
        """The row's series, and its index there."""
        return f"{self.split} {self.task} {self.variant}", self.index

    @property
    def audio(self) -> str:
        return f"audio/{self.split}/{self.id}.wav"

    def audios(self, clips: int) -> list[str]:
        """The files of a row with so many clips."""
        return [self.audio] if clips == 1 else [f"audio/{self.split}/{self.id}-{n}.wav" for n in range(1, clips + 1)]


@dataclass(frozen=True)
class Recording:
    """A row's own fields, and each of its clips as 16-bit samples."""

    fields: Fields
    clips: tuple[NDArray[np.int16], ...]


@dataclass(frozen=True)
class Script:
    """What is yet to be spoken, and how the recording is made of it."""

    lines: tuple[speech.Line, ...]
    record: Callable[[Sequence[speech.Utterance]], Recording]


def cast(
    rng: Rng,
    job: Job,
    text: str,
    language: str,
    *,
    gender: str | None = None,
    voice: str | None = None,
    **settings: Any,
) -> speech.Line:
    """`text` for a random voice of the job's split, of either gender with equal chance unless one is asked for.

    In training its speed varies: fifteen voices are few, and what learns from them alone mishears others. `settings`
    are fields of the line that take the place of those drawn.
    """
    variants = (voice,) if voice else speech.VOICES[job.split][gender or pick(rng, ("male", "female"))]
    speed = round(float(rng.uniform(*_SPEEDS)), 2) if job.split == "train" else 1.0
    drawn = {
        "variant": pick(rng, variants),
        "rate": round(rng.integers(160, 211) / speed),  # the tempo stays
        "pitch": int(rng.integers(42, 59)),  # 50 is the voice's own; this keeps men and women apart
        "speed": speed,
    }
    return speech.Line(tuple(grammar.words(text, language)), language, **{**drawn, **settings})


def stage(fields: Fields, line: speech.Line, utterance: speech.Utterance, rng: Rng) -> Recording:
    """The utterance as heard in some place, with the times of its words where they are known."""
    lead, signal = surround(utterance.samples, rng)
    heard = {"speaker": line.variant}
    if line.language not in speech.UNTIMED:
        times = [round(lead + boundary, 4) for boundary in utterance.boundaries]
        spans = zip(line.words, times[:-1], times[1:], strict=True)
        heard = {"words": [{"word": word, "start": start, "end": end} for word, start, end in spans], **heard}
    return Recording({**fields, **heard}, (hear_speech(signal, rng),))


def surround(speech: Signal, rng: Rng) -> tuple[float, Signal]:
    """`speech` with a little silence around it, and when it begins in seconds."""
    lead = samples(rng.uniform(0.04, 0.2))
    signal = np.zeros(lead + len(speech) + samples(rng.uniform(0.08, 0.2)))
    signal[lead : lead + len(speech)] = speech
    return lead / SAMPLE_RATE, signal


def hear_speech(signal: Signal, rng: Rng) -> NDArray[np.int16]:
    """Speech as a microphone gets it: often in a small room, often with some noise, at some level."""
    if rng.random() < 0.4:
        signal = reverberate(rng, signal, seconds=rng.uniform(0.1, 0.4), ratio=rng.uniform(0.02, 0.25))
    if rng.random() < 0.6:
        signal = add_background(rng, signal, snr=rng.uniform(15, 30))
    return to_pcm(signal, rng.uniform(-15, -2))


def hear(signal: Signal, rng: Rng) -> NDArray[np.int16]:
    """A sound or a piece of music as a microphone gets it: with some noise, at some level."""
    return to_pcm(add_background(rng, signal, snr=rng.uniform(25, 45)), rng.uniform(-15, -2))


def record_class(job: Job, signal: Signal, rng: Rng) -> Recording:
    """What is heard is what the job asks for, and that is its class."""
    return Recording({"language": "en", "text": job.variant, "content": job.variant}, (hear(signal, rng),))
