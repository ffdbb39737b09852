"""The packed batch: rows one after the other in one row of tokens, with the audio of all of them.

Shapes: S rows of T tokens in all (a pair of answers is two of them), A clips of F stored mel frames in all, M audio
tokens, P pairs, K keys.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict, cast

import torch
from torch import Tensor

IGNORE = -100  # label of a position that is not scored (torch's cross_entropy default)


class Pack(TypedDict):
    """A plain dict at run time, so that Lightning moves and pins it as any other batch.

    Every process of a sharded model must run the encoder, so a pack without clips gets a silent one that no position
    refers to. A pack without rows is one unscored token of id 0, and its `rows` is empty.

    A pair is a tree of two segments: prompt and chosen answer, then the prompt's last token once more (it predicts two
    tokens) and the rejected answer, which attends to the prompt where the first segment has it. Packs of pairs have
    `key_index` and `cu_keys`.

    Attributes:
        ids: (T,) int64, token ids.
        labels: (T,) int64, the token to predict at each position, or IGNORE.
        positions: (T,) int64, of each token in its row.
        cu_seqlens: (S + 1,) int32, where each segment begins, and T.
        audio_index: (M,) int64, where in `ids` the audio tokens stand.
        tasks: (S,) int64, each row's place in `text.tasks.CURVES`.
        rows: numbers of the rows.
        skipped: (row id, reason) of the rows that could not be read.
        audio_seconds: seconds of audio.
        mel: (n_mels, F) float32, log-mel features of all clips; absent where the model has no audio encoder.
        frames: (A,) int64, valid mel frames of each clip.
        key_index: (K,) int64, where in `ids` the keys of each segment stand.
        cu_keys: (S + 1,) int32, how many keys each segment has, cumulated.
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
