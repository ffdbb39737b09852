"""The rows with the worst scores in a group, which is a set of test rows over which a score is computed.

Each row is scored separately, by one of the metrics of the group (`choose_metric`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from auris.metrics.edits import RATES, Edit, align_texts, unit_of
from auris.metrics.measures import MEASURES, format_value, score, scorer
from auris.metrics.records import Prediction
from auris.results.html.recordings import Player, Players, describe_replaced_audio
from auris.results.runs import RunPrediction
from auris.text import chat, tasks

if TYPE_CHECKING:
    from auris.data.rows import Row

_CONTROL_PREFIX = "<|"  # beginning of a control token
_WITHOUT_ROW_SCORES = ("eer",)  # metrics for which a single row has no score
# Metrics of judges come first, because judges read the whole response. Other metrics of dialogues search for a word.
JUDGED = ("judged_strict", "judged")


@dataclass(frozen=True)
class Answer:
    """A response to a row.

    Attributes:
        systems: Names of the systems that gave this response.
        text: The response.
        score: The score of the response as text; empty if it has no score.
        edits: The alignment of the response with the reference; None if the metric is not an error rate of words or
            characters.
    """

    systems: list[str]
    text: str
    score: str
    edits: list[Edit] | None = None


@dataclass(frozen=True)
class Example:
    """A row with its responses, as a page shows it.

    Attributes:
        id: The row's id.
        reference: The correct answer.
        language: The language of the answers.
        question: The question, if the row has one.
        answers: The different responses.
        by_characters: Whether responses are aligned by characters instead of words.
        players: Players of the row's audio.
        note: A remark about the audio.
    """

    id: str
    reference: str
    language: str
    question: str
    answers: list[Answer]
    by_characters: bool = False
    players: list[Player] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class WorstRows:
    """The rows of a group with the worst scores.

    Attributes:
        metric: The metric by which rows are ranked.
        description: How the rows were chosen.
        ids: Ids of the rows, beginning with the worst one.
    """

    metric: str
    description: str
    ids: list[str]


def choose_metric(metrics: Collection[str]) -> str:
    """Return the metric by which the rows of a group are ranked.

    It is a metric of a judge if there is one. Otherwise it is the first metric in the table of metrics that has a panel
    in the bar figure.
    """
    candidates = [metric for metric in MEASURES if metric in metrics]
    candidates = [metric for metric in candidates if metric not in _WITHOUT_ROW_SCORES] or candidates
    judged = [metric for metric in JUDGED if metric in candidates]
    return [*judged, *(metric for metric in candidates if MEASURES[metric].panel), *candidates][0]


def row_scores(metric: str, stats: Sequence[Any]) -> np.ndarray:
    """Return the separate score of each row (R,); NaN if a row has no score.

    CIDEr-D is computed with the document frequencies of all rows. An error rate is infinite if the reference is empty
    and the response is not.

    Args:
        metric: The metric.
        stats: The `stats` of each row.
    """
    measure = MEASURES[metric]
    if measure.formula is not None:
        sums = np.array(stats, dtype=float)
        scores = measure.formula(sums)
        return np.where(np.isnan(scores) & (sums[:, 0] > 0) & (not measure.higher_is_better), np.inf, scores)
    if metric == "cider":
        cider, n_rows = scorer(metric, [dict(enumerate(stats))]), len(stats)
        return np.concatenate([cider(np.eye(1, n_rows, index)) for index in range(n_rows)])  # weight 1 for one row each
    return np.array([score(metric, [row]) for row in stats])


def choose_worst_rows(predictions: Sequence[RunPrediction], count: int) -> WorstRows | None:
    """Return the rows of one group with the worst scores; None if no row has a score.

    Scores are averaged over the systems. Rows with equal scores are sorted by id. Rows with a perfect score are never
    chosen.

    Args:
        predictions: The predictions of the group.
        count: Maximum number of rows to choose.
    """
    metric = choose_metric({row.prediction.metric for row in predictions})
    systems: dict[tuple[str, int], list[Prediction]] = {}
    for row in predictions:
        if row.prediction.metric == metric:
            systems.setdefault((row.arm, row.seed), []).append(row.prediction)
    by_id: dict[str, list[float]] = {}
    for rows in systems.values():
        for row, row_score in zip(rows, row_scores(metric, [row.stats for row in rows]), strict=True):
            if not np.isnan(row_score):
                by_id.setdefault(row.id, []).append(row_score)
    if not by_id:
        return None
    measure = MEASURES[metric]
    means = {row_id: float(np.mean(scores)) for row_id, scores in by_id.items()}
    perfect_score = (1.0 if measure.higher_is_better else 0.0) if measure.scale == 100 else None
    sign = 1 if measure.higher_is_better else -1
    ranked = sorted(
        (row_id for row_id in means if means[row_id] != perfect_score),
        key=lambda row_id: (sign * means[row_id], row_id),
    )
    chosen = ranked[:count]
    description = f"ranked by {measure.label}{', mean over the systems' if len(systems) > 1 else ''}"
    if perfect_score is not None:
        description += f"; {len(ranked)} of {len(means)} rows have less than a perfect score"
    if chosen:
        n_tied, n_shown = (sum(means[row_id] == means[chosen[-1]] for row_id in ids) for ids in (ranked, chosen))
        if n_tied > n_shown:
            description += f"; {n_tied} rows have the same score as the last one shown"
            description += f"; of these, the page shows the first {n_shown} by id"
    return WorstRows(metric, description, chosen)


def build_examples(
    predictions: Sequence[RunPrediction],
    worst: WorstRows,
    rows: Mapping[str, Row],
    names: Mapping[tuple[str, int], str],
    players: Players,
) -> list[Example]:
    """Return the worst rows with their responses and audio.

    Args:
        predictions: The predictions of the group.
        worst: The rows to show.
        rows: The rows that could be found, by id.
        names: Names of the systems by arm and seed.
        players: Collection to which the audio of the page is added.
    """
    by_id: dict[str, list[RunPrediction]] = {row_id: [] for row_id in worst.ids}
    for row in predictions:
        if row.prediction.metric == worst.metric and row.prediction.id in by_id:
            by_id[row.prediction.id].append(row)
    examples = []
    for row_id, responses in by_id.items():
        first, row = responses[0], rows.get(row_id)
        language = first.prediction.language
        clips, note = _audio(first.benchmark, row, players)
        example = Example(
            id=row_id,
            reference=_reference([response.prediction for response in responses], row),
            language=language,
            question=_question(row),
            answers=_answers(responses, worst.metric, names),
            by_characters=worst.metric in RATES and unit_of(worst.metric, language) == "char",
            players=clips,
            note=note,
        )
        examples.append(example)
    return examples


def _reference(predictions: Sequence[Prediction], row: Row | None) -> str:
    """Return the correct answer in the same form as the responses: with control tokens or in natural language."""
    task = tasks.get_task(predictions[0].task)
    have_tags = any(_CONTROL_PREFIX in prediction.hypothesis for prediction in predictions)
    if row is None or not task.answer.has_tags or have_tags:
        return predictions[0].reference
    return task.render(row.labels, tags=False)


def _answers(predictions: Sequence[RunPrediction], metric: str, names: Mapping[tuple[str, int], str]) -> list[Answer]:
    """Return the different responses to a row. Systems with equal responses share an entry."""
    answers: dict[str, Answer] = {}
    unit = MEASURES[metric].unit.removeprefix("in ")
    for arm, seed, _, response in predictions:
        text, system = response.hypothesis, names[arm, seed]
        if text in answers:
            answers[text].systems.append(system)
            continue
        row_score = float(row_scores(metric, [response.stats])[0]) if metric != "cider" else float("nan")
        score_text = f"{format_value(metric, row_score)}\xa0{unit}" if np.isfinite(row_score) else "∞"
        answers[text] = Answer([system], text, "" if np.isnan(row_score) else score_text, _align(response, metric))
    return list(answers.values())


def _align(prediction: Prediction, metric: str) -> list[Edit] | None:
    if metric not in RATES:
        return None
    task, language = tasks.get_task(prediction.task), prediction.language
    response, reference = (task.extract(text, metric) for text in (prediction.hypothesis, prediction.reference))
    return align_texts(response, reference, language, unit=unit_of(metric, language))


def _audio(benchmark: str, row: Row | None, players: Players) -> tuple[list[Player], str]:
    """Return the players of a row, and a remark about its audio."""
    replacement = describe_replaced_audio(benchmark)
    note = f"audio replaced by {replacement}" if replacement else ""
    if row is None:
        return [], note or "the row was not found, so its audio and question are missing"
    return [] if replacement.startswith("silence") else [players.play(clip) for clip in row.clips], note


def _question(row: Row | None) -> str:
    if row is None:
        return ""
    messages = row.labels.get("messages") or []
    questions = [message for message in messages if message["role"] == "user"]
    return chat.message_text(questions[-1]) if questions else str(row.labels.get("question", ""))
