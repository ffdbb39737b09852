"""Wall time of a training step with one thread and with all cores, on an idle and on a busy machine.

OpenMP's threads wait actively (they spin) by default. `auris` lets them sleep (OMP_WAIT_POLICY=PASSIVE). Each
combination has its own process, because OpenMP reads the variable once. On the busy machine, another process computes
on every core. There is no peer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from statistics import median

import torch
from torch import Tensor

from auris.cli import WAITING_THREADS
from auris.data.collate import collate
from auris.training.objectives.next_token import NextToken
from benchmarks import Report
from benchmarks.models import PRESETS, Preset, models, samples, step, waves

__all__ = ["PRESETS", "report"]

BUSY = "while True: pass"


def report(preset: Preset, *, lengths: str = "2-8", clips: int = 8, steps: int = 5, seed: int = 0) -> Report:
    """Report the median seconds of a step for each number of threads, policy of waiting and load of the machine."""
    waves(lengths, clips, seed)  # invalid settings raise SettingError here, before a process is started
    settings = {"preset": asdict(preset), "lengths": lengths, "clips": clips, "steps": steps, "seed": seed}
    cores = os.cpu_count() or 1
    seconds = {}
    for load in ("idle", "busy"):
        for n_threads in sorted({1, cores}):
            for policy in ("spin", "sleep"):
                with _busy_cores(cores if load == "busy" else 0):
                    name = f"{load}, threads: {n_threads}, {policy}"
                    seconds[name] = _time_in_process(settings, n_threads, policy)
                    print(f"  {name}: {seconds[name]:.3f} s", flush=True)
    return Report(figures={"seconds": seconds})


@contextmanager
def _busy_cores(number: int) -> Generator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _time_in_process(settings: dict[str, object], n_threads: int, policy: str) -> float:
    environment = {name: value for name, value in os.environ.items() if name not in WAITING_THREADS}
    environment |= {"OMP_NUM_THREADS": str(n_threads), **(WAITING_THREADS if policy == "sleep" else {})}
    command = [sys.executable, "-m", "benchmarks.threads", json.dumps(settings)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout)


def measure(*, preset: Preset, lengths: str, clips: int, steps: int, seed: int) -> float:
    """Return the median wall time of a step in this process, in seconds. The first step is not counted."""
    net, _ = models(preset, seed)
    rows = samples(waves(lengths, clips, seed), net.geometry, preset.vocab_size, seed)
    pack, objective = collate(rows, geometry=net.geometry), NextToken()

    def compute_loss() -> Tensor:
        return objective(net, pack)[0] / objective.count(pack)

    take_step, seconds = partial(step, net, compute_loss), []
    for _ in range(steps + 1):
        start = time.perf_counter()
        take_step()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    settings = json.loads(sys.argv[1])
    print(measure(**settings | {"preset": Preset(**settings["preset"])}))
