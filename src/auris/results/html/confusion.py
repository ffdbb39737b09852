"""Which classes were taken for which: the counts behind an accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

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
    """Return the answers of one arm, its seeds together, to one group; the MOST classes with the most rows."""
    pairs = [
        [_name(tasks.find(one.task).extract(text, metric)) for text in (one.reference, one.hypothesis)]
        for one in predictions
        if one.metric == metric
    ]
    true, said = (pd.Series(side) for side in zip(*pairs, strict=True))
    sizes = true.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    classes = sorted(sizes.index[:MOST])
    table = pd.crosstab(true, said.where(said.isin(classes), OTHER))
    counts = table.reindex(index=classes, columns=[*classes, OTHER], fill_value=0).to_numpy()
    left, rows = len(sizes) - len(classes), len(pairs) - counts.sum()
    note = f"the {MOST} classes with the most rows; {left} more, with {rows} rows, are not drawn" if left else ""
    return Matrix(system, metric, classes, counts.tolist(), note)


def _name(compared: Any) -> str:
    """A class as accuracies compare it; of a request its intent."""
    if isinstance(compared, dict):
        compared = compared.get("intent")
    return canonical(compared) if isinstance(compared, str) else "unreadable"
