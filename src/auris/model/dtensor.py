"""Tensors that are sharded over processes: DTensors of FSDP2 and of tensor parallelism.

The functions find the part of a tensor that this process holds, copy to this part, and gather full tensors. They also
accept plain tensors, for which this part is the full tensor.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from auris import compat


def local_part(tensor: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
    """Return the part of a tensor that this process holds (sharing its memory), and its index in the full tensor."""
    if not isinstance(tensor, DTensor):
        return tensor, tuple(slice(0, n) for n in tensor.shape)
    sizes, offsets = compat.local_shape_and_offset(tensor)
    return tensor.to_local(), tuple(slice(start, start + n) for start, n in zip(offsets, sizes, strict=True))


@torch.no_grad()
def copy_local(tensor: Tensor, full: Tensor) -> None:
    """Copy this process's part of `full` into `tensor`, cast to the dtype of `tensor`."""
    part, index = local_part(tensor)
    part.copy_(full[index])


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor. Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def lookup_rows(table: Tensor, indices: Tensor) -> Tensor:
    """Return rows `indices` (N,) of a table (V, H): (N, H). Collective; all ranks must pass the same indices."""
    if not isinstance(table, DTensor):
        return table[indices]
    replicated = [Replicate()] * table.device_mesh.ndim
    indices = DTensor.from_local(indices, table.device_mesh, replicated, run_check=False)
    rows = F.embedding(indices, table)  # each process looks up its own rows, so the table stays sharded
    assert isinstance(rows, DTensor)
    return rows.full_tensor()


def count_parts(tensor: Tensor) -> int:
    """Return the number of parts into which a tensor is sharded. Several processes may hold copies of the same part."""
    if not isinstance(tensor, DTensor):
        return 1
    sharded = (axis for axis, placement in enumerate(tensor.placements) if not isinstance(placement, Replicate))
    return math.prod(tensor.device_mesh.size(axis) for axis in sharded)
