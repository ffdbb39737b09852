"""Text of metrics and scores in tables: on the terminal, in Markdown, in notebooks and on HTML pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from auris.metrics.measures import MEASURES, display

if TYPE_CHECKING:
    import pandas as pd

Line = Mapping[str, Any]
"""A row of `results.table` by column. The columns depend on the arms and are documented there."""


def lines_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a data frame whose columns are strings."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def arrow(metric: str) -> str:
    """Return the direction of better scores."""
    return "↑" if MEASURES[metric].higher_is_better else "↓"


def heading(metric: str) -> str:
    """Return `WER (%) ↓`: the label, the unit unless the label contains it, and the direction of better scores."""
    measure = MEASURES[metric]
    unit = "" if measure.unit.split()[-1] in measure.label else f" ({measure.unit})"
    return f"{measure.label}{unit} {arrow(metric)}"


def with_interval(metric: str, value: float, low: float, high: float, sign: str = "") -> str:
    """Return `8.9 [7.1, 10.8]`, in the unit of the metric; with `sign="+"` for differences."""
    texts = [display(metric, number, sign) for number in (value, low, high)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def score(line: Line, column: str) -> str:
    """Return `8.9 [7.1, 10.8] ±0.3`: a score, its interval and its deviation over seeds; `-` if the cell is empty."""
    if not is_number(line[column]):
        return "-"
    sign = "+" if " - " in column or column.endswith(" drop") else ""
    spread = line.get(f"{column} sd")
    seeds = f" ±{display(line['metric'], spread)}" if is_number(spread) else ""
    value, low, high = (line[f"{column}{part}"] for part in ("", " low", " high"))
    return with_interval(line["metric"], value, low, high, sign) + seeds


def p_value(p: float | None) -> str:
    """Return a p value with three decimals; `-` if there is none."""
    if not is_number(p):
        return "-"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def is_number(value: float | None) -> TypeGuard[float]:
    """Return whether a cell has a value: neither None nor NaN."""
    return value is not None and not math.isnan(value)
