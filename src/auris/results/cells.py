"""Formatting of metrics and scores for tables on the terminal, in Markdown, in notebooks and on HTML pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from auris.metrics.measures import MEASURES, format_value

if TYPE_CHECKING:
    import pandas as pd

Line = Mapping[str, Any]
"""A row of the table that `results.table` returns, by column. That function documents the columns."""


def frame_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a data frame as dictionaries; the names of its columns must be strings."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def direction_arrow(metric: str) -> str:
    """Return an arrow in the direction of better scores."""
    return "↑" if MEASURES[metric].higher_is_better else "↓"


def format_heading(metric: str) -> str:
    """Return the heading of a metric, such as `WER (%) ↓`; the unit is left out if the label contains it."""
    measure = MEASURES[metric]
    unit = "" if measure.unit.split()[-1] in measure.label else f" ({measure.unit})"
    return f"{measure.label}{unit} {direction_arrow(metric)}"


def format_interval(metric: str, value: float, low: float, high: float, sign: str = "") -> str:
    """Return a score and its interval as text, such as `8.9 [7.1, 10.8]`, in the metric's unit.

    With `sign="+"`, for differences, positive numbers also have a sign.
    """
    score_text, low_text, high_text = (format_value(metric, number, sign) for number in (value, low, high))
    return f"{score_text} [{low_text}, {high_text}]"


def format_score(line: Line, column: str) -> str:
    """Return the text of a cell, such as `8.9 [7.1, 10.8] ±0.3`, or `-` if the cell is empty.

    The text consists of the score, its interval, and the standard deviation over seeds if there are several.
    """
    if not is_number(line[column]):
        return "-"
    sign = "+" if " - " in column or column.endswith(" drop") else ""
    deviation = line.get(f"{column} sd")
    deviation_text = f" ±{format_value(line['metric'], deviation)}" if is_number(deviation) else ""
    value, low, high = (line[f"{column}{suffix}"] for suffix in ("", " low", " high"))
    return format_interval(line["metric"], value, low, high, sign) + deviation_text


def format_p(p: float | None) -> str:
    """Return the text of a p value with three decimals; `-` if there is none."""
    if not is_number(p):
        return "-"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def is_number(value: float | None) -> TypeGuard[float]:
    """Return whether a cell contains a number, and neither None nor NaN."""
    return value is not None and not math.isnan(value)
