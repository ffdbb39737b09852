"""Tensors of which each process has a part (DTensors of FSDP2 and tensor parallelism), where a plain tensor is the case
of one process that has it all: which part this is, and how to fill it from the whole.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from auris import compat


def local_part(tensor: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
    """What this process has of a tensor, sharing its memory, and where in the whole it lies."""
    if not isinstance(tensor, DTensor):
        return tensor, tuple(slice(0, n) for n in tensor.shape)
    sizes, offsets = compat.local_shape_and_offset(tensor)
    return tensor.to_local(), tuple(slice(start, start + n) for start, n in zip(offsets, sizes, strict=True))


@torch.no_grad()
def copy_local(tensor: Tensor, whole: Tensor) -> None:
    """Give this process its part of `whole`, cast to the tensor's dtype."""
    part, index = local_part(tensor)
    part.copy_(whole[index])


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process. All of them must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def lookup_rows(table: Tensor, numbers: Tensor) -> Tensor:
    """Rows `numbers` (N,) of a table (V, H), on every process: (N, H). All of them must ask for the same ones."""
    if not isinstance(table, DTensor):
        return table[numbers]
    everywhere = [Replicate()] * table.device_mesh.ndim
    numbers = DTensor.from_local(numbers, table.device_mesh, everywhere, run_check=False)
    return F.embedding(numbers, table).full_tensor()  # each process looks up its own rows: the table stays in parts


def count_parts(tensor: Tensor) -> int:
    """Into how many different parts a tensor is divided; processes beyond so many hold copies of them."""
    if not isinstance(tensor, DTensor):
        return 1
    divided = (axis for axis, placement in enumerate(tensor.placements) if not isinstance(placement, Replicate))
    return math.prod(tensor.device_mesh.size(axis) for axis in divided)
