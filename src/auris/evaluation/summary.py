"""Predictions as result rows with intervals, what is lost without the recordings, and all of it on the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from auris.data.rows import Row
from auris.metrics import measures, statistics
from auris.metrics.row_stats import signature


def summarise(
    predictions: Sequence[Mapping[str, Any]],
    trained: Mapping[str, Any],
    benchmark: str,
    samples: int,
    seed: int,
    signatures: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """One result row per group and metric, with a 95 % bootstrap interval over speakers, recordings or rows (`units`),
    and the difference to another system that so many would show (`detectable`).

    `signatures`: of metrics whose numbers somebody else makes.
    """
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for prediction in predictions:
        lines.setdefault((prediction["group"], prediction["metric"]), []).append(prediction)
    results = []
    for (name, metric), of_line in sorted(lines.items()):
        stats, units = [prediction["stats"] for prediction in of_line], statistics.units(of_line)
        of = measures.scorer(metric, [dict(enumerate(stats))])
        resampled = measures.samples(of, len(stats), samples, seed, units.of_row)
        low, high = measures.percentiles(resampled)
        detectable = statistics.detectable_alone(resampled)
        results.append(
            {
                "study": trained["study"],
                "arm": trained["arm"],
                "seed": trained["seed"],
                "benchmark": benchmark,
                "task": name,
                "split": "test",
                "metric": metric,
                "value": measures.score(metric, stats),
                "low": low,
                "high": high,
                "n": len(of_line),
                "units": str(units),
                "detectable": None if math.isnan(detectable) else detectable,
                "signature": (signatures or {}).get(metric) or signature(metric, of_line[0]["language"]),
                "provenance": "+".join(sorted({one for row in of_line for one in row["provenance"].split("+")})),
            }
        )
    return results


def drops(
    results: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
    base: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """By how much each score is worse than that of the same rows with their recordings: result rows of split `drop`."""
    sides = [_by_line(side) for side in (base, predictions)]
    found = []
    for row in results:
        as_is, altered = (side.get((row["task"], row["metric"]), {}) for side in sides)
        if common := sorted(as_is.keys() & altered.keys()):
            units = statistics.units([altered[name] for name in common])
            stats = [[{name: side[name]["stats"] for name in common}] for side in (as_is, altered)]
            value, low, high, p = statistics.drop(row["metric"], *stats, units.of_row)
            scores = {"value": value, "low": low, "high": high, "p": p, "n": len(common), "units": str(units)}
            found.append({**row, **scores, "split": "drop", "detectable": None})
    return found


def _by_line(predictions: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Mapping[str, Any]]]:
    lines: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for one in predictions:
        lines.setdefault((one["group"], one["metric"]), {})[one["id"]] = one
    return lines


def credits(rows: Sequence[Row]) -> list[str]:
    """Who wrote the rows and who annotated them, as far as they say: scripts that stand in for people among them."""
    said = {"written by": "written_by", "annotated by": "annotator"}
    counts = {what: Counter(str(row.labels[key]) for row in rows if key in row.labels) for what, key in said.items()}
    return [f"{what}: {'; '.join(f'{name} ({n} rows)' for name, n in of.items())}" for what, of in counts.items() if of]


def _drop(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    value, low, high = (measures.display(row["metric"], row[part], "+") for part in ("value", "low", "high"))
    return f"{value}{'*' if row['p'] < statistics.LEVEL else ''} [{low}, {high}]"


def _made_of(tasks: Mapping[str, Mapping[str, None]]) -> list[str]:
    """Which provenance the audio of which tasks has; of all of them if it is one."""
    return list(tasks) if len(tasks) == 1 else [f"{made} of {', '.join(of)}" for made, of in tasks.items()]


SHOWS = "shows: the difference to a second, independent system that so many rows show in 80 % of cases."
_DROP = f"drop: how much is lost, * with p < {statistics.LEVEL} (paired permutation test)."
_UNITS = "n: rows, and after the stroke the speakers or recordings that they are of, which intervals draw."


def show(
    console: Console,
    benchmark: str,
    results: Sequence[Mapping[str, Any]],
    skipped: Mapping[str, str],
    notes: Sequence[str],
) -> None:
    """The result rows of a benchmark, on 80 columns if need be."""
    dropped = {(row["task"], row["metric"]): row for row in results if row["split"] == "drop"}
    last = "drop" if dropped else "shows"
    table = Table(title=benchmark, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("task", "metric", "score [95 %]", "n", last):
        table.add_column(name, no_wrap=name not in ("task", "metric"), overflow="fold")
    said, made_of = None, dict[str, dict[str, None]]()
    for row in (row for row in results if row["split"] != "drop"):
        task, metric = row["task"], row["metric"]
        shown, low, high = (measures.display(metric, row[part]) for part in ("value", "low", "high"))
        detectable = "-" if row["detectable"] is None else measures.display(metric, row["detectable"])
        units, _, of = row["units"].partition(" ")
        n = str(row["n"]) if of == "rows" else f"{row['n']}/{units}"
        extra = _drop(dropped.get((task, metric))) if dropped else detectable
        label = f"{metric} {measures.measure(metric).unit}"
        table.add_row("" if task == said else escape(task), label, escape(f"{shown} [{low}, {high}]"), n, escape(extra))
        said = task
        made_of.setdefault(row["provenance"], {})[task] = None
    console.print(table)
    audio = [f"audio: {'; '.join(_made_of(made_of))}"] if made_of else []
    stroke = [_UNITS] if any(not row["units"].endswith(" rows") for row in results) else []
    for note in (*audio, *stroke, _DROP if dropped else SHOWS, *notes):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if skipped:
        console.print(f"[yellow]{len(skipped)} rows could not be used and are not in every score:[/yellow]")
        for name, reason in list(skipped.items())[:20]:
            console.print(f"  {name}: {reason}", markup=False, soft_wrap=True)
