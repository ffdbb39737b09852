"""Log-probabilities of the labels of a pack, for next-token training, preferences and their reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from auris.model.pack import IGNORE, Pack

# Rows of logits in memory at a time. More rows are divided into chunks, which are recomputed in backward.
CHUNK = 4096


def score(net: nn.Module, pack: Pack) -> tuple[Tensor, Tensor, Tensor]:
    """Score a pack's labels. Logits are computed only where there is a label.

    Returns:
        Log-probabilities (R,) of the labels in float32, their positions (R,) in the pack, and whether no token there is
        likelier than the label (R,).
    """
    where = (pack["labels"] != IGNORE).nonzero().squeeze(-1)  # (R,)
    hidden = net.hidden_states(pack, where)  # (R, H)
    labels = pack["labels"][where]
    if len(where) <= CHUNK:
        logps, likeliest = _score(net, hidden, labels)
    else:
        parts = zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True)
        scored = [checkpoint(_score, net, h, y, use_reentrant=False) for h, y in parts]
        logps, likeliest = (torch.cat(parts) for parts in zip(*scored, strict=True))
    return logps, where, likeliest


def _score(net: nn.Module, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = net.head(hidden).float()
    of_labels = logits.detach().gather(-1, labels[:, None]).squeeze(-1)
    # Compare with the maximum: argmax is 10 times slower on a CPU, 2 % of a step of a small model.
    return -F.cross_entropy(logits, labels, reduction="none"), of_labels == logits.detach().amax(-1)
