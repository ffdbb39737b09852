"""Reader of Parquet files with rows and audio, which loads one row group at a time.

Every failure to read, from any storage, becomes a ShardError that names the file. A failed read is repeated once.

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

MAX_OPEN_FILES = 16  # number of files that a process keeps open; each footer takes a few hundred kilobytes
MAX_TABLES = 2  # number of tables that a process keeps in memory: fields and audio of the current row group

T = TypeVar("T")


class ShardError(AudioError):
    """A file of rows cannot be read. The message names the file."""


class UndecodableError(ShardError):
    """Data in a file cannot be decoded, for example because they are not UTF-8. Reading them again would not help."""


@dataclass(frozen=True, kw_only=True)
class File:
    """Description of a finished Parquet file written by auris.

    Attributes:
        name: File name.
        rows: Number of rows.
        bytes: Size of the file in bytes.
        sha256: Checksum of the file.
        footer_bytes: Size of the footer in bytes.
        footer: SHA-256 of the footer, which contains the positions of all data.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    footer_bytes: int
    footer: str


def _open_source(system: Any, path: str) -> pa.NativeFile:
    """Open a file for pyarrow. Local files are opened without fsspec."""
    if isinstance(system, LocalFileSystem):
        return pa.OSFile(path)
    return pa.PythonFile(system.open(path, "rb", cache_type="none"), mode="r")


def wrap_errors(what: str, action: Callable[[], T], kind: type[ShardError] = ShardError) -> T:
    """Return the result of an action on a file.

    An exception of any storage library becomes an error of type `kind`. Its message begins with `what`, which names the
    file or the part of it that is read.
    """
    try:
        return action()
    except (ShardError, MissingFileError):
        raise
    except Exception as error:
        raise kind(f"{what}: cannot be read ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class Columns:
    """Columns of a file, by their paths in the schema.

    Attributes:
        fields: Columns with the fields of a row.
        sound: Columns with the bytes of the audio; empty if the file contains no audio or only paths.
        audio_field: Name of the auris field that holds the audio, such as `audio`; empty if the file has no audio.
        fields_omit_audio: Whether `fields` contains nothing about the audio, not even its path.
        sound_has_nulls: Whether some clips may have no bytes, so that only their paths lead to the audio.
    """

    fields: list[str]
    sound: list[str]
    audio_field: str = ""
    fields_omit_audio: bool = False
    sound_has_nulls: bool = False


@dataclass(frozen=True, eq=False)
class _OpenFile:
    """An open file whose footer has been read and checked."""

    parquet: pq.ParquetFile
    columns: Columns
    ends: np.ndarray  # (G,) number of rows up to the end of each row group


class Reader:
    """Reader of Parquet files, which keeps a few files open and the last row groups in memory.

    Args:
        system: File system of fsspec.
        paths: Paths of the files.
        columns: Function that returns the columns of an open Parquet file.
        expected: Expected sizes and checksums of the files; empty if they are not known.
    """

    def __init__(
        self,
        system: Any,
        paths: Sequence[str],
        columns: Callable[[pq.ParquetFile], Columns],
        expected: Sequence[File] = (),
    ):
        self.system, self.paths, self.columns, self.expected = system, list(paths), columns, expected
        self._reset_caches()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._reset_caches()

    def _reset_caches(self) -> None:
        self._owner = os.getpid()  # a forked process must open its own connections
        self._open_cached = lru_cache(MAX_OPEN_FILES)(self._open)
        self._load_cached = lru_cache(MAX_TABLES)(self._load)

    def row_name(self, file: int, row: int) -> str:
        """Return the name of a row, which consists of the file name and the number of the row."""
        return f"{self.paths[file].rpartition('/')[2]}:{row}"

    def open(self, file: int) -> _OpenFile:
        """Open a file, read its footer and compare it with the expected footer.

        Raises:
            ShardError: The file cannot be opened or is damaged.
        """
        if self._owner != os.getpid():
            self._reset_caches()
        return wrap_errors(self.paths[file], lambda: self._open_cached(file))

    def _open(self, file: int) -> _OpenFile:
        source = _open_source(self.system, self.paths[file])
        footer = None
        if self.expected:
            expected = self.expected[file]
            if source.size() != expected.bytes:
                raise UserError(f"it has {source.size()} bytes, expected {expected.bytes}")
            source.seek(expected.bytes - expected.footer_bytes)
            tail = source.read(expected.footer_bytes)
            if sha256_of(tail) != expected.footer:
                raise UserError("its footer does not match its checksum")
            footer = pq.read_metadata(pa.BufferReader(tail))
        parquet = pq.ParquetFile(source, metadata=footer, pre_buffer=False, page_checksum_verification=True)
        metadata = parquet.metadata
        n_rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        ends = np.cumsum(n_rows, dtype=np.int64)
        return _OpenFile(parquet, self.columns(parquet), ends)

    def load(self, file: int, group: int, columns: Sequence[str]) -> pa.Table:
        """Load columns of a row group.

        Raises:
            ShardError: The columns cannot be read, or a page does not match its checksum.
        """

        def read() -> pa.Table:
            return self.open(file).parquet.read_row_group(group, columns=list(columns), use_threads=False)

        what = f"{self.paths[file]}, row group {group}"
        try:
            return wrap_errors(what, read)
        except ShardError:  # if the connection has failed, a new connection may work
            self._open_cached.cache_clear()
            return wrap_errors(what, read)

    def read_fields(self, file: int, row: int) -> Fields:
        """Read the fields of a row without its audio. Raises ShardError."""
        table, position = self._row_group(file, row, is_sound=False)
        return to_rows(self.row_name(file, row), table.slice(position, 1))[0]

    def read_sound(self, file: int, row: int, clip: int) -> bytes | None:
        """Read the audio file of a clip; None if the row has no such clip. Raises ShardError."""
        sounds = self._read_sounds(file, row)
        return sounds[clip] if clip < len(sounds) else None

    def find_stored(self, file: int, row: int) -> list[bool]:
        """Return for each clip of a row whether the file holds its audio. Raises ShardError."""
        return [sound is not None for sound in self._read_sounds(file, row)]

    def _read_sounds(self, file: int, row: int) -> list[bytes | None]:
        table, position = self._row_group(file, row, is_sound=True)
        clips = as_list(wrap_errors(self.row_name(file, row), lambda: table.column(0)[position].as_py()))
        return [clip.get("bytes") if isinstance(clip, Mapping) else clip for clip in clips]

    def _row_group(self, file: int, row: int, *, is_sound: bool) -> tuple[pa.Table, int]:
        """Return the row group that contains a row, and the position of the row in the group."""
        opened = self.open(file)
        group = int(np.searchsorted(opened.ends, row, side="right"))
        return self._load_cached(file, group, is_sound), row - (int(opened.ends[group - 1]) if group else 0)

    def _load(self, file: int, group: int, is_sound: bool) -> pa.Table:
        columns = self.open(file).columns
        return self.load(file, group, columns.sound if is_sound else columns.fields)


@dataclass(eq=False)
class StoredSound:
    """An audio file stored in a Parquet file (an `audio.Sound`).

    Attributes:
        reader: Reader of the Parquet file.
        file: Number of the file.
        row: Number of the row in the file.
        clip: Number of the clip in the row.
        name: File name of the audio.
        n_samples: Number of samples at 16 kHz; None if it is not known.
        problem: Why the audio could not be stored, or None.
    """

    reader: Reader
    file: int
    row: int
    clip: int
    name: str
    n_samples: int | None = None
    problem: str | None = None

    def __str__(self) -> str:
        return f"{self.name} in {self.reader.row_name(self.file, self.row)}"

    def read(self) -> bytes:
        """Return the content of the audio file. Raises AudioError."""
        if self.problem:
            raise AudioError(self.problem)
        content = self.reader.read_sound(self.file, self.row, self.clip)
        if not content:
            raise AudioError(f"{self}: no audio is stored there")
        return content


def to_rows(name: str, table: pa.Table) -> list[Fields]:
    """Convert a table to the fields of its rows. Raises UndecodableError."""
    return wrap_errors(name, lambda: table.to_pylist(maps_as_pydicts="strict"), UndecodableError)


def as_list(value: Any) -> list[Any]:
    """Return a list unchanged, None as an empty list, and any other value as a list of one value."""
    return value if isinstance(value, list) else [] if value is None else [value]


def sha256_of(*pieces: bytes) -> str:
    """Return the hexadecimal SHA-256 of pieces joined by null bytes."""
    return hashlib.sha256(b"\0".join(pieces)).hexdigest()
