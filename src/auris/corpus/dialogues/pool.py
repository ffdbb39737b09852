"""The rows that the dialogues of one split are made from, and their labels as answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from auris.corpus.dialogues import wordings
from auris.corpus.dialogues.augmentation import Written
from auris.corpus.draws import Rng, pick
from auris.corpus.scenes import SOUND_PHRASES
from auris.data.rows import Row
from auris.errors import UserError
from auris.text.tasks import LANGUAGES

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Pool:
    """Material for the dialogues of one split: its rows by task and label, task weights, questions by a model."""

    split: str
    rows: Mapping[str, Mapping[str, Sequence[Row]]]
    task_weights: Weights
    written: Sequence[Written] = ()

    @classmethod
    def of(cls, split: str, rows: Iterable[Row], **rest: Any) -> Pool:
        """A pool of the rows that can be used: one whole clip each, of a task that is asked about."""
        found: dict[str, dict[str, list[Row]]] = {}
        for row in filter(usable, rows):
            found.setdefault(row.labels["task"], {}).setdefault(answer(row), []).append(row)
        return cls(split, found, **rest)

    @cached_property
    def groups(self) -> dict[tuple[str, str], list[str]]:
        """The labels that rows of one group have, sorted."""
        groups: dict[tuple[str, str], set[str]] = {}
        for labels in self.rows.values():
            for label, rows in labels.items():
                for row in rows:
                    groups.setdefault(_group(row), set()).add(label)
        return {group: sorted(labels) for group, labels in groups.items()}

    def some(self, kind: str, tasks: Iterable[str], labels: int = 1) -> list[str]:
        """Those of `tasks` that have rows with at least `labels` different labels. Raises ValueError if none has."""
        known = [task for task in tasks if len(self.rows.get(task, ())) >= labels]
        if not known:
            raise UserError(
                f"the corpus's {self.split} split has no rows that dialogues of the kind {kind!r} can be made from "
                f"({labels} or more labels of {', '.join(tasks)}); set mix.{kind}=0"
            )
        return known

    def draw(self, rng: Rng, task: str, label: str | None = None) -> Row:
        """A row of `task`, its label with equal chance."""
        return pick(rng, self.rows[task][label or pick(rng, self.rows[task])])

    def other(self, rng: Rng, row: Row) -> str | None:
        """A label that a row like `row` could have had."""
        labels = self.groups[_group(row)]
        if len(labels) < 2:
            return None
        place = labels.index(answer(row))
        return labels[(place + int(rng.integers(1, len(labels)))) % len(labels)]


def usable(row: Row) -> bool:
    """Whether dialogues can be made about a row."""
    whole = len(row.clips) == 1 and row.clips[0].offset is None
    return row.problem is None and whole and row.labels["task"] in wordings.SENTENCES


def answer(row: Row) -> str:
    """The label of a task row as an answer says it."""
    return LANGUAGES[row.labels["language"]] if row.labels["task"] == "lid" else row.labels["text"]


_GROUPED_BY = {"asr": "language", "s2tt": "target_language", "aqa": "question"}


def _group(row: Row) -> tuple[str, str]:
    """Return the task of a row and its part of the task: rows of one group could have had each other's labels."""
    task = row.labels["task"]
    part = row.labels[_GROUPED_BY[task]] if task in _GROUPED_BY else ""
    return task, part.split()[0] if task == "aqa" else part  # Can ..., How many ..., What ...


def name(task: str, label: str) -> str:
    """A label as one speaks of it: 'a dog', 'the drum', 'the keyword stop'."""
    return SOUND_PHRASES.get(label, label) if task == "sec" else wordings.NAMED.get(task, "{}").format(label)


def draw(rng: Rng, weights: Weights) -> str:
    """A key of `weights`, by its weight."""
    values = np.array(list(weights.values()), dtype=float)
    return str(rng.choice(list(weights), p=values / values.sum()))
