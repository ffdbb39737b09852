"""Writing of shards (rows with their audio) and of their index, and verification of written files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from auris import audio
from auris.data.parquet.dataset import COLUMNS, INDEX, INDEX_SCHEMA, SHARD_SCHEMA, shard_reader
from auris.data.parquet.reader import File, StoredSound, sha256_of
from auris.data.rows import Clip, Fields, Record, Row, decode_record, row_key
from auris.errors import AudioError
from auris.files import file_digest, open_atomic

GROUP_BYTES = 2**19  # bytes of audio in a row group: with small groups a row is read fast, but the footer is large
GROUP_ROWS = 64  # maximum number of rows in a row group
INDEX_ROWS = 8192  # minimum number of rows in a row group of the index, which is always read as a whole


def describe_file(path: Path) -> File:
    """Return the description of a finished file."""
    with path.open("rb") as file:
        size = file.seek(-8, os.SEEK_END) + 8
        footer_bytes = int.from_bytes(file.read(4), "little") + 8  # the end of a file: footer, its length, PAR1
        file.seek(-footer_bytes, os.SEEK_END)
        footer = sha256_of(file.read())
        rows = pq.read_metadata(file).num_rows
    return File(
        name=path.name, rows=rows, bytes=size, sha256=file_digest(path), footer_bytes=footer_bytes, footer=footer
    )


def find_fault(folder: Path, file: File) -> str | None:
    """Verify a file in a directory of shards and return what is wrong with it, or None. The whole file is read."""
    path = folder / file.name
    if not path.is_file():
        return f"{path}: no such file"
    if (size := path.stat().st_size) != file.bytes:
        return f"{path}: it has {size} bytes, expected {file.bytes}"
    checksum = file_digest(path)
    return None if checksum == file.sha256 else f"{path}: its checksum is {checksum}, expected {file.sha256}"


def write_shard(path: Path, rows: Iterable[tuple[Record, Row]]) -> File:
    """Write rows with their audio as a shard. If a clip cannot be read, the reason is stored in its place."""
    with _writer(path, SHARD_SCHEMA) as write:
        group: list[Fields] = []
        size = 0
        for record, row in rows:
            entry = _entry(record, row)
            group.append(entry)
            size += sum(len(clip["bytes"] or b"") for clip in entry["audio"])
            if size >= GROUP_BYTES or len(group) == GROUP_ROWS:
                write(group)
                group, size = [], 0
        write(group)
    return describe_file(path)


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Generator[Callable[[Sequence[Fields]], None]]:
    """Open a file, which gets its final name when it is complete; yield a function that writes a row group."""
    # The column `audio` is stored without compression.
    compression = {name: "zstd" for name in ("id", "row", "key", "task") if name in schema.names}
    options = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    with (
        open_atomic(path, "wb", sync=True) as file,
        pq.ParquetWriter(file, schema, compression=compression, **options) as writer,
    ):
        yield lambda group: writer.write_table(pa.Table.from_pylist(group, schema=schema)) if group else None


def _entry(record: Record, row: Row) -> Fields:
    """Return a row in SHARD_SCHEMA. For an unusable row, only id, task and problem are stored."""
    stored_fields = {"task": row.labels.get("task")} if row.problem or record.fields is None else record.fields
    fields = {key: value for key, value in stored_fields.items() if key != "id"}
    return {
        "id": row.id,
        "row": json.dumps(fields, ensure_ascii=False, default=str),
        "problem": row.problem,
        "audio": [] if row.problem else [_sound(clip) for clip in row.clips],
    }


def _sound(clip: Clip) -> Fields:
    """Return a clip in SHARD_SCHEMA, with its unchanged file or, for a clip with `offset`, only the segment."""
    source = clip.path
    assert isinstance(source, Path | StoredSound)  # clips of rows in manifests have no other sources
    name = source.name
    try:
        if clip.offset is not None:
            content = audio.cut_segment(source, *clip.segment)
        else:
            audio.n_samples(source)  # refuses files that are not audio
            content = source.read_bytes() if isinstance(source, Path) else source.read()
        samples = audio.n_samples(audio.FileContent(content))
    except OSError as error:  # its message does not name the file, so the name is added
        return {"bytes": None, "path": name, "samples": None, "problem": f"{source}: cannot be read ({error})"}
    except AudioError as error:
        return {"bytes": None, "path": name, "samples": None, "problem": str(error)}
    return {"bytes": content, "path": name, "samples": samples, "problem": None}


def write_index(folder: Path, files: Sequence[File]) -> tuple[File, list[tuple[str, str]]]:
    """Write the index of finished shards.

    Returns:
        The description of the index, and (row id, reason) of the rows that cannot be used.
    """
    path = folder / INDEX
    reader = shard_reader(fsspec.filesystem("file"), str(folder), files)
    # `ends` has an entry for each row group of a file.
    groups = ((file, group) for file in range(len(files)) for group in range(len(reader.open(file).ends)))
    problems: list[tuple[str, str]] = []
    with _writer(path, INDEX_SCHEMA) as write:
        index_rows: list[Fields] = []
        for file, group in groups:
            for entry in reader.load(file, group, COLUMNS.fields).to_pylist():
                reasons = [entry["problem"], *(clip["problem"] for clip in entry["audio"])]
                if reason := next(filter(None, reasons), None):
                    problems.append((entry["id"], reason))
                index_rows.append(_index_entry(entry))
            if len(index_rows) >= INDEX_ROWS:
                write(index_rows)
                index_rows = []
        write(index_rows)
    return describe_file(path), problems


def _index_entry(fields: Fields) -> Fields:
    record = Record(fields["id"], json.loads(fields["row"]), fields["problem"])
    task = decode_record(record, Path()).labels.get("task")
    return {**fields, "key": row_key(fields["id"]), "task": f"{task!s:.80}"}
