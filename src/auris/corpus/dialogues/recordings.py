"""The recordings of dialogues in which somebody speaks. Worker processes import this module: it must not load torch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from auris.corpus import speech
from auris.corpus.output import derive_seed, write_clips
from auris.corpus.recording import stage
from auris.corpus.signal import SAMPLE_RATE, samples
from auris.errors import UserError

_GROUP = 8  # clips that one worker speaks at a time, in one fork of eSpeak


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


def speak(recordings: Iterable[Spoken], folder: Path, processes: int) -> Iterator[list[bytes]]:
    """Make `recordings` below `folder`; yields the SHA-256 of the samples of those that one worker made together."""
    groups: dict[tuple[str, int], list[Spoken]] = {}
    for recording in sorted(recordings, key=lambda recording: recording.place):
        series, index = recording.place
        groups.setdefault((series, index // _GROUP), []).append(recording)
    context = multiprocessing.get_context("spawn")  # as in `build`: a fork would copy the locks of threads
    with ProcessPoolExecutor(processes, mp_context=context) as workers:
        yield from workers.map(partial(record, folder=folder), groups.values())


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
