"""Directories of shards written by `auris shards`: rows and their audio in Parquet files.

A directory contains `shard-NNNNN.parquet` (rows as in their manifest, with their audio files), `index.parquet` with all
data needed for planning, and `shards.json` with sizes and checksums, which is written last.

Row groups are unusually small, half a megabyte, so that one short read loads any row. Pages have checksums, and footers
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
    sha256_of,
    wrap_errors,
)
from auris.data.row_index import RowColumns, RowIndex
from auris.data.rows import FieldMap, Fields, Record, TransientProblem
from auris.errors import MissingFileError, UserError

VERSION = 1
CONTENTS, INDEX, SHARD = "shards.json", "index.parquet", "shard-{:05d}.parquet"

_SOUND_FIELDS = {"path": pa.string(), "samples": pa.int64(), "problem": pa.string()}
SHARD_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "row": pa.string(),  # fields of the row as JSON
        "problem": pa.string(),  # why the row cannot be used, or null
        "audio": pa.list_(pa.struct({"bytes": pa.binary(), **_SOUND_FIELDS})),  # clips, as in Hugging Face datasets
    }
)
INDEX_SCHEMA = pa.schema(
    {
        "key": pa.uint64(),
        "task": pa.string(),
        **{name: SHARD_SCHEMA.field(name).type for name in ("id", "row", "problem")},
        "audio": pa.list_(pa.struct(_SOUND_FIELDS)),
    }
)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Contents of a directory of shards (`shards.json`).

    Attributes:
        source: Digest of the packed rows and settings.
        rows_per_shard: Number of rows in every shard except the last.
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
        """Return the text of `shards.json`, which includes a checksum of its other content."""
        content = {"version": VERSION, **asdict(self)}
        return json.dumps({**content, "sha256": sha256_of(json.dumps(content).encode())}, indent=1)

    @classmethod
    def parse(cls, text: str, path: str) -> Contents:
        """Parse the text of `shards.json`.

        Raises:
            UserError: The file is damaged or has another version.
        """
        try:
            content = json.loads(text)
            checksum = content.pop("sha256")
            if sha256_of(json.dumps(content).encode()) != checksum:
                raise UserError("its content does not match its checksum")
            if (version := content.pop("version")) != VERSION:
                raise UserError(f"its version is {version}, expected {VERSION}")
            index, shards = File(**content.pop("index")), tuple(File(**entry) for entry in content.pop("shards"))
            names = [INDEX, *(SHARD.format(number) for number in range(len(shards)))]
            if [index.name, *(file.name for file in shards)] != names:  # prevents opening any other file
                raise UserError(f"it lists files other than {INDEX}, {SHARD.format(0)}, {SHARD.format(1)}, ...")
            return cls(index=index, shards=shards, **content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a valid list of shards: {error}") from error


def is_url(path: str | Path) -> bool:
    """Return whether a path is a URL, possibly with chained file systems of fsspec (`::`)."""
    return "://" in str(path) or "::" in str(path)


def is_parquet(path: str | Path) -> bool:
    """Return whether a path is read as Parquet: a `.parquet` file or pattern, a directory or a URL."""
    return str(path).endswith(".parquet") or is_url(path) or Path(path).is_dir()


def find_files(path: str | Path) -> tuple[Any, list[str]]:
    """Return the file system of a path or URL, and the paths of the files there.

    These are the Parquet files that the path names, or for a directory of shards only its `shards.json`.

    Raises:
        MissingFileError: There is no such file.
        UserError: No installed package can read the URL, or the storage fails.
    """
    location = str(path)
    try:
        system, path_in_system = fsspec.url_to_fs(location)
    except ImportError as error:  # the message says what to install
        raise UserError(f"{location} cannot be read: {error}") from error
    return system, wrap_errors(location, lambda: _find_files(system, path_in_system.rstrip("/"), location))


def _find_files(system: Any, path: str, location: str) -> list[str]:
    if location.endswith(".parquet"):
        matches = [path] if system.exists(path) else sorted(system.glob(path))
        if not matches:
            raise MissingFileError(f"there is no file {location}")
        return matches
    if not system.exists(f"{path}/{CONTENTS}"):
        hint = f"; for Parquet files not written by auris, use {location}/*.parquet"
        if system.glob(f"{path}/{SHARD.format(0)[:6]}*"):
            hint = ": packing did not finish, repeat the `auris shards` command to continue"
        raise MissingFileError(f"{location} has no {CONTENTS}{hint}")
    return [f"{path}/{CONTENTS}"]


COLUMNS = Columns(
    fields=["id", "row", "problem", *(f"audio.list.element.{name}" for name in _SOUND_FIELDS)],
    sound=["audio.list.element.bytes"],
    audio_field="audio",
)


def _shard_columns(parquet: pq.ParquetFile) -> Columns:
    return COLUMNS


def shard_reader(system: Any, folder: str, files: Sequence[File]) -> Reader:
    """Return a reader of shards or of index files, which checks the sizes and checksums of the files."""
    return Reader(system, [f"{folder}/{file.name}" for file in files], _shard_columns, files)


class FileRows(RowIndex):
    """Base class of the indexes of Parquet files. Rows are numbered consecutively over all files.

    Attributes:
        reader: Reader of the files.
        ends: Number of rows up to the end of each file.
    """

    reader: Reader
    ends: np.ndarray

    def row_name(self, number: int) -> str:
        """Return the file name and the number of a row in the file."""
        return self.reader.row_name(*self._locate(number))

    def read_record(self, number: int) -> Record:
        """Read the record of one row. If its file has a fault, the record has a problem."""
        return self._record_at(*self._locate(number))

    def _locate(self, number: int) -> tuple[int, int]:
        """Return the number of the row's file and the number of the row in the file."""
        file = int(np.searchsorted(self.ends, number, side="right"))
        return file, number - (int(self.ends[file - 1]) if file else 0)

    def _record_at(self, file: int, row: int) -> Record:
        try:
            return self._record(file, row, self.reader.read_fields(file, row))
        except ShardError as error:
            reason = str(error) if isinstance(error, UndecodableError) else TransientProblem(error)
            return Record(self.reader.row_name(file, row), None, reason)

    @abstractmethod
    def _record(self, file: int, row: int, fields: Fields) -> Record:
        """Build the record of a row from its fields."""


class Shards(FileRows):
    """Index of a directory of shards."""

    def __init__(self, path: str, field_map: FieldMap, cache_dir: Path | None):
        if field_map != FieldMap():
            raise UserError(
                f"{path} holds auris shards: `columns` and `labels` must be given to `auris shards` instead"
            )
        system, [contents_path] = find_files(path)
        folder = contents_path.rpartition("/")[0]
        text = wrap_errors(contents_path, lambda: system.cat_file(contents_path)).decode(errors="replace")
        self.contents = Contents.parse(text, contents_path)
        self.reader = shard_reader(system, folder, [*self.contents.shards, self.contents.index])
        self.faults = self._find_faults(folder)
        self.ends = np.cumsum([file.rows for file in self.contents.shards])
        super().__init__(path, Path(folder), field_map, cache_dir)

    def _find_faults(self, folder: str) -> dict[int, str]:
        """Return {number of a shard: why it cannot be read} for shards that are missing or have a wrong size."""
        listing = wrap_errors(folder, lambda: self.reader.system.ls(folder, detail=True))
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
        """Read the columns from the index file. `row_positions` and `line_numbers` are empty."""
        index = len(self.contents.shards)  # number of the index file, which follows the shards
        try:
            groups = range(len(self.reader.open(index).ends))
            table = pa.concat_tables([self.reader.load(index, group, ["key", "task"]) for group in groups])
        except ShardError as error:
            raise UserError(
                f"{error}. To restore it, repeat the `auris shards` command that wrote {self.path}"
            ) from error
        task = table.column("task").combine_chunks().dictionary_encode()
        return RowColumns(
            keys=table.column("key").to_numpy(),
            tasks=task.indices.to_numpy(zero_copy_only=False).astype(np.uint32),
            codes=np.array(task.dictionary.to_pylist(), dtype=np.str_),
            lacks_duration=np.zeros(len(table), dtype=bool),  # not needed: the digest changes with the audio
            row_positions=np.zeros(0, dtype=np.int64),
            line_numbers=np.zeros(0, dtype=np.uint32),
            unused_fields=np.zeros(0, dtype=np.str_),  # reported when the shards were written
            n_unused=np.zeros(0, dtype=np.int64),
        )

    def read_records(self, numbers: np.ndarray) -> Iterator[Record]:
        """Yield records from the index file, which contains everything except the audio."""
        start, index = 0, len(self.contents.shards)
        for group, end in enumerate(self.reader.open(index).ends.tolist()):
            in_group = numbers[np.searchsorted(numbers, start) : np.searchsorted(numbers, end)]
            if len(in_group):
                table = self.reader.load(index, group, ["id", "row", "problem", "audio"])
                entries = table.take(pa.array(in_group - start)).to_pylist()
                for number, fields in zip(in_group.tolist(), entries, strict=True):
                    file, row = self._locate(number)
                    fault = self.faults.get(file)
                    yield Record(self.row_name(number), None, fault) if fault else self._record(file, row, fields)
            start = end

    def _record_at(self, file: int, row: int) -> Record:
        if file in self.faults:
            return Record(self.reader.row_name(file, row), None, self.faults[file])
        return super()._record_at(file, row)

    def _record(self, file: int, row: int, fields: Fields) -> Record:
        name = self.reader.row_name(file, row)
        try:
            sounds = tuple(
                StoredSound(self.reader, file, row, clip_number, clip["path"], clip["samples"], clip["problem"])
                for clip_number, clip in enumerate(fields["audio"] or ())
            )
            row_fields = {**json.loads(fields["row"]), "id": fields["id"]}
        except (ValueError, TypeError, RecursionError) as error:  # the checksum is right, but not the content
            return Record(name, None, f"{name}: its row was not written by auris ({error})")
        return Record(name, row_fields, fields["problem"], sounds, is_cut=True)
