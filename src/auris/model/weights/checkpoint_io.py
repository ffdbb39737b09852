"""Save a module and its optimizer as a checkpoint, and restore both. Each rank writes and reads its own slices."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auris.errors import UserError
from auris.files import sync_directory
from auris.model.distributed import collectively, gather, world_and_rank
from auris.model.dtensor import local_part
from auris.model.weights.checkpoint_dir import (
    FORMAT,
    KINDS,
    MANIFEST,
    PARTIAL,
    REMOVED,
    TRAINER,
    CheckpointDir,
    Piece,
    State,
    StoredFile,
    content_digest,
    file_size,
    set_aside,
    step_dir,
)
from auris.model.weights.tensors import DTYPES, TensorSource

_CODES = {dtype: code for code, dtype in DTYPES.items()}

Group = Mapping[str, Any]
"""A parameter group of an optimizer."""


class SaveError(OSError):
    """A checkpoint could not be written. Earlier checkpoints are unchanged."""


class _RankOutput(NamedTuple):
    """The files that one rank has written, and the pieces in these files, by kind and name of the tensor."""

    files: dict[str, StoredFile]
    pieces: dict[tuple[str, str], Piece]


# --- saving -------------------------------------------------------------------------------------------------------


def save(
    folder: str | Path,
    step: int,
    *,
    module: nn.Module,
    optimizer: Optimizer | None = None,
    state: State,
) -> Path:
    """Write the checkpoint of a step. The directory receives its final name when it is complete on disk. Collective.

    The pieces of a sharded tensor are written by the ranks that hold them, and replicas are written once. At most one
    tensor at a time is copied to the memory of the host.

    Args:
        folder: `RUN/checkpoints`.
        step: number of the step.
        module: the module to save.
        optimizer: the optimizer; None to save the weights only.
        state: everything else to store, as JSON values. `recipe` is the config from which the model is built when it is
            loaded. `best` is None or contains the `step` of the best checkpoint.

    Returns:
        The directory of the checkpoint.

    Raises:
        SaveError: a rank cannot write (raised on all ranks). Earlier checkpoints are unchanged.
    """
    _, rank = world_and_rank()
    final = step_dir(folder, step)
    partial = final.with_name(PARTIAL + final.name)
    try:
        tensors = collectively(lambda: _collect_tensors(module, optimizer), SaveError)
        writers = {kind: _assign_writers(tensors[kind]) for kind in KINDS}
        state = {**state, "step": step, "groups": _describe_groups(module, optimizer)}
        collectively(lambda: _make_empty(partial) if rank == 0 else None, SaveError)
        outputs = gather(collectively(lambda: _write_own(partial, tensors, writers, rank), SaveError))
        collectively(lambda: _seal(partial, final, state, tensors, outputs) if rank == 0 else None, SaveError)
    except SaveError:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)  # free the disk space for the next checkpoint
        raise
    return final


def _make_empty(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)  # it may be left over from a process that was killed
    partial.mkdir(parents=True)


def _assign_writers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return which rank writes this rank's piece of each tensor, or -1 for an empty piece. Collective.

    If several ranks hold the same pieces, they take turns from tensor to tensor. The result depends on the pieces, not
    on device meshes: a tensor that is sharded over a part of a mesh does not know the whole mesh.
    """
    pieces = {name: local_part(tensor.detach()) for name, tensor in sorted(tensors.items())}
    # Pieces do not overlap, so the offset identifies a piece.
    offsets = [_offset(index) if local.numel() else None for local, index in pieces.values()]
    offsets_by_rank = gather(offsets)
    writers = {}
    for number, (name, offset) in enumerate(zip(pieces, offsets, strict=True)):
        holders = [rank for rank, rank_offsets in enumerate(offsets_by_rank) if rank_offsets[number] == offset]
        writers[name] = -1 if offset is None else holders[number % len(holders)]
    return writers


def _offset(index: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(part.start for part in index)


def _write_own(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], writers: Mapping[str, Mapping[str, int]], rank: int
) -> _RankOutput:
    """Write the pieces that this rank has to write, one file for each kind of tensors."""
    world, _ = world_and_rank()
    output = _RankOutput({}, {})
    for kind, tensors_of_kind in tensors.items():
        file = f"{kind}-{rank:05d}-of-{world:05d}.safetensors"
        own: dict[str, Tensor] = {}
        for name, tensor in tensors_of_kind.items():
            if writers[kind][name] == rank:
                own[name], index = local_part(tensor.detach())
                output.pieces[kind, name] = Piece(file, _offset(index), tuple(own[name].shape))
        if own:
            output.files[file] = _write_tensors(folder / file, own)
    return output


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> StoredFile:
    """Write a safetensors file tensor by tensor, and compute its checksum meanwhile.

    safetensors' own `save_file` needs all tensors in the memory of the host at once. A checksum would then have to be
    computed from the file. It would describe the content of the page cache, not the data that was to be written.
    """
    # Tensors with larger elements come first, so that all tensors are aligned.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        shape, code = list(tensors[name].shape), _CODES[tensors[name].dtype]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    header_text = json.dumps(header).encode()
    header_text += b" " * (-len(header_text) % 8)
    values = (tensors[name].cpu().contiguous().flatten().view(torch.uint8).numpy().data for name in ordered)
    return _write(file, chain([len(header_text).to_bytes(8, "little"), header_text], values))


def _write(file: Path, chunks: Iterable[bytes | memoryview]) -> StoredFile:
    """Write a file and wait until it is on disk."""
    digest, size = hashlib.sha256(), 0
    with file.open("wb") as out:
        for chunk in chunks:
            size += out.write(chunk)
            digest.update(chunk)
        out.flush()
        os.fsync(out.fileno())
    return StoredFile(size, digest.hexdigest())


def _seal(
    partial: Path,
    final: Path,
    state: State,
    tensors: Mapping[str, Mapping[str, Tensor]],
    outputs: Sequence[_RankOutput],
) -> None:
    """Write trainer.json and the manifest, and give the directory its final name."""
    files = {name: file for output in outputs for name, file in output.files.items()}
    entries: dict[str, dict[str, Any]] = {kind: {} for kind in tensors}
    for kind, tensors_of_kind in tensors.items():
        for name, tensor in sorted(tensors_of_kind.items()):
            pieces = [output.pieces[kind, name] for output in outputs if (kind, name) in output.pieces]
            n_elements = sum(math.prod(piece.shape) for piece in pieces)  # pieces do not overlap
            assert n_elements == tensor.numel(), f"{name} of shape {tuple(tensor.shape)} does not consist of {pieces}"
            entries[kind][name] = [tuple(tensor.shape), _CODES[tensor.dtype], pieces]
    for name, file in files.items():
        if file_size(partial / name) != file.bytes:
            raise OSError(f"{partial / name} is missing: all processes must write to the same shared file system")
    text = json.dumps(state, ensure_ascii=False)
    files[TRAINER] = _write(partial / TRAINER, [text.encode()])
    content = {
        "format": FORMAT,
        "step": state["step"],
        "files": {name: file._asdict() for name, file in files.items()},
        "tensors": entries,
    }
    manifest = json.dumps({"content": content, "sha256": content_digest(content)})
    _write(partial / MANIFEST, [manifest.encode()])
    sync_directory(partial)
    # The step may already have a checkpoint: a damaged one, or one saved before the step's validation was finished.
    removed = set_aside(final, REMOVED) if final.exists() else None
    partial.rename(final)
    sync_directory(final.parent)
    if removed:
        shutil.rmtree(removed)


# --- restoring ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def restore(checkpoint: CheckpointDir, *, module: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Restore a module, and its optimizer if given, from a checkpoint. Each rank reads its own slices.

    Raises:
        UserError: tensors are missing, unexpected or have other shapes, or the optimizer has other parameter groups.
    """
    weights, targets = checkpoint.tensors(), _drop_tied(module.state_dict(keep_vars=True))
    _check_fit(checkpoint.path, targets, weights)
    groups = checkpoint.state["groups"]
    expected = _describe_groups(module, optimizer)
    if optimizer is not None and [group["params"] for group in groups] != [group["params"] for group in expected]:
        raise UserError(f"{checkpoint.path} was written with other parameter groups of the optimizer")
    for name, tensor in targets.items():
        _fill(tensor, weights, name)
    if optimizer is not None:
        _restore_optimizer(checkpoint.tensors("optimizer"), groups, module, optimizer)


def _check_fit(path: Path, targets: Mapping[str, Tensor], stored: TensorSource) -> None:
    names = stored.keys()
    faults = [f"{name} is missing" for name in targets if name not in names]
    faults += [f"{name} is unexpected" for name in names if name not in targets]
    faults += [
        f"{name} has shape {stored.shape(name)}, expected {tuple(tensor.shape)}"
        for name, tensor in targets.items()
        if name in names and stored.shape(name) != tuple(tensor.shape)
    ]
    if faults:
        raise UserError(f"{path} does not fit the model: {'; '.join(faults[:5])}" + ("; ..." if faults[5:] else ""))


def _restore_optimizer(stored: TensorSource, groups: Sequence[Group], module: nn.Module, optimizer: Optimizer) -> None:
    parameters, names = dict(module.named_parameters()), stored.keys()
    for name in names:
        key, _, parameter_name = name.partition(".")
        parameter = parameters[parameter_name]
        if key == "step":  # torch's optimizers keep the step on the host
            state = stored.read(name).clone()
        else:
            state = torch.zeros_like(parameter, dtype=stored.dtype(name))
            _fill(state, stored, name)
        optimizer.state[parameter][key] = state
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        settings = {key: value for key, value in saved.items() if key != "params"}
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})


def _fill(tensor: Tensor, source: TensorSource, name: str) -> None:
    """Copy this rank's part of a stored tensor into `tensor`."""
    local, index = local_part(tensor)
    if local.numel():
        local.copy_(source.read(name, index))


def _collect_tensors(module: nn.Module, optimizer: Optimizer | None) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each kind by name. A tensor of the optimizer has a name such as `exp_avg.PARAMETER`."""
    names = _parameter_names(module)
    states = {
        f"{key}.{names[id(parameter)]}": value
        for parameter, values in (optimizer.state.items() if optimizer is not None else ())
        for key, value in values.items()
    }
    return {"weights": _drop_tied(module.state_dict(keep_vars=True)), "optimizer": states}


def _drop_tied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by name. A tied tensor is returned under its first name only."""
    first_names: dict[int, str] = {}
    for name, tensor in state.items():
        first_names.setdefault(id(tensor), name)
    return {name: tensor for name, tensor in state.items() if first_names[id(tensor)] == name}


def _parameter_names(module: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in module.named_parameters()}


def _describe_groups(module: nn.Module, optimizer: Optimizer | None) -> list[Group]:
    """Return the parameter groups of the optimizer, with names in place of parameters."""
    names = _parameter_names(module)
    groups = optimizer.param_groups if optimizer is not None else []
    return [{**group, "params": [names[id(parameter)] for parameter in group["params"]]} for group in groups]
