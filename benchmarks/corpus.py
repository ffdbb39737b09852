"""Rows of the embedded corpus that one core makes in a minute, by task: `python -m benchmarks.corpus [ROWS]`.

Counted is the time that processors worked on it, eSpeak's included, so that a busy machine measures the same.
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
from auris.corpus.plan import plan
from auris.corpus.recipes import RECIPES

_GROUP = 8  # rows that a worker makes at a time, as in a build


def measure(task: str, rows: int) -> tuple[float, float]:
    """Processor seconds and seconds of sound of a row of `task`, averaged over at least `rows` rows."""
    jobs = plan({"train": {task: rows}}, ["de-en", "en-zh", "ja-en"], seed=0)
    groups = [jobs[first : first + _GROUP] for first in range(0, len(jobs), _GROUP)]
    with tempfile.TemporaryDirectory() as folder:
        make_rows(groups[0], Path(folder), "warm-up")
        before = _worked()
        made = [one for group in groups for one in make_rows(group, Path(folder), "benchmark")]
        return (_worked() - before) / len(made), float(np.mean([one.seconds for one in made]))


def _worked() -> float:
    """Processor seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    table = Table("task", "rows a minute", "seconds of sound", title=f"one core, {speech.version()}")
    measured = {task: measure(task, rows) for task in RECIPES}
    for task, (cost, seconds) in measured.items():
        table.add_row(task, f"{60 / cost:,.0f}", f"{seconds:.1f}")
    table.add_section()
    cost, seconds = np.mean(list(measured.values()), axis=0)
    table.add_row("all, evenly mixed", f"{60 / cost:,.0f}", f"{seconds:.1f}")
    rich.print(table)


if __name__ == "__main__":
    main()
