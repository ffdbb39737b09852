"""Base class of the training objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from auris.model.generation import GenerationSettings
from auris.model.pack import Pack
from auris.text.tasks import LOSS_CURVES

if TYPE_CHECKING:
    from auris.model.audio_lm import AudioLM


class Objective(nn.Module, ABC):
    """Base class of objectives: the loss of a pack, and the responses to a pack of prompts.

    Attributes:
        views: Values of `data.view` with which the objective can be used. A view states how rows become samples.
    """

    views: tuple[str, ...]

    @abstractmethod
    def count(self, pack: Pack) -> Tensor:
        """Return the number by which the summed loss is divided."""

    @abstractmethod
    def forward(self, net: AudioLM, pack: Pack) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, and sums to be logged by name."""

    def answer(self, net: AudioLM, pack: Pack, settings: GenerationSettings, **options: Any) -> list[list[int]]:
        """Return the token ids of the response to each row of a pack of prompts.

        Args:
            net: The model.
            pack: The prompts.
            settings: Settings that determine how tokens are chosen.
            **options: Options of `generation.generate`.
        """
        return net.generate(pack, settings, **options)


def task_sums(losses: Tensor, curves: Tensor) -> Tensor:
    """Return (2, K): the summed loss and the number of losses, for each of `tasks.LOSS_CURVES`.

    Curves without a loss are included, so that the tensors of all ranks have the same shape and can be added.

    Args:
        losses: (N,) losses of tokens or pairs.
        curves: (N,) index of each loss's curve in `LOSS_CURVES`.
    """
    losses = losses.detach()
    losses_and_counts = torch.stack([losses, torch.ones_like(losses)])
    return losses.new_zeros(2, len(LOSS_CURVES)).index_add(1, curves, losses_and_counts)
