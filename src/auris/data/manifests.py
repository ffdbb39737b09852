"""Manifests: the rows of a data config, as sequences that read a row from its file on access.

The index of a million rows takes some tens of megabytes (`row_index.RowColumns`), which worker processes share.
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
from auris.errors import MissingFileError, UserError
from auris.files import digest
from auris.text import tasks
from auris.text.answer_formats import Labels


class LazyRows(Sequence[Row]):
    """Sequence of rows that are read on access."""

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [self._row(number) for number in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self._row(place % len(self))

    @abstractmethod
    def _row(self, place: int) -> Row:
        """Return the row at a place, 0 <= place < len(self)."""


class Selection(LazyRows):
    """Selected rows of one manifest, decoded on access.

    Args:
        row_index: Index of the manifest.
        numbers: Ascending row numbers in the index; None selects all rows.
        repeated: (R,) bool over the index: True for rows that have the id of an earlier row.
    """

    def __init__(self, row_index: RowIndex, numbers: np.ndarray | None, repeated: np.ndarray):
        self.row_index, self._numbers, self._repeated = row_index, numbers, repeated

    def __len__(self) -> int:
        return len(self.row_index) if self._numbers is None else len(self._numbers)

    def _row(self, place: int) -> Row:
        number = place if self._numbers is None else int(self._numbers[place])
        return self._decode(number, self.row_index.record(number))

    def __iter__(self) -> Iterator[Row]:
        return (row for _, row in self.pairs(slice(None)))

    def pairs(self, places: slice) -> Iterator[tuple[Record, Row]]:
        """Yield consecutive rows, both as records and decoded."""
        return ((record, self._decode(number, record)) for number, record in self._records(places))

    def undecoded(self, places: slice) -> Iterator[UndecodedRow]:
        """Yield consecutive rows without decoding them."""
        overrides_decode = type(self.row_index).decode is not RowIndex.decode  # it may find problems of its own
        for number, record in self._records(places):
            must_decode = overrides_decode or self._repeated[number]
            yield UndecodedRow(None if must_decode else record, partial(self._decode, number, record))

    def _records(self, places: slice) -> Iterator[tuple[int, Record]]:
        numbers = self._chosen[places]
        return zip(numbers.tolist(), self.row_index.records(numbers), strict=True)

    @property
    def row_keys(self) -> np.ndarray:
        """The `row_key` of each row's id, (rows,) uint64."""
        if self._numbers is None and not self._repeated.any():
            return self.row_index.columns.keys
        chosen = self._chosen
        keys = self.row_index.columns.keys[chosen]
        for place in np.flatnonzero(self._repeated[chosen]):
            keys[place] = row_key(self.row_index.name(int(chosen[place])))
        return keys

    def without_duration(self) -> Iterator[Row]:
        """Yield the rows with a clip whose length must be read from its file."""
        return (self[int(place)] for place in np.flatnonzero(self.row_index.columns.lacks_duration[self._chosen]))

    @property
    def _chosen(self) -> np.ndarray:
        return np.arange(len(self.row_index)) if self._numbers is None else self._numbers

    def _decode(self, number: int, record: Record) -> Row:
        row = self.row_index.decode(record)
        if not self._repeated[number]:
            return row
        return Row(self.row_index.name(number), row.clips, row.labels, f"id {row.id!r} is used by an earlier row")


class JoinedRows(LazyRows):
    """Concatenation of the rows of several manifests."""

    def __init__(self, parts: Sequence[Sequence[Row]]):
        self._parts = tuple(parts)
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _row(self, place: int) -> Row:
        part = bisect_right(self._ends, place)
        return self._parts[part][place - self._ends[part]]  # a negative index, counted from the end of the part

    def __iter__(self) -> Iterator[Row]:
        return (row for part in self._parts for row in part)


def row_keys(rows: Sequence[Row]) -> np.ndarray:
    """Return the `row_key` of each row's id, (rows,) uint64."""
    if isinstance(rows, Selection):
        return rows.row_keys
    return np.array([row_key(row.id) for row in rows], dtype=np.uint64)


class UndecodedRow(NamedTuple):
    """A row that is decoded only if its record is not sufficient.

    Attributes:
        record: The record, or None if only the decoded row is valid.
        decode: Returns the decoded row.
    """

    record: Record | None
    decode: Callable[[], Row]


def undecoded(rows: Sequence[Row], start: int, stop: int) -> Iterator[UndecodedRow]:
    """Yield rows [start, stop) without decoding them.

    They are not collected in a list: millions of live objects slow down Python's garbage collector.
    """
    if isinstance(rows, Selection):
        return rows.undecoded(slice(start, stop))
    return (UndecodedRow(None, partial(rows.__getitem__, number)) for number in range(start, min(stop, len(rows))))


@dataclass(frozen=True)
class Manifest:
    """The rows of one entry of a data config.

    Attributes:
        path: The path as written in the entry.
        rows: The selected rows.
        weight: Share in the training mix; None: in proportion to the number of rows.
        tasks: Tasks that the entry selects; empty: all.
        digest: Digest of the files that the rows are read from.
        max_per_epoch: Maximum number of rows in an epoch of the mix.
    """

    path: str | Path
    rows: Sequence[Row]
    weight: float | None = None
    tasks: tuple[str, ...] = ()
    digest: str = ""
    max_per_epoch: int | None = None

    @property
    def name(self) -> str:
        """Path and tasks, as shown in messages."""
        return " ".join([str(self.path), *self.tasks])

    @property
    def rows_digest(self) -> str:
        """Digest of the files that the rows are read from, and of which rows are selected."""
        return digest([self.digest, hashlib.sha256(row_keys(self.rows).data).hexdigest()])


EntryConfig = str | Path | Mapping[str, Any]
"""An entry of `data.train` and the like: a path, or a mapping with `path` and other attributes of `ManifestEntry`."""


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """An entry of a data config.

    Attributes:
        path: A JSONL or text file, a directory of shards, or a Parquet file or pattern; the last three also as URLs.
        weight: Share in the training mix (`plan.Plan`). For training only.
        max_per_epoch: Maximum number of rows in an epoch. For training only.
        tasks: Select the rows of these tasks; empty: all.
        limit: Select the first `limit` rows of each task.
        columns: {auris field: field in the file}.
        labels: Labels added to every row.
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
        """Parse an entry of the config's `key` and check that its files exist.

        Raises:
            UserError: The entry has unknown keys, or settings that have no effect for `key`.
            MissingFileError: The manifest does not exist.
        """
        settings = {"path": entry_config} if isinstance(entry_config, (str, Path)) else entry_config
        values: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        keys = [attribute.name for attribute in fields(cls)]
        if (unknown := set(settings) - set(keys)) or "path" not in values:
            fault = f"unknown key {sorted(unknown)}" if unknown else f"no `path` in {dict(settings)}"
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
                dataset.find(self.path)
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(f"{key}: {error}") from error
        elif not Path(self.path).is_file():
            raise MissingFileError(
                f"{key}: there is no file {self.path}. To create the embedded corpus, run "
                f"`auris corpus out={Path(self.path).parent}`; to use your own rows, set {key}=[FILE.jsonl]"
            )

    def open(self, cache_dir: Path | None) -> RowIndex:
        """Index the rows, or load their index from the cache."""
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
        UserError: As `ManifestEntry.parse`; an entry has no rows; or rows of different manifests share an id (ids
            identify rows in the plan, in predictions and in comparisons).
        MissingFileError: A manifest does not exist.
    """
    manifests = []
    for entry in [ManifestEntry.parse(entry_config, key) for entry_config in entries]:
        index = entry.open(cache_dir)
        rows = _select(index, entry.tasks, entry.limit)
        if not rows:
            selected = f" of tasks {list(entry.tasks)}" if entry.tasks else ""
            raise UserError(f"{key}: {entry.path} has no rows{selected}")
        manifests.append(
            Manifest(entry.path, rows, entry.weight, tuple(entry.tasks), index.digest, entry.max_per_epoch)
        )
    _check_ids(manifests, key)
    return manifests


def _check_ids(manifests: Sequence[Manifest], key: str) -> None:
    """Check that no id is in two manifests. An id repeated within one manifest is a problem of the later row."""
    parts = [(manifest, row_keys(manifest.rows)) for manifest in manifests]
    for (first, before), (second, after) in combinations(parts, 2):
        if first.name != second.name and len(common := np.intersect1d(before, after)):
            row = second.rows[int(np.flatnonzero(after == common[0])[0])]
            raise UserError(f"{key}: row id {row.id!r} is in {first.name} and in {second.name}, expected different ids")


def _select(index: RowIndex, keep: Sequence[str], limit: int | None) -> Selection:
    """Select the first `limit` rows of each of the tasks `keep`, and mark rows whose id an earlier row has."""
    for code in keep:
        tasks.find(code)  # raises UserError for an unknown task
    columns = index.columns
    order = np.argsort(columns.keys, kind="stable")
    repeated = np.zeros(len(index), dtype=bool)
    repeated[order[1:][columns.keys[order[1:]] == columns.keys[order[:-1]]]] = True
    if not keep and limit is None:
        return Selection(index, None, repeated)
    chosen = [number for number, code in enumerate(columns.codes.tolist()) if not keep or code in keep]
    numbers = [np.flatnonzero(columns.tasks == number)[:limit] for number in chosen]
    return Selection(index, np.sort(np.concatenate([np.zeros(0, np.int64), *numbers])), repeated)
