"""Whole runs in tests: with callbacks of one's own, killed at a step, in two processes; and what they left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import torch

from auris import recipe, train
from auris.persistence import Preemption

ROOT = Path(__file__).resolve().parents[1]

_SCRIPT = """\
import sys
from pathlib import Path
from auris import recipe, train
if __name__ == "__main__":
    train.train(recipe.load(Path(sys.argv[1])))
"""


class Killed(Exception):
    pass


class KillAt(L.Callback):
    """Ends a run without a word at the end of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            raise Killed


def fit(made: dict, *extra: L.Callback) -> L.Trainer:
    """`train.train` with callbacks added."""
    with Preemption() as preemption:
        module, data = train.build(made)
        trainer = train.build_trainer(made, Path(made["run_dir"]), preemption)
        trainer.callbacks.extend(extra)
        trainer.fit(module, data)
    return trainer


def weights(made: dict) -> dict[str, torch.Tensor]:
    return recipe.load_state(made["run_dir"])[1]


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=tolerance, rtol=0.0, msg=name)


def train_in_a_process(made: dict, folder: Path) -> None:
    """Train a recipe in a process of its own, which may start others (`trainer.devices=2`)."""
    recipe.save(made, folder / "recipe.yaml")
    script = folder / "train.py"
    script.write_text(_SCRIPT)
    command = [sys.executable, str(script), str(folder / "recipe.yaml")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def environment() -> dict[str, str]:
    """Of a process that imports what a test does."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
