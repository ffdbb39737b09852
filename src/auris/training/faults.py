"""What stops a run, and the file that names the rows of a step which went wrong.

Such a file is what `auris replay` starts from: the same rows with the same random choices.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from auris.errors import MissingFileError, UserError

FOLDER = "faults"  # in the run directory


@dataclass(frozen=True, kw_only=True)
class Place:
    """A row in a step: its number among the training rows, its id, and how often its source had been gone through."""

    row: int
    id: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A step that went wrong.

    Args:
        step: its number, from 0.
        reason: what was seen.
        ranks: the packs of every rank, each a list of places.
        weights: checkpoint of the weights that the step was taken with, in the run directory; None: not kept.
    """

    step: int
    reason: str
    ranks: Sequence[Sequence[Sequence[Place]]]
    weights: str | None = None

    def places(self) -> list[Place]:
        return [place for packs in self.ranks for pack in packs for place in pack]

    def save(self, run_dir: Path) -> Path:
        path = run_dir / FOLDER / f"{step_name(self.step)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp")
        content = {**asdict(self), "command": command(path)}
        partial.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        partial.replace(path)
        return path

    @classmethod
    def load(cls, path: Path) -> Fault:
        """Raises FileNotFoundError, or ValueError for a file that is none of ours."""
        if not path.is_file():
            raise MissingFileError(f"fault={path}: no such file, expected RUN/{FOLDER}/step_N.json")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            ranks = [[[Place(**place) for place in pack] for pack in packs] for packs in content["ranks"]]
            return cls(step=content["step"], reason=content["reason"], ranks=ranks, weights=content["weights"])
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"fault={path} is no file of a fault: {type(error).__name__} {error}") from error


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def command(path: Path) -> str:
    """What reproduces the step of a fault's file."""
    return f"auris replay fault={path}"


@contextmanager
def watch(net: nn.Module) -> Iterator[list[str]]:
    """Within it, the names of a net's modules that put out a number which is not finite, the first one first."""
    seen: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            if not all(torch.isfinite(tensor).all() for tensor in _tensors(output)):
                seen.append(name)

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in net.named_modules() if name]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    """Numbers with a fraction in what a module returns: a tensor, or tensors in tuples and dicts."""
    if torch.is_tensor(output):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (tuple, list, Mapping)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)
