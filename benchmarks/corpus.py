"""Number of rows of the synthetic corpus that one core makes per minute, by task: `python -m benchmarks.corpus [ROWS]`.

CPU time is measured, including that of eSpeak, so the result does not depend on other processes on the machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import rich
from rich.table import Table

from auris.corpus import speech
from auris.corpus.build import make_rows
from auris.corpus.plan import plan_rows
from auris.corpus.recipes import RECIPES

_ROWS_AT_ONCE = 8  # rows that a worker makes at a time, as in `auris corpus`


def measure(task: str, rows: int) -> tuple[float, float]:
    """Return CPU seconds and seconds of audio per row of `task`, averaged over at least `rows` rows."""
    specs = plan_rows({"train": {task: rows}}, seed=0)
    groups = [specs[first : first + _ROWS_AT_ONCE] for first in range(0, len(specs), _ROWS_AT_ONCE)]
    with tempfile.TemporaryDirectory() as folder:
        make_rows(groups[0], Path(folder), "warm-up")
        before = _cpu_seconds()
        corpus_rows = [row for group in groups for row in make_rows(group, Path(folder), "benchmark")]
        return (_cpu_seconds() - before) / len(corpus_rows), float(np.mean([row.seconds for row in corpus_rows]))


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its child processes that have ended."""
    return sum(os.times()[:4])


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    table = Table("task", "rows per minute", "seconds of audio", title=f"one core, {speech.get_version()}")
    costs = {task: measure(task, rows) for task in RECIPES}
    for task, (cost, seconds) in costs.items():
        table.add_row(task, f"{60 / cost:,.0f}", f"{seconds:.1f}")
    table.add_section()
    cost, seconds = np.mean(list(costs.values()), axis=0)
    table.add_row("all tasks in equal shares", f"{60 / cost:,.0f}", f"{seconds:.1f}")
    rich.print(table)


if __name__ == "__main__":
    main()
