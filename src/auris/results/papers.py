"""The papers' tables beside results of ours, for a notebook: as a frame, as a page to read, and as a figure.

Published numbers come from `auris.metrics.published`, ours from the `results.jsonl` of any runs. Numbers stand in the
scale of the published table. Two marks say what must not be compared: ≠ where a number of ours was made otherwise than
the published ones, and † where it is of synthetic stand-ins and not of the benchmark's own recordings.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.style import context as style_context

from auris.metrics import published
from auris.metrics.measures import MEASURES
from auris.metrics.published import DIFFERENT, STAND_IN
from auris.metrics.records import ResultRow
from auris.results.runs import ordered, runs_of, scores
from auris.text.figure_style import CAPTION, GREY, STYLE, assign_colours

TABLES = ("qwen_audio_table3", "qwen2_audio_table2")  # of the two papers; `published.tables()` has more
LINE = ["benchmark", "part", "metric"]
LABELS = {"aas_official": "AAS (ms)", "spice": "SPICE", "spider": "SPIDEr", "accuracy_raw": "accuracy"}


def table(name: str, studies: Iterable[str | Path]) -> pd.DataFrame:
    """One row per number of a published table and system, ours among the systems as `<study>/<arm>`.

    Columns: benchmark, part, metric, system, ours, value, low, high, n (test rows), seeds, different, synthetic,
    decimals. Published numbers have no interval. Of several seeds the value is the mean, and `low` and `high` are the
    outermost ends of their intervals. `attrs["notes"]`: the table's source, and both signatures of what is different.

    Raises:
        ValueError: no such table.
        FileNotFoundError: no such study.
    """
    columns = [*LINE, "system", "ours", "value", "low", "high", "n", "different", "synthetic", "decimals"]
    rows: list[tuple[object, ...]] = []
    notes = published.notes(name, ())
    for line in published.lines((), name):
        where, empty = (line.benchmark, line.part, line.metric), (np.nan, np.nan, np.nan, False, False)
        rows += [(*where, one.system, False, one.printed, *empty, one.decimals) for one in line.cells]
    for system, scored in _systems(studies):
        notes += [note for note in published.notes(name, scored)[1:] if note not in notes]
        for line in published.lines(scored, name):
            if line.ours is not None:
                where, marks = (line.benchmark, line.part, line.metric), (line.differs, line.is_stand_in)
                scaled = (line.scale * value for value in (line.ours.value, line.ours.low, line.ours.high))
                rows.append((*where, system, True, *scaled, line.ours.n, *marks, line.decimals))
    numbers = pd.DataFrame(rows, columns=columns)
    numbers["place"] = numbers.groupby(LINE, sort=False).ngroup()  # published numbers, in order, come first
    seeds = numbers.groupby(["place", *LINE, "system"], sort=False)
    means = {"ours": "first", "value": "mean", "low": "min", "high": "max", "n": "first"}
    frame = seeds.agg(means | {"different": "any", "synthetic": "any", "decimals": "first"})
    frame["seeds"] = seeds.size().where(frame["ours"])
    frame = frame.reset_index().sort_values("place", kind="stable", ignore_index=True).drop(columns="place")
    frame.attrs |= {"table": name, "notes": notes}
    return frame


def _systems(studies: Iterable[str | Path]) -> Iterator[tuple[str, list[ResultRow]]]:
    """Every arm of each study, seed by seed, with its rows of results.jsonl; in the order of its study."""
    for study in studies:
        systems = runs_of(study)
        arms = ordered(study, {arm for arm, _, _ in systems})
        for arm, _, run in sorted(systems, key=lambda one: (arms.index(one[0]), one[1])):
            if rows := scores(run):
                yield f"{Path(study).name}/{arm}", rows


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A `table` for a person: one column per system of ours, each number with its interval and its marks, one for the
    system whose paper it is, and one for all others."""
    owner, rows = _owner(frame), {}
    for row in frame.itertuples():
        line = rows.setdefault((row.benchmark, row.part, _label(row.metric)), {})
        if row.ours or row.system == owner:
            line[row.system] = _text(row)
        else:
            line["others"] = ", ".join([*filter(None, [line.get("others")]), f"{row.system} {_text(row)}"])
    columns = [*frame[frame["ours"]]["system"].unique(), owner, "others"]
    texts = [[line.get(column, "") for column in columns] for line in rows.values()]
    return pd.DataFrame(texts, index=pd.MultiIndex.from_tuples(rows, names=LINE), columns=columns)


def _text(number: Any) -> str:
    """Format a row of a table, as `itertuples` gives it."""
    value, low, high = (f"{one:.{number.decimals}f}" for one in (number.value, number.low, number.high))
    if not number.ours:
        return value
    marks = DIFFERENT * number.different + STAND_IN * number.synthetic
    return f"{value} [{low}, {high}] {marks}".strip()


def legend(frame: pd.DataFrame) -> str:
    """What the marks of a table mean, and where its published numbers are from; in words."""
    ours = frame[frame["ours"]]
    lines = [f"Published: {frame.attrs['notes'][0]}"]
    if ours.empty:
        lines.append("None of our results is of a benchmark in this table.")
    else:
        lines.append("Brackets: 95 % bootstrap intervals over test rows; published numbers come without.")
    if (ours["seeds"] > 1).any():
        lines.append("Of several seeds: the mean, with the outermost ends of their intervals.")
    if ours["synthetic"].any():
        lines.append(
            f"{STAND_IN} synthetic: not the benchmark's recordings but stand-ins, which say nothing of them. Beside "
            "published numbers they only show that the table fills."
        )
    if ours["different"].any():
        lines += [f"{DIFFERENT} made otherwise than the published number:", *frame.attrs["notes"][1:]]
    return "\n".join(lines)


def plot(frame: pd.DataFrame) -> Figure:
    """A `table` as points, a panel per kind of number: published systems grey, the paper's own black, ours in colour
    with their intervals; hollow where they are of synthetic stand-ins."""
    own = frame[frame["ours"]]["system"].unique()
    colours = assign_colours(own, "give fewer studies")
    panels: dict[str, list[pd.DataFrame]] = {}
    for (_, _, metric), line in frame.groupby(LINE, sort=False):
        panels.setdefault(_panel(metric), []).append(line)
    heights = [0.55 + 0.21 * len(lines) for lines in panels.values()]
    with style_context(STYLE):
        figure = Figure(figsize=(7.0, 1.3 + sum(heights)), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, (panel, lines) in zip(axes, panels.items(), strict=True):
            _draw(axis, panel, lines, _owner(frame), colours)
        figure.legend(
            handles=_handles(frame, colours),
            loc="outside upper left",
            ncols=2,
            fontsize=8,
            title=f"{frame.attrs['table']}: published and ours",
            title_fontproperties={"size": 11, "weight": "bold"},
            alignment="left",
        )
        caption = f"Bars: 95 % bootstrap intervals over test rows. Published: {frame.attrs['notes'][0]}."
        figure.supxlabel(textwrap.fill(caption, 115), **CAPTION)
    return figure


def _panel(metric: str) -> str:
    if metric in ("cider", "spice", "spider"):
        return "Captions: CIDEr, SPICE, SPIDEr"
    if metric.startswith("judged"):
        return "Points of the judge, 0 to 10"
    known = {"wer": "Error rate (%)", "bleu": "BLEU", "aas_official": "Shift of word times, AAS (ms)"}
    return known.get(metric, "Accuracy and mAP")


def _label(metric: str) -> str:
    return LABELS.get(metric) or (MEASURES[metric].label if metric in MEASURES else metric)


def _draw(axis: Axes, panel: str, lines: Sequence[pd.DataFrame], owner: str, colours: Mapping[str, str]) -> None:
    apart = 0.6 / max(1, len(colours))
    names = []
    for y, line in enumerate(lines):
        for row in line.itertuples():
            if not row.ours:
                main = row.system == owner
                style = {"color": "black", "zorder": 3} if main else {"color": "#AAAAAA", "zorder": 2}
                axis.plot(row.value, y, "D" if main else "|", markersize=5 if main else 9, **style)
                continue
            place = y + (list(colours).index(row.system) - (len(colours) - 1) / 2) * apart
            colour = colours[row.system]
            axis.plot([row.low, row.high], [place, place], color=colour, linewidth=1.2, zorder=4)
            face = "white" if row.synthetic else colour
            axis.plot(row.value, place, "o", markersize=4.5, color=colour, markerfacecolor=face, zorder=5)
            if row.different:
                mark = {"textcoords": "offset points", "va": "center", "fontsize": 8, "color": colour}
                axis.annotate(DIFFERENT, (row.high, place), (3, 0), **mark)
        # The metric is named where its panel has several.
        metric = [_label(row.metric)] if panel.startswith(("Captions", "Accuracy")) else []
        names.append(" ".join(dict.fromkeys([row.benchmark, row.part, *metric])))
    axis.set_yticks(range(len(lines)), names)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.set_xlim(0, 1.06 * pd.concat(lines)[["value", "high"]].max(axis=None))
    higher = row.metric not in MEASURES or MEASURES[row.metric].higher_is_better
    axis.set_title(f"{panel}, {'higher' if higher else 'lower'} is better")


def _owner(frame: pd.DataFrame) -> str:
    """The system that the table is of: it stands first."""
    return frame.loc[~frame["ours"], "system"].iloc[0]


def _handles(frame: pd.DataFrame, colours: Mapping[str, str]) -> list[Line2D]:
    made = [
        Line2D([], [], color="black", marker="D", linestyle="", markersize=5, label=f"{_owner(frame)}, published"),
        Line2D([], [], color="#AAAAAA", marker="|", linestyle="", markersize=9, label="other systems, published"),
    ]
    for system, colour in colours.items():
        rows = frame[frame["system"] == system]
        synthetic = bool(rows["synthetic"].all())
        style = {"marker": "o", "markersize": 4.5, "markerfacecolor": "white" if synthetic else colour}
        label = f"{system}, ours{' (synthetic stand-ins)' if synthetic else ''}"
        made.append(Line2D([], [], color=colour, linewidth=1.2, label=label, **style))
    if frame["different"].any():
        made.append(Line2D([], [], color=GREY, marker="$≠$", linestyle="", markersize=6, label="made otherwise"))
    return made
