"""Colours and matplotlib settings of all figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from auris.errors import UserError

# Colours of Okabe and Ito for colour-blind readers (jfly.uni-koeln.de/color), with grey instead of yellow.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#000000")
GREY = "#555555"
STYLE = Path(__file__).with_name("figures.mplstyle")  # for `matplotlib.style.context`
# Arguments of `Figure.supxlabel` for the caption below a figure.
CAPTION = {"x": 0.01, "ha": "left", "fontsize": 7.5, "color": GREY}


def assign_colours(names: Sequence[str], advice: str) -> dict[str, str]:
    """Return a colour for each name.

    Raises:
        UserError: There are more names than colours; the message ends with `advice`.
    """
    if len(names) > len(COLOURS):
        raise UserError(f"a figure has colours for at most {len(COLOURS)} systems, got {len(names)}; {advice}")
    return dict(zip(names, COLOURS, strict=False))
