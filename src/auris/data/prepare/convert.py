"""`auris prepare layout=NAME root=DIR out=FILE.jsonl`: real recordings as manifests.

Every utterance that a corpus lists ends in the manifest with the true length of its sound, or beside it
(`*.unusable.jsonl`) with the reason why it cannot be used. Sound is not copied, but for what lies within a table.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from hydra.utils import instantiate
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from auris import audio
from auris.data.prepare.tables import Embedded, Fields
from auris.data.samples import DURATION_TOLERANCE
from auris.errors import MissingFileError, UsageError, UserError
from auris.text import tasks

_BATCH = 4096  # rows whose files are looked at side by side
_NEEDED = {"layout": "a layout", "root": "the folder of the corpus", "out": "a new .jsonl file or a folder"}
_SHOWN = 5  # rows at fault that are named for each reason


@dataclass
class Summary:
    """What became of all rows: how many of each split and task, their hours, and how many failed for which reason."""

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: Counter[tuple[str, str]] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        key = (str(row.get("split") or ""), row["task"])
        self.rows[key] += 1
        self.seconds[key] += row.get("duration", 0.0)

    def refuse(self, row: Mapping[str, Any]) -> None:
        kind = _kind(row["problem"])
        self.unusable[kind] += 1
        named = self.examples.setdefault(kind, [])
        if len(named) < _SHOWN:
            named.append(f"{row['id']}: {row['problem']}")


def _kind(problem: str) -> str:
    """A reason without what differs from row to row: paths, values and numbers."""
    return re.sub(r"'[^']*'|\S*/\S*|\d+(\.\d+)?", "…", problem)[:80]


class Writer:
    """Manifests that appear whole: one file, or in a folder one for each split.

    Args:
        out: a file that ends in `.jsonl`, or a folder.
    """

    def __init__(self, out: Path):
        self._out = out
        self._single = out.suffix == ".jsonl"
        self._files: dict[Path, TextIO] = {}
        self._stack = ExitStack()
        self.folder = out.parent if self._single else out
        # Sound that lies within tables goes there.
        self.sounds = out.with_suffix(".audio") if self._single else out / "audio"

    def __enter__(self) -> Writer:
        there = [path for path in [self._out, self.sounds] if path.exists()]
        if there and (self._single or any(self._out.iterdir())):
            raise UserError(f"out={self._out}: {there[0]} is there already, expected the name of a new file or folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        self._stack.close()
        for path in self._files:
            partial = _partial(path)
            if kind is None:
                partial.replace(path)
            else:
                partial.unlink()
        if kind is not None:
            shutil.rmtree(self.sounds, ignore_errors=True)

    def write(self, row: Mapping[str, Any]) -> None:
        """A row, or one with `problem` where those go."""
        problem = "problem" in row
        if self._single:
            path = self._out.with_suffix(".unusable.jsonl") if problem else self._out
        else:
            split = re.sub(r"[^\w.-]", "-", str(row.get("split") or "rows"))  # a name, whatever a table says
            path = self._out / ("unusable.jsonl" if problem else f"{split}.jsonl")
        if path not in self._files:
            self._files[path] = self._stack.enter_context(_partial(path).open("w", encoding="utf-8"))
        # What is no Unicode can only be written in escapes; such a row has that as its problem.
        self._files[path].write(json.dumps(row, ensure_ascii=problem, default=str) + "\n")

    @property
    def written(self) -> list[Path]:
        return list(self._files)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


# --- rows ---------------------------------------------------------------------------------------------------------


def prepare(
    rows: Iterable[Fields], out: Path, *, labels: Mapping[str, Any], jobs: int | None, console: Console
) -> Summary:
    """Look at each row's sound and write it; counts what became of them.

    Args:
        rows: `audio` is a path, a list of paths or an `Embedded` file.
        labels: of all rows that do not say otherwise.
        jobs: files that are looked at side by side; None: one per core.

    Raises ValueError if `out` is there already, or if no row can be used.
    """
    summary = Summary()
    seen: set[str] = set()
    columns = (SpinnerColumn(), TextColumn("{task.completed:,} rows"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, Writer(out) as writer, ThreadPoolExecutor(jobs) as pool:
        bar = progress.add_task("rows", total=None)
        with_files = _save_sounds(rows, writer.sounds)
        while batch := list(islice(with_files, _BATCH)):
            for row in pool.map(lambda row: _check({**labels, **row}, writer.folder), batch):
                if "problem" not in row and row["id"] in seen:
                    row["problem"] = f"its id {row['id']!r} is that of an earlier row"
                seen.add(row["id"])
                writer.write(row)
                (summary.refuse if "problem" in row else summary.add)(row)
            progress.advance(bar, len(batch))
        if not summary.rows:
            _explain(summary, console)
            raise UserError(f"none of {summary.unusable.total()} rows can be used, nothing was written")
    for path in writer.written:
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    show(summary, console)
    return summary


def _save_sounds(rows: Iterable[Fields], folder: Path) -> Iterator[Fields]:
    """Rows whose sound is a file."""
    for number, row in enumerate(rows):
        sound = row.get("audio")
        if isinstance(sound, Embedded):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{number:08d}{sound.suffix or '.wav'}"  # soundfile goes by what is in it
            path.write_bytes(sound.data)
            row = {**row, "audio": path}
        yield row


def _check(row: Fields, folder: Path) -> Fields:
    """A row as it is written: paths relative to its manifest, its sound's length; or with its `problem`."""
    sounds = row.get("audio", [])
    paths = sounds if isinstance(sounds, list) else [sounds]
    are_paths = all(isinstance(path, Path) for path in paths)
    if paths and are_paths:
        relative = [os.path.relpath(path, folder) for path in paths]
        row = {**row, "audio": relative if isinstance(sounds, list) else relative[0]}
    if "problem" in row:
        return row
    try:
        if problem := tasks.check({key: value for key, value in row.items() if key not in ("audio", "id")}):
            raise UserError(problem)
        if not are_paths:
            raise UserError(f"`audio` is {sounds!r:.80}, expected a path or a list of paths")
        if not paths and row["task"] != "text":
            raise UserError(f"task {row['task']!r} needs `audio`")
        json.dumps(row, ensure_ascii=False, default=str).encode()  # UnicodeEncodeError is a ValueError
        lengths = [audio.n_samples(path, *_segment(row)) for path in paths]
        if len(lengths) != 1:
            return row
        seconds = round(lengths[0] / audio.SAMPLE_RATE, 4)
        stated = row.get("duration")
        if row.get("offset") is None and stated is not None and abs(stated - seconds) > DURATION_TOLERANCE:
            raise UserError(f"{paths[0]} is {seconds:.2f} s, the row says {stated:.2f} s")
        return {**row, "duration": seconds}  # written out, so that no run has to look for it
    except (ValueError, OSError) as error:  # OSError: a name that no file can have
        return {**row, "problem": str(error)}


def _segment(row: Mapping[str, Any]) -> tuple[float, float | None]:
    """What of its file a row hears: a duration without an offset only states the file's own."""
    for name in ("offset", "duration"):
        value = row.get(name)
        if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool)):
            raise UserError(f"`{name}` is {value!r:.80}, expected seconds")
    return (0.0, None) if row.get("offset") is None else (row["offset"], row.get("duration"))


# --- what is shown ------------------------------------------------------------------------------------------------


def show(summary: Summary, console: Console) -> None:
    table = Table("split", "task", "rows", "hours")
    for column in table.columns[2:]:
        column.justify = "right"
    for (split, task), number in sorted(summary.rows.items()):
        table.add_row(split, task, f"{number:,}", f"{summary.seconds[split, task] / 3600:,.2f}")
    console.print(table)
    _explain(summary, console)


def _explain(summary: Summary, console: Console) -> None:
    for kind, number in summary.unusable.most_common():
        _say(console, f"{number:,} rows cannot be used: {kind}")
        for example in summary.examples[kind]:
            _say(console, f"  {example}")


def _say(console: Console, text: str) -> None:
    """A line as it is, but for what is no Unicode."""
    console.print(text.encode(errors="replace").decode(), markup=False, highlight=False, soft_wrap=True)


def run(made: Mapping[str, Any]) -> None:
    """Run `auris prepare`."""
    for key, what in _NEEDED.items():
        if not made.get(key):
            raise UsageError(f"{key}= is missing: expected {what} (auris prepare --help)")
    root = Path(made["root"])
    if not root.is_dir():
        raise MissingFileError(f"root={root}: there is no such folder")
    rows = instantiate(made["layout"], _convert_="all")(root)
    prepare(rows, Path(made["out"]), labels=made["labels"], jobs=made["jobs"], console=Console())
