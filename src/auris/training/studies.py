"""The study runner: `ablations/NAME.yaml` -> every arm trained and evaluated, stages only once per recipe and seed.

Each run is a process of its own (`auris train ...`), so that an arm that fails takes nothing with it, several
can work side by side, and an arm run by hand is the same run. What is done is not started again; what was stopped
resumes.
Stages live in `runs/shared/<stage>-<digest of its recipe>/`, where every study finds them.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from auris import config
from auris.errors import UsageError, UserError
from auris.model.weights import checkpoint_dir
from auris.training.checkpointing import REQUEUE

_RUNNER_KEYS = ("ablations", "arm", "seed", "seeds", "jobs", "threads", "metric", "dry_run")
_UNDER_WAY = ("running", "evaluating")
_SHARED = "shared"  # the study to which stages belong
_NAMES = ("study", "arm", "seed", "run_dir")  # what a run is called, not what it does
_NOTE = "done.json"  # in the folder of a run that is done: its recipe's digest and how it was evaluated


@dataclass
class Job:
    """One run of a study and what it waits for."""

    name: str
    seed: int
    overrides: list[str]
    run_dir: Path
    needs: list[str] = field(default_factory=list)
    evaluate: list[list[str]] = field(default_factory=list)
    evaluations: int = 0  # of these, how many have been started
    recipe: dict[str, Any] = field(default_factory=dict)
    status: str = "waiting"  # waiting, running, evaluating, done, failed, stopped, blocked
    process: subprocess.Popen | None = None
    started: float = 0.0
    seconds: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.run_dir / "log.txt"


def run_study(study: config.Config) -> int:
    """Run the study that a config holds, or with `dry_run` list its runs: level, name and seed, one a line.

    The exit code is 1 if a job did not finish, or REQUEUE if one of them is to be gone on with.
    """
    given = list(HydraConfig.get().overrides.task)
    extra = [override for override in given if override.lstrip("+").split("=")[0] not in _RUNNER_KEYS]
    jobs = plan(study, extra, arm=study["arm"], seed=study["seed"])
    if study["dry_run"]:
        for job, level in zip(jobs, levels(jobs), strict=True):
            print(level, job.name, job.seed, sep="\t")
        return 0
    leave_word(study, Path(jobs[-1].recipe["runs_dir"]))
    code = run(jobs, side_by_side=study["jobs"], threads=study["threads"], metric=study.get("metric"))
    return code if code == REQUEUE else min(code, 1)


def leave_word(study: Mapping[str, Any], runs: Path) -> None:
    """Write what results cannot know from the runs: the question, and which arm comes first."""
    file = runs / study["study"] / "study.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = {"question": study.get("question", ""), "arms": list(study["arms"])}
    checkpoint_dir.replace(file, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))


def levels(jobs: Sequence[Job]) -> list[int]:
    """Of each job, how many others have to be done one after the other before it."""
    found: dict[str, int] = {}
    for job in jobs:  # those that it needs come before it
        found[job.key] = max((found[key] + 1 for key in job.needs), default=0)
    return [found[job.key] for job in jobs]


def plan(
    study: Mapping[str, Any], extra: Sequence[str] = (), arm: str | None = None, seed: int | None = None
) -> list[Job]:
    """Jobs in an order in which each comes after what it needs.

    Every arm is composed here, so that a misspelt override ends the study before it starts. Raises ValueError for an
    unknown arm or stage, a circle, or two arms that would train the same thing.
    """
    entries = {**(study.get("stages") or {}), **study["arms"]}
    if arm is not None and arm not in entries:
        raise UsageError(f"arm={arm}: study {study['study']} has {', '.join(entries)}")
    wanted = [arm] if arm is not None else list(study["arms"])
    jobs: dict[str, Job] = {}
    for one in [seed] if seed is not None else study["seeds"]:
        for name in wanted:
            _add(jobs, study, entries, name, one, extra, path=())
    for job in jobs.values():
        if job.name not in wanted:  # brought along: another job of an array may be evaluating it at this moment
            job.evaluate.clear()
    _require_different(jobs, set(study["arms"]))
    return list(jobs.values())


def _add(
    jobs: dict[str, Job],
    study: Mapping[str, Any],
    entries: Mapping[str, Any],
    name: str,
    seed: int,
    extra: Sequence[str],
    path: tuple[str, ...],
) -> Job:
    if name in path:
        raise UsageError(f"study {study['study']}: {' after '.join((*path, name))} is a circle")
    if name not in entries:
        raise UsageError(f"study {study['study']}: {path[-1]} comes after {name!r}, which is no arm or stage of it")
    key = f"{name}, seed {seed}"
    if key in jobs:
        return jobs[key]
    entry = entries[name]
    after = entry.get("after") or {}
    # One run goes on as a whole, or parts start from several.
    keys = {"checkpoint": after} if isinstance(after, str) else {f"weights.{part}": run for part, run in after.items()}
    before = {key: _add(jobs, study, entries, run, seed, extra, (*path, name)) for key, run in keys.items()}
    starts = [f"{key}={job.run_dir}" for key, job in before.items()]
    overrides = [*entry["overrides"], *starts, *extra, f"study={study['study']}", f"arm={name}", f"seed={seed}"]
    try:
        composed = config.compose(overrides)
        if name not in study["arms"]:
            composed.study, composed.arm = _SHARED, f"{name}-{_digest(config.resolve(composed), seed)}"
            overrides = [*overrides[:-3], f"study={_SHARED}", f"arm={composed.arm}", f"seed={seed}"]
        made = config.resolve(composed)
    except UserError as error:
        raise UsageError(f"study {study['study']}, arm {name}: {error}") from error
    evaluate = entry.get("evaluate") or study.get("evaluate") or [] if name in study["arms"] else []
    jobs[key] = Job(
        name=name,
        seed=seed,
        overrides=overrides,
        run_dir=Path(made["run_dir"]),
        recipe=made,
        needs=[job.key for job in before.values()],
        evaluate=[list(one) for one in evaluate],
    )
    return jobs[key]


def _digest(made: Mapping[str, Any], seed: int) -> str:
    """Of a stage's recipe, the same for all seeds: what it starts from was trained with its own seed."""
    content = json.dumps({key: value for key, value in made.items() if key not in _NAMES}, sort_keys=True)
    return hashlib.sha256(content.replace(f"/seed_{seed}", "").encode()).hexdigest()[:8]


def _require_different(jobs: Mapping[str, Job], arms: set[str]) -> None:
    """An arm whose overrides change nothing would be a silent lie."""
    seen: dict[str, Job] = {}
    for job in jobs.values():
        if job.name in arms:
            made = {key: value for key, value in job.recipe.items() if key not in ("arm", "run_dir")}
            content = json.dumps(made, sort_keys=True)
            if content in seen:
                other = seen[content]
                own = [o for o in job.overrides if o not in other.overrides and not o.startswith("arm=")]
                without = f"sets what is set without {'it' if len(own) == 1 else 'them'}"
                why = f"{' and '.join(own)} {without}" if own else "their overrides are the same"
                raise UsageError(f"arms {other.key} and {job.key} are the same run: {why}")
            seen[content] = job


def run(jobs: list[Job], side_by_side: int, threads: int = 1, metric: str | None = None) -> int:
    """Work the jobs off, `side_by_side` at a time, with a live table; returns how many did not finish, or REQUEUE.

    A SIGTERM or SIGUSR1, by which a cluster wants its machine back, goes to the runs under way and starts no other.

    Args:
        threads: of each run, however many work side by side: other numbers of them round differently.
        metric: of validation, shown in the table; None: the loss there.
    """
    console = Console()
    by_key = {job.key: job for job in jobs}
    for job in jobs:
        job.status = "done" if _is_done(job) else job.status
    ended = sum(job.status == "done" for job in jobs)
    before = f", {ended} done before" if ended else ""
    console.print(f"{len(jobs)} runs{before}, {side_by_side} side by side, {threads} thread{'s'[: threads > 1]} each")
    try:
        show = Live(console=console, refresh_per_second=2, transient=False, auto_refresh=console.is_terminal)
        with _passing_on(jobs) as signals, show as live:
            while any(job.status in _UNDER_WAY or (job.status == "waiting" and not signals) for job in jobs):
                changed = _advance(jobs, by_key, 0 if signals else side_by_side, threads)
                if console.is_terminal:
                    live.update(_table(jobs, metric))
                for job in [] if console.is_terminal else changed:  # a log file: a line per change
                    console.print(f"{job.key}: {job.status}")
                time.sleep(0.2)
            live.update(_table(jobs, metric))
    except KeyboardInterrupt:
        for job in jobs:
            if job.process and job.process.poll() is None:
                job.process.terminate()
        console.print("stopped; the same command resumes")
        return min(len([job for job in jobs if job.status != "done"]), REQUEUE - 1)
    unfinished = [job for job in jobs if job.status != "done"]
    for job in unfinished:
        console.print(f"[red]{job.key} {job.status}[/red]" + (f", see {job.log}:" if job.status == "failed" else ""))
        if job.status == "failed":
            console.print("".join(job.log.read_text(errors="replace").splitlines(keepends=True)[-12:]), markup=False)
    goes_on = signals or any(job.status == "stopped" for job in jobs)
    return REQUEUE if unfinished and goes_on else min(len(unfinished), REQUEUE - 1)


@contextmanager
def _passing_on(jobs: Sequence[Job]) -> Iterator[list[int]]:
    """Signals that have come in the meantime; each was passed on to the processes of the jobs."""
    signals: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        signals.append(number)
        for job in jobs:
            if job.process and job.process.poll() is None:
                job.process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _advance(jobs: list[Job], by_key: Mapping[str, Job], side_by_side: int, threads: int) -> list[Job]:
    """Note what has ended, start what can start; returns the jobs whose status changed.

    `side_by_side=0`: the machine is wanted back, and whatever ends now without being done is stopped.
    """
    before = {job.key: job.status for job in jobs}
    for job in jobs:
        if job.process is not None and (code := job.process.poll()) is not None:
            job.process = None
            left = job.evaluate[job.evaluations :]
            if code == REQUEUE or (not side_by_side and (code != 0 or left)):
                job.status = "stopped"
            elif code != 0:
                job.status = "failed"
            elif left:
                job.status = "evaluating"
                job.evaluations += 1
                _start(job, ["evaluate", f"checkpoint={job.run_dir}", *left[0]], threads)
            else:
                job.status = "done"
                checkpoint_dir.replace(job.run_dir / _NOTE, json.dumps(_note(job)))
            if job.process is None:
                job.seconds = time.time() - job.started
    for job in jobs:
        if job.status == "waiting":
            states = [by_key[key].status for key in job.needs]
            if any(state in ("failed", "stopped", "blocked") for state in states):
                job.status = "blocked"
            elif all(state == "done" for state in states) and sum(j.process is not None for j in jobs) < side_by_side:
                job.status, job.started = "running", time.time()
                _start(job, ["train", *job.overrides], threads)
    return [job for job in jobs if job.status != before[job.key]]


def _note(job: Job) -> dict[str, Any]:
    return {"recipe": _digest(job.recipe, job.seed), "evaluate": job.evaluate}


def _is_done(job: Job) -> bool:
    """Whether this very run and its evaluations have ended well before."""
    try:
        before = json.loads((job.run_dir / _NOTE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return before["recipe"] == _note(job)["recipe"] and all(one in before["evaluate"] for one in job.evaluate)


def _start(job: Job, arguments: list[str], threads: int) -> None:
    job.run_dir.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with job.log.open("ab") as log:
        command = [sys.executable, "-m", "auris", *arguments]
        job.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _table(jobs: Sequence[Job], metric: str | None = None) -> Table:
    metric = metric or "val/loss"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", no_wrap=True)  # a long name stays whole on 80 columns: others begin like it
    for column in ("seed", "status", "step", "loss", metric, "minutes"):
        table.add_column(column, justify="left" if column == "status" else "right")
    for job in jobs:
        progress = _progress(job)
        step = f"{progress.get('step', 0)}/{progress['max_steps']}" if progress else ""
        loss, score = (f"{progress[name]:.3f}" if name in progress else "" for name in ("train/loss", metric))
        running = job.process is not None
        seconds = time.time() - job.started if running else job.seconds
        minutes = f"{seconds / 60:.1f}" if job.started else ""
        table.add_row(job.name, str(job.seed), job.status, step, loss, score, minutes)
    return table


def _progress(job: Job) -> dict[str, Any]:
    try:
        return json.loads((job.run_dir / "progress.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
