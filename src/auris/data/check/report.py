"""`auris doctor data=...`: looks at every clip and row, prints what is wrong and writes it as JSON.

The command fails if anything is found that `tolerate` does not name, so that a script can stop on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from auris.data.check.audio import KINDS, Finding, Report, Source, check_rows
from auris.data.manifests import read_manifests
from auris.errors import UserError
from auris.files import write_json
from auris.text.console import print_plain

SETS = ("train", "valid", "test")  # keys of a data config
FILES = "files"  # the key that plain paths stand under

_SHOWN = 10  # findings of each kind that are printed


def read_sources(data: Mapping[str, Any]) -> list[Source]:
    """The rows that a data config names. Raises ValueError if it names none, and as `read_manifests`."""
    found = []
    for key in (*SETS, FILES):
        given = data.get(key) or []
        for entry in given if isinstance(given, list) else [given]:
            # One by one: that two manifests share an id is what training must refuse, and what is looked at here.
            [manifest] = read_manifests([entry], key=f"data.{key}")
            found.append(Source(manifest.name, manifest.rows, None if key == FILES else key))
    if not found:
        raise UserError("data has no rows: expected data=FILE.jsonl, or data=manifest data.train=[FILE.jsonl]")
    return found


def check(config: Mapping[str, Any]) -> list[Finding]:
    """Look at the data of a config, write `report` and print it; returns the findings that are not tolerated.

    Raises ValueError for a kind of finding that there is none of.
    """
    console = Console()
    if unknown := [kind for kind in config["tolerate"] if kind not in KINDS]:
        raise UserError(f"tolerate={unknown}: expected kinds of {', '.join(KINDS)}")
    sources = read_sources(config["data"])
    with Progress(console=console) as progress:
        bar = progress.add_task("decoding", total=sum(len(source.rows) for source in sources))
        found = check_rows(sources, jobs=config["jobs"], advance=lambda n: progress.advance(bar, n))
    failing = [one for one in found.findings if one.kind not in config["tolerate"]]
    facts = {"sources": [source.name for source in sources], "tolerated": config["tolerate"], "failed": bool(failing)}
    path = Path(config["report"])
    write_json(path, {**facts, **found.as_json()})
    _show(console, found)
    print_plain(console, f"wrote {path}")
    return failing


def _show(console: Console, found: Report) -> None:
    table = Table("set", "rows", "hours")
    for name, number in found.rows.items():
        table.add_row(name, f"{number:,}", f"{found.seconds[name] / 3600:,.2f}")
    table.add_section()
    for kind, number in found.counts().items():
        table.add_row(kind, f"{number:,}", "")
    console.print(table)
    for kind, meaning in KINDS.items():
        named = [one for one in found.findings if one.kind == kind]
        if named:
            print_plain(console, f"{kind}: {meaning}", style="red")
        for one in named[:_SHOWN]:
            print_plain(console, f"  {one.row} ({one.source}): {one.reason}")
        if len(named) > _SHOWN:
            print_plain(console, f"  and {len(named) - _SHOWN:,} more")
