"""Answers become predictions: what a row contributes to each score that it counts in (format: `auris.results`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from auris.data.pairs import VerdictSamples
from auris.data.rows import Row, group, language
from auris.data.rows import metric as own_metric
from auris.metrics.row_stats import row_stats
from auris.text import tasks


def score(answered: Mapping[str, tuple[Row, str]], raw: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One prediction per row and metric, with what the row contributes to it.

    `raw`: metrics beside those of the row's task, of the answer as it is.
    """
    classes: dict[str, set[str]] = {}
    for row, _ in answered.values():
        task = tasks.find(row.labels["task"])
        if task.closed:
            classes.setdefault(group(row), set()).add(task.compared(task.render(row.labels)))
    predictions = []
    for name, (row, hypothesis) in answered.items():
        labels = row.labels
        reference = tasks.find(labels["task"]).render(labels)
        known = options(labels) or sorted(classes.get(group(row), ()))
        compared_by = {
            **metrics(row),
            **dict.fromkeys(_CHOICE if options(labels) else (), str),
            **dict.fromkeys(raw, str),
        }
        for metric, compared in compared_by.items():
            if metric == "eer":  # is of scores, not of answers: `log_odds`
                continue
            said, true = compared(hypothesis), compared(labels.get("key", reference))
            if metric == "cider":
                true = labels.get("references", true)
            predictions.append(
                {
                    **about(row, metric) | {"id": name},
                    "stats": row_stats(metric, said, true, language(row), known),
                    "hypothesis": hypothesis,
                    "reference": reference,
                }
            )
            if "skill" in labels:  # of a dialogue: on a line of its own, beside that of its mode
                predictions.append(predictions[-1] | {"group": f"chat {labels['skill']}"})
    return predictions


_CHOICE = ("choice", "choice_official", "choice_unparsed")


def options(labels: Mapping[str, Any]) -> list[str]:
    """The answers that a question of AIR-Bench's foundation part offers."""
    return [labels[key] for key in ("choice_a", "choice_b", "choice_c", "choice_d") if labels.get(key)]


def metrics(row: Row) -> dict[str, Callable[[str], Any]]:
    """What a row's answer is scored by, each metric with what of the answer it compares."""
    task = tasks.find(row.labels["task"])
    own_first = (own_metric(row), *list(task.metrics)[1:])
    return {metric: partial(task.compared, metric=metric) for metric in own_first}


def about(row: Row, metric: str) -> dict[str, Any]:
    speaker = row.labels.get("speaker")
    return {
        "id": row.id,
        "task": row.labels["task"],
        "language": language(row),
        "group": group(row),
        "metric": metric,
        "provenance": row.labels.get("provenance", "unknown"),
        "audio_seconds": sum(clip.duration or 0.0 for clip in row.clips),
        "speaker": speaker if isinstance(speaker, str) else None,
        "recording": "+".join(map(str, row.labels.get("sources") or [clip.path for clip in row.clips])),
    }


def accepted(row: Row, odds: float) -> dict[str, Any]:
    """How likely the row is accepted, and whether it should be."""
    yes, _ = VerdictSamples.VERDICTS
    true = row.labels["text"]
    return {
        **about(row, "eer"),
        "stats": row_stats("eer", odds, true.strip().lower() == yes, language(row)),
        "hypothesis": f"log odds {odds:.2f}",
        "reference": true,
    }


def preferred(row: Row, logps: Sequence[float]) -> dict[str, Any]:
    """Whether the chosen answer is the likelier one."""
    chosen, rejected = logps
    return {
        **about(row, "prefers"),
        "stats": row_stats("prefers", rejected, chosen, language(row)),
        "hypothesis": f"log p {chosen:.2f}, rejected {rejected:.2f}",
        "reference": str(row.labels["chosen"]),
    }
