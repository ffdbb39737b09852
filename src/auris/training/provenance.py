"""What a run runs on and what it will take: said when it starts, and once more when its speed is known."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
from collections.abc import Mapping
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
from auris.audio import ENCODER_RATE
from auris.data.epoch_stats import Share
from auris.training import cost, optim
from auris.training import strategy as strategies
from auris.training.callbacks import forgiving
from auris.training.strategy import Sharded

_PACKAGES = ("torch", "lightning", "transformers", "torchaudio", "hydra-core", "numpy")
# Steps over which speeds are averaged; the first ones also pay for warm-up and are left out of it by then.
WINDOW = 20
STEPS = 50  # of an epoch that a start looks at: what a run will see, to within a few per cent, at once


def provenance() -> dict[str, str]:
    """Package versions, and the commit of the working directory if it is a checkout."""
    commit = ""
    if shutil.which("git"):
        command = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or "unknown",
        "auris": auris.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def command(name: str) -> str:
    """How this process was started, where it was by Hydra; else nothing."""
    if not HydraConfig.initialized():
        return ""
    return shlex.join(["auris", name, *HydraConfig.get().overrides.task])


def planned_world(trainer: Mapping[str, Any]) -> int:
    """Processes of a recipe's `trainer`. `auto` devices are those of this machine.

    Raises ValueError if they cannot be divided as its strategy says.
    """
    devices = trainer["devices"]
    if isinstance(devices, (list, tuple)):
        devices = len(devices)
    elif devices in ("auto", -1, "-1"):
        devices = max(1, torch.cuda.device_count()) if trainer["accelerator"] != "cpu" else 1
    world = int(devices) * int(trainer["num_nodes"])
    strategies.check_world(world, tensor_parallel=tensor_parallel(trainer), replicas=_of_strategy(trainer, "replicas"))
    return world


def planned_ranks(trainer: Mapping[str, Any]) -> int:
    """Those of the planned processes that share the rows of a step. Raises as `planned_world`."""
    return planned_world(trainer) // tensor_parallel(trainer)


def planned(trainer: Mapping[str, Any]) -> str:
    """What a recipe's `trainer` divides a run over. Raises as `planned_world`."""
    world, nodes = planned_world(trainer), int(trainer["num_nodes"])
    groups = {name: _of_strategy(trainer, name) for name in ("tensor_parallel", "replicas")}
    divided = "".join(f", {name}={size}" for name, size in groups.items() if size > 1)
    return f"planned for {world} processes, {world // nodes} on each of {nodes} machines{divided}"


def tensor_parallel(trainer: Mapping[str, Any]) -> int:
    """Processes of a recipe's `trainer` that compute each layer together, on the same rows."""
    return _of_strategy(trainer, "tensor_parallel")


def _of_strategy(trainer: Mapping[str, Any], name: str) -> int:
    strategy = trainer["strategy"]
    return strategy.get(name, 1) if isinstance(strategy, Mapping) else 1


class Announcement(L.Callback):
    """Says what runs where, how long it is planned and what it needs; and after WINDOW steps how long that takes.

    The same is written to `environment.json` in the run directory, for this start of the run.
    """

    def __init__(self, run_dir: str | Path):
        self.path = Path(run_dir) / "environment.json"
        self.facts: dict[str, Any] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.facts = describe(trainer, module)
            with forgiving(self.path):
                self.path.write_text(json.dumps(self.facts, indent=1), encoding="utf-8")
            rank_zero_info("\n".join(lines(self.facts)))

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        speed = float(trainer.callback_metrics.get("tokens/s", 0))
        if trainer.is_global_zero and speed and trainer.global_step == self.facts["step"] + WINDOW:
            left = module.max_steps - trainer.global_step
            seconds = self.facts["tokens"] * left / module.max_steps / speed
            peak = ""
            if module.device.type == "cuda":
                peak = f"; {cost.peak_bytes(module.device) / cost.GIB:.2f} GiB of its memory in use at most"
            rank_zero_info(f"{_tokens(speed)}/s: the other {left:,} steps take {_time(seconds)}{peak}")


def describe(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """The facts of a run that is about to train: plain values, for a file."""
    data, device = trainer.datamodule, trainer.strategy.root_device
    epoch = data.survey(data.world, STEPS)
    planned = epoch.whole.times(module.max_steps / epoch.steps)
    stage = cost.Stage.of(module.objective, module.trainable)
    load = cost.Load.of_budget(data.token_budget, module.net.geometry.pool)
    is_sharded = isinstance(trainer.strategy, Sharded)
    shards = trainer.world_size // trainer.strategy.replicas if is_sharded else 1
    number = 2 if "bf16" in str(trainer.precision) else 4
    # What is frozen is stored as it is computed with where it is sharded; elsewhere it is cast each time.
    kept = {"frozen": number if is_sharded else 4, "buckets": isinstance(trainer.strategy, DDPStrategy)}
    need = cost.memory(module.net, stage, load, number=number, moment=optim.moment_bytes(module.optim), **kept)
    speed = matmul_speed(device)
    operations = cost.training_flops(module.net, stage, cost.Load.of_rows(planned.tokens, planned.seconds))
    return {
        **provenance(),
        "command": command("train"),
        "data": data.digests,
        "host": socket.gethostname(),
        "device": device_name(device),
        "device_bytes": _device_bytes(device),
        "threads": torch.get_num_threads(),
        "ranks": trainer.world_size,
        "machines": trainer.num_nodes,
        "strategy": type(trainer.strategy).__name__,
        "precision": str(trainer.precision),
        "step": trainer.global_step,
        "steps": module.max_steps,
        "epochs": module.max_steps / epoch.steps,
        **_named(planned),
        "tasks": {task: _named(share.times(module.max_steps / epoch.steps)) for task, share in epoch.tasks.items()},
        "unusable": epoch.unusable,
        "parameters": cost.count_parameters(module.net),
        "trained": cost.trained_parameters(module.net, stage),
        "audio_tokens_per_second": ENCODER_RATE / module.net.geometry.pool,
        "moments": module.optim.get("states", "fp32"),
        "states_bytes": need.states / shards,
        "pack_bytes": need.per_gpu(recompute=False) - (0 if is_sharded else need.gathered),
        "operations": operations,
        "matmul_speed": speed,
        "least_seconds": operations / speed / trainer.world_size,
    }


def lines(facts: Mapping[str, Any]) -> list[str]:
    """A start's facts for a person."""
    states, pack, room = (facts[key] / cost.GIB for key in ("states_bytes", "pack_bytes", "device_bytes"))
    return [
        f"auris {facts['auris']} at {facts['commit']}; python {facts['python']}, "
        + ", ".join(f"{name} {facts[name]}" for name in _PACKAGES),
        f"{facts['ranks']} ranks on {facts['machines']} machines ({facts['host']}: {facts['device']}, {room:.1f} GiB, "
        f"{facts['threads']} threads), {facts['strategy']}, precision {facts['precision']}",
        f"{facts['parameters']:,} parameters, {facts['trained']:,} of them learn",
        f"steps {facts['step']:,} to {facts['steps']:,}: {facts['epochs']:.2f} epochs, {facts['rows']:,.0f} rows, "
        f"{facts['hours']:,.1f} h of audio, {_tokens(facts['tokens'])}; {facts['unusable']:,} rows cannot be used",
        "of these: " + "; ".join(_shares(facts["tasks"], facts["tokens"])),
        f"memory of a device, by sizes: {states:.2f} GiB of weights, gradients and moments "
        f"({facts['moments']}), "
        f"{pack:.2f} GiB for a full pack",
        f"time: at least {_time(facts['least_seconds'])}, the matrix products alone at the speed of this device "
        f"({facts['matmul_speed'] / 1e12:.2f} TFLOP/s); measured after {WINDOW} steps",
    ]


def matmul_speed(device: torch.device) -> float:
    """FLOP/s of a large matrix product on a device, in bf16 on a GPU and in fp32 elsewhere."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    square = torch.ones(size, size, device=device, dtype=dtype)  # no random numbers: they are the run's
    timer = Timer("a @ a", globals={"a": square}, num_threads=torch.get_num_threads())
    return 2 * size**3 / timer.blocked_autorange(min_run_time=0.05).median


def device_name(device: torch.device) -> str:
    """Of a GPU its own, elsewhere the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _device_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _named(share: Share) -> dict[str, float]:
    return {"rows": share.rows, "tokens": share.tokens, "hours": share.seconds / 3600}


def _shares(tasks: Mapping[str, Mapping[str, float]], tokens: float) -> list[str]:
    """Hours of each task and its share of the tokens, the largest first."""
    largest = sorted(tasks.items(), key=lambda item: -item[1]["tokens"])
    return [f"{task} {of['hours']:,.1f} h, {100 * of['tokens'] / max(1, tokens):.1f} %" for task, of in largest]


def _tokens(number: float) -> str:
    """12.3 M tokens."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit} tokens"
    return f"{number:.0f} tokens"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:,.1f} h"
