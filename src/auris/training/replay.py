"""`auris replay fault=RUN/faults/step_N.json`: the rows of a step that went wrong, one by one.

Each row is read again with the random choices that the step made about it, then goes through the model by itself, with
the weights that the step was taken with, or the nearest that were kept. Packed rows do not see one another, so the row
that is at fault alone was at fault in the step.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table

from auris import config
from auris.data.batches import pack
from auris.data.datamodule import AudioDataModule
from auris.errors import UserError
from auris.model.weights import checkpoint_dir
from auris.training import run as train
from auris.training.faults import Fault


def reproduce(file: Path, *, checkpoint: str | None, accelerator: str, console: Console) -> list[str]:
    """Print what each row of a fault does; returns the ids of those whose loss or gradient is not finite.

    Args:
        file: of a fault, in its run's directory.
        checkpoint: weights to take instead of those that were kept.
        accelerator: as Lightning names them.

    Raises:
        FileNotFoundError, ValueError: the file, the run or the rows that it names are not what they were.
    """
    fault = Fault.load(file)
    run_dir = file.parents[1]
    made = config.load(run_dir / "recipe.yaml")
    console.print(f"step {fault.step}: {fault.reason}", markup=False, highlight=False, soft_wrap=True)
    made["data"] |= {"num_workers": 0, "max_unusable": 1.0}
    module, data = train.build(made)
    data.setup("predict")
    data.examined = _read(fault, data, console)
    snapshot, said = _weights(fault, run_dir, checkpoint)
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    alone = {"accelerator": accelerator, "devices": 1, "num_nodes": 1, "strategy": "auto", "enable_progress_bar": False}
    trainer: L.Trainer = config.build(train.trainer_options(made["trainer"] | alone) | {"_partial_": True})(
        logger=False, callbacks=[_Weights(snapshot)], inference_mode=False, default_root_dir=run_dir
    )
    found = trainer.predict(module, datamodule=data)
    ids = [data.rows[row].id for row, _ in data.examined]
    console.print(_table(ids, found))
    return [name for name, one in zip(ids, found, strict=True) if not _is_finite(one)]


def _read(fault: Fault, data: AudioDataModule, console: Console) -> list[tuple[int, int]]:
    """The entries of a fault whose rows can be read. Each is named before it is: one may end the process."""
    entries = []
    for place in fault.places():
        if place.row >= len(data.rows) or data.rows[place.row].id != place.id:
            raise UserError(f"row {place.row} is not {place.id!r} any more: the manifests of the run have changed")
        console.print(f"reading {place.id}", markup=False, highlight=False, soft_wrap=True)
        entry = (place.row, place.epoch)
        if skipped := pack(data.rows, [entry], data.samples)["skipped"]:
            console.print(f"  left out: {skipped[0][1]}", markup=False, highlight=False, soft_wrap=True)
        else:
            entries.append(entry)
    if not entries:
        raise UserError("no row of the step can be used")
    return entries


class _Weights(L.Callback):
    """Gives the module a checkpoint's weights, if there is one."""

    def __init__(self, snapshot: checkpoint_dir.CheckpointDir | None):
        self.snapshot = snapshot

    def on_predict_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.snapshot is not None:
            checkpoint_dir.restore(self.snapshot, module=module)


def _weights(fault: Fault, run_dir: Path, checkpoint: str | None) -> tuple[checkpoint_dir.CheckpointDir | None, str]:
    """The checkpoint to look at the rows with, None for the initial weights; and what is said of it."""
    if checkpoint is not None:
        found = checkpoint_dir.find(checkpoint)
        return found, f"weights: {found.path}"
    kept = run_dir / fault.weights if fault.weights else None
    if kept is not None and kept.exists():
        return checkpoint_dir.find(kept), f"weights: those of the step, {kept}"
    try:
        last = checkpoint_dir.find(run_dir)
    except FileNotFoundError:
        return None, "weights: the initial ones, as none of the step were kept; checkpoint=PATH takes others"
    return last, f"weights: {last.path}, as none of the step were kept; checkpoint=PATH takes others"


def _is_finite(one: dict[str, Any]) -> bool:
    return math.isfinite(one["loss"]) and math.isfinite(one["grad_norm"])


def _table(ids: list[str], found: list[dict[str, Any]]) -> Table:
    table = Table("row", "loss", "gradient's norm", "first module that is not finite", title_justify="left")
    for name, one in zip(ids, found, strict=True):
        style = None if _is_finite(one) else "red"
        table.add_row(name, f"{one['loss']:.4g}", f"{one['grad_norm']:.4g}", one["first"] or "", style=style)
    return table


def run(made: config.Config) -> int:
    """Run `auris replay`; returns 1 if a row is not finite by itself."""
    train.quiet()
    options = {"checkpoint": made["checkpoint"], "accelerator": made["accelerator"]}
    wrong = reproduce(Path(made["fault"]), **options, console=Console())
    print(f"not finite by itself: {', '.join(wrong)}" if wrong else "every row is finite by itself")
    return 1 if wrong else 0
