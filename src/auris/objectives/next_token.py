"""Next-token cross-entropy on the supervised tokens: multi-task pre-training, fine-tuning and text alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from auris.data.packing import IGNORE
from auris.model.generation import Generation
from auris.objectives.logps import score


class NextToken(nn.Module):
    """Cross-entropy summed over supervised tokens. Logits are computed only where a label stands."""

    views = ("audio", "text", "chat")

    def count(self, pack: dict) -> Tensor:
        """What the summed loss is divided by: supervised tokens."""
        return (pack["labels"] != IGNORE).sum()

    def forward(self, net: nn.Module, pack: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss, and sums for the log: `accuracy`, tokens that are right under teacher forcing."""
        logps, _, likeliest = score(net, pack)
        return -logps.sum(), {"accuracy": likeliest.sum()}

    def answer(
        self,
        net: nn.Module,
        pack: dict,
        settings: Generation,
        *,
        generator: torch.Generator | None = None,
        any_goes: Callable[[bool], bool] = bool,
    ) -> list[list[int]]:
        """Token ids that continue each row of a pack of prompts (`generation.generate`)."""
        return net.generate(pack, settings, generator=generator, any_goes=any_goes)
