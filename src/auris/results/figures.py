"""Figures of a study, as one would put them into a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from auris.measures import CORRECT, MEASURES, PANELS, display
from auris.results.runs import collect, curves, join, ordered, runs_of
from auris.results.tables import table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart too (jfly.uni-koeln.de/color), grey for their yellow
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#000000")
GREY = "#555555"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text stays text in the PDF
    "svg.fonttype": "none",
}
SYNTHETIC = {"tts", "procedural", "templates"}
SAID = ("accuracy", "aas_ms", "bleu", "cider")  # metrics that the panel of the bars names already


def plot_bars(root: str | Path, arms: Sequence[str] | None = None) -> Figure:
    """Scores per benchmark and group with 95 % intervals, the arms side by side; error rates, BLEU, accuracies and so
    on in panels of their own. Raises ValueError as `table` does."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    frame = table(root, arms)
    arms = frame.attrs["arms"]
    colours = _colours(arms)
    several = frame["benchmark"].nunique() > 1
    panels = {}
    for row in frame.to_dict("records"):
        panel = MEASURES[row["metric"]].panel
        if panel:
            panels.setdefault(panel, []).append(row)
    panels = {panel: panels[panel] for panel in PANELS if panel in panels}
    heights = [0.6 + len(rows) * (0.14 + 0.17 * len(arms)) for rows in panels.values()]
    with rc_context(STYLE):
        figure = Figure(figsize=(6.8, 1.1 + sum(heights)), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, (panel, rows) in zip(axes, panels.items(), strict=True):
            _draw_bars(axis, panel, rows, colours, several)
        _head(figure, root, colours)
        seeds = frame[[f"{arm} seeds" for arm in arms]].to_numpy().max()
        pooled = f", {seeds} seeds pooled" if seeds > 1 else ""
        caption = f"Test-set score{pooled}; whiskers: 95 % bootstrap interval over test rows.\n{provenance(frame)}"
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=7.5, color=GREY)
    return figure


def _draw_bars(axis: Axes, panel: str, rows: list[dict], colours: dict[str, str], several: bool) -> None:
    scale = MEASURES[rows[0]["metric"]].scale
    thickness = 0.76 / len(colours)
    reach = 0.0
    for i, (arm, colour) in enumerate(colours.items()):
        for y, row in enumerate(rows):
            if np.isnan(row[arm]):
                continue
            point, low, high = (scale * row[f"{arm}{part}"] for part in ("", " low", " high"))
            at = y + (i - (len(colours) - 1) / 2) * thickness
            axis.barh(at, point, height=0.92 * thickness, color=colour)
            for width, ink in ((2.4, "white"), (1, "black")):  # seen on a bar of any colour
                axis.plot([low, high], [at, at], color=ink, linewidth=width, solid_capstyle="butt")
            end = np.nanmax([point, high])
            text = display(row["metric"], row[arm])
            axis.annotate(text, (end, at), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
            reach = max(reach, end)
    labels = []
    for row in rows:
        where = [f"({row['benchmark']})"] if several else []
        what = [] if row["metric"] in SAID else [MEASURES[row["metric"]].label]
        label = " ".join([row["group"], *what, *where])
        labels.append(f"{label}  n={row['n']}")
    axis.set_yticks(range(len(rows)), labels)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, max(1.1 * reach, 1.0))
    if panel == CORRECT:
        axis.set_xlim(0, 109)  # the room above 100 is for the numbers
        axis.set_xticks(range(0, 101, 20))
    better = "higher" if MEASURES[rows[0]["metric"]].higher_is_better else "lower"
    axis.set_title(f"{panel}, {better} is better", x=1, ha="right")  # wider than the bars where labels are long


def plot_curves(root: str | Path, arms: Sequence[str] | None = None, x: str = "steps") -> Figure:
    """Training loss (smoothed), validation loss and validation metrics, one line per arm: the mean of its seeds, with
    their range as a band. Arms default to those that have predictions, else to all that have events; an arm without
    events has no line. `x`: a key of AXES. Raises ValueError for an unknown arm or axis, or if nothing was logged."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if x not in AXES:
        raise ValueError(f"x={x}: expected {join(AXES)}")
    scalars = curves(root)
    points = scalars
    points = points[(points["tag"] == "train/loss") | points["tag"].str.startswith("val/")]
    logged = set(points["arm"])
    runs = runs_of(root)
    if arms is None:
        evaluated = {arm for arm, _, run in runs if any(run.glob("predictions/*.jsonl"))}
        arms = ordered(root, evaluated & logged or logged)
    if unknown := set(arms) - {arm for arm, _, _ in runs}:
        raise ValueError(
            f"no runs of {join(ordered(root, unknown))} in {root}; arms=... may name {join(ordered(root, logged))}"
        )
    if not logged & set(arms):
        raise ValueError(f"the runs of {join(arms) or 'any arm'} in {root} hold no train/loss or val/* scalars")
    points = _along(x, points[points["arm"].isin(arms)], scalars)
    colours = {arm: colour for arm, colour in _colours(arms).items() if arm in logged}  # the same as in the bars
    tags = sorted(points["tag"].unique(), key=lambda tag: (tag != "train/loss", tag != "val/loss", _rank(tag), tag))
    columns = min(3, len(tags))
    rows = -(-len(tags) // columns)
    with rc_context(STYLE):
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
        figure.supxlabel(
            f"Horizontal axis: {AXES[x][0]}. Scores: validation rows.\n{band}{data}",
            x=0.01,
            ha="left",
            fontsize=7.5,
            color=GREY,
        )
    return figure


# What a curve can stand over: in words, and the scalar that counts it
AXES = {
    "steps": ("training steps", None),
    "hours": ("hours of audio heard, rows as often as they came", "train/audio_hours"),
    "flops": ("useful floating-point operations", "train/flops"),
}


def _along(x: str, points: pd.DataFrame, scalars: pd.DataFrame) -> pd.DataFrame:
    """The points with a column `x`: their steps, or what their run had counted at that step."""
    import pandas as pd

    tag = AXES[x][1]
    if tag is None:
        return points.assign(x=points["step"])
    parts = []
    for (arm, seed), of_run in points.groupby(["arm", "seed"], sort=False):
        own = (scalars["arm"] == arm) & (scalars["seed"] == seed) & (scalars["tag"] == tag)
        counted = scalars[own].sort_values("step")
        if counted.empty:
            raise ValueError(f"x={x}: {arm}, seed {seed} has no {tag} in its events; x=steps is always there")
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
            seeds = seeds.ewm(span=_span(len(seeds))).mean()
        at = points[points["arm"] == arm].groupby("step")["x"].mean()  # of the seeds, that have heard about as much
        axis.plot(at, seeds.mean(axis=1), color=colour, linewidth=1.4, marker="." if len(seeds) < 12 else None)
        axis.fill_between(at, seeds.min(axis=1), seeds.max(axis=1), color=colour, alpha=0.2, linewidth=0)
    axis.margins(x=0.02)
    if tag == "train/loss":
        axis.set_title("Training loss, smoothed")
    elif known:
        of = tag.split("/", 1)[1].rpartition("/")[0] or "answer tokens"  # what the objective itself counts
        axis.set_title(f"{of}: {known.label} ({known.unit})")
        axis.set_ylim(0, 104 if known.panel == CORRECT else max(1.08 * axis.dataLim.ymax, 1e-3))
    else:
        axis.set_title("Validation loss" if tag == "val/loss" else tag)


def _span(n_points: int) -> int:
    """Logged points that the exponential smoothing spans: a fiftieth of the run, so that the line keeps its shape."""
    return max(1, n_points // 50)


def _rank(tag: str) -> int:
    return list(MEASURES).index(name) if (name := tag.rpartition("/")[2]) in MEASURES else len(MEASURES)


def _colours(arms: Sequence[str]) -> dict[str, str]:
    if len(arms) > len(COLOURS):
        raise ValueError(
            f"a figure tells at most {len(COLOURS)} arms apart, got {len(arms)}; choose some with arms=a,b"
        )
    return dict(zip(arms, COLOURS, strict=False))


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure as PATH.png and, as vectors, PATH.pdf and PATH.svg."""
    from matplotlib import rc_context

    written = [Path(path).with_name(f"{Path(path).name}.{suffix}") for suffix in ("png", "pdf", "svg")]
    for file in written:
        with rc_context(STYLE):  # resolution and fonts are read when the file is made
            figure.savefig(file)
    return written


def _head(figure: Figure, root: str | Path, colours: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=arm) for arm, colour in colours.items()]
    figure.legend(handles=patches, loc="outside upper right", ncols=3, fontsize=9, handlelength=1, handleheight=1)
    figure.suptitle(f"Study {Path(root).name}", x=0.01, ha="left", fontsize=11, fontweight="bold")


def provenance(frame: pd.DataFrame) -> str:
    """What the data is, in one sentence for a reader who sees only the figure."""
    kinds = {kind for joined in frame["provenance"] for kind in joined.split("+")}
    if kinds <= SYNTHETIC:
        return f"Synthetic data ({join(sorted(kinds))}): shows that the systems learn; says nothing of real recordings."
    if kinds == {"real"}:
        return "Real recordings."
    of_benchmark = frame.groupby("benchmark")["provenance"].agg(lambda p: "+".join(sorted(set("+".join(p).split("+")))))
    named = [
        f"{name}: {'synthetic, ' if set(of.split('+')) <= SYNTHETIC else ''}{of}" for name, of in of_benchmark.items()
    ]
    return f"Data: {'; '.join(named)}."
