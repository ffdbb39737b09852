"""`auris shards rows=FILE out=DIR`: pack rows and their audio into Parquet shards.

Several processes pack in parallel. A shard is finished when its receipt has been written (`shard-NNNNN.json`, with the
checksum of the shard), so an interrupted run can be continued. If the command is repeated, every shard is verified, and
damaged or missing shards are packed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from auris.data.manifests import EntryConfig, Selection, read_manifests
from auris.data.parallel_map import parallel_map
from auris.data.parquet import dataset as shards
from auris.data.parquet import writer
from auris.data.parquet.dataset import CONTENTS, SHARD, Contents
from auris.data.parquet.reader import File
from auris.errors import UsageError, UserError, count
from auris.files import digest, write_json, write_jsonl, write_text
from auris.text.console import print_plain

_MAX_SHOWN = 20  # number of unusable rows printed on the terminal; problems.jsonl lists all of them


@dataclass(frozen=True)
class _Job:
    """Settings shared by the packing processes.

    Attributes:
        rows: Rows to pack.
        out: Output directory.
        rows_per_shard: Number of rows in a shard.
        source: Digest of the rows and settings.
        finished: {file name: shard that an earlier run has finished}.
    """

    rows: Selection
    out: Path
    rows_per_shard: int
    source: str
    finished: Mapping[str, File]


def pack(entry: EntryConfig, out: Path, *, rows_per_shard: int, processes: int | None, console: Console) -> Contents:
    """Pack the rows of a manifest and return the contents of the directory.

    Args:
        entry: A path, or a mapping with `path`, `tasks`, `limit`, `columns`, `labels`, like an entry of `data.train`.
        out: Output directory.
        rows_per_shard: Number of rows in a shard.
        processes: Number of packing processes; None: one per core.
        console: Console for progress and unusable rows.

    Raises:
        UserError: `out` holds shards of other rows.
        MissingFileError: The manifest does not exist.
        OSError: The shards cannot be written.
    """
    [manifest] = read_manifests([entry], key="rows")
    rows = manifest.rows
    assert isinstance(rows, Selection)
    out.mkdir(parents=True, exist_ok=True)
    source = digest([manifest.rows_digest, repr(rows.row_index.field_map), rows_per_shard])
    job = _Job(rows, out, rows_per_shard, source, _find_finished(out, source, console))
    for temporary in out.glob("*.tmp"):  # left by a killed run
        temporary.unlink()
    files = _pack_all(job, processes, console)
    index, problems = writer.write_index(out, files)
    write_jsonl(out / "problems.jsonl", ({"id": row_id, "reason": reason} for row_id, reason in problems))
    contents = Contents(
        source=job.source, rows_per_shard=rows_per_shard, problems=len(problems), index=index, shards=tuple(files)
    )
    write_text(out / CONTENTS, contents.dump(), sync=True)
    for receipt in out.glob("shard-*.json"):  # `shards.json` now contains the content of the receipts
        receipt.unlink()
    _print_summary(console, out, contents, problems)
    return contents


def _find_finished(out: Path, source: str, console: Console) -> dict[str, File]:
    """Return the shards that earlier runs have finished, by name. Shards in a damaged list are ignored.

    Raises:
        UserError: The shards hold other rows.
    """
    finished: dict[str, File] = {}
    for path in [*out.glob(CONTENTS), *out.glob("shard-*.json")]:
        try:
            text = path.read_text(errors="replace")
            if path.name == CONTENTS:
                contents = Contents.parse(text, str(path))
                packed_source, files = contents.source, contents.shards
            else:
                receipt = json.loads(text)
                packed_source, files = receipt.pop("source"), (File(**receipt),)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            print_plain(console, f"{path} is damaged ({error}); the shards that it lists are packed again")
            continue
        if packed_source != source:
            raise UserError(f"{out} holds shards of other rows: choose another directory (out=DIR)")
        finished |= {file.name: file for file in files}
    return finished


def _pack_all(job: _Job, processes: int | None, console: Console) -> list[File]:
    """Return all shards in order, after packing those that are not finished and intact."""
    numbers = range(-(-len(job.rows) // job.rows_per_shard))
    files: dict[int, File] = {}
    with Progress(console=console) as progress:
        bar = progress.add_task("rows", total=len(job.rows))
        for number, file in parallel_map(lambda number: _pack_shard(job, number), numbers, processes):
            files[number] = file
            progress.advance(bar, file.rows)
    return [files[number] for number in numbers]


def _pack_shard(job: _Job, number: int) -> File:
    name = SHARD.format(number)
    finished = job.finished.get(name)
    if finished is not None and writer.find_fault(job.out, finished) is None:
        return finished
    positions = slice(number * job.rows_per_shard, (number + 1) * job.rows_per_shard)
    file = writer.write_shard(job.out / name, job.rows.records_and_rows(positions))
    write_json((job.out / name).with_suffix(".json"), {"source": job.source, **asdict(file)})
    return file


def _print_summary(console: Console, out: Path, contents: Contents, problems: list[tuple[str, str]]) -> None:
    n_rows, size = sum(file.rows for file in contents.shards), sum(file.bytes for file in contents.shards)
    console.print(
        f"{out}: {count(n_rows, 'row')} in {count(len(contents.shards), 'shard')}, {size / 2**30:.2f} GiB",
        highlight=False,
    )
    if problems:
        console.print(f"[yellow]rows that cannot be used: {len(problems)}, see {out / 'problems.jsonl'}[/yellow]")
        for row_id, reason in problems[:_MAX_SHOWN]:
            print_plain(console, f"  {row_id}: {reason}")


def check(folder: Path, console: Console) -> list[str]:
    """Verify a directory of shards; print and return one message for each damaged file."""
    _, [path] = shards.find_files(folder)
    contents = Contents.parse(Path(path).read_text(errors="replace"), path)
    results = (writer.find_fault(folder, file) for file in (*contents.shards, contents.index))
    faults = list(filter(None, results))
    for fault in faults:
        print_plain(console, fault, style="red")
    n_intact = len(contents.shards) + 1 - len(faults)
    console.print(f"{folder}: {count(n_intact, 'intact file')}, {count(len(faults), 'damaged file')}")
    return faults


def run(config: Mapping[str, Any]) -> int | None:
    """Run `auris shards`; return 1 if `check` finds a damaged file."""
    console = Console()
    if config["check"] is not None:
        return 1 if check(Path(config["check"]), console) else 0
    if config["rows"] is None or config["out"] is None:
        raise UsageError("expected rows=FILE and out=DIR, or check=DIR")
    if shards.is_url(config["out"]):
        raise UsageError(f"out={config['out']}: expected a local directory; copy it to the storage afterwards")
    settings = {name: config[name] for name in ("rows_per_shard", "processes")}
    pack(config["rows"], Path(config["out"]), console=console, **settings)
    return None
