"""Predictions (`metrics.records.Prediction`) of the metrics that a judge computes from responses to dialogues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.progress import Progress

from auris.evaluation.answer_cache import Response
from auris.evaluation.predictions import make_prediction
from auris.metrics.judges.judge import Judge, UnratedError
from auris.metrics.records import Prediction


def rate_responses(
    responses: Sequence[Response], judge: Judge, console: Console
) -> tuple[list[Prediction], dict[str, str]]:
    """Return the predictions of the judge's metrics, and a dict from row id to the reason why there is no rating."""
    answers = [(response.row.labels, response.content) for response in responses]
    with Progress(console=console) as progress:
        verdicts = judge.judge(answers, progress)
    predictions, unrated = [], {}
    for (row, text, *_), verdict in zip(responses, verdicts, strict=True):
        if isinstance(verdict, UnratedError):
            unrated[row.id] = str(verdict)
            continue
        for metric, stats in verdict.stats.items():
            rating = make_prediction(row, metric, list(stats), text, verdict.reference)
            rating = replace(rating, replies=verdict.replies, failures=verdict.failures)
            predictions += [replace(rating, group=group) for group in verdict.groups] or [rating]
    return predictions, unrated
