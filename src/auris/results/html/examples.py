"""The rows that a task was answered worst on, by the score that each has in the task's own metric."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from auris.metrics import edits
from auris.metrics.measures import MEASURES, display, score, scorer
from auris.metrics.records import Prediction
from auris.results.html.recordings import Player, Players, heard
from auris.results.runs import Scored
from auris.text import chat, tasks

if TYPE_CHECKING:
    from auris.data.rows import Row

_CONTROL = "<|"  # opens a control token
_OF_ALL = ("eer",)  # no row has a score by itself
JUDGED = ("judged_strict", "judged")  # read the whole answer, where other metrics of dialogues look for a word


@dataclass(frozen=True)
class Answer:
    """What systems said to a row: the names of those that said the same, its score, and its alignment if it has one."""

    systems: list[str]
    text: str
    score: str
    edits: list[edits.Edit] | None = None


@dataclass(frozen=True)
class Example:
    """`by_characters`: its alignments are of characters, not of words."""

    id: str
    reference: str
    language: str
    question: str
    answers: list[Answer]
    by_characters: bool = False
    players: list[Player] = field(default_factory=list)
    note: str = ""  # about its sound


@dataclass(frozen=True)
class Worst:
    """The worst rows of a group, and in words how they were chosen."""

    metric: str
    said: str
    ids: list[str]


def own_metric(metrics: Collection[str]) -> str:
    """Of a group's metrics the one that its rows are ranked by: a judge's where there is one, or else the first that is
    no by-product."""
    known = [metric for metric in MEASURES if metric in metrics]
    known = [metric for metric in known if metric not in _OF_ALL] or known
    judged = [metric for metric in JUDGED if metric in known]
    return [*judged, *(metric for metric in known if MEASURES[metric].panel), *known][0]


def row_scores(metric: str, stats: Sequence[Any]) -> np.ndarray:
    """(R,) the score of each row by itself; NaN where it has none. CIDEr-D's among the others, as words that many
    references share weigh little.

    An error rate over a reference of no words is infinite where something was said.
    """
    known = MEASURES[metric]
    if known.formula is not None:
        sums = np.array(stats, dtype=float)
        found = known.formula(sums)
        return np.where(np.isnan(found) & (sums[:, 0] > 0) & (not known.higher_is_better), np.inf, found)
    if metric == "cider":
        of, count = scorer(metric, [dict(enumerate(stats))]), len(stats)
        return np.concatenate([of(np.eye(1, count, number)) for number in range(count)])
    return np.array([score(metric, [of_row]) for of_row in stats])


def choose(scored: Sequence[Scored], count: int) -> Worst | None:
    """The rows of one group with the lowest score, the mean over its systems; of equal ones those whose id comes first.

    None where no row has a score of its own.
    """
    metric = own_metric({one.prediction.metric for one in scored})
    systems: dict[tuple[str, int], list[Prediction]] = {}
    for one in scored:
        if one.prediction.metric == metric:
            systems.setdefault((one.arm, one.seed), []).append(one.prediction)
    singles: dict[str, list[float]] = {}
    for predictions in systems.values():
        for one, own in zip(predictions, row_scores(metric, [one.stats for one in predictions]), strict=True):
            if not np.isnan(own):
                singles.setdefault(one.id, []).append(own)
    if not singles:
        return None
    known = MEASURES[metric]
    own = {name: float(np.mean(of_row)) for name, of_row in singles.items()}
    best = {True: 1.0, False: 0.0}[known.higher_is_better] if known.scale == 100 else None
    sign = 1 if known.higher_is_better else -1
    ranked = sorted((name for name in own if own[name] != best), key=lambda name: (sign * own[name], name))
    chosen = ranked[:count]
    said = f"ranked by {known.label}{', mean of the systems' if len(systems) > 1 else ''}"
    if best is not None:
        said += f"; {len(ranked)} of {len(own)} rows are not perfect"
    if chosen:
        tied, shown = (sum(own[name] == own[chosen[-1]] for name in names) for names in (ranked, chosen))
        if tied > shown:
            said += f"; {tied} rows share the score of the last one shown, of them the first {shown} by id"
    return Worst(metric, said, chosen)


def show(
    scored: Sequence[Scored],
    worst: Worst,
    rows: Mapping[str, Row],
    names: Mapping[tuple[str, int], str],
    players: Players,
) -> list[Example]:
    """The chosen rows as a page has them. `names`: of systems, by arm and seed."""
    by_id: dict[str, list[Scored]] = {name: [] for name in worst.ids}
    for one in scored:
        if one.prediction.metric == worst.metric and one.prediction.id in by_id:
            by_id[one.prediction.id].append(one)
    found = []
    for name, of_row in by_id.items():
        first, row = of_row[0], rows.get(name)
        clips, note = _sound(first.benchmark, row, players)
        found.append(
            Example(
                id=name,
                reference=_reference([one.prediction for one in of_row], row),
                language=first.prediction.language,
                question=_question(row),
                answers=_answers(of_row, worst.metric, names),
                by_characters=worst.metric in edits.RATES
                and edits.unit_of(worst.metric, first.prediction.language) == "char",
                players=clips,
                note=note,
            )
        )
    return found


def _reference(predictions: Sequence[Prediction], row: Row | None) -> str:
    """What is true, in the form in which the systems answer: control tokens, or natural language."""
    task = tasks.find(predictions[0].task)
    if row is None or not task.answer.has_tags or any(_CONTROL in str(one.hypothesis) for one in predictions):
        return str(predictions[0].reference)
    return task.render(row.labels, tags=False)


def _answers(scored: Sequence[Scored], metric: str, names: Mapping[tuple[str, int], str]) -> list[Answer]:
    said: dict[str, Answer] = {}
    unit_of = MEASURES[metric].unit.removeprefix("in ")
    for arm, seed, _, one in scored:
        text, system = str(one.hypothesis), names[arm, seed]
        if text in said:
            said[text].systems.append(system)
            continue
        own = float(row_scores(metric, [one.stats])[0]) if metric != "cider" else float("nan")
        shown = "" if np.isnan(own) else f"{display(metric, own)}\xa0{unit_of}" if np.isfinite(own) else "∞"
        said[text] = Answer([system], text, shown, _align(one, metric))
    return list(said.values())


def _align(one: Prediction, metric: str) -> list[edits.Edit] | None:
    if metric not in edits.RATES:
        return None
    texts = (tasks.find(one.task).extract(text, metric) for text in (one.hypothesis, one.reference))
    return edits.align(*texts, one.language, unit=edits.unit_of(metric, one.language))


def _sound(benchmark: str, row: Row | None, players: Players) -> tuple[list[Player], str]:
    """The players of a row, and what is to be said of its sound."""
    changed = heard(benchmark)
    note = f"what the model heard: {changed}" if changed else ""
    if row is None:
        return [], note or "its row was not found again, so neither its sound nor its question"
    return [] if changed.startswith("silence") else [players.play(clip) for clip in row.clips], note


def _question(row: Row | None) -> str:
    if row is None:
        return ""
    messages = row.labels.get("messages") or []
    asked = [message for message in messages if message["role"] == "user"]
    return chat.text_of(asked[-1]) if asked else str(row.labels.get("question", ""))
