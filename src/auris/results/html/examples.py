"""The rows that a task was answered worst on, by the score that each has in the task's own metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from auris.data.rows import Row
from auris.metrics import edits
from auris.metrics.measures import MEASURES, display, score, scorer
from auris.results.html.recordings import Player, Players, heard
from auris.text import chat, tasks

if TYPE_CHECKING:
    import pandas as pd

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


def own_metric(metrics: Sequence[str]) -> str:
    """Of a group's metrics the one that its rows are ranked by: a judge's where there is one, or else the first that is
    no by-product."""
    known = [metric for metric in MEASURES if metric in set(metrics)]
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


def choose(lines: pd.DataFrame, count: int) -> Worst | None:
    """The rows of one group with the lowest score, the mean over its systems; of equal ones those whose id comes first.

    None where no row has a score of its own.
    """
    metric = own_metric(lines["metric"].unique())
    lines = lines[lines["metric"] == metric]
    known = MEASURES[metric]
    parts = []
    for _, of_system in lines.groupby(["arm", "seed"]):
        parts.append(of_system.assign(own=row_scores(metric, of_system["stats"].tolist())))
    import pandas as pd

    own = pd.concat(parts).groupby("id")["own"].mean().dropna()
    if own.empty:
        return None
    best = {True: 1.0, False: 0.0}[known.higher_is_better] if known.scale == 100 else None
    faulty = own if best is None else own[own != best]
    ranked = faulty.reset_index().sort_values(["own", "id"], ascending=[known.higher_is_better, True])
    chosen = ranked["id"].head(count).tolist()
    several = lines.groupby(["arm", "seed"]).ngroups > 1
    said = f"ranked by {known.label}{', mean of the systems' if several else ''}"
    if best is not None:
        said += f"; {len(faulty)} of {len(own)} rows are not perfect"
    if len(chosen) < len(ranked):
        last = ranked["own"].iloc[len(chosen) - 1] if chosen else None
        tied, shown = int((ranked["own"] == last).sum()), int((ranked["own"].head(len(chosen)) == last).sum())
        if tied > shown:
            said += f"; {tied} rows share the score of the last one shown, of them the first {shown} by id"
    return Worst(metric, said, chosen)


def show(
    lines: pd.DataFrame, worst: Worst, rows: Mapping[str, Row], names: Mapping[tuple[str, int], str], players: Players
) -> list[Example]:
    """The chosen rows as a page has them. `names`: of systems, by arm and seed."""
    found = []
    lines = lines[(lines["metric"] == worst.metric) & lines["id"].isin(worst.ids)]
    by_id, order = dict(list(lines.groupby("id"))), list(names)
    for name in worst.ids:
        of_row = sorted(by_id[name].to_dict("records"), key=lambda line: order.index((line["arm"], line["seed"])))
        first, row = of_row[0], rows.get(name)
        by_characters = worst.metric in edits.RATES and edits.unit_of(worst.metric, first["language"]) == "char"
        facts = {"by_characters": by_characters, **_sound(first, row, players)}
        question = _question(row)
        answers = _answers(of_row, worst.metric, names)
        found.append(Example(name, _reference(of_row, row), first["language"], question, answers, **facts))
    return found


def _reference(lines: Sequence[Mapping[str, Any]], row: Row | None) -> str:
    """What is true, in the form in which the systems answer: control tokens, or natural language."""
    task = tasks.find(lines[0]["task"])
    if row is None or not task.answer.tagged or any(_CONTROL in _text(line["hypothesis"]) for line in lines):
        return _text(lines[0]["reference"])
    return task.render(row.labels, tags=False)


def _answers(lines: Sequence[Mapping[str, Any]], metric: str, names: Mapping[tuple[str, int], str]) -> list[Answer]:
    said: dict[str, Answer] = {}
    for line in lines:
        text, system = _text(line["hypothesis"]), names[line["arm"], line["seed"]]
        if text in said:
            said[text].systems.append(system)
            continue
        own = float(row_scores(metric, [line["stats"]])[0]) if metric != "cider" else float("nan")
        unit_of = MEASURES[metric].unit.removeprefix("in ")
        shown = "" if np.isnan(own) else f"{display(metric, own)}\xa0{unit_of}" if np.isfinite(own) else "∞"
        said[text] = Answer([system], text, shown, _align(line, metric))
    return list(said.values())


def _align(line: Mapping[str, Any], metric: str) -> list[edits.Edit] | None:
    if metric not in edits.RATES:
        return None
    compared = compared_by(line["task"], metric)
    texts = (compared(line["hypothesis"]), compared(line["reference"]))
    return edits.align(*texts, line["language"], unit=edits.unit_of(metric, line["language"]))


def compared_by(task: str, metric: str) -> Any:
    """What of an answer to a task a metric compares."""
    return partial(tasks.find(task).compared, metric=metric)


def _sound(line: Mapping[str, Any], row: Row | None, players: Players) -> dict[str, Any]:
    changed = heard(line["benchmark"])
    note = f"what the model heard: {changed}" if changed else ""
    if row is None:
        return {"note": note or "its row was not found again, so neither its sound nor its question"}
    if changed.startswith("silence"):
        return {"note": note}
    return {"players": [players.play(clip) for clip in row.clips], "note": note}


def _question(row: Row | None) -> str:
    if row is None:
        return ""
    messages = row.labels.get("messages") or []
    asked = [message for message in messages if message["role"] == "user"]
    return chat.text_of(asked[-1]) if asked else str(row.labels.get("question", ""))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)
