"""Lengths of rows known from rows like them.

Rows that differ only in their text, their id and the length of their one clip, as nearly all of a large corpus do, are
decoded, checked and worded once for all of them: that is most of the time that a row takes.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path

from auris import audio
from auris.data.rows import Clip, Record, Row, is_plain
from auris.data.samples import Samples
from auris.text import tasks

_MOST = 10_000  # families that are kept: labels that are different in each row would be as many
_SIMPLE = {str, type(None)}  # types of labels that are equal only where they are the same


class Families:
    """What is known of the rows measured so far, as one view sees them."""

    def __init__(self, samples: Samples):
        self._samples = samples
        self._labels = {task.code: tasks.own_labels(task) for task in tasks.TASKS.values() if task.is_text}
        self._beside: dict[Hashable, int] = {}  # tokens of a family's row beside its sound and its text
        self._span = lru_cache(maxsize=100_000)(lambda seconds: samples.spans(_heard(seconds))[0])

    def find(self, record: Record) -> Hashable | None:
        """What the rows of this one's family have in common. None for a row that has to be looked at by itself: its
        task needs more than a text, the length of its clip is not stated, or anything about it is odd."""
        fields = record.fields
        if fields is None or record.problem is not None or len(record.sounds) > 1 or not is_plain(fields):
            return None
        get = fields.get
        path, seconds, text, task = get("audio"), get("duration"), get("text"), get("task")
        if type(path) is not str or type(text) is not str or type(task) is not str or type(seconds) not in (float, int):
            return None
        labels = self._labels.get(task)
        if labels is None or not path or not text.strip() or "offset" in fields:
            return None
        if not 0 < seconds <= audio.MAX_SAMPLES / audio.SAMPLE_RATE:
            return None
        family = (task, *map(get, labels))
        return family if _SIMPLE.issuperset(map(type, family)) else None

    def tokens(self, record: Record, family: Hashable) -> int:
        """Tokens of a row's longest wording, 0 where its family is not known yet or nothing of its clip is heard."""
        beside = self._beside.get(family)
        span = 0 if beside is None else self._span(record.fields["duration"])
        return span and span + beside + self._samples.tokenizer.count(record.fields["text"])

    def learn(self, family: Hashable, row: Row) -> None:
        """Take in a row of a family that can be used."""
        beside = self._samples.beside(row)
        if beside is not None and len(self._beside) < _MOST:
            self._beside[family] = beside


def _heard(seconds: float) -> Row:
    return Row("", (Clip(Path(), duration=seconds),))
