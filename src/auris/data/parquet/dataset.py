"""Directories of shards written by `auris shards`: rows and their audio in Parquet files.

A directory holds `shard-NNNNN.parquet` (rows as in their manifest, with their audio files), `index.parquet` with all
data needed for planning, and `shards.json` with sizes and checksums, which is written last.

Row groups are unusually small, half a megabyte, so that any row costs one short read. Pages have checksums, and footers
are compared with `shards.json` before they are used.
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
        "row": pa.string(),  # fields of the row as JSON
        "problem": pa.string(),  # why the row cannot be used, or null
        "audio": pa.list_(pa.struct({"bytes": pa.binary(), **SOUND})),  # clips in the format of Hugging Face datasets
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
    """Contents of a directory of shards (`shards.json`).

    Attributes:
        source: Digest of the packed rows and settings.
        rows_per_shard: Number of rows in every shard but the last.
        problems: Number of rows that cannot be used.
        index: The index file.
        shards: The shards in order.
    """

    source: str
    rows_per_shard: int
    problems: int
    index: File
    shards: tuple[File, ...]

    def dump(self) -> str:
        """Return the text of `shards.json`, which includes its own checksum."""
        facts = {"version": VERSION, **asdict(self)}
        return json.dumps({**facts, "sha256": sha256_of(json.dumps(facts).encode())}, indent=1)

    @classmethod
    def parse(cls, text: str, path: str) -> Contents:
        """Parse the text of `shards.json`.

        Raises:
            UserError: The file is damaged or has another version.
        """
        try:
            facts = json.loads(text)
            expected = facts.pop("sha256")
            if sha256_of(json.dumps(facts).encode()) != expected:
                raise UserError("its content does not match its checksum")
            if (version := facts.pop("version")) != VERSION:
                raise UserError(f"its version is {version}, expected {VERSION}")
            index, shards = File(**facts.pop("index")), tuple(File(**entry) for entry in facts.pop("shards"))
            names = [INDEX, *(SHARD.format(number) for number in range(len(shards)))]
            if [index.name, *(file.name for file in shards)] != names:  # prevents opening any other file
                raise UserError(f"it lists files other than {INDEX}, {SHARD.format(0)}, {SHARD.format(1)}, ...")
            return cls(index=index, shards=shards, **facts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a valid list of shards: {error}") from error


def is_url(path: str | Path) -> bool:
    """Return whether a path is a URL, possibly with chained file systems of fsspec (`::`)."""
    return "://" in str(path) or "::" in str(path)


def is_parquet(path: str | Path) -> bool:
    """Return whether a path is read as Parquet: a `.parquet` file or pattern, a directory or a URL."""
    return str(path).endswith(".parquet") or is_url(path) or Path(path).is_dir()


def find(path: str | Path) -> tuple[Any, list[str]]:
    """Return the file system of a path or URL, and its files: `shards.json` of a directory, or Parquet files.

    Raises:
        MissingFileError: There is no such file.
        UserError: No installed package can read the URL, or its storage fails.
    """
    location = str(path)
    try:
        system, place = fsspec.url_to_fs(location)
    except ImportError as error:  # the message says what to install
        raise UserError(f"{location} cannot be read: {error}") from error
    return system, attempt(location, lambda: _files(system, place.rstrip("/"), location))


def _files(system: Any, place: str, location: str) -> list[str]:
    if location.endswith(".parquet"):
        matches = [place] if system.exists(place) else sorted(system.glob(place))
        if not matches:
            raise MissingFileError(f"there is no file {location}")
        return matches
    if not system.exists(f"{place}/{CONTENTS}"):
        hint = f"; for Parquet files not written by auris, use {location}/*.parquet"
        if system.glob(f"{place}/{SHARD.format(0)[:6]}*"):
            hint = ": packing did not finish, repeat the `auris shards` command to continue"
        raise MissingFileError(f"{location} has no {CONTENTS}{hint}")
    return [f"{place}/{CONTENTS}"]


COLUMNS = Columns(
    fields=["id", "row", "problem", *(f"audio.list.element.{name}" for name in SOUND)],
    sound=["audio.list.element.bytes"],
    name="audio",
)


def _columns(parquet: pq.ParquetFile) -> Columns:
    return COLUMNS


def shard_reader(system: Any, folder: str, files: Sequence[File]) -> Reader:
    """Return a reader of shards, or of an index, that checks sizes and checksums of the files."""
    return Reader(system, [f"{folder}/{file.name}" for file in files], _columns, files)


class FileRows(RowIndex):
    """Base of the indexes of Parquet files, whose rows are numbered consecutively.

    Attributes:
        reader: Reader of the files.
        ends: Cumulative number of rows at the end of each file.
    """

    reader: Reader
    ends: np.ndarray

    def name(self, number: int) -> str:
        """Return file name and row number."""
        return self.reader.name(*self._place(number))

    def record(self, number: int) -> Record:
        """Read one row; a fault of its file is its problem."""
        return self._record_at(*self._place(number))

    def _place(self, number: int) -> tuple[int, int]:
        """Return the row's file and its number in the file."""
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
        """Build the record of a row from its columns."""


class Shards(FileRows):
    """Index of a directory of shards."""

    def __init__(self, path: str, field_map: FieldMap, cache_dir: Path | None):
        if field_map != FieldMap():
            raise UserError(
                f"{path} holds auris shards: `columns` and `labels` must be given to `auris shards` instead"
            )
        system, [place] = find(path)
        folder = place.rpartition("/")[0]
        self.contents = Contents.parse(attempt(place, lambda: system.cat_file(place)).decode(errors="replace"), place)
        self.reader = shard_reader(system, folder, [*self.contents.shards, self.contents.index])
        self.faults = self._find_faults(folder)
        self.ends = np.cumsum([file.rows for file in self.contents.shards])
        super().__init__(path, Path(folder), field_map, cache_dir)

    def _find_faults(self, folder: str) -> dict[int, str]:
        """Return shards that are missing or have a wrong size, from one listing of their directory."""
        listing = attempt(folder, lambda: self.reader.system.ls(folder, detail=True))
        sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in listing}
        faults = {}
        for number, file in enumerate(self.contents.shards):
            size = sizes.get(file.name)
            if size != file.bytes:
                fault = "no such shard" if size is None else f"it has {size} bytes, expected {file.bytes}"
                faults[number] = f"{self.reader.paths[number]}: {fault}"
        return faults

    @cached_property
    def digest(self) -> str:
        """Digest of `shards.json` and of the faults found."""
        return sha256_of(self.contents.dump().encode(), json.dumps(self.faults).encode())

    def scan(self) -> RowColumns:
        """Read the columns from the index file; `places` and `names` are empty."""
        file = len(self.contents.shards)
        try:
            groups = range(len(self.reader.open(file).ends))
            table = pa.concat_tables([self.reader.load(file, group, ["key", "task"]) for group in groups])
        except ShardError as error:
            raise UserError(
                f"{error}. To restore it, repeat the `auris shards` command that wrote {self.path}"
            ) from error
        task = table.column("task").combine_chunks().dictionary_encode()
        return RowColumns(
            keys=table.column("key").to_numpy(),
            tasks=task.indices.to_numpy(zero_copy_only=False).astype(np.uint32),
            codes=np.array(task.dictionary.to_pylist(), dtype=np.str_),
            lacks_duration=np.zeros(len(table), dtype=bool),  # the digest covers the audio
            places=np.zeros(0, dtype=np.int64),
            names=np.zeros(0, dtype=np.uint32),
        )

    def records(self, numbers: np.ndarray) -> Iterator[Record]:
        """Yield rows from the index file, which holds everything except the audio."""
        start, index = 0, len(self.contents.shards)
        for group, end in enumerate(self.reader.open(index).ends.tolist()):
            chosen = numbers[np.searchsorted(numbers, start) : np.searchsorted(numbers, end)]
            if len(chosen):
                table = self.reader.load(index, group, ["id", "row", "problem", "audio"])
                entries = table.take(pa.array(chosen - start)).to_pylist()
                for number, fields in zip(chosen.tolist(), entries, strict=True):
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
            row_fields = {**json.loads(fields["row"]), "id": fields["id"]}
        except (ValueError, TypeError, RecursionError) as error:  # the checksum is right, but auris did not write this
            return Record(name, None, f"{name}: its row was not written by auris ({error})")
        return Record(name, row_fields, fields["problem"], sounds, is_cut=True)
