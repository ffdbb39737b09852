"""Predictions to result rows with intervals, the loss without the audio, and all of it as tables on the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from auris.data.rows import Row, language
from auris.metrics import measures, official, published, statistics, timestamps
from auris.metrics.measures import signature
from auris.metrics.records import Prediction, ResultRow
from auris.text.console import print_plain

_DROP = f"drop: how much is lost, * with p < {statistics.LEVEL} (paired permutation test)."
_UNITS = "n: rows, and after the stroke the speakers or recordings that they are of, which intervals draw."
_MAX_SKIPPED = 20  # rows that are named


def summarise(
    predictions: Sequence[Prediction],
    identity: Mapping[str, str | int],
    samples: int,
    seed: int,
    signatures: Mapping[str, str],
    changes: Sequence[str] = (),
) -> list[ResultRow]:
    """Return one result row per group and metric, with a 95 % bootstrap interval over speakers, recordings or rows.

    Args:
        identity: Study, arm and seed of the run that trained the model, and the benchmark.
        samples: Number of bootstrap samples, drawn with `seed`.
        signatures: Signatures of the metrics that a judge computes.
        changes: Deviations from the benchmark's own prompt and decoding, appended to every signature.
    """
    results = []
    for (group, metric), rows in sorted(_by_score(predictions).items()):
        stats, units = [row.stats for row in rows], _units(rows)
        of = measures.scorer(metric, [dict(enumerate(stats))])
        resampled = statistics.samples(of, len(stats), samples, seed, units.of_row)
        low, high = statistics.percentiles(resampled)
        detectable = statistics.detectable_alone(resampled)
        own_signature = signatures.get(metric) or signature(metric, rows[0].language)
        result = ResultRow(
            **identity,
            task=group,
            split="test",
            metric=metric,
            value=measures.score(metric, stats),
            low=low,
            high=high,
            n=len(rows),
            units=str(units),
            detectable=None if math.isnan(detectable) else detectable,
            signature="|".join([own_signature, *changes]),
            provenance="+".join(sorted({one for row in rows for one in row.provenance.split("+")})),
        )
        results.append(result)
    return results


def drops(
    results: Sequence[ResultRow], predictions: Sequence[Prediction], with_audio: Sequence[Prediction]
) -> list[ResultRow]:
    """Return how much worse each score is than that of the same rows with their own audio: rows of split `drop`."""
    sides = [_by_score(side) for side in (with_audio, predictions)]
    lost = []
    for row in results:
        as_is, altered = ({one.id: one for one in side.get((row.task, row.metric), ())} for side in sides)
        if common := sorted(as_is.keys() & altered.keys()):
            units = _units([altered[name] for name in common])
            stats = [[{name: side[name].stats for name in common}] for side in (as_is, altered)]
            value, low, high, p = statistics.drop(row.metric, *stats, units.of_row)
            score = {"value": value, "low": low, "high": high, "p": p, "n": len(common), "units": str(units)}
            lost.append(replace(row, **score, split="drop", detectable=None))
    return lost


def _by_score(predictions: Sequence[Prediction]) -> dict[tuple[str, str], list[Prediction]]:
    """Return the predictions of each group and metric."""
    scores: dict[tuple[str, str], list[Prediction]] = {}
    for one in predictions:
        scores.setdefault((one.group, one.metric), []).append(one)
    return scores


def _units(predictions: Sequence[Prediction]) -> statistics.Units:
    return statistics.units([one.to_json() for one in predictions])


# --- scores of the released scripts -------------------------------------------------------------------------------


def official_lines(
    script: str | None, version: str, predictions: Sequence[Prediction], rows: Sequence[Row]
) -> list[official.ScriptScore]:
    """Return what the released script would print of the same responses (`metrics.official`)."""
    if script is None:
        return []
    responses = {prediction.id: prediction for prediction in reversed(predictions) if prediction.metric != "eer"}
    # References of evaluate_srwt.py begin with the time with which its prompt ends.
    before = timestamps.BEGIN if script == "evaluate_srwt" else ""
    answers = [
        official.Answer(
            source=str(row.labels.get("source") or _source(row)),
            reference=before + responses[row.id].reference,
            reply=responses[row.id].hypothesis,
            language=language(row),
        )
        for row in rows
        if row.id in responses
    ]
    return official.report(script, version, answers)


def _source(row: Row) -> str:
    """Return the `source` of a row that has none, with its languages where evaluate_st.py looks for them."""
    languages = [row.labels[key] for key in ("language", "target_language") if key in row.labels]
    return "_".join([row.labels["task"], *languages, "test"])


def official_note(line: official.ScriptScore) -> str:
    score = f"stops ({line.stopped})" if line.stopped else f"{line.metric} {line.value:.4f}"
    return f"{line.script} of {line.version}, {line.source}: {score} (n={line.n})"


# --- on the terminal ----------------------------------------------------------------------------------------------


def show(
    console: Console, benchmark: str, results: Sequence[ResultRow], skipped: Mapping[str, str], notes: Sequence[str]
) -> None:
    """Print the result rows of a benchmark; 80 columns are enough."""
    dropped = {(row.task, row.metric): row for row in results if row.split == "drop"}
    results = [row for row in results if row.split != "drop"]
    table = Table(title=benchmark, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("task", "metric", "score [95 %]", "n", "drop" if dropped else "shows"):
        table.add_column(name, no_wrap=name not in ("task", "metric"), overflow="fold")
    last_task = None
    for row in results:
        value, low, high = (measures.display(row.metric, number) for number in (row.value, row.low, row.high))
        detectable = "-" if row.detectable is None else measures.display(row.metric, row.detectable)
        units, _, of = row.units.partition(" ")
        table.add_row(
            "" if row.task == last_task else escape(row.task),
            f"{row.metric} {measures.measure(row.metric).unit}",
            escape(f"{value} [{low}, {high}]"),
            str(row.n) if of == "rows" else f"{row.n}/{units}",
            escape(_drop(dropped.get((row.task, row.metric))) if dropped else detectable),
        )
        last_task = row.task
    console.print(table)
    audio = [f"audio: {'; '.join(_provenances(results))}"] if results else []
    stroke = [_UNITS] if any(not row.units.endswith(" rows") for row in results) else []
    for note in (*audio, *stroke, _DROP if dropped else statistics.SHOWS, *notes):
        print_plain(console, note)
    if skipped:
        console.print(f"[yellow]{len(skipped)} rows could not be used and are not in every score:[/yellow]")
        for name, reason in list(skipped.items())[:_MAX_SKIPPED]:
            print_plain(console, f"  {name}: {reason}")


def _drop(row: ResultRow | None) -> str:
    if row is None:
        return "-"
    value, low, high = (measures.display(row.metric, number, "+") for number in (row.value, row.low, row.high))
    return f"{value}{'*' if row.p < statistics.LEVEL else ''} [{low}, {high}]"


def _provenances(results: Sequence[ResultRow]) -> list[str]:
    """Return the provenance of all tasks if it is one, otherwise each with its tasks."""
    tasks: dict[str, dict[str, None]] = {}
    for row in results:
        tasks.setdefault(row.provenance, {})[row.task] = None
    return list(tasks) if len(tasks) == 1 else [f"{one} of {', '.join(of)}" for one, of in tasks.items()]


def credits(rows: Sequence[Row]) -> list[str]:
    """Return who wrote and who annotated the rows, as far as they say; scripts that stand in for people included."""
    keys = {"written by": "written_by", "annotated by": "annotator"}
    counts = {what: Counter(str(row.labels[key]) for row in rows if key in row.labels) for what, key in keys.items()}
    return [f"{what}: {'; '.join(f'{name} ({n} rows)' for name, n in of.items())}" for what, of in counts.items() if of]


def show_published(console: Console, name: str, results: Sequence[ResultRow]) -> None:
    """Print a published table with our scores, and both signatures of those that were computed differently."""
    console.print(published_table(name, published.lines(results, name)))
    for note in published.notes(name, results):
        print_plain(console, note)


def published_table(name: str, lines: Sequence[published.Line]) -> Table:
    """Return a published table with our scores and their marks (`published.DIFFERENT`, `published.STAND_IN`)."""
    # Systems that the table itself measured have a signature; those that it quotes have none.
    systems = list(dict.fromkeys(cell.system for line in lines for cell in line.cells if cell.signature))
    has_others = any(not cell.signature for line in lines for cell in line.cells)
    heads = [systems[0] if len(systems) == 1 else "published", *["others"][:has_others]]
    table = Table(title=f"{name}: published and ours", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("benchmark", "part", "ours", *heads):
        table.add_column(head, no_wrap=head in ("part", "ours", *systems), overflow="fold")
    last_label = ""
    for line in lines:
        own = [_number(cell) if len(systems) == 1 else _cell(cell) for cell in line.cells if cell.signature]
        others = [_cell(cell) for cell in line.cells if not cell.signature]
        label = f"{line.benchmark} {line.metric}"
        columns = [", ".join(own), *[", ".join(others)][:has_others]]
        marks = [published.DIFFERENT] * line.differs + [published.STAND_IN] * line.is_stand_in
        table.add_row("" if label == last_label else label, line.part, " ".join([line.printed, *marks]), *columns)
        last_label = label
    return table


def _cell(cell: published.Published) -> str:
    return f"{cell.system} {_number(cell)}"


def _number(cell: published.Published) -> str:
    return f"{cell.printed:.{cell.decimals}f}"
