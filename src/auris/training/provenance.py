"""Provenance of a run: versions, command, machine, and an estimate of memory and time.

A run prints its provenance at the start and writes it to `environment.json`. It prints the remaining time once its
speed has been measured.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.benchmark import Timer

import auris
from auris import files
from auris.audio import ENCODER_RATE
from auris.data.epoch_stats import DataAmount, compute_epoch_stats
from auris.errors import count
from auris.text.console import format_duration
from auris.training import cost, optim
from auris.training.cost import GIB
from auris.training.lightning_types import AudioModule, audio_module, datamodule
from auris.training.strategy import ShardedStrategy

ENVIRONMENT_FILE = "environment.json"  # file in the run directory
_PACKAGES = ("torch", "lightning", "transformers", "torchaudio", "hydra-core", "numpy")
# Number of recent steps over which speeds are averaged. The remaining time is printed after this number of steps, from
# an average without the first step, which includes warm-up.
WINDOW_STEPS = 20
# Number of steps from which the totals of an epoch are estimated at the start of a run. The error is a few per cent.
SAMPLED_STEPS = 50


def find_versions() -> dict[str, str]:
    """Return package versions, and the commit of the working directory ("unknown" if it is not a git checkout)."""
    commit = ""
    if shutil.which("git"):
        describe = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or "unknown",
        "auris": auris.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def format_command_line(name: str) -> str:
    """Return the command line of this process, or an empty string if there is none because Hydra did not start it.

    Args:
        name: Name of the subcommand, such as "train".
    """
    if not HydraConfig.initialized():
        return ""
    return shlex.join(["auris", name, *HydraConfig.get().overrides.task])


class EnvironmentReport(L.Callback):
    """Callback that prints the environment of a run at its start, and the remaining time after WINDOW_STEPS steps.

    Args:
        run_dir: Directory of the run.

    Attributes:
        precision_reason: Why the run has its precision.
    """

    def __init__(self, run_dir: str | Path):
        self.path = Path(run_dir) / ENVIRONMENT_FILE
        self.environment: Environment | None = None
        self.precision_reason = ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the environment and write it to `environment.json`."""
        if trainer.is_global_zero:
            self.environment, versions = Environment.of(trainer, audio_module(pl_module)), find_versions()
            with files.tolerate_write_errors(self.path):
                content = versions | asdict(self.environment) | {"precision_reason": self.precision_reason}
                files.write_json(self.path, content)
            rank_zero_info("\n".join(self.environment.format_lines(versions)))

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any = None,
        batch: Any = None,
        batch_idx: int = 0,
    ) -> None:
        """Print the remaining time after WINDOW_STEPS steps."""
        speed = float(trainer.callback_metrics.get("tokens/s", 0))
        if not trainer.is_global_zero or not speed:
            return
        assert self.environment is not None  # set by on_train_start on the first rank
        if trainer.global_step == self.environment.step + WINDOW_STEPS:
            module = audio_module(pl_module)
            n_steps_left = module.max_steps - trainer.global_step
            seconds = self.environment.tokens * n_steps_left / module.max_steps / speed
            peak_note = ""
            if module.device.type == "cuda":
                peak_note = f"; peak memory so far {cost.measure_peak_bytes(module.device) / GIB:.2f} GiB"
            duration = format_duration(seconds)
            rank_zero_info(
                f"{_format_tokens(speed)}/s: {count(n_steps_left, 'step')} left, about {duration}{peak_note}"
            )


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The content of `environment.json`: a run's machine and size, and an estimate of its memory and time.

    Attributes:
        command: Command line that started the run.
        data: Digest of each manifest.
        host: Name of the machine.
        device: Name of the GPU, or architecture of the processor.
        device_bytes: Memory of one device, in bytes.
        threads: Number of CPU threads of a process.
        ranks: Number of processes.
        machines: Number of machines.
        strategy: Class of the strategy.
        precision: Precision as Lightning names it.
        step: Number of steps taken before this start of the run.
        steps: Number of steps of the whole run.
        epochs: Number of epochs of the whole run.
        rows: Number of rows of the whole run.
        tokens: Number of tokens of the whole run.
        hours: Hours of audio of the whole run.
        tasks: The numbers of rows, tokens and hours of each task.
        unusable: Number of rows that cannot be used.
        parameters: Number of parameters.
        trained: Number of trained parameters.
        audio_tokens_per_second: Number of audio tokens per second of audio.
        moments: Precision of the optimizer's moments.
        states_bytes: Estimated memory of weights, gradients and moments on a device, in bytes.
        pack_bytes: Estimated memory of a full pack on a device, in bytes.
        operations: Number of useful floating-point operations of the whole run (`cost.count_training_flops`).
        matmul_speed: Measured FLOP/s of a large matrix product on this device.
        least_seconds: Seconds that the operations take if all devices reach `matmul_speed` all the time.
    """

    command: str
    data: Mapping[str, str]
    host: str
    device: str
    device_bytes: int
    threads: int
    ranks: int
    machines: int
    strategy: str
    precision: str
    step: int
    steps: int
    epochs: float
    rows: float
    tokens: float
    hours: float
    tasks: Mapping[str, Mapping[str, float]]
    unusable: int
    parameters: int
    trained: int
    audio_tokens_per_second: float
    moments: str
    states_bytes: float
    pack_bytes: float
    operations: int
    matmul_speed: float
    least_seconds: float

    @classmethod
    def of(cls, trainer: L.Trainer, module: AudioModule) -> Environment:
        """Describe a run that is about to train."""
        data, strategy = datamodule(trainer), trainer.strategy
        device = strategy.root_device
        assert data.plan is not None  # Lightning has set up the data
        epoch = compute_epoch_stats(data.rows, data.plan, data.samples, ranks=data.world, max_steps=SAMPLED_STEPS)
        epochs = module.max_steps / epoch.steps
        run_total = epoch.total.scale(epochs)
        stage = cost.Stage.of(module.objective, module.trainable, has_cached_frames=module.has_cached_frames)
        is_sharded = isinstance(strategy, ShardedStrategy)
        n_shards = trainer.world_size // strategy.replicas if isinstance(strategy, ShardedStrategy) else 1
        bytes_per_number = 2 if "bf16" in str(trainer.precision) else 4
        memory = cost.estimate_memory(
            module.net,
            stage,
            cost.Workload.of_budget(data.token_budget, pool=module.net.geometry.pool),
            activation_bytes=bytes_per_number,
            # Frozen weights that are sharded are stored in the precision of the computation; otherwise they are stored
            # in float32 and cast at each use.
            frozen_bytes=bytes_per_number if is_sharded else 4,
            moment_bytes=optim.moment_bytes(module.optim),
            has_buckets=isinstance(strategy, DDPStrategy),
        )
        speed = measure_matmul_speed(device)
        operations = cost.count_training_flops(
            module.net, stage, cost.Workload.of_rows(run_total.tokens, run_total.seconds)
        )
        return cls(
            command=format_command_line("train"),
            data=data.digests,
            host=socket.gethostname(),
            device=device_name(device),
            device_bytes=_device_bytes(device),
            threads=torch.get_num_threads(),
            ranks=trainer.world_size,
            machines=trainer.num_nodes,
            strategy=type(strategy).__name__,
            precision=str(trainer.precision),
            step=trainer.global_step,
            steps=module.max_steps,
            epochs=epochs,
            **_amount_to_json(run_total),
            tasks={task: _amount_to_json(amount.scale(epochs)) for task, amount in epoch.tasks.items()},
            unusable=epoch.unusable,
            parameters=cost.count_parameters(module.net),
            trained=cost.count_trained_parameters(module.net, stage),
            audio_tokens_per_second=ENCODER_RATE / module.net.geometry.pool,
            moments=module.optim.get("states", "fp32"),  # the config key `optim.states` is about the moments only
            states_bytes=memory.states / n_shards,
            # Without sharding, no layer is gathered.
            pack_bytes=memory.bytes_without_states(recompute=False) - (0 if is_sharded else memory.gathered),
            operations=operations,
            matmul_speed=speed,
            least_seconds=operations / speed / trainer.world_size,
        )

    def format_lines(self, versions: Mapping[str, str]) -> list[str]:
        """Describe the environment in lines of text.

        Args:
            versions: The result of `find_versions`.
        """
        tasks_by_size = sorted(self.tasks.items(), key=lambda item: -item[1]["tokens"])
        shares = [
            f"{task} {totals['hours']:,.1f} h, {100 * totals['tokens'] / max(1, self.tokens):.1f} %"
            for task, totals in tasks_by_size
        ]
        return [
            f"auris {versions['auris']} at {versions['commit']}; python {versions['python']}, "
            + ", ".join(f"{name} {versions[name]}" for name in _PACKAGES),
            f"ranks: {self.ranks}; machines: {self.machines} ({self.host}: {self.device}, "
            f"{self.device_bytes / GIB:.1f} GiB, {self.threads} threads); {self.strategy}, precision {self.precision}",
            f"{self.parameters:,} parameters, {self.trained:,} of them trained",
            f"steps {self.step:,} to {self.steps:,}: {self.epochs:.2f} epochs, {self.rows:,.0f} rows, "
            f"{self.hours:,.1f} h of audio, {_format_tokens(self.tokens)}; rows that cannot be used: {self.unusable:,}",
            f"hours of audio and share of tokens by task: {'; '.join(shares)}",
            f"estimated memory per device: {self.states_bytes / GIB:.2f} GiB for weights, gradients and moments "
            f"({self.moments}), {self.pack_bytes / GIB:.2f} GiB for a full pack",
            f"time: at least {format_duration(self.least_seconds)} for the matrix products alone at this device's "
            f"measured speed ({self.matmul_speed / 1e12:.2f} TFLOP/s); a better estimate follows after {WINDOW_STEPS} "
            "steps",
        ]


def _amount_to_json(amount: DataAmount) -> dict[str, float]:
    return {"rows": amount.rows, "tokens": amount.tokens, "hours": amount.seconds / 3600}


def measure_matmul_speed(device: torch.device) -> float:
    """Measure the FLOP/s of a large matrix product on a device, in bf16 on a GPU and in fp32 elsewhere."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    # No random matrix, because drawing it would change the random numbers that the run draws.
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    timer = Timer("a @ a", globals={"a": matrix}, num_threads=torch.get_num_threads())
    return 2 * size**3 / timer.blocked_autorange(min_run_time=0.05).median


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or the architecture of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _device_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _format_tokens(n_tokens: float) -> str:
    """Format a number of tokens, for instance as "12.3 M tokens"."""
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n_tokens >= factor:
            return f"{n_tokens / factor:.1f} {prefix} tokens"
    return f"{n_tokens:.0f} tokens"
