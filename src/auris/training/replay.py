"""`auris replay fault=FILE`: run the rows of a faulty step through the model, one at a time.

Each row is read with the same random choices as in the step. Its loss and gradient are computed with the weights before
the step or, if these were not saved, with the latest saved weights. The rows of a pack do not attend to each other, so
a row whose loss or gradient is not finite on its own has made the step fail.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import lightning as L
from lightning.pytorch.callbacks import LambdaCallback
from rich.console import Console
from rich.table import Table

from auris import config as configs
from auris.config import Config
from auris.data.batches import build_pack
from auris.data.datamodule import AudioDataModule
from auris.errors import UserError, shorten
from auris.files import read_yaml
from auris.model.weights import checkpoint_dir, checkpoint_io
from auris.text.console import print_plain
from auris.training import run as train
from auris.training.faults import Fault, RowResult
from auris.training.precision import choose_precision
from auris.training.provenance import ENVIRONMENT_FILE


def replay(file: Path, *, checkpoint: str | None, accelerator: str, console: Console) -> list[str]:
    """Print the loss and gradient of each row of a fault.

    Args:
        file: Record of the fault in `RUN/faults`.
        checkpoint: Path of the checkpoint whose weights are used; None uses the weights before the step.
        accelerator: Accelerator as Lightning names it.
        console: Console to print on.

    Returns:
        Ids of the rows whose loss or gradient is not finite.

    Raises:
        UserError: The file is not a record of a fault, the manifests of the run have changed, or no row of the step can
            be used.
    """
    fault = Fault.load(file)
    run_dir = file.parents[1]
    config = read_yaml(run_dir / "recipe.yaml")
    print_plain(console, f"step {fault.step}: {fault.reason}")
    config["data"] |= {"num_workers": 0, "max_unusable": 1.0}
    module, data = train.build(config)
    data.setup("predict")
    data.predict_entries = _find_readable_rows(fault, data, console)
    weights, description = _find_weights(fault, run_dir, checkpoint)
    print_plain(console, description)
    restore = LambdaCallback(
        on_predict_start=lambda _, pl_module: weights and checkpoint_io.restore(weights, module=pl_module)
    )
    overrides = {
        "accelerator": accelerator,
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "enable_progress_bar": False,
    }
    settings = config["trainer"] | overrides
    precision = choose_precision(settings, module.net, run_dir / ENVIRONMENT_FILE).precision
    options = {**train.trainer_options(settings, precision), "_partial_": True}
    trainer: L.Trainer = configs.build(options)(
        logger=False, callbacks=[restore], inference_mode=False, default_root_dir=run_dir
    )
    # `predict` returns what `AudioLMModule.predict_step` returned for each batch.
    results = cast("list[RowResult]", trainer.predict(module, datamodule=data))
    ids = [data.rows[row].id for row, _ in data.predict_entries]
    console.print(_make_table(ids, results))
    return [row_id for row_id, result in zip(ids, results, strict=True) if not result.is_finite]


def _find_readable_rows(fault: Fault, data: AudioDataModule, console: Console) -> list[tuple[int, int]]:
    """Return (row number, epoch) of the rows that can be read.

    The id of each row is printed before the row is read, because reading may end the process.
    """
    entries = []
    for position in fault.rows():
        if position.row >= len(data.rows) or data.rows[position.row].id != position.id:
            raise UserError(
                f"row {position.row} is no longer {shorten(position.id)}: the manifests of the run have changed"
            )
        print_plain(console, f"reading {position.id}")
        entry = (position.row, position.epoch)
        if skipped := build_pack(data.rows, [entry], data.samples)["skipped"]:
            print_plain(console, f"  skipped: {skipped[0][1]}")
        else:
            entries.append(entry)
    if not entries:
        raise UserError("no row of the step can be used")
    return entries


def _find_weights(
    fault: Fault, run_dir: Path, checkpoint: str | None
) -> tuple[checkpoint_dir.CheckpointDir | None, str]:
    """Return the checkpoint whose weights are used, or None for the initial weights, and a description of them."""
    if checkpoint is not None:
        chosen = checkpoint_dir.find(checkpoint)
        return chosen, f"weights: {chosen.path}"
    before_step = run_dir / fault.weights if fault.weights else None
    if before_step is not None and before_step.exists():
        return checkpoint_dir.find(before_step), f"weights before the step: {before_step}"
    reason = "the weights before the step were not saved; checkpoint=PATH selects other weights"
    try:
        newest = checkpoint_dir.find(run_dir)
    except FileNotFoundError:
        return None, f"weights: the initial weights of the run ({reason})"
    return newest, f"weights: {newest.path} ({reason})"


def _make_table(ids: list[str], results: list[RowResult]) -> Table:
    table = Table("row", "loss", "gradient norm", "first module with non-finite output", title_justify="left")
    for row_id, result in zip(ids, results, strict=True):
        style = None if result.is_finite else "red"
        cells = (row_id, f"{result.loss:.4g}", f"{result.grad_norm:.4g}", result.first_nonfinite or "")
        table.add_row(*cells, style=style)
    return table


def run(config: Config) -> int:
    """Run `auris replay`; return 1 if there is a row whose loss or gradient is not finite, otherwise 0."""
    train.silence_messages()
    options = {"checkpoint": config["checkpoint"], "accelerator": config["accelerator"]}
    nonfinite = replay(Path(config["fault"]), **options, console=Console())
    if nonfinite:
        print(f"rows whose loss or gradient is not finite: {', '.join(nonfinite)}")
    else:
        print("the loss and the gradient of every row on its own are finite")
    return 1 if nonfinite else 0
