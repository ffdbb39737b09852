"""`auris replay fault=FILE`: runs the rows of a faulty step through the model, one by one.

Each row is read with the same random choices as in the step, and computed with the weights before the step, or with the
nearest that were saved. Packed rows do not see one another, so that a row which fails by itself is what made the step
fail.
"""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import LambdaCallback
from rich.console import Console
from rich.table import Table

from auris import config
from auris.data.batches import pack
from auris.data.datamodule import AudioDataModule
from auris.errors import UserError
from auris.files import read_yaml
from auris.model.weights import checkpoint_dir, checkpoint_io
from auris.text.console import print_plain
from auris.training import run as train
from auris.training.faults import Fault, RowResult


def reproduce(file: Path, *, checkpoint: str | None, accelerator: str, console: Console) -> list[str]:
    """Print the loss and gradient of each row of a fault; return the ids of rows where they are not finite.

    Args:
        file: record of the fault, in its run's directory.
        checkpoint: weights to use instead of those that were saved.
        accelerator: as Lightning names it.
        console: where to print.

    Raises:
        UserError: the file, the run or the rows that it names have changed.
    """
    fault = Fault.load(file)
    run_dir = file.parents[1]
    made = read_yaml(run_dir / "recipe.yaml")
    print_plain(console, f"step {fault.step}: {fault.reason}")
    made["data"] |= {"num_workers": 0, "max_unusable": 1.0}
    module, data = train.build(made)
    data.setup("predict")
    data.predict_entries = _read(fault, data, console)
    snapshot, description = _weights(fault, run_dir, checkpoint)
    print_plain(console, description)
    restore = LambdaCallback(on_predict_start=lambda _, net: snapshot and checkpoint_io.restore(snapshot, module=net))
    alone = {"accelerator": accelerator, "devices": 1, "num_nodes": 1, "strategy": "auto", "enable_progress_bar": False}
    trainer: L.Trainer = config.build(train.trainer_options(made["trainer"] | alone) | {"_partial_": True})(
        logger=False, callbacks=[restore], inference_mode=False, default_root_dir=run_dir
    )
    results: list[RowResult] = trainer.predict(module, datamodule=data)
    ids = [data.rows[row].id for row, _ in data.predict_entries]
    console.print(_table(ids, results))
    return [name for name, one in zip(ids, results, strict=True) if not one.is_finite]


def _read(fault: Fault, data: AudioDataModule, console: Console) -> list[tuple[int, int]]:
    """Return the entries of a fault whose rows can be read. Each is named first, as reading it may end the process."""
    entries = []
    for place in fault.places():
        if place.row >= len(data.rows) or data.rows[place.row].id != place.id:
            raise UserError(f"row {place.row} is not {place.id!r} any more: the manifests of the run have changed")
        print_plain(console, f"reading {place.id}")
        entry = (place.row, place.epoch)
        if skipped := pack(data.rows, [entry], data.samples)["skipped"]:
            print_plain(console, f"  left out: {skipped[0][1]}")
        else:
            entries.append(entry)
    if not entries:
        raise UserError("no row of the step can be used")
    return entries


def _weights(fault: Fault, run_dir: Path, checkpoint: str | None) -> tuple[checkpoint_dir.CheckpointDir | None, str]:
    """Return the checkpoint to use, None for the initial weights, and its description."""
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


def _table(ids: list[str], results: list[RowResult]) -> Table:
    table = Table("row", "loss", "gradient's norm", "first module that is not finite", title_justify="left")
    for name, one in zip(ids, results, strict=True):
        style = None if one.is_finite else "red"
        table.add_row(name, f"{one.loss:.4g}", f"{one.grad_norm:.4g}", one.first or "", style=style)
    return table


def run(made: config.Config) -> int:
    """Run `auris replay`; returns 1 if a row is not finite by itself."""
    train.quiet()
    options = {"checkpoint": made["checkpoint"], "accelerator": made["accelerator"]}
    wrong = reproduce(Path(made["fault"]), **options, console=Console())
    print(f"not finite by itself: {', '.join(wrong)}" if wrong else "every row is finite by itself")
    return 1 if wrong else 0
