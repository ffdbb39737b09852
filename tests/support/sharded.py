"""A small net that the ranks of a job train under one sharding layout after another, resuming each time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh

from auris.model.weights import checkpoint_dir, checkpoint_io


class Net(nn.Module):
    """A net with sizes that most numbers of ranks do not divide, and with some sizes below the number of ranks."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.up, self.down, self.one = nn.Linear(6, 10), nn.Linear(10, 7), nn.Linear(3, 1)
        self.plain = nn.Parameter(torch.rand(5))
        self.register_buffer("places", torch.arange(seed, seed + 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu()).square().sum() + self.plain.square().sum() + self.one(x[:, :3]).sum()


def make(seed: int) -> tuple[Net, torch.optim.Optimizer]:
    net = Net(seed)
    return net, torch.optim.AdamW(net.parameters(), lr=0.1)


def learn(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take one optimizer step on a batch that is the same on every rank, so averaging gradients changes nothing."""
    optimizer.zero_grad()
    net(torch.rand(4, 6, generator=torch.Generator().manual_seed(7))).backward()
    optimizer.step()


def apply_layout(net: Net, layout: str) -> None:
    """Apply a layout: `replicated`, `fsdp`, `hsdp` (2 replicas) or `fsdp_tp` (tensor parallelism over 2 ranks)."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    world = distributed.get_world_size()
    if layout == "replicated":
        return
    if layout == "hsdp":
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
    elif layout == "fsdp_tp":
        mesh_2d = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "tensor"))
        parallelize_module(net, mesh_2d["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        mesh = mesh_2d["data"]
    else:
        mesh = init_device_mesh("cpu", (world,))
    fully_shard(net.up, mesh=mesh)
    fully_shard(net, mesh=mesh, ignored_params={net.plain})


def fail(*_: object) -> None:
    raise MemoryError("no room")


def resume(world: int, folder: Path, layouts: Sequence[str]) -> None:
    """Take one step under each layout, as one rank of a job.

    Under each layout the first save fails on the last rank, and every rank must raise. The second save succeeds.
    """
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    init_method = f"file://{folder}/rendezvous-{world}"
    distributed.init_process_group("gloo", init_method=init_method, rank=rank, world_size=world)
    for layout in layouts:
        net = Net(seed=rank)  # every rank starts from different weights
        apply_layout(net, layout)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        last = checkpoint_dir.find_newest(folder)
        checkpoint_io.restore(last, module=net, optimizer=optimizer)
        learn(net, optimizer)
        save = partial(checkpoint_io.save, folder, module=net, optimizer=optimizer, state={"layout": layout})
        with patch.object(checkpoint_io, "_write_own", fail if rank == world - 1 else checkpoint_io._write_own):
            reason = None
            try:
                save(last.step + 1)
            except checkpoint_io.SaveError as error:
                reason = str(error)
            assert reason == "MemoryError: no room", reason
        assert checkpoint_dir.list_steps(folder)[0] == last.step
        save(last.step + 1)
    distributed.destroy_process_group()
