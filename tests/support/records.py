"""Runs that are recorded step by step, in this process or in several that train many recipes one after another."""

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

COLLECTIVES = ("reduce_scatter_tensor",)  # what FSDP sums gradients with; DDP's own is counted by its hook


@dataclass
class Record:
    """What a process saw of a run.

    Args:
        losses, norms: of each step.
        sent: for each step, gradient collectives in each of its backwards.
        audio: for each step, audio tokens in each of its packs.
        weights: at the end, whole.
        metrics: all that was logged last.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    sent: list[list[int]] = field(default_factory=list)
    audio: list[list[int]] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


class Recorder(L.Callback):
    def __init__(self) -> None:
        self.seen = Record()
        self.collectives = 0

    def on_fit_start(self, trainer: L.Trainer, *_: Any) -> None:
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(None, self.counted(allreduce_hook))

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, packs: list[dict], *_: Any) -> None:
        self.seen.audio.append([len(pack["audio_index"]) for pack in packs])
        self.seen.sent.append([])
        self.collectives = 0

    def on_after_backward(self, *_: Any) -> None:
        self.seen.sent[-1].append(self.collectives)
        self.collectives = 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.seen.norms.append(float(trainer.callback_metrics["train/grad_norm"]))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.seen.weights = {name: dtensor.full_tensor(x.detach()).clone() for name, x in module.state_dict().items()}

    def on_fit_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def counted(self, function: Callable) -> Callable:
        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.collectives += 1
            return function(*args, **kwargs)

        return counted


def record(run_config: dict) -> Record:
    """Train a recipe with nothing beside it: no checkpoints, no log."""
    module, data = train.build(run_config)
    recorder = Recorder()
    options = train.trainer_options(run_config["trainer"]) | {"_partial_": True}
    trainer = config.build(options)(logger=False, callbacks=[recorder], enable_checkpointing=False)
    with pytest.MonkeyPatch.context() as patch:
        for name in COLLECTIVES:
            patch.setattr(dist, name, recorder.counted(getattr(dist, name)))
        trainer.fit(module, data)
    return recorder.seen


def record_in_processes(recipes: Mapping[str, dict], folder: Path, world: int) -> dict[str, list[Record]]:
    """Train recipes one after another in the same `world` processes; what each of these saw."""

    def work() -> None:
        for name, run_config in recipes.items():
            torch.save(vars(record(run_config)), folder / f"{name}-{os.environ['LOCAL_RANK']}.pt")

    assert in_processes(work, world, folder) == [0] * world, read_logs(folder)
    return {name: [_read(folder / f"{name}-{rank}.pt") for rank in range(world)] for name in recipes}


def _read(file: Path) -> Record:
    return Record(**torch.load(file, weights_only=True))
