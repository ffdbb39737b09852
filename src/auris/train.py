"""`python -m auris.train`: one run, or with `ablations=STUDY` all arms of a study.

The same name again resumes a run that was stopped, says so if it is finished, and refuses if the recipe has changed.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from hydra.utils import get_class
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from omegaconf import DictConfig
from rich.console import Console

import auris
from auris import callbacks, checkpoint, doctor, recipe, references, studies
from auris.data.datamodule import AudioDataModule
from auris.data.rows import entries
from auris.module import AudioLMModule
from auris.tokenizer import Tokenizer

# Recipe entries that may change between two starts of one run: where and how, not what.
_FREE = (
    "dry_run",
    "jobs",
    "checkpoint_every",
    "data.num_workers",
    "data.cache_dir",
    "trainer.devices",
    "trainer.accelerator",
    "trainer.log_every_n_steps",
)

_PACKAGES = ("torch", "lightning", "transformers", "torchaudio", "hydra-core", "numpy")


def train(made: dict[str, Any]) -> Path:
    """Train one run from its resolved recipe; returns its directory. With `dry_run`, only tell what it would do."""
    run_dir = Path(made["run_dir"])
    if made["dry_run"]:
        rehearse(made)
        return run_dir
    if not claim(run_dir, made):
        return run_dir
    module, data = build(made)
    rank_zero_only(module.tokenizer.save)(run_dir / "tokenizer")  # a run can be taken elsewhere
    trainer = build_trainer(made, run_dir)
    resume = run_dir / "checkpoints" / "last.ckpt"
    started = time.time()
    trainer.fit(module, data, ckpt_path=str(resume) if resume.is_file() else None, weights_only=True)
    if trainer.is_global_zero:
        summary = {"steps": trainer.global_step, "seconds": round(time.time() - started, 1)}
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        (run_dir / "finished.json").write_text(json.dumps({**summary, **metrics}, indent=1))
        rank_zero_info(f"finished {run_dir}: {summary['steps']} steps, {summary['seconds']} s in this session")
    return run_dir


def rehearse(made: dict[str, Any]) -> None:
    """Print the run's parameters, the memory that it needs and its first batch; nothing is written but lengths."""
    module, data = build(made)
    data.setup("fit")
    first = data.first_step()
    live = made["objective"].get("reference") == "live"
    stage = doctor.Stage(name="this run", trainable=tuple(made["trainable"]), reference=live)
    doctor.report(
        Console(),
        module.net,
        token_budget=made["data"]["token_budget"],
        stages=[stage],
        packs=first,
        tokenizer=module.tokenizer,
    )


def initial_weights(made: dict[str, Any], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Arguments of `weights.load` for `checkpoint` and for each of `weights`, in this order.

    Raises ValueError where the weights were trained with another vocabulary: their rows would mean other tokens.
    """
    given = {"checkpoint": made["checkpoint"], **{f"weights.{part}": path for part, path in made["weights"].items()}}
    initial = []
    for key, path in given.items():
        if path is None:
            continue
        found = checkpoint.identify(path)
        part = key.removeprefix("weights.")
        if part in ("checkpoint", "llm") and found.tokenizer not in (None, made["tokenizer"]):
            theirs = Tokenizer.load(found.tokenizer, grow=found.model is None or found.kind in ("run", "file"))
            if theirs.fast.get_vocab() != tokenizer.fast.get_vocab():
                raise ValueError(
                    f"{key}={path} has another vocabulary than tokenizer={made['tokenizer']}: "
                    f"set tokenizer={found.tokenizer}"
                )
        parts = None if key == "checkpoint" else [part]
        initial.append({"source": found.source(), "layout": found.layout, "parts": parts, "where": f"{key}={path}"})
    return initial


def claim(run_dir: Path, made: dict[str, Any]) -> bool:
    """Write the recipe into a run directory. False if its run is finished already.

    Raises ValueError if the directory holds a trained run of another recipe; one that never got to a checkpoint has
    nothing to lose, and its recipe is replaced.
    """
    file = run_dir / "recipe.yaml"
    if not (run_dir / "checkpoints" / "last.ckpt").is_file():
        recipe.save(made, file)
        (run_dir / "versions.json").write_text(json.dumps(provenance(), indent=1))
        return True
    changed = [line for line in recipe.differences(recipe.load(file), made) if not line.startswith(_FREE)]
    if changed:
        shown = "; ".join(changed[:5])
        raise ValueError(
            f"{run_dir} holds a run of another recipe ({shown}). Give this one a name of its own (arm=NAME, "
            f"study=NAME or seed=N), or delete the directory"
        )
    if (run_dir / "finished.json").is_file():
        rank_zero_info(f"{run_dir} is finished already")
        return False
    return True


def provenance() -> dict[str, str]:
    """Package versions, and the commit of the working directory if it is a checkout."""
    commit = ""
    if shutil.which("git"):
        command = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or "unknown",
        "auris": auris.__version__,
        **{name: version(name) for name in _PACKAGES},
    }


def build(made: dict[str, Any]) -> tuple[AudioLMModule, AudioDataModule]:
    """The LightningModule and the DataModule of a recipe."""
    data = dict(made["data"])
    for split in ("train", "valid"):
        entries(data[split], key=f"data.{split}")  # a wrong path is said before anything is built
    try:
        tokenizer = Tokenizer.load(made["tokenizer"])
    except FileNotFoundError as error:
        if made["checkpoint"] is None:
            raise
        raise FileNotFoundError(f"{error}; a run brings its own: tokenizer={made['checkpoint']}/tokenizer") from error
    net = recipe.build_net(made, tokenizer)
    views = {
        train: recipe.build_samples(made, net, tokenizer, long_audio=data["long_audio"], train=train)
        for train in (True, False)
    }
    objective = recipe.build_objective(made, net, tokenizer)
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
        recipe=made,
    )
    keys = ("train", "valid", "rows_per_step", "token_budget", "packs_per_step", "num_workers", "cache_dir")
    datamodule = AudioDataModule(
        samples=views[True],
        valid_samples=views[False],
        max_steps=made["max_steps"],
        seed=made["seed"],
        **{key: data[key] for key in keys},
    )
    return module, datamodule


def build_trainer(made: dict[str, Any], run_dir: Path) -> L.Trainer:
    checkpoints = run_dir / "checkpoints"
    best = {"filename": "best", "monitor": "val/loss", "save_top_k": 1, "enable_version_counter": False}
    found = [
        ModelCheckpoint(dirpath=checkpoints, **best),
        callbacks.Throughput(),
        callbacks.UnusableRows(run_dir),
        callbacks.ProgressFile(run_dir),
        callbacks.LastCheckpoint(checkpoints / "last.ckpt", made["checkpoint_every"]),  # after those that count
    ]
    if made["trainer"]["enable_progress_bar"]:
        found.append(TQDMProgressBar(refresh_rate=10))
    logger = TensorBoardLogger(run_dir, name="", version="")
    return recipe.build(made["trainer"] | {"_partial_": True})(logger=logger, callbacks=found, default_root_dir=run_dir)


def quiet() -> None:
    """Only what a user can act on."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")


def main() -> None:
    sys.argv[1:] = recipe.quote_arguments(sys.argv[1:])
    run()


@hydra.main(config_path=str(recipe.CONFIGS), config_name="train", version_base="1.3")
def run(cfg: DictConfig) -> None:
    quiet()
    try:
        if "arms" in cfg:
            sys.exit(studies.main(cfg))
        train(recipe.resolve(cfg))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
