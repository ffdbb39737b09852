"""Numbers that others have published (`published.yaml`), beside which ours are shown.

Two numbers compare only where they were made alike: a published one has a signature as ours have, and where the two
say different things the comparison says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from auris.errors import UserError

PATH = Path(__file__).with_name("published.yaml")

_LIBRARY = re.compile(r"\|?(?:version:|jiwer)[\d.]+|(?<=zhconv)[\d.]+")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One cell of a published table.

    `value` is in the units of `metric` (`auris.metrics.measures`), `printed` as it stands there, with so many
    `decimals`; `signature` is None where nobody says how the number was made.
    """

    table: str
    system: str
    benchmark: str
    part: str
    metric: str
    printed: float
    decimals: int
    value: float
    signature: str | None
    source: str


@cache
def published() -> tuple[Published, ...]:
    """Every cell that holds a number. Raises ValueError for a row with more or fewer cells than its benchmark has."""
    data = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    return tuple(_cells(data))


def _cells(data: Mapping[str, Any]) -> Iterator[Published]:
    for table, of_table in data["tables"].items():
        for system, row in of_table["systems"].items():
            for name, cells in row["cells"].items():
                known = data["benchmarks"][name]
                if len(cells) != len(known["parts"]):
                    raise UserError(f"{table}, {system}, {name}: {len(cells)} cells for parts {known['parts']}")
                made = known["signatures"].get(row.get("version"))
                for part, printed in zip(known["parts"], cells, strict=True):
                    if printed is not None:
                        yield Published(
                            table=table,
                            system=system,
                            benchmark=name.partition("-")[0],
                            part=part,
                            metric=known["metric"],
                            printed=float(printed),
                            decimals=max(1, len(str(printed).partition(".")[2])),
                            value=float(printed) * known["scale"],
                            signature=made and f"{known['metric']}|{made}",
                            source=of_table["source"],
                        )


def tables() -> list[str]:
    return list(dict.fromkeys(cell.table for cell in published()))


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A published cell and our result of it; `alike` whether both were made in the same way."""

    cell: Published
    ours: Mapping[str, Any] | None  # a row of results.jsonl; None: not run

    @property
    def printed(self) -> str:
        """Our value as the table prints its own: in its scale, with its decimals."""
        return f"{self.ours['value'] * self.cell.printed / self.cell.value:.{self.cell.decimals}f}"

    @property
    def alike(self) -> bool:
        return self.ours is not None and comparable(self.ours["signature"], self.cell.signature)


def beside(results: Iterable[Mapping[str, Any]], table: str, benchmark: str | None = None) -> list[Beside]:
    """The cells of a published table, or of one benchmark in it, each with our result of that benchmark, part and
    metric. `part` of a result is the end of its `task`: `asr en test-clean`. WER of a language written without spaces,
    which papers call WER, is CER here. Raises ValueError for an unknown table."""
    if table not in tables():
        raise UserError(f"no published table {table!r}; choose from {', '.join(tables())}")
    ours = {(row["benchmark"], row["task"].rpartition(" ")[2], _metric(row["metric"])): row for row in results}
    cells = [cell for cell in published() if cell.table == table and benchmark in (None, cell.benchmark)]
    return [Beside(cell=cell, ours=ours.get((cell.benchmark, cell.part, _metric(cell.metric)))) for cell in cells]


def lines(results: Iterable[Mapping[str, Any]], table: str) -> dict[tuple[str, str, str], list[Beside]]:
    """The cells of a table by benchmark, part and metric: what all systems have of one number. Raises as `beside`."""
    found: dict[tuple[str, str, str], list[Beside]] = {}
    for one in beside(results, table):
        found.setdefault((one.cell.benchmark, one.cell.part, one.cell.metric), []).append(one)
    return found


def differ(cells: Sequence[Beside]) -> bool:
    """Whether our number of a line was made otherwise than all published ones."""
    return cells[0].ours is not None and not any(one.alike for one in cells)


def notes(table: str, results: Iterable[Mapping[str, Any]]) -> list[str]:
    """The source of a published table, and the two signatures of each number that was not made alike."""
    found = lines(results, table)
    differing = {
        f"≠ {benchmark}, {metric}: ours {cells[0].ours['signature']}; published {_signature(cells)}"
        for (benchmark, _, metric), cells in found.items()
        if differ(cells)
    }
    return [next(iter(found.values()))[0].cell.source, *sorted(differing)]


def _signature(cells: Sequence[Beside]) -> str:
    return next((one.cell.signature for one in cells if one.cell.signature), "nobody says")


def comparable(ours: str, theirs: str | None) -> bool:
    """Whether two signatures say the same, versions of libraries aside (and WER of characters is CER)."""
    return theirs is not None and _without_versions(ours) == _without_versions(theirs)


def _without_versions(signature: str) -> str:
    metric, _, made = _LIBRARY.sub("", signature).partition("|")
    return f"{_metric(metric)}|{made}"


def _metric(name: str) -> str:
    return {"cer": "wer"}.get(name, name)
