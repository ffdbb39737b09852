"""From a net on the meta device to weights in memory: one path for every strategy, applied from outside the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from auris.model import llm


def materialise(net: nn.Module, device: torch.device | str) -> None:
    """Give a net built on the meta device its memory and its initial weights (drawn from torch's global generator).

    `to_empty` leaves garbage in buffers as well as in parameters, so every module that owns either refills it.
    """
    net.to_empty(device=device)
    with torch.no_grad():
        _reset(net)


def _reset(module: nn.Module) -> None:
    if isinstance(module, llm.PreTrainedModel):
        llm.reset_parameters(module)  # its own initialisation; torch's defaults must not overwrite it
        return
    for child in module.children():
        _reset(child)
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()  # after its children: a module may refine what they start from


def load_part(net: nn.Module, part: str, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `part`'s tensors out of another run's state dict.

    Raises ValueError naming missing, unexpected or misshapen tensors with both shapes; nothing loads half.
    """
    prefix = f"net.{part}."
    given = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    expected = net.get_submodule(part).state_dict()
    faults = [f"{name} is missing" for name in expected if name not in given]
    faults += [f"{name} is unexpected" for name in given if name not in expected]
    faults += [
        f"{name} has shape {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise ValueError(f"weights.{part}={source} does not fit the model's {part}: {shown}")
    net.get_submodule(part).load_state_dict(given)
