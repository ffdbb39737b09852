"""Scores printed in papers and repositories (`published.yaml`), and their comparison with our result rows.

Two scores are comparable only if they were computed in the same way. A published score therefore has a signature like
our own scores, and a comparison marks scores whose signatures differ.
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

# Marks of our scores next to published ones: computed differently; measured on synthetic recordings.
DIFFERENT, STAND_IN = "≠", "†"

_LIBRARY = re.compile(r"\|?(?:version:|jiwer)[\d.]+|(?<=zhconv)[\d.]+")


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """A score of a published table.

    Attributes:
        table: The name of the table in `published.yaml`.
        system: The system that the score belongs to.
        benchmark: The benchmark, as in our result rows.
        part: The part of the benchmark, such as `test-clean`.
        metric: The closest metric of auris.
        printed: The number as printed.
        decimals: Its decimals as printed.
        value: The number in the unit of `metric`.
        signature: How the score was computed; None if no source states it.
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
def published_scores() -> tuple[PublishedScore, ...]:
    """Return all scores of all published tables.

    Raises:
        UserError: The number of a row's cells is not the number of its benchmark's parts.
    """
    return tuple(_cells(read_yaml(PATH)))


def _cells(data: Mapping[str, Any]) -> Iterator[PublishedScore]:
    for table, content in data["tables"].items():
        for system, row in content["systems"].items():
            for name, cells in row["cells"].items():
                benchmark = data["benchmarks"][name]
                if len(cells) != len(benchmark["parts"]):
                    raise UserError(f"{table}, {system}, {name}: {len(cells)} cells for parts {benchmark['parts']}")
                signature = benchmark["signatures"].get(row.get("version"))
                for part, printed in zip(benchmark["parts"], cells, strict=True):
                    if printed is not None:
                        yield PublishedScore(
                            table=table,
                            system=system,
                            benchmark=name.partition("-")[0],
                            part=part,
                            metric=benchmark["metric"],
                            printed=float(printed),
                            decimals=max(1, len(str(printed).partition(".")[2])),
                            value=float(printed) * benchmark["scale"],
                            signature=signature and f"{benchmark['metric']}|{signature}",
                            source=content["source"],
                        )


def tables() -> list[str]:
    """Return the names of the published tables."""
    return list(dict.fromkeys(cell.table for cell in published_scores()))


@dataclass(frozen=True)
class Line:
    """A line of a published table, next to our result for it.

    Attributes:
        benchmark: The benchmark.
        part: The part of the benchmark.
        metric: The metric.
        cells: The published scores, one for each system.
        ours: Our row of results.jsonl for this benchmark, part and metric; None if there is none.
    """

    benchmark: str
    part: str
    metric: str
    cells: tuple[PublishedScore, ...]
    ours: ResultRow | None

    @property
    def scale(self) -> float:
        """The factor from our value to a number as the table prints it."""
        return self.cells[0].printed / self.cells[0].value

    @property
    def decimals(self) -> int:
        """The number of decimals that the table prints."""
        return self.cells[0].decimals

    @property
    def signature(self) -> str:
        """How the published scores were computed; `unknown` if no source states it."""
        return next((cell.signature for cell in self.cells if cell.signature), "unknown")

    @property
    def printed(self) -> str:
        """Our score as the table would print it, in its scale and with its decimals; `-` if there is none."""
        return "-" if self.ours is None else f"{self.ours.value * self.scale:.{self.decimals}f}"

    @property
    def differs(self) -> bool:
        """Return True if every published score was computed in another way than ours."""
        return self.ours is not None and not any(is_comparable(self.ours.signature, c.signature) for c in self.cells)

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
    by_line: dict[tuple[str, str, str], list[PublishedScore]] = {}
    for cell in published_scores():
        if cell.table == table:
            by_line.setdefault((cell.benchmark, cell.part, cell.metric), []).append(cell)
    return [
        Line(benchmark, part, metric, tuple(cells), ours.get((benchmark, part, _metric(metric))))
        for (benchmark, part, metric), cells in by_line.items()
    ]


def notes(table: str, results: Iterable[ResultRow]) -> list[str]:
    """Return the source of a published table, and both signatures of each score that was computed differently."""
    table_lines = lines(results, table)
    differing = {
        f"{DIFFERENT} {line.benchmark}, {line.metric}: ours {line.ours.signature}; published {line.signature}"
        for line in table_lines
        if line.ours is not None and line.differs
    }
    return [table_lines[0].cells[0].source, *sorted(differing)]


def is_comparable(signature: str, published: str | None) -> bool:
    """Return whether a signature agrees with a published one, except for library versions; character WER is CER."""
    return published is not None and _without_versions(signature) == _without_versions(published)


def _without_versions(signature: str) -> str:
    metric, _, settings = _LIBRARY.sub("", signature).partition("|")
    return f"{_metric(metric)}|{settings}"


def _metric(name: str) -> str:
    return {"cer": "wer"}.get(name, name)
