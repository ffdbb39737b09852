"""`python -m benchmarks`: the gate, the rounds and the report that all benchmarks share; see `USAGE`."""

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
    train_step,
)
from benchmarks.goals import TARGETS, Target
from benchmarks.models import seconds

BENCHMARKS = {
    "train_step": train_step,
    "dpo_step": dpo_step,
    "mel": mel,
    "generate": generate,
    "memory": memory,
    "packing": packing,
    "loader": loader,
    "compile": compile,
    "fit_overhead": fit_overhead,
    "plan": plan,
    "startup": startup,
}
OUT = Path("runs/benchmarks")

USAGE = """\
Speed and memory against named peers, as ratios: above 1, auris is faster.

  python -m benchmarks                                    all benchmarks, with all settings that have a goal
  python -m benchmarks train_step                         one of them, likewise
  python -m benchmarks train_step preset=tiny rounds=5    one preset: the first of its goals
  python -m benchmarks train_step preset=prop lengths=3-9 trained=sft seed=1

{benchmarks}
  rounds    how often both sides run, in turn (5)

Both sides run in one process, on one thread, and are timed by CPU time; of several settings each has a process of its
own. First the sides must agree: where they do not, nothing is timed and the exit code is 1. `memory` asks each side in
a process of its own. `packing`, `compile`, `fit_overhead`, `plan` and `startup` have no peer. What no goal names is
run with what is given, and judged by nothing.
The last line of each benchmark is its result as JSON, also kept in {out}/.
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A benchmark with its preset and all of its settings."""

    benchmark: str
    preset: str
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        """As in the name of its file: settings that differ from the defaults behind the preset."""
        defaults = _defaults(self.benchmark)
        changed = [f"{name}={value}" for name, value in self.settings.items() if value != defaults[name]]
        return "-".join([self.benchmark, self.preset, *changed])

    def targets(self) -> list[Target]:
        """What it is held against. The seed does not matter to it."""
        mine = {name: value for name, value in self.settings.items() if name != "seed"}
        return [
            target
            for target in TARGETS
            if (target.benchmark, target.preset) == (self.benchmark, self.preset)
            and {**_defaults(self.benchmark), **target.settings}.items() >= mine.items()
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks asked for; the exit code is 1 if the two sides of one of them do not agree."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"--help", "-h"} & set(argv):
        print(USAGE.format(benchmarks="\n".join(map(_describe, BENCHMARKS)), out=OUT), end="")
        return 0
    try:
        chosen, rounds = _parse(argv)
    except SettingError as error:  # the user's mistake: one sentence, no traceback
        raise SystemExit(f"benchmarks: {error}") from None
    if len(chosen) > 1:  # one that fails does not hide the others
        return max(subprocess.run(_command(case, rounds)).returncode for case in chosen)
    torch.set_num_threads(1)
    return _run(chosen[0], rounds)


def _command(case: Case, rounds: int) -> list[str]:
    """One case in a process of its own: what others have allocated and freed changes how long allocating takes."""
    settings = {"preset": case.preset, **case.settings, "rounds": rounds}
    return [
        sys.executable,
        "-m",
        "benchmarks",
        case.benchmark,
        *(f"{name}={value}" for name, value in settings.items()),
    ]


def _describe(name: str) -> str:
    choices = {"preset": tuple(BENCHMARKS[name].PRESETS), **_choices(name)}
    free = {key: value for key, value in _defaults(name).items() if key not in choices}
    said = [f"{key}={'|'.join(values)}" for key, values in choices.items()] + [f"{k}={v}" for k, v in free.items()]
    return f"  {name:10}  {'  '.join(said)}"


def _work_of(name: str) -> Callable[..., Comparison | Report]:
    module = BENCHMARKS[name]
    return module.compare if hasattr(module, "compare") else module.report


def _choices(name: str) -> Mapping[str, Sequence[str]]:
    return getattr(BENCHMARKS[name], "CHOICES", {})


def _defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(_work_of(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _parse(argv: Sequence[str]) -> tuple[list[Case], int]:
    """The cases asked for, and the number of rounds."""
    named = [argument for argument in argv if "=" not in argument]
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if unknown := [name for name in named if name not in BENCHMARKS]:
        raise SettingError(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    accepted = {"preset", "rounds", *(_defaults(named[0]) if named else ())}
    if len(named) > 1 or given.keys() - accepted:
        takes = " ".join(f"{name}=..." for name in sorted(accepted - {"preset", "rounds"}))
        raise SettingError(
            f"cannot read {' '.join(argv)!r}; accepted: [BENCHMARK] preset=NAME rounds=N {takes}".rstrip() + " (--help)"
        )
    rounds = given.pop("rounds", "5")
    if not rounds.isdecimal() or int(rounds) < 1:
        raise SettingError(f"rounds={rounds}: expected 1 or more (rounds=5)")
    names = named or list(BENCHMARKS)
    presets = [preset for name in names for preset in BENCHMARKS[name].PRESETS]
    if (preset := given.pop("preset", None)) not in (None, *presets):
        raise SettingError(f"preset={preset}: expected one of {', '.join(dict.fromkeys(presets))}")
    asked = [(name, one) for name in names for one in BENCHMARKS[name].PRESETS if preset in (None, one)]
    if not asked:
        raise SettingError(f"preset={preset}: {names[0]} has {', '.join(presets)}")
    cases = []
    for name, one in asked:
        found = _cases(name, one, {key: _read(name, key, value) for key, value in given.items()})
        cases += found if preset is None or not named else found[:1]
    return cases, int(rounds)


def _read(benchmark: str, name: str, value: str) -> Any:
    """A setting's value, of its default's type. What is wrong with one is said before any process begins."""
    choices = _choices(benchmark).get(name)
    if choices and value not in choices:
        raise SettingError(f"{name}={value}: expected one of {', '.join(choices)}")
    if name == "lengths":
        seconds(value)
    if not isinstance(_defaults(benchmark)[name], int):
        return value
    if not value.isdecimal():
        raise SettingError(f"{name}={value}: expected a whole number")
    if name != "seed" and int(value) < 1:
        raise SettingError(f"{name}={value}: expected 1 or more")
    return int(value)


def _cases(name: str, preset: str, given: Mapping[str, Any]) -> list[Case]:
    """Those with a target that have the given settings; if there are none, the given ones and defaults. Any seed."""
    defaults = _defaults(name)
    aimed = [{**defaults, **one.settings} for one in TARGETS if (one.benchmark, one.preset) == (name, preset)]
    fixed = {key: value for key, value in given.items() if key != "seed"}.items()
    asked = [settings | given for settings in aimed or [defaults] if fixed <= settings.items()]
    asked = [settings for number, settings in enumerate(asked) if settings not in asked[:number]]
    return [Case(benchmark=name, preset=preset, settings=s) for s in asked or [{**defaults, **given}]]


def _run(case: Case, rounds: int) -> int:
    """Gate, time and report one case; 1 if its two sides do not agree."""
    load = os.getloadavg()[0]  # before our own work
    print(f"{case}", flush=True)
    try:
        found = _work_of(case.benchmark)(BENCHMARKS[case.benchmark].PRESETS[case.preset], **case.settings)
    except SettingError as error:
        raise SystemExit(f"benchmarks: {error}") from None
    if found.peer:
        print(f"  auris against {found.peer}")
    for name, error in found.errors.items():
        print(f"  parity of the {name}: {error:.1e}, limit {found.limits[name]:.0e}")
    if failed := disagreements(found.errors, found.limits):
        (OUT / f"{case}.json").unlink(missing_ok=True)  # of an earlier run: no result of this one
        print(f"{case}: the two sides differ in {' and '.join(failed)}, not timed", file=sys.stderr)
        return 1
    figures = dict(found.figures) if isinstance(found, Report) else _time(found, rounds)
    targets = {target.figure: target.judge(_value(figures[target.figure])) for target in case.targets()}
    for name, verdict in targets.items():
        said = [
            f"{what} {verdict[what]:.4g} {'met' if verdict[f'meets_{what}'] else 'MISSED'}"
            for what in ("gate", "goal")
            if verdict[what] is not None
        ]
        print(f"  {name} {_value(figures[name]):.4g}: {', '.join(said)}")
    named = {"benchmark": case.benchmark, "preset": case.preset, "settings": dict(case.settings), "peer": found.peer}
    _keep(str(case), {**named, **figures, "parity": dict(found.errors), "targets": targets, **_where(load)})
    return 0


def _value(figure: float | Mapping[str, float]) -> float:
    return figure["median"] if isinstance(figure, Mapping) else figure


def _time(comparison: Comparison, rounds: int) -> dict[str, Any]:
    ours, theirs = race(comparison, rounds)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    for number, (a, b, ratio) in enumerate(zip(ours, theirs, ratios, strict=True), start=1):
        print(f"  round {number}: auris {a:.3f} s, peer {b:.3f} s, ratio {ratio:.2f}")
    return {
        "ratio": {"median": median(ratios), "min": min(ratios), "max": max(ratios)},
        "rounds": rounds,
        "cpu_seconds": {"ours": median(ours), "peer": median(theirs)},
        **{unit: amount / median(ours) for unit, amount in comparison.work.items()},
    }


def _keep(name: str, result: Mapping[str, Any]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    line = json.dumps(result)
    (OUT / f"{name}.json").write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)


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
        for work, taken in turns if number % 2 == 0 else reversed(turns):
            taken.append(_cpu_seconds(work))
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
