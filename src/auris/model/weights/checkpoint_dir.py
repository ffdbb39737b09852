"""Checkpoints of a run on disk: one format, whatever the strategy that wrote it and the one that reads it.

Unusual here: a checkpoint is a directory that gets its name when it is complete, every process writes its own part of
the tensors, and the manifest says of each part where in the whole tensor it lies. So any number of processes reads
any checkpoint, each the slices that it needs. There is no pickle in it: tensors are safetensors, all else is JSON.

    RUN/checkpoints/step_00000200/manifest.json             written last: sizes and checksums of all, pieces of tensors
                                  trainer.json              recipe, position, schedules, which was the best so far
                                  weights-00000-of-00002.safetensors
                                  optimizer-00000-of-00002.safetensors

All functions that are told so are collective: every process of the group calls them, and all of them return or raise.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from auris.errors import MissingFileError, UserError
from auris.model.dtensor import local_part
from auris.model.weights.tensors import DTYPES

FORMAT = 1
KINDS = ("weights", "optimizer")  # of tensors; what only asks a model reads the first kind alone
FOLDER = "checkpoints"  # in a run directory

_MANIFEST, _TRAINER = "manifest.json", "trainer.json"
_STEP = re.compile(r"step_(\d{8,})")
_FILE = re.compile(rf"{re.escape(_TRAINER)}|({'|'.join(KINDS)})-\d{{5,}}-of-\d{{5,}}\.safetensors")
_PARTIAL, _REMOVED = "partial-", "removed-"  # in front of a directory that is being written, or taken away
_DAMAGED = "damaged-"  # in front of one that a run could not be resumed from

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_Result = TypeVar("_Result")


class Damaged(UserError):
    """A checkpoint is not what was written."""


class SaveError(OSError):
    """A checkpoint could not be written; the ones before it are as they were."""


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Piece:
    """A part of a tensor: the file that it is in, and where in the whole it begins."""

    file: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor in a checkpoint: its shape and dtype as a whole, and the pieces that make it up."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]


class CheckpointDir:
    """A checkpoint, opened: its manifest is read and found whole, its tensors are read when they are asked for.

    Raises Damaged if the manifest is missing or altered.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.step, self._files, self._stored = _read_manifest(self.path)
        self._open: dict[str, Any] = {}

    @property
    def state(self) -> dict[str, Any]:
        """All that is no tensor: what the writer gave, `step`, and the optimizer's `groups`."""
        return _read_json(self.path / _TRAINER)

    def verify(self, kinds: Collection[str] = KINDS, *, world: int = 1, rank: int = 0) -> None:
        """Read this process's share of the files of these kinds. Raises Damaged for one that is not as it was written.

        All files are looked at for their size by every process.
        """
        wanted = [name for name in sorted(self._files) if name == _TRAINER or name.partition("-")[0] in kinds]
        for name in wanted:
            size, expected = _size(self.path / name), self._files[name]["bytes"]
            if size != expected:
                raise Damaged(f"{self.path / name} is damaged: it has {size:,} bytes, {expected:,} were written")
        for name in wanted[rank::world]:
            if _checksum(self.path / name) != self._files[name]["sha256"]:
                raise Damaged(f"{self.path / name} is damaged: its checksum is not that of what was written")

    def tensors(self, kind: str = "weights", prefix: str = "") -> CheckpointTensors:
        """The tensors of a kind whose names begin with `prefix`, under their names without it."""
        return CheckpointTensors(self, kind, prefix)

    def stored(self, kind: str) -> Mapping[str, Stored]:
        return self._stored.get(kind, {})

    def read(self, kind: str, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """A tensor, or the part of it that `index` (leading dimensions) takes out, from all the pieces it lies in."""
        stored = self._stored[kind][name]
        index = (*(index or ()), *[slice(None)] * (len(stored.shape) - len(index or ())))
        wanted = [one.indices(size)[:2] for one, size in zip(index, stored.shape, strict=True)]
        shape = tuple(max(0, stop - start) for start, stop in wanted)
        for piece in stored.pieces:
            if piece.shape == shape and all(at == start for at, (start, _) in zip(piece.offset, wanted, strict=True)):
                return self._handle(piece.file).get_tensor(name)
        out = torch.empty(shape, dtype=stored.dtype)
        for piece in stored.pieces:
            spans = [
                (max(start, at), min(stop, at + size))
                for (start, stop), at, size in zip(wanted, piece.offset, piece.shape, strict=True)
            ]
            if all(start < stop for start, stop in spans):
                there = tuple(slice(a - at, b - at) for (a, b), at in zip(spans, piece.offset, strict=True))
                here = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(spans, wanted, strict=True))
                out[here] = self._handle(piece.file).get_slice(name)[there]
        return out

    def _handle(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.path / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise Damaged(f"{self.path / name} cannot be read ({error})") from error
        return self._open[name]


class CheckpointTensors:
    """Some of a checkpoint's tensors, with the methods of `weights.TensorFiles`."""

    def __init__(self, snapshot: CheckpointDir, kind: str, prefix: str) -> None:
        self._snapshot, self._kind, self._prefix = snapshot, kind, prefix
        stored = snapshot.stored(kind)
        self._stored = {name.removeprefix(prefix): one for name, one in stored.items() if name.startswith(prefix)}

    def keys(self) -> Collection[str]:
        return self._stored.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._stored[name].dtype

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        return self._snapshot.read(self._kind, self._prefix + name, index)

    def read_all(self) -> dict[str, Tensor]:
        return {name: self.read(name) for name in self._stored}


def is_checkpoint(path: str | Path) -> bool:
    """Whether a path is meant as one checkpoint: complete or not."""
    path = Path(path)
    return path.is_dir() and bool((path / _MANIFEST).is_file() or _STEP.fullmatch(path.resolve().name))


def step_dir(folder: str | Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(folder) / f"step_{step:08d}"


def steps(folder: str | Path) -> list[int]:
    """Steps that a folder has checkpoints of, newest first; whether they are whole is not looked at."""
    names = [path.name for path in Path(folder).iterdir()] if Path(folder).is_dir() else []
    return sorted((int(match[1]) for match in map(_STEP.fullmatch, names) if match), reverse=True)


def newest(
    folder: str | Path, kinds: Collection[str] = KINDS, *, warn: Callable[[str], Any] = warnings.warn
) -> CheckpointDir | None:
    """The newest checkpoint in a folder that is whole; None if there is none at all. Collective.

    Each process reads its share of the files; `warn` is told of the damaged ones on the way.

    Raises ValueError if none of those that are there is whole.
    """
    world, rank = place()
    found = _from_first(steps(folder))
    for step in found:
        error, snapshot = "", None
        try:
            snapshot = CheckpointDir(step_dir(folder, step))
            snapshot.verify(kinds, world=world, rank=rank)
        except Damaged as damage:
            error = str(damage)
        errors = list(filter(None, _from_all(error)))
        if not errors:
            return snapshot
        warn(f"{errors[0]}; trying the checkpoint before step {step}")
    if found:
        raise UserError(f"none of the {len(found)} checkpoints in {folder} is whole: delete it to start the run anew")
    return None


def recover(folder: str | Path) -> None:
    """Finish what a process was killed in: giving a checkpoint that is whole its name, in the place of an earlier one.

    To be called by one process when a run begins: nobody is saving then.
    """
    folder = Path(folder)
    for prefix in (_PARTIAL, _REMOVED):  # the new one if all of it is there, else the one that it was to replace
        for left in folder.glob(f"{prefix}step_*"):
            final = left.with_name(left.name.removeprefix(prefix))
            if _STEP.fullmatch(final.name) and (left / _MANIFEST).is_file() and not final.exists():
                left.rename(final)


def find(path: str | Path, which: str = "last", kinds: Collection[str] = ("weights",)) -> CheckpointDir:
    """The checkpoint that a path means: itself, or a run directory's last or best one, found to be whole.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there is no such choice, or none of those that are meant is whole.
    """
    path = Path(path)
    if which not in ("last", "best"):
        raise UserError(f"which={which}: expected last or best")
    if is_checkpoint(path):
        found: CheckpointDir | None = CheckpointDir(path)
        found.verify(kinds)
    elif which == "last":
        found = newest(path / FOLDER, kinds)
    elif found := best(path / FOLDER):
        found.verify(kinds)
    if found is None:
        what = f"has no {which} checkpoint" if path.is_dir() else "does not exist"
        raise MissingFileError(
            f"{path} {what}: expected a run directory, or one of its checkpoints as {FOLDER}/step_00000200"
        )
    return found


def best(folder: str | Path) -> CheckpointDir | None:
    """The best checkpoint of a folder, as the newest one that is whole says; None if that knows of none. Collective.

    Raises Damaged if it is not what was written, ValueError if none of those that are there is whole.
    """
    newest_one = newest(folder, ())
    mark = newest_one.state.get("best") if newest_one else None
    return CheckpointDir(step_dir(folder, mark["step"])) if mark else None


# ------------------------------------------------------------------------------------------------------------- writing


def write(
    folder: str | Path,
    step: int,
    *,
    module: nn.Module,
    optimizer: Optimizer | None = None,
    state: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of a step; it gets its name when all of it is on the disk. Collective.

    A sharded tensor's pieces are written by the processes that have them, replicas once. Beside the model at most one
    tensor is in the host's memory.

    Args:
        optimizer: None for the weights alone.
        state: what is known beside tensors, as JSON has it; `recipe`, for those who load the model, and `best`, for
            those who look for the best one: None, or its `step`.

    Raises SaveError, on every process, if one of them cannot write: the checkpoints before are as they were.
    """
    _, rank = place()
    final = step_dir(folder, step)
    partial = final.with_name(_PARTIAL + final.name)
    try:
        tables = _together(lambda: _tables(module, optimizer))
        writers = {kind: _writers(tables[kind]) for kind in KINDS}
        state = {**state, "step": step, "groups": _groups(module, optimizer)}
        _together(lambda: _make(partial) if rank == 0 else None)
        own = _together(lambda: [_write_own(partial, kind, tables[kind], writers[kind], rank) for kind in KINDS])
        parts = _to_first(own)
        _together(lambda: _seal(partial, final, state, parts) if rank == 0 else None)
    except SaveError:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)  # what is half there takes the room of the next one
        raise
    return final


def prune(folder: str | Path, step: int, keep: int, best: int | None = None) -> None:
    """After the checkpoint of `step`: keep the newest `keep` and the best one, of step `best`.

    Later ones are those that the run could not be resumed from; they get another name, for a person to look at.
    """
    folder = Path(folder)
    there = steps(folder)
    for later in [one for one in there if one > step]:
        _set_aside(step_dir(folder, later), _DAMAGED)
    for old in [one for one in there if one <= step][keep:]:
        if old != best:
            # Renamed first: a process killed on the way leaves nothing that looks like a checkpoint.
            shutil.rmtree(_set_aside(step_dir(folder, old), _REMOVED))
    for prefix in (_REMOVED, _PARTIAL):  # of processes that were killed
        for left in folder.glob(f"{prefix}*"):
            shutil.rmtree(left)


def replace(path: Path, text: str) -> None:
    """Write a small file in one move, so that it is never seen half written."""
    partial = path.with_name(f"{path.name}.partial")
    _write_text(partial, text)
    partial.replace(path)
    _sync(path.parent)


def _make(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)


def _writers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Who writes the piece of each tensor that this process has; those that have the same one take turns. Collective.

    Asked of what they have, not of their meshes: one that is sharded over a part of a mesh does not know of the rest.
    """
    pieces = {name: local_part(tensor.detach()) for name, tensor in sorted(tensors.items())}
    # The first element of a piece tells it from the others, as they do not overlap.
    firsts = [_first_element(tensors[name], index) if local.numel() else -1 for name, (local, index) in pieces.items()]
    everyone = _from_all(firsts)
    writers = {}
    for number, (name, first) in enumerate(zip(pieces, firsts, strict=True)):
        holders = [rank for rank, theirs in enumerate(everyone) if theirs[number] == first]
        writers[name] = -1 if first < 0 else holders[number % len(holders)]
    return writers


def _first_element(tensor: Tensor, index: tuple[slice, ...]) -> int:
    strides = [math.prod(tensor.shape[dim + 1 :]) for dim in range(tensor.ndim)]
    return sum(one.start * stride for one, stride in zip(index, strides, strict=True))


def _write_own(
    folder: Path, kind: str, tensors: Mapping[str, Tensor], writers: Mapping[str, int], rank: int
) -> dict[str, Any]:
    """Write what is this process's part of these tensors; returns how its file and the pieces in it are described."""
    world, _ = place()
    file = f"{kind}-{rank:05d}-of-{world:05d}.safetensors"
    own: dict[str, Tensor] = {}
    pieces: dict[str, list] = {}
    for name, tensor in sorted(tensors.items()):
        local, index = local_part(tensor.detach())
        mine = writers[name] == rank
        if mine:
            own[name] = local
        if mine or rank == 0:  # the first process describes all tensors, also those without elements
            piece = [file, [one.start for one in index], list(local.shape)]
            pieces[name] = [list(tensor.shape), _CODES[tensor.dtype], [piece] if mine else []]
    files = {file: _write_tensors(folder / file, own)} if own else {}
    return {"kind": kind, "files": files, "pieces": pieces}


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A safetensors file, tensor by tensor, with its size and checksum.

    safetensors' own `save_file` wants all of them in the host's memory at once, and a checksum would have to read the
    file again, which vouches for the disk's cache and not for what was to be written.
    """
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all are aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        shape, code = list(tensors[name].shape), _CODES[tensors[name].dtype]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    total = hashlib.sha256()
    size = 0
    with file.open("wb") as out:

        def put(data: Any) -> None:
            nonlocal size
            out.write(data)
            total.update(data)
            size += len(data)

        put(len(text).to_bytes(8, "little"))
        put(text)
        for name in ordered:
            put(memoryview(tensors[name].cpu().contiguous().flatten().view(torch.uint8).numpy()))
        out.flush()
        os.fsync(out.fileno())
    return {"bytes": size, "sha256": total.hexdigest()}


def _seal(partial: Path, final: Path, state: Mapping[str, Any], parts: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Write what describes the pieces, and give the directory its name."""
    files: dict[str, Any] = {}
    tensors: dict[str, dict[str, list]] = {kind: {} for kind in KINDS}
    for part in (part for process in parts for part in process):
        files |= part["files"]
        for name, (shape, code, pieces) in part["pieces"].items():
            tensors[part["kind"]].setdefault(name, [shape, code, []])[2].extend(pieces)
    for table in tensors.values():
        for name, (shape, _, pieces) in table.items():
            _check_cover(name, shape, pieces)
    for name, described in files.items():
        if _size(partial / name) != described["bytes"]:
            raise OSError(f"{partial / name} is not there: all processes must write to one shared file system")
    text = json.dumps(_with_text_keys(state), ensure_ascii=False)
    _write_text(partial / _TRAINER, text)
    files[_TRAINER] = {"bytes": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    content = {"format": FORMAT, "step": state["step"], "files": files, "tensors": tensors}
    _write_text(partial / _MANIFEST, json.dumps({"content": content, "sha256": _seal_of(content)}))
    _sync(partial)
    removed = _set_aside(final, _REMOVED) if final.exists() else None  # damaged, or the step was taken again
    partial.rename(final)
    _sync(final.parent)
    if removed:
        shutil.rmtree(removed)


def _check_cover(name: str, shape: Sequence[int], pieces: Sequence[Sequence[Any]]) -> None:
    """That pieces make up a tensor: they are all cells of a grid that divides it."""
    boxes = {tuple((at, at + n) for at, n in zip(offset, sizes, strict=True)) for _, offset, sizes in pieces}
    cuts = [sorted({box[dim] for box in boxes}) for dim in range(len(shape))]
    whole = all(
        [start for start, _ in cut] == [0, *(stop for _, stop in cut[:-1])] and cut[-1][1] == size
        for cut, size in zip(cuts, shape, strict=True)
        if cut
    )
    cells = math.prod(map(len, cuts)) if math.prod(shape) else 0
    assert whole and len(boxes) == len(pieces) == cells, f"{name} of shape {shape} is not made up by {pieces}"


def _set_aside(directory: Path, prefix: str) -> Path:
    """Give a checkpoint a name that is none of a checkpoint."""
    aside = directory.with_name(prefix + directory.name)
    shutil.rmtree(aside, ignore_errors=True)
    return directory.rename(aside)


# ------------------------------------------------------------------------------------------ a module and its optimizer


@torch.no_grad()
def restore(snapshot: CheckpointDir, *, module: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Give a module, and its optimizer if there is one, what a checkpoint holds; each process reads its own slices.

    Raises ValueError naming what is missing, unexpected or of another shape.
    """
    stored = snapshot.stored("weights")
    targets = _once(module.state_dict(keep_vars=True))
    _compare(snapshot.path, {name: tuple(tensor.shape) for name, tensor in targets.items()}, stored)
    groups = snapshot.state["groups"]
    ours = _groups(module, optimizer)
    if optimizer is not None and [group["params"] for group in groups] != [group["params"] for group in ours]:
        raise UserError(f"{snapshot.path} was written by an optimizer with other groups of parameters")
    for name, tensor in targets.items():
        _fill(tensor, snapshot, "weights", name)
    if optimizer is not None:
        _restore_optimizer(snapshot, groups, module, optimizer)


def _restore_optimizer(
    snapshot: CheckpointDir, groups: Sequence[Mapping[str, Any]], module: nn.Module, optimizer: Optimizer
) -> None:
    keys: dict[str, list[str]] = {}
    for name in snapshot.stored("optimizer"):
        key, _, parameter = name.partition(".")
        keys.setdefault(parameter, []).append(key)
    names = _parameter_names(module)
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        for parameter in group["params"]:
            name = names[id(parameter)]
            optimizer.state[parameter] = {
                key: _optimizer_state(snapshot, key, name, parameter, group) for key in keys.get(name, ())
            }
        settings = {key: value for key, value in saved.items() if key != "params"}
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})


def _optimizer_state(
    snapshot: CheckpointDir, key: str, name: str, parameter: Tensor, group: Mapping[str, Any]
) -> Tensor:
    if key == "step":  # torch's optimizers count on the host, unless their kernel counts
        counts_there = group.get("fused") or group.get("capturable")
        return snapshot.read("optimizer", f"{key}.{name}").clone().to(parameter.device if counts_there else "cpu")
    stored = snapshot.stored("optimizer")[f"{key}.{name}"]
    if stored.shape != tuple(parameter.shape):
        raise UserError(f"{snapshot.path}: {key} of {name} has shape {stored.shape}, expected {tuple(parameter.shape)}")
    value = torch.zeros_like(parameter, dtype=stored.dtype, memory_format=torch.preserve_format)
    _fill(value, snapshot, "optimizer", f"{key}.{name}")
    return value


def _fill(tensor: Tensor, snapshot: CheckpointDir, kind: str, name: str) -> None:
    local, index = local_part(tensor)
    if local.numel():
        local.copy_(snapshot.read(kind, name, index))


def _compare(path: Path, targets: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored]) -> None:
    faults = [f"{name} is missing" for name in targets if name not in stored]
    faults += [f"{name} is unexpected" for name in stored if name not in targets]
    faults += [
        f"{name} has shape {stored[name].shape}, expected {shape}"
        for name, shape in targets.items()
        if name in stored and stored[name].shape != shape
    ]
    if faults:
        raise UserError(f"{path} does not fit the model: {'; '.join(faults[:5])}" + ("; ..." if faults[5:] else ""))


def _tables(module: nn.Module, optimizer: Optimizer | None) -> dict[str, dict[str, Tensor]]:
    """The tensors of each kind by name, tied ones once. Of the optimizer `exp_avg.PARAMETER` and so on."""
    names = _parameter_names(module)
    states = {
        f"{key}.{names[id(parameter)]}": value
        for parameter, values in (optimizer.state.items() if optimizer is not None else ())
        for key, value in values.items()
    }
    return {"weights": _once(module.state_dict(keep_vars=True)), "optimizer": states}


def _once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {id(tensor): name for name, tensor in reversed(state.items())}  # the first name of each
    return {name: tensor for name, tensor in state.items() if names[id(tensor)] == name}


def _parameter_names(module: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in module.named_parameters()}


def _groups(module: nn.Module, optimizer: Optimizer | None) -> list[dict[str, Any]]:
    """The optimizer's groups with names in place of parameters."""
    names = _parameter_names(module)
    groups = optimizer.param_groups if optimizer is not None else []
    return [{**group, "params": [names[id(one)] for one in group["params"]]} for group in groups]


# --------------------------------------------------------------------------------------------------- files, processes


def _read_manifest(path: Path) -> tuple[int, dict[str, dict[str, Any]], dict[str, dict[str, Stored]]]:
    """The step, the files, and the tensors of each kind."""
    file = path / _MANIFEST
    try:
        sealed = json.loads(file.read_text(encoding="utf-8"))
        content = sealed["content"]
        whole = sealed["sha256"] == _seal_of(content)
    except FileNotFoundError as error:
        raise Damaged(f"{path} is no complete checkpoint: it has no {_MANIFEST}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{file} cannot be read ({' '.join(str(error).split())})") from error
    if not whole:
        raise Damaged(f"{file} is damaged: its checksum is not that of what was written")
    if content.get("format") != FORMAT:
        raise Damaged(f"{file} has format {content.get('format')}, this auris reads {FORMAT}")
    files = content["files"]
    tensors = {
        kind: {
            name: Stored(tuple(shape), DTYPES[code], tuple(Piece(one, tuple(at), tuple(n)) for one, at, n in pieces))
            for name, (shape, code, pieces) in table.items()
        }
        for kind, table in content["tensors"].items()
    }
    named = {piece.file for table in tensors.values() for one in table.values() for piece in one.pieces}
    if strange := [name for name in files if not _FILE.fullmatch(name)] or sorted(named - files.keys()):
        raise Damaged(f"{file} names {strange[0]!r}, which is no file of a checkpoint")
    return content["step"], files, tensors


def _seal_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{file} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise Damaged(f"{file}: expected a JSON object, it is a {type(content).__name__}")
    return content


def _with_text_keys(value: Any) -> Any:
    """As it is; JSON would make text of a key that is a number, and not give the number back."""
    if isinstance(value, Mapping):
        assert all(isinstance(key, str) for key in value), list(value)
        return {key: _with_text_keys(inner) for key, inner in value.items()}
    return [_with_text_keys(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise Damaged(f"{file} cannot be read ({error})") from error


def _checksum(file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise Damaged(f"{file} cannot be read ({error})") from error


def _write_text(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def _sync(directory: Path) -> None:
    """Have a directory's entries on the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def place() -> tuple[int, int]:
    """How many processes work together, and which this one is."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0


def _from_all(value: _Result) -> list[_Result]:
    world, _ = place()
    values: list[Any] = [value] * world
    if world > 1:
        distributed.all_gather_object(values, value)
    return values


def _to_first(value: _Result) -> list[_Result]:
    """The values of all processes on the first one, on the others nothing."""
    world, rank = place()
    if world == 1:
        return [value]
    values: list[Any] | None = [None] * world if rank == 0 else None
    distributed.gather_object(value, values)
    return values or []


def _from_first(value: _Result) -> _Result:
    return _from_all(value)[0]


def _together(work: Callable[[], _Result]) -> _Result:
    """Do something on every process; where one of them fails, in whatever way, all raise its error.

    Nobody is left waiting for a process that is out of the work: the others would hang in what they do next together.
    """
    said, result, failure = "", None, None
    try:
        result = work()
    except Exception as error:
        failure = error
        said = str(error) if isinstance(error, (OSError, Damaged)) else f"{type(error).__name__}: {error}"
    if first := next(filter(None, _from_all(said)), None):
        raise SaveError(first) from failure
    return result
