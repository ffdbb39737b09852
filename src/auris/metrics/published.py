"""Scores printed in papers and repositories (`published.yaml`), and their comparison with our result rows.

Two scores are comparable only if they were computed in the same way. Published scores therefore have signatures like
our scores, and scores with different signatures are marked in comparisons.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from auris.errors import UserError, shorten
from auris.files import read_yaml
from auris.metrics.records import ResultRow
from auris.text.tasks import is_synthetic

PATH = Path(__file__).with_name("published.yaml")

# Symbols after our scores in comparisons.
DIFFERENT = "≠"  # the score was computed differently from the published scores
STAND_IN = "†"  # the score was measured on synthetic recordings instead of the benchmark's recordings

_LIBRARY_VERSION = re.compile(r"\|?(?:version:|jiwer)[\d.]+|(?<=zhconv)[\d.]+")


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """A score in a published table.

    Attributes:
        table: The name of the table in `published.yaml`.
        system: The system that was scored.
        benchmark: The name of the benchmark in our result rows.
        part: The part of the benchmark, such as `test-clean`.
        metric: The metric of auris that is most similar to the published metric.
        printed: The number as printed.
        decimals: The number of decimals that are printed.
        value: The score in the unit of `metric`.
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
        UserError: A list of scores does not have one entry for each part of its benchmark.
    """
    return tuple(_parse_scores(read_yaml(PATH)))


def _parse_scores(data: Mapping[str, Any]) -> Iterator[PublishedScore]:
    for table, content in data["tables"].items():
        for system, row in content["systems"].items():
            for name, cells in row["cells"].items():
                benchmark = data["benchmarks"][name]
                if len(cells) != len(benchmark["parts"]):
                    raise UserError(
                        f"{table}, {system}, {name}: there are {len(cells)} cells, expected one for each of the parts "
                        f"{benchmark['parts']}"
                    )
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


def table_names() -> list[str]:
    """Return the names of the published tables."""
    return list(dict.fromkeys(cell.table for cell in published_scores()))


@dataclass(frozen=True)
class Line:
    """A line of a published table, together with our result for the same benchmark.

    Attributes:
        benchmark: The benchmark.
        part: The part of the benchmark.
        metric: The metric.
        cells: The published scores, one for each system.
        ours: Our result row for this benchmark, part and metric; None if there is none.
    """

    benchmark: str
    part: str
    metric: str
    cells: tuple[PublishedScore, ...]
    ours: ResultRow | None

    @property
    def scale(self) -> float:
        """The factor that converts our value to the scale of the printed numbers."""
        return self.cells[0].printed / self.cells[0].value

    @property
    def decimals(self) -> int:
        """The number of decimals of the printed numbers."""
        return self.cells[0].decimals

    @property
    def signature(self) -> str:
        """How the published scores were computed; `unknown` if no source states it."""
        return next((cell.signature for cell in self.cells if cell.signature), "unknown")

    @property
    def printed(self) -> str:
        """Our score in the scale and with the decimals of the printed numbers; `-` if there is none."""
        return "-" if self.ours is None else f"{self.ours.value * self.scale:.{self.decimals}f}"

    @property
    def differs(self) -> bool:
        """Whether all published scores in this line were computed differently from our score."""
        return self.ours is not None and not any(is_comparable(self.ours.signature, c.signature) for c in self.cells)

    @property
    def is_stand_in(self) -> bool:
        """Whether our score comes from synthetic recordings only."""
        return self.ours is not None and is_synthetic(self.ours.provenance)


def table_lines(results: Iterable[ResultRow], table: str) -> list[Line]:
    """Return the lines of a published table, each with our result for its benchmark, part and metric.

    The part of a result is the last word of its `task`, for example `test-clean` in `asr en test-clean`. For languages
    that are written without spaces, the WER in papers is compared with the CER in our results.

    Raises:
        UserError: No table has this name; the message lists the valid names.
    """
    if table not in table_names():
        raise UserError(f"there is no published table {shorten(table)}; choose from {', '.join(table_names())}")
    our_rows = {(row.benchmark, row.task.rpartition(" ")[2], _merge_cer_and_wer(row.metric)): row for row in results}
    by_line: dict[tuple[str, str, str], list[PublishedScore]] = {}
    for cell in published_scores():
        if cell.table == table:
            by_line.setdefault((cell.benchmark, cell.part, cell.metric), []).append(cell)
    return [
        Line(benchmark, part, metric, tuple(cells), our_rows.get((benchmark, part, _merge_cer_and_wer(metric))))
        for (benchmark, part, metric), cells in by_line.items()
    ]


def table_notes(table: str, results: Iterable[ResultRow]) -> list[str]:
    """Return the source of a published table, and a note on each of our metrics that was computed differently.

    Such a note states our signature and the published one.
    """
    compared_lines = table_lines(results, table)
    notes = {
        f"{DIFFERENT} {line.benchmark}, {line.metric}: ours {line.ours.signature}; published {line.signature}"
        for line in compared_lines
        if line.ours is not None and line.differs
    }
    return [compared_lines[0].cells[0].source, *sorted(notes)]


def is_comparable(signature: str, published: str | None) -> bool:
    """Return whether a signature equals a published one. Library versions, and the names WER and CER, may differ."""
    return published is not None and _without_versions(signature) == _without_versions(published)


def _without_versions(signature: str) -> str:
    metric, _, settings = _LIBRARY_VERSION.sub("", signature).partition("|")
    return f"{_merge_cer_and_wer(metric)}|{settings}"


def _merge_cer_and_wer(metric: str) -> str:
    return "wer" if metric == "cer" else metric
