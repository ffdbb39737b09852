"""`python -m benchmarks`: the gate, the rounds and the report that all benchmarks share; see `USAGE`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import auris
from benchmarks import Comparison, plan, train_step

BENCHMARKS = {"train_step": train_step, "plan": plan}
OUT = Path("runs/benchmarks")

USAGE = """\
Speed against named peers, as ratios: above 1, auris is faster.

  python -m benchmarks                                    all benchmarks, all presets
  python -m benchmarks train_step preset=tiny rounds=5    one of them

{benchmarks}
  rounds    how often both sides run, in turn (5)

Both sides run in one process on one thread, and are timed by CPU time. First they must agree: where they do not,
nothing is timed and the exit code is 1. `plan` has no peer: it says what a start takes, in seconds and megabytes.
The last line of each benchmark is its result as JSON, also kept in {out}/.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks asked for; the exit code is 1 if the two sides of one of them do not agree."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"--help", "-h"} & set(argv):
        lines = [f"  {name}    preset={'|'.join(module.PRESETS)}" for name, module in BENCHMARKS.items()]
        print(USAGE.format(benchmarks="\n".join(lines), out=OUT), end="")
        return 0
    try:
        chosen, rounds = _parse(argv)
    except ValueError as error:  # the user's mistake: one sentence, no traceback
        raise SystemExit(f"benchmarks: {error}") from None
    torch.set_num_threads(1)
    return max(_run(benchmark, preset, rounds) for benchmark, preset in chosen)


def _parse(argv: Sequence[str]) -> tuple[list[tuple[str, str]], int]:
    """The (benchmark, preset) pairs asked for, and the number of rounds."""
    named = [argument for argument in argv if "=" not in argument]
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(named) > 1 or given.keys() - {"preset", "rounds"}:
        raise ValueError(f"cannot read {' '.join(argv)!r}; accepted: [BENCHMARK] preset=NAME rounds=N (see --help)")
    if unknown := set(named) - BENCHMARKS.keys():
        raise ValueError(f"no benchmark {unknown.pop()!r}; there are {', '.join(BENCHMARKS)}")
    rounds = given.get("rounds", "5")
    if not rounds.isdecimal() or int(rounds) < 1:
        raise ValueError(f"rounds={rounds}: expected 1 or more (rounds=5)")
    pairs = [(name, preset) for name in named or BENCHMARKS for preset in BENCHMARKS[name].PRESETS]
    chosen = [pair for pair in pairs if given.get("preset", pair[1]) == pair[1]]
    if not chosen:
        raise ValueError(f"preset={given['preset']}: expected one of {', '.join(preset for _, preset in pairs)}")
    return chosen, int(rounds)


def _run(benchmark: str, preset: str, rounds: int) -> int:
    """Gate, time and report one benchmark; 1 if its two sides do not agree."""
    load = os.getloadavg()[0]  # before our own work
    module = BENCHMARKS[benchmark]
    if not hasattr(module, "compare"):
        print(f"{benchmark}, preset {preset}")
        _keep({"benchmark": benchmark, "preset": preset, **module.report(module.PRESETS[preset]), **_where(load)})
        return 0
    comparison = module.compare(module.PRESETS[preset])
    print(f"{benchmark}, preset {preset}: auris against {comparison.peer}")
    for name, error in comparison.errors.items():
        print(f"  parity of the {name}: {error:.1e}, limit {comparison.limits[name]:.0e}")
    if failed := comparison.disagreements():
        print(
            f"{benchmark}, preset {preset}: the two sides differ in {' and '.join(failed)}, not timed", file=sys.stderr
        )
        return 1
    ours, theirs = race(comparison, rounds)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    for number, (a, b, ratio) in enumerate(zip(ours, theirs, ratios, strict=True), start=1):
        print(f"  round {number}: auris {a:.3f} s, peer {b:.3f} s, ratio {ratio:.2f}")
    result = {
        "benchmark": benchmark,
        "preset": preset,
        "peer": comparison.peer,
        "ratio": {"median": median(ratios), "min": min(ratios), "max": max(ratios)},
        "rounds": rounds,
        "cpu_seconds": {"ours": median(ours), "peer": median(theirs)},
        "parity": dict(comparison.errors),
        **_where(load),
    }
    _keep(result)
    return 0


def _keep(result: Mapping[str, Any]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    line = json.dumps(result)
    (OUT / f"{result['benchmark']}-{result['preset']}.json").write_text(line + "\n", encoding="utf-8")
    print(line)


def _where(load: float) -> dict[str, Any]:
    """Versions, and the machine with its load before our own work."""
    threads = torch.get_num_threads()
    machine = {"cpu": _cpu(), "cores": os.cpu_count(), "threads": threads, "load": round(load, 2)}
    return {"versions": _versions(), "machine": machine}


def race(comparison: Comparison, rounds: int) -> tuple[list[float], list[float]]:
    """CPU seconds of ours and of theirs in each round. Who goes first alternates: neither gains by its place."""
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        turns = [(comparison.ours, ours), (comparison.theirs, theirs)]
        for work, seconds in turns if number % 2 == 0 else reversed(turns):
            seconds.append(_cpu_seconds(work))
    return ours, theirs


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()  # CPU time: other processes slow both sides' caches, but take no time of theirs
    work()
    return time.process_time() - start


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}
    return {"auris": auris.__version__, "python": platform.python_version(), **packages}


def _cpu() -> str:
    """The processor's name, where Linux tells it, otherwise its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
