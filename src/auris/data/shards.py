"""Rows with their sound in Parquet: shards as `python -m auris.shards` writes them, and anybody else's files.

A directory of ours holds `shard-NNNNN.parquet` (each row as its manifest had it, its sound files beside it), an
`index.parquet` with all that planning needs, and `shards.json`, written last, with sizes and checksums. Parquet files
of others (a hub data set's) have a column per field, and sound as {bytes, path}.

Unusual here: row groups are about a megabyte, so that a row costs one short read wherever it lies; pages carry their
checksum, and footers are compared with `shards.json` before they are believed.

Shapes: R rows, G row groups of a file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from functools import partial as bound
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from auris import audio
from auris.audio import AudioError
from auris.data.packing import row_key
from auris.data.rows import Clip, Form, Record, Row, decode
from auris.data.store import Index, IndexBuilder, Store

VERSION = 1
CONTENTS, INDEX, SHARD = "shards.json", "index.parquet", "shard-{:05d}.parquet"

GROUP_BYTES = 2**20  # of sound in a row group: what reading one row costs, against footers that grow with the groups
GROUP_ROWS = 64
INDEX_ROWS = 8192  # of a row group of the index, which is read from one end to the other

OPEN_FILES = 16  # kept open by a process: a footer of a few hundred kilobytes each
TABLES = 2  # row groups kept in memory by a process: the fields of the row at hand, and its sound

MAX_CLIP_BYTES = 2**30  # a row group is held in memory

_SOUND = {"path": pa.string(), "samples": pa.int64(), "problem": pa.string()}
_SHARD_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "row": pa.string(),  # JSON
        "problem": pa.string(),  # why the row cannot be used, if it cannot
        "audio": pa.list_(pa.struct({"bytes": pa.binary(), **_SOUND})),  # its clips, as a hub data set has them
    }
)
_INDEX_SCHEMA = pa.schema(
    {
        "key": pa.uint64(),
        "task": pa.string(),
        **{name: _SHARD_SCHEMA.field(name).type for name in ("id", "row", "problem")},
        "audio": pa.list_(pa.struct(_SOUND)),
    }
)

T = TypeVar("T")


class ShardError(AudioError):
    """A file of rows that cannot be read; the message names it."""


@dataclass(frozen=True, kw_only=True)
class File:
    """A finished Parquet file of ours."""

    name: str
    rows: int
    bytes: int
    sha256: str
    footer_bytes: int
    footer: str  # sha256 of its last `footer_bytes` bytes: what says where everything else stands


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
        return json.dumps({**facts, "sha256": _hash(json.dumps(facts).encode())}, indent=1)

    @classmethod
    def parse(cls, text: str, where: str) -> Contents:
        """Raises ValueError for contents that are damaged or of another version."""
        try:
            facts = json.loads(text)
            stated = facts.pop("sha256")
            if _hash(json.dumps(facts).encode()) != stated:
                raise ValueError("its checksum is another")
            if facts.pop("version") != VERSION:
                raise ValueError(f"expected version {VERSION}")
            index, shards = File(**facts.pop("index")), tuple(File(**entry) for entry in facts.pop("shards"))
            return cls(index=index, shards=shards, **facts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} is no list of shards: {error}") from error


# --- where files are ----------------------------------------------------------------------------------------------


def is_url(path: str | Path) -> bool:
    return "://" in str(path) or "::" in str(path)


def is_parquet(path: str | Path) -> bool:
    """Whether rows are read from there as Parquet: by the file's ending, or since it is a directory or a URL."""
    given = str(path)
    return given.endswith(".parquet") or is_url(path) or Path(given).is_dir()


def find(path: str | Path) -> tuple[Any, list[str]]:
    """The file system that a path or URL names, and the files: `shards.json` of a directory, or Parquet files.

    Raises FileNotFoundError if nothing is there, ValueError for a URL that nothing installed can read.
    """
    given = str(path)
    try:
        system, place = fsspec.url_to_fs(given)
    except ImportError as error:  # its message says what to install
        raise ValueError(f"{given} cannot be read: {error}") from error
    place = place.rstrip("/")
    if given.endswith(".parquet"):
        found = [place] if system.exists(place) else sorted(system.glob(place))
    elif system.exists(f"{place}/{CONTENTS}"):
        found = [f"{place}/{CONTENTS}"]
    else:
        begun = ": its packing was not finished, give the same command again" if _is_begun(system, place) else ""
        others = "" if begun else f"; Parquet of others is given as {given}/*.parquet"
        raise FileNotFoundError(f"{given} has no {CONTENTS}{begun}{others}")
    if not found:
        raise FileNotFoundError(f"there is no file {given}")
    return system, found


def store(path: str, form: Form, cache_dir: Path | None) -> Store:
    """The rows of a directory of ours or of others' files. Raises as `find`, and ValueError for damaged contents."""
    return (ParquetFiles if path.endswith(".parquet") else Shards)(path, form, cache_dir)


def _is_begun(system: Any, place: str) -> bool:
    return bool(system.glob(f"{place}/{SHARD.format(0)[:6]}*"))


def _source(system: Any, path: str) -> pa.NativeFile:
    """A file to read from at any place. Reads do not move one shared position: processes may share a local one."""
    if isinstance(system, LocalFileSystem):
        return pa.OSFile(path)
    return pa.PythonFile(system.open(path, "rb", cache_type="none"), mode="r")


def _read(what: str, action: Callable[[], T]) -> T:
    """What an action on a file returns. Whatever fails, whichever storage library raises it, is the file's fault."""
    try:
        return action()
    except Exception as error:
        raise ShardError(f"{what}: cannot be read ({type(error).__name__}: {error})") from error


# --- reading files ------------------------------------------------------------------------------------------------


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
        self._opened: OrderedDict[int, _Opened] = OrderedDict()
        self._tables: OrderedDict[tuple[int, int, bool], pa.Table] = OrderedDict()

    def name(self, file: int, row: int) -> str:
        return f"{self.paths[file].rpartition('/')[2]}:{row}"

    def open(self, file: int) -> _Opened:
        """A file whose footer is read and, where it is known, compared. Raises ShardError."""
        if self._owner != os.getpid():
            self._forget()
        if file not in self._opened:
            self._opened[file] = _read(self.paths[file], lambda: self._open(file))
            while len(self._opened) > OPEN_FILES:
                self._opened.popitem(last=False)
        self._opened.move_to_end(file)
        return self._opened[file]

    def _open(self, file: int) -> _Opened:
        source = _source(self.system, self.paths[file])
        footer = None
        if self.stated:
            stated = self.stated[file]
            if source.size() != stated.bytes:
                raise ValueError(f"it has {source.size()} bytes, expected {stated.bytes}")
            source.seek(stated.bytes - stated.footer_bytes)
            tail = source.read(stated.footer_bytes)
            if _hash(tail) != stated.footer:
                raise ValueError("the checksum of its footer is another")
            footer = pq.read_metadata(pa.BufferReader(tail))
        parquet = pq.ParquetFile(source, metadata=footer, pre_buffer=False, page_checksum_verification=True)
        facts = parquet.metadata
        ends = np.cumsum([facts.row_group(group).num_rows for group in range(facts.num_row_groups)], dtype=np.int64)
        return _Opened(parquet, self.columns(parquet), ends)

    def load(self, file: int, group: int, columns: Sequence[str]) -> pa.Table:
        """Columns of a row group. Raises ShardError, also where a page does not fit its checksum."""
        parquet = self.open(file).parquet
        return _read(
            f"{self.paths[file]}, row group {group}",
            lambda: parquet.read_row_group(group, columns=list(columns), use_threads=False),
        )

    def fields(self, file: int, row: int) -> dict[str, Any]:
        """A row without its sound. Raises ShardError."""
        table, place = self._around(file, row, is_sound=False)
        return _read(self.name(file, row), lambda: _to_rows(table.slice(place, 1))[0])

    def sound(self, file: int, row: int, clip: int) -> bytes | None:
        """A sound file, None where there is none. Raises ShardError."""
        table, place = self._around(file, row, is_sound=True)
        found = _as_list(_read(self.name(file, row), lambda: table.column(0)[place].as_py()))
        content = found[clip] if clip < len(found) else None
        return content.get("bytes") if isinstance(content, Mapping) else content

    def _around(self, file: int, row: int, *, is_sound: bool) -> tuple[pa.Table, int]:
        """The row group that holds a row, and the row's place in it."""
        opened = self.open(file)
        group = int(np.searchsorted(opened.ends, row, side="right"))
        key = (file, group, is_sound)
        if key not in self._tables:
            columns = opened.columns.sound if is_sound else opened.columns.fields
            self._tables[key] = self.load(file, group, columns)
            while len(self._tables) > TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key], row - (int(opened.ends[group - 1]) if group else 0)


@dataclass(frozen=True, eq=False)
class Stored:
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


def _to_rows(table: pa.Table) -> list[dict[str, Any]]:
    return table.to_pylist(maps_as_pydicts="strict")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _hash(*pieces: bytes) -> str:
    return hashlib.sha256(b"\0".join(pieces)).hexdigest()


# --- our own shards -----------------------------------------------------------------------------------------------


_OURS = Columns(
    fields=["id", "row", "problem", *(f"audio.list.element.{name}" for name in _SOUND)],
    sound=["audio.list.element.bytes"],
    name="audio",
)


def _ours(parquet: pq.ParquetFile) -> Columns:
    return _OURS


class Shards(Store):
    """The rows of a directory of shards."""

    def __init__(self, path: str, form: Form, cache_dir: Path | None):
        if form != Form():
            raise ValueError(f"{path}: its rows are auris's own: `columns` and `labels` are given when they are packed")
        system, [place] = find(path)
        folder = place.rpartition("/")[0]
        self.contents = Contents.parse(_read(place, lambda: system.cat_file(place)).decode(errors="replace"), place)
        files = [*self.contents.shards, self.contents.index]
        paths = [f"{folder}/{file.name}" for file in files]
        self.reader = Reader(system, paths, _ours, files)
        self.faults = self._find_faults(folder)
        self._ends = np.cumsum([file.rows for file in self.contents.shards])
        super().__init__(path, Path(folder), form, cache_dir)

    def _find_faults(self, folder: str) -> dict[int, str]:
        """Shards that are missing or of another size, by one look at their directory."""
        listed = self.reader.system.ls(folder, detail=True)
        sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in listed}
        faults = {}
        for number, file in enumerate(self.contents.shards):
            size, where = sizes.get(file.name), self.reader.paths[number]
            if size is None:
                faults[number] = f"{where}: no such shard"
            elif size != file.bytes:
                faults[number] = f"{where}: it has {size} bytes, expected {file.bytes}"
        return faults

    @cached_property
    def digest(self) -> str:
        return _hash(self.contents.dump().encode(), json.dumps(self.faults).encode())

    def scan(self) -> Index:
        file = len(self.contents.shards)
        try:
            groups = range(len(self.reader.open(file).ends))
            table = pa.concat_tables([self.reader.load(file, group, ["key", "task"]) for group in groups])
        except ShardError as error:
            raise ValueError(f"{error}. The command that packed {self.path}, given again, makes it anew") from error
        task = table.column("task").combine_chunks().dictionary_encode()
        return Index(
            keys=table.column("key").to_numpy(),
            tasks=task.indices.to_numpy(zero_copy_only=False).astype(np.uint32),
            codes=np.array(task.dictionary.to_pylist(), dtype=np.str_),
            unstated=np.zeros(len(table), dtype=bool),  # the digest covers the sound
            places=np.zeros(0, dtype=np.int64),
            names=np.zeros(0, dtype=np.uint32),
        )

    def name(self, number: int) -> str:
        return self.reader.name(*self._place(number))

    def record(self, number: int) -> Record:
        file, row = self._place(number)
        if file in self.faults:
            return Record(self.name(number), None, self.faults[file])
        try:
            return self._record(file, row, self.reader.fields(file, row))
        except ShardError as error:
            return Record(self.name(number), None, str(error))

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

    def _place(self, number: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._ends, number, side="right"))
        return file, number - (int(self._ends[file - 1]) if file else 0)

    def _record(self, file: int, row: int, fields: Mapping[str, Any]) -> Record:
        name = self.reader.name(file, row)
        sounds = tuple(
            Stored(self.reader, file, row, place, clip["path"], clip["samples"], clip["problem"])
            for place, clip in enumerate(fields["audio"] or ())
        )
        given = _read(name, lambda: json.loads(fields["row"]))
        return Record(name, {**given, "id": fields["id"]}, fields["problem"], sounds, is_cut=True)


def finish(path: Path, draft: Path) -> File:
    """Move a written file to its place, safe against a crash, and describe it."""
    with draft.open("rb+") as file:
        os.fsync(file.fileno())
        size = file.seek(0, os.SEEK_END)
        file.seek(-8, os.SEEK_END)
        footer_bytes = int.from_bytes(file.read(4), "little") + 8  # thrift, its length, PAR1 (the Parquet format)
        file.seek(-footer_bytes, os.SEEK_END)
        footer = _hash(file.read())
        file.seek(0)
        rows = pq.read_metadata(file).num_rows
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    draft.replace(path)
    return File(name=path.name, rows=rows, bytes=size, sha256=digest, footer_bytes=footer_bytes, footer=footer)


def fault(folder: Path, file: File) -> str | None:
    """What is wrong with a file of a directory of shards, all of it read."""
    path = folder / file.name
    if not path.is_file():
        return f"{path}: no such file"
    if (size := path.stat().st_size) != file.bytes:
        return f"{path}: it has {size} bytes, expected {file.bytes}"
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    return None if found == file.sha256 else f"{path}: its checksum is {found}, expected {file.sha256}"


def write_shard(path: Path, rows: Iterable[tuple[Record, Row]]) -> File:
    """Rows with their sound as a shard. A clip that cannot be read is stored as the reason."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with draft.open("wb") as file, _writer(file, _SHARD_SCHEMA) as writer:
        group: list[dict[str, Any]] = []
        size = 0
        for record, row in rows:
            entry = _entry(record, row)
            group.append(entry)
            size += sum(len(clip["bytes"] or b"") for clip in entry["audio"])
            if size >= GROUP_BYTES or len(group) == GROUP_ROWS:
                writer.write_table(pa.Table.from_pylist(group, schema=_SHARD_SCHEMA))
                group, size = [], 0
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=_SHARD_SCHEMA))
    return finish(path, draft)


def _writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    compression = {path: "zstd" for path in ("id", "row", "key", "task") if path in schema.names}  # not the sound
    return pq.ParquetWriter(
        file, schema, compression=compression, use_dictionary=False, write_statistics=False, write_page_checksum=True
    )


def _entry(record: Record, row: Row) -> dict[str, Any]:
    """A row as a shard holds it; of one that cannot be used the reason alone."""
    given = {"task": row.labels.get("task")} if row.problem else record.fields
    fields = {key: value for key, value in given.items() if key != "id"}
    return {
        "id": row.id,
        "row": json.dumps(fields, ensure_ascii=False, default=str),
        "problem": row.problem,
        "audio": [] if row.problem else [_sound(clip) for clip in row.clips],
    }


@dataclass(frozen=True)
class _Bytes:
    """A sound file in memory: `audio.Sound`."""

    name: str
    content: bytes
    samples: int | None = None

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        return self.content


def _sound(clip: Clip) -> dict[str, Any]:
    """A clip as it is stored: its file as it is, or the stretch of it that the clip is."""
    source = clip.path
    name = source.name
    try:
        if clip.offset is not None:
            content = audio.cut(source, clip.offset, clip.duration)
        else:
            audio.n_samples(source)  # nothing but sound is copied
            content = _content(source)
        samples = audio.n_samples(_Bytes(str(source), content))
    except AudioError as error:
        return {"bytes": None, "path": name, "samples": None, "problem": str(error)}
    return {"bytes": content, "path": name, "samples": samples, "problem": None}


def _content(source: Path | audio.Sound) -> bytes:
    if not isinstance(source, Path):
        return source.read()
    try:
        if (size := source.stat().st_size) > MAX_CLIP_BYTES:
            raise AudioError(f"{source}: {size} bytes are too many to store; rows with `offset` and `duration` cut it")
        return source.read_bytes()
    except OSError as error:
        raise AudioError(f"{source}: cannot be read ({error})") from error


def write_index(folder: Path, files: Sequence[File]) -> tuple[File, list[tuple[str, str]]]:
    """The index of finished shards; and (row id, reason) of the rows that cannot be used."""
    path = folder / INDEX
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    reader = Reader(fsspec.filesystem("file"), [str(folder / file.name) for file in files], _ours, files)
    problems: list[tuple[str, str]] = []
    with draft.open("wb") as out, _writer(out, _INDEX_SCHEMA) as writer:
        waiting: list[dict[str, Any]] = []
        for file in range(len(files)):
            for group in range(len(reader.open(file).ends)):
                waiting += map(_index_entry, reader.load(file, group, _OURS.fields).to_pylist())
                if len(waiting) >= INDEX_ROWS:
                    problems += _problems(waiting)
                    writer.write_table(pa.Table.from_pylist(waiting, schema=_INDEX_SCHEMA))
                    waiting = []
        if waiting:
            problems += _problems(waiting)
            writer.write_table(pa.Table.from_pylist(waiting, schema=_INDEX_SCHEMA))
    return finish(path, draft), problems


def _index_entry(fields: dict[str, Any]) -> dict[str, Any]:
    record = Record(fields["id"], json.loads(fields["row"]), fields["problem"])
    task = decode(record, Path()).labels.get("task")
    return {**fields, "key": row_key(fields["id"]), "task": f"{task!s:.80}"}


def _problems(entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        reasons = [entry["problem"], *(clip["problem"] for clip in entry["audio"])]
        if any(reasons):
            yield entry["id"], next(filter(None, reasons))


# --- Parquet of others --------------------------------------------------------------------------------------------


class ParquetFiles(Store):
    """The rows of somebody else's Parquet files: a column per field, sound as {bytes, path}, bytes or a path.

    A file that cannot be opened counts as one row, which cannot be used.
    """

    def __init__(self, path: str, form: Form, cache_dir: Path | None):
        system, paths = find(path)
        self.reader = Reader(system, paths, bound(_columns, form=form))
        super().__init__(path, Path(paths[0].rpartition("/")[0]), form, cache_dir)
        self._ends = np.cumsum(self.index.places)

    @cached_property
    def digest(self) -> str:
        # Names, sizes and times, or what else tells a storage's versions apart: a checksum would read everything.
        system = self.reader.system
        return _hash(*(f"{path} {system.ukey(path)}".encode() for path in self.reader.paths))

    def scan(self) -> Index:
        """`places`: rows of each file."""
        builder = IndexBuilder()
        for file in range(len(self.reader.paths)):
            rows = 0
            for record in self._scan(file):
                builder.add(record, self.folder, has_lengths=bool(record.sounds))  # in the file, which the digest tells
                rows += 1
            builder.places.append(rows)
        return builder.build()

    def _scan(self, file: int) -> Iterator[Record]:
        try:
            opened = self.reader.open(file)
        except ShardError as error:
            yield Record(self.reader.name(file, 0), None, str(error))
            return
        start = 0
        for group, end in enumerate(opened.ends.tolist()):
            try:
                table = self.reader.load(file, group, opened.columns.fields)
                found = _read(f"row group {group}", lambda table=table: _to_rows(table))
            except ShardError:  # row by row, to name the one at fault
                yield from (self._record_at(file, row) for row in range(start, end))
            else:
                yield from (self._record(file, row, fields) for row, fields in enumerate(found, start=start))
            start = end

    def name(self, number: int) -> str:
        return self.reader.name(*self._place(number))

    def record(self, number: int) -> Record:
        return self._record_at(*self._place(number))

    def _place(self, number: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._ends, number, side="right"))
        return file, number - (int(self._ends[file - 1]) if file else 0)

    def _record_at(self, file: int, row: int) -> Record:
        try:
            return self._record(file, row, self.reader.fields(file, row))
        except ShardError as error:
            return Record(self.reader.name(file, row), None, str(error))

    def _record(self, file: int, row: int, fields: Mapping[str, Any]) -> Record:
        name, columns = self.reader.name(file, row), self.reader.open(file).columns
        fields = _without_nulls(fields)
        if not columns.name:
            return Record(name, self.form.apply(fields))
        clips = _as_list(fields.pop(columns.name, [{}] if columns.is_hidden else None))
        paths = [clip.get("path") if isinstance(clip, Mapping) else None for clip in clips]
        if not columns.sound:  # it lies elsewhere
            return Record(name, self.form.apply({**fields, columns.name: paths}))
        names = [path or f"{columns.name} {place}" for place, path in enumerate(paths)]
        sounds = tuple(Stored(self.reader, file, row, place, called) for place, called in enumerate(names))
        return Record(name, self.form.apply({**fields, columns.name: names} if names else fields), sounds=sounds)


def _columns(parquet: pq.ParquetFile, form: Form) -> Columns:
    """Of a file of others: sound is looked for in what is `audio` or `audios` here."""
    leaves = [parquet.schema.column(number).path for number in range(len(parquet.schema))]
    for ours in ("audio", "audios"):
        theirs = form.columns.get(ours, ours)
        index = parquet.schema_arrow.get_field_index(theirs)
        if index < 0:
            continue
        kind = parquet.schema_arrow.field(index).type
        inner = kind.value_type if _is_list(kind) else kind
        own = [leaf for leaf in leaves if leaf == theirs or leaf.startswith(f"{theirs}.")]
        if pa.types.is_struct(inner) and inner.get_field_index("bytes") >= 0:
            sound = [leaf for leaf in own if leaf.endswith(".bytes")]
        elif pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
            sound = own
        else:
            continue
        beside = [leaf for leaf in own if leaf not in sound]
        if not beside and _is_list(kind):
            return Columns(leaves, sound, theirs)  # only the sound itself tells how many there are
        fields = [leaf for leaf in leaves if leaf not in sound]
        return Columns(fields, [] if beside and _are_null(parquet, sound) else sound, theirs, is_hidden=not beside)
    return Columns(leaves, [])


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _are_null(parquet: pq.ParquetFile, leaves: Sequence[str]) -> bool:
    """Whether a file's statistics say that columns hold nothing."""
    facts = parquet.metadata
    for group in range(facts.num_row_groups):
        for number in range(facts.num_columns):
            column = facts.row_group(group).column(number)
            if column.path_in_schema in leaves and not (
                column.statistics is not None and column.statistics.null_count == column.num_values
            ):
                return False
    return facts.num_row_groups > 0


def _without_nulls(value: Any) -> Any:
    """A column that a row does not have is a null in it, and a field that it does not have."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
