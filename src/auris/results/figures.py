"""Figures of a study, as one would put them into a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.style import context as style_context

from auris.errors import UserError
from auris.metrics.measures import CORRECT, MEASURES, PANELS, display
from auris.results.runs import collect, curves, join, ordered, runs_of
from auris.results.tables import table
from auris.text.figure_style import CAPTION, STYLE, assign_colours
from auris.text.tasks import is_synthetic

TOO_MANY = "choose some arms with arms=[a,b]"
MARKERS = "osD^vPX*"  # of points, in the order of COLOURS
SAID = ("accuracy", "aas_ms", "bleu", "cider")  # metrics that the panel of the bars names already


def plot_bars(root: str | Path, arms: Sequence[str] | None = None, frame: pd.DataFrame | None = None) -> Figure:
    """Scores per benchmark and group with 95 % intervals, the arms side by side; error rates, BLEU, accuracies and so
    on in panels of their own. Where there are more than BARS, points instead of bars, in as many columns as they need.
    `frame`: the `table` of these arms, if it has been computed already. Raises ValueError as `table` does."""
    frame = table(root, arms) if frame is None else frame
    arms = frame.attrs["arms"]
    colours = assign_colours(arms, TOO_MANY)
    several = frame["benchmark"].nunique() > 1
    lines = frame.to_dict("records")
    panels = {panel: [row for row in lines if MEASURES[row["metric"]].panel == panel] for panel in PANELS}
    panels = {panel: rows for panel, rows in panels.items() if rows}
    as_points = len(arms) * sum(len(rows) for rows in panels.values()) > BARS
    line = 0.12 + 0.06 * len(arms) if as_points else 0.14 + 0.17 * len(arms)
    columns = _columns(panels, line, tallest=TALLEST if as_points else np.inf)
    heights = [[TITLE + line * len(rows) for _, rows in column] for column in columns]
    height = max(sum(of_column) for of_column in heights)
    longest = [max(len(_label(row, several)) for _, rows in column for row in rows) for column in columns]
    widths = [max(3.3, 2.2 + 0.055 * length) for length in longest] if as_points else [6.8]  # room for titles
    with style_context(STYLE):
        figure = Figure(figsize=(sum(widths), 1.1 + height), layout="constrained")
        parts = figure.subfigures(1, len(columns), squeeze=False, width_ratios=widths)[0]
        for part, column, of_column in zip(parts, columns, heights, strict=True):
            rest = [height - sum(of_column)] if height - sum(of_column) > 0.01 else []  # a shorter column ends above
            axes = part.subplots(len(column) + len(rest), 1, squeeze=False, height_ratios=[*of_column, *rest])[:, 0]
            for axis, (panel, rows) in zip(axes, column, strict=False):
                _draw_bars(axis, panel, rows, colours, several, as_points)
            for axis in axes[len(column) :]:
                axis.set_visible(False)
        _head(figure, root, colours, MARKERS if as_points else "")
        seeds = frame[[f"{arm} seeds" for arm in arms]].to_numpy().max()
        pooled = f", {seeds} seeds pooled" if seeds > 1 else ""
        caption = f"Test-set score{pooled}; whiskers: 95 % bootstrap interval over test rows.\n{provenance(frame)}"
        figure.supxlabel(caption, **CAPTION)
    return figure


BARS = 72  # more of them are no figure any more
TALLEST = 8.0  # inches, of a column of points
TITLE = 0.6  # inches, of a panel's title and axis


def _columns(panels: Mapping[str, list[dict]], line: float, tallest: float) -> list[list[tuple[str, list[dict]]]]:
    """Panels in columns of about one height, a panel going on in the next one where it must; `line` is a row's."""
    waiting = list(panels.items())
    number = max(1, int(np.ceil(sum(TITLE + line * len(rows) for _, rows in waiting) / tallest)))
    columns = []
    for left in range(number, 0, -1):
        room, column = sum(TITLE + line * len(rows) for _, rows in waiting) / left, []
        while waiting:
            panel, rows = waiting.pop(0)
            fitting = max(0, round((room - TITLE) / line))
            if left == 1 or len(rows) - fitting < 3:  # two rows are not worth a title
                fitting = len(rows)
            elif fitting < 3 and column:
                fitting = 0
            if fitting:
                column.append((panel, rows[:fitting]))
                room -= TITLE + line * fitting
            if rows[fitting:]:
                waiting.insert(0, (panel, rows[fitting:]))
                break
        columns.append(column)
    return [column for column in columns if column]


def _draw_bars(
    axis: Axes, panel: str, rows: list[dict], colours: dict[str, str], several: bool, as_points: bool
) -> None:
    scale = MEASURES[rows[0]["metric"]].scale
    thickness = 0.76 / len(colours)
    reach = 0.0
    for i, (arm, colour) in enumerate(colours.items()):
        for y, row in enumerate(rows):
            if np.isnan(row[arm]):
                continue
            point, low, high = (scale * row[f"{arm}{part}"] for part in ("", " low", " high"))
            at = y + (i - (len(colours) - 1) / 2) * thickness
            end = np.nanmax([point, high])
            reach = max(reach, end)
            if as_points:
                axis.plot([low, high], [at, at], color=colour, linewidth=1.2, solid_capstyle="butt")
                axis.plot(point, at, marker=MARKERS[i], color=colour, markersize=3.2, clip_on=False)
                continue
            axis.barh(at, point, height=0.92 * thickness, color=colour)
            for width, ink in ((2.4, "white"), (1, "black")):  # seen on a bar of any colour
                axis.plot([low, high], [at, at], color=ink, linewidth=width, solid_capstyle="butt")
            text = display(row["metric"], row[arm])
            axis.annotate(text, (end, at), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
    axis.set_yticks(range(len(rows)), [_label(row, several) for row in rows], fontsize=7.5 if as_points else None)
    if as_points:  # lines apart, where arms stand close
        for y in range(1, len(rows)):
            axis.axhline(y - 0.5, color="#EEEEEE", linewidth=0.6, zorder=0)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, max(1.1 * reach, 1.0))
    if panel == CORRECT:
        axis.set_xlim(0, 101 if as_points else 109)  # the room above 100 is for the numbers
        axis.set_xticks(range(0, 101, 20))
    better = "higher" if MEASURES[rows[0]["metric"]].higher_is_better else "lower"
    axis.set_title(f"{panel}, {better} is better", x=1, ha="right")  # wider than the bars where labels are long


def _label(row: dict, several: bool) -> str:
    where = [f"({row['benchmark']})"] if several else []
    what = [] if row["metric"] in SAID else [MEASURES[row["metric"]].label]
    return f"{' '.join([row['group'], *what, *where])}  n={row['n']}"


def plot_curves(root: str | Path, arms: Sequence[str] | None = None, x: str = "steps") -> Figure:
    """Training loss (smoothed), validation loss and validation metrics, one line per arm: the mean of its seeds, with
    their range as a band. Arms default to those that have predictions, else to all that have events; an arm without
    events has no line. `x`: a key of AXES. Raises ValueError for an unknown arm or axis, or if nothing was logged."""
    if x not in AXES:
        raise UserError(f"x={x}: expected {join(AXES)}")
    scalars = curves(root)
    tag = scalars["tag"]
    is_constant = tag.str.startswith("val/length_")  # of given answers
    points = scalars[(tag == "train/loss") | tag.str.startswith("val/") & ~is_constant]
    logged = set(points["arm"])
    runs = runs_of(root)
    if arms is None:
        evaluated = {arm for arm, _, run in runs if any(run.glob("predictions/*.jsonl"))}
        arms = ordered(root, evaluated & logged or logged)
    if unknown := set(arms) - {arm for arm, _, _ in runs}:
        raise UserError(
            f"no runs of {join(ordered(root, unknown))} in {root}; arms=... may name {join(ordered(root, logged))}"
        )
    if not logged & set(arms):
        raise UserError(f"the runs of {join(arms) or 'any arm'} in {root} hold no train/loss or val/* scalars")
    points = _along(x, points[points["arm"].isin(arms)], scalars)
    colours = assign_colours(arms, TOO_MANY)  # the same as in the bars
    colours = {arm: colour for arm, colour in colours.items() if arm in logged}
    tags = sorted(points["tag"].unique(), key=lambda tag: (tag != "train/loss", tag != "val/loss", _rank(tag), tag))
    columns = min(len(tags), max(3, round((len(tags) / 1.4) ** 0.5)))  # a page, however many they are
    rows = -(-len(tags) // columns)
    with style_context(STYLE):
        figure = Figure(figsize=(2.8 * columns + 0.6, 2.1 * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, tag in zip(axes, tags, strict=False):
            _draw_curves(axis, tag, points[points["tag"] == tag], colours)
        for axis in axes[len(tags) :]:
            axis.set_visible(False)
        _head(figure, root, colours)
        seeds = points.groupby("arm")["seed"].nunique().max()
        band = "Lines: mean of the seeds; bands: their range.\n" if seeds > 1 else ""
        tested = collect(root)
        data = "" if tested.empty else provenance(tested)
        figure.supxlabel(f"Horizontal axis: {AXES[x][0]}. Scores: validation rows.\n{band}{data}", **CAPTION)
    return figure


# Titles of what is logged and is no measure of a task
TITLES = {
    "train/loss": "Training loss, smoothed",
    "val/loss": "Validation loss",
    "val/reward_margin": "Reward, chosen - rejected",
    "val/kl": "Log p of the reference - log p",
    "val/logps_chosen": "Log p of the chosen answer",
    "val/logps_rejected": "Log p of the rejected answer",
}

# What a curve can stand over: in words, and the scalar that counts it
AXES = {
    "steps": ("training steps", None),
    "hours": ("hours of audio heard, rows as often as they came", "train/audio_hours"),
    "flops": ("useful floating-point operations", "train/flops"),
}


def _along(x: str, points: pd.DataFrame, scalars: pd.DataFrame) -> pd.DataFrame:
    """The points with a column `x`: their steps, or what their run had counted at that step."""
    tag = AXES[x][1]
    if tag is None:
        return points.assign(x=points["step"])
    parts = []
    for (arm, seed), of_run in points.groupby(["arm", "seed"], sort=False):
        own = (scalars["arm"] == arm) & (scalars["seed"] == seed) & (scalars["tag"] == tag)
        counted = scalars[own].sort_values("step")
        if counted.empty:
            raise UserError(f"x={x}: {arm}, seed {seed} has no {tag} in its events; x=steps is always there")
        parts.append(of_run.assign(x=np.interp(of_run["step"], counted["step"], counted["value"])))
    return pd.concat(parts)


def _draw_curves(axis: Axes, tag: str, points: pd.DataFrame, colours: dict[str, str]) -> None:
    metric = tag.rpartition("/")[2]
    known = MEASURES.get(metric)
    for arm, colour in colours.items():
        seeds = points[points["arm"] == arm].pivot(index="step", columns="seed", values="value").sort_index()
        if known:
            seeds = known.scale * seeds
        if tag == "train/loss":
            seeds = seeds.ewm(span=max(1, len(seeds) // 50)).mean()  # a fiftieth of the run: the line keeps its shape
        at = points[points["arm"] == arm].groupby("step")["x"].mean()  # of the seeds, that have heard about as much
        axis.plot(at, seeds.mean(axis=1), color=colour, linewidth=1.4, marker="." if len(seeds) < 12 else None)
        axis.fill_between(at, seeds.min(axis=1), seeds.max(axis=1), color=colour, alpha=0.2, linewidth=0)
    axis.margins(x=0.02)
    if known:
        of = tag.split("/", 1)[1].rpartition("/")[0] or "answer tokens"  # what the objective itself counts
        what = f"{known.label} ({known.unit})"
        axis.set_title(f"{of}: {what}" if len(of) + len(what) < 28 else f"{of}:\n{what}")
        axis.set_ylim(0, 104 if known.panel == CORRECT else max(1.08 * axis.dataLim.ymax, 1e-3))
    else:
        axis.set_title(TITLES.get(tag, tag))


def _rank(tag: str) -> int:
    return list(MEASURES).index(name) if (name := tag.rpartition("/")[2]) in MEASURES else len(MEASURES)


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure as PATH.png and, as vectors, PATH.pdf and PATH.svg."""
    written = [Path(path).with_name(f"{Path(path).name}.{suffix}") for suffix in ("png", "pdf", "svg")]
    layout = figure.get_layout_engine()
    try:
        for file in written:
            with style_context(STYLE):  # resolution and fonts are read when the file is made
                figure.savefig(file)
            figure.set_layout_engine("none")  # keeps the places that the first file has computed
    finally:
        figure.set_layout_engine(layout)
    return written


def _head(figure: Figure, root: str | Path, colours: dict[str, str], markers: str = "") -> None:
    handles = [Patch(color=colour, label=arm) for arm, colour in colours.items()]
    if markers:
        named = zip(colours.items(), markers, strict=False)
        handles = [Line2D([], [], color=colour, marker=mark, markersize=4, label=arm) for (arm, colour), mark in named]
    across = 3 if len(colours) > 4 or max(map(len, colours)) > 12 else len(colours)
    figure.legend(handles=handles, loc="outside upper right", ncols=across, fontsize=9, handlelength=1, handleheight=1)
    figure.suptitle(f"Study {Path(root).name}", x=0.01, ha="left", fontsize=11, fontweight="bold")


def provenance(frame: pd.DataFrame) -> str:
    """What the data is, in one sentence for a reader who sees only the figure."""
    kinds = {kind for joined in frame["provenance"] for kind in joined.split("+")}
    if is_synthetic("+".join(kinds)):
        return f"Synthetic data ({join(sorted(kinds))}): shows that the systems learn; says nothing of real recordings."
    if kinds == {"real"}:
        return "Real recordings."
    of_benchmark = frame.groupby("benchmark")["provenance"].agg(lambda p: "+".join(sorted(set("+".join(p).split("+")))))
    named = [f"{name}: {'synthetic, ' if is_synthetic(of) else ''}{of}" for name, of in of_benchmark.items()]
    return f"Data: {'; '.join(named)}."
