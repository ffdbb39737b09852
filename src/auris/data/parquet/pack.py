"""`auris shards rows=FILE out=DIR`: rows and their sound files packed into Parquet shards.

Rows are packed by several processes, and a run that was stopped goes on where it was: a shard counts once its checksum
is written. Given again, the command reads every shard through and packs anew what is damaged or missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from auris.data.manifests import Manifest, Selection, read_manifests
from auris.data.parquet import dataset as shards
from auris.data.parquet import writer
from auris.data.parquet.dataset import CONTENTS, SHARD, Contents
from auris.data.parquet.reader import File
from auris.errors import RunStopped, UsageError, UserError

_SHOWN = 20  # rows that cannot be used, on the terminal; all of them are in problems.jsonl


@dataclass(frozen=True)
class Job:
    """What a packing process works on."""

    rows: Selection
    out: Path
    rows_per_shard: int
    source: str
    known: Mapping[str, File]  # shards of an earlier run


def pack(
    entry: str | Mapping[str, Any], out: Path, *, rows_per_shard: int, processes: int | None, console: Console
) -> Contents:
    """Pack a manifest's rows; returns what the directory holds.

    Args:
        entry: as in `data.train`: a path, or a mapping with `path`, `tasks`, `limit`, `columns`, `labels`.
        processes: that pack side by side; None: one per core.

    Raises ValueError if `out` holds shards of other rows, FileNotFoundError for a missing manifest, OSError when
    nothing can be written.
    """
    for name, value in (("rows_per_shard", rows_per_shard), ("processes", processes)):
        if value is not None and value < 1:
            raise UserError(f"{name}={value}: expected 1 or more")
    [manifest] = read_manifests([entry], key="rows")
    out.mkdir(parents=True, exist_ok=True)
    job = Job(manifest.rows, out, rows_per_shard, _source(manifest, rows_per_shard), {})
    job = Job(**{**vars(job), "known": _known(job, console)})
    for draft in out.glob("*.tmp"):  # of a run that was killed
        draft.unlink()
    files = _pack_all(job, processes or len(os.sched_getaffinity(0)), console)
    index, problems = writer.write_index(out, files)
    _write(out / "problems.jsonl", "".join(json.dumps({"id": row, "reason": why}) + "\n" for row, why in problems))
    contents = Contents(
        source=job.source, rows_per_shard=rows_per_shard, problems=len(problems), index=index, shards=tuple(files)
    )
    _write(out / CONTENTS, contents.dump())
    for receipt in out.glob("shard-*.json"):
        receipt.unlink()
    _show(console, out, contents, problems)
    return contents


def _source(manifest: Manifest, rows_per_shard: int) -> str:
    """A hash of what is packed, and how."""
    facts = [manifest.digest, hashlib.sha256(manifest.rows.keys).hexdigest(), repr(manifest.rows.store.form)]
    return hashlib.sha256("\0".join([*facts, str(rows_per_shard)]).encode()).hexdigest()


def _known(job: Job, console: Console) -> dict[str, File]:
    """What earlier runs have finished. Raises ValueError if that is something else than these rows.

    A damaged list says nothing, not even of what: its shards are packed anew.
    """
    known: dict[str, File] = {}
    sources: set[str] = set()
    for path in [job.out / CONTENTS, *job.out.glob("shard-*.json")]:
        try:
            if path.name == CONTENTS:
                contents = Contents.parse(path.read_text(errors="replace"), str(path))
                source, files = contents.source, contents.shards
            else:
                receipt = json.loads(path.read_text(errors="replace"))
                source, files = receipt.pop("source"), (File(**receipt),)
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            console.print(f"{path} is damaged ({error}), what it lists is packed anew", highlight=False, soft_wrap=True)
            continue
        sources.add(source)
        known |= {file.name: file for file in files}
    if sources - {job.source}:
        raise UserError(f"{job.out} holds shards of other rows: give this one a directory of its own (out=DIR)")
    return known


def _pack_all(job: Job, processes: int, console: Console) -> list[File]:
    """All shards in their order, packed or found intact."""
    numbers = range(-(-len(job.rows) // job.rows_per_shard))
    files: dict[int, File] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("rows", total=len(job.rows))
        for number, file in _work(job, numbers, min(processes, len(numbers))):
            files[number] = file
            progress.advance(bar, file.rows)
    return [files[number] for number in numbers]


def _work(job: Job, numbers: range, processes: int) -> Iterator[tuple[int, File]]:
    if processes == 1:
        yield from ((number, _pack_shard(job, number)) for number in numbers)
        return
    with ProcessPoolExecutor(processes, get_context("fork"), _receive, (job,)) as pool:
        found = {pool.submit(_pack_received, number): number for number in numbers}
        try:
            for done in as_completed(found):
                yield found[done], done.result()
        except BrokenProcessPool as error:
            raise RunStopped("a packing process was killed (is memory short? processes=1 takes the least)") from error
        finally:
            pool.shutdown(cancel_futures=True)


_received: Job | None = None  # in a process that packs


def _receive(job: Job) -> None:
    global _received
    _received = job


def _pack_received(number: int) -> File:
    assert _received is not None
    return _pack_shard(_received, number)


def _pack_shard(job: Job, number: int) -> File:
    name = SHARD.format(number)
    known = job.known.get(name)
    if known is not None and writer.fault(job.out, known) is None:
        return known
    places = slice(number * job.rows_per_shard, (number + 1) * job.rows_per_shard)
    file = writer.write_shard(job.out / name, job.rows.pairs(places))
    _write((job.out / name).with_suffix(".json"), json.dumps({"source": job.source, **asdict(file)}))
    return file


def _write(path: Path, text: str) -> None:
    """All of a file or nothing of it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with draft.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(path)


def _show(console: Console, out: Path, contents: Contents, problems: list[tuple[str, str]]) -> None:
    rows, size = sum(file.rows for file in contents.shards), sum(file.bytes for file in contents.shards)
    console.print(f"{out}: {rows:,} rows in {len(contents.shards):,} shards, {size / 2**30:.2f} GiB", highlight=False)
    if problems:
        console.print(f"[yellow]{len(problems)} rows cannot be used, see {out / 'problems.jsonl'}:[/yellow]")
        for row, why in problems[:_SHOWN]:
            console.print(f"  {row}: {why}", markup=False, highlight=False, soft_wrap=True)


def check(folder: Path, console: Console) -> list[str]:
    """Read a directory of shards through; print and return what is wrong with it, a sentence for each file."""
    _, [place] = shards.find(folder)
    contents = Contents.parse(Path(place).read_text(errors="replace"), place)
    wrong = [writer.fault(folder, file) for file in (*contents.shards, contents.index)]
    wrong = [fault for fault in wrong if fault is not None]
    for fault in wrong:
        console.print(f"[red]{fault}[/red]", highlight=False, soft_wrap=True)
    console.print(f"{folder}: {len(contents.shards) + 1 - len(wrong)} files are intact, {len(wrong)} are not")
    return wrong


def run(made: Mapping[str, Any]) -> int | None:
    """Run `auris shards`; returns 1 if `check` finds a damaged file."""
    console = Console()
    if made["check"] is not None:
        return 1 if check(Path(made["check"]), console) else 0
    if made["rows"] is None or made["out"] is None:
        raise UsageError("expected rows=FILE and out=DIR, or check=DIR")
    if shards.is_url(made["out"]):
        raise UsageError(f"out={made['out']}: expected a local directory, to be copied where it shall be read")
    pack(
        made["rows"],
        Path(made["out"]),
        rows_per_shard=made["rows_per_shard"],
        processes=made["processes"],
        console=console,
    )
    return None
