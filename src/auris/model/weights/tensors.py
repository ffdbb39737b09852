"""Sources of named tensors, in files or in memory, and a checksum of all weights of a module."""

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

DTYPES = {  # by the code of a dtype in safetensors headers
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
    """Shape and dtype of a tensor, known before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorSource(ABC):
    """Source of named tensors, which are read one at a time, in full or in slices.

    Args:
        headers: shape and dtype of each tensor, or the tensors themselves.
    """

    def __init__(self, headers: Mapping[str, Header] | Mapping[str, Tensor]) -> None:
        self._headers = headers

    def keys(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self._headers.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._headers[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        return self._headers[name].dtype

    @abstractmethod
    def read(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """Return a tensor, or the part that `index` selects in its first dimensions. It may be a view of a file."""


class TensorFiles(TensorSource):
    """Tensors of safetensors files, created by `TensorFiles.open`. One file is open at a time.

    Raises:
        UserError: torch does not have the type of a tensor.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)  # name -> file; grouped by file, so reading in this order opens each file once
        self._path: Path | None = None
        super().__init__({name: self._header(name) for name in self._files})

    @classmethod
    def open(cls, path: str | Path) -> TensorFiles:
        """Open a safetensors file, or a directory with model.safetensors or with shards and their index.

        Raises:
            MissingFileError: there are no such files, or a shard is missing.
            UserError: a file is incomplete, or the index is invalid.
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
        return cls(_locate_tensors(indices[0]))

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """Read a tensor or a slice of it from its file."""
        handle = self._handle(name)
        return handle.get_slice(name)[index] if index else handle.get_tensor(name)

    def _header(self, name: str) -> Header:
        header = self._handle(name).get_slice(name)
        code = header.get_dtype()
        if code not in DTYPES:
            raise UserError(f"{self._files[name]}: {name} has type {code}, which torch does not support")
        return Header(tuple(header.get_shape()), DTYPES[code])

    def _handle(self, name: str) -> safe_open:
        if self._files[name] != self._path:
            self._path, self._open = self._files[name], _open(self._files[name])
        return self._open


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{file} is not a complete safetensors file ({error}): copy it again") from error


def _locate_tensors(index: Path) -> dict[str, Path]:
    """Return the file of each tensor in the shards that an index names."""
    try:
        weight_map = read_json(index)["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is not an index of shards: expected JSON with a weight_map") from error
    files: dict[str, Path] = {}
    for shard in sorted(set(weight_map.values())):
        file = index.parent / shard
        if not file.is_file():
            raise MissingFileError(f"{index} names the shard {shard}, which is missing in the same directory")
        files |= dict.fromkeys(_open(file).keys(), file)
    return files


class StateTensors(TensorSource):
    """Tensors of a state dict in memory, or mapped from a .pt file."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__(state)
        self._state = state

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """Return a tensor or a slice of it, without a copy."""
        tensor = self._state[name]
        return tensor[index] if index else tensor


def weights_digest(module: nn.Module, *, with_adapters: bool = True) -> str:
    """Return a hexadecimal checksum of all parameters and buffers: names, dtypes, shapes and values. Collective.

    Args:
        module: a plain or sharded module. Sharding does not change the checksum.
        with_adapters: include adapters. If false, the checksum equals that of the same module without adapters.
    """
    digest = hashlib.sha256()
    state: dict[str, Tensor] = dict(module.state_dict())
    if not with_adapters:
        state = {base: tensor for name, tensor in state.items() if (base := adapters.base_name(name)) is not None}
    for name in sorted(state):
        tensor = dtensor.full_tensor(state[name].detach())
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()
