"""`max_minutes`: a run takes fewer steps where `max_steps` would take too long.

The schedule of the learning rate depends on the number of steps, so the number is chosen before the run, from the speed
of a few steps that are then discarded. The run directory keeps the choice, so a resumed run has the same schedule.
"""

from __future__ import annotations

import math
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from auris import files
from auris.errors import UserError
from auris.text.console import format_duration

FILE = "time_limit.json"
TRIAL_STEPS = 6
_WARM_UP_STEPS = 2  # steps of the trial that are not counted


class StepTimer(L.Callback):
    """Callback that measures the steps of a trial.

    Attributes:
        seconds: Median duration of a step on the first rank, set on all ranks at the end.
    """

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.seconds = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compute the median, for all ranks."""
        ends = self.ends[_WARM_UP_STEPS - 1 :]
        durations = [end - start for start, end in pairwise(ends)]
        self.seconds = trainer.strategy.broadcast(median(durations))


def read_steps(run_dir: Path) -> int | None:
    """Return the number of steps that was chosen for a run, or None if it was not chosen yet."""
    path = run_dir / FILE
    return files.read_json(path)["max_steps"] if path.is_file() else None


def choose_steps(run_dir: Path, seconds: float, *, max_steps: int, warmup_steps: int, minutes: float) -> int:
    """Return the largest number of steps up to `max_steps` that takes at most `minutes`; log and store it.

    Args:
        run_dir: Directory of the run, for the file with the choice.
        seconds: Measured duration of a step.
        max_steps: Number of steps without a limit.
        warmup_steps: Number of steps in which the learning rate rises.
        minutes: Limit for all training steps, without start, validation and checkpoints.

    Raises:
        UserError: There is no time for more steps than the warm-up has.
    """
    steps = min(max_steps, int(60 * minutes / seconds))
    total = format_duration(max_steps * seconds)
    if steps <= warmup_steps:
        # Rounded up to a tenth, with a margin for rounding errors.
        enough = math.ceil((warmup_steps + 1) * seconds / 6 + 0.001) / 10
        raise UserError(
            f"max_minutes={minutes:g} is enough for {steps} steps of {seconds:.3g} s, expected more than "
            f"optim.warmup_steps={warmup_steps}: set max_minutes={enough} or more"
        )
    if steps < max_steps:
        rank_zero_info(
            f"{max_steps:,} steps of {seconds:.3g} s would take {total}: max_minutes={minutes:g} allows {steps:,}"
        )
    choice = {"max_steps": steps, "seconds_per_step": seconds, "max_minutes": minutes}
    rank_zero_only(files.write_json)(run_dir / FILE, choice)
    return steps
