"""CPU seconds of commands that only print text: help, the error for a misspelt override, the list of studies.

There is no peer.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import Report

PRESETS: dict[str, Sequence[str]] = {
    "overview": (),
    "help": ("train", "--help"),
    "misspelt": ("train", "optim.lrr=1"),
    "results": ("results",),
}


def report(preset: Sequence[str], *, starts: int = 5) -> Report:
    """Report the user and system time of `auris`: the minimum over several new processes."""
    return Report(figures={"cpu_seconds": min(_cpu_seconds(preset) for _ in range(starts))})


def _cpu_seconds(arguments: Sequence[str]) -> float:
    before = _child_cpu_seconds()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-m", "auris", *arguments], env=environment, capture_output=True, check=False)
    return _child_cpu_seconds() - before


def _child_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
