"""Next-token cross-entropy on the supervised tokens: multi-task pre-training, fine-tuning and text alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from auris.model.generation import Generation, More, no_more
from auris.model.pack import IGNORE
from auris.text.tasks import CURVES
from auris.training.objectives.logps import score


class NextToken(nn.Module):
    """Cross-entropy summed over supervised tokens. Logits are computed only where a label stands."""

    views = ("audio", "text", "chat")

    def count(self, pack: dict) -> Tensor:
        """What the summed loss is divided by: supervised tokens."""
        return (pack["labels"] != IGNORE).sum()

    def forward(self, net: nn.Module, pack: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss, and sums for the log.

        `accuracy`: tokens that are right under teacher forcing. `tasks (2, K)`, where the pack names its rows': the
        summed loss and the supervised tokens of each of `tasks.CURVES`, those without rows too, so that ranks can add.
        """
        logps, where, likeliest = score(net, pack)
        sums = {"accuracy": likeliest.sum()}
        if "tasks" in pack:
            row = torch.searchsorted(pack["cu_seqlens"][1:].long(), where, right=True)
            losses = -logps.detach()
            pairs = torch.stack([losses, torch.ones_like(losses)])  # (2, R)
            sums["tasks"] = losses.new_zeros(2, len(CURVES)).index_add(1, pack["tasks"][row], pairs)
        return -logps.sum(), sums

    def answer(
        self,
        net: nn.Module,
        pack: dict,
        settings: Generation,
        *,
        generator: torch.Generator | None = None,
        any_goes: Callable[[bool], bool] = bool,
        more: More = no_more,
    ) -> list[list[int]]:
        """Token ids that continue each row of packs of prompts (`generation.generate`)."""
        return net.generate(pack, settings, generator=generator, any_goes=any_goes, more=more)
