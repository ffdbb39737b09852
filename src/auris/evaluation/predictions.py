"""Predictions (`metrics.records.Prediction`): what the response to a row contributes to a score.

There is one prediction for each row and metric. Rows of one group, such as `asr en`, share a score.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from string import ascii_lowercase
from typing import Any

from auris.data.long_audio import merge_transcripts
from auris.data.pairs import VerdictSamples
from auris.data.rows import Row, answer_language, group
from auris.data.rows import metric_name as main_metric
from auris.evaluation.answer_cache import Response
from auris.metrics import edits
from auris.metrics.measures import check_packages, row_stats
from auris.metrics.records import Prediction
from auris.text import tasks
from auris.text.answer_formats import Labels

_CHOICE_METRICS = ("choice", "choice_official", "choice_unparsed")


def check_metrics(rows: Iterable[Row]) -> None:
    """Check that the packages that the rows' metrics need are installed; call this before rows are answered."""
    for metric, language_code in sorted({(metric, answer_language(row)) for row in rows for metric in _metrics(row)}):
        check_packages(metric, language_code)


def merge_windows(responses: Sequence[Response], windows: Mapping[str, Sequence[str]]) -> list[Response]:
    """Merge the transcripts of the windows of each long row into one response.

    If any of its windows has no response, the long row has no response.

    Args:
        responses: The responses to rows and windows.
        windows: Ids of the windows by id of the long row.
    """
    by_id = {response.row.id: response for response in responses}
    for row_id, window_ids in windows.items():
        pieces = [by_id.pop(window_id) for window_id in window_ids if window_id in by_id]
        if len(pieces) == len(window_ids):
            row = replace(pieces[0].row, id=row_id)
            text = merge_transcripts([piece.content for piece in pieces], answer_language(row))
            by_id[row_id] = Response(row, text, ended_by_length=any(piece.ended_by_length for piece in pieces))
    return list(by_id.values())


def predict(kind: str, responses: Sequence[Response], raw_metrics: Sequence[str] = ()) -> list[Prediction]:
    """Return the predictions of rows of one kind.

    Args:
        kind: One of `answering.KINDS`: task, chat, preference or text.
        responses: The responses.
        raw_metrics: Metrics of the unprocessed response, in addition to the metrics of the row's task.
    """
    if kind == "preference":
        return [_predict_preference(response) for response in responses]
    if kind == "text":
        return [_predict_text(response) for response in responses]
    verifications = [_predict_verification(response) for response in responses if response.yes_no_log_odds is not None]
    return score_responses(responses, raw_metrics) + verifications


def score_responses(responses: Sequence[Response], raw_metrics: Sequence[str] = ()) -> list[Prediction]:
    """Return one prediction for each text response and metric.

    Args:
        responses: The responses.
        raw_metrics: Metrics of the unprocessed response, in addition to the metrics of the row's task.
    """
    classes: dict[str, set[str]] = {}  # group -> correct answers, for tasks whose answers come from a fixed set
    for row, *_ in responses:
        task = tasks.get_task(row.labels["task"])
        if task.closed:
            classes.setdefault(group(row), set()).add(task.extract(task.render(row.labels)))
    predictions = []
    for response in responses:
        row, hypothesis, labels = response.row, response.content, response.row.labels
        reference = tasks.get_task(labels["task"]).render(labels)
        options = _options(labels)
        metrics_of_response = [*(_CHOICE_METRICS if options else ()), *raw_metrics]
        for metric, extract in {**_metrics(row), **dict.fromkeys(metrics_of_response, str)}.items():
            if metric == "eer":  # `_predict_verification` computes it from the log-odds
                continue
            correct = extract(labels.get("key", reference))  # `key`: the words that a correct answer contains
            if metric == "cider":
                correct = labels.get("references", correct)
            compared = extract(hypothesis)
            stats = row_stats(
                metric,
                (compared, response.ended_by_length) if metric == "runaway" else compared,
                correct,
                answer_language(row),
                options or sorted(classes.get(group(row), ())),
            )
            predictions.append(make_prediction(row, metric, stats, hypothesis, reference))
            if "skill" in labels:  # a dialogue counts in the group of its skill as well as in the group of its mode
                predictions.append(replace(predictions[-1], group=f"chat {labels['skill']}"))
    return predictions


def _options(labels: Labels) -> list[str]:
    """Return the options of a multiple-choice question (AIR-Bench, foundation part); empty for other rows.

    An option that is missing before the last one is an empty text, so that the others keep their letters.
    """
    texts = [labels.get(f"choice_{letter}") or "" for letter in ascii_lowercase]
    n_options = max((number for number, text in enumerate(texts, start=1) if text), default=0)
    return texts[:n_options]


def _metrics(row: Row) -> dict[str, Callable[[str], Any]]:
    """Return the metrics of a row's task by name; error rates are followed by their details (`edits.DETAILS`).

    Each metric comes with a function that extracts from a text the part that the metric compares.
    """
    task = tasks.get_task(row.labels["task"])
    main = main_metric(row)  # depends on the language
    metrics = (main, *(edits.DETAILS if main in edits.RATES else ()), *list(task.metrics)[1:])
    return {metric: partial(task.extract, metric=metric) for metric in metrics}


def _predict_verification(response: Response) -> Prediction:
    """Return the prediction for the equal error rate: the log-odds of yes, and whether yes is the correct answer."""
    row, log_odds = response.row, response.yes_no_log_odds
    yes, _ = VerdictSamples.VERDICTS
    correct = row.labels["text"]
    stats = row_stats("eer", log_odds, correct.strip().lower() == yes, answer_language(row))
    return make_prediction(row, "eer", stats, f"log odds {log_odds:.2f}", correct)


def _predict_preference(response: Response) -> Prediction:
    """Return the prediction for the metric `prefers`: whether the chosen answer is likelier than the rejected one."""
    row, (chosen, rejected) = response.row, response.content
    stats = row_stats("prefers", rejected, chosen, answer_language(row))
    hypothesis = f"log p {chosen:.2f}, rejected {rejected:.2f}"
    return make_prediction(row, "prefers", stats, hypothesis, str(row.labels["chosen"]))


def _predict_text(response: Response) -> Prediction:
    """Return the prediction for the metric `text_loss`: the negative log-probability of a text, and its tokens."""
    row, (logp, n_tokens) = response.row, response.content
    stats = row_stats("text_loss", logp, n_tokens, answer_language(row))
    return make_prediction(row, "text_loss", stats, f"log p {logp:.2f}, {n_tokens:.0f} tokens", row.labels["text"])


def make_prediction(row: Row, metric: str, stats: Sequence[Any], hypothesis: str, reference: str) -> Prediction:
    """Return the prediction of a row for a metric, in the group of the row's task.

    Args:
        row: The row.
        metric: Name of the metric.
        stats: What the row contributes to the score.
        hypothesis: The response as text.
        reference: The correct answer as text.
    """
    speaker = row.labels.get("speaker")
    return Prediction(
        id=row.id,
        task=row.labels["task"],
        language=answer_language(row),
        group=group(row),
        metric=metric,
        provenance=row.labels.get("provenance", "unknown"),  # origin of the audio, such as `tts`
        audio_seconds=sum(clip.duration or 0.0 for clip in row.clips),
        speaker=speaker if isinstance(speaker, str) else None,
        recording="+".join(map(str, row.labels.get("sources") or [clip.path for clip in row.clips])),
        stats=stats,
        hypothesis=hypothesis,
        reference=reference,
    )


# --- subsets of a test set ----------------------------------------------------------------------------------------

Parts = Sequence[str] | Mapping[str, Mapping[str, object]]
"""The `parts` of a benchmark."""

BINARY_ANSWERS = ("yes", "no")  # answers to the binary questions of ClothoAQA (as in Qwen2-Audio's evaluate_aqa.py)


def find_subsets(row: Row, parts: Parts) -> list[str]:
    """Return the names of the subsets of the test set that a row belongs to.

    If `parts` states labels, a row belongs to a subset if it has all its labels. The label [18, 65] stands for the
    numbers from 18 to 65, and an end of null has no limit.

    Otherwise, a row belongs to a subset if the words of the subset's name occur in the row's `source`, `split` or
    languages. The subset dev-clean, for example, contains rows from the source `librispeech_dev_clean`. The subset
    `all` contains every row, and the subset `binary` contains rows with the answer yes or no. If a benchmark has only
    one subset, this subset contains every row.

    Args:
        row: The row.
        parts: All subsets (`parts` of the benchmark).
    """
    if isinstance(parts, Mapping):
        return [name for name, wanted in parts.items() if all(_has_label(row, *label) for label in wanted.items())]
    names = parts
    if len(names) == 1:
        return list(names)
    labels = " ".join(str(row.labels.get(key, "")) for key in ("source", "split", "language", "target_language"))
    words = "-".join(re.findall(r"[a-z0-9]+", labels.lower()))
    subsets = [name for name in names if f"-{name}-" in f"-{words}-"]
    answer = str(row.labels.get("text", "")).lower()
    return subsets + [name for name in names if name == "all" or (name == "binary" and answer in BINARY_ANSWERS)]


def _has_label(row: Row, key: str, wanted: object) -> bool:
    """Return whether a row has a label, which is a value or a range of numbers [lowest or null, highest or null]."""
    value = row.labels.get(key)
    if not isinstance(wanted, list):
        return value == wanted
    low, high = wanted
    return isinstance(value, int | float) and (low is None or low <= value) and (high is None or value <= high)


def split_by_subset(
    predictions: Sequence[Prediction], rows: Sequence[Row], parts: Parts, sets: bool = False
) -> list[Prediction]:
    """Return the predictions with the name of the subset added to the group, such as `asr en test-clean`.

    A row that belongs to several subsets has a prediction for each of them. Predictions of rows without a subset keep
    their group. If `parts` states labels, all rows keep their group as well, and their subsets have their own groups.

    Args:
        predictions: The predictions.
        rows: The rows of the predictions.
        parts: All subsets (`parts` of the benchmark).
        sets: Add the row's label `set` to its group first.
    """
    if sets:
        set_by_id = {row.id: row.labels["set"] for row in rows}
        predictions = [replace(p, group=f"{p.group} {set_by_id[p.id]}") for p in predictions]
    if not parts:
        return list(predictions)
    subsets = {row.id: find_subsets(row, parts) for row in rows}
    predictions_by_subset = []
    for prediction in predictions:
        group = prediction.group
        if isinstance(parts, Mapping):
            groups = [group, *(f"{group} {name}" for name in subsets[prediction.id])]
        else:
            groups = [group if group.endswith(f" {name}") else f"{group} {name}" for name in subsets[prediction.id]]
        predictions_by_subset += [replace(prediction, group=group) for group in groups or [group]]
    return predictions_by_subset
