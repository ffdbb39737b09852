"""Log-probabilities of the labels of a pack, for next-token and preference training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from auris.model.pack import IGNORE, Pack

if TYPE_CHECKING:
    from auris.model.audio_lm import AudioLM

# Largest number of positions whose logits are in memory at the same time. More positions are divided into chunks, whose
# logits are recomputed in backward.
POSITIONS_PER_CHUNK = 4096


def label_logps(net: AudioLM, pack: Pack) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probabilities of the labels of a pack. Logits are computed only at positions with a label.

    Returns:
        The log-probabilities (R,) of the labels in float32, the positions (R,) of the labels in the pack, and whether
        no other token is more likely than the label (R,).
    """
    positions = (pack["labels"] != IGNORE).nonzero().squeeze(-1)  # (R,)
    hidden = net.hidden_states(pack, positions)  # (R, H)
    labels = pack["labels"][positions]
    if len(positions) <= POSITIONS_PER_CHUNK:
        logps, is_likeliest = _score_labels(net, hidden, labels)
    else:
        chunks = zip(hidden.split(POSITIONS_PER_CHUNK), labels.split(POSITIONS_PER_CHUNK), strict=True)
        scored_chunks = [checkpoint(_score_labels, net, h, y, use_reentrant=False) for h, y in chunks]
        logps, is_likeliest = (torch.cat(parts) for parts in zip(*scored_chunks, strict=True))
    return logps, positions, is_likeliest


def segment_logps(net: AudioLM, pack: Pack, n_segments: int) -> tuple[Tensor, Tensor]:
    """Return the summed log-probabilities (S,) of the labels of a pack's first segments, and their numbers of labels.

    A segment is a part of the pack between two values of `cu_seqlens`: a row, or an answer of a pair.

    Args:
        net: The net.
        pack: The pack.
        n_segments: Number of segments (S); the dummy segment of a pack without rows has no labels.
    """
    logps, positions, _ = label_logps(net, pack)
    segments = torch.searchsorted(pack["cu_seqlens"][1:].long(), positions, right=True)
    sums, lengths = (logps.new_zeros(n_segments).index_add(0, segments, x) for x in (logps, torch.ones_like(logps)))
    return sums, lengths


def _score_labels(net: AudioLM, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities (R,) of labels, and whether no other token is more likely than the label (R,)."""
    logits = net.head(hidden).float()
    label_logits = logits.detach().gather(-1, labels[:, None]).squeeze(-1)
    # argmax would be 10 times slower on a CPU than this comparison with the maximum, and would take 2 % of the time of
    # a step of a small model.
    return -F.cross_entropy(logits, labels, reduction="none"), label_logits == logits.detach().amax(-1)
