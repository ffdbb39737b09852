"""`auris train`: one run, or with `ablations=STUDY` all arms of a study.

The same name again resumes a run that was stopped, says so if it is finished, and refuses if the recipe has changed.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import get_class
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from rich.console import Console

from auris import config
from auris.data.datamodule import AudioDataModule
from auris.data.manifests import ManifestEntry
from auris.errors import MissingFileError, UserError
from auris.model import adapters
from auris.model.weights import checkpoint_dir, identify
from auris.model.weights.loading import InitialWeights
from auris.text.tokenizer import Tokenizer
from auris.training import callbacks, dry_run, faults, provenance, references, sharding, studies, throughput
from auris.training.checkpointing import CheckpointCallback
from auris.training.event_files import EventFiles
from auris.training.module import AudioLMModule
from auris.training.preemption import Preemption, run_lock

# Recipe entries that may change between two starts of one run: where and how, not what.
_FREE = (
    "dry_run",
    "strategy",
    "jobs",
    "threads",
    "compile",
    "peak_flops",
    "checkpoint_every",
    "nonfinite",
    "checkpoint_keep",
    "data.num_workers",
    "data.worker_timeout",
    "data.worker_restarts",
    "data.max_unusable",
    "data.cache_dir",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.accelerator",
    "trainer.log_every_n_steps",
)


def train(made: dict[str, Any]) -> Path:
    """Train one run from its resolved recipe; returns its directory. With `dry_run`, only tell what it would do."""
    run_dir = Path(made["run_dir"])
    if made["dry_run"]:
        module, data = build(made)
        data.setup("fit")
        dry_run.report(Console(), module, data, made)
        return run_dir
    is_first = rank_zero_only.rank == 0
    with removed_if_unused(run_dir) if is_first else nullcontext(), run_lock(run_dir) if is_first else nullcontext():
        if claim(run_dir, made):
            _train(made, run_dir)
    return run_dir


@contextmanager
def removed_if_unused(run_dir: Path) -> Iterator[None]:
    """Remove a run directory that is created in the block if the block fails before the first step."""
    created = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        if created and not any((run_dir / name).exists() for name in ("progress.json", faults.FOLDER)):
            shutil.rmtree(run_dir, ignore_errors=True)
            with suppress(OSError):  # another run has come into one of them
                for parent in created[1:]:
                    parent.rmdir()
        raise


def _train(made: dict[str, Any], run_dir: Path) -> None:
    with Preemption() as preemption:
        module, data = build(made)
        keep_tokenizer(module.tokenizer, run_dir / "tokenizer")
        trainer = build_trainer(made, run_dir, preemption)
        started = time.time()
        trainer.fit(module, data)
    if trainer.is_global_zero:
        summary = {"steps": trainer.global_step, "seconds": round(time.time() - started, 1)}
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        measured = next(one for one in trainer.callbacks if isinstance(one, throughput.Throughput))
        rates = {f"speed/{name}": rate for name, rate in measured.session().items()}
        counts = {f"faults/{what}": number for what, number in count_faults(trainer).items()}
        content = {**summary, **metrics, **rates, **counts}
        checkpoint_dir.replace(run_dir / "finished.json", json.dumps(content, indent=1))
        rank_zero_info(measured.report())
        rank_zero_info(f"finished {run_dir}: {summary['steps']} steps, {summary['seconds']} s in this session")


def count_faults(trainer: L.Trainer) -> dict[str, int]:
    """What a run went through, in numbers."""
    counts: dict[str, int] = {}
    for one in [*trainer.callbacks, *trainer.loggers]:
        if isinstance(one, callbacks.Faults):
            counts |= one.counts
        elif isinstance(one, (CheckpointCallback, EventFiles)):
            counts["checkpoints" if isinstance(one, CheckpointCallback) else "event_files"] = one.failed
    return counts


@rank_zero_only
def keep_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Keep it with the run, which can be taken elsewhere then. In one move, and once: a resumed run has it."""
    if not path.is_dir():
        partial = path.with_name("tokenizer.partial")
        tokenizer.save(partial)
        partial.rename(path)


def initial_weights(made: dict[str, Any], tokenizer: Tokenizer) -> list[InitialWeights]:
    """The weights to load for `checkpoint` and for each of `weights`, in this order.

    Raises ValueError where the weights were trained with another vocabulary: their rows would mean other tokens.
    """
    given = {"checkpoint": made["checkpoint"], **{f"weights.{part}": path for part, path in made["weights"].items()}}
    initial = []
    for key, path in given.items():
        if path is None:
            continue
        found = identify.identify(path)
        part = key.removeprefix("weights.")
        if part in ("checkpoint", "llm") and found.tokenizer not in (None, made["tokenizer"]):
            theirs = Tokenizer.load(found.tokenizer, grow=found.model is None or found.kind in ("run", "checkpoint"))
            if theirs.fast.get_vocab() != tokenizer.fast.get_vocab():
                raise UserError(
                    f"{key}={path} has another vocabulary than tokenizer={made['tokenizer']}: "
                    f"set tokenizer={found.tokenizer}"
                )
        parts = None if key == "checkpoint" else [part]
        where = f"{key}={path}"
        initial.append(InitialWeights(source=found.source(), layout=found.layout, parts=parts, where=where))
    return initial


def claim(run_dir: Path, made: dict[str, Any]) -> bool:
    """Write the recipe into a run directory. False if its run is finished already.

    Raises ValueError if the directory holds a trained run of another recipe; one that never got to a checkpoint has
    nothing to lose, and its recipe is replaced.
    """
    file = run_dir / "recipe.yaml"
    rank_zero_only(checkpoint_dir.recover)(run_dir / checkpoint_dir.FOLDER)
    if not checkpoint_dir.steps(run_dir / checkpoint_dir.FOLDER):
        rank_zero_only(config.save)(made, file)
        return True
    found = config.differences(config.load(file), made)
    changed = [line for line in found if not line.startswith(_FREE)]
    if changed:
        shown = "; ".join(changed[:5])
        raise UserError(
            f"{run_dir} holds a run of another recipe ({shown}). Give this one a name of its own (arm=NAME, "
            f"study=NAME or seed=N), or delete the directory"
        )
    if (run_dir / "finished.json").is_file():
        rank_zero_info(f"{run_dir} is finished already")
        return False
    return True


def build(made: dict[str, Any]) -> tuple[AudioLMModule, AudioDataModule]:
    """The LightningModule and the DataModule of a recipe."""
    data = dict(made["data"])
    for split in ("train", "valid"):
        for entry in data[split]:
            ManifestEntry.parse(entry, f"data.{split}")  # a wrong path is reported before anything is built
    try:
        tokenizer = Tokenizer.load(made["tokenizer"])
    except FileNotFoundError as error:
        if made["checkpoint"] is None:
            raise
        raise MissingFileError(f"{error}; a run brings its own: tokenizer={made['checkpoint']}/tokenizer") from error
    net = config.build_net(made, tokenizer)
    if (together := provenance.tensor_parallel(made["trainer"])) > 1:  # said here, before processes are started
        adapted = {adapters.LORA, adapters.NEW_TOKENS} & set(made["trainable"])
        sharding.check_split(net, together, adapted=bool(adapted))
    views = {
        train: config.build_samples(
            made, net, tokenizer, long_audio=data["long_audio"], silent_audio=data["silent_audio"], train=train
        )
        for train in (True, False)
    }
    objective = config.build_objective(made, net, tokenizer)
    references.check(objective, views[True])
    module = get_class(made["module"])(
        net=net,
        objective=objective,
        tokenizer=tokenizer,
        optim=made["optim"],
        max_steps=made["max_steps"],
        trainable=made["trainable"],
        lora=made["lora"],
        initial=initial_weights(made, tokenizer),
        max_new_tokens=made["max_new_tokens"],
        seed=made["seed"],
        compile=made["compile"],
        recipe=made,
    )
    keys = (
        "train",
        "valid",
        "rows_per_step",
        "token_budget",
        "packs_per_step",
        "temperature",
        "max_unusable",
        "cache_dir",
    )
    workers = ("num_workers", "worker_timeout", "worker_restarts")
    datamodule = AudioDataModule(
        samples=views[True],
        valid_samples=views[False],
        max_steps=made["max_steps"],
        seed=made["seed"],
        **{key: data[key] for key in keys + workers},
    )
    return module, datamodule


def build_trainer(made: dict[str, Any], run_dir: Path, preemption: Preemption | None = None) -> L.Trainer:
    found = [
        throughput.Throughput(made["peak_flops"]),
        callbacks.TaskLosses(),
        callbacks.Examples(),
        callbacks.UnusableRows(run_dir, made["data"]["max_unusable"]),
        callbacks.Faults(run_dir, made["nonfinite"]),
        callbacks.ProgressFile(run_dir),
        provenance.Announcement(run_dir),
        CheckpointCallback(  # after those that count
            run_dir / checkpoint_dir.FOLDER,
            every=made["checkpoint_every"],
            keep=made["checkpoint_keep"],
            preemption=preemption or Preemption(),
        ),
    ]
    if made["trainer"]["enable_progress_bar"]:
        found.append(TQDMProgressBar(refresh_rate=10))
    options = trainer_options(made["trainer"]) | {"_partial_": True}
    return config.build(options)(logger=EventFiles(run_dir), callbacks=found, default_root_dir=run_dir)


def trainer_options(made: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's `trainer` with its precision settled, for a strategy that computes in it by itself as well."""
    precision = made["precision"]
    if precision == "auto":
        is_gpu = made["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        precision = "bf16-mixed" if is_gpu else "32-true"
    strategy = made["strategy"]
    if isinstance(strategy, Mapping) and "precision" in strategy:
        strategy = {**strategy, "precision": precision}
    return {**made, "precision": precision, "strategy": strategy}


def quiet() -> None:
    """Only what a user can act on."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Every process logs what was summed over all of them; frozen parts are in eval mode.
    warnings.filterwarnings("ignore", message=".*`self.log\\('.*', ..., sync_dist=True\\)`.*")
    warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training.*")
    # A position in the plan is arithmetic: no loader holds a state.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")


def run(made: dict[str, Any]) -> int | None:
    """Run `auris train`: the arms of a study if the config has some, or one run."""
    quiet()
    if "arms" in made:
        return studies.run_study(made)
    train(made)
    return None
