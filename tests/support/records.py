"""Train configs and record every step, in this process or in several ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from auris import config
from auris.model import dtensor
from auris.training import run as train
from support.runs import in_processes, read_logs

COLLECTIVES = ("reduce_scatter_tensor",)  # FSDP's gradient reduction; DDP's is counted by a hook


@dataclass
class Record:
    """Trace of a run on one rank.

    Attributes:
        losses: Loss of each step.
        norms: Gradient norm of each step.
        collectives: Number of gradient collectives, by step and backward pass.
        audio: Number of audio tokens, by step and pack.
        weights: Full (unsharded) tensors at the end.
        metrics: Last logged value of each metric.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    collectives: list[list[int]] = field(default_factory=list)
    audio: list[list[int]] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


class Recorder(L.Callback):
    def __init__(self) -> None:
        self.record = Record()
        self.collectives = 0

    def on_fit_start(self, trainer: L.Trainer, *_: Any) -> None:
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(None, self.count_calls(allreduce_hook))

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, packs: list[dict], *_: Any) -> None:
        self.record.audio.append([len(pack["audio_index"]) for pack in packs])
        self.record.collectives.append([])
        self.collectives = 0

    def on_after_backward(self, *_: Any) -> None:
        self.record.collectives[-1].append(self.collectives)
        self.collectives = 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.record.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.record.norms.append(float(trainer.callback_metrics["train/grad_norm"]))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.record.weights = {name: dtensor.full_tensor(x.detach()).clone() for name, x in module.state_dict().items()}

    def on_fit_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.record.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def count_calls(self, function: Callable) -> Callable:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.collectives += 1
            return function(*args, **kwargs)

        return wrapper


def record(run_config: dict) -> Record:
    """Train a config without checkpoints and logs, and return its record."""
    module, data = train.build(run_config)
    recorder = Recorder()
    precision = run_config["trainer"]["precision"]
    options = train.trainer_options(run_config["trainer"], "32-true" if precision == "auto" else precision)
    options["_partial_"] = True
    trainer = config.build(options)(logger=False, callbacks=[recorder], enable_checkpointing=False)
    with pytest.MonkeyPatch.context() as patch:
        for name in COLLECTIVES:
            patch.setattr(dist, name, recorder.count_calls(getattr(dist, name)))
        trainer.fit(module, data)
    return recorder.record


def record_in_processes(recipes: Mapping[str, dict], folder: Path, world: int) -> dict[str, list[Record]]:
    """Train recipes one after another in the same `world` processes; return the records of all ranks by recipe."""

    def record_all() -> None:
        for name, run_config in recipes.items():
            torch.save(vars(record(run_config)), folder / f"{name}-{os.environ['LOCAL_RANK']}.pt")

    assert in_processes(record_all, world, folder) == [0] * world, read_logs(folder)
    return {name: [_read(folder / f"{name}-{rank}.pt") for rank in range(world)] for name in recipes}


def _read(file: Path) -> Record:
    return Record(**torch.load(file, weights_only=True))
