"""Result rows with intervals, drops without the audio, scores of the released scripts, and their tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from auris.data.rows import Row, answer_language
from auris.evaluation.answer_cache import RunId
from auris.metrics import measures, official, published, statistics, timestamps
from auris.metrics.measures import signature
from auris.metrics.records import Prediction, ResultRow
from auris.text.console import print_plain

_DROP = f"drop: loss relative to the rows' own audio, * if p < {statistics.LEVEL} (paired permutation test)."
_UNITS = "n: rows, and after the slash the speakers or recordings over which intervals are bootstrapped."
_MAX_SKIPPED = 20  # rows that are listed


class Identity(RunId):
    """Study, arm and seed of the run that trained the model, and the benchmark."""

    benchmark: str


def summarise(
    predictions: Sequence[Prediction],
    identity: Identity,
    samples: int,
    seed: int,
    signatures: Mapping[str, str],
    changes: Sequence[str] = (),
) -> list[ResultRow]:
    """Return one result row per group and metric, with a 95 % bootstrap interval over speakers, recordings or rows.

    Args:
        predictions: The predictions of a benchmark.
        identity: The run and the benchmark.
        samples: Number of bootstrap samples.
        seed: Seed of the bootstrap samples.
        signatures: Signatures of the metrics that a judge computes.
        changes: Deviations from the benchmark's own prompt and decoding, appended to every signature.
    """
    results = []
    for (group, metric), rows in sorted(_by_score(predictions).items()):
        stats, units = [row.stats for row in rows], _units(rows)
        scorer = measures.scorer(metric, [dict(enumerate(stats))])
        resampled = statistics.samples(scorer, len(stats), samples, seed, units.indices)
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
            provenance="+".join(sorted({kind for row in rows for kind in row.provenance.split("+")})),
        )
        results.append(result)
    return results


def drops(
    results: Sequence[ResultRow], predictions: Sequence[Prediction], with_audio: Sequence[Prediction]
) -> list[ResultRow]:
    """Return result rows of split `drop`: how much worse each score is than on the same rows with their own audio.

    Args:
        results: The result rows with replaced audio.
        predictions: The predictions with replaced audio.
        with_audio: The predictions with the rows' own audio.
    """
    sides = [_by_score(side) for side in (with_audio, predictions)]
    dropped = []
    for row in results:
        key = (row.task, row.metric)
        as_is, altered = ({prediction.id: prediction for prediction in side.get(key, ())} for side in sides)
        if common := sorted(as_is.keys() & altered.keys()):
            units = _units([altered[name] for name in common])
            stats_as_is, stats_altered = ({name: side[name].stats for name in common} for side in (as_is, altered))
            value, low, high, p = statistics.drop(row.metric, [stats_as_is], [stats_altered], units.indices)
            drop = replace(row, split="drop", value=value, low=low, high=high, p=p, detectable=None)
            dropped.append(replace(drop, n=len(common), units=str(units)))
    return dropped


def _by_score(predictions: Sequence[Prediction]) -> dict[tuple[str, str], list[Prediction]]:
    """Return the predictions of each group and metric."""
    scores: dict[tuple[str, str], list[Prediction]] = {}
    for prediction in predictions:
        scores.setdefault((prediction.group, prediction.metric), []).append(prediction)
    return scores


def _units(predictions: Sequence[Prediction]) -> statistics.Units:
    return statistics.find_units([prediction.to_json() for prediction in predictions])


# --- scores of the released scripts -------------------------------------------------------------------------------


def official_lines(
    script: str | None, version: str, predictions: Sequence[Prediction], rows: Sequence[Row]
) -> list[official.ScriptScore]:
    """Return what the released script would print for the same responses (`metrics.official`)."""
    if script is None:
        return []
    responses = {prediction.id: prediction for prediction in reversed(predictions) if prediction.metric != "eer"}
    # References of evaluate_srwt.py begin with the time at the end of its prompt.
    prefix = timestamps.BEGIN if script == "evaluate_srwt" else ""
    answers = [
        official.Answer(
            source=str(row.labels.get("source") or _source(row)),
            reference=prefix + responses[row.id].reference,
            reply=responses[row.id].hypothesis,
            language=answer_language(row),
        )
        for row in rows
        if row.id in responses
    ]
    return official.report(script, version, answers)


def _source(row: Row) -> str:
    """Return a `source` for a row that has none, with the languages at the position that evaluate_st.py reads."""
    languages = [row.labels[key] for key in ("language", "target_language") if key in row.labels]
    return "_".join([row.labels["task"], *languages, "test"])


def official_note(line: official.ScriptScore) -> str:
    """Return the score of a released script as text."""
    score = f"stops ({line.stopped})" if line.stopped else f"{line.metric} {line.value:.4f}"
    return f"{line.script} of {line.version}, {line.source}: {score} (n={line.n})"


# --- on the terminal ----------------------------------------------------------------------------------------------


def show(
    console: Console, benchmark: str, results: Sequence[ResultRow], skipped: Mapping[str, str], notes: Sequence[str]
) -> None:
    """Print the result rows of a benchmark as a table that fits 80 columns.

    Args:
        console: Where to print.
        benchmark: Name of the benchmark.
        results: Its result rows.
        skipped: Why some rows have no response, by row id.
        notes: Lines to print below the table.
    """
    dropped = {(row.task, row.metric): row for row in results if row.split == "drop"}
    results = [row for row in results if row.split != "drop"]
    table = Table(title=benchmark, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("task", "metric", "score [95 %]", "n", "drop" if dropped else "MDD"):
        table.add_column(name, no_wrap=name not in ("task", "metric"), overflow="fold")
    last_task = None
    for row in results:
        value, low, high = (measures.display(row.metric, number) for number in (row.value, row.low, row.high))
        detectable = "-" if row.detectable is None else measures.display(row.metric, row.detectable)
        n_units, _, unit = row.units.partition(" ")
        table.add_row(
            "" if row.task == last_task else escape(row.task),
            f"{row.metric} {measures.measure(row.metric).unit}",
            escape(f"{value} [{low}, {high}]"),
            str(row.n) if unit == "rows" else f"{row.n}/{n_units}",
            escape(_drop(dropped.get((row.task, row.metric))) if dropped else detectable),
        )
        last_task = row.task
    console.print(table)
    audio = [f"audio: {'; '.join(_provenances(results))}"] if results else []
    units = [_UNITS] if any(not row.units.endswith(" rows") for row in results) else []
    for note in (*audio, *units, _DROP if dropped else statistics.DETECTABLE_NOTE, *notes):
        print_plain(console, note)
    if skipped:
        console.print(f"[yellow]{len(skipped)} rows could not be used and are missing from scores:[/yellow]")
        for name, reason in list(skipped.items())[:_MAX_SKIPPED]:
            print_plain(console, f"  {name}: {reason}")


def _drop(row: ResultRow | None) -> str:
    if row is None:
        return "-"
    value, low, high = (measures.display(row.metric, number, "+") for number in (row.value, row.low, row.high))
    is_significant = row.p is not None and row.p < statistics.LEVEL
    return f"{value}{'*' if is_significant else ''} [{low}, {high}]"


def _provenances(results: Sequence[ResultRow]) -> list[str]:
    """Return the provenance of all tasks if it is the same, otherwise each provenance with its tasks."""
    tasks: dict[str, dict[str, None]] = {}
    for row in results:
        tasks.setdefault(row.provenance, {})[row.task] = None
    return list(tasks) if len(tasks) == 1 else [f"{kind} of {', '.join(names)}" for kind, names in tasks.items()]


def credits(rows: Sequence[Row]) -> list[str]:
    """Return who wrote and who annotated the rows, if the rows say so; they also name scripts that replace people."""
    lines = []
    for title, key in (("written by", "written_by"), ("annotated by", "annotator")):
        if counts := Counter(str(row.labels[key]) for row in rows if key in row.labels):
            lines.append(f"{title}: {'; '.join(f'{name} ({n} rows)' for name, n in counts.items())}")
    return lines


def show_published(console: Console, name: str, results: Sequence[ResultRow]) -> None:
    """Print a published table with our scores, and both signatures of scores that were computed differently."""
    console.print(published_table(name, published.lines(results, name)))
    for note in published.notes(name, results):
        print_plain(console, note)


def published_table(name: str, lines: Sequence[published.Line]) -> Table:
    """Return a published table with our scores and their marks (`published.DIFFERENT`, `published.STAND_IN`)."""
    # Systems that the table's authors measured have a signature; those that they quote have none.
    systems = list(dict.fromkeys(cell.system for line in lines for cell in line.cells if cell.signature))
    has_others = any(not cell.signature for line in lines for cell in line.cells)
    headers = [systems[0] if len(systems) == 1 else "published", *["others"][:has_others]]
    table = Table(title=f"{name}: published and ours", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in ("benchmark", "part", "ours", *headers):
        table.add_column(header, no_wrap=header in ("part", "ours", *systems), overflow="fold")
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


def _cell(cell: published.PublishedScore) -> str:
    return f"{cell.system} {_number(cell)}"


def _number(cell: published.PublishedScore) -> str:
    return f"{cell.printed:.{cell.decimals}f}"
