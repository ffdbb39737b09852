"""The recordings of dialogues in which somebody speaks. Worker processes import this module: it must not load torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np
import soundfile

from auris.corpus import speech
from auris.corpus.output import derive_seed, make_in_groups, write_clips
from auris.corpus.recording import stage
from auris.corpus.signal import SAMPLE_RATE, samples
from auris.errors import UserError


@dataclass(frozen=True)
class Spoken:
    """A recording to be made: where it goes (below the data's folder), what is said in it, and what follows.

    `place` is its number in a series: eSpeak speaks for neighbours at a time, and what it says depends on those before.
    """

    audio: str
    place: tuple[str, int]
    line: speech.Line
    seed: int
    clips: tuple[Path, ...]


def speak(recordings: Iterable[Spoken], folder: Path, processes: int | None) -> list[bytes]:
    """Make `recordings` below `folder`; return the SHA-256 digest of the samples of each, in the order of places."""
    ordered = sorted(recordings, key=attrgetter("place"))
    make = partial(record, folder=folder)
    return make_in_groups(make, ordered, attrgetter("place"), processes=processes, title="recordings")


def record(recordings: Sequence[Spoken], folder: Path) -> list[bytes]:
    """Make a few recordings, in one fork of eSpeak; returns the SHA-256 of the samples of each."""
    utterances = speech.say([recording.line for recording in recordings])
    return [_stage_and_write(*parts, folder) for parts in zip(recordings, utterances, strict=True)]


def _stage_and_write(recording: Spoken, utterance: speech.Utterance, folder: Path) -> bytes:
    rng = np.random.default_rng(derive_seed(recording.seed, "recording"))
    pieces = [*stage({}, recording.line, utterance, rng).clips]
    for path in recording.clips:
        clip, rate_of_clip = soundfile.read(path, dtype="int16")
        if rate_of_clip != SAMPLE_RATE or clip.ndim != 1:
            raise UserError(
                f"{path}: {rate_of_clip} Hz, {clip.ndim} channels; a spoken command goes before clips of "
                f"{SAMPLE_RATE} Hz with one channel only: set mix.command=0"
            )
        pieces += [np.zeros(samples(rng.uniform(0.15, 0.35)), np.int16), clip]
    return write_clips([(folder / recording.audio, np.concatenate(pieces))])
