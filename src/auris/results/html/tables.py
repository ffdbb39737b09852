"""The tables of a page: scores with their intervals, in numbers and drawn; of a study, arms beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from auris.metrics.measures import MEASURES, display
from auris.metrics.records import ResultRow
from auris.metrics.statistics import LEVEL, SHOWS
from auris.results.cells import Line, heading, is_number, p_value, score, with_interval
from auris.results.tables import BEYOND_NOISE, verdicts_in

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cell:
    """A cell with a text, or with a drawing.

    Attributes:
        kind: better, worse, soft or long (may be broken into lines).
        interval: A score (`value`) on a scale from 0 to 100, and the ends of its interval that lie on it (`low`,
            `high`).
    """

    text: str = ""
    kind: str = ""
    interval: Mapping[str, float] | None = None


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


def of_run(scores: Sequence[ResultRow]) -> list[Table]:
    """A run's own result rows, as its evaluations wrote them: a table of each benchmark."""
    dropped = {(row.benchmark, row.task, row.metric): row for row in scores if row.split == "drop"}
    tables = []
    for benchmark in dict.fromkeys(row.benchmark for row in scores):
        rows = [row for row in scores if row.benchmark == benchmark and row.split != "drop"]
        has_drops = any(key[0] == benchmark for key in dropped)
        shows = not has_drops and any(is_number(row.detectable) for row in rows)
        head = ["task", "metric", "score", "", "95 % interval", *["lost"][:has_drops], "rows", *["shows"][:shows]]
        groups = []
        for task, of_task in groupby(rows, key=lambda row: row.task):
            lines = []
            for row in of_task:
                value, low, high = (_number(row.metric, number) for number in (row.value, row.low, row.high))
                n = str(row.n) if row.units.endswith(" rows") else f"{row.n} ({row.units})"
                cells = [Cell(heading(row.metric)), Cell(value), _drawn(row.metric, row.value, row.low, row.high)]
                cells += [Cell(f"{low} to {high}"), *[_lost(dropped.get((benchmark, task, row.metric)))][:has_drops]]
                cells += [Cell(n), *[Cell(_number(row.metric, row.detectable))][:shows]]
                lines.append([*cells, Cell(row.provenance, "soft"), Cell(row.signature, "soft long")])
            groups.append(Group([Cell(task)], lines))
        columns = [*head, "provenance", "made by"]
        tables.append(Table(f"Benchmark {benchmark}", columns, groups, SHOWS if shows else ""))
    return tables


def of_study(frame: pd.DataFrame) -> list[Table]:
    """A line of `results.table` has a row for each arm that has a score in it: a table of each benchmark."""
    first, *others = arms = frame.attrs["arms"]
    judged = {tuple(row[:4]): row["verdict"] for _, row in verdicts_in(frame).iterrows()}
    head = ["arm", "score", "", "95 % interval"]
    compared = ["difference", "p", "p (Holm)", "verdict"] if others else []
    against = f": differences to {first}" if others else ""
    tables = []
    for benchmark, of_benchmark in frame.groupby("benchmark", sort=False):
        lines = of_benchmark.to_dict("records")
        has_drops = any(is_number(line.get(f"{arm} drop")) for line in lines for arm in arms)
        groups = []
        for line in lines:
            metric, rows = line["metric"], []
            for arm in (arm for arm in arms if is_number(line[arm])):
                point, _, interval = score(line, arm).partition(" ")
                drawn = _drawn(metric, *(line[f"{arm}{part}"] for part in ("", " low", " high")))
                cells = [Cell(arm), Cell(point), drawn, Cell(interval)]
                cells += [Cell(score(line, f"{arm} drop"))] if has_drops else []
                verdict = judged.get((benchmark, line["group"], metric, arm), "")
                rows.append([*cells, *(_difference(line, arm, first, verdict) if others else [])])
            groups.append(Group([Cell(line["group"]), Cell(heading(metric)), Cell(str(line["n"]))], rows))
        columns = ["task", "metric", "rows", *head, *["lost"][:has_drops], *compared]
        tables.append(Table(f"Benchmark {benchmark}{against}", columns, groups))
    said = (
        "Scores with 95 % bootstrap intervals over rows (speakers or recordings where known), ± standard deviation "
        "over seeds."
    )
    if others:
        said += (
            f" p: paired permutation test; about {20 * LEVEL:.0f} of twenty differences has p < {LEVEL} by chance; p "
            "(Holm) is corrected for the arms of a line. A verdict of better or worse needs several seeds: a "
            "difference beyond the noise of rows and of seeds."
        )
    return [*tables[:-1], replace(tables[-1], said=said)]


def _difference(line: Line, arm: str, first: str, verdict: str) -> list[Cell]:
    name = f"{arm} - {first}"
    if arm == first or not is_number(line[name]):
        return [Cell()] * 4
    kind = verdict if verdict in BEYOND_NOISE else ""
    ps = (Cell(p_value(line[f"{name} {what}"])) for what in ("p", "p holm"))
    return [Cell(score(line, name), kind), *ps, Cell(verdict, kind or "soft")]


def _drawn(metric: str, *numbers: float) -> Cell:
    """Return the drawing of a score with its interval; empty for a measure whose scale does not end at 100."""
    if not all(map(is_number, numbers)) or MEASURES[metric].unit not in ("%", "0-100"):
        return Cell()
    value, low, high = (round(MEASURES[metric].scale * number, 1) for number in numbers)
    return Cell(interval={"value": value, "low": max(low, 0.0), "high": min(high, 100.0)})


def _number(metric: str, value: float | None) -> str:
    return display(metric, value) if is_number(value) else "-"


def _lost(row: ResultRow | None) -> Cell:
    if row is None:
        return Cell("-")
    return Cell(f"{with_interval(row.metric, row.value, row.low, row.high, '+')}, p {p_value(row.p)}")
