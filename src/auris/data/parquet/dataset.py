"""Directories of shards, as `auris shards` writes them: rows with their sound in Parquet.

A directory holds `shard-NNNNN.parquet` (each row as its manifest had it, its sound files beside it), an `index.parquet`
with all that planning needs, and `shards.json`, written last, with sizes and checksums.

Unusual here: row groups are half a megabyte, so that a row costs one short read wherever it lies; pages carry their
checksum, and footers are compared with `shards.json` before they are believed.

Shapes: R rows.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from auris.data.parquet.reader import (
    Columns,
    File,
    Reader,
    ShardError,
    StoredSound,
    UndecodableError,
    attempt,
    sha256_of,
)
from auris.data.row_index import RowColumns, RowIndex
from auris.data.rows import FieldMap, Fields, Record, TransientProblem
from auris.errors import MissingFileError, UserError

VERSION = 1
CONTENTS, INDEX, SHARD = "shards.json", "index.parquet", "shard-{:05d}.parquet"

SOUND = {"path": pa.string(), "samples": pa.int64(), "problem": pa.string()}
SHARD_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "row": pa.string(),  # JSON
        "problem": pa.string(),  # why the row cannot be used, if it cannot
        "audio": pa.list_(pa.struct({"bytes": pa.binary(), **SOUND})),  # its clips, as a hub data set has them
    }
)
INDEX_SCHEMA = pa.schema(
    {
        "key": pa.uint64(),
        "task": pa.string(),
        **{name: SHARD_SCHEMA.field(name).type for name in ("id", "row", "problem")},
        "audio": pa.list_(pa.struct(SOUND)),
    }
)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a directory of shards holds (`shards.json`).

    `source` is the digest of what was packed, `problems` how many of its rows cannot be used.
    """

    source: str
    rows_per_shard: int
    problems: int
    index: File
    shards: tuple[File, ...]

    def dump(self) -> str:
        facts = {"version": VERSION, **asdict(self)}
        return json.dumps({**facts, "sha256": sha256_of(json.dumps(facts).encode())}, indent=1)

    @classmethod
    def parse(cls, text: str, where: str) -> Contents:
        """Raises UserError for contents that are damaged or of another version."""
        try:
            facts = json.loads(text)
            stated = facts.pop("sha256")
            if sha256_of(json.dumps(facts).encode()) != stated:
                raise UserError("its checksum is another")
            if facts.pop("version") != VERSION:
                raise UserError(f"expected version {VERSION}")
            index, shards = File(**facts.pop("index")), tuple(File(**entry) for entry in facts.pop("shards"))
            names = [INDEX, *(SHARD.format(number) for number in range(len(shards)))]
            if [index.name, *(file.name for file in shards)] != names:  # no other file is opened
                raise UserError(f"it names other files than {INDEX} and {SHARD.format(0)} and so on")
            return cls(index=index, shards=shards, **facts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where} is no list of shards: {error}") from error


def is_url(path: str | Path) -> bool:
    return "://" in str(path) or "::" in str(path)


def is_parquet(path: str | Path) -> bool:
    """Whether rows are read from there as Parquet: by the file's ending, or since it is a directory or a URL."""
    given = str(path)
    return given.endswith(".parquet") or is_url(path) or Path(given).is_dir()


def find(path: str | Path) -> tuple[Any, list[str]]:
    """The file system that a path or URL names, and the files: `shards.json` of a directory, or Parquet files.

    Raises FileNotFoundError if nothing is there, ValueError for a URL that nothing installed can read or whose storage
    does not answer.
    """
    given = str(path)
    try:
        system, place = fsspec.url_to_fs(given)
    except ImportError as error:  # its message says what to install
        raise UserError(f"{given} cannot be read: {error}") from error
    return system, attempt(given, lambda: _files(system, place.rstrip("/"), given))


def _files(system: Any, place: str, given: str) -> list[str]:
    if given.endswith(".parquet"):
        found = [place] if system.exists(place) else sorted(system.glob(place))
        if not found:
            raise MissingFileError(f"there is no file {given}")
        return found
    if not system.exists(f"{place}/{CONTENTS}"):
        hint = f"; Parquet of others is given as {given}/*.parquet"
        if system.glob(f"{place}/{SHARD.format(0)[:6]}*"):
            hint = ": its packing was not finished, give the same command again"
        raise MissingFileError(f"{given} has no {CONTENTS}{hint}")
    return [f"{place}/{CONTENTS}"]


COLUMNS = Columns(
    fields=["id", "row", "problem", *(f"audio.list.element.{name}" for name in SOUND)],
    sound=["audio.list.element.bytes"],
    name="audio",
)


def _columns(parquet: pq.ParquetFile) -> Columns:
    return COLUMNS


def shard_reader(system: Any, folder: str, files: Sequence[File]) -> Reader:
    """Return a reader of shards, or of an index, that checks what is stated about the files."""
    return Reader(system, [f"{folder}/{file.name}" for file in files], _columns, files)


class FileRows(RowIndex):
    """The rows of several Parquet files, numbered through all of them.

    Attributes:
        reader: of the files.
        ends: rows up to the end of each file.
    """

    reader: Reader
    ends: np.ndarray

    def name(self, number: int) -> str:
        return self.reader.name(*self._place(number))

    def record(self, number: int) -> Record:
        return self._record_at(*self._place(number))

    def _place(self, number: int) -> tuple[int, int]:
        """The row's file, and its number in it."""
        file = int(np.searchsorted(self.ends, number, side="right"))
        return file, number - (int(self.ends[file - 1]) if file else 0)

    def _record_at(self, file: int, row: int) -> Record:
        try:
            return self._record(file, row, self.reader.fields(file, row))
        except ShardError as error:
            reason = str(error) if isinstance(error, UndecodableError) else TransientProblem(error)
            return Record(self.reader.name(file, row), None, reason)

    @abstractmethod
    def _record(self, file: int, row: int, fields: Fields) -> Record:
        """A row from its columns."""


class Shards(FileRows):
    """The rows of a directory of shards."""

    def __init__(self, path: str, form: FieldMap, cache_dir: Path | None):
        if form != FieldMap():
            raise UserError(f"{path}: its rows are auris's own: `columns` and `labels` are given when they are packed")
        system, [place] = find(path)
        folder = place.rpartition("/")[0]
        self.contents = Contents.parse(attempt(place, lambda: system.cat_file(place)).decode(errors="replace"), place)
        self.reader = shard_reader(system, folder, [*self.contents.shards, self.contents.index])
        self.faults = self._find_faults(folder)
        self.ends = np.cumsum([file.rows for file in self.contents.shards])
        super().__init__(path, Path(folder), form, cache_dir)

    def _find_faults(self, folder: str) -> dict[int, str]:
        """Shards that are missing or of another size, by one look at their directory."""
        listed = attempt(folder, lambda: self.reader.system.ls(folder, detail=True))
        sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in listed}
        faults = {}
        for number, file in enumerate(self.contents.shards):
            size = sizes.get(file.name)
            if size != file.bytes:
                fault = "no such shard" if size is None else f"it has {size} bytes, expected {file.bytes}"
                faults[number] = f"{self.reader.paths[number]}: {fault}"
        return faults

    @cached_property
    def digest(self) -> str:
        return sha256_of(self.contents.dump().encode(), json.dumps(self.faults).encode())

    def scan(self) -> RowColumns:
        file = len(self.contents.shards)
        try:
            groups = range(len(self.reader.open(file).ends))
            table = pa.concat_tables([self.reader.load(file, group, ["key", "task"]) for group in groups])
        except ShardError as error:
            raise UserError(f"{error}. The command that packed {self.path}, given again, makes it anew") from error
        task = table.column("task").combine_chunks().dictionary_encode()
        return RowColumns(
            keys=table.column("key").to_numpy(),
            tasks=task.indices.to_numpy(zero_copy_only=False).astype(np.uint32),
            codes=np.array(task.dictionary.to_pylist(), dtype=np.str_),
            lacks_duration=np.zeros(len(table), dtype=bool),  # the digest covers the sound
            places=np.zeros(0, dtype=np.int64),
            names=np.zeros(0, dtype=np.uint32),
        )

    def records(self, numbers: np.ndarray) -> Iterator[Record]:
        """From the index, which holds everything but the sound."""
        start, index = 0, len(self.contents.shards)
        for group, end in enumerate(self.reader.open(index).ends.tolist()):
            chosen = numbers[np.searchsorted(numbers, start) : np.searchsorted(numbers, end)]
            if len(chosen):
                table = self.reader.load(index, group, ["id", "row", "problem", "audio"])
                found = table.take(pa.array(chosen - start)).to_pylist()
                for number, fields in zip(chosen.tolist(), found, strict=True):
                    file, row = self._place(number)
                    fault = self.faults.get(file)
                    yield Record(self.name(number), None, fault) if fault else self._record(file, row, fields)
            start = end

    def _record_at(self, file: int, row: int) -> Record:
        if file in self.faults:
            return Record(self.reader.name(file, row), None, self.faults[file])
        return super()._record_at(file, row)

    def _record(self, file: int, row: int, fields: Fields) -> Record:
        name = self.reader.name(file, row)
        try:
            sounds = tuple(
                StoredSound(self.reader, file, row, place, clip["path"], clip["samples"], clip["problem"])
                for place, clip in enumerate(fields["audio"] or ())
            )
            given = {**json.loads(fields["row"]), "id": fields["id"]}
        except (ValueError, TypeError, RecursionError) as error:  # whole by its checksum, but not written by us
            return Record(name, None, f"{name}: its row is none of ours ({error})")
        return Record(name, given, fields["problem"], sounds, is_cut=True)
