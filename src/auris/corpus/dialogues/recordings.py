"""Recordings of spoken user messages. Worker processes import this module, so it must not load torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from auris.corpus import speech
from auris.corpus.output import derive_seed, make_in_groups, write_clips
from auris.corpus.recording import record_utterance
from auris.corpus.signal import SAMPLE_RATE, samples
from auris.errors import UserError


@dataclass(frozen=True)
class RecordingSpec:
    """A recording to make.

    Attributes:
        audio: Path of its file, relative to the directory of the rows.
        place: Name of its series, and its index there. eSpeak synthesises neighbours in one process, and its output
            depends on the lines before.
        line: Sentence to speak.
        seed: Random seed.
        clips: Paths of the clips that follow the sentence.
    """

    audio: str
    place: tuple[str, int]
    line: speech.Line
    seed: int
    clips: tuple[Path, ...]


def speak(recordings: Iterable[RecordingSpec], folder: Path, processes: int | None) -> list[bytes]:
    """Make `recordings` below `folder`; return the SHA-256 digest of the samples of each, ordered by place."""
    ordered = sorted(recordings, key=attrgetter("place"))
    make = partial(record, folder=folder)
    return make_in_groups(make, ordered, attrgetter("place"), processes=processes, title="recordings")


def record(recordings: Sequence[RecordingSpec], folder: Path) -> list[bytes]:
    """Make a few recordings in one fork of eSpeak; return the SHA-256 digest of the samples of each."""
    utterances = speech.say([recording.line for recording in recordings])
    return [_stage_and_write(*parts, folder) for parts in zip(recordings, utterances, strict=True)]


def _stage_and_write(recording: RecordingSpec, utterance: speech.Utterance, folder: Path) -> bytes:
    rng = np.random.default_rng(derive_seed(recording.seed, "recording"))
    pieces: list[NDArray[np.int16]] = [*record_utterance({}, recording.line, utterance, rng).clips]
    for path in recording.clips:
        clip, rate = soundfile.read(path, dtype="int16")
        if rate != SAMPLE_RATE or clip.ndim != 1:
            raise UserError(
                f"{path}: {rate} Hz, {'one channel' if clip.ndim == 1 else f'{clip.shape[1]} channels'}; spoken "
                f"commands need clips of {SAMPLE_RATE} Hz with one channel: set dialogues.mix.command=0"
            )
        pieces += [np.zeros(samples(rng.uniform(0.15, 0.35)), np.int16), np.asarray(clip, np.int16)]
    return write_clips([(folder / recording.audio, np.concatenate(pieces))])
