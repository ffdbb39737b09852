"""Packs (rows one after another, without padding) of random text and random audio features.

`twins.py` has the same rows as padded batches for transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from auris.audio import MAX_FRAMES, Geometry
from auris.data.collate import Sample, collate

AUDIO_ID = 5  # placeholder token at audio positions
VOCAB = 96


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip with `frames` valid mel frames. Random features follow them, as in a clip padded to 30 s."""

    frames: int
    n_mels: int = 16
    mel: Tensor = field(init=False)

    def __post_init__(self) -> None:
        seed = torch.Generator().manual_seed(self.frames)
        object.__setattr__(self, "mel", torch.randn(self.n_mels, MAX_FRAMES, generator=seed, dtype=torch.float32))

    @property
    def features(self) -> Tensor:
        """Features (n_mels, 3000) in torch's default dtype, as the nets use it."""
        return self.mel.to(torch.get_default_dtype())


Row = list["list[int] | Clip"]


def text(length: int, seed: int = 0) -> list[int]:
    """Return random text ids, never the audio token."""
    return np.random.default_rng((length, seed)).integers(AUDIO_ID + 1, VOCAB, length).tolist()


def clips(rows: list[Row]) -> list[Clip]:
    return [part for row in rows for part in row if isinstance(part, Clip)]


def row_ids(row: Row, geometry: Geometry) -> list[int]:
    """Return the ids of a row. A clip becomes its audio tokens.

    If learned vectors mark the begin and end of a clip, one more audio token stands at each end.
    """
    parts = ([AUDIO_ID] * _n_positions(p, geometry) if isinstance(p, Clip) else p for p in row)
    return [token for part in parts for token in part]


def audio_mask(row: Row, geometry: Geometry) -> list[bool]:
    """Return a mask of the audio positions. Ids do not suffice: a model may generate the audio token as text."""
    parts = ([True] * _n_positions(p, geometry) if isinstance(p, Clip) else [False] * len(p) for p in row)
    return [is_audio for part in parts for is_audio in part]


def _n_positions(clip: Clip, geometry: Geometry) -> int:
    return geometry.n_tokens(clip.frames) + 2 * geometry.boundary


def pack(rows: list[Row], geometry: Geometry) -> dict:
    """Pack rows. Every token after a row's last clip is supervised, except the first one."""
    samples = []
    for number, row in enumerate(rows):
        ids = np.array(row_ids(row, geometry))
        audio = np.array(audio_mask(row, geometry))
        last = int(audio.nonzero()[0].max()) if audio.any() else -1
        samples.append(
            Sample(
                row=number,
                ids=ids,
                supervise=np.arange(len(ids)) > last + 1,
                audio_mask=audio,
                mels=tuple(clip.features[:, : geometry.n_frames_with_padding(clip.frames)] for clip in clips([row])),
                frames=tuple(clip.frames for clip in clips([row])),
                audio_seconds=0.0,
                loss_curve="asr",
            )
        )
    return collate(samples, geometry=geometry)
