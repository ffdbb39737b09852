"""The worst rows of a group, ranked by the score that each row has by itself in the group's metric."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from auris.metrics.edits import RATES, Edit, align, unit_of
from auris.metrics.measures import MEASURES, display, score, scorer
from auris.metrics.records import Prediction
from auris.results.html.recordings import Player, Players, describe_replaced_audio
from auris.results.runs import RunPrediction
from auris.text import chat, tasks

if TYPE_CHECKING:
    from auris.data.rows import Row

_CONTROL = "<|"  # beginning of a control token
_OVER_ALL_ROWS = ("eer",)  # metrics in which a single row has no score
JUDGED = ("judged_strict", "judged")  # judges read the whole response; other metrics of dialogues search for a word


@dataclass(frozen=True)
class Answer:
    """A response to a row.

    Attributes:
        systems: Names of the systems that gave this response.
        text: The response.
        score: Its score as text; empty if it has none.
        edits: Its alignment with the reference, if words or characters are counted.
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
        by_characters: Whether alignments are by character instead of by word.
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
    """The worst rows of a group.

    Attributes:
        metric: The metric by which rows are ranked.
        description: How they were chosen.
        ids: Ids of the rows, the worst one first.
    """

    metric: str
    description: str
    ids: list[str]


def choose_metric(metrics: Collection[str]) -> str:
    """Return the metric by which the rows of a group are ranked.

    It is a judge's metric if there is one, otherwise the first one in the table of metrics that has a panel.
    """
    candidates = [metric for metric in MEASURES if metric in metrics]
    candidates = [metric for metric in candidates if metric not in _OVER_ALL_ROWS] or candidates
    judged = [metric for metric in JUDGED if metric in candidates]
    return [*judged, *(metric for metric in candidates if MEASURES[metric].panel), *candidates][0]


def row_scores(metric: str, stats: Sequence[Any]) -> np.ndarray:
    """Return the score (R,) of each row by itself; NaN if it has none.

    CIDEr-D weighs words by how many references have them, so its row scores are computed among the other rows. An error
    rate is infinite if the reference is empty and the response is not.
    """
    measure = MEASURES[metric]
    if measure.formula is not None:
        sums = np.array(stats, dtype=float)
        scores = measure.formula(sums)
        return np.where(np.isnan(scores) & (sums[:, 0] > 0) & (not measure.higher_is_better), np.inf, scores)
    if metric == "cider":
        score_rows, count = scorer(metric, [dict(enumerate(stats))]), len(stats)
        return np.concatenate([score_rows(np.eye(1, count, index)) for index in range(count)])
    return np.array([score(metric, [row]) for row in stats])


def choose(predictions: Sequence[RunPrediction], count: int) -> WorstRows | None:
    """Return the rows of one group with the worst scores, averaged over the systems; None if no row has a score.

    Rows with equal scores are sorted by id. Rows with a perfect score are never chosen.
    """
    metric = choose_metric({row.prediction.metric for row in predictions})
    systems: dict[tuple[str, int], list[Prediction]] = {}
    for row in predictions:
        if row.prediction.metric == metric:
            systems.setdefault((row.arm, row.seed), []).append(row.prediction)
    by_id: dict[str, list[float]] = {}
    for rows in systems.values():
        for row, own_score in zip(rows, row_scores(metric, [row.stats for row in rows]), strict=True):
            if not np.isnan(own_score):
                by_id.setdefault(row.id, []).append(own_score)
    if not by_id:
        return None
    measure = MEASURES[metric]
    means = {name: float(np.mean(scores)) for name, scores in by_id.items()}
    best = (1.0 if measure.higher_is_better else 0.0) if measure.scale == 100 else None
    sign = 1 if measure.higher_is_better else -1
    ranked = sorted((name for name in means if means[name] != best), key=lambda name: (sign * means[name], name))
    chosen = ranked[:count]
    description = f"ranked by {measure.label}{', mean of the systems' if len(systems) > 1 else ''}"
    if best is not None:
        description += f"; {len(ranked)} of {len(means)} rows are not perfect"
    if chosen:
        tied, shown = (sum(means[name] == means[chosen[-1]] for name in names) for names in (ranked, chosen))
        if tied > shown:
            description += f"; {tied} rows have the same score as the last one shown"
            description += f"; of these, the page shows the first {shown} by id"
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
        players: The audio of the page.
    """
    by_id: dict[str, list[RunPrediction]] = {name: [] for name in worst.ids}
    for row in predictions:
        if row.prediction.metric == worst.metric and row.prediction.id in by_id:
            by_id[row.prediction.id].append(row)
    examples = []
    for name, responses in by_id.items():
        first, row = responses[0], rows.get(name)
        language = first.prediction.language
        clips, note = _audio(first.benchmark, row, players)
        example = Example(
            id=name,
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
    """Return the correct answer in the form of the responses: with control tokens or in natural language."""
    task = tasks.get_task(predictions[0].task)
    if row is None or not task.answer.has_tags or any(_CONTROL in response.hypothesis for response in predictions):
        return predictions[0].reference
    return task.render(row.labels, tags=False)


def _answers(predictions: Sequence[RunPrediction], metric: str, names: Mapping[tuple[str, int], str]) -> list[Answer]:
    answers: dict[str, Answer] = {}
    unit = MEASURES[metric].unit.removeprefix("in ")
    for arm, seed, _, response in predictions:
        text, system = response.hypothesis, names[arm, seed]
        if text in answers:
            answers[text].systems.append(system)
            continue
        own_score = float(row_scores(metric, [response.stats])[0]) if metric != "cider" else float("nan")
        score_text = f"{display(metric, own_score)}\xa0{unit}" if np.isfinite(own_score) else "∞"
        answers[text] = Answer([system], text, "" if np.isnan(own_score) else score_text, _align(response, metric))
    return list(answers.values())


def _align(prediction: Prediction, metric: str) -> list[Edit] | None:
    if metric not in RATES:
        return None
    task, language = tasks.get_task(prediction.task), prediction.language
    response, reference = (task.extract(text, metric) for text in (prediction.hypothesis, prediction.reference))
    return align(response, reference, language, unit=unit_of(metric, language))


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
