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
from auris.corpus.signal import SAMPLE_RATE, n_samples
from auris.errors import UserError


@dataclass(frozen=True)
class RecordingSpec:
    """A recording to make.

    Attributes:
        audio_path: Path of the audio file, relative to the directory of the rows.
        position: Name of the recording's series, and index of the recording in it. Neighbours in a series are
            synthesised in order by one eSpeak process, because its output depends on the lines that it spoke before.
        line: Sentence to speak.
        seed: Random seed.
        clips: Paths of the clips that follow the sentence.
    """

    audio_path: str
    position: tuple[str, int]
    line: speech.Line
    seed: int
    clips: tuple[Path, ...]


def make_recordings(specs: Iterable[RecordingSpec], folder: Path, processes: int | None) -> list[bytes]:
    """Make recordings and write them below `folder`.

    Returns:
        The SHA-256 digest of the samples of each recording, ordered by `position`.
    """
    ordered_specs = sorted(specs, key=attrgetter("position"))
    make = partial(_make_group, folder=folder)
    return make_in_groups(make, ordered_specs, attrgetter("position"), processes=processes, title="recordings")


def _make_group(specs: Sequence[RecordingSpec], folder: Path) -> list[bytes]:
    """Make a few recordings with one eSpeak process; return the SHA-256 digest of the samples of each recording."""
    utterances = speech.say([spec.line for spec in specs])
    return [_record_and_write(spec, utterance, folder) for spec, utterance in zip(specs, utterances, strict=True)]


def _record_and_write(spec: RecordingSpec, utterance: speech.Utterance, folder: Path) -> bytes:
    """Join the spoken sentence and the clips that follow it, and write the result as one file."""
    rng = np.random.default_rng(derive_seed(spec.seed, "recording"))
    pieces: list[NDArray[np.int16]] = [*record_utterance({}, spec.line, utterance, rng).clips]
    for path in spec.clips:
        clip, rate = soundfile.read(path, dtype="int16")
        if rate != SAMPLE_RATE or clip.ndim != 1:
            raise UserError(
                f"{path} has {rate} Hz and {'one channel' if clip.ndim == 1 else f'{clip.shape[1]} channels'}, but "
                f"spoken commands need clips of {SAMPLE_RATE} Hz with one channel; set dialogues.mix.command=0 to "
                "leave spoken commands out"
            )
        pieces += [np.zeros(n_samples(rng.uniform(0.15, 0.35)), np.int16), np.asarray(clip, np.int16)]
    return write_clips([(folder / spec.audio_path, np.concatenate(pieces))])
