"""`auris train`: train one run, or with `ablations=STUDY` all arms of a study.

The same command resumes a stopped run and does nothing for a finished run. A run whose config has changed is refused.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
import warnings
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from rich.console import Console

from auris import config as configs
from auris import files
from auris.config import Config
from auris.data.datamodule import AudioDataModule
from auris.data.manifests import ManifestEntry
from auris.errors import UserError
from auris.model import adapters
from auris.model.audio_lm import AudioLM
from auris.model.weights import checkpoint_dir
from auris.text.tokenizer import Tokenizer
from auris.training import (
    alignment,
    callbacks,
    dry_run,
    encoder_frames,
    faults,
    references,
    sharding,
    studies,
    throughput,
    time_limit,
)
from auris.training.checkpointing import CheckpointCallback
from auris.training.event_files import ResumableTensorBoardLogger
from auris.training.initial_weights import find_initial_weights
from auris.training.lightning_types import trainer_callbacks
from auris.training.module import AudioLMModule
from auris.training.precision import choose_precision
from auris.training.preemption import Preemption, run_lock
from auris.training.provenance import ENVIRONMENT_FILE, EnvironmentReport
from auris.training.strategy import strategy_setting
from auris.training.weight_settings import (
    adopt_settings,
    find_sources,
    load_tokenizer,
    report_chat_format,
)

# Settings that may change between two starts of a run. They determine where and how a run computes, not the result.
_CHANGEABLE_SETTINGS = (
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


def run(config: Config) -> int | float | None:
    """Run `auris train`: all arms of a study if the config has arms, otherwise one run.

    Returns:
        The exit code of a study; the value of `metric` after a run, which a sweeper optimises; None for a dry run, and
        on processes other than the first.
    """
    silence_messages()
    if "arms" in config:
        return studies.run_study(config)
    if HydraConfig.initialized():  # a config that Python code passes is complete
        config = adopt_settings(config, find_sources(config), HydraConfig.get().overrides.task)
    finished = train(config) / "finished.json"
    if config["dry_run"] or not _is_first_process():
        return None
    results, metric = files.read_json(finished), config["metric"]
    if metric not in results:
        names = ", ".join(name for name in results if name.startswith(("val/", "train/")))
        raise UserError(f"metric={metric}: the run has finished, but it has no such metric; expected one of {names}")
    if results[metric] is None:
        raise UserError(f"metric={metric}: its last value is {results['nonfinite'][metric]}")
    return float(results[metric])


def train(config: Config) -> Path:
    """Train one run from its resolved config, or only describe it if `dry_run` is set; return the run directory."""
    run_dir = Path(config["run_dir"])
    if config["dry_run"]:
        module, data = build(config)
        data.setup("fit")
        dry_run.print_report(Console(), module, data, config)
        return run_dir
    with ExitStack() as stack:
        preemption = stack.enter_context(Preemption())
        if _is_first_process():
            stack.enter_context(remove_if_unused(run_dir))
            stack.enter_context(run_lock(run_dir))
        if claim_run_dir(run_dir, config):
            config = limit_steps(config, run_dir, preemption)
            module, data = build(config)
            save_tokenizer(module.tokenizer, run_dir / "tokenizer")
            trainer = build_trainer(config, run_dir, preemption, module.net)
            started = time.time()
            trainer.fit(module, data)
            write_summary(trainer, run_dir, seconds=time.time() - started)
    return run_dir


def _is_first_process() -> bool:
    """Return whether this is the first process of the run. This can be called before there is a trainer."""
    return getattr(rank_zero_only, "rank", 0) == 0  # Lightning sets the attribute when it is imported


# --- the run directory --------------------------------------------------------------------------------------------


@contextmanager
def remove_if_unused(run_dir: Path) -> Generator[None]:
    """Remove a run directory that the block has created, if the block fails before the first step."""
    new_dirs = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        if new_dirs and not any((run_dir / name).exists() for name in ("progress.json", faults.FAULTS_DIR)):
            shutil.rmtree(run_dir, ignore_errors=True)
            with suppress(OSError):  # another run may use a parent by now
                for parent in new_dirs[1:]:
                    parent.rmdir()
        raise


def claim_run_dir(run_dir: Path, config: Config) -> bool:
    """Prepare a directory for a run with the given config; return False if the run is already finished.

    If the directory contains no checkpoint, the config is written into it. Otherwise the config must be the same as the
    config in the directory, except for settings that may change.

    Raises:
        UserError: The directory contains a checkpoint of a run with another config.
    """
    file, checkpoints = run_dir / "recipe.yaml", run_dir / checkpoint_dir.FOLDER
    rank_zero_only(checkpoint_dir.recover)(checkpoints)
    if not checkpoint_dir.list_steps(checkpoints):
        rank_zero_only(files.write_yaml)(file, config)
        return True
    differences = configs.differences(files.read_yaml(file), config)
    changes = [line for line in differences if not line.startswith(_CHANGEABLE_SETTINGS)]
    if changes:
        raise UserError(
            f"{run_dir} contains a run with another config ({'; '.join(changes[:5])}): give this run another name "
            "(arm=NAME, study=NAME or seed=N), or delete the directory"
        )
    if (run_dir / "finished.json").is_file():
        rank_zero_info(f"{run_dir} is already finished")
        return False
    return True


@rank_zero_only
def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Save the tokenizer in the run directory, so that the run can be moved to another machine."""
    if not path.is_dir():  # a resumed run has already saved its tokenizer
        with files.create_directory(path) as draft:
            tokenizer.save(draft)


def write_summary(trainer: L.Trainer, run_dir: Path, *, seconds: float) -> None:
    """Write `finished.json` with the last metrics, the speeds and the counts of faults, and print a summary.

    A metric that is not finite is null in the file, with its value as text in the section `nonfinite`.

    Args:
        trainer: The trainer, after training.
        run_dir: Directory of the run.
        seconds: Duration of training in this session, which is the time since the run was last started.
    """
    if not trainer.is_global_zero:
        return
    summary = {"steps": trainer.global_step, "seconds": round(seconds, 1)}
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    rates = {}
    for callback in trainer_callbacks(trainer):
        if isinstance(callback, throughput.Throughput):
            rates = {f"speed/{name}": rate for name, rate in callback.session_rates().items()}
            rank_zero_info(callback.format_report())
    counts = {f"faults/{kind}": number for kind, number in count_faults(trainer).items()}
    nonfinite = {name: str(value) for name, value in metrics.items() if not math.isfinite(value)}
    content = {**summary, **metrics, **rates, **counts, **({"nonfinite": nonfinite} if nonfinite else {})}
    files.write_json(run_dir / "finished.json", content)
    rank_zero_info(f"finished {run_dir}: {summary['steps']} steps, {summary['seconds']} s in this session")


def count_faults(trainer: L.Trainer) -> dict[str, int]:
    """Return the number of faults of a run by kind of fault."""
    counts: dict[str, int] = {}
    for source in [*trainer_callbacks(trainer), *trainer.loggers]:
        if isinstance(source, callbacks.Faults):
            counts |= source.counts
        elif isinstance(source, CheckpointCallback):
            counts["checkpoints"] = source.n_failed
        elif isinstance(source, ResumableTensorBoardLogger):
            counts["event_files"] = source.n_failed
    return counts


# --- building a run -------------------------------------------------------------------------------------------------


def build(config: Config) -> tuple[AudioLMModule, AudioDataModule]:
    """Build the LightningModule and the data module of a config."""
    data = config["data"]
    for split in ("train", "valid"):
        if not data[split]:
            raise UserError(f"data.{split}=[]: expected at least one file, for example data.{split}=[FILE.jsonl]")
        for entry in data[split]:
            ManifestEntry.parse(entry, f"data.{split}")  # report a wrong path before anything is built
    sources, tokenizer = find_sources(config), load_tokenizer(config)
    report_chat_format(config, sources.get("weights.llm"), tokenizer)
    net = configs.build_net(config, tokenizer)
    initial = find_initial_weights(config, sources, net, tokenizer)
    # This is checked here, before the processes are started.
    if (tensor_parallel := strategy_setting(config["trainer"], "tensor_parallel")) > 1:
        has_adapters = bool({adapters.LORA, adapters.NEW_TOKENS} & set(config["trainable"]))
        sharding.check_tensor_parallel(net, tensor_parallel, has_adapters=has_adapters)
    samples, valid_samples = (
        configs.build_samples(
            config, net, tokenizer, long_audio=data["long_audio"], silent_audio=data["silent_audio"], train=is_train
        )
        for is_train in (True, False)
    )
    objective = configs.build_objective(config, net, tokenizer)
    references.check_augmentation(objective, samples)
    alignment.check_config(objective, config)
    encoder_frames.check_config(net, samples, config)
    module_keys = ("optim", "max_steps", "trainable", "lora", "max_new_tokens", "seed", "compile")
    module = get_class(config["module"])(
        net=net,
        objective=objective,
        tokenizer=tokenizer,
        initial=initial,
        config=config,
        **{key: config[key] for key in module_keys},
    )
    # The data module takes all keys of `data` except those that select rows and describe samples (ROW_KEYS).
    datamodule_settings = {key: value for key, value in data.items() if key not in configs.ROW_KEYS}
    datamodule = configs.build({**datamodule_settings, "_partial_": True})(
        samples=samples, valid_samples=valid_samples, max_steps=config["max_steps"], seed=config["seed"]
    )
    return module, datamodule


def limit_steps(config: Config, run_dir: Path, preemption: Preemption) -> Config:
    """Return the config with fewer steps if `max_minutes` requires it, as a trial of a few steps shows."""
    if config["max_minutes"] is None:
        return config
    # A run without a checkpoint starts again, perhaps with another config, so it is measured again.
    has_checkpoint = bool(checkpoint_dir.list_steps(run_dir / checkpoint_dir.FOLDER))
    max_steps = time_limit.read_steps(run_dir) if has_checkpoint else None
    if max_steps is None:
        trial = {
            **config,
            "max_steps": time_limit.TRIAL_STEPS,
            "optim": {**config["optim"], "warmup_steps": 0},
            "trainer": {**config["trainer"], "limit_val_batches": 0, "val_check_interval": 1.0},
            "callbacks": {"timer": {"_target_": "auris.training.time_limit.StepTimer"}},
            "logger": {},
        }
        module, data = build(trial)
        trainer = build_trainer(trial, run_dir, preemption, module.net)
        trainer.fit(module, data)
        timer = next(item for item in trainer_callbacks(trainer) if isinstance(item, time_limit.StepTimer))
        max_steps = time_limit.choose_steps(
            run_dir,
            timer.seconds,
            max_steps=config["max_steps"],
            warmup_steps=config["optim"]["warmup_steps"],
            minutes=config["max_minutes"],
        )
    trainer_settings = config["trainer"]
    interval = trainer_settings["val_check_interval"]
    if isinstance(interval, int) and interval > max_steps:
        rank_zero_info(f"trainer.val_check_interval={interval} is lowered to the {max_steps} steps of the run")
        trainer_settings = {**trainer_settings, "val_check_interval": max_steps}
    return {**config, "max_steps": max_steps, "trainer": trainer_settings}


def build_trainer(config: Config, run_dir: Path, preemption: Preemption, net: AudioLM) -> L.Trainer:
    """Build the trainer of a config with its callbacks and loggers. It chooses the precision for this net."""
    choice = choose_precision(config["trainer"], net, run_dir / ENVIRONMENT_FILE)
    rank_zero_info(str(choice))
    built_callbacks = build_callbacks(config, preemption)
    for callback in built_callbacks:
        if isinstance(callback, EnvironmentReport):
            callback.precision_reason = choice.reason
    has_bar = any(isinstance(callback, ProgressBar) for callback in built_callbacks)
    options = trainer_options(config["trainer"], choice.precision)
    options |= {"enable_progress_bar": has_bar, "_partial_": True}  # Lightning would add a bar of its own
    return configs.build(options)(
        logger=[configs.build(logger) for logger in (config.get("logger") or {}).values()],
        callbacks=built_callbacks,
        default_root_dir=run_dir,
    )


def build_callbacks(config: Config, preemption: Preemption) -> list[L.Callback]:
    """Return the callbacks of a config. `CheckpointCallback` is last, because it stores the state of all others.

    There is a progress bar only on a terminal and in a notebook. In a file it would be one line without end.
    """
    is_interactive = sys.stdout.isatty() or "ipykernel" in sys.modules
    has_bar = config["trainer"]["enable_progress_bar"] and is_interactive
    built_callbacks = []
    for settings in (config.get("callbacks") or {}).values():
        callback = configs.build(settings)
        if isinstance(callback, partial):  # `CheckpointCallback`, which needs another argument
            callback = callback(preemption=preemption)
        if has_bar or not isinstance(callback, ProgressBar):
            built_callbacks.append(callback)
    return sorted(built_callbacks, key=lambda callback: isinstance(callback, CheckpointCallback))


def trainer_options(trainer: Config, precision: str) -> dict[str, Any]:
    """Return the section `trainer` of a config with this precision, also in the strategy if it has such a setting."""
    strategy = trainer["strategy"]
    if isinstance(strategy, Mapping) and "precision" in strategy:
        strategy = {**strategy, "precision": precision}
    return {**trainer, "precision": precision, "strategy": strategy}


def silence_messages() -> None:
    """Silence messages of Lightning and torch that a user cannot act on."""
    # The messages of auris go through this logger and are shown.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Logged values are already sums over all processes, and frozen parts are in eval mode on purpose.
    warnings.filterwarnings("ignore", message=".*`self.log\\('.*', ..., sync_dist=True\\)`.*")
    warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training.*")
    # Data loaders need no state, because the number of steps determines the position in the data.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
