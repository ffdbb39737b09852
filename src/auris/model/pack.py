"""The packed batch: all rows concatenated into one sequence of tokens, with the audio of all rows.

Shapes: S segments (one per row, two per preference pair), T tokens of all segments, A clips, F mel frames of all clips,
    M audio tokens, P pairs, K keys, C encoder frames of width D.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict, cast

import torch
from torch import Tensor

IGNORE = -100  # label of a position without a loss (the default of torch's cross_entropy)


class Pack(TypedDict):
    """A packed batch. At run time it is a plain dict, which Lightning moves and pins like any other batch.

    Every rank of a sharded model must run the encoder, so a pack without clips contains a silent clip that no position
    refers to. A pack without rows consists of one token of id 0 without a label, and its `rows` is empty.

    A row is one segment of the sequence. A preference pair is two segments that share a prompt: the first consists of
    the prompt and the chosen response. The second consists of the last token of the prompt, which is repeated because
    it predicts the first token of both responses, and the rejected response. The second segment attends to the prompt
    in the first segment, and for this purpose packs of pairs have `key_index` and `cu_keys`.

    Attributes:
        ids: (T,) int64, token ids.
        labels: (T,) int64, the token to predict at each position, or IGNORE.
        positions: (T,) int64, position of each token in its row.
        cu_seqlens: (S + 1,) int32, cumulative lengths of the segments.
        audio_index: (M,) int64, positions of the audio tokens in `ids`.
        loss_curves: one int64 per row or pair, the index of its loss curve in `text.tasks.LOSS_CURVES`. There is a
            curve for each task (or task and mode), whose loss is logged separately.
        rows: the number of each row or pair in the data set.
        skipped: (row id, reason) of each row that was left out, because it could not be used.
        audio_seconds: total duration of the audio.
        mel: (n_mels, F) float32, log-mel features of all clips; absent in text-only training.
        encoder_frames: (C, D) float16, outputs of the encoder's frozen blocks for all clips; replaces `mel` where
            they are cached (`training.encoder_frames`).
        frames: (A,) int64, number of valid mel frames of each clip; absent like `mel`.
        key_index: (K,) int64, positions in `ids` of the keys of each segment.
        cu_keys: (S + 1,) int32, cumulative numbers of keys of the segments.
        reference: (P, 2) float32, log-probabilities of both responses under the reference model.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    audio_index: Tensor
    loss_curves: Tensor
    rows: list[int]
    skipped: list[tuple[str, str]]
    audio_seconds: float
    mel: NotRequired[Tensor]
    encoder_frames: NotRequired[Tensor]
    frames: NotRequired[Tensor]
    key_index: NotRequired[Tensor]
    cu_keys: NotRequired[Tensor]
    reference: NotRequired[Tensor]


def to_device(pack: Pack, device: torch.device | str) -> Pack:
    """Return a copy of the pack whose tensors are on a device."""
    return cast(Pack, {key: value.to(device) if torch.is_tensor(value) else value for key, value in pack.items()})
