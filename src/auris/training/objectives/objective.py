"""What the objectives have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from auris.model.generation import GenerationSettings
from auris.model.pack import Pack
from auris.text.tasks import CURVES


class Objective(nn.Module):
    """Base class: a loss over packs, and answers to prompts.

    Attributes:
        views: names of the views (`data.view`) whose packs it takes.
    """

    views: tuple[str, ...]

    def count(self, pack: Pack) -> Tensor:
        """Return the number that the summed loss is divided by."""
        raise NotImplementedError

    def forward(self, net: nn.Module, pack: Pack) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, and sums for the log."""
        raise NotImplementedError

    def answer(self, net: nn.Module, pack: Pack, settings: GenerationSettings, **options: Any) -> list[list[int]]:
        """Return the token ids that continue each row of packs of prompts; `options` are `generation.generate`'s."""
        return net.generate(pack, settings, **options)


def task_sums(losses: Tensor, curves: Tensor) -> Tensor:
    """Sum losses and count them for each of `tasks.CURVES`, those without rows included, so that ranks can add: (2, K).

    Args:
        losses: (N,).
        curves: (N,) place of each loss's row in `CURVES`.
    """
    losses = losses.detach()
    pairs = torch.stack([losses, torch.ones_like(losses)])
    return losses.new_zeros(2, len(CURVES)).index_add(1, curves, pairs)
