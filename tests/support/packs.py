"""Rows of random text and random audio features, as packs for our model (padded twins of them are made in parity/)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from auris.audio import MAX_FRAMES, Geometry
from auris.data.collate import Sample, collate

AUDIO_ID = 5  # stands where audio tokens stand
VOCAB = 96


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip of `frames` valid mel frames. Its features go on behind them, as those of a clip padded to 30 s do."""

    frames: int
    n_mels: int = 16
    mel: Tensor = field(init=False)

    def __post_init__(self) -> None:
        seed = torch.Generator().manual_seed(self.frames)
        object.__setattr__(self, "mel", torch.randn(self.n_mels, MAX_FRAMES, generator=seed, dtype=torch.float32))

    @property
    def features(self) -> Tensor:
        """The features (n_mels, 3000) in the default dtype, which is that of the nets."""
        return self.mel.to(torch.get_default_dtype())


Row = list["list[int] | Clip"]


def text(length: int, seed: int = 0) -> list[int]:
    """Random text ids, none of them the audio token's."""
    return np.random.default_rng((length, seed)).integers(AUDIO_ID + 1, VOCAB, length).tolist()


def clips(rows: list[Row]) -> list[Clip]:
    return [part for row in rows for part in row if isinstance(part, Clip)]


def expand(row: Row, geometry: Geometry) -> list[int]:
    """The row's ids, each clip as its audio tokens (and its boundaries, where they are learned)."""
    parts = ([AUDIO_ID] * _places(p, geometry) if isinstance(p, Clip) else p for p in row)
    return [token for part in parts for token in part]


def audio_mask(row: Row, geometry: Geometry) -> list[bool]:
    """Where its audio tokens stand (a generated text id may be the audio token's)."""
    parts = ([True] * _places(p, geometry) if isinstance(p, Clip) else [False] * len(p) for p in row)
    return [mark for part in parts for mark in part]


def _places(clip: Clip, geometry: Geometry) -> int:
    return geometry.tokens(clip.frames) + 2 * geometry.boundary


def pack(rows: list[Row], geometry: Geometry) -> dict:
    """Rows side by side. All that follows a row's last clip, its first token excepted, is supervised."""
    samples = []
    for number, row in enumerate(rows):
        ids = np.array(expand(row, geometry))
        audio = np.array(audio_mask(row, geometry))
        last = int(audio.nonzero()[0].max()) if audio.any() else -1
        samples.append(
            Sample(
                row=number,
                ids=ids,
                supervise=np.arange(len(ids)) > last + 1,
                audio_mask=audio,
                mels=tuple(clip.features[:, : geometry.stored(clip.frames)] for clip in clips([row])),
                frames=tuple(clip.frames for clip in clips([row])),
                audio_seconds=0.0,
                curve="asr",
            )
        )
    return collate(samples, geometry=geometry)
