"""Parquet of others, as a hub data set has it: a column per field, sound as {bytes, path}, bytes or a path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from functools import partial as bound
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from auris.data.parquet.dataset import FileRows, find
from auris.data.parquet.reader import Columns, Reader, ShardError, StoredSound, as_list, attempt, sha256_of, to_rows
from auris.data.row_index import Builder, RowColumns
from auris.data.rows import FieldMap, Fields, Record, Row, TransientProblem


class ParquetFiles(FileRows):
    """The rows of somebody else's Parquet files: a column per field, sound as {bytes, path}, bytes or a path.

    A file that cannot be opened counts as one row, which cannot be used. Sound that lies beside a file is looked for
    below its folder alone: whoever wrote the file does not choose what else of this machine is read.
    """

    def __init__(self, path: str, form: FieldMap, cache_dir: Path | None):
        system, paths = find(path)
        self._is_local = isinstance(system, LocalFileSystem)
        self.reader = Reader(system, paths, bound(_columns, form=form))
        super().__init__(path, Path(paths[0].rpartition("/")[0]), form, cache_dir)
        self.ends = np.cumsum(self.columns.places)

    @cached_property
    def digest(self) -> str:
        # Names, sizes and times, or what else tells a storage's versions apart: a checksum would read everything.
        system = self.reader.system
        return sha256_of(*(f"{path} {attempt(path, bound(system.ukey, path))}".encode() for path in self.reader.paths))

    def scan(self) -> RowColumns:
        """`places`: rows of each file."""
        builder = Builder()
        for file in range(len(self.reader.paths)):
            rows = 0
            for record in self._scan(file):
                self.is_read &= not isinstance(record.problem, TransientProblem)
                builder.add(record, self.folder, has_lengths=bool(record.sounds))  # in the file, which the digest tells
                rows += 1
            builder.places.append(rows)
        return builder.build()

    def _scan(self, file: int) -> Iterator[Record]:
        try:
            opened = self.reader.open(file)
        except ShardError as error:
            yield Record(self.reader.name(file, 0), None, TransientProblem(error))
            return
        start = 0
        for group, end in enumerate(opened.ends.tolist()):
            try:
                table = self.reader.load(file, group, opened.columns.fields)
                found = to_rows(f"row group {group}", table)
            except ShardError:  # row by row, to name the one at fault
                yield from (self._record_at(file, row) for row in range(start, end))
            else:
                yield from (self._record(file, row, fields) for row, fields in enumerate(found, start=start))
            start = end

    def decode(self, record: Record) -> Row:
        row = super().decode(record)
        paths = [clip.path for clip in row.clips if isinstance(clip.path, Path)]
        if row.problem or not paths:
            return row
        if not self._is_local:
            return replace(row, problem="its sound does not lie in the file, and beside a URL nothing is looked for")
        root = os.path.abspath(self.folder)
        outside = [path for path in paths if os.path.commonpath([root, os.path.abspath(path)]) != root]
        return replace(row, problem=f"{outside[0]} is not below {root}") if outside else row

    def _record(self, file: int, row: int, fields: Fields) -> Record:
        name, columns = self.reader.name(file, row), self.reader.open(file).columns
        fields = _without_nulls(fields)
        if not columns.name:
            return Record(name, self.form.apply(fields))
        clips = as_list(fields.pop(columns.name, [{}] if columns.is_hidden else None))
        paths = [clip.get("path") if isinstance(clip, Mapping) else None for clip in clips]
        if not columns.sound:  # it lies elsewhere
            return Record(name, self.form.apply({**fields, columns.name: paths}))
        names = [path or f"{columns.name} {place}" for place, path in enumerate(paths)]
        sounds = tuple(StoredSound(self.reader, file, row, place, called) for place, called in enumerate(names))
        return Record(name, self.form.apply({**fields, columns.name: names} if names else fields), sounds=sounds)


def _columns(parquet: pq.ParquetFile, form: FieldMap) -> Columns:
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
    groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
    chunks = (group.column(number) for group in groups for number in range(facts.num_columns))
    own = [(chunk.statistics, chunk.num_values) for chunk in chunks if chunk.path_in_schema in leaves]
    return bool(groups) and all(known is not None and known.null_count == number for known, number in own)


def _without_nulls(value: Any) -> Any:
    """A column that a row does not have is a null in it, and a field that it does not have."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
