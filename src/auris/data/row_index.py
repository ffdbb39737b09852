"""Index of the rows of a manifest: the data needed to select and plan rows, and access to each row by its number.

The index consists of a few arrays, which are computed in one pass over the file and cached on disk.

Shapes: R rows of a manifest.
"""

from __future__ import annotations

import io
import os
import warnings
from abc import ABC, abstractmethod
from array import array
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from auris.data import array_cache, importers, row_files
from auris.data.importers import is_task_row
from auris.data.parallel_map import parallel_map
from auris.data.rows import FieldMap, Record, Row, decode_record, parse_line, row_key
from auris.errors import UserError, count
from auris.files import digest, file_digest

_VERSION = 4  # version of the format of cached arrays
_READ_LINES = 64  # maximum number of lines per read
_PIECE_BYTES = 2**23  # bytes that a process indexes at a time
_MAX_SHOWN_FIELDS = 20  # number of unused fields that the warning names


@dataclass(frozen=True, eq=False, kw_only=True)
class RowColumns:
    """Columns of numbers that describe all rows and are available without decoding the rows.

    Attributes:
        keys: (R,) uint64, `row_key` of each id.
        tasks: (R,) uint32, the task of each row, as an index into `codes`.
        codes: The names of these tasks, as written in the rows.
        lacks_duration: (R,) bool, True if the length of the row is known only from an audio file that the index's
            digest does not cover. If this file changes, the cached columns are still considered valid.
        row_positions: int64, positions of the rows in their files. The method `scan` of each index says what they mean.
        line_numbers: (R,) uint32, line numbers (of a JSON array: numbers of the rows from 1), from which row names are
            made; empty for Parquet files.
        unused_fields: Names of the fields of dialogues that nothing uses (`importers.unused_fields`).
        n_unused: (len(unused_fields),) int64, number of rows with each of these fields.
    """

    keys: np.ndarray
    tasks: np.ndarray
    codes: np.ndarray
    lacks_duration: np.ndarray
    row_positions: np.ndarray
    line_numbers: np.ndarray
    unused_fields: np.ndarray
    n_unused: np.ndarray


class Builder:
    """Builds RowColumns row by row."""

    def __init__(self) -> None:
        self.keys, self.tasks, self.lacks_duration = array("Q"), array("I"), bytearray()
        self.row_positions, self.line_numbers = array("q"), array("I")
        self._task_indices: dict[str, int] = {}
        self._n_unused: Counter[str] = Counter()

    def add(self, record: Record, folder: Path, *, is_audio_in_digest: bool = False) -> None:
        """Add a row.

        Args:
            record: Record of the row.
            folder: Folder that the audio paths of the row are relative to.
            is_audio_in_digest: Whether the digest of the index covers the row's audio; `lacks_duration` is then False.
        """
        fields = record.fields
        # Task rows are not decoded, because decoding would take two thirds of the total time.
        if fields is not None and record.problem is None and is_task_row(fields):
            task = fields.get("task")
            states_duration = fields.get("duration") is not None or not fields.get("audio")
        else:
            row = decode_record(record, folder)
            task = row.labels.get("task")
            states_duration = all(clip.duration is not None for clip in row.clips)
            if row.problem is None and task in ("chat", "preference"):
                self._n_unused.update(importers.unused_fields(row.labels))
        self.keys.append(row_key(record.id))
        self.tasks.append(self._task_indices.setdefault(f"{task!s:.80}", len(self._task_indices)))
        self.lacks_duration.append(not states_duration and not is_audio_in_digest)

    def extend(self, rows: RowColumns) -> None:
        """Add the rows that another builder has collected."""
        indices = [self._task_indices.setdefault(task, len(self._task_indices)) for task in rows.codes.tolist()]
        self.tasks.frombytes(np.array(indices, dtype=np.uint32)[rows.tasks].tobytes())
        for name in ("keys", "row_positions", "line_numbers"):
            getattr(self, name).frombytes(getattr(rows, name).tobytes())
        self.lacks_duration += rows.lacks_duration.tobytes()
        self._n_unused.update(dict(zip(rows.unused_fields.tolist(), rows.n_unused.tolist(), strict=True)))

    def build(self) -> RowColumns:
        """Return the columns of all rows added so far."""
        return RowColumns(
            keys=np.array(self.keys, dtype=np.uint64),
            tasks=np.array(self.tasks, dtype=np.uint32),
            codes=np.array(list(self._task_indices), dtype=np.str_),
            lacks_duration=np.frombuffer(bytes(self.lacks_duration), dtype=bool),
            row_positions=np.array(self.row_positions, dtype=np.int64),
            line_numbers=np.array(self.line_numbers, dtype=np.uint32),
            unused_fields=np.array(list(self._n_unused), dtype=np.str_),
            n_unused=np.array(list(self._n_unused.values()), dtype=np.int64),
        )


class RowIndex(ABC):
    """Base class of the indexes. An index gives access to the rows of one or several files in order.

    Args:
        path: The path as written in the config.
        folder: Folder that the rows' paths are relative to.
        field_map: Mapping of the fields in the file to auris fields.
        cache_dir: Directory for cached columns; None disables the cache.
    """

    def __init__(self, path: str, folder: Path, field_map: FieldMap, cache_dir: Path | None):
        self.path, self.folder, self.field_map = path, folder, field_map
        self.is_complete = True  # if False, a file could not be read, and the columns are not cached
        key = digest([_VERSION, type(self).__name__, self.digest, repr(field_map)])
        cache_file = None if cache_dir is None else cache_dir / f"rows-{key}.npz"
        arrays = None if cache_file is None else array_cache.load(cache_file)
        self.columns = RowColumns(**arrays) if arrays else self.scan()
        if cache_file is not None and not arrays and self.is_complete:
            array_cache.save(cache_file, **vars(self.columns))
        self._report_unused_fields()

    def _report_unused_fields(self) -> None:
        counts = zip(self.columns.unused_fields.tolist(), self.columns.n_unused.tolist(), strict=True)
        fields = [f"`{name}` ({count(n_rows, 'row')})" for name, n_rows in sorted(counts)]
        if fields:
            shown = ", ".join(fields[:_MAX_SHOWN_FIELDS])
            more = f" and {count(len(fields) - _MAX_SHOWN_FIELDS, 'more field')}" if fields[_MAX_SHOWN_FIELDS:] else ""
            warnings.warn(f"{self.path}: dialogues have fields that auris does not use: {shown}{more}", stacklevel=2)

    def __len__(self) -> int:
        return len(self.columns.keys)

    @property
    @abstractmethod
    def digest(self) -> str:
        """Digest of all files that the rows are read from."""

    @abstractmethod
    def scan(self) -> RowColumns:
        """Compute the columns in one pass over all rows."""

    @abstractmethod
    def row_name(self, number: int) -> str:
        """Return the name of a row, which is used as its id if the row has no id."""

    @abstractmethod
    def read_record(self, number: int) -> Record:
        """Read the record of one row."""

    def decode(self, record: Record) -> Row:
        """Decode a record of this index."""
        return decode_record(record, self.folder)

    def read_records(self, numbers: np.ndarray) -> Iterator[Record]:
        """Yield the records of the rows with the given numbers, which must be ascending."""
        return map(self.read_record, numbers.tolist())


class Lines(RowIndex):
    """Index of a JSONL file, a JSON array (`row_files`), or a text file (`.txt`).

    Each line of a text file is a text for the language model.
    """

    def __init__(self, path: Path, field_map: FieldMap, cache_dir: Path | None):
        self._path, self._is_text = path, path.suffix == ".txt"
        self._is_array = row_files.is_array(path)
        self._version = _file_version(os.stat(path))
        self._file: Any = None
        super().__init__(str(path), path.parent, field_map, cache_dir)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_file": None}  # each process opens its own file

    @cached_property
    def digest(self) -> str:
        """Digest of the file."""
        return file_digest(self._path)

    def scan(self) -> RowColumns:
        """Compute the columns. `row_positions` are the byte offsets of the rows, and of the end of the last one."""
        if self._is_array:
            return self._scan_array()
        pieces = list(_split_file(self._path))
        builder = Builder()
        for _, part in sorted(parallel_map(self._scan_piece, pieces), key=itemgetter(0)):
            builder.extend(part)
        builder.row_positions.append(pieces[-1].stop if pieces else 0)
        return builder.build()

    def _scan_array(self) -> RowColumns:
        builder, content = Builder(), self._path.read_bytes()
        spans = row_files.find_elements(content, str(self._path))
        for number, (start, stop) in enumerate(spans, start=1):
            builder.row_positions.append(start)
            builder.line_numbers.append(number)
            builder.add(self._parse(content[start:stop], self._line_name(number)), self.folder)
        builder.row_positions.append(spans[-1][1] if spans else 0)
        return builder.build()

    def _scan_piece(self, piece: _Piece) -> RowColumns:
        builder = Builder()
        start = piece.start
        with self._path.open("rb") as file:
            file.seek(start)
            lines = io.BytesIO(file.read(piece.stop - start))
        for number, line in enumerate(lines, start=piece.line):
            if line.strip():
                builder.row_positions.append(start)
                builder.line_numbers.append(number)
                builder.add(self._parse(line, self._line_name(number)), self.folder)
            start += len(line)
        return builder.build()

    def row_name(self, number: int) -> str:
        """Return the file name and line number of a row."""
        return self._line_name(self.columns.line_numbers[number])

    def read_record(self, number: int) -> Record:
        """Read one line."""
        return next(self._read_consecutive(number, 1))

    def read_records(self, numbers: np.ndarray) -> Iterator[Record]:
        """Yield records. Consecutive lines are read together, because reading one line takes as long as parsing it."""
        starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
        for consecutive in np.split(numbers, starts[1:]):
            for first in range(0, len(consecutive), _READ_LINES):
                n_lines = min(_READ_LINES, len(consecutive) - first)
                yield from self._read_consecutive(int(consecutive[first]), n_lines)

    def _read_consecutive(self, first: int, n_lines: int) -> Iterator[Record]:
        offsets = self.columns.row_positions[first : first + n_lines + 1].tolist()
        block = self._pread(offsets[0], offsets[-1])
        lines = self.columns.line_numbers[first : first + n_lines].tolist()
        for line, start, stop in zip(lines, offsets, offsets[1:], strict=False):
            yield self._parse(block[start - offsets[0] : stop - offsets[0]], self._line_name(line))

    def _pread(self, start: int, stop: int) -> bytes:
        if self._file is None:
            self._file = self._path.open("rb", buffering=0)
        version = _file_version(os.fstat(self._file.fileno()))
        if version != self._version and file_digest(self._path) != self.digest:
            raise UserError(
                f"{self._path} has changed since its rows were planned: restart, and put new rows into a new file"
            )
        self._version = version
        return os.pread(self._file.fileno(), stop - start, start)

    def _line_name(self, line: int) -> str:
        return f"{self._path.name}:{line}"

    def _parse(self, line: bytes, name: str) -> Record:
        if self._is_array:  # the commas between rows belong to no row
            line = line.rstrip(b", \t\r\n")
        if not self._is_text:
            return parse_line(line, name, self.field_map)
        try:
            return Record(name, {"task": "text", "text": line.removeprefix(BOM_UTF8).decode().strip()})
        except UnicodeDecodeError as error:
            return Record(name, None, f"not UTF-8: {error}")


class _Piece(NamedTuple):
    """Part of a file that ends at a line break: bytes [start, stop); its first line has number `line` (from 1)."""

    start: int
    stop: int
    line: int


def _split_file(path: Path) -> Iterator[_Piece]:
    start, line = 0, 1
    with path.open("rb") as file:
        while block := file.read(_PIECE_BYTES) + file.readline():
            yield _Piece(start, start + len(block), line)
            start += len(block)
            line += block.count(b"\n")


def _file_version(status: os.stat_result) -> tuple[int, int]:
    """Return size and modification time, which change when the file is written."""
    return status.st_size, status.st_mtime_ns
