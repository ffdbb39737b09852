"""Corpus rows from which the dialogues of one split are made. The text of their labels serves as answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from auris.corpus.dialogues import wordings
from auris.corpus.dialogues.augmentation import WrittenQuestion
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
        task_weights: Weights of the tasks in dialogues of the kinds `demonstration` and `turns`.
        written_questions: Questions written by a language model.
    """

    split: str
    rows: Mapping[str, Mapping[str, Sequence[Row]]]
    task_weights: Weights
    written_questions: Sequence[WrittenQuestion] = ()

    @classmethod
    def from_rows(cls, split: str, rows: Iterable[Row], **attributes: Any) -> Pool:
        """Return a pool of the usable rows among `rows`; `attributes` are its other attributes."""
        by_label: dict[str, dict[str, list[Row]]] = {}
        for row in filter(is_usable, rows):
            by_label.setdefault(row.labels["task"], {}).setdefault(answer_text(row), []).append(row)
        return cls(split, by_label, **attributes)

    @cached_property
    def labels_by_group(self) -> dict[tuple[str, str], list[str]]:
        """Labels of each group of rows, sorted. Within a group, every label is a plausible answer for every row."""
        groups: dict[tuple[str, str], set[str]] = {}
        for labels in self.rows.values():
            for label, rows in labels.items():
                for row in rows:
                    groups.setdefault(_group(row), set()).add(label)
        return {group: sorted(labels) for group, labels in groups.items()}

    def select_tasks(self, kind: str, tasks: Iterable[str], min_labels: int = 1) -> list[str]:
        """Return the tasks among `tasks` that have rows with at least `min_labels` different labels.

        Raises:
            UserError: No task has enough labels; the message names `kind`, the kind of dialogue.
        """
        available = [task for task in tasks if len(self.rows.get(task, ())) >= min_labels]
        if not available:
            raise UserError(
                f"dialogues of the kind {kind!r} need rows of one task with {min_labels} or more different labels "
                f"(possible tasks: {', '.join(tasks)}), but the corpus's {self.split} split has none; set "
                f"dialogues.mix.{kind}=0 to leave these dialogues out"
            )
        return available

    def draw_row(self, rng: Rng, task: str, label: str | None = None) -> Row:
        """Draw a row of `task` with the label `label`; None: draw the label too, all with equal probability."""
        return pick(rng, self.rows[task][label or pick(rng, self.rows[task])])

    def draw_wrong_label(self, rng: Rng, row: Row) -> str | None:
        """Draw a wrong label for a row from the labels of the row's group; None if the group has no other label."""
        labels = self.labels_by_group[_group(row)]
        if len(labels) < 2:
            return None
        index = labels.index(answer_text(row))
        return labels[(index + int(rng.integers(1, len(labels)))) % len(labels)]


def is_usable(row: Row) -> bool:
    """Return whether dialogues can be made about a row.

    The row needs one whole clip, and a task that has a sentence for answers in `wordings.yaml`.
    """
    has_whole_clip = len(row.clips) == 1 and row.clips[0].offset is None
    return row.problem is None and has_whole_clip and row.labels["task"] in wordings.ANSWER_SENTENCES


def answer_text(row: Row) -> str:
    """Return the label of a task row in the form in which it occurs in answers."""
    return LANGUAGES[row.labels["language"]] if row.labels["task"] == "lid" else row.labels["text"]


# For some tasks, a field of the row on which the possible answers depend.
_GROUPING_FIELDS = {"asr": "language", "s2tt": "target_language", "aqa": "question"}


def _group(row: Row) -> tuple[str, str]:
    """Return the group of a row: its task and, for some tasks, a value on which the possible answers depend.

    The value is the language of the text, or the first word of the question (Can, How, What).
    """
    task = row.labels["task"]
    value = row.labels[_GROUPING_FIELDS[task]] if task in _GROUPING_FIELDS else ""
    return task, value.split()[0] if task == "aqa" else value


def noun_phrase(task: str, label: str) -> str:
    """Return a label as a noun phrase, such as 'a dog', 'the drum' or 'the keyword stop'."""
    return SOUND_PHRASES.get(label, label) if task == "sec" else wordings.LABEL_PHRASES.get(task, "{}").format(label)


def draw_key(rng: Rng, weights: Weights) -> str:
    """Draw a key of `weights` with a probability proportional to its weight."""
    values = np.array(list(weights.values()), dtype=float)
    return str(rng.choice(list(weights), p=values / values.sum()))
