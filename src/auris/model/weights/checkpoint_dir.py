"""Checkpoints of a run on disk: one format, whatever the parallel strategy that wrote it or reads it.

A checkpoint is a directory that gets its name when it is complete. Every process writes its own pieces of the tensors,
and the manifest says where in the whole tensor each piece lies, so any number of processes can read any checkpoint,
each the slices that it needs. There is no pickle in it: tensors are safetensors, everything else is JSON.

    RUN/checkpoints/step_00000200/manifest.json             written last: sizes and checksums of all files, all pieces
                                  trainer.json              config, position, schedules, which checkpoint was best
                                  weights-00000-of-00002.safetensors
                                  optimizer-00000-of-00002.safetensors

`checkpoint_io` writes checkpoints and restores modules from them. Functions marked as collective must be called by all
processes of the group; all of them return or raise.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping
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
KINDS = ("weights", "optimizer")  # of tensors; loading a model reads the first kind only
FOLDER = "checkpoints"  # in a run directory
MANIFEST, TRAINER = "manifest.json", "trainer.json"
PARTIAL, REMOVED = "partial-", "removed-"  # name prefixes of directories that are being written or deleted

_STEP = re.compile(r"step_(\d{8,})")
_DAMAGED = "damaged-"  # name prefix of checkpoints that a run could not be resumed from

State = Mapping[str, Any]
"""The content of trainer.json: everything in a checkpoint that is not a tensor."""


class DamagedError(UserError):
    """A checkpoint differs from what was written."""


class StoredFile(NamedTuple):
    """Size and SHA-256 checksum of a file as it was written."""

    bytes: int
    sha256: str


class Piece(NamedTuple):
    """A part of a tensor: its file, and where in the whole tensor it begins."""

    file: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor(Header):
    """A tensor in a checkpoint: shape and dtype of the whole, and the pieces that it consists of."""

    pieces: tuple[Piece, ...]


class CheckpointDir:
    """An opened checkpoint: the manifest has been read and verified, tensors are read on demand.

    Raises:
        DamagedError: the manifest is missing or was altered.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.step, self._files, self._stored = _read_manifest(self.path)

    @property
    def state(self) -> State:
        """Everything that is not a tensor: what the writer passed, `step`, and the optimizer's `groups`."""
        return read_json(self.path / TRAINER)

    def verify(self, kinds: Collection[str] = KINDS, *, world: int = 1, rank: int = 0) -> None:
        """Compare files of these kinds with their checksums, each process its share, and all files with their sizes.

        Raises:
            DamagedError: a file differs from what was written.
        """
        names = [name for name in sorted(self._files) if name == TRAINER or name.partition("-")[0] in kinds]
        for name in names:
            size, expected = file_size(self.path / name), self._files[name].bytes
            if size != expected:
                raise DamagedError(f"{self.path / name} is damaged: it has {size:,} bytes, {expected:,} were written")
        for name in names[rank::world]:
            try:
                checksum = file_digest(self.path / name)
            except OSError as error:
                raise DamagedError(f"{self.path / name} cannot be read ({error})") from error
            if checksum != self._files[name].sha256:
                raise DamagedError(f"{self.path / name} is damaged: its checksum is not that of what was written")

    def tensors(self, kind: str = "weights", prefix: str = "") -> CheckpointTensors:
        """Return the tensors of a kind whose names begin with `prefix`, under their names without it."""
        return CheckpointTensors(self.path, self._stored[kind], prefix)


class CheckpointTensors(TensorSource):
    """Tensors of one kind in a checkpoint, each put together from its pieces.

    Args:
        folder: the checkpoint.
        stored: its tensors by name.
        prefix: selects the tensors whose names begin with it; they are known by the rest of their names.
    """

    def __init__(self, folder: Path, stored: Mapping[str, StoredTensor], prefix: str) -> None:
        super().__init__({name.removeprefix(prefix): one for name, one in stored.items() if name.startswith(prefix)})
        self._folder, self._prefix = folder, prefix
        self._open: dict[str, safe_open] = {}

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        stored = self._described[name]
        index = (*(index or ()), *[slice(None)] * (len(stored.shape) - len(index or ())))
        wanted = [one.indices(size)[:2] for one, size in zip(index, stored.shape, strict=True)]
        shape = tuple(max(0, stop - start) for start, stop in wanted)
        for piece in stored.pieces:
            if piece.shape == shape and all(at == start for at, (start, _) in zip(piece.offset, wanted, strict=True)):
                return self._handle(piece.file).get_tensor(self._prefix + name)
        out = torch.empty(shape, dtype=stored.dtype)
        for piece in stored.pieces:
            spans = [
                (max(start, at), min(stop, at + size))
                for (start, stop), at, size in zip(wanted, piece.offset, piece.shape, strict=True)
            ]
            if all(start < stop for start, stop in spans):
                there = tuple(slice(a - at, b - at) for (a, b), at in zip(spans, piece.offset, strict=True))
                here = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(spans, wanted, strict=True))
                out[here] = self._handle(piece.file).get_slice(self._prefix + name)[there]
        return out

    def read_all(self) -> dict[str, Tensor]:
        return {name: self.read(name) for name in self._described}

    def _handle(self, name: str) -> safe_open:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self._folder / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise DamagedError(f"{self._folder / name} cannot be read ({error})") from error
        return self._open[name]


def _read_manifest(path: Path) -> tuple[int, dict[str, StoredFile], dict[str, dict[str, StoredTensor]]]:
    """Return the step, the files, and the tensors of each kind."""
    file = path / MANIFEST
    try:
        sealed = read_json(file)
        content = sealed["content"]
        is_intact = sealed["sha256"] == content_digest(content)
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is no complete checkpoint: it has no {MANIFEST}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{file} cannot be read ({' '.join(str(error).split())})") from error
    if not is_intact:
        raise DamagedError(f"{file} is damaged: its checksum is not that of what was written")
    if content.get("format") != FORMAT:
        raise DamagedError(f"{file} has format {content.get('format')}, this auris reads {FORMAT}")
    tensors = {
        kind: {
            name: StoredTensor(
                tuple(shape), DTYPES[code], tuple(Piece(one, tuple(at), tuple(n)) for one, at, n in pieces)
            )
            for name, (shape, code, pieces) in table.items()
        }
        for kind, table in content["tensors"].items()
    }
    return content["step"], {name: StoredFile(**one) for name, one in content["files"].items()}, tensors


def content_digest(content: object) -> str:
    """Return the checksum of a manifest's content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_size(file: Path) -> int:
    """Return a file's size in bytes, 0 if it does not exist."""
    return file.stat().st_size if file.exists() else 0


# --- the checkpoints of a run -------------------------------------------------------------------------------------


def is_checkpoint(path: str | Path) -> bool:
    """Return whether a path is meant to be one checkpoint, complete or not."""
    path = Path(path)
    return path.is_dir() and bool((path / MANIFEST).is_file() or _STEP.fullmatch(path.resolve().name))


def step_dir(folder: str | Path, step: int) -> Path:
    """Return the directory of a step's checkpoint."""
    return Path(folder) / f"step_{step:08d}"


def list_steps(folder: str | Path) -> list[int]:
    """Return the steps that a folder has checkpoints of, newest first; damaged ones are included."""
    names = [path.name for path in Path(folder).iterdir()] if Path(folder).is_dir() else []
    return sorted((int(match[1]) for match in map(_STEP.fullmatch, names) if match), reverse=True)


def find_newest(
    folder: str | Path, kinds: Collection[str] = KINDS, *, warn: Callable[[str], object] = warnings.warn
) -> CheckpointDir | None:
    """Return the newest intact checkpoint in a folder, None if there is none at all. Collective.

    Args:
        folder: `RUN/checkpoints`.
        kinds: kinds of tensors whose files are verified, by each process its share.
        warn: called with a message for each damaged checkpoint that is passed over.

    Raises:
        UserError: there are checkpoints, but none of them is intact.
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
            f"none of the {len(available)} checkpoints in {folder} is whole: delete it to start the run anew"
        )
    return None


def find_best(folder: str | Path) -> CheckpointDir | None:
    """Return the best checkpoint of a folder according to the newest intact one; None if it names none. Collective.

    Raises:
        DamagedError: the best checkpoint is damaged.
        UserError: there are checkpoints, but none of them is intact.
    """
    last = find_newest(folder, ())
    mark = last.state.get("best") if last else None
    return CheckpointDir(step_dir(folder, mark["step"])) if mark else None


def find(path: str | Path, which: str = "last", kinds: Collection[str] = ("weights",)) -> CheckpointDir:
    """Return the checkpoint that a path stands for: itself, or the last or best one of a run directory, verified.

    Raises:
        MissingFileError: there is none.
        UserError: `which` is neither last nor best, or no such checkpoint is intact.
    """
    path = Path(path)
    if which not in ("last", "best"):
        raise UserError(f"which={which}: expected last or best")
    if is_checkpoint(path):
        checkpoint: CheckpointDir | None = CheckpointDir(path)
        checkpoint.verify(kinds)
    elif which == "last":
        checkpoint = find_newest(path / FOLDER, kinds)
    elif checkpoint := find_best(path / FOLDER):
        checkpoint.verify(kinds)
    if checkpoint is None:
        what = f"has no {which} checkpoint" if path.is_dir() else "does not exist"
        raise MissingFileError(
            f"{path} {what}: expected a run directory, or one of its checkpoints as {FOLDER}/step_00000200"
        )
    return checkpoint


def recover(folder: str | Path) -> None:
    """Finish the renaming of a complete checkpoint that a killed process has left under a temporary name.

    To be called by one process when a run begins, while nobody is saving.
    """
    folder = Path(folder)
    for prefix in (PARTIAL, REMOVED):  # the new checkpoint if it is complete, otherwise the one that it was to replace
        for left in folder.glob(f"{prefix}step_*"):
            final = left.with_name(left.name.removeprefix(prefix))
            if _STEP.fullmatch(final.name) and (left / MANIFEST).is_file() and not final.exists():
                left.rename(final)


def prune(folder: str | Path, step: int, keep: int, best: int | None = None) -> None:
    """Delete old checkpoints after that of `step` was written: keep the newest `keep` and that of step `best`.

    Later ones are damaged ones that the run could not be resumed from: they are renamed for a person to look at.
    """
    folder = Path(folder)
    available = list_steps(folder)
    for later in [one for one in available if one > step]:
        set_aside(step_dir(folder, later), _DAMAGED)
    for old in [one for one in available if one <= step][keep:]:
        if old != best:
            # Renamed first: a process killed while deleting leaves nothing that looks like a checkpoint.
            shutil.rmtree(set_aside(step_dir(folder, old), REMOVED))
    for prefix in (REMOVED, PARTIAL):  # left by processes that were killed
        for left in folder.glob(f"{prefix}*"):
            shutil.rmtree(left)


def set_aside(directory: Path, prefix: str) -> Path:
    """Rename a checkpoint so that it is not taken for one any more."""
    aside = directory.with_name(prefix + directory.name)
    shutil.rmtree(aside, ignore_errors=True)
    return directory.rename(aside)
