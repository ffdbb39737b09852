"""Which classes were taken for which: the counts behind an accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from auris.metrics.measures import MEASURES
from auris.metrics.normalize import canonical
from auris.metrics.records import Prediction
from auris.text import tasks

METRICS = ("accuracy", "instrument_accuracy", "intent_accuracy")
MOST = 20  # classes drawn: more are no longer read
OTHER = "anything else"


@dataclass(frozen=True)
class Matrix:
    """`counts[true][said]`, of the rows of `classes`; the last of `said` is every other answer. `note`: what is not
    drawn."""

    system: str
    metric: str
    classes: list[str]
    counts: list[list[int]]
    note: str = ""

    @property
    def title(self) -> str:
        return f"{self.system}, {MEASURES[self.metric].label}"

    @property
    def columns(self) -> list[str]:
        return [*self.classes, OTHER]

    def share(self, true: int, said: int) -> float:
        """Of the rows of a class, how many were answered so."""
        total = sum(self.counts[true])
        return self.counts[true][said] / total if total else 0.0


def matrix(predictions: Iterable[Prediction], system: str, metric: str) -> Matrix:
    """The answers of one arm, its seeds together, to one group. Of more classes than MOST, those with the most rows."""
    pairs: Counter[tuple[str, str]] = Counter()
    for one in predictions:
        if one.metric == metric:
            true, said = (
                _name(tasks.find(one.task).compared(text, metric)) for text in (one.reference, one.hypothesis)
            )
            pairs[true, said] += 1
    sizes: Counter[str] = Counter()
    for (true, _), count in pairs.items():
        sizes[true] += count
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:MOST]
    classes = sorted(largest)
    columns = {name: number for number, name in enumerate(classes)}
    counts = [[0] * (len(classes) + 1) for _ in classes]
    for (true, said), count in pairs.items():
        if true in columns:
            counts[columns[true]][columns.get(said, len(classes))] += count
    left = len(sizes) - len(classes)
    rows = sizes.total() - sum(map(sum, counts))
    note = f"the {MOST} classes with the most rows; {left} more, with {rows} rows, are not drawn" if left else ""
    return Matrix(system, metric, classes, counts, note)


def _name(compared: Any) -> str:
    """A class as accuracies compare it; of a request its intent."""
    if isinstance(compared, dict):
        compared = compared.get("intent")
    return canonical(compared) if isinstance(compared, str) else "unreadable"
