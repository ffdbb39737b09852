"""`auris shards rows=FILE out=DIR`: rows and their sound files packed into Parquet shards.

Rows are packed by several processes, and a run that was stopped goes on where it was: a shard counts once its checksum
is written. Given again, the command reads every shard through and packs anew what is damaged or missing.
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
from auris.errors import UsageError, UserError
from auris.files import digest, write_json, write_jsonl, write_text
from auris.text.console import print_plain

_SHOWN = 20  # rows that cannot be used, on the terminal; all of them are in problems.jsonl


@dataclass(frozen=True)
class Job:
    """What a packing process works on.

    Attributes:
        source: digest of what is packed, and how.
        known: shards of an earlier run, by name.
    """

    rows: Selection
    out: Path
    rows_per_shard: int
    source: str
    known: Mapping[str, File]


def pack(entry: EntryConfig, out: Path, *, rows_per_shard: int, processes: int | None, console: Console) -> Contents:
    """Pack a manifest's rows and return what the directory holds.

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
    source = digest([manifest.rows_digest, repr(manifest.rows.index.form), rows_per_shard])
    job = Job(manifest.rows, out, rows_per_shard, source, _known(out, source, console))
    for draft in out.glob("*.tmp"):  # of a run that was killed
        draft.unlink()
    files = _pack_all(job, processes, console)
    index, problems = writer.write_index(out, files)
    write_jsonl(out / "problems.jsonl", ({"id": row, "reason": why} for row, why in problems))
    contents = Contents(
        source=job.source, rows_per_shard=rows_per_shard, problems=len(problems), index=index, shards=tuple(files)
    )
    write_text(out / CONTENTS, contents.dump(), sync=True)
    for receipt in out.glob("shard-*.json"):
        receipt.unlink()
    _show(console, out, contents, problems)
    return contents


def _known(out: Path, source: str, console: Console) -> dict[str, File]:
    """What earlier runs have finished. Raises ValueError if that is something else than these rows.

    A damaged list says nothing, not even of what: its shards are packed anew.
    """
    known: dict[str, File] = {}
    for path in [*out.glob(CONTENTS), *out.glob("shard-*.json")]:
        try:
            text = path.read_text(errors="replace")
            if path.name == CONTENTS:
                contents = Contents.parse(text, str(path))
                packed, files = contents.source, contents.shards
            else:
                receipt = json.loads(text)
                packed, files = receipt.pop("source"), (File(**receipt),)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            print_plain(console, f"{path} is damaged ({error}), what it lists is packed anew")
            continue
        if packed != source:
            raise UserError(f"{out} holds shards of other rows: give this one a directory of its own (out=DIR)")
        known |= {file.name: file for file in files}
    return known


def _pack_all(job: Job, processes: int | None, console: Console) -> list[File]:
    """All shards in their order, packed or found intact."""
    numbers = range(-(-len(job.rows) // job.rows_per_shard))
    files: dict[int, File] = {}
    with Progress(console=console) as progress:
        bar = progress.add_task("rows", total=len(job.rows))
        for number, file in parallel_map(lambda number: _pack_shard(job, number), numbers, processes):
            files[number] = file
            progress.advance(bar, file.rows)
    return [files[number] for number in numbers]


def _pack_shard(job: Job, number: int) -> File:
    name = SHARD.format(number)
    known = job.known.get(name)
    if known is not None and writer.find_fault(job.out, known) is None:
        return known
    places = slice(number * job.rows_per_shard, (number + 1) * job.rows_per_shard)
    file = writer.write_shard(job.out / name, job.rows.pairs(places))
    write_json((job.out / name).with_suffix(".json"), {"source": job.source, **asdict(file)})
    return file


def _show(console: Console, out: Path, contents: Contents, problems: list[tuple[str, str]]) -> None:
    rows, size = sum(file.rows for file in contents.shards), sum(file.bytes for file in contents.shards)
    console.print(f"{out}: {rows:,} rows in {len(contents.shards):,} shards, {size / 2**30:.2f} GiB", highlight=False)
    if problems:
        console.print(f"[yellow]{len(problems)} rows cannot be used, see {out / 'problems.jsonl'}:[/yellow]")
        for row, why in problems[:_SHOWN]:
            print_plain(console, f"  {row}: {why}")


def check(folder: Path, console: Console) -> list[str]:
    """Read a directory of shards through; print and return what is wrong with it, a sentence for each file."""
    _, [place] = shards.find(folder)
    contents = Contents.parse(Path(place).read_text(errors="replace"), place)
    faults = (writer.find_fault(folder, file) for file in (*contents.shards, contents.index))
    wrong = list(filter(None, faults))
    for fault in wrong:
        print_plain(console, fault, style="red")
    console.print(f"{folder}: {len(contents.shards) + 1 - len(wrong)} files are intact, {len(wrong)} are not")
    return wrong


def run(config: Mapping[str, Any]) -> int | None:
    """Run `auris shards`; returns 1 if `check` finds a damaged file."""
    console = Console()
    if config["check"] is not None:
        return 1 if check(Path(config["check"]), console) else 0
    if config["rows"] is None or config["out"] is None:
        raise UsageError("expected rows=FILE and out=DIR, or check=DIR")
    if shards.is_url(config["out"]):
        raise UsageError(f"out={config['out']}: expected a local directory, to be copied where it shall be read")
    settings = {name: config[name] for name in ("rows_per_shard", "processes")}
    pack(config["rows"], Path(config["out"]), console=console, **settings)
    return None
