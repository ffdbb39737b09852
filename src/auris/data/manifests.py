"""Manifests: the rows that a config names, as sequences of which no row is in memory before it is asked for.

So a million rows are some tens of megabytes (`store.Index`), which worker processes share.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from auris.data.parquet import dataset as shards
from auris.data.parquet.dataset import Shards
from auris.data.parquet.foreign import ParquetFiles
from auris.data.row_index import Lines, Store
from auris.data.rows import Form, Record, Row, row_key
from auris.errors import MissingFileError, UserError
from auris.text import tasks


class Selection(Sequence[Row]):
    """Rows of a store, decoded when they are asked for.

    Args:
        numbers: which, ascending; None: all.
        repeated: (R,) bool over the store: rows whose id an earlier one has.
    """

    def __init__(self, store: Store, numbers: np.ndarray | None, repeated: np.ndarray):
        self.store, self._numbers, self._repeated = store, numbers, repeated

    def __len__(self) -> int:
        return len(self.store) if self._numbers is None else len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [row for _, row in self.pairs(place)]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        number = place if self._numbers is None else int(self._numbers[place])
        return self._decode(number, self.store.record(number))

    def __iter__(self) -> Iterator[Row]:
        return (row for _, row in self.pairs(slice(None)))

    def pairs(self, places: slice) -> Iterator[tuple[Record, Row]]:
        """A stretch of rows as they stand in their file and decoded, read one after the other."""
        return ((record, self._decode(number, record)) for number, record in self._records(places))

    def undecoded(self, places: slice) -> Iterator[Undecoded]:
        """A stretch of rows, read one after the other."""
        is_own = type(self.store).decode is not Store.decode  # the store looks at more than the record
        for number, record in self._records(places):
            hidden = is_own or self._repeated[number]
            yield Undecoded(None if hidden else record, partial(self._decode, number, record))

    def _records(self, places: slice) -> Iterator[tuple[int, Record]]:
        numbers = np.arange(*places.indices(len(self))) if self._numbers is None else self._numbers[places]
        return zip(numbers.tolist(), self.store.records(numbers), strict=True)

    @property
    def keys(self) -> np.ndarray:
        """(rows,) uint64: `row_key` of the ids."""
        if self._numbers is None and not self._repeated.any():
            return self.store.index.keys
        chosen = self._chosen
        keys = self.store.index.keys[chosen]
        for place in np.flatnonzero(self._repeated[chosen]):
            keys[place] = row_key(self.store.name(int(chosen[place])))
        return keys

    def unstated(self) -> Iterator[Row]:
        """The rows of which a clip's length is read from its file."""
        return (self[int(place)] for place in np.flatnonzero(self.store.index.unstated[self._chosen]))

    @property
    def _chosen(self) -> np.ndarray:
        return np.arange(len(self.store)) if self._numbers is None else self._numbers

    def _decode(self, number: int, record: Record) -> Row:
        row = self.store.decode(record)
        if not self._repeated[number]:
            return row
        return Row(self.store.name(number), row.clips, row.labels, f"id {row.id!r} is used by an earlier row")


class Joined(Sequence[Row]):
    """The rows of several manifests, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Row]]):
        self._parts = tuple(parts)
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        part = bisect_right(self._ends, place)
        return self._parts[part][place - self._ends[part]]  # counted from the part's end

    def __iter__(self) -> Iterator[Row]:
        return (row for part in self._parts for row in part)


@dataclass(frozen=True)
class Ids(Sequence[str]):
    """The ids of rows, read when they are asked for."""

    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> str:
        return self.rows[place].id


def keys(rows: Sequence[Row]) -> np.ndarray:
    """(rows,) uint64: `row_key` of the ids."""
    return rows.keys if isinstance(rows, Selection) else np.array([row_key(row.id) for row in rows], dtype=np.uint64)


class Undecoded(NamedTuple):
    """A row that need not be decoded if its record says enough; None where the row is more than its record."""

    record: Record | None
    decode: Callable[[], Row]


def undecoded(rows: Sequence[Row], start: int, stop: int) -> Iterator[Undecoded]:
    """Neighbouring rows, each forgotten before the next: very many at once are slow to look after."""
    if isinstance(rows, Selection):
        return rows.undecoded(slice(start, stop))
    return (Undecoded(None, partial(rows.__getitem__, number)) for number in range(start, min(stop, len(rows))))


def unstated(rows: Sequence[Row]) -> Iterator[Row]:
    """Rows of which a clip's length is read from its file."""
    if isinstance(rows, Selection):
        return rows.unstated()
    return (row for row in rows if any(clip.duration is None for clip in row.clips))


@dataclass(frozen=True)
class Manifest:
    """The rows of one source, with its share in the mix (`weight=None`: in proportion to its rows)."""

    path: str | Path
    rows: Sequence[Row]
    weight: float | None = None
    tasks: tuple[str, ...] = ()  # those kept; empty: all
    digest: str = ""  # of what the rows are read from
    max_per_epoch: int | None = None  # rows in an epoch of the mix at most

    @property
    def name(self) -> str:
        return " ".join([str(self.path), *self.tasks])

    @property
    def stem(self) -> str:
        return Path(self.path).stem


def read_manifests(
    sources: Sequence[str | Path | Mapping[str, Any]], *, key: str = "data.train", cache_dir: Path | None = None
) -> list[Manifest]:
    """The rows of each entry of a config's list.

    Args:
        sources: each a path, or a mapping with `path` and any of: `weight` and `max_per_epoch` (in `plan.Plan`),
            `tasks` (keeps these), `limit` (the first rows of each task), `columns` ({ours: theirs}) and `labels` (that
            all rows have). A path is a file of lines, or Parquet: a directory of shards, a file, a pattern, also as
            URL.
        key: of the config, for messages.
        cache_dir: where indexes are kept.

    Raises FileNotFoundError for a missing manifest and ValueError for an entry with unknown keys, or when two rows of
    different manifests share an id (ids name rows in the plan, in predictions and in comparisons).
    """
    manifests = []
    for entry in entries(sources, key=key):
        store = _open(entry, cache_dir)
        rows = _select(store, entry.get("tasks"), entry.get("limit"))
        if not rows:
            kept = f" of tasks {entry['tasks']}" if entry.get("tasks") else ""
            raise UserError(f"{key}: {entry['path']} has no rows{kept}")
        kept = tuple(entry.get("tasks") or ())
        mix = {"weight": entry.get("weight"), "max_per_epoch": entry.get("max_per_epoch")}
        manifests.append(Manifest(entry["path"], rows, tasks=kept, digest=store.digest, **mix))
    _check_ids(manifests, key)
    return manifests


def _open(entry: Mapping[str, Any], cache_dir: Path | None) -> Store:
    path, form = entry["path"], Form(dict(entry.get("columns") or {}), dict(entry.get("labels") or {}))
    if not shards.is_parquet(path):
        return Lines(Path(path), form, cache_dir)
    return (ParquetFiles if str(path).endswith(".parquet") else Shards)(str(path), form, cache_dir)


def _check_ids(manifests: Sequence[Manifest], key: str) -> None:
    """That no id is in two manifests; rows of one manifest were looked at when it was indexed."""
    if len({manifest.name for manifest in manifests}) < 2:
        return
    found = [keys(manifest.rows) for manifest in manifests]
    everything = np.concatenate(found)
    owners = np.repeat(np.arange(len(found)), [len(one) for one in found])
    order = np.argsort(everything, kind="stable")
    same = everything[order[1:]] == everything[order[:-1]]
    for left, right in zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True):
        first, second = manifests[owners[left]], manifests[owners[right]]
        if first.name != second.name:
            row = Joined([manifest.rows for manifest in manifests])[right]
            raise UserError(f"{key}: row id {row.id!r} is in {first.name} and in {second.name}; ids must differ")


def entries(sources: Sequence[str | Path | Mapping[str, Any]], *, key: str) -> list[dict[str, Any]]:
    """The entries of a config's list as dicts, their files known to exist; raises as `read_manifests`."""
    known = ("path", "weight", "max_per_epoch", "tasks", "limit", "columns", "labels")
    found = [{"path": source} if isinstance(source, (str, Path)) else dict(source) for source in sources]
    for entry in found:
        if (unknown := set(entry) - set(known)) or "path" not in entry:
            wrong = f"unknown key {sorted(unknown)}" if unknown else f"no `path` in {entry}"
            raise UserError(f"{key}: {wrong}; an entry has {', '.join(known)}")
        if entry.get("max_per_epoch") is not None and key != "data.train":
            raise UserError(f"{key}: max_per_epoch={entry['max_per_epoch']} has no effect, only data.train has epochs")
        if entry.get("weight") is not None and key != "data.train":
            raise UserError(f"{key}: weight={entry['weight']} has no effect, only data.train is a mix")
        path = Path(entry["path"])
        if shards.is_parquet(entry["path"]):
            _find(entry["path"], key)
        elif not path.is_file():
            raise MissingFileError(
                f"{key}: no manifest at {path}. The embedded corpus is made by "
                f"`auris corpus out={path.parent}`; for your own rows set {key}=[FILE.jsonl]"
            )
    return found


def _find(path: str | Path, key: str) -> None:
    try:
        shards.find(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{key}: {error}") from error


def _select(store: Store, keep: Sequence[str] | None, limit: int | None) -> Selection:
    for code in keep or ():
        tasks.find(code)
    index = store.index
    order = np.argsort(index.keys, kind="stable")
    repeated = np.zeros(len(store), dtype=bool)
    repeated[order[1:][index.keys[order[1:]] == index.keys[order[:-1]]]] = True
    if not keep and limit is None:
        return Selection(store, None, repeated)
    chosen = [number for number, code in enumerate(index.codes.tolist()) if not keep or code in keep]
    taken = [np.flatnonzero(index.tasks == number)[:limit] for number in chosen]
    return Selection(store, np.sort(np.concatenate([np.zeros(0, np.int64), *taken])), repeated)
