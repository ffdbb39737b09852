"""Runs that are recorded step by step, in this process or in several that train many recipes one after another.

`python records.py RECIPE ...` records each of them into a file beside it, one for each process.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback
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

from auris import recipe, train
from auris.model import shards

ROOT = Path(__file__).resolve().parents[1]
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
        self.seen.weights = {name: shards.whole(x.detach()).clone() for name, x in module.state_dict().items()}

    def on_fit_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def counted(self, function: Callable) -> Callable:
        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.collectives += 1
            return function(*args, **kwargs)

        return counted


def record(made: dict) -> Record:
    """Train a recipe with nothing beside it: no checkpoints, no log."""
    module, data = train.build(made)
    recorder = Recorder()
    options = train.trainer_options(made["trainer"]) | {"_partial_": True}
    trainer = recipe.build(options)(logger=False, callbacks=[recorder], enable_checkpointing=False)
    with pytest.MonkeyPatch.context() as patch:
        for name in COLLECTIVES:
            patch.setattr(dist, name, recorder.counted(getattr(dist, name)))
        trainer.fit(module, data)
    return recorder.seen


def record_in_processes(recipes: Mapping[str, dict], folder: Path, world: int) -> dict[str, list[Record]]:
    """Train recipes one after another in the same `world` processes; what each of these saw."""
    folder.mkdir(parents=True)
    files = [folder / f"{name}.yaml" for name in recipes]
    for file, made in zip(files, recipes.values(), strict=True):
        recipe.save(made, file)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "NODE_RANK": "0"}
    here |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    command = [sys.executable, __file__, *map(str, files)]
    logs = [folder / f"{rank}.log" for rank in range(world)]
    processes = []
    for rank, log in enumerate(logs):
        environment = {**os.environ, **here, "LOCAL_RANK": str(rank)}
        with log.open("w") as out:
            processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT))
    codes = [process.wait(timeout=600) for process in processes]
    assert not any(codes), "\n".join(log.read_text()[-3000:] for log in logs)
    return {name: [_read(folder / f"{name}-{rank}.pt") for rank in range(world)] for name in recipes}


def _read(file: Path) -> Record:
    return Record(**torch.load(file, weights_only=True))


def main(files: list[str]) -> None:
    for file in map(Path, files):
        try:
            seen = record(recipe.load(file))
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # the others wait for this process; they end when it does
        torch.save(vars(seen), file.with_name(f"{file.stem}-{os.environ['LOCAL_RANK']}.pt"))


if __name__ == "__main__":
    main(sys.argv[1:])
