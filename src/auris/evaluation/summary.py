"""Result rows computed from predictions, and the tables that show them.

A result row is a score with a 95 % interval. A drop is a result row that states how much worse a score becomes if the
audio is replaced (`evaluation.audio_ablation`). The scores of the released scripts (`metrics.official`) are those that
the evaluation scripts of Qwen-Audio and Qwen2-Audio would print for the same responses.
"""

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
from auris.metrics import edits, measures, official, published, statistics, timestamps
from auris.metrics.measures import signature
from auris.metrics.records import Prediction, ResultRow
from auris.text.console import print_plain

# Notes below the table that explain its columns.
_DROP_NOTE = (
    "drop: how much worse the score is than with the rows' own audio; "
    f"* if p < {statistics.LEVEL} (paired permutation test)."
)
_UNITS_NOTE = (
    "n: number of rows, and after the slash the number of speakers or recordings that the bootstrap resamples."
)
_UNDEFINED = "no row counts for this score: all references are empty, or no response was rated"
_MAX_SKIPPED = 20  # largest number of skipped rows that are listed


class Identity(RunId):
    """The fields of a result row that identify the evaluation: study, arm and seed of the run, and the benchmark."""

    benchmark: str


def summarise(
    predictions: Sequence[Prediction],
    identity: Identity,
    samples: int,
    seed: int,
    signatures: Mapping[str, str],
    deviations: Sequence[str] = (),
) -> list[ResultRow]:
    """Return one result row per group and metric, with a 95 % bootstrap interval over speakers, recordings or rows.

    Args:
        predictions: The predictions of a benchmark.
        identity: The run and the benchmark.
        samples: Number of bootstrap samples.
        seed: Seed of the bootstrap samples.
        signatures: Signatures of the metrics that a judge computes, by metric. A signature states how a score was
            computed.
        deviations: Deviations from the benchmark's prompt and decoding settings, which are appended to every signature.
    """
    results = []
    scores = _group_by_score(predictions)
    for group, metric in sorted(scores, key=lambda score: (score[0], measures.table_position(score[1]))):
        score_predictions = scores[group, metric]
        stats = [prediction.stats for prediction in score_predictions]
        units = _find_units(score_predictions)  # the speakers, recordings or rows that are resampled as a whole
        provenances = {origin for prediction in score_predictions for origin in prediction.provenance.split("+")}
        scorer = measures.scorer(metric, [dict(enumerate(stats))])
        resampled_scores = statistics.resample_scores(scorer, len(stats), samples, seed, units.indices)
        low, high = statistics.percentile_interval(resampled_scores)
        detectable_difference = statistics.detectable_difference_from_one_system(resampled_scores)
        metric_signature = signatures.get(metric) or signature(metric, score_predictions[0].language)
        value = measures.score(metric, stats)
        result = ResultRow(
            **identity,
            task=group,
            split="test",
            metric=metric,
            value=value,
            low=low,
            high=high,
            n=len(score_predictions),
            units=str(units),
            detectable=None if math.isnan(detectable_difference) else detectable_difference,
            signature="|".join([metric_signature, *deviations]),
            provenance="+".join(sorted(provenances)),
            reason=_UNDEFINED if math.isnan(value) else None,
        )
        results.append(result)
    return results


def compute_drops(
    results: Sequence[ResultRow], predictions: Sequence[Prediction], with_own_audio: Sequence[Prediction]
) -> list[ResultRow]:
    """Return the drop of each score, as result rows whose `split` is "drop".

    A drop states how much worse a score is than on the same rows with their own audio.

    Args:
        results: The result rows with replaced audio.
        predictions: The predictions with replaced audio.
        with_own_audio: The predictions with the rows' own audio.
    """
    sides = [_group_by_score(side) for side in (with_own_audio, predictions)]
    drop_rows = []
    for row in results:
        score = (row.task, row.metric)
        original, altered = ({prediction.id: prediction for prediction in side.get(score, ())} for side in sides)
        if common_ids := sorted(original.keys() & altered.keys()):
            units = _find_units([altered[row_id] for row_id in common_ids])
            stats_original, stats_altered = (
                {row_id: side[row_id].stats for row_id in common_ids} for side in (original, altered)
            )
            value, low, high, p = statistics.score_drop(row.metric, [stats_original], [stats_altered], units.indices)
            drop_row = replace(row, split="drop", value=value, low=low, high=high, p=p, detectable=None)
            drop_rows.append(replace(drop_row, n=len(common_ids), units=str(units)))
    return drop_rows


def _group_by_score(predictions: Sequence[Prediction]) -> dict[tuple[str, str], list[Prediction]]:
    """Return the predictions that each score is computed from, by (group, metric)."""
    scores: dict[tuple[str, str], list[Prediction]] = {}
    for prediction in predictions:
        scores.setdefault((prediction.group, prediction.metric), []).append(prediction)
    return scores


def _find_units(predictions: Sequence[Prediction]) -> statistics.Units:
    return statistics.find_units([prediction.to_json() for prediction in predictions])


# --- scores of the released scripts -------------------------------------------------------------------------------


def official_scores(
    script: str | None, version: str, predictions: Sequence[Prediction], rows: Sequence[Row]
) -> list[official.ScriptScore]:
    """Return the scores that a released script would print for the same responses (`metrics.official`).

    Args:
        script: Name of the script; None returns no scores.
        version: `v1` for the scripts of Qwen-Audio, `v2` for the scripts of Qwen2-Audio.
        predictions: The predictions, which contain the responses and the correct answers.
        rows: The rows of the predictions.
    """
    if script is None:
        return []
    # A row has one prediction for each metric. The first one is used, but not that of `eer`, because its hypothesis is
    # not the response.
    by_id = {prediction.id: prediction for prediction in reversed(predictions) if prediction.metric != "eer"}
    # References of evaluate_srwt.py begin with the time mark that ends the script's prompt.
    prefix = timestamps.BEGIN if script == "evaluate_srwt" else ""
    answers = [
        official.Answer(
            source=str(row.labels.get("source") or _make_source(row)),
            reference=prefix + by_id[row.id].reference,
            reply=by_id[row.id].hypothesis,
            language=answer_language(row),
        )
        for row in rows
        if row.id in by_id
    ]
    return official.script_scores(script, version, answers)


def _make_source(row: Row) -> str:
    """Return a `source` for a row that has none, with the languages at the position where evaluate_st.py reads them."""
    languages = [row.labels[key] for key in ("language", "target_language") if key in row.labels]
    return "_".join([row.labels["task"], *languages, "test"])


def format_official_score(score: official.ScriptScore) -> str:
    """Return the score of a released script as text."""
    outcome = f"stops ({score.stopped})" if score.stopped else f"{score.metric} {score.value:.4f}"
    return f"{score.script} of {score.version}, {score.source}: {outcome} (n={score.n})"


# --- on the terminal ----------------------------------------------------------------------------------------------


def print_results(
    console: Console, benchmark: str, results: Sequence[ResultRow], skipped: Mapping[str, str], notes: Sequence[str]
) -> None:
    """Print the result rows of a benchmark as a table that fits 80 columns.

    Args:
        console: Console to print on.
        benchmark: Name of the benchmark.
        results: The result rows of the benchmark, including drops.
        skipped: Reasons why rows have no response or no rating, by row id.
        notes: Lines to print below the table.
    """
    drops_by_score = {(row.task, row.metric): row for row in results if row.split == "drop"}
    results = [row for row in results if row.split != "drop"]
    error_rows = measures.tabulate_errors((row.task, row.metric, row.value) for row in results)
    table = Table(title=benchmark, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in ("task", "metric", "score [95 %]", "n", "drop" if drops_by_score else "MDD"):
        table.add_column(header, no_wrap=header not in ("task", "metric"), overflow="fold")
    last_task = None
    for row in results:
        if row.metric in edits.DETAILS:  # columns of a table of their own
            continue
        value, low, high = (measures.format_value(row.metric, number) for number in (row.value, row.low, row.high))
        detectable = "-" if row.detectable is None else measures.format_value(row.metric, row.detectable)
        n_units, _, unit = row.units.partition(" ")
        drop = drops_by_score.get((row.task, row.metric))
        table.add_row(
            "" if row.task == last_task else escape(row.task),
            f"{row.metric} {measures.find_measure(row.metric).unit}",
            escape(f"{value} [{low}, {high}]"),
            str(row.n) if unit == "rows" else f"{row.n}/{n_units}",
            escape(_format_drop(drop) if drops_by_score else detectable),
        )
        last_task = row.task
    console.print(table)
    if error_rows:
        console.print(_make_error_table(error_rows))
    audio_notes = [f"audio: {'; '.join(_format_provenances(results))}"] if results else []
    units_notes = [_UNITS_NOTE] if any(not row.units.endswith(" rows") for row in results) else []
    last_column_note = _DROP_NOTE if drops_by_score else statistics.DETECTABLE_NOTE
    error_notes = [measures.ERROR_NOTE] if error_rows else []
    for note in (*audio_notes, *units_notes, last_column_note, *error_notes, *notes):
        print_plain(console, note)
    if skipped:
        console.print(f"[yellow]rows that could not be used and are missing from the scores: {len(skipped)}[/yellow]")
        for row_id, reason in list(skipped.items())[:_MAX_SKIPPED]:
            print_plain(console, f"  {row_id}: {reason}")


def _make_error_table(rows: Mapping[str, Sequence[str]]) -> Table:
    """Return a table of the error rates of speech tasks and their details, given the cells of each task."""
    table = Table(title="speech tasks, in %", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold")
    for header in measures.ERROR_HEADINGS:
        table.add_column(header, no_wrap=True, justify="right")
    for task, cells in rows.items():
        table.add_row(escape(task), *cells)
    return table


def _format_drop(row: ResultRow | None) -> str:
    if row is None:
        return "-"
    value, low, high = (measures.format_value(row.metric, number, "+") for number in (row.value, row.low, row.high))
    is_significant = row.p is not None and row.p < statistics.LEVEL
    return f"{value}{'*' if is_significant else ''} [{low}, {high}]"


def _format_provenances(results: Sequence[ResultRow]) -> list[str]:
    """Return the provenance of the audio (such as `tts`); if tasks differ in it, each provenance with its tasks."""
    tasks_by_provenance: dict[str, dict[str, None]] = {}
    for row in results:
        tasks_by_provenance.setdefault(row.provenance, {})[row.task] = None
    if len(tasks_by_provenance) == 1:
        return list(tasks_by_provenance)
    return [f"{provenance} for {', '.join(tasks)}" for provenance, tasks in tasks_by_provenance.items()]


def credit_lines(rows: Sequence[Row]) -> list[str]:
    """Return lines that state who wrote and who annotated the rows (people or programs), if the rows say so."""
    lines = []
    for title, key in (("written by", "written_by"), ("annotated by", "annotator")):
        if counts := Counter(str(row.labels[key]) for row in rows if key in row.labels):
            lines.append(f"{title}: {'; '.join(f'{author} ({n} rows)' for author, n in counts.items())}")
    return lines


def print_published(console: Console, name: str, results: Sequence[ResultRow]) -> None:
    """Print a published table next to our scores.

    For scores that were computed differently, both signatures are printed below the table.

    Args:
        console: Console to print on.
        name: Name of the published table.
        results: Our result rows.
    """
    console.print(make_published_table(name, published.table_lines(results, name)))
    for note in published.table_notes(name, results):
        print_plain(console, note)


def make_published_table(name: str, lines: Sequence[published.Line]) -> Table:
    """Return a published table next to our scores.

    Symbols mark our scores that are computed differently (`published.DIFFERENT`) or measured on synthetic recordings
    (`published.STAND_IN`).
    """
    # Scores that the authors of the table measured have a signature; scores that they quote have none.
    systems = list(dict.fromkeys(cell.system for line in lines for cell in line.cells if cell.signature))
    has_quoted = any(not cell.signature for line in lines for cell in line.cells)
    headers = [systems[0] if len(systems) == 1 else "published", *(["others"] if has_quoted else [])]
    table = Table(title=f"{name}: published and ours", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in ("benchmark", "part", "ours", *headers):
        table.add_column(header, no_wrap=header in ("part", "ours", *systems), overflow="fold")
    last_label = ""
    for line in lines:
        format_cell = _format_score if len(systems) == 1 else _format_system_and_score
        measured = [format_cell(cell) for cell in line.cells if cell.signature]
        quoted = [_format_system_and_score(cell) for cell in line.cells if not cell.signature]
        label = f"{line.benchmark} {line.metric}"
        columns = [", ".join(measured), *([", ".join(quoted)] if has_quoted else [])]
        symbols = [published.DIFFERENT] * line.differs + [published.STAND_IN] * line.is_stand_in
        table.add_row("" if label == last_label else label, line.part, " ".join([line.printed, *symbols]), *columns)
        last_label = label
    return table


def _format_system_and_score(cell: published.PublishedScore) -> str:
    return f"{cell.system} {_format_score(cell)}"


def _format_score(cell: published.PublishedScore) -> str:
    return f"{cell.printed:.{cell.decimals}f}"
