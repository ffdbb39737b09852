"""Parquet files not written by auris, such as Hugging Face datasets, with one column per field."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from auris.data.parquet.dataset import FileRows, find_files
from auris.data.parquet.reader import Columns, Reader, ShardError, StoredSound, as_list, sha256_of, to_rows, wrap_errors
from auris.data.row_index import Builder, RowColumns
from auris.data.rows import FieldMap, Fields, Record, Row, TransientProblem
from auris.errors import UserError


class ParquetFiles(FileRows):
    """Index of Parquet files with one column per field and audio as {bytes, path}, bytes or a path.

    A clip without bytes is read from its path. If the statistics of a file are missing or show nulls, its audio is read
    once to find these clips. Audio paths must be within the folder of the file, so that the author of a file cannot
    make auris read other files of this machine. A file that cannot be opened counts as one unusable row.
    """

    def __init__(self, path: str, field_map: FieldMap, cache_dir: Path | None):
        system, paths = find_files(path)
        self._is_local = isinstance(system, LocalFileSystem)
        self.reader = Reader(system, paths, partial(_columns, field_map=field_map))
        super().__init__(path, Path(paths[0].rpartition("/")[0]), field_map, cache_dir)
        rows_per_file = self.columns.row_positions  # as filled by `scan`
        self.ends = np.cumsum(rows_per_file)

    @cached_property
    def digest(self) -> str:
        """Digest of the names and versions of the files.

        The version of a file is provided by fsspec, for example its size and time. Checksums would require reading all
        files.
        """
        system = self.reader.system
        return sha256_of(
            *(f"{path} {wrap_errors(path, partial(system.ukey, path))}".encode() for path in self.reader.paths)
        )

    def scan(self) -> RowColumns:
        """Compute the columns. `row_positions` contains the number of rows of each file."""
        builder = Builder()
        for file in range(len(self.reader.paths)):
            n_rows = 0
            for record in self._scan_file(file):
                self.is_complete &= not isinstance(record.problem, TransientProblem)
                # The digest covers the audio that is stored in the files.
                is_audio_in_digest = bool(record.sounds) and None not in record.sounds
                builder.add(record, self.folder, is_audio_in_digest=is_audio_in_digest)
                n_rows += 1
            builder.row_positions.append(n_rows)
        return builder.build()

    def _scan_file(self, file: int) -> Iterator[Record]:
        try:
            opened = self.reader.open(file)
        except ShardError as error:
            yield Record(self.reader.row_name(file, 0), None, TransientProblem(error))
            return
        self._check_audio_column(opened.parquet)
        start = 0
        for group, end in enumerate(opened.ends.tolist()):
            try:
                table = self.reader.load(file, group, opened.columns.fields)
                entries = to_rows(f"row group {group}", table)
                records = [self._record(file, row, fields) for row, fields in enumerate(entries, start=start)]
            except ShardError:  # rows are read one by one to find the faulty row
                yield from (self._record_at(file, row) for row in range(start, end))
            else:
                yield from records
            start = end

    def _check_audio_column(self, parquet: pq.ParquetFile) -> None:
        """Raise UserError if a file holds decoded audio, as `datasets` writes it after `map` or `set_format`."""
        for _, column, kind in _audio_columns(parquet, self.field_map):
            if pa.types.is_struct(kind) and kind.get_field_index("array") >= 0:
                raise UserError(
                    f"{self.path}: column {column} holds decoded samples (`array`), expected audio files as {{bytes, "
                    "path}: in `datasets`, use cast_column with Audio(decode=False) before to_parquet"
                )

    def decode(self, record: Record) -> Row:
        """Decode a record. An audio path outside the folder of the Parquet file is a problem."""
        row = super().decode(record)
        paths = [clip.path for clip in row.clips if isinstance(clip.path, Path)]
        if row.problem or not paths:
            return row
        if not self._is_local:
            return replace(
                row, problem="its audio is not stored in the file, and audio paths in a file from a URL are not read"
            )
        root = os.path.abspath(self.folder)
        outside = [path for path in paths if os.path.commonpath([root, os.path.abspath(path)]) != root]
        if outside:
            return replace(row, problem=f"{outside[0]} is outside of {root}, the folder of the Parquet file")
        return row

    def _record(self, file: int, row: int, fields: Fields) -> Record:
        name, columns = self.reader.row_name(file, row), self.reader.open(file).columns
        values: dict[str, Any] = _without_nulls(fields)
        if not columns.audio_field:
            return Record(name, self.field_map.apply(values))
        # If the fields leave out the audio (a column of bytes alone), the row has one clip, without a path.
        clips = as_list(values.pop(columns.audio_field, [{}] if columns.fields_omit_audio else None))
        paths = [clip.get("path") if isinstance(clip, Mapping) else None for clip in clips]
        clip_names = [path or f"{columns.audio_field} {number}" for number, path in enumerate(paths)]
        is_stored = self.reader.find_stored(file, row) if columns.sound_has_nulls else [True] * len(paths)
        sounds = tuple(
            StoredSound(self.reader, file, row, number, clip_name) if stored or not path else None
            for number, (path, clip_name, stored) in enumerate(zip(paths, clip_names, is_stored, strict=True))
        )
        if clip_names:
            values[columns.audio_field] = clip_names
        return Record(name, self.field_map.apply(values), sounds=sounds)


def _columns(parquet: pq.ParquetFile, field_map: FieldMap) -> Columns:
    """Return the columns of a file. The audio is expected in the column that is mapped to `audio` or `audios`."""
    leaves = [parquet.schema.column(number).path for number in range(len(parquet.schema))]
    for kind, column, inner in _audio_columns(parquet, field_map):
        audio_leaves = [leaf for leaf in leaves if leaf == column or leaf.startswith(f"{column}.")]
        if pa.types.is_struct(inner) and inner.get_field_index("bytes") >= 0:
            byte_columns = [leaf for leaf in audio_leaves if leaf.endswith(".bytes")]
        elif pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
            byte_columns = audio_leaves
        else:
            continue
        metadata = [leaf for leaf in audio_leaves if leaf not in byte_columns]
        if not metadata and _is_list(kind):
            # The bytes are read with the fields, because only they show the number of clips.
            return Columns(leaves, byte_columns, column)
        fields = [leaf for leaf in leaves if leaf not in byte_columns]
        has_nulls = bool(metadata) and _may_have_nulls(parquet, byte_columns)
        return Columns(fields, byte_columns, column, fields_omit_audio=not metadata, sound_has_nulls=has_nulls)
    return Columns(leaves, [])


def _audio_columns(parquet: pq.ParquetFile, field_map: FieldMap) -> Iterator[tuple[pa.DataType, str, pa.DataType]]:
    """Yield type, name and type of one clip of the columns that are mapped to `audio` and `audios`."""
    for field in ("audio", "audios"):
        column = field_map.columns.get(field, field)
        index = parquet.schema_arrow.get_field_index(column)
        if index >= 0:
            kind = parquet.schema_arrow.field(index).type
            yield kind, column, kind.value_type if _is_list(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _may_have_nulls(parquet: pq.ParquetFile, leaves: Sequence[str]) -> bool:
    """Return whether columns contain a null, or the file's statistics do not say."""
    metadata = parquet.metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = (group.column(number) for group in groups for number in range(metadata.num_columns))
    statistics = [chunk.statistics for chunk in chunks if chunk.path_in_schema in leaves]
    return any(column is None or column.null_count != 0 for column in statistics)


def _without_nulls(value: Any) -> Any:
    """Remove null fields at every level, because in Parquet a missing field is a null."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
