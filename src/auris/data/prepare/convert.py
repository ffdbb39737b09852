"""`auris prepare layout=NAME root=DIR out=FILE.jsonl`: write manifests of real recordings.

Every utterance that a corpus lists is written to the manifest with the true length of its audio, or to a second file
(`*.unusable.jsonl`) with the reason why it cannot be used. Audio is not copied, except audio stored inside a table.
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
from pkgutil import resolve_name
from typing import IO, Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from auris import audio
from auris.data.prepare.tables import EmbeddedAudio, RowDict, map_audio
from auris.data.rows import Record, decode_record
from auris.data.samples import DURATION_TOLERANCE
from auris.errors import MissingFileError, UsageError, UserError, count, shorten
from auris.files import open_atomic
from auris.text.answer_formats import Labels
from auris.text.console import print_plain

_BATCH_ROWS = 4096  # number of rows whose files are checked together
_REQUIRED_OPTIONS = {"layout": "a layout", "root": "the folder of the corpus", "out": "a new .jsonl file or a folder"}
_MAX_EXAMPLES = 5  # number of unusable rows printed for each reason


@dataclass
class Summary:
    """Counts of the written rows.

    Attributes:
        rows: Number of usable rows of each (split, task).
        seconds: Seconds of audio of each (split, task).
        unusable: Number of unusable rows with each kind of problem.
        examples: Ids and problems of a few rows with each kind of problem.
    """

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: Counter[tuple[str, str]] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, row: RowDict) -> None:
        """Count a usable row."""
        key = (str(row.get("split") or ""), row["task"])
        self.rows[key] += 1
        self.seconds[key] += row.get("duration", 0.0)

    def add_unusable(self, row: RowDict) -> None:
        """Count an unusable row."""
        kind = _problem_kind(row["problem"])
        self.unusable[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(f"{row['id']}: {row['problem']}")


def _problem_kind(problem: str) -> str:
    """Return a problem without the parts that differ between rows: paths, values and numbers."""
    return re.sub(r"'[^']*'|\S*/\S*|\d+(\.\d+)?", "…", problem)[:80]


class Writer:
    """Writer of a manifest file, or of a folder with a manifest for each split. Files get their names when complete.

    Args:
        out: A `.jsonl` file or a folder.

    Attributes:
        files: Open files by path.
        folder: Folder of the manifests.
        sounds: Folder for audio that was stored inside tables.
    """

    def __init__(self, out: Path):
        self._out = out
        self._is_single_file = out.suffix == ".jsonl"
        self.files: dict[Path, IO[str]] = {}
        self._stack = ExitStack()
        self.folder = out.parent if self._is_single_file else out
        self.sounds = out.with_suffix(".audio") if self._is_single_file else out / "audio"

    def __enter__(self) -> Writer:
        existing = [path for path in [self._out, self.sounds] if path.exists()]
        if existing and (self._is_single_file or any(self._out.iterdir())):
            raise UserError(f"out={self._out}: {existing[0]} already exists, expected a new file or folder")
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._stack.__exit__(kind, *error)
        if kind is not None:
            shutil.rmtree(self.sounds, ignore_errors=True)

    def write(self, row: RowDict) -> None:
        """Write a row to its manifest, or to the file of unusable rows if it has a `problem`."""
        is_unusable = "problem" in row
        if self._is_single_file:
            path = self._out.with_suffix(".unusable.jsonl") if is_unusable else self._out
        else:
            split = re.sub(r"[^\w.-]", "-", str(row.get("split") or "rows"))  # makes a valid file name of any split
            path = self._out / ("unusable.jsonl" if is_unusable else f"{split}.jsonl")
        if path not in self.files:
            self.files[path] = self._stack.enter_context(open_atomic(path))
        # A row may be unusable because of invalid Unicode, which can only be written as escapes.
        self.files[path].write(json.dumps(row, ensure_ascii=is_unusable, default=str) + "\n")


# --- rows ---------------------------------------------------------------------------------------------------------


def prepare(rows: Iterable[RowDict], out: Path, *, labels: Labels, jobs: int | None, console: Console) -> Summary:
    """Check the audio of each row, write the rows and return their counts.

    Args:
        rows: Rows. Their `audio` is a path, a list of paths or an `EmbeddedAudio` file.
        out: A new `.jsonl` file or folder.
        labels: Labels that are added to rows without them.
        jobs: Number of files that are checked in parallel; None: depends on the number of cores.
        console: Console for progress and results.

    Raises:
        UserError: `out` already exists, or no row can be used.
    """
    summary = Summary()
    ids: set[str] = set()
    columns = (SpinnerColumn(), TextColumn("{task.completed:,} rows"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, Writer(out) as writer, ThreadPoolExecutor(jobs) as pool:
        bar = progress.add_task("rows", total=None)
        rows_with_files = _save_sounds(rows, writer.sounds)
        while batch := list(islice(rows_with_files, _BATCH_ROWS)):
            for row in pool.map(lambda row: _check({**labels, **row}, writer.folder), batch):
                if "problem" not in row and row["id"] in ids:
                    row["problem"] = f"its id {shorten(row['id'])} is used by an earlier row"
                ids.add(row["id"])
                writer.write(row)
                (summary.add_unusable if "problem" in row else summary.add)(row)
            progress.advance(bar, len(batch))
        if not summary.rows:
            _print_unusable(summary, console)
            raise UserError(f"none of {count(summary.unusable.total(), 'row')} can be used, so no file was written")
    for path in writer.files:
        print_plain(console, f"wrote {path}")
    _print_summary(summary, console)
    return summary


def _save_sounds(rows: Iterable[RowDict], folder: Path) -> Iterator[RowDict]:
    """Write embedded audio to files, and yield the rows with the paths of these files."""
    for number, row in enumerate(rows):
        sound = row.get("audio")
        if isinstance(sound, EmbeddedAudio):
            folder.mkdir(parents=True, exist_ok=True)
            # A wrong suffix does no harm, because soundfile detects the format.
            path = folder / f"{number:08d}{sound.suffix or '.wav'}"
            path.write_bytes(sound.data)
            row = {**row, "audio": path}
        yield row


def _check(row: RowDict, folder: Path) -> RowDict:
    """Return a row as the manifest contains it: with relative paths, and the duration of its audio or a problem."""
    output_row = map_audio(row, only=Path, change=lambda path: os.path.relpath(path, folder))
    if "problem" in row:
        return output_row
    try:
        json.dumps(output_row, ensure_ascii=False, default=str).encode()  # UnicodeEncodeError is a ValueError
        decoded = decode_record(Record(row["id"], map_audio(row, only=Path, change=str)), Path())
        if decoded.problem:
            raise UserError(decoded.problem)
        lengths = [clip.n_samples() for clip in decoded.clips]
        if len(lengths) != 1:
            return output_row
        [clip] = decoded.clips
        seconds = round(lengths[0] / audio.SAMPLE_RATE, 4)
        if clip.offset is None and clip.duration is not None and abs(clip.duration - seconds) > DURATION_TOLERANCE:
            raise UserError(f"{clip.path} is {seconds:.2f} s long, but the row states {clip.duration:.2f} s")
        return {**output_row, "duration": seconds}  # so that runs need not read it from the file
    except (ValueError, OSError) as error:  # OSError: an invalid file name
        return {**output_row, "problem": str(error)}


# --- output -------------------------------------------------------------------------------------------------------


def _print_summary(summary: Summary, console: Console) -> None:
    table = Table("split", "task", Column("rows", justify="right"), Column("hours", justify="right"))
    for (split, task), n_rows in sorted(summary.rows.items()):
        table.add_row(split, task, f"{n_rows:,}", f"{summary.seconds[split, task] / 3600:,.2f}")
    console.print(table)
    _print_unusable(summary, console)


def _print_unusable(summary: Summary, console: Console) -> None:
    for kind, n_rows in summary.unusable.most_common():
        print_plain(console, f"rows that cannot be used: {n_rows:,} ({kind})")
        for example in summary.examples[kind]:
            print_plain(console, f"  {example}")


def run(config: Mapping[str, Any]) -> None:
    """Run `auris prepare`."""
    for key, description in _REQUIRED_OPTIONS.items():
        if not config.get(key):
            raise UsageError(f"{key}= is missing, expected {description} (see auris prepare --help)")
    root = Path(config["root"])
    if not root.is_dir():
        raise MissingFileError(f"root={root}: there is no such folder")
    settings = {key: value for key, value in config["layout"].items() if not key.startswith("_")}
    rows = resolve_name(config["layout"]["_target_"])(root, **settings)
    prepare(rows, Path(config["out"]), labels=config["labels"], jobs=config["jobs"], console=Console())
