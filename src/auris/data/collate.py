"""Samples to packed batches: the rows of a pack one after the other, without padding.

Shapes: S rows of T tokens in all (a pair of answers is two of them), A clips of F stored mel frames in all, M audio
tokens, P pairs, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from auris.audio import Geometry
from auris.model.pack import IGNORE, Pack
from auris.text.tasks import CURVES

# Valid frames of the silent clip in a pack without audio: two audio tokens at 20 ms a frame, one when pooled by 2.
DUMMY_FRAMES = 4

_PLACES = {name: place for place, name in enumerate(CURVES)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """One row, ready to be packed: T tokens and the log-mels of its clips in the order of its audio tokens."""

    row: int
    ids: np.ndarray  # (T,) int64
    supervise: np.ndarray  # (T,) bool: True where the token is to be predicted
    audio_mask: np.ndarray  # (T,) bool: True where audio tokens stand
    mels: tuple[Tensor, ...]  # each (n_mels, geometry.stored(frames)) float32
    frames: tuple[int, ...]  # valid mel frames of each clip
    audio_seconds: float
    curve: str  # of tasks.CURVES: what its loss counts for
    # Of a pair: `ids` go on with the chosen answer, all of it supervised and nothing else; this is the other one.
    rejected: np.ndarray | None = None  # (N,) int64
    reference: tuple[float, float] | None = None  # log-probabilities of both answers under the reference model

    def __post_init__(self) -> None:
        shape = self.ids.shape
        assert len(shape) == 1 and shape[0] > 0, shape
        assert shape == self.supervise.shape == self.audio_mask.shape, (self.supervise.shape, self.audio_mask.shape)
        assert not (self.supervise & self.audio_mask).any(), "an audio token cannot be predicted"
        if self.rejected is not None:
            start = int(self.supervise.argmax())
            assert len(self.rejected) and start > 0 and self.supervise[start:].all(), (start, shape)
            assert not self.audio_mask[start - 1], "the prompt of a pair ends with text"


def collate(samples: Sequence[Sample], *, geometry: Geometry | None, skipped: Sequence[tuple[str, str]] = ()) -> Pack:
    """Put samples one after the other into one pack without padding.

    Args:
        samples: may be empty, when every row of the pack turned out to be unusable.
        geometry: of the model; None for rows without audio, whose packs have no `mel` and no `frames`.
        skipped: (row id, reason) of the rows that are missing from the pack.
    """
    segments = [segment for sample in samples for segment in _segments(sample)] or [_NOTHING]
    lengths = [len(segment.ids) for segment in segments]
    pack: Pack = {
        "ids": torch.from_numpy(np.concatenate([segment.ids for segment in segments])),
        "labels": torch.from_numpy(np.concatenate([_shift(segment) for segment in segments])),
        "positions": torch.cat([torch.arange(len(s.ids)) + s.inherited for s in segments]),
        "cu_seqlens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "audio_index": torch.from_numpy(np.flatnonzero(np.concatenate([s.audio_mask for s in segments]))),
        "tasks": torch.tensor([_PLACES[sample.curve] for sample in samples], dtype=torch.int64),
        "rows": [sample.row for sample in samples],
        "skipped": list(skipped),
        "audio_seconds": sum(sample.audio_seconds for sample in samples),
    }
    if any(segment.inherited for segment in segments):
        pack["key_index"], pack["cu_keys"] = _tree(segments)
    references = [sample.reference for sample in samples if sample.reference is not None]
    if references:
        assert len(references) == len(samples), "reference log-probabilities for some pairs and not for others"
        pack["reference"] = torch.tensor(references, dtype=torch.float32)
    mels = [mel for sample in samples for mel in sample.mels]
    if geometry is None:
        assert not mels, "a pack for a model without audio, with clips in it"
        return pack
    frames = [n for sample in samples for n in sample.frames] or [DUMMY_FRAMES]
    mels = mels or [torch.zeros(geometry.n_mels, geometry.stored(DUMMY_FRAMES))]
    assert [mel.shape for mel in mels] == [(geometry.n_mels, geometry.stored(n)) for n in frames], frames
    pack["mel"] = torch.cat(mels, dim=1)
    pack["frames"] = torch.tensor(frames)
    return pack


@dataclass(frozen=True, eq=False)
class _Segment:
    """Tokens that stand side by side. Their keys begin with the first `inherited` ones of the segment before."""

    ids: np.ndarray
    supervise: np.ndarray
    audio_mask: np.ndarray
    inherited: int = 0


_NOTHING = _Segment(np.zeros(1, np.int64), np.zeros(1, bool), np.zeros(1, bool))


def _segments(sample: Sample) -> list[_Segment]:
    whole = _Segment(sample.ids, sample.supervise, sample.audio_mask)
    if sample.rejected is None:
        return [whole]
    last = int(sample.supervise.argmax()) - 1  # token of the prompt
    ids = np.concatenate([sample.ids[last : last + 1], sample.rejected])
    return [whole, _Segment(ids, np.ones(len(ids), bool), np.zeros(len(ids), bool), inherited=last)]


def _shift(segment: _Segment) -> np.ndarray:
    """Labels (T,): the segment's next token where that token is supervised."""
    labels = np.full(len(segment.ids), IGNORE, dtype=np.int64)
    labels[:-1] = np.where(segment.supervise[1:], segment.ids[1:], IGNORE)
    return labels


def _tree(segments: Sequence[_Segment]) -> tuple[Tensor, Tensor]:
    """Where the keys of each segment stand (those that it inherits, then its own), and how many it has, cumulated."""
    places: list[Tensor] = []
    before = start = 0
    for segment in segments:
        own = torch.arange(start, start + len(segment.ids))
        places.append(torch.cat([torch.arange(before, before + segment.inherited), own]))
        before, start = start, start + len(segment.ids)
    counts = np.cumsum([len(place) for place in places])
    return torch.cat(places), torch.tensor([0, *counts], dtype=torch.int32)
