"""How metrics and scores are written in every table: on the terminal, in Markdown, in notebooks and on pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from auris.metrics.measures import MEASURES, display

Line = Mapping[str, Any]
"""A row of `results.table`: its columns are documented there, and depend on the arms."""


def arrow(metric: str) -> str:
    return "↑" if MEASURES[metric].higher_is_better else "↓"


def heading(metric: str) -> str:
    """Return `WER (%) ↓`: label, unit unless the label has it, and the direction of better scores."""
    known = MEASURES[metric]
    unit = "" if known.unit.split()[-1] in known.label else f" ({known.unit})"
    return f"{known.label}{unit} {arrow(metric)}"


def with_interval(metric: str, value: float, low: float, high: float, sign: str = "") -> str:
    """Return `8.9 [7.1, 10.8]`, in the unit of the metric; with `sign="+"` for differences."""
    value, low, high = (display(metric, number, sign) for number in (value, low, high))
    return f"{value} [{low}, {high}]"


def score(line: Line, column: str) -> str:
    """Return `8.9 [7.1, 10.8] ±0.3`: a column with its interval and its deviation over seeds; `-` if it is empty."""
    if not is_number(line[column]):
        return "-"
    sign = "+" if " - " in column or column.endswith(" drop") else ""
    spread = line.get(f"{column} sd")
    seeds = f" ±{display(line['metric'], spread)}" if is_number(spread) else ""
    return with_interval(line["metric"], *(line[f"{column}{part}"] for part in ("", " low", " high")), sign) + seeds


def p_value(p: float | None) -> str:
    if not is_number(p):
        return "-"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)
