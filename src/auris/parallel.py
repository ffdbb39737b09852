"""From a net on the meta device to weights in memory: one path for every strategy, applied from outside the model."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from auris.model import llm

_DRAWS = {torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default}


def materialise(net: nn.Module, device: torch.device | str, *, draw: bool = True) -> None:
    """Give a net built on the meta device its memory and its initial weights (drawn from torch's global generator).

    `to_empty` leaves garbage in buffers as well as in parameters, so every module that owns either refills it.

    Args:
        draw: False leaves out the random numbers, minutes for 8.4 billion of them, where all weights are loaded next.
    """
    net.to_empty(device=device)
    with torch.no_grad(), nullcontext() if draw else _WithoutDraws():
        _reset(net)


class _WithoutDraws(TorchDispatchMode):
    """Leaves a tensor as it is where it would be filled with random numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return args[0] if func in _DRAWS else func(*args, **(kwargs or {}))


def _reset(module: nn.Module) -> None:
    if isinstance(module, llm.PreTrainedModel):
        llm.reset_parameters(module)  # its own initialisation; torch's defaults must not overwrite it
        return
    for child in module.children():
        _reset(child)
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()  # after its children: a module may refine what they start from
