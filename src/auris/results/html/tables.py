"""Tables of a page: scores with intervals, as numbers and as drawings, and the comparison of the arms of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from auris.metrics import edits
from auris.metrics.measures import ERROR_HEADINGS, ERROR_NOTE, MEASURES, format_value, tabulate_errors
from auris.metrics.records import ResultRow
from auris.metrics.statistics import DETECTABLE_NOTE, LEVEL
from auris.results.cells import Line, format_heading, format_interval, format_p, format_score, frame_rows, is_number
from auris.results.tables import (
    BEYOND_NOISE,
    DROP_NOTE,
    KEY,
    tabulate_errors_of_arms,
    verdicts_in,
    without_details,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cell:
    """Table cell with a text or a drawing.

    Attributes:
        text: The text.
        css_class: CSS classes in page.html: better, worse, soft (small and grey) or long (may be wrapped).
        interval: For a drawing, the score (`value`) and the ends of its interval (`low`, `high`), on a scale from 0 to
            100.
    """

    text: str = ""
    css_class: str = ""
    interval: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Group:
    """Rows of a table that share their first cells, which are drawn once."""

    shared: list[Cell]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Table:
    """Table of a page, with a caption above and a note below."""

    caption: str
    head: list[str]
    groups: list[Group]
    note: str = ""


def build_run_tables(scores: Sequence[ResultRow]) -> list[Table]:
    """Return the tables of each benchmark, given the result rows of a run: scores, and errors of speech tasks."""
    # Rows with the split "drop" state how much worse a score is than on the same rows with their original audio.
    drops = {(row.benchmark, row.task, row.metric): row for row in scores if row.split == "drop"}
    tables = []
    for benchmark in dict.fromkeys(row.benchmark for row in scores):
        result_rows = [row for row in scores if row.benchmark == benchmark and row.split != "drop"]
        has_drops = any(key[0] == benchmark for key in drops)
        has_mdd = not has_drops and any(is_number(row.detectable) for row in result_rows)
        head = ["task", "metric", "score", "", "95 % interval", *["drop"][:has_drops], "rows", *["MDD"][:has_mdd]]
        groups = []
        shown_rows = [row for row in result_rows if row.metric not in edits.DETAILS]
        for task, members in groupby(shown_rows, key=lambda row: row.task):
            table_rows = []
            for row in members:
                value, low, high = (_format_value(row.metric, number) for number in (row.value, row.low, row.high))
                n = str(row.n) if row.units.endswith(" rows") else f"{row.n} ({row.units})"
                cells = [
                    Cell(format_heading(row.metric)),
                    Cell(value),
                    _drawing(row.metric, row.value, row.low, row.high),
                ]
                cells += [Cell(f"{low} to {high}"), *[_drop_cell(drops.get((benchmark, task, row.metric)))][:has_drops]]
                cells += [Cell(n), *[Cell(_format_value(row.metric, row.detectable))][:has_mdd]]
                table_rows.append([*cells, Cell(row.provenance, "soft"), Cell(row.signature, "soft long")])
            groups.append(Group([Cell(task)], table_rows))
        columns = [*head, "provenance", "signature"]
        note = DROP_NOTE if has_drops else DETECTABLE_NOTE if has_mdd else ""
        tables.append(Table(f"Benchmark {benchmark}", columns, groups, note))
        errors = tabulate_errors((row.task, row.metric, row.value) for row in result_rows)
        tables += _error_tables(benchmark, {(task,): texts for task, texts in errors.items()}, ["task"])
    return tables


def _error_tables(
    benchmark: str, errors: Mapping[tuple[str, ...], Sequence[str]], columns: Sequence[str]
) -> list[Table]:
    """Return a table of the error rates of speech tasks and their details, or no table if there are none.

    Args:
        benchmark: Name of the benchmark.
        errors: The texts of the cells (`tabulate_errors`) by the texts of the first cells.
        columns: Headings of the first cells.
    """
    if not errors:
        return []
    groups = [Group([Cell(text) for text in key], [[Cell(text) for text in texts]]) for key, texts in errors.items()]
    caption = f"Benchmark {benchmark}: errors of speech tasks in %"
    return [Table(caption, [*columns, *ERROR_HEADINGS], groups, ERROR_NOTE)]


def build_study_tables(frame: pd.DataFrame) -> list[Table]:
    """Return the tables of each benchmark of a study: scores with a row for each arm, and errors of speech tasks.

    Args:
        frame: The table that `results.table` returns.
    """
    first, *others = arms = frame.attrs["arms"]
    verdicts = {
        (*(row[column] for column in KEY), row["arm"]): row["verdict"] for row in frame_rows(verdicts_in(frame))
    }
    head = ["arm", "score", "", "95 % interval"]
    comparison = ["difference", "p", "p (Holm)", "verdict"] if others else []
    baseline = f": differences to {first}" if others else ""
    tables = []
    has_drops_anywhere = False
    error_tables = []
    errors = tabulate_errors_of_arms(frame)
    for benchmark in dict.fromkeys(key[0] for key in errors):
        of_benchmark: dict[tuple[str, ...], list[str]] = {
            key[1:]: texts for key, texts in errors.items() if key[0] == benchmark
        }
        error_tables += _error_tables(benchmark, of_benchmark, ["task", "arm"])
    for benchmark, members in without_details(frame).groupby("benchmark", sort=False):
        lines = frame_rows(members)
        has_drops = any(is_number(line.get(f"{arm} drop")) for line in lines for arm in arms)
        has_drops_anywhere |= has_drops
        groups = []
        for line in lines:
            metric, table_rows = line["metric"], []
            for arm in (arm for arm in arms if is_number(line[arm])):
                point, _, interval = format_score(line, arm).partition(" ")
                drawing = _drawing(metric, *(line[f"{arm}{suffix}"] for suffix in ("", " low", " high")))
                cells = [Cell(arm), Cell(point), drawing, Cell(interval)]
                cells += [Cell(format_score(line, f"{arm} drop"))] if has_drops else []
                verdict = verdicts.get((benchmark, line["group"], metric, arm), "")
                table_rows.append([*cells, *(_difference_cells(line, arm, first, verdict) if others else [])])
            groups.append(Group([Cell(line["group"]), Cell(format_heading(metric)), Cell(str(line["n"]))], table_rows))
        columns = ["task", "metric", "rows", *head, *["drop"][:has_drops], *comparison]
        tables.append(Table(f"Benchmark {benchmark}{baseline}", columns, groups))
    note = (
        "Scores with 95 % bootstrap intervals over rows (or over speakers or recordings if they are known), ± standard "
        "deviation over seeds."
    )
    if others:
        note += (
            f" p: paired permutation test; where arms do not differ, about {20 * LEVEL:.0f} in 20 comparisons has p < "
            f"{LEVEL} by chance. p (Holm): corrected for the number of arms. The verdicts 'better' and 'worse' mean "
            "that the difference exceeds the variation over both rows and seeds; they require several seeds."
        )
    if has_drops_anywhere:
        note += f" {DROP_NOTE}"
    return [*tables[:-1], replace(tables[-1], note=note), *error_tables]


def _difference_cells(line: Line, arm: str, first: str, verdict: str) -> list[Cell]:
    """Return the cells with an arm's difference to the first arm, its two p values and the verdict."""
    name = f"{arm} - {first}"
    if arm == first or not is_number(line[name]):
        return [Cell()] * 4
    css_class = verdict if verdict in BEYOND_NOISE else ""
    p_cells = (Cell(format_p(line[f"{name} {suffix}"])) for suffix in ("p", "p holm"))
    return [Cell(format_score(line, name), css_class), *p_cells, Cell(verdict, css_class or "soft")]


def _drawing(metric: str, *numbers: float) -> Cell:
    """Return a drawing of a score with its interval; an empty cell for metrics with a scale other than 0 to 100."""
    if not all(map(is_number, numbers)) or MEASURES[metric].unit not in ("%", "0-100"):
        return Cell()
    value, low, high = (round(MEASURES[metric].scale * number, 1) for number in numbers)
    return Cell(interval={"value": value, "low": max(low, 0.0), "high": min(high, 100.0)})


def _format_value(metric: str, value: float | None) -> str:
    return format_value(metric, value) if is_number(value) else "-"


def _drop_cell(row: ResultRow | None) -> Cell:
    if row is None:
        return Cell("-")
    return Cell(f"{format_interval(row.metric, row.value, row.low, row.high, '+')}, p {format_p(row.p)}")
