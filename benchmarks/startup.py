"""CPU seconds of commands that only print something: help, a misspelt override, the list of studies. No peer."""

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
    """Return user and system time of `auris`, the least of several fresh processes."""
    return Report(figures={"cpu_seconds": min(_cpu_seconds(preset) for _ in range(starts))})


def _cpu_seconds(arguments: Sequence[str]) -> float:
    before = _children()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-m", "auris", *arguments], env=environment, capture_output=True, check=False)
    return _children() - before


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
