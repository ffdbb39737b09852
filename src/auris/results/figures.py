"""Publication-ready figures of a study: bars of test scores and training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.style import context as style_context

from auris.errors import UserError
from auris.metrics.measures import ACCURACY_PANEL, MEASURES, PANELS, format_value, table_position
from auris.results.cells import frame_rows
from auris.results.runs import collect, curves, join, list_runs, sort_arms
from auris.results.tables import table
from auris.text.figure_style import CAPTION, STYLE, assign_colours
from auris.text.tasks import is_synthetic

ADVICE = "choose some of them with arms=[a,b]"  # end of the error message about too many arms
MARKERS = "osD^vPX*"  # the marker of each arm
UNLABELLED = (
    "accuracy",
    "aas_ms",
    "bleu",
    "cider",
)  # metrics without a label, because the title of the panel names them

Rows = list[dict[str, Any]]
"""Rows of the data frame that `tables.table` returns."""


def plot_bars(root: str | Path, arms: Sequence[str] | None = None, frame: pd.DataFrame | None = None) -> Figure:
    """Plot scores with 95 % intervals as bars, with the bars of all arms next to each other.

    Metrics of the same kind, such as error rates, share a panel. If there are more than MAX_BARS scores, they are drawn
    as points in as many columns as necessary.

    Args:
        root: The study's directory.
        arms: Arms to plot; None: all arms with predictions.
        frame: The `table` of these arms; None: it is computed.

    Raises:
        UserError: An arm has no predictions, or there are more arms than colours.
    """
    frame = table(root, arms) if frame is None else frame
    names: list[str] = frame.attrs["arms"]
    colours = assign_colours(names, ADVICE)
    with_benchmark = frame["benchmark"].nunique() > 1
    all_rows = frame_rows(frame)
    panels = {panel: [row for row in all_rows if MEASURES[row["metric"]].panel == panel] for panel in PANELS}
    panels = {panel: rows for panel, rows in panels.items() if rows}
    as_points = len(names) * sum(len(rows) for rows in panels.values()) > MAX_BARS
    row_height = 0.12 + 0.06 * len(names) if as_points else 0.14 + 0.17 * len(names)  # inches
    columns = _distribute_panels(panels, row_height, max_height=MAX_HEIGHT if as_points else np.inf)
    heights = [[TITLE_HEIGHT + row_height * len(rows) for _, rows in column] for column in columns]
    height = max(map(sum, heights))
    lengths = [max(len(_label(row, with_benchmark)) for _, rows in column for row in rows) for column in columns]
    widths = [max(3.3, 2.2 + 0.055 * length) for length in lengths] if as_points else [6.8]  # inches, with the labels
    with style_context(STYLE):
        figure = Figure(figsize=(sum(widths), 1.1 + height), layout="constrained")
        parts = figure.subfigures(1, len(columns), squeeze=False, width_ratios=widths)[0]
        for part, column, ratios in zip(parts, columns, heights, strict=True):
            empty = [height - sum(ratios)] if height - sum(ratios) > 0.01 else []  # space below a shorter column
            axes = part.subplots(len(column) + len(empty), 1, squeeze=False, height_ratios=[*ratios, *empty])[:, 0]
            for axis, (panel, rows) in zip(axes, column, strict=False):
                draw_bars(axis, panel, rows, colours, with_benchmark, as_points)
            for axis in axes[len(column) :]:
                axis.set_visible(False)
        add_legend(figure, root, colours, MARKERS if as_points else "")
        n_seeds = frame[[f"{arm} seeds" for arm in names]].to_numpy().max()
        pooled = f", {n_seeds} seeds pooled" if n_seeds > 1 else ""
        caption = (
            f"Test-set score{pooled}; whiskers: 95 % bootstrap interval over test rows.\n{describe_provenance(frame)}"
        )
        figure.supxlabel(caption, **CAPTION)
    return figure


MAX_BARS = 72  # more bars would be illegible
MAX_HEIGHT = 8.0  # maximum height of a column of points in inches
TITLE_HEIGHT = 0.6  # height of the title and the axis of a panel in inches


def _distribute_panels(
    panels: Mapping[str, Rows], row_height: float, max_height: float
) -> list[list[tuple[str, Rows]]]:
    """Distribute panels over columns of similar height. A panel may continue in the next column."""
    remaining = list(panels.items())
    n_columns = max(1, int(np.ceil(sum(TITLE_HEIGHT + row_height * len(rows) for _, rows in remaining) / max_height)))
    columns: list[list[tuple[str, Rows]]] = []
    for n_left in range(n_columns, 0, -1):
        free_height, column = sum(TITLE_HEIGHT + row_height * len(rows) for _, rows in remaining) / n_left, []
        while remaining:
            panel, rows = remaining.pop(0)
            n_fitting = max(0, round((free_height - TITLE_HEIGHT) / row_height))
            if n_left == 1 or len(rows) - n_fitting < 3:  # one or two rows are too few for the next column
                n_fitting = len(rows)
            elif n_fitting < 3 and column:
                n_fitting = 0
            if n_fitting:
                column.append((panel, rows[:n_fitting]))
                free_height -= TITLE_HEIGHT + row_height * n_fitting
            if rows[n_fitting:]:
                remaining.insert(0, (panel, rows[n_fitting:]))
                break
        columns.append(column)
    return [column for column in columns if column]


def draw_bars(
    axis: Axes, panel: str, rows: Rows, colours: dict[str, str], with_benchmark: bool, as_points: bool
) -> None:
    """Draw scores with intervals, with a bar (or a point) for each system in each row.

    Args:
        axis: The axis.
        panel: Title of the axis.
        rows: Rows with the columns of `tables.table`.
        colours: The colour of each system.
        with_benchmark: Whether labels of rows name the benchmark.
        as_points: Draw points instead of bars.
    """
    scale = MEASURES[rows[0]["metric"]].scale
    thickness = 0.76 / len(colours)
    rightmost = 0.0
    for i, (arm, colour) in enumerate(colours.items()):
        for y, row in enumerate(rows):
            if np.isnan(row[arm]):
                continue
            point, low, high = (scale * row[f"{arm}{suffix}"] for suffix in ("", " low", " high"))
            bar_y = y + (i - (len(colours) - 1) / 2) * thickness
            end = float(np.nanmax([point, high]))
            rightmost = max(rightmost, end)
            if as_points:
                axis.plot([low, high], [bar_y, bar_y], color=colour, linewidth=1.2, solid_capstyle="butt")
                axis.plot(point, bar_y, marker=MARKERS[i], color=colour, markersize=3.2, clip_on=False)
                continue
            axis.barh(bar_y, point, height=0.92 * thickness, color=colour)
            # A black line with white edges is visible on a bar of any colour.
            for width, line_colour in ((2.4, "white"), (1, "black")):
                axis.plot([low, high], [bar_y, bar_y], color=line_colour, linewidth=width, solid_capstyle="butt")
            text = format_value(row["metric"], row[arm])
            axis.annotate(text, (end, bar_y), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
    labels = [_label(row, with_benchmark) for row in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=7.5 if as_points else None)
    if as_points:  # lines separate the rows, because the points of neighbouring rows are close to each other
        for y in range(1, len(rows)):
            axis.axhline(y - 0.5, color="#EEEEEE", linewidth=0.6, zorder=0)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, max(1.1 * rightmost, 1.0))
    if panel == ACCURACY_PANEL:
        axis.set_xlim(0, 101 if as_points else 109)  # the space above 100 is for the numbers
        axis.set_xticks(range(0, 101, 20))
    better = "higher" if MEASURES[rows[0]["metric"]].higher_is_better else "lower"
    axis.set_title(f"{panel}, {better} is better", x=1, ha="right")  # a long title extends over the row labels


def _label(row: Mapping[str, Any], with_benchmark: bool) -> str:
    benchmark = [f"({row['benchmark']})"] if with_benchmark else []
    metric = [] if row["metric"] in UNLABELLED else [MEASURES[row["metric"]].label]
    return f"{' '.join([row['group'], *metric, *benchmark])}  n={row['n']}"


def plot_curves(root: str | Path, arms: Sequence[str] | None = None, x: str = "steps") -> Figure:
    """Plot the training loss (smoothed), the validation loss and validation metrics, with one line for each arm.

    A line is the mean over the seeds of an arm, and a band is the range of the seeds. An arm without TensorBoard events
    has no line.

    Args:
        root: The study's directory.
        arms: Arms to plot; None: the arms with predictions and events, or if there are none, all arms with events.
        x: Horizontal axis, a key of AXES.

    Raises:
        UserError: An arm or the axis is unknown, or no scalars were logged.
    """
    if x not in AXES:
        raise UserError(f"x={x}: expected {join(AXES)}")
    scalars = curves(root)
    all_tags = scalars["tag"]
    # The lengths of the answers in the data do not change during training, so they have no curve.
    is_constant = all_tags.str.startswith("val/length_")
    points = scalars[(all_tags == "train/loss") | all_tags.str.startswith("val/") & ~is_constant]
    logged = set(points["arm"])
    runs = list_runs(root)
    if arms is None:
        evaluated = {arm for arm, _, run in runs if any(run.glob("predictions/*.jsonl"))}
        arms = sort_arms(root, evaluated & logged or logged)
    if unknown := set(arms) - {arm for arm, _, _ in runs}:
        raise UserError(
            f"no runs of {join(sort_arms(root, unknown))} in {root}; expected arms=[...] from "
            f"{join(sort_arms(root, logged))}"
        )
    if not logged & set(arms):
        raise UserError(f"the runs of {join(arms) or 'any arm'} in {root} have no train/loss or val/* scalars")
    points = _add_x(x, points[points["arm"].isin(arms)], scalars)
    colours = assign_colours(arms, ADVICE)  # the same colours as in `plot_bars`
    colours = {arm: colour for arm, colour in colours.items() if arm in logged}
    tags = sorted(points["tag"].unique(), key=tag_order)
    n_columns = min(len(tags), max(3, round((len(tags) / 1.4) ** 0.5)))  # the figure has the proportions of a page
    n_rows = -(-len(tags) // n_columns)
    with style_context(STYLE):
        figure = Figure(figsize=(2.8 * n_columns + 0.6, 2.1 * n_rows + 0.9), layout="constrained")
        axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
        for axis, tag in zip(axes, tags, strict=False):
            draw_curves(axis, tag, points[points["tag"] == tag], colours)
        for axis in axes[len(tags) :]:
            axis.set_visible(False)
        add_legend(figure, root, colours)
        n_seeds = points.groupby("arm")["seed"].nunique().max()
        band_note = "Lines: mean over the seeds; bands: range of the seeds.\n" if n_seeds > 1 else ""
        scores = collect(root)
        data_note = "" if scores.empty else describe_provenance(scores)
        figure.supxlabel(f"Horizontal axis: {AXES[x][0]}. Scores: validation rows.\n{band_note}{data_note}", **CAPTION)
    return figure


# Panel titles of scalars that are not metrics of a task.
TITLES = {
    "train/loss": "Training loss, smoothed",
    "val/loss": "Validation loss",
    "val/reward_margin": "Reward, chosen - rejected",
    "val/kl": "Log p, reference model - model",
    "val/logps_chosen": "Log p of the chosen answer",
    "val/logps_rejected": "Log p of the rejected answer",
}

# Horizontal axes: for each axis, its description and the TensorBoard scalar with its values (None: the step).
AXES = {
    "steps": ("training steps", None),
    "hours": ("hours of audio processed, repeated rows included", "train/audio_hours"),
    "flops": ("useful floating-point operations", "train/flops"),
}


def tag_order(tag: str) -> tuple[bool, bool, int, str]:
    """Return the sort key of a scalar: losses first, then metrics in the order of the table of metrics."""
    return tag != "train/loss", tag != "val/loss", table_position(tag.rpartition("/")[2]), tag


def _add_x(x: str, points: pd.DataFrame, scalars: pd.DataFrame) -> pd.DataFrame:
    """Add the column `x`: the step, or the value of the axis's scalar, interpolated at that step."""
    tag = AXES[x][1]
    if tag is None:
        return points.assign(x=points["step"])
    parts = []
    for (arm, seed), run_points in points.groupby(["arm", "seed"], sort=False):
        is_axis_scalar = (scalars["arm"] == arm) & (scalars["seed"] == seed) & (scalars["tag"] == tag)
        counts = scalars[is_axis_scalar].sort_values("step")
        if counts.empty:
            raise UserError(f"x={x}: the TensorBoard events of {arm}, seed {seed} have no {tag}; use x=steps")
        parts.append(run_points.assign(x=np.interp(run_points["step"], counts["step"], counts["value"])))
    return pd.concat(parts)


def draw_curves(axis: Axes, tag: str, points: pd.DataFrame, colours: dict[str, str]) -> None:
    """Draw a scalar over the column `x`: for each arm, a line (mean over the seeds) and a band (range of the seeds)."""
    metric = tag.rpartition("/")[2]
    measure = MEASURES.get(metric)
    for arm, colour in colours.items():
        seeds = points[points["arm"] == arm].pivot(index="step", columns="seed", values="value").sort_index()
        if measure:
            seeds = measure.scale * seeds
        if tag == "train/loss":
            # This span is short, to keep the shape of the curve.
            seeds = seeds.ewm(span=max(1, len(seeds) // 50)).mean()
        x = points[points["arm"] == arm].groupby("step")["x"].mean()  # the seeds have nearly the same values
        axis.plot(x, seeds.mean(axis=1), color=colour, linewidth=1.4, marker="." if len(seeds) < 12 else None)
        axis.fill_between(x, seeds.min(axis=1), seeds.max(axis=1), color=colour, alpha=0.2, linewidth=0)
    axis.margins(x=0.02)
    if measure:
        # Metrics that the training objective computes have no group; they are computed over the tokens of answers.
        group = tag.split("/", 1)[1].rpartition("/")[0] or "answer tokens"
        title = f"{measure.label} ({measure.unit})"
        axis.set_title(f"{group}: {title}" if len(group) + len(title) < 28 else f"{group}:\n{title}")
        axis.set_ylim(0, 104 if measure.panel == ACCURACY_PANEL else max(1.08 * axis.dataLim.ymax, 1e-3))
    else:
        axis.set_title(TITLES.get(tag, tag))


def save_figure(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure as PATH.png, PATH.pdf and PATH.svg, and return these paths."""
    files = [Path(path).with_name(f"{Path(path).name}.{suffix}") for suffix in ("png", "pdf", "svg")]
    layout = figure.get_layout_engine()
    try:
        for file in files:
            with style_context(STYLE):  # matplotlib reads the resolution and fonts when it writes the file
                figure.savefig(file)
            figure.set_layout_engine("none")  # the layout of the first file is reused for the other files
    finally:
        figure.set_layout_engine(layout)
    return files


def add_legend(figure: Figure, root: str | Path, colours: dict[str, str], markers: str = "") -> None:
    """Add the name of the study, and a legend with the colour of each arm, and its marker if points have markers."""
    handles: list[Artist] = [Patch(color=colour, label=arm) for arm, colour in colours.items()]
    if markers:
        styles = zip(colours.items(), markers, strict=False)
        handles = [Line2D([], [], color=colour, marker=mark, markersize=4, label=arm) for (arm, colour), mark in styles]
    columns = 3 if len(colours) > 4 or max(map(len, colours)) > 12 else len(colours)
    figure.legend(handles=handles, loc="outside upper right", ncols=columns, fontsize=9, handlelength=1, handleheight=1)
    figure.suptitle(f"Study {Path(root).name}", x=0.01, ha="left", fontsize=11, fontweight="bold")


def describe_provenance(frame: pd.DataFrame) -> str:
    """Return a sentence that states whether the data are real or synthetic; figures show it below the axes."""
    kinds = {kind for joined in frame["provenance"] for kind in joined.split("+")}
    if is_synthetic("+".join(kinds)):
        return (
            f"Synthetic data ({join(sorted(kinds))}): the scores show that the systems learn, not how well they work "
            "on real audio."
        )
    if kinds == {"real"}:
        return "Real recordings."
    by_benchmark = frame.groupby("benchmark")["provenance"].agg(lambda p: "+".join(sorted(set("+".join(p).split("+")))))
    parts = [f"{name}: {'synthetic, ' if is_synthetic(kind) else ''}{kind}" for name, kind in by_benchmark.items()]
    return f"Data: {'; '.join(parts)}."
