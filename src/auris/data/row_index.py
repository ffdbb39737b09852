"""Index of the rows of a manifest: what selecting and planning rows needs, and access to each row by its number.

The index is a few arrays of numbers, computed in one pass and cached on disk.

Shapes: R rows of a manifest.
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from auris.data import array_cache
from auris.data.parallel_map import parallel_map
from auris.data.rows import FieldMap, Record, Row, decode, is_task_row, parse, row_key
from auris.errors import UserError
from auris.files import digest, file_digest

_VERSION = 2  # of the arrays on disk
_TOGETHER = 64  # lines read at once
_PIECE = 2**23  # bytes that a process indexes at a time


@dataclass(frozen=True, eq=False, kw_only=True)
class RowColumns:
    """What is known about rows without decoding them.

    Attributes:
        keys: (R,) uint64, `row_key` of each id.
        tasks: (R,) uint32, place in `codes`.
        codes: names of tasks, as the rows have them.
        lacks_duration: (R,) bool: the length of a clip is not stated and must be read from its file.
        places: int64, where the rows stand; each kind of index has its own way of counting.
        names: (R,) uint32, the numbers in the names of rows without an id, likewise.
    """

    keys: np.ndarray
    tasks: np.ndarray
    codes: np.ndarray
    lacks_duration: np.ndarray
    places: np.ndarray
    names: np.ndarray


class Builder:
    """Collects the columns row by row."""

    def __init__(self) -> None:
        self.keys, self.tasks, self.lacks_duration = array("Q"), array("I"), bytearray()
        self.places, self.names = array("q"), array("I")
        self._codes: dict[str, int] = {}

    def add(self, record: Record, folder: Path, *, has_lengths: bool = False) -> None:
        """Add a row. `has_lengths`: the lengths of its clips are known whether they are stated or not."""
        fields = record.fields
        # Most rows need not be decoded, which takes two thirds of the time.
        if fields is not None and record.problem is None and is_task_row(fields):
            code = fields.get("task")
            lacks_duration = not has_lengths and fields.get("duration") is None and bool(fields.get("audio"))
        else:
            row = decode(record, folder)
            code = row.labels.get("task")
            lacks_duration = not has_lengths and any(clip.duration is None for clip in row.clips)
        self.keys.append(row_key(record.id))
        self.tasks.append(self._codes.setdefault(f"{code!s:.80}", len(self._codes)))
        self.lacks_duration.append(lacks_duration)

    def extend(self, rows: RowColumns) -> None:
        """Add rows that another builder has collected."""
        codes = [self._codes.setdefault(code, len(self._codes)) for code in rows.codes.tolist()]
        self.tasks.frombytes(np.array(codes, dtype=np.uint32)[rows.tasks].tobytes())
        for name in ("keys", "places", "names"):
            getattr(self, name).frombytes(getattr(rows, name).tobytes())
        self.lacks_duration += rows.lacks_duration.tobytes()

    def build(self) -> RowColumns:
        return RowColumns(
            keys=np.array(self.keys, dtype=np.uint64),
            tasks=np.array(self.tasks, dtype=np.uint32),
            codes=np.array(list(self._codes), dtype=np.str_),
            lacks_duration=np.frombuffer(bytes(self.lacks_duration), dtype=bool),
            places=np.array(self.places, dtype=np.int64),
            names=np.array(self.names, dtype=np.uint32),
        )


class RowIndex(ABC):
    """The rows of one file, or of several that belong together, in their order.

    Args:
        path: as the config has it.
        folder: what the rows' paths are relative to.
        form: how the rows are read.
        cache_dir: where the columns are cached; None: they are not.
    """

    def __init__(self, path: str, folder: Path, form: FieldMap, cache_dir: Path | None):
        self.path, self.folder, self.form = path, folder, form
        self.is_read = True  # False: something could not be read now; the next start tries again
        key = digest([_VERSION, type(self).__name__, self.digest, repr(form)])
        file = None if cache_dir is None else cache_dir / f"rows-{key}.npz"
        stored = None if file is None else array_cache.load(file)
        self.columns = RowColumns(**stored) if stored else self.scan()
        if file is not None and not stored and self.is_read:
            array_cache.save(file, **vars(self.columns))

    def __len__(self) -> int:
        return len(self.columns.keys)

    @property
    @abstractmethod
    def digest(self) -> str:
        """Of all that the rows are read from."""

    @abstractmethod
    def scan(self) -> RowColumns:
        """Go through all rows once."""

    @abstractmethod
    def name(self, number: int) -> str:
        """What a row is called that brings no id."""

    @abstractmethod
    def record(self, number: int) -> Record:
        """One row, wherever it stands."""

    def decode(self, record: Record) -> Row:
        return decode(record, self.folder)

    def records(self, numbers: np.ndarray) -> Iterator[Record]:
        """Rows with ascending numbers, one after the other."""
        return map(self.record, numbers.tolist())


class Lines(RowIndex):
    """One JSON object a line (JSONL), or plain text lines (`.txt`) for the language model alone."""

    def __init__(self, path: Path, form: FieldMap, cache_dir: Path | None):
        self._path, self._is_text = path, path.suffix == ".txt"
        self._stamp = _stamp(os.stat(path))
        self._file: Any = None
        super().__init__(str(path), path.parent, form, cache_dir)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_file": None}  # each process opens the file for itself

    @cached_property
    def digest(self) -> str:
        return file_digest(self._path)

    def scan(self) -> RowColumns:
        """`places`: where each row begins, and where the last one ends; `names`: numbers of their lines."""
        pieces = list(_pieces(self._path))
        builder = Builder()
        for _, part in sorted(parallel_map(self._scan, pieces), key=itemgetter(0)):
            builder.extend(part)
        builder.places.append(pieces[-1].stop if pieces else 0)
        return builder.build()

    def _scan(self, piece: _Piece) -> RowColumns:
        builder = Builder()
        start = piece.start
        with self._path.open("rb") as file:
            file.seek(start)
            lines = io.BytesIO(file.read(piece.stop - start))
        for number, line in enumerate(lines, start=piece.line):
            if line.strip():
                builder.places.append(start)
                builder.names.append(number)
                builder.add(self._parse(line, self._name(number)), self.folder)
            start += len(line)
        return builder.build()

    def name(self, number: int) -> str:
        return self._name(self.columns.names[number])

    def record(self, number: int) -> Record:
        return next(self._neighbours(number, 1))

    def records(self, numbers: np.ndarray) -> Iterator[Record]:
        """Neighbours are read together: a read of its own for each takes as long as to parse it."""
        starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
        for run in np.split(numbers, starts[1:]):
            for first in range(0, len(run), _TOGETHER):
                yield from self._neighbours(int(run[first]), min(_TOGETHER, len(run) - first))

    def _neighbours(self, first: int, number: int) -> Iterator[Record]:
        places = self.columns.places[first : first + number + 1].tolist()
        block = self._pread(places[0], places[-1])
        names = self.columns.names[first : first + number].tolist()
        for name, start, stop in zip(names, places, places[1:], strict=False):
            yield self._parse(block[start - places[0] : stop - places[0]], self._name(name))

    def _pread(self, start: int, stop: int) -> bytes:
        if self._file is None:
            self._file = self._path.open("rb", buffering=0)
        stamp = _stamp(os.fstat(self._file.fileno()))
        if stamp != self._stamp and file_digest(self._path) != self.digest:
            raise UserError(
                f"{self._path} has changed since its rows were planned: start again, and give new rows their own file"
            )
        self._stamp = stamp
        return os.pread(self._file.fileno(), stop - start, start)

    def _name(self, line: int) -> str:
        return f"{self._path.name}:{line}"

    def _parse(self, line: bytes, name: str) -> Record:
        if not self._is_text:
            return parse(line, name, self.form)
        try:
            return Record(name, {"task": "text", "text": line.decode().strip()})
        except UnicodeDecodeError as error:
            return Record(name, None, f"not UTF-8: {error}")


class _Piece(NamedTuple):
    """Whole lines of a file: from `start` to before `stop`, in bytes. The first of them is number `line`, from 1."""

    start: int
    stop: int
    line: int


def _pieces(path: Path) -> Iterator[_Piece]:
    start, line = 0, 1
    with path.open("rb") as file:
        while block := file.read(_PIECE) + file.readline():
            yield _Piece(start, start + len(block), line)
            start += len(block)
            line += block.count(b"\n")


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
