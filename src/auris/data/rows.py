"""Manifest rows: one JSON object a line (JSONL), or plain text lines (`.txt`) for the language model alone.

A row that cannot be used keeps its place, with the reason in `problem`: the plan of all other rows stays what it would
be without the fault, and the row is counted and named, never dropped silently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from auris import tasks

_NOT_LABELS = {"audio", "offset", "duration", "id"}


@dataclass(frozen=True)
class Clip:
    """An audio file, or with `offset` the stretch of `duration` seconds (None: to the end) from there.

    Without `offset` the file is read whole and `duration` only states its length, as manifests round it.
    """

    path: Path
    offset: float | None = None
    duration: float | None = None


@dataclass(frozen=True)
class Row:
    """One task row of a manifest (design: paths are relative to the manifest, labels as their task needs them)."""

    id: str
    clips: tuple[Clip, ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The rows of one source, with its share in the mix (`weight=None`: in proportion to its rows)."""

    path: Path
    rows: tuple[Row, ...]
    weight: float | None = None
    tasks: tuple[str, ...] = ()  # those kept; empty: all

    @property
    def name(self) -> str:
        return " ".join([str(self.path), *self.tasks])

    def digest(self) -> str:
        """A hash of the manifest file: part of the key under which its index is cached."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]


def read_manifests(sources: Sequence[str | Path | Mapping[str, Any]], *, key: str = "data.train") -> list[Manifest]:
    """Each entry is a path or `{path, weight, tasks, limit}`: `tasks` keeps some tasks, `limit` the first rows of each.

    Raises FileNotFoundError for a missing manifest and ValueError for an entry with unknown keys, or when two rows of
    different manifests share an id (ids name rows in the plan, in predictions and in comparisons).
    """
    manifests = []
    for entry in entries(sources, key=key):
        path = Path(entry["path"])
        rows = tuple(_select(_read(path), entry.get("tasks"), entry.get("limit")))
        if not rows:
            raise ValueError(f"{key}: {path} has no rows" + (f" of tasks {entry['tasks']}" if "tasks" in entry else ""))
        manifests.append(Manifest(path, rows, entry.get("weight"), tuple(entry.get("tasks") or ())))
    seen: dict[str, str] = {}
    for manifest in manifests:
        for row in manifest.rows:
            if seen.setdefault(row.id, manifest.name) != manifest.name:
                raise ValueError(
                    f"{key}: row id {row.id!r} is in {seen[row.id]} and in {manifest.name}; ids must differ"
                )
    return manifests


def entries(sources: Sequence[str | Path | Mapping[str, Any]], *, key: str) -> list[dict[str, Any]]:
    """The entries of a config's list as dicts, their files known to exist; raises as `read_manifests`."""
    found = [{"path": source} if isinstance(source, (str, Path)) else dict(source) for source in sources]
    for entry in found:
        unknown = set(entry) - {"path", "weight", "tasks", "limit"}
        if unknown:
            raise ValueError(f"{key}: unknown key {sorted(unknown)}; an entry has path, weight, tasks, limit")
        path = Path(entry["path"])
        if not path.is_file():
            raise FileNotFoundError(
                f"{key}: no manifest at {path}. The embedded corpus is made by "
                f"`python -m auris.corpus out={path.parent}`; for your own rows set {key}=[FILE.jsonl]"
            )
    return found


def _select(rows: Iterator[Row], keep: Sequence[str] | None, limit: int | None) -> Iterator[Row]:
    for code in keep or ():
        tasks.find(code)
    taken: dict[str, int] = {}
    for row in rows:
        code = str(row.labels.get("task"))  # whatever a row holds: a wrong task is a row with a problem
        if keep and code not in keep:
            continue
        taken[code] = taken.get(code, 0) + 1
        if limit is None or taken[code] <= limit:
            yield row


def _read(path: Path) -> Iterator[Row]:
    seen: set[str] = set()
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            name = f"{path.name}:{number}"
            row = _text_row(line, name) if path.suffix == ".txt" else _json_row(line, name, path.parent)
            if row.id in seen:
                row = Row(name, row.clips, row.labels, f"id {row.id!r} is used by an earlier row")
            seen.add(row.id)
            yield row


def _text_row(line: str, name: str) -> Row:
    return Row(name, (), {"task": "text", "text": line.strip()})


def _json_row(line: str, name: str, folder: Path) -> Row:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        return Row(name, problem=f"not JSON: {error}")
    if not isinstance(fields, dict):
        return Row(name, problem=f"a row is a JSON object, got {type(fields).__name__}")
    labels = {key: value for key, value in fields.items() if key not in _NOT_LABELS}
    identity = str(fields.get("id", name))
    paths = fields.get("audio", [])
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        return Row(identity, (), labels, f"`audio` is {fields['audio']!r}, expected a path or a list of paths")
    seconds = {what: fields[what] for what in ("offset", "duration") if fields.get(what) is not None}
    for what, value in seconds.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
            return Row(identity, (), labels, f"`{what}` is {value!r}, expected seconds >= 0")
    if seconds and len(paths) > 1:
        return Row(identity, (), labels, "`offset` and `duration` describe one clip, the row has several")
    clips = tuple(Clip(folder / path, **seconds) for path in paths)
    problem = tasks.check(labels)
    if problem is None and not clips and labels["task"] != "text":
        problem = f"task {labels['task']!r} needs `audio`"
    return Row(identity, clips, labels, problem)
