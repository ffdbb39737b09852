"""Base class of the training objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from auris.model.generation import GenerationSettings
from auris.model.pack import Pack
from auris.text.tasks import CURVES

if TYPE_CHECKING:
    from auris.model.audio_lm import AudioLM


class Objective(nn.Module):
    """Base class of objectives: a loss over packs, and responses to prompts.

    Attributes:
        views: Names of the views (`data.view`) whose packs the objective accepts.
    """

    views: tuple[str, ...]

    def count(self, pack: Pack) -> Tensor:
        """Return the number by which the summed loss is divided."""
        raise NotImplementedError

    def forward(self, net: AudioLM, pack: Pack) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, and sums to be logged by name."""
        raise NotImplementedError

    def answer(self, net: AudioLM, pack: Pack, settings: GenerationSettings, **options: Any) -> list[list[int]]:
        """Return the token ids of the response to each row of a pack of prompts.

        Args:
            net: The model.
            pack: The prompts.
            settings: How tokens are chosen.
            **options: Options of `generation.generate`.
        """
        return net.generate(pack, settings, **options)


def task_sums(losses: Tensor, curves: Tensor) -> Tensor:
    """Return the summed losses and the number of losses for each of `tasks.CURVES`: (2, K).

    Curves without rows are included, so that tensors of different ranks can be added.

    Args:
        losses: (N,).
        curves: (N,) index into `CURVES` of the row of each loss.
    """
    losses = losses.detach()
    pairs = torch.stack([losses, torch.ones_like(losses)])
    return losses.new_zeros(2, len(CURVES)).index_add(1, curves, pairs)
