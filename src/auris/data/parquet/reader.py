"""Parquet files that hold rows and their sound, read a row group at a time.

Whatever fails, at whichever storage, is the file's fault and named so; what failed once is asked for once more.

Shapes: G row groups of a file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from auris.data.importers import Fields
from auris.errors import AudioError, MissingFileError, UserError

OPEN_FILES = 16  # kept open by a process: a footer of a few hundred kilobytes each
TABLES = 2  # row groups kept in memory by a process: the fields of the row at hand, and its sound

T = TypeVar("T")


class ShardError(AudioError):
    """A file of rows that cannot be read; the message names it."""


class UndecodableError(ShardError):
    """What was read of a file means nothing, as bytes that are no text: reading them again is of no use."""


@dataclass(frozen=True, kw_only=True)
class File:
    """A finished Parquet file of ours."""

    name: str
    rows: int
    bytes: int
    sha256: str
    footer_bytes: int
    footer: str  # sha256 of its last `footer_bytes` bytes: what says where everything else stands


def _source(system: Any, path: str) -> pa.NativeFile:
    """A file to read from at any place. Reads do not move one shared position: processes may share a local one."""
    if isinstance(system, LocalFileSystem):
        return pa.OSFile(path)
    return pa.PythonFile(system.open(path, "rb", cache_type="none"), mode="r")


def attempt(what: str, action: Callable[[], T], kind: type[ShardError] = ShardError) -> T:
    """What an action on a file returns. Whatever fails, whichever storage library raises it, is the file's fault."""
    try:
        return action()
    except (ShardError, MissingFileError):
        raise
    except Exception as error:
        raise kind(f"{what}: cannot be read ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold a row's fields, which its sound, and what the fields call it ("": no sound here).

    `is_hidden`: nothing of the sound is among the fields, not even its name.
    """

    fields: list[str]
    sound: list[str]
    name: str = ""
    is_hidden: bool = False


@dataclass(frozen=True, eq=False)
class _Opened:
    parquet: pq.ParquetFile
    columns: Columns
    ends: np.ndarray  # (G,) rows up to the end of each group


class Reader:
    """Parquet files, read a row group at a time. A few stay open, and what was read last stays in memory.

    Args:
        columns: of a file, told from its schema.
        stated: what the files should be, where that is known.
    """

    def __init__(
        self,
        system: Any,
        paths: Sequence[str],
        columns: Callable[[pq.ParquetFile], Columns],
        stated: Sequence[File] = (),
    ):
        self.system, self.paths, self.columns, self.stated = system, list(paths), columns, stated
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._owner = os.getpid()  # connections and read-ahead of fsspec do not survive a fork
        self._opened = lru_cache(OPEN_FILES)(self._open)
        self._tables = lru_cache(TABLES)(self._load)

    def name(self, file: int, row: int) -> str:
        return f"{self.paths[file].rpartition('/')[2]}:{row}"

    def open(self, file: int) -> _Opened:
        """A file whose footer is read and, where it is known, compared. Raises ShardError."""
        if self._owner != os.getpid():
            self._forget()
        return attempt(self.paths[file], lambda: self._opened(file))

    def _open(self, file: int) -> _Opened:
        source = _source(self.system, self.paths[file])
        footer = None
        if self.stated:
            stated = self.stated[file]
            if source.size() != stated.bytes:
                raise UserError(f"it has {source.size()} bytes, expected {stated.bytes}")
            source.seek(stated.bytes - stated.footer_bytes)
            tail = source.read(stated.footer_bytes)
            if sha256_of(tail) != stated.footer:
                raise UserError("the checksum of its footer is another")
            footer = pq.read_metadata(pa.BufferReader(tail))
        parquet = pq.ParquetFile(source, metadata=footer, pre_buffer=False, page_checksum_verification=True)
        facts = parquet.metadata
        ends = np.cumsum([facts.row_group(group).num_rows for group in range(facts.num_row_groups)], dtype=np.int64)
        return _Opened(parquet, self.columns(parquet), ends)

    def load(self, file: int, group: int, columns: Sequence[str]) -> pa.Table:
        """Columns of a row group. Raises ShardError, also where a page does not fit its checksum."""

        def read() -> pa.Table:
            return self.open(file).parquet.read_row_group(group, columns=list(columns), use_threads=False)

        what = f"{self.paths[file]}, row group {group}"
        try:
            return attempt(what, read)
        except ShardError:  # perhaps the connection's fault: a new one is made
            self._opened.cache_clear()
            return attempt(what, read)

    def fields(self, file: int, row: int) -> Fields:
        """A row without its sound. Raises ShardError."""
        table, place = self._around(file, row, is_sound=False)
        return to_rows(self.name(file, row), table.slice(place, 1))[0]

    def sound(self, file: int, row: int, clip: int) -> bytes | None:
        """A sound file, None where there is none. Raises ShardError."""
        table, place = self._around(file, row, is_sound=True)
        found = as_list(attempt(self.name(file, row), lambda: table.column(0)[place].as_py()))
        content = found[clip] if clip < len(found) else None
        return content.get("bytes") if isinstance(content, Mapping) else content

    def _around(self, file: int, row: int, *, is_sound: bool) -> tuple[pa.Table, int]:
        """The row group that holds a row, and the row's place in it."""
        opened = self.open(file)
        group = int(np.searchsorted(opened.ends, row, side="right"))
        return self._tables(file, group, is_sound), row - (int(opened.ends[group - 1]) if group else 0)

    def _load(self, file: int, group: int, is_sound: bool) -> pa.Table:
        columns = self.open(file).columns
        return self.load(file, group, columns.sound if is_sound else columns.fields)


@dataclass(frozen=True, eq=False)
class StoredSound:
    """A sound file in a Parquet file: `audio.Sound`."""

    reader: Reader
    file: int
    row: int
    clip: int
    name: str
    samples: int | None = None
    problem: str | None = None

    def __str__(self) -> str:
        return f"{self.name} in {self.reader.name(self.file, self.row)}"

    def read(self) -> bytes:
        if self.problem:
            raise AudioError(self.problem)
        content = self.reader.sound(self.file, self.row, self.clip)
        if content is None:
            raise AudioError(f"{self}: no sound is stored there")
        return content


def to_rows(name: str, table: pa.Table) -> list[Fields]:
    """Raises UndecodableError."""
    return attempt(name, lambda: table.to_pylist(maps_as_pydicts="strict"), UndecodableError)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def sha256_of(*pieces: bytes) -> str:
    return hashlib.sha256(b"\0".join(pieces)).hexdigest()
