"""Memory of the trainer and of its data loader workers stays flat in a run of thousands of small steps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from auris import config
from support.recipes import SMALLEST_MODEL
from support.runs import ROOT

STEPS = 5000
WARM_UP = 0.6  # the first 60 % of the steps do not count, because the caches of wordings grow most there


def memory(trainer: psutil.Process) -> tuple[float, float] | None:
    """Return the MB allocated by the trainer, and the mean MB allocated by its forked workers.

    Only anonymous pages are counted, because the unique set size (USS) also grows when another process with the same
    libraries ends, or when the trainer writes to pages that it shares with a worker.
    """
    try:
        workers = [anonymous_mb(process) for process in trainer.children() if process.cmdline() == trainer.cmdline()]
        return (anonymous_mb(trainer), sum(workers) / len(workers)) if workers else None
    except (psutil.Error, OSError):
        return None


def anonymous_mb(process: psutil.Process) -> float:
    """Return the anonymous memory of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) / 1024


def growth(steps: np.ndarray, values: np.ndarray) -> float:
    """Fit a line to memory (MB) over steps, and return how many MB it rises during the whole run."""
    return float(np.polyfit(steps, values, 1)[0] * STEPS)


@pytest.mark.slow
def test_memory_stays_flat_over_thousands_of_steps(corpus: Path, tmp_path: Path):
    overrides = [
        "scale=tiny",
        "experiment=qwen2_audio_pretrain",
        f"runs_dir={tmp_path}/runs",
        f"data.root={corpus}",
        f"data.cache_dir={tmp_path}/cache",
        *SMALLEST_MODEL,
        f"max_steps={STEPS}",
        "data.rows_per_step=2",
        "data.num_workers=2",
        "trainer.accelerator=cpu",
        "trainer.val_check_interval=0.25",
        "trainer.enable_progress_bar=false",
        "max_new_tokens=4",
        "checkpoint_every=500",
    ]
    run_dir = Path(config.resolve(config.compose(overrides))["run_dir"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "auris", "train", *overrides]
    samples = []
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(1.0)
            progress = run_dir / "progress.json"
            megabytes = memory(psutil.Process(process.pid)) if progress.is_file() else None
            if megabytes is not None:
                samples.append((json.loads(progress.read_text())["step"], *megabytes))
    assert process.returncode == 0, (tmp_path / "log.txt").read_text()[-3000:]
    finished = json.loads((run_dir / "finished.json").read_text())
    assert finished["steps"] == STEPS
    steps, trainer, workers = np.array([sample for sample in samples if WARM_UP * STEPS < sample[0] < STEPS]).T
    for index in np.linspace(0, len(steps) - 1, 8).round().astype(int):
        print(f"step {steps[index]:.0f}: trainer {trainer[index]:.1f} MB, workers {workers[index]:.1f} MB")
    print(
        f"{STEPS} steps in {finished['seconds']} s: trainer {trainer.mean():.0f} MB, growing by "
        f"{growth(steps, trainer):+.1f} MB; workers {workers.mean():.0f} MB, {growth(steps, workers):+.1f} MB"
    )
    assert len(steps) > 50
    assert growth(steps, trainer) < 0.03 * trainer.mean()
    assert growth(steps, workers) < 0.05 * workers.mean()
