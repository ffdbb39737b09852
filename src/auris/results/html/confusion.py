"""Confusion matrices: how often the rows of each true class got which response."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from auris.metrics.measures import MEASURES
from auris.metrics.normalize import canonical_form
from auris.metrics.records import Prediction
from auris.text import tasks

METRICS = ("accuracy", "instrument_accuracy", "intent_accuracy")  # metrics for which matrices are drawn
MAX_CLASSES = 20  # more classes would be illegible
OTHER = "anything else"  # heading of the column for responses that are not among the classes


@dataclass(frozen=True)
class Matrix:
    """Confusion matrix of one arm.

    Attributes:
        arm: Name of the arm.
        metric: The metric, which is an accuracy.
        classes: The true classes.
        counts: Number of rows by true class and response. The responses are the classes, followed by OTHER.
        note: Remark about classes that are left out.
    """

    arm: str
    metric: str
    classes: list[str]
    counts: list[list[int]]
    note: str = ""

    @property
    def title(self) -> str:
        """The caption of the matrix."""
        return f"{self.arm}, {MEASURES[self.metric].label}"

    @property
    def columns(self) -> list[str]:
        """The headings of the columns."""
        return [*self.classes, OTHER]

    def share(self, true: int, predicted: int) -> float:
        """Return the share of the rows of class `true` whose response is `predicted`.

        Both are indices into `columns`.
        """
        total = sum(self.counts[true])
        return self.counts[true][predicted] / total if total else 0.0


def build_matrix(predictions: Iterable[Prediction], arm: str, metric: str) -> Matrix:
    """Return the confusion matrix of one arm in one group of rows, over all seeds, for the most frequent classes."""
    pairs = [
        [_class_name(tasks.get_task(row.task).extract(text, metric)) for text in (row.reference, row.hypothesis)]
        for row in predictions
        if row.metric == metric
    ]
    true, predicted = (pd.Series(side) for side in zip(*pairs, strict=True))
    sizes = true.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    classes = sorted(sizes.index[:MAX_CLASSES])
    table = pd.crosstab(true, predicted.where(predicted.isin(classes), OTHER))
    counts = table.reindex(index=classes, columns=[*classes, OTHER], fill_value=0).to_numpy()
    n_classes_left_out, n_rows_left_out = len(sizes) - len(classes), len(pairs) - counts.sum()
    note = ""
    if n_classes_left_out:
        note = (
            f"the {MAX_CLASSES} most frequent classes; {n_classes_left_out} more classes with {n_rows_left_out} rows "
            "are not shown"
        )
    return Matrix(arm, metric, classes, counts.tolist(), note)


def _class_name(answer: Any) -> str:
    """Return the canonical name of the class that a parsed answer states; for a spoken request, the intent."""
    if isinstance(answer, dict):
        answer = answer.get("intent")
    return canonical_form(answer) if isinstance(answer, str) else "unreadable"
