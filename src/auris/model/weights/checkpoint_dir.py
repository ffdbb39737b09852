"""Checkpoints of a run on disk. The format does not depend on the parallel strategy that writes or reads it.

A checkpoint is a directory that receives its final name when it is complete. Every process writes its own pieces of the
tensors, and the manifest records the position of each piece in the full tensor. Any number of processes can read a
checkpoint, and each process reads only the slices that it needs. Tensors are stored as safetensors and everything else
as JSON, so that reading a checkpoint never executes code.

    RUN/checkpoints/step_00000200/manifest.json             written last: size and checksum of each file, all pieces
                                  trainer.json              config, step, schedules, the best checkpoint
                                  weights-00000-of-00002.safetensors
                                  optimizer-00000-of-00002.safetensors

`checkpoint_io` writes checkpoints and restores modules from them. Functions marked as collective must be called by all
processes of the group; either all of them return or all of them raise an error.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from auris.errors import MissingFileError, UserError
from auris.files import file_digest, read_json
from auris.model.distributed import gather, world_and_rank
from auris.model.weights.tensors import DTYPES, Header, TensorSource

FORMAT = 1
KINDS = ("weights", "optimizer")  # kinds of tensors; a model is loaded from the weights only
FOLDER = "checkpoints"  # in a run directory
MANIFEST, TRAINER = "manifest.json", "trainer.json"
PARTIAL, REMOVED = "partial-", "removed-"  # name prefixes of directories that are being written or deleted

_STEP = re.compile(r"step_(\d{8,})")
_DAMAGED = "damaged-"  # name prefix of checkpoints from which a run could not be resumed

State = Mapping[str, Any]
"""The content of trainer.json: everything in a checkpoint that is not a tensor."""


class DamagedError(UserError):
    """A checkpoint is incomplete, or differs from what was written."""


class StoredFile(NamedTuple):
    """The size and the SHA-256 checksum that a file had when it was written."""

    bytes: int
    sha256: str


class Piece(NamedTuple):
    """A stored part of a tensor: its file, its offset in the full tensor, and its shape."""

    file: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor(Header):
    """A tensor in a checkpoint: shape and dtype of the full tensor, and its pieces."""

    pieces: tuple[Piece, ...]


class CheckpointDir:
    """An open checkpoint. Its manifest has been read and verified; tensors are read on demand.

    Raises:
        DamagedError: the manifest is missing or has changed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.step, self._files, self._stored = _read_manifest(self.path)

    @property
    def state(self) -> State:
        """Return everything that is not a tensor: the state that was saved, `step` and the optimizer's `groups`."""
        return read_json(self.path / TRAINER)

    def verify(self, kinds: Collection[str] = KINDS, *, world: int = 1, rank: int = 0) -> None:
        """Compare trainer.json and the files of these kinds with the manifest.

        The sizes of all files are compared on every rank. The files are divided among `world` ranks, and this rank
        compares the checksums of its share.

        Raises:
            DamagedError: a file differs from what was written.
        """
        names = [name for name in sorted(self._files) if name == TRAINER or name.partition("-")[0] in kinds]
        for name in names:
            size, expected = file_size(self.path / name), self._files[name].bytes
            if size != expected:
                raise DamagedError(f"{self.path / name} is damaged: it has {size:,} bytes, expected {expected:,}")
        for name in names[rank::world]:
            try:
                checksum = file_digest(self.path / name)
            except OSError as error:
                raise DamagedError(f"{self.path / name} cannot be read ({error})") from error
            if checksum != self._files[name].sha256:
                raise DamagedError(f"{self.path / name} is damaged: its checksum differs from the manifest")

    def tensors(self, kind: str = "weights", prefix: str = "") -> CheckpointTensors:
        """Return the tensors of a kind whose names begin with `prefix`, with the prefix removed from their names."""
        return CheckpointTensors(self.path, self._stored[kind], prefix)


class CheckpointTensors(TensorSource):
    """Tensors of one kind in a checkpoint, each assembled from its pieces.

    Args:
        folder: directory of the checkpoint.
        stored: descriptions of the tensors by name.
        prefix: only tensors whose names begin with this prefix are available. It is removed from their names.
    """

    def __init__(self, folder: Path, stored: Mapping[str, StoredTensor], prefix: str) -> None:
        selected = {name.removeprefix(prefix): stored[name] for name in stored if name.startswith(prefix)}
        super().__init__(selected)
        self._stored = selected
        self._folder, self._prefix = folder, prefix
        self._open: dict[str, safe_open] = {}

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """Return a tensor or a part of it; a part that is exactly one piece is not copied."""
        stored = self._stored[name]
        index = (*(index or ()), *[slice(None)] * (len(stored.shape) - len(index or ())))
        ranges = [part.indices(size)[:2] for part, size in zip(index, stored.shape, strict=True)]
        starts = tuple(start for start, _ in ranges)
        shape = tuple(max(0, stop - start) for start, stop in ranges)
        for piece in stored.pieces:
            if piece.shape == shape and tuple(piece.offset) == starts:
                return self._handle(piece.file).get_tensor(self._prefix + name)
        out = torch.empty(shape, dtype=stored.dtype)
        for piece in stored.pieces:
            overlap = [
                (max(start, offset), min(stop, offset + size))
                for (start, stop), offset, size in zip(ranges, piece.offset, piece.shape, strict=True)
            ]
            if all(first < end for first, end in overlap):
                stored_part = self._handle(piece.file).get_slice(self._prefix + name)
                out[_shift(overlap, starts)] = stored_part[_shift(overlap, piece.offset)]
        return out

    def read_all(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {name: self.read(name) for name in self._stored}

    def _handle(self, file: str) -> safe_open:
        if file not in self._open:
            try:
                self._open[file] = safe_open(self._folder / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise DamagedError(f"{self._folder / file} cannot be read ({error})") from error
        return self._open[file]


def _shift(ranges: Sequence[tuple[int, int]], offset: Sequence[int]) -> tuple[slice, ...]:
    """Return ranges of the full tensor as slices of a part of it that begins at `offset`."""
    return tuple(slice(start - first, stop - first) for (start, stop), first in zip(ranges, offset, strict=True))


def _read_manifest(path: Path) -> tuple[int, dict[str, StoredFile], dict[str, dict[str, StoredTensor]]]:
    """Return the step, the files by name, and the tensors of each kind by name."""
    file = path / MANIFEST
    try:
        sealed = read_json(file)
        content = sealed["content"]
        is_intact = sealed["sha256"] == content_digest(content)
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is not a complete checkpoint: it has no {MANIFEST}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{file} cannot be read ({' '.join(str(error).split())})") from error
    if not is_intact:
        raise DamagedError(f"{file} is damaged: its checksum is wrong")
    if content.get("format") != FORMAT:
        raise DamagedError(
            f"{file} has format {content.get('format')}, but this version of auris reads format {FORMAT}"
        )
    tensors = {
        kind: {
            name: StoredTensor(
                tuple(shape),
                DTYPES[code],
                tuple(Piece(piece_file, tuple(offset), tuple(size)) for piece_file, offset, size in pieces),
            )
            for name, (shape, code, pieces) in entries.items()
        }
        for kind, entries in content["tensors"].items()
    }
    return content["step"], {name: StoredFile(**entry) for name, entry in content["files"].items()}, tensors


def content_digest(content: object) -> str:
    """Return the checksum of a manifest's content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_size(file: Path) -> int:
    """Return a file's size in bytes, 0 if it does not exist."""
    return file.stat().st_size if file.exists() else 0


# --- the checkpoints of a run -------------------------------------------------------------------------------------


def is_checkpoint(path: str | Path) -> bool:
    """Return whether a path looks like a single checkpoint, whether it is complete or not."""
    path = Path(path)
    return path.is_dir() and bool((path / MANIFEST).is_file() or _STEP.fullmatch(path.resolve().name))


def step_dir(folder: str | Path, step: int) -> Path:
    """Return the directory of a step's checkpoint."""
    return Path(folder) / f"step_{step:08d}"


def list_steps(folder: str | Path) -> list[int]:
    """Return the steps of all checkpoints in a folder, newest first, including damaged ones."""
    names = [path.name for path in Path(folder).iterdir()] if Path(folder).is_dir() else []
    return sorted((int(match[1]) for match in map(_STEP.fullmatch, names) if match), reverse=True)


def find_newest(
    folder: str | Path, kinds: Collection[str] = KINDS, *, warn: Callable[[str], object] = warnings.warn
) -> CheckpointDir | None:
    """Return the newest intact checkpoint in a folder; None if there are no checkpoints. Collective.

    Args:
        folder: `RUN/checkpoints`.
        kinds: kinds of tensors whose files are verified. Each rank verifies a share of the files.
        warn: called with a message for each damaged checkpoint.

    Raises:
        UserError: all checkpoints are damaged.
    """
    world, rank = world_and_rank()
    available = gather(list_steps(folder))[0]
    for step in available:
        error, checkpoint = "", None
        try:
            checkpoint = CheckpointDir(step_dir(folder, step))
            checkpoint.verify(kinds, world=world, rank=rank)
        except DamagedError as damage:
            error = str(damage)
        errors = list(filter(None, gather(error)))
        if not errors:
            return checkpoint
        warn(f"{errors[0]}; trying the checkpoint before step {step}")
    if available:
        raise UserError(
            f"every checkpoint in {folder} is damaged (number: {len(available)}): delete this folder to restart the run"
        )
    return None


def find_best(folder: str | Path) -> CheckpointDir | None:
    """Return the best checkpoint in a folder; None if there is none. Collective.

    The newest intact checkpoint records which checkpoint is the best.

    Raises:
        DamagedError: the best checkpoint is damaged.
        UserError: all checkpoints are damaged.
    """
    last = find_newest(folder, ())
    best = last.state.get("best") if last else None
    return CheckpointDir(step_dir(folder, best["step"])) if best else None


def find(path: str | Path, which: str = "last", kinds: Collection[str] = ("weights",)) -> CheckpointDir:
    """Return the checkpoint at a path, after verifying it.

    Args:
        path: a checkpoint or a run directory.
        which: the checkpoint to use if the path is a run directory, "last" or "best".
        kinds: kinds of tensors whose files are verified.

    Raises:
        MissingFileError: there is no checkpoint.
        UserError: `which` is neither last nor best, or the checkpoint is damaged.
    """
    path = Path(path)
    if which not in ("last", "best"):
        raise UserError(f"which={which}: expected last or best")
    checkpoint: CheckpointDir | None
    if is_checkpoint(path):
        checkpoint = CheckpointDir(path)
        checkpoint.verify(kinds)
    elif which == "last":
        checkpoint = find_newest(path / FOLDER, kinds)
    elif checkpoint := find_best(path / FOLDER):
        checkpoint.verify(kinds)
    if checkpoint is None:
        problem = f"has no {which} checkpoint" if path.is_dir() else "does not exist"
        raise MissingFileError(
            f"{path} {problem}: expected a run directory or one of its checkpoints, such as {FOLDER}/step_00000200"
        )
    return checkpoint


def recover(folder: str | Path) -> None:
    """Give complete checkpoints their final names if a process was killed before it could rename them.

    One process must call this at the start of a run, before anything is saved.
    """
    folder = Path(folder)
    for prefix in (PARTIAL, REMOVED):  # a new checkpoint, if complete, is preferred to the checkpoint that it replaces
        for leftover in folder.glob(f"{prefix}step_*"):
            final = leftover.with_name(leftover.name.removeprefix(prefix))
            if _STEP.fullmatch(final.name) and (leftover / MANIFEST).is_file() and not final.exists():
                leftover.rename(final)


def prune(folder: str | Path, step: int, keep: int, best: int | None = None) -> None:
    """Delete old checkpoints and leftovers of killed processes.

    A run resumes from its newest intact checkpoint, so checkpoints of later steps than `step` must be damaged. They are
    renamed, not deleted.

    Args:
        folder: `RUN/checkpoints`.
        step: the step whose checkpoint was written last.
        keep: number of the newest checkpoints to keep.
        best: the step of the best checkpoint, which is kept as well; None if there is none.
    """
    folder = Path(folder)
    available = list_steps(folder)
    for later_step in [number for number in available if number > step]:
        set_aside(step_dir(folder, later_step), _DAMAGED)
    for old_step in [number for number in available if number <= step][keep:]:
        if old_step != best:
            # Renamed first, so that a process killed while deleting leaves nothing that looks like a checkpoint.
            shutil.rmtree(set_aside(step_dir(folder, old_step), REMOVED))
    for prefix in (REMOVED, PARTIAL):
        for leftover in folder.glob(f"{prefix}*"):
            shutil.rmtree(leftover)


def set_aside(directory: Path, prefix: str) -> Path:
    """Rename a checkpoint so that it is no longer recognised as a checkpoint, and return its new path."""
    new_path = directory.with_name(prefix + directory.name)
    shutil.rmtree(new_path, ignore_errors=True)
    return directory.rename(new_path)
