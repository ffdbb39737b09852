"""Manifests: the rows that a data config names, as sequences whose rows are read when they are accessed.

A million rows take some tens of megabytes (`row_index.RowColumns`), which worker processes share.
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
    """Rows that are read when they are accessed."""

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
        """Return the row at a place from 0 to before the end."""


class Selection(LazyRows):
    """Rows of one manifest, decoded when they are accessed.

    Args:
        index: of the manifest.
        numbers: which of its rows, ascending; None: all.
        repeated: (R,) bool over the index: rows whose id an earlier row has.
    """

    def __init__(self, index: RowIndex, numbers: np.ndarray | None, repeated: np.ndarray):
        self.index, self._numbers, self._repeated = index, numbers, repeated

    def __len__(self) -> int:
        return len(self.index) if self._numbers is None else len(self._numbers)

    def _row(self, place: int) -> Row:
        number = place if self._numbers is None else int(self._numbers[place])
        return self._decode(number, self.index.record(number))

    def __iter__(self) -> Iterator[Row]:
        return (row for _, row in self.pairs(slice(None)))

    def pairs(self, places: slice) -> Iterator[tuple[Record, Row]]:
        """Yield consecutive rows as they stand in their file and decoded."""
        return ((record, self._decode(number, record)) for number, record in self._records(places))

    def undecoded(self, places: slice) -> Iterator[Undecoded]:
        """Yield consecutive rows, not decoded yet."""
        is_own = type(self.index).decode is not RowIndex.decode  # the index looks at more than the record
        for number, record in self._records(places):
            hidden = is_own or self._repeated[number]
            yield Undecoded(None if hidden else record, partial(self._decode, number, record))

    def _records(self, places: slice) -> Iterator[tuple[int, Record]]:
        numbers = self._chosen[places]
        return zip(numbers.tolist(), self.index.records(numbers), strict=True)

    @property
    def row_keys(self) -> np.ndarray:
        """(rows,) uint64: `row_key` of the ids."""
        if self._numbers is None and not self._repeated.any():
            return self.index.columns.keys
        chosen = self._chosen
        keys = self.index.columns.keys[chosen]
        for place in np.flatnonzero(self._repeated[chosen]):
            keys[place] = row_key(self.index.name(int(chosen[place])))
        return keys

    def without_duration(self) -> Iterator[Row]:
        """The rows of which a clip's length is read from its file."""
        return (self[int(place)] for place in np.flatnonzero(self.index.columns.lacks_duration[self._chosen]))

    @property
    def _chosen(self) -> np.ndarray:
        return np.arange(len(self.index)) if self._numbers is None else self._numbers

    def _decode(self, number: int, record: Record) -> Row:
        row = self.index.decode(record)
        if not self._repeated[number]:
            return row
        return Row(self.index.name(number), row.clips, row.labels, f"id {row.id!r} is used by an earlier row")


class JoinedRows(LazyRows):
    """The rows of several manifests, one manifest after the other."""

    def __init__(self, parts: Sequence[Sequence[Row]]):
        self._parts = tuple(parts)
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _row(self, place: int) -> Row:
        part = bisect_right(self._ends, place)
        return self._parts[part][place - self._ends[part]]  # counted from the part's end

    def __iter__(self) -> Iterator[Row]:
        return (row for part in self._parts for row in part)


def row_keys(rows: Sequence[Row]) -> np.ndarray:
    """Return the `row_key` of each row's id, (rows,) uint64."""
    if isinstance(rows, Selection):
        return rows.row_keys
    return np.array([row_key(row.id) for row in rows], dtype=np.uint64)


class Undecoded(NamedTuple):
    """A row that need not be decoded if its record says enough; None where the row is more than its record."""

    record: Record | None
    decode: Callable[[], Row]


def undecoded(rows: Sequence[Row], start: int, stop: int) -> Iterator[Undecoded]:
    """Neighbouring rows, each forgotten before the next: very many at once are slow to look after."""
    if isinstance(rows, Selection):
        return rows.undecoded(slice(start, stop))
    return (Undecoded(None, partial(rows.__getitem__, number)) for number in range(start, min(stop, len(rows))))


@dataclass(frozen=True)
class Manifest:
    """The rows of one entry of a data config.

    Attributes:
        path: as the entry states it.
        weight: share in the mix of training; None: in proportion to the rows.
        tasks: the tasks that the entry selects; empty: all.
        digest: of what the rows are read from.
        max_per_epoch: upper limit of rows in an epoch of the mix.
    """

    path: str | Path
    rows: Sequence[Row]
    weight: float | None = None
    tasks: tuple[str, ...] = ()
    digest: str = ""
    max_per_epoch: int | None = None

    @property
    def name(self) -> str:
        return " ".join([str(self.path), *self.tasks])

    @property
    def rows_digest(self) -> str:
        """Digest of what the rows are read from, and which of them are selected."""
        return digest([self.digest, hashlib.sha256(row_keys(self.rows)).hexdigest()])


EntryConfig = str | Path | Mapping[str, Any]
"""An entry of `data.train` and the like: a path, or a mapping with `path` and other attributes of `ManifestEntry`."""


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """An entry of a data config.

    Attributes:
        path: a file of lines, or Parquet: a directory of shards, a file, a pattern; the latter also as URL.
        weight, max_per_epoch: the share in the mix (`plan.Plan`); for training only.
        tasks: keep the rows of these tasks; empty: all.
        limit: keep the first rows of each task.
        columns: {our name: name in the file}.
        labels: what all rows have.
    """

    path: str
    weight: float | None = None
    max_per_epoch: int | None = None
    tasks: Sequence[str] = ()
    limit: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Labels = field(default_factory=dict)

    @classmethod
    def parse(cls, given: EntryConfig, key: str) -> ManifestEntry:
        """Read an entry of the config's `key` and check that its files exist.

        Raises:
            UserError: unknown keys, or settings that have no effect there.
            MissingFileError: the manifest is missing.
        """
        given = {"path": given} if isinstance(given, (str, Path)) else given
        values = {name: value for name, value in given.items() if value is not None}
        known = [attribute.name for attribute in fields(cls)]
        if (unknown := set(given) - set(known)) or "path" not in values:
            wrong = f"unknown key {sorted(unknown)}" if unknown else f"no `path` in {dict(given)}"
            raise UserError(f"{key}: {wrong}; an entry has {', '.join(known)}")
        if key != "data.train" and (unused := sorted({"weight", "max_per_epoch"} & values.keys())):
            raise UserError(f"{key}: {unused[0]}={values[unused[0]]} has no effect, only data.train is a mix")
        entry = cls(**{**values, "path": str(values["path"])})
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
                f"{key}: no manifest at {self.path}. The embedded corpus is made by "
                f"`auris corpus out={Path(self.path).parent}`; for your own rows set {key}=[FILE.jsonl]"
            )

    def open(self, cache_dir: Path | None) -> RowIndex:
        """Index the rows, or load their index from the cache."""
        form = FieldMap(dict(self.columns), dict(self.labels))
        if not dataset.is_parquet(self.path):
            return Lines(Path(self.path), form, cache_dir)
        return (ParquetFiles if self.path.endswith(".parquet") else Shards)(self.path, form, cache_dir)


def read_manifests(
    sources: Sequence[EntryConfig], *, key: str = "data.train", cache_dir: Path | None = None
) -> list[Manifest]:
    """Return the rows of each entry of a config's list.

    Args:
        key: of the config, for messages.
        cache_dir: where indexes are cached.

    Raises:
        UserError: as `ManifestEntry.parse`; an entry has no rows; or two rows of different manifests share an id (ids
            name rows in the plan, in predictions and in comparisons).
        MissingFileError: a manifest is missing.
    """
    manifests = []
    for entry in [ManifestEntry.parse(source, key) for source in sources]:
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
    """Check that no id is in two manifests; repeated ids within one are problems of their rows."""
    parts = [(manifest, row_keys(manifest.rows)) for manifest in manifests]
    for (first, before), (second, after) in combinations(parts, 2):
        if first.name != second.name and len(common := np.intersect1d(before, after)):
            row = second.rows[int(np.flatnonzero(after == common[0])[0])]
            raise UserError(f"{key}: row id {row.id!r} is in {first.name} and in {second.name}; ids must differ")


def _select(index: RowIndex, keep: Sequence[str], limit: int | None) -> Selection:
    for code in keep:
        tasks.find(code)
    columns = index.columns
    order = np.argsort(columns.keys, kind="stable")
    repeated = np.zeros(len(index), dtype=bool)
    repeated[order[1:][columns.keys[order[1:]] == columns.keys[order[:-1]]]] = True
    if not keep and limit is None:
        return Selection(index, None, repeated)
    chosen = [number for number, code in enumerate(columns.codes.tolist()) if not keep or code in keep]
    taken = [np.flatnonzero(columns.tasks == number)[:limit] for number in chosen]
    return Selection(index, np.sort(np.concatenate([np.zeros(0, np.int64), *taken])), repeated)
