"""The packed batch: all rows concatenated to one sequence of tokens, with the audio of all rows.

Shapes: S rows (a preference pair counts as two), T tokens of all rows, A clips, F stored mel frames of all clips, M
    audio tokens, P pairs, K keys.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict, cast

import torch
from torch import Tensor

IGNORE = -100  # label of a position that is not scored (torch's cross_entropy default)


class Pack(TypedDict):
    """A packed batch. At run time it is a plain dict, which Lightning moves and pins like any other batch.

    Every rank of a sharded model must run the encoder, so a pack without clips contains a silent clip that no position
    refers to. A pack without rows is one unscored token of id 0, and its `rows` is empty.

    A preference pair is a tree of two segments. The first is the prompt and the chosen response. The second is the last
    token of the prompt, repeated because it predicts two tokens, and the rejected response, which attends to the prompt
    in the first segment. Packs of pairs have `key_index` and `cu_keys`.

    Attributes:
        ids: (T,) int64, token ids.
        labels: (T,) int64, the token to predict at each position, or IGNORE.
        positions: (T,) int64, position of each token in its row.
        cu_seqlens: (S + 1,) int32, cumulative lengths of the segments.
        audio_index: (M,) int64, positions of the audio tokens in `ids`.
        tasks: (S,) int64, index of each row's task in `text.tasks.CURVES`.
        rows: numbers of the rows.
        skipped: (row id, reason) of the rows that could not be read.
        audio_seconds: seconds of audio.
        mel: (n_mels, F) float32, log-mel features of all clips; absent if the model has no audio encoder.
        frames: (A,) int64, valid mel frames of each clip.
        key_index: (K,) int64, positions in `ids` of the keys of each segment.
        cu_keys: (S + 1,) int32, cumulative numbers of keys of the segments.
        reference: (P, 2) float32, log-probabilities of both answers under the reference model.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    audio_index: Tensor
    tasks: Tensor
    rows: list[int]
    skipped: list[tuple[str, str]]
    audio_seconds: float
    mel: NotRequired[Tensor]
    frames: NotRequired[Tensor]
    key_index: NotRequired[Tensor]
    cu_keys: NotRequired[Tensor]
    reference: NotRequired[Tensor]


def to_device(pack: Pack, device: torch.device | str) -> Pack:
    """Return the pack with its tensors on a device."""
    return cast(Pack, {key: value.to(device) if torch.is_tensor(value) else value for key, value in pack.items()})
