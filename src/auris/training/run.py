"""`auris train`: one run, or with `ablations=STUDY` all arms of a study.

Running the same name again resumes a stopped run, does nothing for a finished one, and is refused if the recipe has
changed.
"""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import lightning as L
import torch
from hydra.utils import get_class
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from rich.console import Console

from auris import config, files
from auris.config import Config
from auris.data.datamodule import AudioDataModule
from auris.data.manifests import ManifestEntry
from auris.errors import MissingFileError, UserError
from auris.model import adapters
from auris.model.weights import checkpoint_dir, identify
from auris.model.weights.loading import InitialWeights
from auris.text.tokenizer import Tokenizer
from auris.training import callbacks, dry_run, faults, references, sharding, studies, throughput
from auris.training.checkpointing import CheckpointCallback
from auris.training.event_files import EventFiles
from auris.training.module import AudioLMModule
from auris.training.preemption import Preemption, run_lock
from auris.training.strategy import strategy_setting

# Settings that may change between two starts of a run: they say where and how it runs, not what it computes.
_FREE = (
    "dry_run",
    "callbacks",
    "logger",
    "metric",
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


def run(recipe: Config) -> int | float | None:
    """Run `auris train`: the arms of a study if the config has some, or one run.

    Returns:
        The exit code of a study; the value of `metric` after a run, which a sweeper optimises; None for a dry run.
    """
    quiet()
    if "arms" in recipe:
        return studies.run_study(recipe)
    finished = train(recipe) / "finished.json"
    if recipe["dry_run"] or rank_zero_only.rank != 0:
        return None
    results, metric = files.read_json(finished), recipe["metric"]
    if metric not in results:
        names = ", ".join(name for name in results if name.startswith(("val/", "train/")))
        raise UserError(f"metric={metric}: the run has finished, and has {names}")
    return float(results[metric])


def train(recipe: Config) -> Path:
    """Train one run from its resolved config and return its directory; with `dry_run` only report what it would do."""
    run_dir = Path(recipe["run_dir"])
    if recipe["dry_run"]:
        module, data = build(recipe)
        data.setup("fit")
        dry_run.report(Console(), module, data, recipe)
        return run_dir
    with ExitStack() as stack:
        if rank_zero_only.rank == 0:
            stack.enter_context(removed_if_unused(run_dir))
            stack.enter_context(run_lock(run_dir))
        if claim(run_dir, recipe):
            preemption = stack.enter_context(Preemption())
            module, data = build(recipe)
            save_tokenizer(module.tokenizer, run_dir / "tokenizer")
            trainer = build_trainer(recipe, run_dir, preemption)
            started = time.time()
            trainer.fit(module, data)
            finish(trainer, run_dir, seconds=time.time() - started)
    return run_dir


# --- the run directory --------------------------------------------------------------------------------------------


@contextmanager
def removed_if_unused(run_dir: Path) -> Iterator[None]:
    """Remove a run directory that is created in the block if the block fails before the first step."""
    created = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        if created and not any((run_dir / name).exists() for name in ("progress.json", faults.FOLDER)):
            shutil.rmtree(run_dir, ignore_errors=True)
            with suppress(OSError):  # a parent that another run has come to use
                for parent in created[1:]:
                    parent.rmdir()
        raise


def claim(run_dir: Path, recipe: Config) -> bool:
    """Write the recipe into a run directory; return False if its run is finished already.

    A directory without a checkpoint has nothing to lose, and its recipe is replaced.

    Raises:
        UserError: the directory holds a trained run of another recipe.
    """
    file, checkpoints = run_dir / "recipe.yaml", run_dir / checkpoint_dir.FOLDER
    rank_zero_only(checkpoint_dir.recover)(checkpoints)
    if not checkpoint_dir.list_steps(checkpoints):
        rank_zero_only(files.write_yaml)(file, recipe)
        return True
    changed = [line for line in config.differences(files.read_yaml(file), recipe) if not line.startswith(_FREE)]
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


@rank_zero_only
def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Save the tokenizer with the run, so that the run can be moved. A resumed run has it already."""
    if not path.is_dir():
        with files.new_directory(path) as draft:
            tokenizer.save(draft)


def finish(trainer: L.Trainer, run_dir: Path, *, seconds: float) -> None:
    """Write `finished.json` with the last metrics, speeds and counts of faults, and print a summary."""
    if not trainer.is_global_zero:
        return
    summary = {"steps": trainer.global_step, "seconds": round(seconds, 1)}
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    rates = {}
    for speed in (one for one in trainer.callbacks if isinstance(one, throughput.Throughput)):
        rates = {f"speed/{name}": rate for name, rate in speed.session().items()}
        rank_zero_info(speed.report())
    counts = {f"faults/{what}": number for what, number in count_faults(trainer).items()}
    files.write_json(run_dir / "finished.json", {**summary, **metrics, **rates, **counts})
    rank_zero_info(f"finished {run_dir}: {summary['steps']} steps, {summary['seconds']} s in this session")


def count_faults(trainer: L.Trainer) -> dict[str, int]:
    """Count the faults of a run, by kind."""
    counts: dict[str, int] = {}
    for one in [*trainer.callbacks, *trainer.loggers]:
        if isinstance(one, callbacks.Faults):
            counts |= one.counts
        elif isinstance(one, CheckpointCallback):
            counts["checkpoints"] = one.failed
        elif isinstance(one, EventFiles):
            counts["event_files"] = one.failed
    return counts


# --- what a run is made of ----------------------------------------------------------------------------------------


def build(recipe: Config) -> tuple[AudioLMModule, AudioDataModule]:
    """Return the LightningModule and the DataModule of a config."""
    data = recipe["data"]
    for split in ("train", "valid"):
        for entry in data[split]:
            ManifestEntry.parse(entry, f"data.{split}")  # a wrong path is reported before anything is built
    try:
        tokenizer = Tokenizer.load(recipe["tokenizer"])
    except FileNotFoundError as error:
        if recipe["checkpoint"] is None:
            raise
        raise MissingFileError(f"{error}; a run brings its own: tokenizer={recipe['checkpoint']}/tokenizer") from error
    net = config.build_net(recipe, tokenizer)
    if (tensor_parallel := strategy_setting(recipe["trainer"], "tensor_parallel")) > 1:  # before processes are started
        adapted = {adapters.LORA, adapters.NEW_TOKENS} & set(recipe["trainable"])
        sharding.check_split(net, tensor_parallel, adapted=bool(adapted))
    samples, valid_samples = (
        config.build_samples(
            recipe, net, tokenizer, long_audio=data["long_audio"], silent_audio=data["silent_audio"], train=train
        )
        for train in (True, False)
    )
    objective = config.build_objective(recipe, net, tokenizer)
    references.check(objective, samples)
    same = ("optim", "max_steps", "trainable", "lora", "max_new_tokens", "seed", "compile")
    module = get_class(recipe["module"])(
        net=net,
        objective=objective,
        tokenizer=tokenizer,
        initial=initial_weights(recipe, tokenizer),
        recipe=recipe,
        **{key: recipe[key] for key in same},
    )
    own = {key: value for key, value in data.items() if key not in config.ROW_KEYS}
    datamodule = config.build({**own, "_partial_": True})(
        samples=samples, valid_samples=valid_samples, max_steps=recipe["max_steps"], seed=recipe["seed"]
    )
    return module, datamodule


def initial_weights(recipe: Config, tokenizer: Tokenizer) -> list[InitialWeights]:
    """Return the weights to load for `checkpoint` and for each of `weights`, in this order.

    Raises:
        UserError: the weights were trained with another vocabulary, so that their rows mean other tokens.
    """
    by_part = {f"weights.{part}": path for part, path in recipe["weights"].items()}
    initial = []
    for key, path in {"checkpoint": recipe["checkpoint"], **by_part}.items():
        if path is None:
            continue
        found = identify.identify(path)
        part = key.removeprefix("weights.")
        if part in ("checkpoint", "llm") and found.tokenizer not in (None, recipe["tokenizer"]):
            theirs = Tokenizer.load(found.tokenizer, grow=found.model is None or found.kind in ("run", "checkpoint"))
            if theirs.fast.get_vocab() != tokenizer.fast.get_vocab():
                raise UserError(
                    f"{key}={path} has another vocabulary than tokenizer={recipe['tokenizer']}: "
                    f"set tokenizer={found.tokenizer}"
                )
        parts = None if key == "checkpoint" else [part]
        initial.append(
            InitialWeights(source=found.open_tensors(), layout=found.layout, parts=parts, label=f"{key}={path}")
        )
    return initial


def build_trainer(recipe: Config, run_dir: Path, preemption: Preemption) -> L.Trainer:
    """Return the trainer of a config, with its callbacks and its logger."""
    options = trainer_options(recipe["trainer"]) | {"_partial_": True}
    return config.build(options)(
        logger=[config.build(logger) for logger in (recipe.get("logger") or {}).values()],
        callbacks=build_callbacks(recipe, preemption),
        default_root_dir=run_dir,
    )


def build_callbacks(recipe: Config, preemption: Preemption) -> list[L.Callback]:
    """Return the callbacks of a config. Checkpoints come last, as they contain the state of all others."""
    built = []
    for node in (recipe.get("callbacks") or {}).values():
        callback = config.build(node)
        if isinstance(callback, partial):
            callback = callback(preemption=preemption)
        if recipe["trainer"]["enable_progress_bar"] or not isinstance(callback, ProgressBar):
            built.append(callback)
    return sorted(built, key=lambda callback: isinstance(callback, CheckpointCallback))


def trainer_options(trainer: Config) -> Config:
    """Return a config's `trainer` with `precision: auto` resolved, also for a strategy that has a precision itself."""
    precision, strategy = trainer["precision"], trainer["strategy"]
    if precision == "auto":
        is_gpu = trainer["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        precision = "bf16-mixed" if is_gpu else "32-true"
    if isinstance(strategy, Mapping) and "precision" in strategy:
        strategy = {**strategy, "precision": precision}
    return {**trainer, "precision": precision, "strategy": strategy}


def quiet() -> None:
    """Silence messages that a user cannot act on."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Every process logs sums over all processes; frozen parts are in eval mode.
    warnings.filterwarnings("ignore", message=".*`self.log\\('.*', ..., sync_dist=True\\)`.*")
    warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training.*")
    # The position in the data follows from the step: no loader has a state.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
