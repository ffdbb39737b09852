"""Predictions as result rows with intervals, what is lost without the recordings, and all of it on the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from auris import measures, statistics
from auris.data.rows import Row
from auris.scoring.metrics import signature


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
    return f"{value} [{low}, {high}] p={row['p']:.3f}"


SHOWS = "shows: the difference to a second, independent system that so many rows show in 80 % of cases."


def show(
    console: Console,
    benchmark: str,
    results: Sequence[Mapping[str, Any]],
    skipped: Mapping[str, str],
    notes: Sequence[str],
) -> None:
    dropped = {(row["task"], row["metric"]): row for row in results if row["split"] == "drop"}
    columns = ("task", "metric", "value", "95 % interval", *["drop"][: len(dropped)], "n", "shows", "provenance")
    table = Table(*columns, title=benchmark)
    for row in (row for row in results if row["split"] != "drop"):
        shown, low, high = (measures.display(row["metric"], row[part]) for part in ("value", "low", "high"))
        detectable = "-" if row["detectable"] is None else measures.display(row["metric"], row["detectable"])
        unit = measures.measure(row["metric"]).unit
        n = str(row["n"]) if row["units"].endswith(" rows") else f"{row['n']} ({row['units']})"
        drop = [_drop(dropped.get((row["task"], row["metric"])))][: len(dropped)]
        value = (f"{shown} {unit}", f"{low} .. {high}")
        table.add_row(row["task"], row["metric"], *value, *drop, n, detectable, row["provenance"])
    console.print(table)
    console.print(SHOWS, markup=False, highlight=False, soft_wrap=True)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if skipped:
        console.print(f"[yellow]{len(skipped)} rows could not be used and are not in every score:[/yellow]")
        for name, reason in list(skipped.items())[:20]:
            console.print(f"  {name}: {reason}", markup=False, soft_wrap=True)
