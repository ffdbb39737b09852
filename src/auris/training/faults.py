"""Records of faulty steps: `RUN/faults` names the rows of each, so that `auris replay` can repeat them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from auris import files
from auris.errors import MissingFileError, UserError
from auris.model.weights.checkpoint_dir import step_dir

FOLDER = "faults"  # in the run directory


@dataclass(frozen=True, kw_only=True)
class Place:
    """A row in a step.

    Attributes:
        row: its number among the training rows.
        id: its id.
        epoch: how often its source had been read before.
    """

    row: int
    id: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A step that went wrong.

    Attributes:
        step: its number, from 0.
        reason: what went wrong.
        ranks: the packs of every rank, each a list of places.
        weights: checkpoint of the weights before the step, relative to the run directory; None if there is none.
    """

    step: int
    reason: str
    ranks: Sequence[Sequence[Sequence[Place]]]
    weights: str | None = None

    def places(self) -> list[Place]:
        return [place for packs in self.ranks for pack in packs for place in pack]

    def save(self, run_dir: Path) -> Path:
        path = step_dir(run_dir / FOLDER, self.step).with_suffix(".json")
        files.write_json(path, {**asdict(self), "command": command(path)})
        return path

    @classmethod
    def load(cls, path: Path) -> Fault:
        """Read the record of a fault.

        Raises:
            MissingFileError: there is no such file.
            UserError: it is no record of a fault.
        """
        if not path.is_file():
            raise MissingFileError(f"fault={path}: no such file, expected RUN/{FOLDER}/step_N.json")
        try:
            content = files.read_json(path)
            ranks = [[[Place(**place) for place in pack] for pack in packs] for packs in content["ranks"]]
            return cls(step=content["step"], reason=content["reason"], ranks=ranks, weights=content["weights"])
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"fault={path} is no file of a fault: {type(error).__name__} {error}") from error


class RowResult(NamedTuple):
    """What a row does by itself.

    Attributes:
        loss: its mean loss.
        grad_norm: norm of the gradient of that loss.
        first: name of the first module that returned a number which is not finite, if any.
    """

    loss: float
    grad_norm: float
    first: str | None

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def command(path: Path) -> str:
    """Return the command that repeats the step of a record."""
    return f"auris replay fault={path}"


@contextmanager
def watch(net: nn.Module) -> Iterator[list[str]]:
    """Yield a list that names the net's modules as they return numbers that are not finite, the first one first."""
    seen: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            if not all(torch.isfinite(one).all() for one in outputs if torch.is_tensor(one)):
                seen.append(name)

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in net.named_modules() if name]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
