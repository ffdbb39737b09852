"""Records of faulty steps in `RUN/faults`. A record lists the rows of a step, which `auris replay` can then repeat."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from auris import files
from auris.errors import MissingFileError, UserError
from auris.model.weights.checkpoint_dir import step_dir

FAULTS_DIR = "faults"  # directory of the records, in the run directory


@dataclass(frozen=True, kw_only=True)
class RowPosition:
    """Position of a row in the training data.

    Attributes:
        row: Number of the row among the training rows.
        id: The row's id.
        epoch: Number of times that the row's source had been read before. It seeds the row's random choices.
    """

    row: int
    id: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Record of a step that failed.

    Attributes:
        step: Number of the step, from 0.
        reason: Description of the failure.
        ranks: The packs of every rank; each pack is a list of rows.
        weights: Path of a checkpoint of the weights before the step, relative to the run directory; None if they were
            not saved.
    """

    step: int
    reason: str
    ranks: Sequence[Sequence[Sequence[RowPosition]]]
    weights: str | None = None

    def rows(self) -> list[RowPosition]:
        """Return the rows of all packs and ranks."""
        return [row for packs in self.ranks for pack in packs for row in pack]

    def save(self, run_dir: Path) -> Path:
        """Write the record to `RUN/faults/step_N.json` and return its path."""
        path = step_dir(run_dir / FAULTS_DIR, self.step).with_suffix(".json")
        files.write_json(path, {**asdict(self), "command": replay_command(path)})
        return path

    @classmethod
    def load(cls, path: Path) -> Fault:
        """Read the record of a fault.

        Raises:
            MissingFileError: The file does not exist.
            UserError: The file is not a record of a fault.
        """
        if not path.is_file():
            raise MissingFileError(f"fault={path}: no such file, expected RUN/{FAULTS_DIR}/step_N.json")
        try:
            content = files.read_json(path)
            ranks = [[[RowPosition(**row) for row in pack] for pack in packs] for packs in content["ranks"]]
            return cls(step=content["step"], reason=content["reason"], ranks=ranks, weights=content["weights"])
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"fault={path} is not a record of a fault: {type(error).__name__} {error}") from error


class RowResult(NamedTuple):
    """Result of running a single row through the model.

    Attributes:
        loss: Mean loss of the row.
        grad_norm: Norm of the gradient of that loss.
        first_nonfinite: Name of the first module whose output was not finite; None if all outputs were finite.
    """

    loss: float
    grad_norm: float
    first_nonfinite: str | None

    @property
    def is_finite(self) -> bool:
        """Whether both loss and gradient are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def replay_command(path: Path) -> str:
    """Return the command that repeats a faulty step.

    Args:
        path: Path of the step's record.
    """
    return f"auris replay fault={path}"


@contextmanager
def watch_nonfinite(net: nn.Module) -> Generator[list[str]]:
    """Yield a list that collects the names of the net's modules whose output is not finite, in order of execution."""
    nonfinite: list[str] = []

    def make_hook(name: str) -> Callable[..., None]:
        def check(module: nn.Module, args: Any, output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            if not all(torch.isfinite(tensor).all() for tensor in outputs if torch.is_tensor(tensor)):
                nonfinite.append(name)

        return check

    handles = [module.register_forward_hook(make_hook(name)) for name, module in net.named_modules() if name]
    try:
        yield nonfinite
    finally:
        for handle in handles:
            handle.remove()
