"""Collation of samples into packs: the tokens of all rows concatenated, without padding.

Shapes: S segments (one per row, two per pair of answers) with T tokens in total, A clips with F mel frames in total,
M audio tokens, P pairs, K attention keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from auris.audio import Geometry, n_encoder_frames
from auris.model.pack import IGNORE, Pack
from auris.text.tasks import LOSS_CURVES

# A pack without audio gets a silent clip, because every rank must run the encoder. This is its number of valid mel
# frames. They become two encoder frames, or one audio token if two frames are pooled.
DUMMY_FRAMES = 4

_CURVE_NUMBERS = {name: number for number, name in enumerate(LOSS_CURVES)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """One row that is ready to be packed, with T tokens.

    Attributes:
        row: Number of the row.
        ids: (T,) int64, token ids. In a pair of answers, they end with the chosen answer.
        supervise: (T,) bool, True for tokens to predict. In a pair, these are exactly the tokens of the chosen answer.
        audio_mask: (T,) bool, True for audio tokens.
        mels: Log-mel features of the clips (or their windows) in the order of the audio tokens, each (n_mels,
            geometry.n_frames_with_padding(frames)) float32: the valid frames, and padding that the encoder needs.
        frames: Number of valid mel frames of each clip or window.
        encoder_frames: Cached outputs (C, D) of the encoder for the clip, in place of `mels`; None without a cache.
        audio_seconds: Seconds of audio.
        loss_curve: Name of the curve that includes the loss of this row (one of `tasks.LOSS_CURVES`).
        rejected: (N,) int64, token ids of the rejected answer of a pair; None for a row with one answer.
        reference: Log-probabilities of the chosen and the rejected answer under the reference model, if it is used.
    """

    row: int
    ids: np.ndarray
    supervise: np.ndarray
    audio_mask: np.ndarray
    mels: tuple[Tensor, ...]
    frames: tuple[int, ...]
    audio_seconds: float
    loss_curve: str
    encoder_frames: Tensor | None = None
    rejected: np.ndarray | None = None
    reference: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        shape = self.ids.shape
        assert len(shape) == 1 and shape[0] > 0, shape
        assert shape == self.supervise.shape == self.audio_mask.shape, (self.supervise.shape, self.audio_mask.shape)
        assert not (self.supervise & self.audio_mask).any(), "an audio token cannot be predicted"
        if self.rejected is not None:
            start = int(self.supervise.argmax())
            assert len(self.rejected) and start > 0 and self.supervise[start:].all(), (start, shape)
            assert not self.audio_mask[start - 1], "the prompt of a pair must end with text"


def collate(
    samples: Sequence[Sample],
    *,
    geometry: Geometry | None,
    skipped: Sequence[tuple[str, str]] = (),
    cached_width: int | None = None,
) -> Pack:
    """Concatenate samples into one pack without padding.

    Args:
        samples: The samples. The list is empty if all rows of the pack are unusable.
        geometry: Determines the numbers of frames and tokens of a clip. None for text-only training, whose packs have
            no `mel` and no `frames`.
        skipped: (row id, reason) of the rows that were left out of the pack.
        cached_width: Width of the encoder if all clips have cached encoder frames.
    """
    segments = [segment for sample in samples for segment in _segments(sample)] or [_EMPTY]
    lengths = [len(segment.ids) for segment in segments]
    pack: Pack = {
        "ids": torch.from_numpy(np.concatenate([segment.ids for segment in segments])),
        "labels": torch.from_numpy(np.concatenate([_shift(segment) for segment in segments])),
        "positions": torch.cat([torch.arange(len(s.ids)) + s.n_inherited for s in segments]),
        "cu_seqlens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "audio_index": torch.from_numpy(np.flatnonzero(np.concatenate([s.audio_mask for s in segments]))),
        "loss_curves": torch.tensor([_CURVE_NUMBERS[sample.loss_curve] for sample in samples], dtype=torch.int64),
        "rows": [sample.row for sample in samples],
        "skipped": list(skipped),
        "audio_seconds": sum(sample.audio_seconds for sample in samples),
    }
    if any(segment.n_inherited for segment in segments):
        pack["key_index"], pack["cu_keys"] = _index_keys(segments)
    references = [sample.reference for sample in samples if sample.reference is not None]
    if references:
        assert len(references) == len(samples), "some pairs have reference log-probabilities, others do not"
        pack["reference"] = torch.tensor(references, dtype=torch.float32)
    mels = [mel for sample in samples for mel in sample.mels]
    if geometry is None:
        assert not mels, "the samples contain clips in text-only training"
        return pack
    frames = [n for sample in samples for n in sample.frames] or [DUMMY_FRAMES]
    pack["frames"] = torch.tensor(frames)
    if cached_width is not None:
        assert not mels, "some clips have cached encoder frames, others do not"
        cached = [sample.encoder_frames for sample in samples if sample.encoder_frames is not None]
        pack["encoder_frames"] = torch.cat(cached or [torch.zeros(n_encoder_frames(DUMMY_FRAMES), cached_width)])
        return pack
    mels = mels or [torch.zeros(geometry.n_mels, geometry.n_frames_with_padding(DUMMY_FRAMES))]
    assert [mel.shape for mel in mels] == [(geometry.n_mels, geometry.n_frames_with_padding(n)) for n in frames], frames
    pack["mel"] = torch.cat(mels, dim=1)
    return pack


@dataclass(frozen=True, eq=False)
class _Segment:
    """Consecutive tokens, which attend to one another and to the first `n_inherited` tokens of the previous segment."""

    ids: np.ndarray
    supervise: np.ndarray
    audio_mask: np.ndarray
    n_inherited: int = 0


_EMPTY = _Segment(np.zeros(1, np.int64), np.zeros(1, bool), np.zeros(1, bool))


def _segments(sample: Sample) -> list[_Segment]:
    first = _Segment(sample.ids, sample.supervise, sample.audio_mask)
    if sample.rejected is None:
        return [first]
    last = int(sample.supervise.argmax()) - 1  # index of the prompt's last token, which predicts both answers
    ids = np.concatenate([sample.ids[last : last + 1], sample.rejected])
    return [first, _Segment(ids, np.ones(len(ids), bool), np.zeros(len(ids), bool), n_inherited=last)]


def _shift(segment: _Segment) -> np.ndarray:
    """Return labels (T,): the next token of the segment if it is supervised, otherwise IGNORE."""
    labels = np.full(len(segment.ids), IGNORE, dtype=np.int64)
    labels[:-1] = np.where(segment.supervise[1:], segment.ids[1:], IGNORE)
    return labels


def _index_keys(segments: Sequence[_Segment]) -> tuple[Tensor, Tensor]:
    """Return the positions (K,) of each segment's attention keys, inherited ones first, and their cumulative counts.

    The cumulative counts (S + 1,) start with 0.
    """
    positions: list[Tensor] = []
    previous_start = start = 0
    for segment in segments:
        own = torch.arange(start, start + len(segment.ids))
        positions.append(torch.cat([torch.arange(previous_start, previous_start + segment.n_inherited), own]))
        previous_start, start = start, start + len(segment.ids)
    ends = np.cumsum([len(keys) for keys in positions])
    return torch.cat(positions), torch.tensor([0, *ends], dtype=torch.int32)
