"""The tables of a page: scores with their intervals, in numbers and drawn; of a study, arms beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from auris import results
from auris.evaluation import summary
from auris.metrics import statistics
from auris.metrics.measures import MEASURES, display
from auris.results import format_score

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Interval:
    """A score with its interval as shares of its scale, from 0 to 1; what is beyond 1 is drawn at the border."""

    value: float
    low: float
    high: float

    @property
    def drawn(self) -> dict[str, float]:
        """In hundredths of the scale."""
        return {name: round(100 * min(max(at, 0.0), 1.0), 1) for name, at in vars(self).items()}


@dataclass(frozen=True)
class Cell:
    """`kind`: better, worse, soft or long (may be broken into lines)."""

    text: str = ""
    kind: str = ""
    interval: Interval | None = None


@dataclass(frozen=True)
class Group:
    """Rows of a table that share their first cells."""

    shared: list[Cell]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Table:
    caption: str
    head: list[str]
    groups: list[Group]
    said: str = ""


def of_run(scores: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A run's own result rows, as its evaluations wrote them: a table of each benchmark."""
    dropped = {(row["benchmark"], row["task"], row["metric"]): row for row in scores if row["split"] == "drop"}
    tables = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in scores):
        of_benchmark = [row for row in scores if row["benchmark"] == benchmark and row["split"] != "drop"]
        has_drops = any(key[0] == benchmark for key in dropped)
        shows = not has_drops and any(_is_number(row.get("detectable")) for row in of_benchmark)
        head = ["task", "metric", "score", "", "95 % interval", *["lost"][:has_drops], "rows", *["shows"][:shows]]
        groups = []
        for task, lines in groupby(of_benchmark, key=lambda row: row["task"]):
            rows = []
            for row in lines:
                metric, units = row["metric"], row.get("units", "")
                value, low, high = (_shown(metric, row[part]) for part in ("value", "low", "high"))
                n = str(row["n"]) if not units or units.endswith(" rows") else f"{row['n']} ({units})"
                cells = [Cell(_labelled(metric)), Cell(value), _drawn(metric, row, "value", "low", "high")]
                cells += [Cell(f"{low} to {high}"), *[_lost(dropped.get((benchmark, task, metric)))][:has_drops]]
                cells += [Cell(n), *[Cell(_shown(metric, row.get("detectable")))][:shows]]
                rows.append([*cells, Cell(row["provenance"], "soft"), Cell(row["signature"], "soft long")])
            groups.append(Group([Cell(task)], rows))
        said = summary.SHOWS if shows else ""
        tables.append(Table(f"Benchmark {benchmark}", [*head, "provenance", "made by"], groups, said))
    return tables


def of_study(frame: pd.DataFrame) -> list[Table]:
    """A line of `results.table` has a row for each arm that has a score in it: a table of each benchmark."""
    first, *others = frame.attrs["arms"]
    judged = {tuple(row[:4]): row["verdict"] for _, row in results.verdicts_in(frame).iterrows()}
    head = ["arm", "score", "", "95 % interval"]
    compared = ["difference", "p", "p (Holm)", "verdict"] if others else []
    against = f": differences to {first}" if others else ""
    tables = []
    for benchmark, of_benchmark in frame.groupby("benchmark", sort=False):
        lines = of_benchmark.to_dict("records")
        has_drops = any(_is_number(line.get(f"{arm} drop")) for line in lines for arm in frame.attrs["arms"])
        groups = []
        for line in lines:
            metric, rows = line["metric"], []
            for arm in (arm for arm in (first, *others) if _is_number(line[arm])):
                score, _, interval = format_score(line, arm).partition(" ")
                drawn = _drawn(metric, line, arm, f"{arm} low", f"{arm} high")
                cells = [Cell(arm), Cell(score), drawn, Cell(interval)]
                cells += [Cell(format_score(line, f"{arm} drop"))] if has_drops else []
                verdict = judged.get((benchmark, line["group"], metric, arm), "")
                rows.append([*cells, *(_difference(line, arm, first, verdict) if others else [])])
            groups.append(Group([Cell(line["group"]), Cell(_labelled(metric)), Cell(str(line["n"]))], rows))
        columns = ["task", "metric", "rows", *head, *["lost"][:has_drops], *compared]
        tables.append(Table(f"Benchmark {benchmark}{against}", columns, groups))
    said = (
        "Scores with 95 % bootstrap intervals over rows (speakers or recordings where known), ± standard deviation "
        "over seeds."
    )
    if others:
        said += (
            " p: paired permutation test; of twenty differences that are none, "
            f"{20 * statistics.LEVEL:.0f} has p < {statistics.LEVEL}; p (Holm) is corrected for the arms of a line. A "
            "verdict of better or worse needs several seeds: a difference beyond the noise of rows and of seeds."
        )
    return [*tables[:-1], replace(tables[-1], said=said)]


def _difference(line: Mapping[str, Any], arm: str, first: str, verdict: str) -> list[Cell]:
    name = f"{arm} - {first}"
    if arm == first or not _is_number(line[name]):
        return [Cell()] * 4
    kind = verdict if verdict in ("better", "worse") else ""
    ps = (Cell(_p(line[f"{name} {what}"])) for what in ("p", "p holm"))
    return [Cell(format_score(line, name), kind), *ps, Cell(verdict, kind or "soft")]


def _labelled(metric: str) -> str:
    known = MEASURES[metric]
    unit = "" if known.unit.split()[-1] in known.label else f" ({known.unit})"
    return f"{known.label}{unit}\xa0{'↑' if known.higher_is_better else '↓'}"


def _drawn(metric: str, row: Mapping[str, Any], *parts: str) -> Cell:
    """Of measures whose scale ends at 100."""
    values = [row[part] for part in parts]
    if not all(map(_is_number, values)) or MEASURES[metric].unit not in ("%", "0-100"):
        return Cell()
    return Cell(interval=Interval(*(value * MEASURES[metric].scale / 100 for value in values)))


def _shown(metric: str, value: float | None) -> str:
    return display(metric, value) if _is_number(value) else "-"


def _is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _p(value: float) -> str:
    if not _is_number(value):
        return "-"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _lost(row: Mapping[str, Any] | None) -> Cell:
    if row is None:
        return Cell("-")
    value, low, high = (display(row["metric"], row[part], "+") for part in ("value", "low", "high"))
    return Cell(f"{value} [{low}, {high}], p {_p(row['p'])}")
