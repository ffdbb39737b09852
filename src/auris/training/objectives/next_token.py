"""Next-token cross-entropy on the supervised tokens: multi-task pre-training, fine-tuning and text alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from auris.model.pack import IGNORE, Pack
from auris.training.objectives.logps import score
from auris.training.objectives.objective import Objective, task_sums


class NextToken(Objective):
    """Cross-entropy summed over supervised tokens. Logits are computed only where there is a label."""

    views = ("audio", "text", "chat")

    def count(self, pack: Pack) -> Tensor:
        """Return the number of supervised tokens."""
        return (pack["labels"] != IGNORE).sum()

    def forward(self, net: nn.Module, pack: Pack) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, and sums for the log.

        `accuracy` counts tokens that are right under teacher forcing. `tasks (2, K)` are the summed loss and the
        supervised tokens of each of `tasks.CURVES`.
        """
        logps, where, likeliest = score(net, pack)
        sums = {"accuracy": likeliest.sum()}
        if "tasks" in pack:
            row = torch.searchsorted(pack["cu_seqlens"][1:].long(), where, right=True)
            sums["tasks"] = task_sums(-logps, pack["tasks"][row])
        return -logps.sum(), sums
