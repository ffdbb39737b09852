"""Tensors by name, in files or in memory, read one at a time; and a checksum of all weights of a module."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from auris.errors import MissingFileError, UserError
from auris.files import read_json
from auris.model import adapters, dtensor

DTYPES = {  # by their codes in a safetensors header
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class Header:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorSource(ABC):
    """Tensors by name, read one at a time and slice by slice.

    Args:
        described: shape and dtype of each tensor, or the tensors themselves.
    """

    def __init__(self, described: Mapping[str, Header | Tensor]) -> None:
        self._described = described

    def keys(self) -> Collection[str]:
        return self._described.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._described[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._described[name].dtype

    @abstractmethod
    def read(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """Return a tensor, or the part of it that `index` (leading dimensions) selects; it may be a view of a file."""


class TensorFiles(TensorSource):
    """The tensors of safetensors files; create it with `TensorFiles.open`. One file is open at a time.

    Raises:
        UserError: a tensor is of a type that torch does not have.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)  # in the order of the files: reading in this order opens each of them once
        self._path: Path | None = None
        super().__init__({name: self._header(name) for name in self._files})

    @classmethod
    def open(cls, path: str | Path) -> TensorFiles:
        """Open a file, or a directory with model.safetensors or with shards and their *.safetensors.index.json.

        Raises:
            MissingFileError: neither is there, or a shard is missing.
            UserError: a file is incomplete, or the index is none.
        """
        path = Path(path)
        single = path if path.is_file() else path / "model.safetensors"
        if single.is_file():
            return cls(dict.fromkeys(_open(single).keys(), single))
        indices = sorted(path.glob("*.safetensors.index.json"))
        if not indices:
            raise MissingFileError(
                f"{path}: expected a safetensors file, or a directory with model.safetensors or with shards and their "
                "model.safetensors.index.json"
            )
        return cls(_shards(indices[0]))

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        handle = self._handle(name)
        return handle.get_slice(name)[index] if index else handle.get_tensor(name)

    def _header(self, name: str) -> Header:
        header = self._handle(name).get_slice(name)
        code = header.get_dtype()
        if code not in DTYPES:
            raise UserError(f"{self._files[name]}: {name} is of type {code}, expected a torch type")
        return Header(tuple(header.get_shape()), DTYPES[code])

    def _handle(self, name: str) -> safe_open:
        if self._files[name] != self._path:
            self._path, self._open = self._files[name], _open(self._files[name])
        return self._open


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{file} is no complete safetensors file ({error}): copy it again") from error


def _shards(index: Path) -> dict[str, Path]:
    """Return the file of each tensor in the shards that an index names."""
    try:
        listed = read_json(index)["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is no index of shards: expected JSON with a weight_map") from error
    files: dict[str, Path] = {}
    for shard in sorted(set(listed.values())):
        file = index.parent / shard
        if not file.is_file():
            raise MissingFileError(f"{index} names the shard {shard}, which is missing beside it")
        files |= dict.fromkeys(_open(file).keys(), file)
    return files


class StateTensors(TensorSource):
    """The tensors of a state dict in memory, or mapped from a .pt file."""

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        tensor = self._described[name]
        return tensor[index] if index else tensor


def weights_digest(module: nn.Module, *, with_adapters: bool = True) -> str:
    """Return a hexadecimal checksum of all parameters and buffers: names, dtypes, shapes and values. Collective.

    Args:
        module: its tensors plain or sharded; a sharded one has the same checksum as a plain one.
        with_adapters: include adapters; without them the checksum is that of the weights that they were attached to.
    """
    total = hashlib.sha256()
    state = module.state_dict()
    if not with_adapters:
        state = {adapters.base_name(name): tensor for name, tensor in state.items()}
    for name in sorted(state.keys() - {None}):
        tensor = dtensor.full_tensor(state[name].detach())
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().reshape(-1).cpu().view(torch.uint8).numpy())
    return total.hexdigest()
