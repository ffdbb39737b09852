"""Next-token cross-entropy, the objective of multi-task pre-training, fine-tuning and text training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from auris.model.pack import IGNORE, Pack
from auris.training.objectives.logps import label_logps
from auris.training.objectives.objective import Objective, task_sums

if TYPE_CHECKING:
    from auris.model.audio_lm import AudioLM


class NextToken(Objective):
    """Objective: cross-entropy of the supervised tokens. Logits are computed only at positions with a label."""

    views = ("audio", "text", "chat")

    def count(self, pack: Pack) -> Tensor:
        """Return the number of supervised tokens."""
        return (pack["labels"] != IGNORE).sum()

    def forward(self, net: AudioLM, pack: Pack) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, and sums to be logged.

        `accuracy` is the number of supervised tokens that are predicted correctly under teacher forcing.
        `curve_sums` (2, K) contains the summed loss and the number of supervised tokens for
        each of `tasks.LOSS_CURVES`.
        """
        logps, positions, is_likeliest = label_logps(net, pack)
        sums = {"accuracy": is_likeliest.sum()}
        if "loss_curves" in pack:
            # Index of the row to which each label belongs.
            row_indices = torch.searchsorted(pack["cu_seqlens"][1:].long(), positions, right=True)
            sums["curve_sums"] = task_sums(-logps, pack["loss_curves"][row_indices])
        return -logps.sum(), sums
