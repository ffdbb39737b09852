"""The strategy of sharded training: Lightning's ModelParallelStrategy with meshes of our own, nothing else.

What is divided, and how, is `auris.training.sharding`'s affair. Unusual: three published layouts (FSDP, FSDP with
tensor
parallelism, HSDP) are one class and two numbers, and gradients are communicated with the last pack of a step only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from auris.errors import UserError
from auris.training.sharding import Meshes

# What `trainer.precision` may say here. Weights that learn are float32 in both.
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}


def check_world(world: int, **groups: int) -> None:
    """That so many processes can be divided into groups. Raises ValueError if not."""
    for name, size in groups.items():
        if world % size:
            raise UserError(
                f"trainer.strategy.{name}={size} does not divide the {world} processes of trainer.devices and "
                f"trainer.num_nodes: expected a divisor of {world}"
            )


class Computation(Precision):
    """Says what is computed in; FSDP casts what it gathers, so nothing is left to do (no autocast over float32)."""

    def __init__(self, precision: str) -> None:
        if precision not in PRECISIONS:
            raise UserError(
                f"trainer.precision={precision}: expected {' or '.join(PRECISIONS)} where a model is sharded"
            )
        self.precision = precision


class Sharded(ModelParallelStrategy):
    """Parameters, gradients and optimizer states divided over all processes.

    Args:
        tensor_parallel: processes that compute each layer of the LLM together, on the same rows: neighbours.
        replicas: groups of processes with a whole model each, which exchange gradients only; for slow networks between
            fast ones, a replica for each node.
        precision: what is computed in; "bf16-mixed" gathers weights in bfloat16 and sums gradients in float32.

    Raises:
        ValueError: both kinds of groups are asked for, or another precision; or, when a trainer is made, its processes
            cannot be divided so.
    """

    def __init__(self, *, tensor_parallel: int = 1, replicas: int = 1, precision: str = "32-true") -> None:
        super().__init__(tensor_parallel_size=tensor_parallel)
        if min(tensor_parallel, replicas) < 1 or (tensor_parallel > 1 and replicas > 1):
            raise UserError(
                f"trainer.strategy.tensor_parallel={tensor_parallel} and trainer.strategy.replicas={replicas}: "
                "expected one of them to be 1, and the other 1 or more"
            )
        self.tensor_parallel, self.replicas = tensor_parallel, replicas
        self.precision_plugin = Computation(precision)

    def _configure_launcher(self) -> None:
        world = self.num_nodes * self.num_processes  # known from here on; no other process is running yet
        check_world(world, tensor_parallel=self.tensor_parallel, replicas=self.replicas)
        self._data_parallel_size = world // self.tensor_parallel
        super()._configure_launcher()

    def setup_environment(self) -> None:
        super().setup_environment()
        self.lightning_module.meshes = self._meshes()

    def _meshes(self) -> Meshes:
        world, device, dtype = self.world_size, self.root_device.type, PRECISIONS[self.precision_plugin.precision]
        if self.tensor_parallel > 1:
            whole = init_device_mesh(device, (world,), mesh_dim_names=("processes",))
            layers, tensor = self.device_mesh["data_parallel"], self.device_mesh["tensor_parallel"]
            return Meshes(whole=whole, layers=layers, tensor=tensor, dtype=dtype)
        whole = self.device_mesh["data_parallel"]
        if self.replicas > 1:
            shape = (self.replicas, world // self.replicas)
            whole = init_device_mesh(device, shape, mesh_dim_names=("replicas", "shards"))
        return Meshes(whole=whole, layers=whole, dtype=dtype)

    @property
    def speaks(self) -> bool:
        """Whether this process counts and reports: of those that compute a layer together, on the same rows, one."""
        return self.device_mesh["tensor_parallel"].get_local_rank() == 0

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Gradients of backwards in here stay on their processes, whole; the next one outside communicates them all."""
        units = [module for module in self.lightning_module.children() if isinstance(module, FSDPModule)]
        for unit in units:
            unit.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            for unit in units:
                unit.set_requires_gradient_sync(True)
