"""Tables of the papers together with our results, as a data frame, as text and as a figure.

Published numbers come from `auris.metrics.published`, and our numbers from the `results.jsonl` of runs. All numbers
have the scale of the published table. Two symbols mark numbers of ours that must not be compared with published ones: ≠
if a number was computed differently, and † if it was measured on synthetic stand-ins for the benchmark's recordings.
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
from auris.results.cells import frame_rows
from auris.results.runs import list_runs, read_results, sort_arms
from auris.text.figure_style import CAPTION, GREY, STYLE, assign_colours

TABLES = (
    "qwen_audio_table3",
    "qwen2_audio_table2",
)  # main tables of the two papers; `published.table_names()` has more
LINE = ["benchmark", "part", "metric"]  # columns that identify a line of a published table
LABELS = {"aas_official": "AAS (ms)", "spice": "SPICE", "spider": "SPIDEr", "accuracy_raw": "accuracy"}


def table(name: str, studies: Iterable[str | Path]) -> pd.DataFrame:
    """Return a published table with our results. It has one row for each system in each line of the published table.

    Columns: benchmark, part, metric, system (`<study>/<arm>` for our systems), ours (whether it is our system), value,
    low and high (ends of the interval; published numbers have none), n (number of test rows), seeds (number of seeds),
    different (whether the value was computed differently), synthetic (whether the data are synthetic), decimals
    (number of decimals in the published table). If there are several seeds, `value` is the mean over the seeds, and
    `low` and `high` are the outermost ends of the seeds' intervals. `attrs["notes"]` contains the source of the table
    and the signatures of numbers that were computed differently.

    Args:
        name: Name of the table, one of `published.table_names()`.
        studies: Directories of studies.

    Raises:
        UserError: There is no table with this name.
        MissingFileError: There is no study in one of the directories.
    """
    columns = [*LINE, "system", "ours", "value", "low", "high", "n", "different", "synthetic", "decimals"]
    rows: list[tuple[object, ...]] = []
    notes = published.table_notes(name, ())
    for line in published.table_lines((), name):
        key, empty = (line.benchmark, line.part, line.metric), (np.nan, np.nan, np.nan, False, False)
        rows += [(*key, cell.system, False, cell.printed, *empty, cell.decimals) for cell in line.cells]
    for system, results in _systems(studies):
        notes += [note for note in published.table_notes(name, results)[1:] if note not in notes]
        for line in published.table_lines(results, name):
            if line.ours is not None:
                key, marks = (line.benchmark, line.part, line.metric), (line.differs, line.is_stand_in)
                scaled = (line.scale * value for value in (line.ours.value, line.ours.low, line.ours.high))
                rows.append((*key, system, True, *scaled, line.ours.n, *marks, line.decimals))
    numbers = pd.DataFrame(rows, columns=columns)
    numbers["position"] = numbers.groupby(LINE, sort=False).ngroup()  # published numbers come first, in order
    by_system = numbers.groupby(["position", *LINE, "system"], sort=False)
    means = {"ours": "first", "value": "mean", "low": "min", "high": "max", "n": "first"}
    frame = by_system.agg(means | {"different": "any", "synthetic": "any", "decimals": "first"})
    frame["seeds"] = by_system.size().where(frame["ours"])
    frame = frame.reset_index().sort_values("position", kind="stable", ignore_index=True).drop(columns="position")
    frame.attrs |= {"table": name, "notes": notes}
    return frame


def _systems(studies: Iterable[str | Path]) -> Iterator[tuple[str, list[ResultRow]]]:
    """Yield the name `<study>/<arm>` and the result rows of each evaluated run, sorted by study, arm and seed."""
    for study in studies:
        runs = list_runs(study)
        arms = sort_arms(study, {arm for arm, _, _ in runs})
        for arm, _, run in sorted(runs, key=lambda run: (arms.index(run[0]), run[1])):
            if rows := read_results(run):
                yield f"{Path(study).name}/{arm}", rows


def format_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a `table` as text.

    There is one column for each of our systems (with intervals and symbols), one column for the system of the paper,
    and one column for all other systems.
    """
    paper_system = _find_paper_system(frame)
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for row in frame_rows(frame):
        line = rows.setdefault((row["benchmark"], row["part"], _label(row["metric"])), {})
        if row["ours"] or row["system"] == paper_system:
            line[row["system"]] = _format_number(row)
        else:
            line["others"] = ", ".join([*filter(None, [line.get("others")]), f"{row['system']} {_format_number(row)}"])
    columns = [*_our_systems(frame), paper_system, "others"]
    texts = [[line.get(column, "") for column in columns] for line in rows.values()]
    return pd.DataFrame(texts, index=pd.MultiIndex.from_tuples(rows, names=LINE), columns=columns)


def _format_number(row: Mapping[str, Any]) -> str:
    """Return the number of a row with its interval and symbols."""
    value, low, high = (f"{row[column]:.{row['decimals']}f}" for column in ("value", "low", "high"))
    if not row["ours"]:
        return value
    symbols = DIFFERENT * row["different"] + STAND_IN * row["synthetic"]
    return f"{value} [{low}, {high}] {symbols}".strip()


def legend(frame: pd.DataFrame) -> str:
    """Return an explanation of the symbols in a table, and the source of the published numbers."""
    ours = frame[frame["ours"]]
    lines = [f"Published: {frame.attrs['notes'][0]}"]
    if ours.empty:
        lines.append("None of our results belongs to a benchmark in this table.")
    else:
        lines.append("Brackets: 95 % bootstrap intervals over test rows; published numbers have none.")
    if (ours["seeds"] > 1).any():
        lines.append("Several seeds: the mean over the seeds, with the outermost ends of the seeds' intervals.")
    if ours["synthetic"].any():
        lines.append(
            f"{STAND_IN} synthetic: measured on synthetic stand-ins instead of the benchmark's recordings. Such a "
            "number must not be compared with published ones. It only shows that the table can be filled."
        )
    if ours["different"].any():
        lines += [f"{DIFFERENT} computed differently from the published numbers:", *frame.attrs["notes"][1:]]
    return "\n".join(lines)


def plot(frame: pd.DataFrame) -> Figure:
    """Plot a `table` as points, with one panel for each kind of metric.

    The system of the paper is black, other published systems are grey, and our systems are coloured and have intervals.
    Hollow points were measured on synthetic stand-ins.
    """
    colours = assign_colours(_our_systems(frame), "give fewer studies")
    panels: dict[str, list[pd.DataFrame]] = {}
    for _, line in frame.groupby(LINE, sort=False):
        panels.setdefault(_panel(line["metric"].iloc[0]), []).append(line)
    heights = [0.55 + 0.21 * len(lines) for lines in panels.values()]
    with style_context(STYLE):
        figure = Figure(figsize=(7.0, 1.3 + sum(heights)), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, (panel, lines) in zip(axes, panels.items(), strict=True):
            _draw(axis, panel, lines, _find_paper_system(frame), colours)
        figure.legend(
            handles=_legend_handles(frame, colours),
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


def _draw(axis: Axes, panel: str, lines: Sequence[pd.DataFrame], paper_system: str, colours: Mapping[str, str]) -> None:
    distance = 0.6 / max(1, len(colours))
    labels = []
    for y, line in enumerate(lines):
        rows = frame_rows(line)
        for row in rows:
            if not row["ours"]:
                is_paper_system = row["system"] == paper_system
                marker, size, colour = ("D", 5, "black") if is_paper_system else ("|", 9, "#AAAAAA")
                axis.plot(row["value"], y, marker, markersize=size, color=colour, zorder=3 if is_paper_system else 2)
                continue
            row_y = y + (list(colours).index(row["system"]) - (len(colours) - 1) / 2) * distance
            colour = colours[row["system"]]
            axis.plot([row["low"], row["high"]], [row_y, row_y], color=colour, linewidth=1.2, zorder=4)
            face = "white" if row["synthetic"] else colour
            axis.plot(row["value"], row_y, "o", markersize=4.5, color=colour, markerfacecolor=face, zorder=5)
            if row["different"]:
                style = {"textcoords": "offset points", "va": "center", "fontsize": 8, "color": colour}
                axis.annotate(DIFFERENT, (row["high"], row_y), (3, 0), **style)
        first_row = rows[0]  # benchmark, part and metric are the same in all rows of a line
        # Only these panels show several metrics, so only their row labels name the metric.
        metric = [_label(first_row["metric"])] if panel.startswith(("Captions", "Accuracy")) else []
        labels.append(" ".join(dict.fromkeys([first_row["benchmark"], first_row["part"], *metric])))
    axis.set_yticks(range(len(lines)), labels)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.set_xlim(0, 1.06 * np.nanmax(pd.concat(lines)[["value", "high"]].to_numpy(float)))
    metric_name = lines[-1]["metric"].iloc[0]
    is_higher_better = metric_name not in MEASURES or MEASURES[metric_name].higher_is_better
    axis.set_title(f"{panel}, {'higher' if is_higher_better else 'lower'} is better")


def _find_paper_system(frame: pd.DataFrame) -> str:
    """Return the system of the paper, which is the first system in the published table."""
    return frame.loc[~frame["ours"], "system"].iloc[0]


def _our_systems(frame: pd.DataFrame) -> list[str]:
    return list(frame[frame["ours"]]["system"].unique())


def _legend_handles(frame: pd.DataFrame, colours: Mapping[str, str]) -> list[Line2D]:
    paper_system = _find_paper_system(frame)
    handles = [
        Line2D([], [], color="black", marker="D", linestyle="", markersize=5, label=f"{paper_system}, published"),
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
