"""The study runner: trains and evaluates every arm of a study (`ablations/NAME.yaml`).

An arm is one of the systems that a study compares; it is trained once for each seed. A stage is a training run whose
weights several arms start from. Stages are trained once per config and seed, in
`runs/shared/<stage>-<digest of its config>/`, where every study finds them.

Each run is a separate process (`auris train ...`). A failed arm therefore does not affect the other arms, several arms
can run at the same time, and starting an arm by hand gives the same run. Finished runs are not started again; stopped
runs resume.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from auris import config as configs
from auris import files
from auris.config import Config
from auris.errors import UsageError, UserError, count, shorten
from auris.model import llm
from auris.model.weights.identify import ModelSource
from auris.text.console import format_duration
from auris.training.initial_weights import Difference, override_for
from auris.training.preemption import REQUEUE_STATUS, Preemption
from auris.training.weight_settings import adopt_settings, find_sources

# Settings of the study runner, which are not passed on to the runs.
_RUNNER_KEYS = ("ablations", "arm", "seed", "seeds", "jobs", "threads", "metric", "dry_run", "vars")
_SHARED = "shared"  # name of the study to which stages belong
_NAMING_KEYS = ("study", "arm", "seed", "run_dir")  # settings that only name a run
# Settings of a part of the model that may differ from those with which its weights were trained. Qwen-Audio starts from
# Whisper, which has another `clip_end`.
_SETTINGS_WITHOUT_FUNCTION = ("clip_end", "train_length")
_VARIABLE = re.compile(r"\$\{vars\.([^}]*)\}")  # in an override of a study
# File in the directory of a finished run. It holds the digest of the config, and the evaluations that were made.
_DONE_FILE = "done.json"


@dataclass
class Job:
    """A run of a study: the training of an arm or stage with one seed, followed by the evaluations of the arm.

    Attributes:
        name: Name of the arm or stage.
        seed: Seed of the run.
        overrides: Arguments of `auris train`.
        run_dir: Directory of the run.
        needs: Jobs that must be done before this one starts.
        evaluate: Arguments of each `auris evaluate` after training.
        n_evaluations_started: Number of evaluations that have been started.
        config: The resolved config.
        status: waiting, running, evaluating, done, failed, stopped (preempted), or blocked (by a job that is not done).
        process: Process of the current training or evaluation; None if no process is running.
        started: Time of the start, in seconds since the epoch.
        seconds: Duration of the job, set when it ends.
    """

    name: str
    seed: int
    overrides: list[str]
    run_dir: Path
    needs: list[Job] = field(default_factory=list)
    evaluate: list[list[str]] = field(default_factory=list)
    n_evaluations_started: int = 0
    config: Config = field(default_factory=dict)
    status: str = "waiting"
    process: subprocess.Popen | None = None
    started: float = 0.0
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """Name and seed, which identify the job in messages."""
        return f"{self.name}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """Path of the file with the output of all processes of the run."""
        return self.run_dir / "log.txt"

    @property
    def is_alive(self) -> bool:
        """Whether a process of the run is running."""
        return self.process is not None and self.process.poll() is None

    @property
    def digest(self) -> str:
        """Digest of the config without the seed."""
        return _digest(self.config, self.seed)

    @property
    def level(self) -> int:
        """Length of the longest chain of jobs that must be done before this one."""
        return max((job.level + 1 for job in self.needs), default=0)


def run_study(study: Config) -> int:
    """Run a study, or with `dry_run` only list its jobs, one per line with level, name and seed.

    Args:
        study: The resolved config of the study.

    Returns:
        The exit code: 0 if all jobs are done, REQUEUE_STATUS if a job was preempted and should be started again,
        otherwise 1.
    """
    jobs = plan_jobs(study, _overrides_of_runs(HydraConfig.get().overrides.task), arm=study["arm"], seed=study["seed"])
    if study["dry_run"]:
        for job in jobs:
            print(job.level, job.name, job.seed, sep="\t")
        return 0
    # `auris results` needs the study's question and the order of its arms, which the run directories do not contain.
    description = {"question": study.get("question", ""), "arms": list(study["arms"])}
    files.write_yaml(Path(jobs[-1].config["runs_dir"]) / study["study"] / "study.yaml", description)
    code = run_jobs(jobs, max_parallel=study["jobs"], threads=study["threads"], metric=study.get("metric"))
    return code if code == REQUEUE_STATUS else min(code, 1)


def _overrides_of_runs(overrides: Iterable[str]) -> list[str]:
    """Return the overrides from the command line that are passed on to the runs."""
    keys = {override: override.lstrip("+").partition("=")[0] for override in overrides}
    return [override for override, key in keys.items() if key.split(".")[0] not in _RUNNER_KEYS]


# --- planning -----------------------------------------------------------------------------------------------------


def plan_jobs(
    study: Config, extra_overrides: Sequence[str] = (), arm: str | None = None, seed: int | None = None
) -> list[Job]:
    """Return the jobs of a study; every job comes after the jobs that it needs.

    The configs of all arms and evaluations are composed, so that a misspelt override ends the study before it starts.

    Args:
        study: The resolved config of the study.
        extra_overrides: Overrides from the command line, which take precedence over the overrides of the arms.
        arm: Name of the only arm or stage to plan, in addition to the jobs that it needs; None plans all arms.
        seed: The only seed to plan; None plans all seeds of the study.

    Raises:
        UsageError: An arm or stage is unknown or depends on itself, its config is invalid, or two arms have the same
            config.
    """
    entries = {**(study.get("stages") or {}), **study["arms"]}
    if not _is_list_of_text(shared := study.get("overrides", [])):
        raise UsageError(f"study {study['study']}: overrides={shorten(shared)}, expected [key=value, ...]")
    for name, entry in entries.items():
        _check_entry(f"study {study['study']}: {name}", entry)
    entries = {name: {**entry, "overrides": [*shared, *entry["overrides"]]} for name, entry in entries.items()}
    entries, evaluations = (_fill_in(part, study.get("vars") or {}) for part in (entries, study.get("evaluate") or []))
    _check_evaluations(f"study {study['study']}", study.get("evaluate"))
    if arm is not None and arm not in entries:
        raise UsageError(f"arm={arm}: expected an arm or stage of study {study['study']}: {', '.join(entries)}")
    selected = [arm] if arm is not None else list(study["arms"])
    jobs: dict[tuple[str, int], Job] = {}
    extra_keys = {override.lstrip("+").partition("=")[0] for override in extra_overrides}
    compositions: dict[str, DictConfig] = {}

    def compose(name: str) -> DictConfig:
        """Return the config of an arm or stage without its name, seed and initial weights.

        Hydra takes a third of a second, so all seeds share a composition.
        """
        if name not in compositions:
            compositions[name] = configs.compose([*entries[name]["overrides"], *extra_overrides])
        return deepcopy(compositions[name])

    @cache
    def check_evaluation(*arguments: str) -> None:
        """Raise UsageError if arguments of `auris evaluate` are invalid; it would say so only after the training."""
        try:
            configs.resolve(configs.compose(["checkpoint=RUN", *arguments], "evaluate"), "evaluate")
        except UserError as error:
            raise UsageError(f"study {study['study']}, auris evaluate: {error}") from error

    def add(name: str, seed: int, dependents: tuple[str, ...] = ()) -> Job:
        """Add the job of an arm or stage after the jobs that it needs.

        Args:
            name: Name of the arm or stage.
            seed: Seed of the job.
            dependents: Names of the arms and stages that lead to this job; each of them needs the next one.
        """
        if name in dependents:
            raise UsageError(f"study {study['study']}: {' after '.join((*dependents, name))} is a circular dependency")
        if name not in entries:
            raise UsageError(
                f"study {study['study']}: the entry `after: {name}` of {dependents[-1]} is not an arm or stage"
            )
        if (name, seed) in jobs:
            return jobs[name, seed]
        entry, is_arm = entries[name], name in study["arms"]
        after = entry.get("after") or {}
        # Either the whole model starts from the weights of one run, or its parts start from several runs.
        is_whole_model = isinstance(after, str)
        sources = (
            {"checkpoint": after} if is_whole_model else {f"weights.{part}": source for part, source in after.items()}
        )
        needed = {key: add(source, seed, (*dependents, name)) for key, source in sources.items()}
        weights = [f"{key}={job.run_dir}" for key, job in needed.items()]
        overrides = [*entry["overrides"], *weights, *extra_overrides]
        naming = [f"study={study['study']}", f"arm={name}", f"seed={seed}"]
        try:
            _check_name(f"study={study['study']}")
            _check_name(f"arm={name}")
            composed = compose(name)
            if not is_whole_model and (unknown := sorted(after.keys() - composed.weights.keys())):
                raise UsageError(f"`after` names {', '.join(unknown)}: expected {', '.join(composed.weights)}")
            for key, source_job in needed.items():
                if key not in extra_keys:
                    OmegaConf.update(composed, key, str(source_job.run_dir))
            composed.study, composed.arm, composed.seed = study["study"], name, seed
            if not is_arm:
                composed.study, composed.arm = _SHARED, f"{name}-{_digest(configs.resolve(composed), seed)}"
                naming = [f"study={_SHARED}", f"arm={composed.arm}", f"seed={seed}"]
            config = configs.resolve(composed)
            planned = {key: _plan_source(job) for key, job in needed.items() if key not in extra_keys}
            config = adopt_settings(config, find_sources(config, planned), overrides)
            for key, source_job in needed.items():
                _check_fit(config["model"], key, source_job)
        except UserError as error:
            raise UsageError(f"study {study['study']}, arm {name}: {error}") from error
        job = Job(name, seed, [*overrides, *naming], Path(config["run_dir"]), [*needed.values()], config=config)
        # Only selected arms are evaluated here. Another job of a SLURM array may be evaluating the arms that they need.
        if is_arm and name in selected:
            job.evaluate = [list(arguments) for arguments in entry.get("evaluate") or evaluations]
            for arguments in job.evaluate:
                check_evaluation(*arguments)
        jobs[name, seed] = job
        return job

    for job_seed in [seed] if seed is not None else study["seeds"]:
        for name in selected:
            add(name, job_seed)
    if not jobs:
        raise UsageError(f"study {study['study']}: expected at least one arm and one seed")
    _check_that_arms_differ([job for job in jobs.values() if job.name in study["arms"]])
    return list(jobs.values())


def _fill_in(part: Any, variables: Mapping[str, object]) -> Any:
    """Replace ${vars.NAME} in all texts of a part of a study."""
    if isinstance(part, Mapping):
        return {key: _fill_in(value, variables) for key, value in part.items()}
    if isinstance(part, list):
        return [_fill_in(value, variables) for value in part]
    if not isinstance(part, str):
        return part
    if unknown := sorted(set(_VARIABLE.findall(part)) - variables.keys()):
        raise UsageError(f"{part}: vars has no {', '.join(unknown)}, expected {', '.join(variables)}")
    texts = {name: "null" if value is None else str(value) for name, value in variables.items()}
    return _VARIABLE.sub(lambda match: texts[match[1]], part)


def _check_entry(label: str, entry: object) -> None:
    """Check the form of an arm or stage. Its overrides are checked when they are composed.

    Args:
        label: Name of the entry, for messages.
        entry: The entry of the study's file.

    Raises:
        UsageError: The entry has another form.
    """
    if not isinstance(entry, Mapping) or not _is_list_of_text(entry.get("overrides")):
        raise UsageError(f"{label} is {shorten(entry)}: expected {{overrides: [key=value, ...]}}; [] changes nothing")
    if not isinstance(after := entry.get("after"), (str, Mapping, type(None))):
        raise UsageError(f"{label}: after={shorten(after)}, expected NAME or {{part: NAME, ...}} of arms or stages")
    _check_evaluations(label, entry.get("evaluate"))


def _check_evaluations(label: str, evaluations: object) -> None:
    """Raise UsageError unless a value is a list with a list of arguments for each evaluation, or None."""
    if evaluations is not None and not (isinstance(evaluations, list) and all(map(_is_list_of_text, evaluations))):
        raise UsageError(
            f"{label}: evaluate={shorten(evaluations)}, expected a list for each evaluation, [[benchmark=NAME], ...]"
        )


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _check_name(override: str) -> None:
    """Check that Hydra, which reads the overrides of each run, does not change a name.

    Raises:
        UsageError: The name is a number for Hydra (`1e-4`), or its grammar gives a character a meaning.
    """
    name = override.partition("=")[2]
    try:
        is_kept = str(OverridesParser.create().parse_override(override).value()) == name
    except HydraException:
        is_kept = False
    if not is_kept:
        raise UsageError(f"{override}: expected a name that starts with a letter and contains only A-Z a-z 0-9 . _ + -")


def _plan_source(job: Job) -> ModelSource:
    """Describe the model that a job will have trained."""
    tokenizer = str(job.run_dir / "tokenizer")
    return ModelSource(path=job.run_dir, kind="run", config=job.config, model=job.config["model"], tokenizer=tokenizer)


def _check_fit(model: Config, key: str, source: Job) -> None:
    """Check that a model has the settings with which the weights that it starts from are trained.

    The run itself checks this too (`initial_weights`), but only after hours of training the source.

    Args:
        model: Section `model` of the config of the run.
        key: `checkpoint`, or `weights.PART`.
        source: The job whose weights the run starts from.

    Raises:
        UsageError: A setting has another value.
    """
    trained_model = source.config["model"]
    for part in [key.removeprefix("weights.")] if key != "checkpoint" else trained_model:
        trained, configured = _function_settings(trained_model[part]), _function_settings(model[part])
        for name in trained.keys() & configured.keys():
            # Null is a default value that depends on other settings, as for `ffn`.
            if trained[name] != configured[name] and None not in (trained[name], configured[name]):
                difference = Difference(f"model.{part}.{name}", trained[name], configured[name])
                raise UsageError(
                    f"{difference.key}={configured[name]}, but {source.name}, whose weights it starts from, is "
                    f"trained with {trained[name]}: set {override_for(difference, model)}"
                )


def _function_settings(part: object) -> dict[str, object]:
    """Return the settings of a part of a model that determine what it computes with given weights."""
    settings = dict(part) if isinstance(part, Mapping) else {}
    if "config" in settings:  # the language model
        llm_settings = llm.function_fields(llm.read_config(settings.pop("config")))
        settings |= {f"config.{name}": value for name, value in llm_settings.items()}
    return {name: value for name, value in settings.items() if name not in _SETTINGS_WITHOUT_FUNCTION}


def _digest(config: Config, seed: int) -> str:
    """Return a digest of a config that is the same for all seeds.

    The seed is removed from paths as well, because a run starts from the weights of runs with the same seed.
    """
    content = json.dumps({key: value for key, value in config.items() if key not in _NAMING_KEYS}, sort_keys=True)
    content = content.replace(config.get("run_dir", ""), "")
    return hashlib.sha256(content.replace(f"/seed_{seed}", "").encode()).hexdigest()[:8]


def _check_that_arms_differ(jobs: Sequence[Job]) -> None:
    """Check that no two arms are the same run, because it makes no sense to compare them.

    Raises:
        UsageError: Two jobs have the same config and seed, except for the names of the arms.
    """
    jobs_by_content: dict[str, Job] = {}
    for job in jobs:
        settings = {key: value for key, value in job.config.items() if key not in ("arm", "run_dir")}
        content = json.dumps(settings, sort_keys=True).replace(job.config.get("run_dir", ""), "")
        other = jobs_by_content.setdefault(content, job)
        if other is not job:
            new_overrides = [
                override
                for override in job.overrides
                if override not in other.overrides and not override.startswith("arm=")
            ]
            verb = "changes" if len(new_overrides) == 1 else "change"
            reason = "they have the same overrides"
            if new_overrides:
                reason = f"{' and '.join(new_overrides)} {verb} nothing"
            raise UsageError(f"arms {other.key} and {job.key} are the same run: {reason}")


# --- running ------------------------------------------------------------------------------------------------------


def run_jobs(jobs: list[Job], max_parallel: int, threads: int = 1, metric: str | None = None) -> int:
    """Run jobs in parallel and show a live table.

    After a signal that stops a command (`Preemption`), no further job is started, and the running jobs are told to save
    and stop.

    Args:
        jobs: The jobs; each comes after the jobs that it needs.
        max_parallel: Largest number of jobs that run at the same time.
        threads: Number of CPU threads of each run. It does not depend on `max_parallel`, because it affects rounding.
        metric: Validation metric to show in the table; None shows the loss.

    Returns:
        The number of jobs that did not finish, or REQUEUE_STATUS if a job should be started again.
    """
    console = Console()
    for job in jobs:
        job.status = "done" if _is_done(job) else job.status
    n_done = sum(job.status == "done" for job in jobs)
    already_done = f" ({n_done} already done)" if n_done else ""
    threads_each = f"{count(threads, 'thread')} each"
    console.print(f"{count(len(jobs), 'run')}{already_done}, {max_parallel} in parallel, {threads_each}")
    live_table = Live(console=console, refresh_per_second=2, transient=False, auto_refresh=console.is_terminal)
    with Preemption(exits_at_once=False) as preemption, live_table:
        is_forwarded, last_lines = False, time.monotonic()
        while any(
            job.status in ("running", "evaluating") or (job.status == "waiting" and not preemption.received)
            for job in jobs
        ):
            if preemption.received and not is_forwarded:
                is_forwarded = True
                for job in jobs:
                    if job.process is not None and job.is_alive:
                        job.process.send_signal(signal.SIGUSR1)
            changed_jobs = _advance(jobs, 0 if preemption.received else max_parallel, threads)
            if console.is_terminal:
                live_table.update(_make_table(jobs, metric))
            else:  # in a log file, print one line per change instead of the table
                for job in changed_jobs:
                    console.print(f"{job.key}: {job.status}")
                if time.monotonic() - last_lines > 60:  # and where the running jobs are
                    last_lines = time.monotonic()
                    for job in jobs:
                        if job.status == "running" and (progress := files.read_metadata(job.run_dir / "progress.json")):
                            left = format_duration(progress["seconds_left"])
                            console.print(
                                f"{job.key}: step {progress['step']} of {progress['max_steps']}, about {left} left"
                            )
            time.sleep(0.2)
        live_table.update(_make_table(jobs, metric))
    unfinished = [job for job in jobs if job.status != "done"]
    for job in unfinished:
        console.print(f"[red]{job.key} {job.status}[/red]" + (f", see {job.log}:" if job.status == "failed" else ""))
        if job.status == "failed":
            console.print("".join(job.log.read_text(errors="replace").splitlines(keepends=True)[-12:]), markup=False)
    if unfinished and preemption.received:
        console.print(f"stopped by {preemption.received}: the same command resumes the study")
    is_preempted = preemption.received or any(job.status == "stopped" for job in jobs)
    return REQUEUE_STATUS if unfinished and is_preempted else min(len(unfinished), REQUEUE_STATUS - 1)


def _advance(jobs: Sequence[Job], max_parallel: int, threads: int) -> list[Job]:
    """Update the status of jobs whose process has ended, and start waiting jobs; return those whose status changed.

    Args:
        jobs: All jobs.
        max_parallel: Largest number of jobs that run at the same time. 0 means that the study has been preempted. In
            that case, a job that ends without being done gets the status `stopped`.
        threads: Number of CPU threads of each run.
    """
    old_statuses = {job.key: job.status for job in jobs}
    for job in jobs:
        if job.process is not None and (code := job.process.poll()) is not None:
            job.process = None
            remaining = job.evaluate[job.n_evaluations_started :]
            if code == REQUEUE_STATUS or (not max_parallel and (code != 0 or remaining)):
                job.status = "stopped"
            elif code != 0:
                job.status = "failed"
            elif remaining:
                job.status = "evaluating"
                job.n_evaluations_started += 1
                _start(job, ["evaluate", f"checkpoint={job.run_dir}", *remaining[0]], threads)
            else:
                job.status = "done"
                files.write_json(job.run_dir / _DONE_FILE, {"recipe": job.digest, "evaluate": job.evaluate})
            if job.process is None:
                job.seconds = time.time() - job.started
    for job in jobs:
        if job.status == "waiting":
            statuses = [needed.status for needed in job.needs]
            n_running = sum(other.process is not None for other in jobs)
            if any(status in ("failed", "stopped", "blocked") for status in statuses):
                job.status = "blocked"
            elif all(status == "done" for status in statuses) and n_running < max_parallel:
                job.status, job.started = "running", time.time()
                _start(job, ["train", *job.overrides], threads)
    return [job for job in jobs if job.status != old_statuses[job.key]]


def _is_done(job: Job) -> bool:
    """Return whether the run and all its evaluations were finished earlier, with the same config."""
    record = files.read_metadata(job.run_dir / _DONE_FILE)
    if not record or record["recipe"] != job.digest:
        return False
    return all(arguments in record["evaluate"] for arguments in job.evaluate)


def _start(job: Job, arguments: list[str], threads: int) -> None:
    """Start a process of a job.

    Args:
        job: The job.
        arguments: Arguments of `auris`.
        threads: Number of CPU threads of the process.
    """
    job.run_dir.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with job.log.open("ab") as log:
        command = [sys.executable, "-m", "auris", *arguments]
        job.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _make_table(jobs: Sequence[Job], metric: str | None = None) -> Table:
    metric = metric or "val/loss"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", no_wrap=True)  # truncated names might look the same
    for column in ("seed", "status", "step", "loss", metric, "minutes"):
        table.add_column(column, justify="left" if column == "status" else "right")
    for job in jobs:
        progress = files.read_metadata(job.run_dir / "progress.json")
        step = f"{progress['step']}/{progress['max_steps']}" if progress else ""
        values = [progress.get(name, "") for name in ("train/loss", metric)]
        # A value that is not finite is null in the file.
        loss, score = ("nan" if value is None else f"{value:.3f}" if value != "" else "" for value in values)
        seconds = time.time() - job.started if job.process is not None else job.seconds
        minutes = f"{seconds / 60:.1f}" if job.started else ""
        table.add_row(job.name, str(job.seed), job.status, step, loss, score, minutes)
    return table
