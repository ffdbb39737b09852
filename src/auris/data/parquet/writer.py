"""Shards written: rows with their sound, the index of them, and what is wrong with a written file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from auris import audio
from auris.data.parquet.dataset import COLUMNS, INDEX, INDEX_SCHEMA, SHARD_SCHEMA, columns
from auris.data.parquet.reader import File, Reader, hash_of
from auris.data.rows import Clip, Record, Row, decode, row_key
from auris.errors import AudioError

GROUP_BYTES = 2**19  # of sound in a row group: what reading one row costs, against footers that grow with the groups
GROUP_ROWS = 64
INDEX_ROWS = 8192  # of a row group of the index, which is read from one end to the other

MAX_CLIP_BYTES = 2**30  # a row group is held in memory


def finish(path: Path, draft: Path) -> File:
    """Move a written file to its place, safe against a crash, and describe it."""
    with draft.open("rb+") as file:
        os.fsync(file.fileno())
        size = file.seek(0, os.SEEK_END)
        file.seek(-8, os.SEEK_END)
        footer_bytes = int.from_bytes(file.read(4), "little") + 8  # thrift, its length, PAR1 (the Parquet format)
        file.seek(-footer_bytes, os.SEEK_END)
        footer = hash_of(file.read())
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
    with draft.open("wb") as file, _writer(file, SHARD_SCHEMA) as writer:
        group: list[dict[str, Any]] = []
        size = 0
        for record, row in rows:
            entry = _entry(record, row)
            group.append(entry)
            size += sum(len(clip["bytes"] or b"") for clip in entry["audio"])
            if size >= GROUP_BYTES or len(group) == GROUP_ROWS:
                writer.write_table(pa.Table.from_pylist(group, schema=SHARD_SCHEMA))
                group, size = [], 0
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=SHARD_SCHEMA))
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
    reader = Reader(fsspec.filesystem("file"), [str(folder / file.name) for file in files], columns, files)
    problems: list[tuple[str, str]] = []
    with draft.open("wb") as out, _writer(out, INDEX_SCHEMA) as writer:
        waiting: list[dict[str, Any]] = []
        for file in range(len(files)):
            for group in range(len(reader.open(file).ends)):
                waiting += map(_index_entry, reader.load(file, group, COLUMNS.fields).to_pylist())
                if len(waiting) >= INDEX_ROWS:
                    problems += _problems(waiting)
                    writer.write_table(pa.Table.from_pylist(waiting, schema=INDEX_SCHEMA))
                    waiting = []
        if waiting:
            problems += _problems(waiting)
            writer.write_table(pa.Table.from_pylist(waiting, schema=INDEX_SCHEMA))
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
