"""Colours and matplotlib settings that all figures of the project share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from auris.errors import UserError

# Okabe and Ito's colours, which colour-blind readers can tell apart (jfly.uni-koeln.de/color), grey for their yellow.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#000000")
GREY = "#555555"
STYLE = Path(__file__).with_name("figures.mplstyle")  # for `matplotlib.style.context`
# Of a line of text below a figure, which says what it shows: arguments of `Figure.supxlabel`.
CAPTION = {"x": 0.01, "ha": "left", "fontsize": 7.5, "color": GREY}


def assign_colours(names: Sequence[str], advice: str) -> dict[str, str]:
    """Return a colour for each name.

    Raises:
        UserError: there are more names than colours; the message ends with `advice`.
    """
    if len(names) > len(COLOURS):
        raise UserError(f"a figure tells at most {len(COLOURS)} systems apart, got {len(names)}; {advice}")
    return dict(zip(names, COLOURS, strict=False))
