"""Train whole runs in tests: with extra callbacks, killed at a step, or in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from auris.files import write_yaml
from auris.model.weights import checkpoint_dir
from auris.training import run as train
from auris.training.preemption import Preemption

ROOT = Path(__file__).resolve().parents[2]


_SCRIPT = """\
import sys
from pathlib import Path
from auris.files import read_yaml
from auris.training import run as train
if __name__ == "__main__":
    train.train(read_yaml(Path(sys.argv[1])))
"""


class Killed(Exception):  # noqa: N818  an event, not an error
    """Stands for the death of a run's process."""


class KillAt(L.Callback):
    """Kill a run at the end of a step.

    Args:
        step: The step.
        rank: Rank whose process gets SIGKILL. With None every rank raises `Killed` instead.
    """

    def __init__(self, step: int, *, rank: int | None = None):
        self.step, self.rank = step, rank

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.step and self.rank is None:
            raise Killed
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(config: dict, *extra: L.Callback) -> L.Trainer:
    """Train as `train.train` does, with additional callbacks."""
    with Preemption() as preemption:
        module, data = train.build(config)
        trainer = train.build_trainer(config, Path(config["run_dir"]), preemption, module.net)
        trainer.callbacks.extend(extra)
        trainer.fit(module, data)
    return trainer


def load_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Return tensors by name (`net.encoder...`, `objective...`).

    Args:
        path: A checkpoint, or a run, of which the last checkpoint is read.
    """
    return checkpoint_dir.find(path).tensors().read_all()


def weights(config: dict) -> dict[str, torch.Tensor]:
    return load_state(config["run_dir"])


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=tolerance, rtol=0.0, msg=name)


def train_in_a_process(config: dict, folder: Path) -> None:
    """Train a config in a separate process, from which Lightning starts the other ranks of `trainer.devices=2`.

    The first process is forked, because its imports would take seconds. The others run a script, as they would for a
    user.
    """
    write_yaml(folder / "recipe.yaml", config)
    script = folder / "train.py"
    script.write_text(_SCRIPT)

    def run() -> None:
        os.environ.update(environment())
        sys.argv = [str(script), str(folder / "recipe.yaml")]  # Lightning starts the other ranks with it
        sys.modules["__main__"].__spec__ = None  # with a spec, Lightning would run `python -m` instead
        train.train(config)

    assert in_processes(run, 1, folder) == [0], read_logs(folder)


def in_processes(function: Callable[[], object], world: int, folder: Path) -> list[int | None]:
    """Call a function in `world` processes that Lightning sees as the ranks of one job; return their exit codes."""
    processes = start(function, world, folder)
    for process in processes:
        process.join(timeout=400)
    return [process.exitcode for process in processes]


def start(function: Callable[[], object], world: int, folder: Path) -> list[BaseProcess]:
    """Start the ranks of a job and return their processes. Each rank writes its output to `folder/RANK.log`.

    Processes are forked, because the imports of a new one take seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"NODE_RANK": "0", "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in range(world):
        arguments = (function, rank, job if world > 1 else {}, folder / f"{rank}.log")
        processes.append(multiprocessing.get_context("fork").Process(target=_run_rank, args=arguments))
        processes[-1].start()
    return processes


def _run_rank(function: Callable[[], object], rank: int, job: dict[str, str], log: Path) -> None:
    if job:
        os.environ.update(job, LOCAL_RANK=str(rank))
        rank_zero_only.rank = rank  # Lightning determined it at import, before the fork
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    code: object = 1
    try:
        function()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code if isinstance(code, int) else 1)  # skip the exit handlers inherited from the parent process


def read_logs(folder: Path) -> str:
    """Return the end of the log of each process."""
    return "\n".join(log.read_text(encoding="utf-8")[-3000:] for log in sorted(folder.glob("*.log")))


def environment() -> dict[str, str]:
    """Return environment variables with which a new process can import the same modules as a test."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
