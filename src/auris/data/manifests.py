"""Manifests: the rows of a data config, as sequences that read a row from its file on access.

Only an index of the rows is kept in memory (`row_index.RowColumns`): tens of megabytes for a million rows, which worker
processes share.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from auris.data.parquet import dataset
from auris.data.parquet.dataset import Shards
from auris.data.parquet.foreign import ParquetFiles
from auris.data.row_index import Lines, RowIndex
from auris.data.rows import FieldMap, Record, Row, row_key
from auris.errors import MissingFileError, UserError, shorten
from auris.files import digest
from auris.text import tasks
from auris.text.answer_formats import Labels


class LazyRows(Sequence[Row]):
    """Sequence of rows that are read on access."""

    @overload
    def __getitem__(self, position: int) -> Row: ...
    @overload
    def __getitem__(self, position: slice) -> list[Row]: ...
    def __getitem__(self, position: int | slice) -> Row | list[Row]:
        if isinstance(position, slice):
            return [self._row(number) for number in range(*position.indices(len(self)))]
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        return self._row(position % len(self))

    @abstractmethod
    def _row(self, position: int) -> Row:
        """Return the row at a position, 0 <= position < len(self)."""


class Selection(LazyRows):
    """Selected rows of one manifest, decoded on access.

    Args:
        row_index: Index of the manifest.
        numbers: Ascending row numbers in the index; None selects all rows.
        repeated: (R,) bool for all R rows of the index, True if an earlier row has the same id.
    """

    def __init__(self, row_index: RowIndex, numbers: np.ndarray | None, repeated: np.ndarray):
        self.row_index, self._numbers, self._repeated = row_index, numbers, repeated

    def __len__(self) -> int:
        return len(self.row_index) if self._numbers is None else len(self._numbers)

    def _row(self, position: int) -> Row:
        number = position if self._numbers is None else int(self._numbers[position])
        return self._decode(number, self.row_index.read_record(number))

    def __iter__(self) -> Iterator[Row]:
        return (row for _, row in self.records_and_rows(slice(None)))

    def records_and_rows(self, positions: slice) -> Iterator[tuple[Record, Row]]:
        """Yield the record and the decoded row at each position of a slice."""
        return ((record, self._decode(number, record)) for number, record in self._records(positions))

    def iterate_undecoded(self, positions: slice) -> Iterator[UndecodedRow]:
        """Yield the rows at the positions of a slice without decoding them."""
        # An index with its own `decode` may find problems that a record does not show.
        overrides_decode = type(self.row_index).decode is not RowIndex.decode
        for number, record in self._records(positions):
            must_decode = overrides_decode or self._repeated[number]
            yield UndecodedRow(None if must_decode else record, partial(self._decode, number, record))

    def _records(self, positions: slice) -> Iterator[tuple[int, Record]]:
        numbers = self._selected[positions]
        return zip(numbers.tolist(), self.row_index.read_records(numbers), strict=True)

    @property
    def row_keys(self) -> np.ndarray:
        """The `row_key` of each row's id, (rows,) uint64."""
        if self._numbers is None and not self._repeated.any():
            return self.row_index.columns.keys
        selected = self._selected
        keys = self.row_index.columns.keys[selected]
        for position in np.flatnonzero(self._repeated[selected]):
            keys[position] = row_key(self.row_index.row_name(int(selected[position])))
        return keys

    def without_duration(self) -> Iterator[Row]:
        """Yield the rows with a clip whose length can change unnoticed.

        The row states no duration of this clip, and the manifest's digest does not cover the clip's audio.
        """
        lacks_duration = self.row_index.columns.lacks_duration[self._selected]
        return (self[int(position)] for position in np.flatnonzero(lacks_duration))

    @property
    def _selected(self) -> np.ndarray:
        return np.arange(len(self.row_index)) if self._numbers is None else self._numbers

    def _decode(self, number: int, record: Record) -> Row:
        row = self.row_index.decode(record)
        if not self._repeated[number]:
            return row
        return Row(
            self.row_index.row_name(number), row.clips, row.labels, f"id {shorten(row.id)} is used by an earlier row"
        )


class JoinedRows(LazyRows):
    """Concatenation of the rows of several manifests."""

    def __init__(self, parts: Sequence[Sequence[Row]]):
        self._parts = tuple(parts)
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _row(self, position: int) -> Row:
        part = bisect_right(self._ends, position)
        return self._parts[part][position - self._ends[part]]  # a negative index, which counts from the end of the part

    def __iter__(self) -> Iterator[Row]:
        return (row for part in self._parts for row in part)


def row_keys(rows: Sequence[Row]) -> np.ndarray:
    """Return the `row_key` of each row's id, (rows,) uint64."""
    if isinstance(rows, Selection):
        return rows.row_keys
    return np.array([row_key(row.id) for row in rows], dtype=np.uint64)


class UndecodedRow(NamedTuple):
    """A row that need not be decoded if its record shows all that the caller needs.

    Attributes:
        record: The record, or None if the row must be decoded, because it may have a problem that the record does not
            show.
        decode: Function that returns the decoded row.
    """

    record: Record | None
    decode: Callable[[], Row]


def iterate_undecoded(rows: Sequence[Row], start: int, stop: int) -> Iterator[UndecodedRow]:
    """Yield rows [start, stop) without decoding them.

    The rows are not collected in a list: millions of live objects slow down Python's garbage collector.
    """
    if isinstance(rows, Selection):
        return rows.iterate_undecoded(slice(start, stop))
    return (UndecodedRow(None, partial(rows.__getitem__, number)) for number in range(start, min(stop, len(rows))))


@dataclass(frozen=True)
class Manifest:
    """The rows of one entry of a data config.

    Attributes:
        path: The path as written in the entry.
        rows: The selected rows.
        weight: Relative share in the training mix; None: the share is proportional to the number of rows.
        tasks: Tasks that the entry selects; empty: all tasks.
        digest: Digest of the files that the rows are read from.
        max_per_epoch: Maximum number of rows in an epoch of the training mix.
    """

    path: str | Path
    rows: Sequence[Row]
    weight: float | None = None
    tasks: tuple[str, ...] = ()
    digest: str = ""
    max_per_epoch: int | None = None

    @property
    def name(self) -> str:
        """Path and tasks, by which messages refer to the manifest."""
        return " ".join([str(self.path), *self.tasks])

    @property
    def rows_digest(self) -> str:
        """Digest of the files that the rows are read from, and of the ids of the selected rows."""
        return digest([self.digest, hashlib.sha256(row_keys(self.rows).data).hexdigest()])


EntryConfig = str | Path | Mapping[str, Any]
"""An entry of `data.train`, `data.valid` or another list of manifests: a path, or a mapping with the fields of
`ManifestEntry`."""


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """A parsed entry of a data config.

    Attributes:
        path: A JSONL or text file, a directory of shards, a Parquet file, or a pattern of Parquet files. Shards and
            Parquet files may also be given by URL.
        weight: Relative share in the training mix (`plan.Plan`). For training only.
        max_per_epoch: Maximum number of rows in an epoch. For training only.
        tasks: Select the rows of these tasks; empty: all tasks.
        limit: Select the first `limit` rows of each task.
        columns: {auris field: field in the file}.
        labels: Labels that are added to every row.
    """

    path: str
    weight: float | None = None
    max_per_epoch: int | None = None
    tasks: Sequence[str] = ()
    limit: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Labels = field(default_factory=dict)

    @classmethod
    def parse(cls, entry_config: EntryConfig, key: str) -> ManifestEntry:
        """Parse an entry of a list in the config, such as `data.train` (`key`), and check that its files exist.

        Raises:
            UserError: The entry is neither a path nor a mapping, or it has unknown keys or settings that have no effect
                in this list.
            MissingFileError: The manifest does not exist.
        """
        settings = {"path": entry_config} if isinstance(entry_config, (str, Path)) else entry_config
        if not isinstance(settings, Mapping):
            raise UserError(f"{key}: {shorten(entry_config)} is no file; expected a path, or {{path: FILE, ...}}")
        values: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        keys = [attribute.name for attribute in fields(cls)]
        if (unknown := set(settings) - set(keys)) or "path" not in values:
            fault = f"unknown key {sorted(unknown)}" if unknown else f"no `path` in {shorten(dict(settings))}"
            raise UserError(f"{key}: {fault}; expected {', '.join(keys)}")
        if key != "data.train" and (unused := sorted({"weight", "max_per_epoch"} & values.keys())):
            raise UserError(f"{key}: {unused[0]}={values[unused[0]]} has no effect, only data.train is a mix")
        values["path"] = str(values["path"])
        entry = cls(**values)
        entry._check_exists(key)
        return entry

    def _check_exists(self, key: str) -> None:
        if dataset.is_parquet(self.path):
            try:
                dataset.find_files(self.path)
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(f"{key}: {error}") from error
        elif not Path(self.path).is_file():
            folder, name = Path(self.path).parent, Path(self.path).name
            is_of_corpus = name in ("train.jsonl", "valid.jsonl", "test.jsonl")  # the files that `auris corpus` writes
            advice = f"to create the synthetic corpus, run `auris corpus out={folder}`; " if is_of_corpus else ""
            raise MissingFileError(
                f"{key}: there is no file {self.path}; {advice}to use your own rows, set {key}=[FILE.jsonl]"
            )

    def open(self, cache_dir: Path | None) -> RowIndex:
        """Build the index of the rows, or load it from the cache."""
        field_map = FieldMap(dict(self.columns), dict(self.labels))
        if not dataset.is_parquet(self.path):
            return Lines(Path(self.path), field_map, cache_dir)
        return (ParquetFiles if self.path.endswith(".parquet") else Shards)(self.path, field_map, cache_dir)


def read_manifests(
    entries: Sequence[EntryConfig], *, key: str = "data.train", cache_dir: Path | None = None
) -> list[Manifest]:
    """Return the manifest of each entry of a data config.

    Args:
        entries: Entries of the config.
        key: The config key of the entries, for messages.
        cache_dir: Directory of cached indexes.

    Raises:
        UserError: `ManifestEntry.parse` refuses an entry; an entry has no rows; or rows of different manifests have the
            same id (ids identify rows in the plan, in predictions and in comparisons).
        MissingFileError: A manifest does not exist.
    """
    manifests = []
    for entry in [ManifestEntry.parse(entry_config, key) for entry_config in entries]:
        row_index = entry.open(cache_dir)
        rows = _select(row_index, entry.tasks, entry.limit)
        if not rows:
            selected = f" of tasks {list(entry.tasks)}" if entry.tasks else ""
            raise UserError(f"{key}: {entry.path} has no rows{selected}")
        manifests.append(
            Manifest(entry.path, rows, entry.weight, tuple(entry.tasks), row_index.digest, entry.max_per_epoch)
        )
    _check_ids(manifests, key)
    return manifests


def _check_ids(manifests: Sequence[Manifest], key: str) -> None:
    """Check that no id is in two manifests. An id repeated in one manifest is only a problem of the later row."""
    keys_of_manifests = [(manifest, row_keys(manifest.rows)) for manifest in manifests]
    for (first, first_keys), (second, second_keys) in combinations(keys_of_manifests, 2):
        if first.name != second.name and len(common_keys := np.intersect1d(first_keys, second_keys)):
            row = second.rows[int(np.flatnonzero(second_keys == common_keys[0])[0])]
            raise UserError(
                f"{key}: row id {shorten(row.id)} is in {first.name} and in {second.name}, expected different ids"
            )


def _select(row_index: RowIndex, task_codes: Sequence[str], limit: int | None) -> Selection:
    """Select the first `limit` rows of each given task, or of every task if none is given; find repeated ids."""
    for code in task_codes:
        tasks.get_task(code)  # raises UserError for an unknown task
    columns = row_index.columns
    order = np.argsort(columns.keys, kind="stable")
    repeated = np.zeros(len(row_index), dtype=bool)
    repeated[order[1:][columns.keys[order[1:]] == columns.keys[order[:-1]]]] = True
    if not task_codes and limit is None:
        return Selection(row_index, None, repeated)
    task_numbers = [n for n, code in enumerate(columns.codes.tolist()) if not task_codes or code in task_codes]
    numbers = [np.flatnonzero(columns.tasks == n)[:limit] for n in task_numbers]
    return Selection(row_index, np.sort(np.concatenate([np.zeros(0, np.int64), *numbers])), repeated)
