"""Strategy of sharded training: Lightning's ModelParallelStrategy with additional meshes.

`auris.training.sharding` shards the model. A single class covers FSDP, FSDP with tensor parallelism, and HSDP (sharding
within groups of processes, where each group holds a replica of the model). Gradients are communicated only with the
last pack of a step.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
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
from auris.training.lightning_types import audio_module
from auris.training.sharding import Meshes

# Types of the computation by `trainer.precision`. Trained weights are in float32 in either case.
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}


def strategy_setting(trainer: Config, name: str) -> int:
    """Return a setting of `trainer.strategy`, or 1 if the strategy does not have it.

    Args:
        trainer: The section `trainer` of a config.
        name: Name of the setting, such as `tensor_parallel`.
    """
    strategy = trainer["strategy"]
    return strategy.get(name, 1) if isinstance(strategy, Mapping) else 1


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Number of processes of a run, and their division into groups.

    Attributes:
        world: Number of processes.
        nodes: Number of machines.
        tensor_parallel: Number of consecutive processes that compute each layer of the LLM together, on the same rows.
        replicas: Number of groups of processes; each group holds a whole model.

    Raises:
        UserError: The number of processes is not a multiple of `tensor_parallel` and of `replicas`.
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
    def from_config(cls, trainer: Config) -> Processes:
        """Return the processes of a run, given the section `trainer` of its config.

        `devices: auto` counts the GPUs of this machine.
        """
        devices, nodes = trainer["devices"], int(trainer["num_nodes"])
        if isinstance(devices, (list, tuple)):
            devices = len(devices)
        elif devices in ("auto", -1, "-1"):
            devices = max(1, torch.cuda.device_count()) if trainer["accelerator"] != "cpu" else 1
        groups = {name: strategy_setting(trainer, name) for name in ("tensor_parallel", "replicas")}
        return cls(world=int(devices) * nodes, nodes=nodes, **groups)

    @property
    def ranks(self) -> int:
        """Number of processes, or of tensor-parallel groups, over which the rows of a step are distributed."""
        return self.world // self.tensor_parallel

    def __str__(self) -> str:
        settings = {"tensor_parallel": self.tensor_parallel, "replicas": self.replicas}
        groups = "".join(f", {name}={size}" for name, size in settings.items() if size > 1)
        return f"processes={self.world}, per_machine={self.world // self.nodes}, machines={self.nodes}{groups}"


class ShardedPrecision(Precision):
    """Precision plugin without autocast, because FSDP casts the parameters that it gathers.

    Args:
        precision: A key of `PRECISIONS`.

    Raises:
        UserError: `precision` is not a key of `PRECISIONS`.
    """

    def __init__(self, precision: str) -> None:
        if precision not in PRECISIONS:
            raise UserError(f"trainer.precision={precision}: expected {' or '.join(PRECISIONS)} for a sharded model")
        self.precision = precision


class ShardedStrategy(ModelParallelStrategy):
    """Strategy that shards parameters, gradients and optimizer states over all processes.

    Args:
        tensor_parallel: Number of consecutive processes that compute each layer of the LLM together, on the same rows.
        replicas: Number of groups of processes; each group holds a whole model, and groups exchange gradients only.
            With one group per machine, no weights are gathered over the network.
        precision: "32-true", or "bf16-mixed", which gathers weights in bfloat16 and sums gradients in float32.

    Raises:
        UserError: `tensor_parallel` and `replicas` are both greater than 1, one of them is below 1, or the precision is
            not a key of `PRECISIONS`. When a trainer is created with the strategy: the number of processes is not a
            multiple of `tensor_parallel` and of `replicas`.
    """

    def __init__(self, *, tensor_parallel: int = 1, replicas: int = 1, precision: str = "32-true") -> None:
        super().__init__(tensor_parallel_size=tensor_parallel)
        if min(tensor_parallel, replicas) < 1 or (tensor_parallel > 1 and replicas > 1):
            raise UserError(
                f"trainer.strategy.tensor_parallel={tensor_parallel} and trainer.strategy.replicas={replicas}: "
                "expected one of them to be 1, and the other 1 or more"
            )
        self.tensor_parallel, self.replicas = tensor_parallel, replicas
        self.precision_plugin = ShardedPrecision(precision)
        compat.set_data_parallel_size_before_launch(self, self._data_parallel)

    def _data_parallel(self, world: int) -> int:
        """Return over how many ranks rows are distributed, given the number of processes."""
        return Processes(world=world, tensor_parallel=self.tensor_parallel, replicas=self.replicas).ranks

    def setup_environment(self) -> None:
        """Create the meshes, and give them to the LightningModule, which shards its net over them."""
        super().setup_environment()
        assert self.lightning_module is not None  # Lightning has connected it
        audio_module(self.lightning_module).meshes = self._create_meshes()

    def _create_meshes(self) -> Meshes:
        world, device, dtype = self.world_size, self.root_device.type, PRECISIONS[self.precision_plugin.precision]
        if self.tensor_parallel > 1:
            all_processes = init_device_mesh(device, (world,), mesh_dim_names=("processes",))
            layers, tensor = self.device_mesh["data_parallel"], self.device_mesh["tensor_parallel"]
            return Meshes(all_processes=all_processes, llm_layers=layers, tensor_parallel=tensor, dtype=dtype)
        all_processes = self.device_mesh["data_parallel"]
        if self.replicas > 1:
            shape = (self.replicas, world // self.replicas)
            all_processes = init_device_mesh(device, shape, mesh_dim_names=("replicas", "shards"))
        return Meshes(all_processes=all_processes, llm_layers=all_processes, dtype=dtype)

    @property
    def is_reporter(self) -> bool:
        """Whether this process counts rows and reports metrics, as one process of each tensor-parallel group does."""
        return self.device_mesh["tensor_parallel"].get_local_rank() == 0

    @contextmanager
    def block_backward_sync(self) -> Generator[None]:
        """Accumulate gradients in the block without communication.

        The next backward after the block communicates all accumulated gradients.
        """
        assert self.lightning_module is not None  # Lightning has connected it
        units = [module for module in self.lightning_module.children() if isinstance(module, FSDPModule)]
        for unit in units:
            unit.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            for unit in units:
                unit.set_requires_gradient_sync(True)
