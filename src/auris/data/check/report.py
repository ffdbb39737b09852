"""`auris doctor data=...`: check every clip and row, print the findings and write them as JSON.

The command fails if there is a finding of a kind that `tolerate` does not list, so that scripts can stop.
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
FILES = "files"  # key of manifests for which no set is given

_MAX_SHOWN = 10  # maximum number of printed findings of each kind


def read_sources(data: Mapping[str, Any]) -> list[Source]:
    """Read the manifests of a data config.

    Raises:
        UserError: The config has no manifests, or `read_manifests` refuses one.
        MissingFileError: A manifest does not exist.
    """
    sources = []
    for key in (*SETS, FILES):
        entries = data.get(key) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            # Manifests are read one by one: read together, they would be refused if two of them contain the same id.
            [manifest] = read_manifests([entry], key=f"data.{key}")
            sources.append(Source(manifest.name, manifest.rows, None if key == FILES else key))
    if not sources:
        raise UserError("data has no rows: expected data=FILE.jsonl, or data=manifest data.train=[FILE.jsonl]")
    return sources


def check(config: Mapping[str, Any]) -> list[Finding]:
    """Check the data of a config, print and write the report, and return the findings that are not tolerated.

    Raises:
        UserError: `tolerate` has an unknown kind of finding.
    """
    console = Console()
    if unknown := [kind for kind in config["tolerate"] if kind not in KINDS]:
        raise UserError(f"tolerate={unknown}: expected some of {', '.join(KINDS)}")
    sources = read_sources(config["data"])
    with Progress(console=console) as progress:
        bar = progress.add_task("decoding", total=sum(len(source.rows) for source in sources))
        report = check_rows(sources, jobs=config["jobs"], advance=lambda n: progress.advance(bar, n))
    failing = [finding for finding in report.findings if finding.kind not in config["tolerate"]]
    summary = {"sources": [source.name for source in sources], "tolerated": config["tolerate"], "failed": bool(failing)}
    path = Path(config["report"])
    write_json(path, {**summary, **report.as_json()})
    _print_report(console, report)
    print_plain(console, f"wrote {path}")
    return failing


def _print_report(console: Console, report: Report) -> None:
    table = Table("set", "rows", "hours")
    for name, number in report.n_rows.items():
        table.add_row(name, f"{number:,}", f"{report.seconds[name] / 3600:,.2f}")
    table.add_section()
    for kind, number in report.counts().items():
        table.add_row(kind, f"{number:,}", "")
    console.print(table)
    for kind, meaning in KINDS.items():
        findings = [finding for finding in report.findings if finding.kind == kind]
        if findings:
            print_plain(console, f"{kind}: {meaning}", style="red")
        for finding in findings[:_MAX_SHOWN]:
            print_plain(console, f"  {finding.row} ({finding.source}): {finding.reason}")
        if len(findings) > _MAX_SHOWN:
            print_plain(console, f"  and {len(findings) - _MAX_SHOWN:,} more")
