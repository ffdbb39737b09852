"""`python -m benchmarks`: checks parity of the two sides, times them in rounds and reports the result (see `USAGE`)."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import auris
from benchmarks import (
    Comparison,
    Report,
    SettingError,
    bf16,
    compile,
    disagreements,
    dpo_step,
    fit_overhead,
    generate,
    loader,
    mel,
    memory,
    packing,
    plan,
    startup,
    threads,
    train_step,
)
from benchmarks.goals import TARGETS, Target
from benchmarks.models import WEIGHTS, parse_lengths

BENCHMARKS = {
    "train_step": train_step,
    "dpo_step": dpo_step,
    "bf16": bf16,
    "mel": mel,
    "generate": generate,
    "memory": memory,
    "packing": packing,
    "loader": loader,
    "compile": compile,
    "fit_overhead": fit_overhead,
    "plan": plan,
    "startup": startup,
    "threads": threads,
}
OUT = Path("runs/benchmarks")

USAGE = """\
Speed and memory against named peers, as ratios. Above 1, auris is faster; for `memory`, below 1, auris needs less.

  python -m benchmarks                                    all benchmarks, with all settings that have a target
  python -m benchmarks train_step                         one benchmark, with all settings that have a target
  python -m benchmarks train_step preset=tiny rounds=5    one preset, with the settings of its first target
  python -m benchmarks train_step preset=prop lengths=3-9 trained=sft seed=1

{benchmarks}
  rounds    number of rounds; in each round both sides run once (5)

The variable {weights}=ENCODER:LLM names directories whose weights preset base uses; otherwise they are random.
Both sides run in one process, on one thread, and are timed by CPU time. `floor` is the share of the time of auris that
the matrix products of the step alone take. Several combinations of settings run in separate processes. First the
results of both sides are compared: if they differ, nothing is timed and the exit code is 1. `memory` runs each side in
its own process. `packing`, `compile`, `fit_overhead`, `plan`, `startup` and `threads` have no peer. Settings without a
target are run, but not compared with a goal.
The last line of each benchmark is its result as JSON, which is also saved in {out}/.
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A benchmark with its preset and all of its settings."""

    benchmark: str
    preset: str
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        """Return the name of the result file: benchmark, preset, and the settings that differ from their defaults."""
        defaults = _defaults(self.benchmark)
        changed = [f"{name}={value}" for name, value in self.settings.items() if value != defaults[name]]
        return "-".join([self.benchmark, self.preset, *changed])

    def targets(self) -> list[Target]:
        """Return the targets of this case. They are the same for every seed."""
        settings = {name: value for name, value in self.settings.items() if name != "seed"}
        return [
            target
            for target in TARGETS
            if (target.benchmark, target.preset) == (self.benchmark, self.preset)
            and {**_defaults(self.benchmark), **target.settings}.items() >= settings.items()
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the selected benchmarks. Return 1 if the two sides of one of them differ."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"--help", "-h"} & set(argv):
        print(USAGE.format(benchmarks="\n".join(map(_describe, BENCHMARKS)), out=OUT, weights=WEIGHTS), end="")
        return 0
    try:
        cases, rounds = _parse(argv)
    except SettingError as error:  # a mistake of the user: one sentence, no traceback
        raise SystemExit(f"benchmarks: {error}") from None
    if len(cases) > 1:  # the others run even if one fails
        return max(subprocess.run(_command(case, rounds)).returncode for case in cases)
    torch.set_num_threads(1)
    return _run(cases[0], rounds)


def _command(case: Case, rounds: int) -> list[str]:
    """Return the command that runs one case.

    Each case has its own process, because memory that other cases have allocated and freed changes the cost of
    allocation.
    """
    settings = {"preset": case.preset, **case.settings, "rounds": rounds}
    return [
        sys.executable,
        "-m",
        "benchmarks",
        case.benchmark,
        *(f"{name}={value}" for name, value in settings.items()),
    ]


def _describe(name: str) -> str:
    """Return the line of the help about a benchmark: its settings with their choices or their default."""
    choices = {"preset": tuple(BENCHMARKS[name].PRESETS), **_choices(name)}
    others = {key: default for key, default in _defaults(name).items() if key not in choices}
    parts = [f"{key}={'|'.join(values)}" for key, values in choices.items()] + [f"{k}={v}" for k, v in others.items()]
    return f"  {name:10}  {'  '.join(parts)}"


def _function(name: str) -> Callable[..., Comparison | Report]:
    module = BENCHMARKS[name]
    return module.compare if hasattr(module, "compare") else module.report


def _choices(name: str) -> Mapping[str, Sequence[str]]:
    return getattr(BENCHMARKS[name], "CHOICES", {})


def _defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(_function(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _parse(argv: Sequence[str]) -> tuple[list[Case], int]:
    """Return the selected cases and the number of rounds."""
    named = [argument for argument in argv if "=" not in argument]
    settings = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if unknown := [name for name in named if name not in BENCHMARKS]:
        raise SettingError(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    accepted = {"preset", "rounds", *(_defaults(named[0]) if named else ())}
    if len(named) > 1 or settings.keys() - accepted:
        keys = " ".join(f"{name}=..." for name in sorted(accepted - {"preset", "rounds"}))
        raise SettingError(
            f"cannot read {' '.join(argv)!r}; accepted: [BENCHMARK] preset=NAME rounds=N {keys}".rstrip() + " (--help)"
        )
    rounds = settings.pop("rounds", "5")
    if not rounds.isdecimal() or int(rounds) < 1:
        raise SettingError(f"rounds={rounds}: expected 1 or more (rounds=5)")
    names = named or list(BENCHMARKS)
    presets = [preset for name in names for preset in BENCHMARKS[name].PRESETS]
    if (preset := settings.pop("preset", None)) not in (None, *presets):
        raise SettingError(f"preset={preset}: expected one of {', '.join(dict.fromkeys(presets))}")
    selected = [(name, option) for name in names for option in BENCHMARKS[name].PRESETS if preset in (None, option)]
    if not selected:
        raise SettingError(f"preset={preset}: {names[0]} has {', '.join(presets)}")
    cases = []
    for name, option in selected:
        matches = _cases(name, option, {key: _read(name, key, value) for key, value in settings.items()})
        # With a benchmark and a preset, only the first target counts: it provides the settings that are not given.
        cases += matches if preset is None or not named else matches[:1]
    return cases, int(rounds)


def _read(benchmark: str, name: str, value: str) -> Any:
    """Convert a setting to the type of its default. Invalid values are reported here, before any process is started."""
    choices = _choices(benchmark).get(name)
    if choices and value not in choices:
        raise SettingError(f"{name}={value}: expected one of {', '.join(choices)}")
    if name == "lengths":
        parse_lengths(value)  # raises SettingError
    if not isinstance(_defaults(benchmark)[name], int):
        return value
    if not value.isdecimal():
        raise SettingError(f"{name}={value}: expected a whole number")
    if name != "seed" and int(value) < 1:
        raise SettingError(f"{name}={value}: expected 1 or more")
    return int(value)


def _cases(name: str, preset: str, overrides: Mapping[str, Any]) -> list[Case]:
    """Return a case for each target that matches the overrides; if none does, one case without a target.

    The seed is not compared.
    """
    defaults = _defaults(name)
    with_target = [
        {**defaults, **target.settings} for target in TARGETS if (target.benchmark, target.preset) == (name, preset)
    ]
    compared = {key: value for key, value in overrides.items() if key != "seed"}.items()
    matches = [settings | overrides for settings in with_target or [defaults] if compared <= settings.items()]
    matches = [settings for number, settings in enumerate(matches) if settings not in matches[:number]]
    return [Case(benchmark=name, preset=preset, settings=s) for s in matches or [{**defaults, **overrides}]]


def _run(case: Case, rounds: int) -> int:
    """Check parity, time and report one case. Return 1 if its two sides differ."""
    load = os.getloadavg()[0]  # without the load of the benchmark itself
    print(f"{case}", flush=True)
    try:
        result = _function(case.benchmark)(BENCHMARKS[case.benchmark].PRESETS[case.preset], **case.settings)
    except SettingError as error:
        raise SystemExit(f"benchmarks: {error}") from None
    if result.peer:
        print(f"  auris against {result.peer}")
    for name, error in result.errors.items():
        print(f"  parity of the {name}: {error:.1e}, limit {result.limits[name]:.0e}")
    if failed := disagreements(result.errors, result.limits):
        (OUT / f"{case}.json").unlink(missing_ok=True)  # the result of an earlier run is not a result of this one
        print(f"{case}: the two sides differ in {' and '.join(failed)}, not timed", file=sys.stderr)
        return 1
    figures = dict(result.figures) if isinstance(result, Report) else _time(result, rounds)
    targets = {target.figure: target.judge(_value(figures[target.figure])) for target in case.targets()}
    for name, verdict in targets.items():
        parts = [
            f"{bound} {verdict[bound]:.4g} {'met' if verdict[f'meets_{bound}'] else 'MISSED'}"
            for bound in ("gate", "goal")
            if verdict[bound] is not None
        ]
        print(f"  {name} {_value(figures[name]):.4g}: {', '.join(parts)}")
    header = {"benchmark": case.benchmark, "preset": case.preset, "settings": dict(case.settings), "peer": result.peer}
    _save(str(case), {**header, **figures, "parity": dict(result.errors), "targets": targets, **_environment(load)})
    return 0


def _value(figure: float | Mapping[str, float]) -> float:
    return figure["median"] if isinstance(figure, Mapping) else figure


def _time(comparison: Comparison, rounds: int) -> dict[str, Any]:
    times = race(comparison, rounds)
    ratios = [peer / ours for ours, peer in zip(times["ours"], times["peer"], strict=True)]
    for number, ratio in enumerate(ratios):
        seconds = ", ".join(f"{'auris' if side == 'ours' else side} {times[side][number]:.3f} s" for side in times)
        print(f"  round {number + 1}: {seconds}, ratio {ratio:.2f}")
    figures: dict[str, Any] = {"ratio": _spread(ratios), "rounds": rounds}
    if "floor" in times:
        figures["floor"] = _spread([floor / ours for ours, floor in zip(times["ours"], times["floor"], strict=True)])
    figures["cpu_seconds"] = {side: median(seconds) for side, seconds in times.items()}
    return figures | {unit: amount / median(times["ours"]) for unit, amount in comparison.work.items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _save(name: str, result: Mapping[str, Any]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    line = json.dumps(result)
    (OUT / f"{name}.json").write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)


def _environment(load: float) -> dict[str, Any]:
    """Return the versions, and the machine with its load before the benchmark."""
    threads = torch.get_num_threads()
    machine = {"cpu": _cpu(), "cores": os.cpu_count(), "threads": threads, "load": round(load, 2)}
    return {"versions": _versions(), "machine": machine}


def race(comparison: Comparison, rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each side in each round: `ours`, `peer`, and `floor` if there is one.

    The order alternates, so that no side gains by it.
    """
    sides = {"ours": comparison.run_auris, "peer": comparison.run_peer}
    if comparison.run_floor is not None:
        sides["floor"] = comparison.run_floor
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            times[side].append(_cpu_seconds(sides[side]))
    return times


def _cpu_seconds(work: Callable[[], object]) -> float:
    # CPU time does not include the time of other processes. They may still slow down both sides.
    start = time.process_time()
    work()
    return time.process_time() - start


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}
    return {"auris": auris.__version__, "python": platform.python_version(), **packages}


def _cpu() -> str:
    """Return the name of the processor on Linux, elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
