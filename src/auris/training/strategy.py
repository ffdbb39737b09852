"""The strategy of sharded training: Lightning's ModelParallelStrategy with our own meshes.

`auris.training.sharding` divides the model. Three published layouts (FSDP, FSDP with tensor parallelism, HSDP) are one
class and two numbers, and gradients are communicated with the last pack of a step only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from auris import compat
from auris.config import Config
from auris.errors import UserError
from auris.training.sharding import Meshes

# Values of `trainer.precision` for sharded training. Trained weights are float32 in both.
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}


def strategy_setting(trainer: Config, name: str) -> int:
    """Return a setting of a config's `trainer.strategy`, 1 for a strategy that does not have it."""
    strategy = trainer["strategy"]
    return strategy.get(name, 1) if isinstance(strategy, Mapping) else 1


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run, and how they are divided.

    Attributes:
        world: all of them.
        nodes: machines.
        tensor_parallel: neighbouring processes that compute each layer together, on the same rows.
        replicas: groups of processes with a whole model each.

    Raises:
        UserError: the processes cannot be divided so.
    """

    world: int
    nodes: int = 1
    tensor_parallel: int = 1
    replicas: int = 1

    def __post_init__(self) -> None:
        for name in ("tensor_parallel", "replicas"):
            if self.world % (size := getattr(self, name)):
                raise UserError(
                    f"trainer.strategy.{name}={size} does not divide the {self.world} processes of trainer.devices and "
                    f"trainer.num_nodes: expected a divisor of {self.world}"
                )

    @classmethod
    def planned(cls, trainer: Config) -> Processes:
        """Return what a config's `trainer` plans. `auto` devices are those of this machine."""
        devices, nodes = trainer["devices"], int(trainer["num_nodes"])
        if isinstance(devices, (list, tuple)):
            devices = len(devices)
        elif devices in ("auto", -1, "-1"):
            devices = max(1, torch.cuda.device_count()) if trainer["accelerator"] != "cpu" else 1
        groups = {name: strategy_setting(trainer, name) for name in ("tensor_parallel", "replicas")}
        return cls(world=int(devices) * nodes, nodes=nodes, **groups)

    @property
    def ranks(self) -> int:
        """Processes, or groups of them, that share the rows of a step."""
        return self.world // self.tensor_parallel

    def __str__(self) -> str:
        groups = {"tensor_parallel": self.tensor_parallel, "replicas": self.replicas}
        divided = "".join(f", {name}={size}" for name, size in groups.items() if size > 1)
        return f"{self.world} processes, {self.world // self.nodes} on each of {self.nodes} machines{divided}"


class Computation(Precision):
    """Names the precision. FSDP casts what it gathers, so that nothing else is to be done (no autocast)."""

    def __init__(self, precision: str) -> None:
        if precision not in PRECISIONS:
            raise UserError(
                f"trainer.precision={precision}: expected {' or '.join(PRECISIONS)} where a model is sharded"
            )
        self.precision = precision


class Sharded(ModelParallelStrategy):
    """Divides parameters, gradients and optimizer states over all processes.

    Args:
        tensor_parallel: neighbouring processes that compute each layer of the LLM together, on the same rows.
        replicas: groups of processes with a whole model each, which exchange gradients only: one group on each node
            where the network between nodes is slow.
        precision: "bf16-mixed" gathers weights in bfloat16 and sums gradients in float32.

    Raises:
        UserError: both kinds of groups, or another precision; or, when a trainer is created, processes that cannot be
            divided so.
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
        compat.divide_before_launch(self, self._data_parallel)

    def _data_parallel(self, world: int) -> int:
        return Processes(world=world, tensor_parallel=self.tensor_parallel, replicas=self.replicas).ranks

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
        """Whether this process counts and reports: one of those that compute a layer together, on the same rows."""
        return self.device_mesh["tensor_parallel"].get_local_rank() == 0

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Accumulate gradients without communication; the next backward outside communicates all of them."""
        units = [module for module in self.lightning_module.children() if isinstance(module, FSDPModule)]
        for unit in units:
            unit.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            for unit in units:
                unit.set_requires_gradient_sync(True)
