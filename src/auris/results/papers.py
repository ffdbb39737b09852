"""Tables of the papers with our results next to them, as a data frame, as text and as a figure.

Published numbers come from `auris.metrics.published`, ours from the `results.jsonl` of any runs. All numbers have the
scale of the published table. Two marks show what must not be compared: ≠ if our number was computed differently from
the published ones, and † if it was measured on synthetic stand-ins instead of the benchmark's own recordings.
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
from auris.results.cells import lines_of
from auris.results.runs import list_runs, read_results, sort_arms
from auris.text.figure_style import CAPTION, GREY, STYLE, assign_colours

TABLES = ("qwen_audio_table3", "qwen2_audio_table2")  # main tables of the two papers; `published.tables()` has more
LINE = ["benchmark", "part", "metric"]
LABELS = {"aas_official": "AAS (ms)", "spice": "SPICE", "spider": "SPIDEr", "accuracy_raw": "accuracy"}


def table(name: str, studies: Iterable[str | Path]) -> pd.DataFrame:
    """Return a published table with our results: one row per number and system; our systems are `<study>/<arm>`.

    Columns: benchmark, part, metric, system, ours, value, low, high, n (number of test rows), seeds, different,
    synthetic, decimals. Published numbers have no interval. If there are several seeds, `value` is their mean, and
    `low` and `high` are the outermost ends of their intervals. `attrs["notes"]` has the table's source, and both
    signatures of each number that was computed differently.

    Raises:
        UserError: There is no such table.
        MissingFileError: There is no such study.
    """
    columns = [*LINE, "system", "ours", "value", "low", "high", "n", "different", "synthetic", "decimals"]
    rows: list[tuple[object, ...]] = []
    notes = published.notes(name, ())
    for line in published.lines((), name):
        key, empty = (line.benchmark, line.part, line.metric), (np.nan, np.nan, np.nan, False, False)
        rows += [(*key, cell.system, False, cell.printed, *empty, cell.decimals) for cell in line.cells]
    for system, results in _systems(studies):
        notes += [note for note in published.notes(name, results)[1:] if note not in notes]
        for line in published.lines(results, name):
            if line.ours is not None:
                key, marks = (line.benchmark, line.part, line.metric), (line.differs, line.is_stand_in)
                scaled = (line.scale * value for value in (line.ours.value, line.ours.low, line.ours.high))
                rows.append((*key, system, True, *scaled, line.ours.n, *marks, line.decimals))
    numbers = pd.DataFrame(rows, columns=columns)
    numbers["position"] = numbers.groupby(LINE, sort=False).ngroup()  # published numbers come first, in order
    seeds = numbers.groupby(["position", *LINE, "system"], sort=False)
    means = {"ours": "first", "value": "mean", "low": "min", "high": "max", "n": "first"}
    frame = seeds.agg(means | {"different": "any", "synthetic": "any", "decimals": "first"})
    frame["seeds"] = seeds.size().where(frame["ours"])
    frame = frame.reset_index().sort_values("position", kind="stable", ignore_index=True).drop(columns="position")
    frame.attrs |= {"table": name, "notes": notes}
    return frame


def _systems(studies: Iterable[str | Path]) -> Iterator[tuple[str, list[ResultRow]]]:
    """Yield the result rows of each evaluated run, in the order of the study's arms and seeds."""
    for study in studies:
        runs = list_runs(study)
        arms = sort_arms(study, {arm for arm, _, _ in runs})
        for arm, _, run in sorted(runs, key=lambda run: (arms.index(run[0]), run[1])):
            if rows := read_results(run):
                yield f"{Path(study).name}/{arm}", rows


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a `table` as text.

    There is one column for each of our systems, with intervals and marks, one for the system of the paper and one for
    all others.
    """
    owner = _owner(frame)
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for row in lines_of(frame):
        line = rows.setdefault((row["benchmark"], row["part"], _label(row["metric"])), {})
        if row["ours"] or row["system"] == owner:
            line[row["system"]] = _text(row)
        else:
            line["others"] = ", ".join([*filter(None, [line.get("others")]), f"{row['system']} {_text(row)}"])
    columns = [*_own_systems(frame), owner, "others"]
    texts = [[line.get(column, "") for column in columns] for line in rows.values()]
    return pd.DataFrame(texts, index=pd.MultiIndex.from_tuples(rows, names=LINE), columns=columns)


def _text(row: Mapping[str, Any]) -> str:
    """Return the number of a row with its interval and marks."""
    value, low, high = (f"{row[column]:.{row['decimals']}f}" for column in ("value", "low", "high"))
    if not row["ours"]:
        return value
    marks = DIFFERENT * row["different"] + STAND_IN * row["synthetic"]
    return f"{value} [{low}, {high}] {marks}".strip()


def legend(frame: pd.DataFrame) -> str:
    """Return an explanation of a table's marks and the source of its published numbers."""
    ours = frame[frame["ours"]]
    lines = [f"Published: {frame.attrs['notes'][0]}"]
    if ours.empty:
        lines.append("None of our results belongs to a benchmark in this table.")
    else:
        lines.append("Brackets: 95 % bootstrap intervals over test rows; published numbers have none.")
    if (ours["seeds"] > 1).any():
        lines.append("Several seeds: the mean, with the outermost ends of their intervals.")
    if ours["synthetic"].any():
        lines.append(
            f"{STAND_IN} synthetic: measured on stand-ins instead of the benchmark's recordings, so the number must "
            "not be compared with published ones. It only shows that the table can be filled."
        )
    if ours["different"].any():
        lines += [f"{DIFFERENT} computed differently from the published number:", *frame.attrs["notes"][1:]]
    return "\n".join(lines)


def plot(frame: pd.DataFrame) -> Figure:
    """Plot a `table` as points, with one panel for each kind of number.

    Published systems are grey, the paper's own system black, ours coloured with their intervals. Hollow points come
    from synthetic stand-ins.
    """
    colours = assign_colours(_own_systems(frame), "give fewer studies")
    panels: dict[str, list[pd.DataFrame]] = {}
    for _, line in frame.groupby(LINE, sort=False):
        panels.setdefault(_panel(line["metric"].iloc[0]), []).append(line)
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
    titles = {"wer": "Error rate (%)", "bleu": "BLEU", "aas_official": "Shift of word times, AAS (ms)"}
    return titles.get(metric, "Accuracy and mAP")


def _label(metric: str) -> str:
    return LABELS.get(metric) or (MEASURES[metric].label if metric in MEASURES else metric)


def _draw(axis: Axes, panel: str, lines: Sequence[pd.DataFrame], owner: str, colours: Mapping[str, str]) -> None:
    distance = 0.6 / max(1, len(colours))
    labels = []
    for y, line in enumerate(lines):
        rows = lines_of(line)
        for row in rows:
            if not row["ours"]:
                is_owner = row["system"] == owner
                marker, size, colour = ("D", 5, "black") if is_owner else ("|", 9, "#AAAAAA")
                axis.plot(row["value"], y, marker, markersize=size, color=colour, zorder=3 if is_owner else 2)
                continue
            row_y = y + (list(colours).index(row["system"]) - (len(colours) - 1) / 2) * distance
            colour = colours[row["system"]]
            axis.plot([row["low"], row["high"]], [row_y, row_y], color=colour, linewidth=1.2, zorder=4)
            face = "white" if row["synthetic"] else colour
            axis.plot(row["value"], row_y, "o", markersize=4.5, color=colour, markerfacecolor=face, zorder=5)
            if row["different"]:
                mark = {"textcoords": "offset points", "va": "center", "fontsize": 8, "color": colour}
                axis.annotate(DIFFERENT, (row["high"], row_y), (3, 0), **mark)
        first = rows[0]  # benchmark, part and metric are the same in all rows of a line
        # These panels have several metrics.
        metric = [_label(first["metric"])] if panel.startswith(("Captions", "Accuracy")) else []
        labels.append(" ".join(dict.fromkeys([first["benchmark"], first["part"], *metric])))
    axis.set_yticks(range(len(lines)), labels)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.set_xlim(0, 1.06 * np.nanmax(pd.concat(lines)[["value", "high"]].to_numpy(float)))
    metric_name = lines[-1]["metric"].iloc[0]
    is_higher_better = metric_name not in MEASURES or MEASURES[metric_name].higher_is_better
    axis.set_title(f"{panel}, {'higher' if is_higher_better else 'lower'} is better")


def _owner(frame: pd.DataFrame) -> str:
    """Return the system of the paper, which comes first in its table."""
    return frame.loc[~frame["ours"], "system"].iloc[0]


def _own_systems(frame: pd.DataFrame) -> list[str]:
    return list(frame[frame["ours"]]["system"].unique())


def _handles(frame: pd.DataFrame, colours: Mapping[str, str]) -> list[Line2D]:
    handles = [
        Line2D([], [], color="black", marker="D", linestyle="", markersize=5, label=f"{_owner(frame)}, published"),
        Line2D([], [], color="#AAAAAA", marker="|", linestyle="", markersize=9, label="other systems, published"),
    ]
    for system, colour in colours.items():
        rows = frame[frame["system"] == system]
        is_synthetic = bool(rows["synthetic"].all())
        face = "white" if is_synthetic else colour
        label = f"{system}, ours{' (synthetic stand-ins)' if is_synthetic else ''}"
        handles.append(
            Line2D([], [], color=colour, linewidth=1.2, label=label, marker="o", markersize=4.5, markerfacecolor=face)
        )
    if frame["different"].any():
        label = "computed differently"
        handles.append(Line2D([], [], color=GREY, marker="$≠$", linestyle="", markersize=6, label=label))
    return handles
