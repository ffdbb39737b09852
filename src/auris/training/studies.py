"""The study runner: trains and evaluates every arm of `ablations/NAME.yaml`.

Each run is a process of its own (`auris train ...`): a failed arm takes nothing with it, several arms can run at the
same time, and an arm that is run by hand is the same run. Finished runs are not started again; stopped runs resume.
Stages that arms have in common are trained once per recipe and seed, in `runs/shared/<stage>-<digest of its recipe>/`,
where every study finds them.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from auris import config, files
from auris.config import Config
from auris.errors import UsageError, UserError
from auris.training.preemption import REQUEUE

_RUNNER_KEYS = ("ablations", "arm", "seed", "seeds", "jobs", "threads", "metric", "dry_run")
_SHARED = "shared"  # the study to which stages belong
_NAMES = ("study", "arm", "seed", "run_dir")  # settings that name a run and do not change it
_DONE = "done.json"  # in the directory of a finished run: its recipe's digest and its evaluations


@dataclass
class Job:
    """One run of a study and what it waits for.

    Attributes:
        name: of the arm or stage.
        overrides: arguments of `auris train`.
        needs: the jobs that have to be done first.
        evaluate: arguments of each `auris evaluate` after training.
        evaluations: how many of these have been started.
        recipe: the resolved config.
        status: waiting, running, evaluating, done, failed, stopped or blocked.
    """

    name: str
    seed: int
    overrides: list[str]
    run_dir: Path
    needs: list[Job] = field(default_factory=list)
    evaluate: list[list[str]] = field(default_factory=list)
    evaluations: int = 0
    recipe: Config = field(default_factory=dict)
    status: str = "waiting"
    process: subprocess.Popen | None = None
    started: float = 0.0
    seconds: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.run_dir / "log.txt"

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def digest(self) -> str:
        return _digest(self.recipe, self.seed)

    @property
    def level(self) -> int:
        """How many other jobs have to be done one after the other before it."""
        return max((job.level + 1 for job in self.needs), default=0)


def run_study(study: Config) -> int:
    """Run the study that a config holds, or with `dry_run` list its runs: level, name and seed, one a line.

    Returns:
        The exit code: 1 if a job did not finish, REQUEUE if one of them is to be started again.
    """
    given = list(HydraConfig.get().overrides.task)
    extra = [override for override in given if override.lstrip("+").split("=")[0] not in _RUNNER_KEYS]
    jobs = plan(study, extra, arm=study["arm"], seed=study["seed"])
    if study["dry_run"]:
        for job in jobs:
            print(job.level, job.name, job.seed, sep="\t")
        return 0
    # Results cannot know the question and the order of the arms from the runs.
    facts = {"question": study.get("question", ""), "arms": list(study["arms"])}
    files.write_yaml(Path(jobs[-1].recipe["runs_dir"]) / study["study"] / "study.yaml", facts)
    code = run(jobs, side_by_side=study["jobs"], threads=study["threads"], metric=study.get("metric"))
    return code if code == REQUEUE else min(code, 1)


# --- planning -----------------------------------------------------------------------------------------------------


def plan(study: Config, extra: Sequence[str] = (), arm: str | None = None, seed: int | None = None) -> list[Job]:
    """Return the jobs of a study, each after those that it needs.

    Every arm is composed here, so that a misspelt override ends the study before it starts.

    Args:
        study: the resolved config.
        extra: overrides of the command line, which win over those of the arms.
        arm: only this arm or stage, and what it needs; None: all arms.
        seed: only this seed; None: all seeds.

    Raises:
        UsageError: an unknown arm or stage, a circle, or two arms that would train the same thing.
    """
    entries = {**(study.get("stages") or {}), **study["arms"]}
    if arm is not None and arm not in entries:
        raise UsageError(f"arm={arm}: study {study['study']} has {', '.join(entries)}")
    wanted = [arm] if arm is not None else list(study["arms"])
    jobs: dict[tuple[str, int], Job] = {}

    def add(name: str, seed: int, path: tuple[str, ...] = ()) -> Job:
        """Add the job of an arm or stage, after those that it needs. `path`: the jobs that need it."""
        if name in path:
            raise UsageError(f"study {study['study']}: {' after '.join((*path, name))} is a circle")
        if name not in entries:
            raise UsageError(f"study {study['study']}: {path[-1]} comes after {name!r}, which is no arm or stage of it")
        if (name, seed) in jobs:
            return jobs[name, seed]
        entry, is_arm = entries[name], name in study["arms"]
        after = entry.get("after") or {}
        # The whole model continues from one run, or its parts from several.
        whole = isinstance(after, str)
        starts = {"checkpoint": after} if whole else {f"weights.{part}": run for part, run in after.items()}
        before = {start: add(run, seed, (*path, name)) for start, run in starts.items()}
        overrides = [*entry["overrides"], *(f"{start}={job.run_dir}" for start, job in before.items()), *extra]
        names = [f"study={study['study']}", f"arm={name}", f"seed={seed}"]
        try:
            composed = config.compose([*overrides, *names])
            if not is_arm:
                composed.study, composed.arm = _SHARED, f"{name}-{_digest(config.resolve(composed), seed)}"
                names = [f"study={_SHARED}", f"arm={composed.arm}", f"seed={seed}"]
            recipe = config.resolve(composed)
        except UserError as error:
            raise UsageError(f"study {study['study']}, arm {name}: {error}") from error
        job = Job(name, seed, [*overrides, *names], Path(recipe["run_dir"]), [*before.values()], recipe=recipe)
        if is_arm and name in wanted:  # one that is only needed may be evaluated by another job of an array just now
            job.evaluate = [list(one) for one in entry.get("evaluate") or study.get("evaluate") or []]
        jobs[name, seed] = job
        return job

    for one in [seed] if seed is not None else study["seeds"]:
        for name in wanted:
            add(name, one)
    _require_different([job for job in jobs.values() if job.name in study["arms"]])
    return list(jobs.values())


def _digest(recipe: Config, seed: int) -> str:
    """Return a digest of a recipe that is the same for all seeds: a run starts from runs of its own seed."""
    content = json.dumps({key: value for key, value in recipe.items() if key not in _NAMES}, sort_keys=True)
    content = content.replace(recipe.get("run_dir", ""), "")
    return hashlib.sha256(content.replace(f"/seed_{seed}", "").encode()).hexdigest()[:8]


def _require_different(arms: Sequence[Job]) -> None:
    """Check that no two arms are the same run: an arm whose overrides change nothing would be a silent lie."""
    seen: dict[str, Job] = {}
    for job in arms:
        content = json.dumps({key: x for key, x in job.recipe.items() if key not in ("arm", "run_dir")}, sort_keys=True)
        content = content.replace(job.recipe.get("run_dir", ""), "")
        other = seen.setdefault(content, job)
        if other is not job:
            own = [one for one in job.overrides if one not in other.overrides and not one.startswith("arm=")]
            without = f"sets what is set without {'it' if len(own) == 1 else 'them'}"
            why = f"{' and '.join(own)} {without}" if own else "their overrides are the same"
            raise UsageError(f"arms {other.key} and {job.key} are the same run: {why}")


# --- running ------------------------------------------------------------------------------------------------------


def run(jobs: list[Job], side_by_side: int, threads: int = 1, metric: str | None = None) -> int:
    """Run the jobs, `side_by_side` at a time, with a live table.

    SIGTERM and SIGUSR1, by which a cluster wants its machine back, are passed on to the running jobs; no other job is
    started then.

    Args:
        jobs: each after those that it needs.
        side_by_side: how many run at the same time.
        threads: of each run, for any `side_by_side`: another number of threads rounds differently.
        metric: of validation, shown in the table; None: the loss.

    Returns:
        How many jobs did not finish, or REQUEUE if one of them is to be started again.
    """
    console = Console()
    for job in jobs:
        job.status = "done" if _is_done(job) else job.status
    done = sum(job.status == "done" for job in jobs)
    before = f", {done} done before" if done else ""
    console.print(f"{len(jobs)} runs{before}, {side_by_side} side by side, {threads} thread{'s'[: threads > 1]} each")
    try:
        show = Live(console=console, refresh_per_second=2, transient=False, auto_refresh=console.is_terminal)
        with _forwarding(jobs) as signals, show as live:
            while any(
                job.status in ("running", "evaluating") or (job.status == "waiting" and not signals) for job in jobs
            ):
                changed = _advance(jobs, 0 if signals else side_by_side, threads)
                if console.is_terminal:
                    live.update(_table(jobs, metric))
                for job in [] if console.is_terminal else changed:  # a log file gets a line per change
                    console.print(f"{job.key}: {job.status}")
                time.sleep(0.2)
            live.update(_table(jobs, metric))
    except KeyboardInterrupt:
        for job in jobs:
            if job.is_alive:
                job.process.terminate()
        console.print("stopped; the same command resumes")
        return min(sum(job.status != "done" for job in jobs), REQUEUE - 1)
    unfinished = [job for job in jobs if job.status != "done"]
    for job in unfinished:
        console.print(f"[red]{job.key} {job.status}[/red]" + (f", see {job.log}:" if job.status == "failed" else ""))
        if job.status == "failed":
            console.print("".join(job.log.read_text(errors="replace").splitlines(keepends=True)[-12:]), markup=False)
    is_preempted = signals or any(job.status == "stopped" for job in jobs)
    return REQUEUE if unfinished and is_preempted else min(len(unfinished), REQUEUE - 1)


@contextmanager
def _forwarding(jobs: Sequence[Job]) -> Iterator[list[int]]:
    """Pass signals on to the running jobs; yields the list of those that have come."""
    signals: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        for job in jobs:
            if job.is_alive:
                job.process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _advance(jobs: Sequence[Job], side_by_side: int, threads: int) -> list[Job]:
    """Note which jobs have ended and start others; return the jobs whose status changed.

    `side_by_side=0`: the machine is wanted back, and a job that ends now without being done is stopped.
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
                files.write_json(job.run_dir / _DONE, {"recipe": job.digest, "evaluate": job.evaluate})
            if job.process is None:
                job.seconds = time.time() - job.started
    for job in jobs:
        if job.status == "waiting":
            states = [one.status for one in job.needs]
            if any(state in ("failed", "stopped", "blocked") for state in states):
                job.status = "blocked"
            elif all(state == "done" for state in states) and sum(j.process is not None for j in jobs) < side_by_side:
                job.status, job.started = "running", time.time()
                _start(job, ["train", *job.overrides], threads)
    return [job for job in jobs if job.status != before[job.key]]


def _is_done(job: Job) -> bool:
    """Whether this very run and its evaluations have finished before."""
    done = files.read_facts(job.run_dir / _DONE)
    return bool(done) and done["recipe"] == job.digest and all(one in done["evaluate"] for one in job.evaluate)


def _start(job: Job, arguments: list[str], threads: int) -> None:
    job.run_dir.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with job.log.open("ab") as log:
        command = [sys.executable, "-m", "auris", *arguments]
        job.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _table(jobs: Sequence[Job], metric: str | None = None) -> Table:
    metric = metric or "val/loss"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", no_wrap=True)  # a long name is not cut on 80 columns: others begin like it
    for column in ("seed", "status", "step", "loss", metric, "minutes"):
        table.add_column(column, justify="left" if column == "status" else "right")
    for job in jobs:
        progress = files.read_facts(job.run_dir / "progress.json")
        step = f"{progress['step']}/{progress['max_steps']}" if progress else ""
        loss, score = (f"{progress[name]:.3f}" if name in progress else "" for name in ("train/loss", metric))
        seconds = time.time() - job.started if job.process is not None else job.seconds
        minutes = f"{seconds / 60:.1f}" if job.started else ""
        table.add_row(job.name, str(job.seed), job.status, step, loss, score, minutes)
    return table
