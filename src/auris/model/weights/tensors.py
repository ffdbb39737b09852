"""A checksum of all weights of a module."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from auris.model import adapters, dtensor


def weights_digest(module: nn.Module, *, with_adapters: bool = True) -> str:
    """Return a hexadecimal checksum of all parameters and buffers: names, dtypes, shapes and values. Collective.

    Args:
        module: its tensors plain or sharded; a sharded one has the same checksum as a plain one.
        with_adapters: include adapters; without them the checksum is that of the weights that they were attached to.
    """
    total = hashlib.sha256()
    state = module.state_dict()
    if not with_adapters:
        state = {adapters.base_name(name): tensor for name, tensor in state.items()}
    for name in sorted(state.keys() - {None}):
        tensor = dtensor.whole(state[name].detach())
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().reshape(-1).cpu().view(torch.uint8).numpy())
    return total.hexdigest()
