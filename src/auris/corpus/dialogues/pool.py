"""Corpus rows from which the dialogues of one split are made, and their labels as answers."""

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
    """Material for the dialogues of one split.

    Attributes:
        split: Name of the split.
        rows: Corpus rows by task and label.
        task_weights: Weights of the tasks of demonstrations.
        written: Questions written by a language model.
    """

    split: str
    rows: Mapping[str, Mapping[str, Sequence[Row]]]
    task_weights: Weights
    written: Sequence[Written] = ()

    @classmethod
    def of(cls, split: str, rows: Iterable[Row], **rest: Any) -> Pool:
        """Return a pool of the usable rows among `rows`."""
        by_label: dict[str, dict[str, list[Row]]] = {}
        for row in filter(is_usable, rows):
            by_label.setdefault(row.labels["task"], {}).setdefault(answer(row), []).append(row)
        return cls(split, by_label, **rest)

    @cached_property
    def groups(self) -> dict[tuple[str, str], list[str]]:
        """Sorted labels of each group of rows that could have had each other's labels."""
        groups: dict[tuple[str, str], set[str]] = {}
        for labels in self.rows.values():
            for label, rows in labels.items():
                for row in rows:
                    groups.setdefault(_group(row), set()).add(label)
        return {group: sorted(labels) for group, labels in groups.items()}

    def select_tasks(self, kind: str, tasks: Iterable[str], labels: int = 1) -> list[str]:
        """Return the tasks among `tasks` that have rows with at least `labels` different labels.

        Raises:
            UserError: No task has; the message names the kind of dialogue that needs them.
        """
        available = [task for task in tasks if len(self.rows.get(task, ())) >= labels]
        if not available:
            raise UserError(
                f"the corpus's {self.split} split has no rows for dialogues of the kind {kind!r}, which need "
                f"{labels} or more labels of one of {', '.join(tasks)}; set dialogues.mix.{kind}=0"
            )
        return available

    def draw(self, rng: Rng, task: str, label: str | None = None) -> Row:
        """Draw a row of `task`; without `label`, every label has the same probability."""
        return pick(rng, self.rows[task][label or pick(rng, self.rows[task])])

    def draw_wrong_label(self, rng: Rng, row: Row) -> str | None:
        """Draw a label of the row's group that is not its own; None if there is no other."""
        labels = self.groups[_group(row)]
        if len(labels) < 2:
            return None
        index = labels.index(answer(row))
        return labels[(index + int(rng.integers(1, len(labels)))) % len(labels)]


def is_usable(row: Row) -> bool:
    """Return whether dialogues can be made about a row: one whole clip, and a task with a sentence for its answer."""
    has_whole_clip = len(row.clips) == 1 and row.clips[0].offset is None
    return row.problem is None and has_whole_clip and row.labels["task"] in wordings.SENTENCES


def answer(row: Row) -> str:
    """Return the label of a task row as it occurs in an answer."""
    return LANGUAGES[row.labels["language"]] if row.labels["task"] == "lid" else row.labels["text"]


_GROUPED_BY = {"asr": "language", "s2tt": "target_language", "aqa": "question"}


def _group(row: Row) -> tuple[str, str]:
    """Return the task of a row and its part of the task: rows of one group could have had each other's labels."""
    task = row.labels["task"]
    part = row.labels[_GROUPED_BY[task]] if task in _GROUPED_BY else ""
    return task, part.split()[0] if task == "aqa" else part  # a question's first word: Can, How, What


def name(task: str, label: str) -> str:
    """Return a label as a noun phrase: 'a dog', 'the drum', 'the keyword stop'."""
    return SOUND_PHRASES.get(label, label) if task == "sec" else wordings.NAMED.get(task, "{}").format(label)


def draw(rng: Rng, weights: Weights) -> str:
    """Draw a key of `weights` with a probability proportional to its weight."""
    values = np.array(list(weights.values()), dtype=float)
    return str(rng.choice(list(weights), p=values / values.sum()))
