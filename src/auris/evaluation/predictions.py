"""Predictions from responses: what each row contributes to each of its scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from auris.data.long_audio import merge_transcripts
from auris.data.pairs import VerdictSamples
from auris.data.rows import Row, answer_language, group
from auris.data.rows import metric_name as main_metric
from auris.evaluation.answer_cache import Response
from auris.metrics.measures import check, row_stats
from auris.metrics.records import Prediction
from auris.text import tasks
from auris.text.answer_formats import Labels

_CHOICE = ("choice", "choice_official", "choice_unparsed")


def check_metrics(rows: Iterable[Row]) -> None:
    """Check that the packages that the rows' metrics need are installed; call it before rows are answered."""
    for metric, code in sorted({(metric, answer_language(row)) for row in rows for metric in _metrics(row)}):
        check(metric, code)


def merge_windows(responses: Sequence[Response], windows: Mapping[str, Sequence[str]]) -> list[Response]:
    """Merge the transcripts of the windows of long rows.

    If a window has no response, its long row has none either.

    Args:
        responses: The responses to rows and windows.
        windows: Ids of the windows by the id of the long row.
    """
    by_id = {response.row.id: response for response in responses}
    for name, ids in windows.items():
        pieces = [by_id.pop(window) for window in ids if window in by_id]
        if len(pieces) == len(ids):
            row = replace(pieces[0].row, id=name)
            by_id[name] = Response(row, merge_transcripts([piece.content for piece in pieces], answer_language(row)))
    return list(by_id.values())


def predict(kind: str, responses: Sequence[Response], raw_metrics: Sequence[str] = ()) -> list[Prediction]:
    """Return the predictions of rows of one kind.

    Args:
        kind: task, chat or preference.
        responses: The responses.
        raw_metrics: Metrics of the unprocessed response, in addition to those of the row's task.
    """
    if kind == "preference":
        return [_preference(response) for response in responses]
    verdicts = [_verdict(response) for response in responses if response.yes_no_log_odds is not None]
    return score(responses, raw_metrics) + verdicts


def score(responses: Sequence[Response], raw_metrics: Sequence[str] = ()) -> list[Prediction]:
    """Return one prediction for each text response and metric."""
    classes: dict[str, set[str]] = {}  # by group, for tasks with a closed set of answers
    for row, *_ in responses:
        task = tasks.get_task(row.labels["task"])
        if task.closed:
            classes.setdefault(group(row), set()).add(task.extract(task.render(row.labels)))
    predictions = []
    for row, hypothesis, _ in responses:
        labels = row.labels
        reference = tasks.get_task(labels["task"]).render(labels)
        options = _options(labels)
        raw = [*(_CHOICE if options else ()), *raw_metrics]
        for metric, extract in {**_metrics(row), **dict.fromkeys(raw, str)}.items():
            if metric == "eer":  # computed from the log-odds, not from the text
                continue
            correct = extract(labels.get("key", reference))
            if metric == "cider":
                correct = labels.get("references", correct)
            stats = row_stats(
                metric,
                extract(hypothesis),
                correct,
                answer_language(row),
                options or sorted(classes.get(group(row), ())),
            )
            predictions.append(prediction(row, metric, stats, hypothesis, reference))
            if "skill" in labels:  # a dialogue counts for its skill as well as for its mode
                predictions.append(replace(predictions[-1], group=f"chat {labels['skill']}"))
    return predictions


def _options(labels: Labels) -> list[str]:
    """Return the options of a question of AIR-Bench's foundation part."""
    return [labels[key] for key in ("choice_a", "choice_b", "choice_c", "choice_d") if labels.get(key)]


def _metrics(row: Row) -> dict[str, Callable[[str], Any]]:
    """Return the metrics of a row's task, each with the function that extracts what it compares from a text."""
    task = tasks.get_task(row.labels["task"])
    names = (main_metric(row), *list(task.metrics)[1:])
    return {name: partial(task.extract, metric=name) for name in names}


def _verdict(response: Response) -> Prediction:
    """Return the prediction for the equal error rate: how likely the row is accepted, and whether it should be."""
    row, _, log_odds = response
    yes, _ = VerdictSamples.VERDICTS
    correct = row.labels["text"]
    stats = row_stats("eer", log_odds, correct.strip().lower() == yes, answer_language(row))
    return prediction(row, "eer", stats, f"log odds {log_odds:.2f}", correct)


def _preference(response: Response) -> Prediction:
    """Return the prediction of whether the chosen answer is more likely than the rejected one."""
    row, (chosen, rejected), _ = response
    stats = row_stats("prefers", rejected, chosen, answer_language(row))
    return prediction(row, "prefers", stats, f"log p {chosen:.2f}, rejected {rejected:.2f}", str(row.labels["chosen"]))


def prediction(row: Row, metric: str, stats: Sequence[Any], hypothesis: str, reference: str) -> Prediction:
    """Return the prediction of a row in the group of its task."""
    speaker = row.labels.get("speaker")
    return Prediction(
        id=row.id,
        task=row.labels["task"],
        language=answer_language(row),
        group=group(row),
        metric=metric,
        provenance=row.labels.get("provenance", "unknown"),
        audio_seconds=sum(clip.duration or 0.0 for clip in row.clips),
        speaker=speaker if isinstance(speaker, str) else None,
        recording="+".join(map(str, row.labels.get("sources") or [clip.path for clip in row.clips])),
        stats=stats,
        hypothesis=hypothesis,
        reference=reference,
    )


# --- parts of a test set ------------------------------------------------------------------------------------------

BINARY = ("yes", "no")  # answers to ClothoAQA's binary questions (evaluate_aqa.py)


def find_parts(row: Row, names: Sequence[str]) -> list[str]:
    """Return the parts of the test set that a row belongs to.

    A row belongs to a part whose words occur in its `source`, `split` or languages, such as dev-clean in
    `librispeech_dev_clean`. `all` contains every row, `binary` those with the answer yes or no. If a benchmark has only
    one part, it contains every row.
    """
    if len(names) == 1:
        return list(names)
    labels = " ".join(str(row.labels.get(key, "")) for key in ("source", "split", "language", "target_language"))
    words = "-".join(re.findall(r"[a-z0-9]+", labels.lower()))
    parts = [name for name in names if f"-{name}-" in f"-{words}-"]
    answer = str(row.labels.get("text", "")).lower()
    return parts + [name for name in names if name == "all" or (name == "binary" and answer in BINARY)]


def split_by_part(predictions: Sequence[Prediction], rows: Sequence[Row], names: Sequence[str]) -> list[Prediction]:
    """Return the predictions in the groups of their parts, such as `asr en test-clean`.

    Predictions of rows without a part keep their group.
    """
    if not names:
        return list(predictions)
    parts = {row.id: find_parts(row, names) for row in rows}
    split = []
    for prediction in predictions:
        group = prediction.group
        groups = [group if group.endswith(f" {part}") else f"{group} {part}" for part in parts[prediction.id]]
        split += [replace(prediction, group=group) for group in groups or [group]]
    return split
