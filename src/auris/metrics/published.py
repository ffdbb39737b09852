"""Scores printed in papers and repositories (`published.yaml`), and their comparison with our result rows.

Two scores are comparable only if they were computed in the same way. A published score therefore has a signature like
ours, and a comparison marks scores whose signatures differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from auris.errors import UserError
from auris.files import read_yaml
from auris.metrics.records import ResultRow
from auris.text.tasks import is_synthetic

PATH = Path(__file__).with_name("published.yaml")

# Marks of our scores next to published ones: computed in another way; measured on synthetic recordings.
DIFFERENT, STAND_IN = "≠", "†"

_LIBRARY = re.compile(r"\|?(?:version:|jiwer)[\d.]+|(?<=zhconv)[\d.]+")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One score of a published table.

    Attributes:
        table: The name of the table in `published.yaml`.
        system: The system that the score belongs to.
        benchmark: The benchmark, as in our result rows.
        part: The part of the benchmark, such as `test-clean`.
        metric: The metric of ours that is closest.
        printed: The number as printed.
        decimals: Its decimals as printed.
        value: The number in the unit of `metric`.
        signature: How it was computed; None if nobody says.
        source: Where the table was published.
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
    """Return every cell that holds a number.

    Raises:
        UserError: A row has more or fewer cells than its benchmark has parts.
    """
    return tuple(_cells(read_yaml(PATH)))


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
    """Return the names of the published tables."""
    return list(dict.fromkeys(cell.table for cell in published()))


@dataclass(frozen=True)
class Line:
    """One line of a published table next to our result for it.

    Attributes:
        cells: The published scores, one for each system.
        ours: Our row of results.jsonl for this benchmark, part and metric; None if there is none.
    """

    benchmark: str
    part: str
    metric: str
    cells: tuple[Published, ...]
    ours: ResultRow | None

    @property
    def scale(self) -> float:
        """The factor from our value to a number as the table prints it."""
        return self.cells[0].printed / self.cells[0].value

    @property
    def decimals(self) -> int:
        return self.cells[0].decimals

    @property
    def signature(self) -> str:
        """How the published scores were computed, as far as somebody says."""
        return next((cell.signature for cell in self.cells if cell.signature), "nobody says")

    @property
    def printed(self) -> str:
        """Our score as the table would print it: in its scale and with its decimals; `-` if there is none."""
        return "-" if self.ours is None else f"{self.ours.value * self.scale:.{self.decimals}f}"

    @property
    def differs(self) -> bool:
        """Whether our score was computed in another way than each published one."""
        return self.ours is not None and not any(comparable(self.ours.signature, c.signature) for c in self.cells)

    @property
    def is_stand_in(self) -> bool:
        """Whether our score comes from synthetic recordings only."""
        return self.ours is not None and is_synthetic(self.ours.provenance)


def lines(results: Iterable[ResultRow], table: str) -> list[Line]:
    """Return the lines of a published table, each with our result for its benchmark, part and metric.

    The part of a result is the last word of its `task`: `asr en test-clean`. What papers call WER in languages written
    without spaces is CER in our results.

    Raises:
        UserError: No table has this name.
    """
    if table not in tables():
        raise UserError(f"no published table {table!r}; choose from {', '.join(tables())}")
    ours = {(row.benchmark, row.task.rpartition(" ")[2], _metric(row.metric)): row for row in results}
    cells: dict[tuple[str, str, str], list[Published]] = {}
    for cell in published():
        if cell.table == table:
            cells.setdefault((cell.benchmark, cell.part, cell.metric), []).append(cell)
    return [
        Line(benchmark, part, metric, tuple(of_line), ours.get((benchmark, part, _metric(metric))))
        for (benchmark, part, metric), of_line in cells.items()
    ]


def notes(table: str, results: Iterable[ResultRow]) -> list[str]:
    """Return the source of a published table, and both signatures of each score that was computed in another way."""
    found = lines(results, table)
    differing = {
        f"{DIFFERENT} {line.benchmark}, {line.metric}: ours {line.ours.signature}; published {line.signature}"
        for line in found
        if line.differs
    }
    return [found[0].cells[0].source, *sorted(differing)]


def comparable(ours: str, theirs: str | None) -> bool:
    """Return whether two signatures agree, except for library versions; WER of characters counts as CER."""
    return theirs is not None and _without_versions(ours) == _without_versions(theirs)


def _without_versions(signature: str) -> str:
    metric, _, made = _LIBRARY.sub("", signature).partition("|")
    return f"{_metric(metric)}|{made}"


def _metric(name: str) -> str:
    return {"cer": "wer"}.get(name, name)
