"""Figures of one row inside a model; time runs from left to right in all of them.

Shapes as in `trace`: M audio tokens, N answer tokens, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.style import context as style_context

from auris.inference.inspection.timing import TRUE
from auris.inference.inspection.trace import FRAME_SECONDS, Trace
from auris.text.figure_style import CAPTION, COLOURS, GREY, STYLE
from auris.text.tasks import is_synthetic

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from auris.inference.align import Times

# The first of these that is installed shows what matplotlib's own font lacks
EAST_ASIAN = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC")
FONTS = ["DejaVu Sans", *[font for font in EAST_ASIAN if font in get_font_names()][:1]]
PAGE = [STYLE, {"font.family": FONTS}]

MAP = "cividis"  # even in lightness, and the same to colour-blind eyes (Nunez et al. 2018)
WEIGHT = "Blues"
COMPONENTS = 12  # principal components that stand for the encoder's channels
MARKS = {"mean": "o", "conv": "s", "attention": "D", "stack": "^", "none": "v"}
MOST_TOKENS = 60  # rows of a picture that can still be read


@style_context(PAGE)
def plot_sound(trace: Trace, times: Times = ()) -> Figure:
    """Log-mel, encoder frames and audio tokens over time, with the words that are said where `times` are given. Of the
    frames and the tokens the first principal components of the frames are shown, the same ones for both."""
    figure, axes = _panels(trace, "What the model hears", (2.0, 1.5, 1.5), height=5.2)
    _draw_mel(axes[0], trace, times)
    frames, basis = _principal_components(trace)
    stacked = trace.pooled.reshape(-1, trace.frames.shape[1])  # of `stack` the frames of a token one after the other
    pooled = (stacked - trace.frames.mean(0)) @ basis.T
    reach = np.quantile(np.abs(frames), 0.99)
    parts = [
        (frames, len(frames), FRAME_SECONDS, "Encoder frames"),
        (pooled, len(trace.pooled), trace.token_seconds, "Audio tokens, pooled"),
    ]
    for axis, (x, count, step, name) in zip(axes[1:], parts, strict=True):
        image = _image(axis, x.T, count * step, cmap=MAP, vmin=-reach, vmax=reach)
        axis.set_ylabel("component")
        axis.set_yticks([0.5, len(basis) - 0.5], ["1", str(len(basis))])
        axis.set_title(f"{name}: {count} of {1000 * step:.0f} ms")
    figure.colorbar(image, ax=axes[1:].tolist(), label="projection", pad=0.01, aspect=25)
    return figure


@style_context(PAGE)
def plot_attention(trace: Trace, times: Times = (), *, layer: int | None = None, head: int | None = None) -> Figure:
    """Where each token of the answer listens: attention to the audio over time, under the log-mel, and beside it how
    much of all its attention goes to the audio. Means over layers and heads unless one of either is given; the shade
    goes up to the picture's own maximum, in per cent of all attention of the token."""
    weights = trace.attention if layer is None else trace.attention[[layer]]
    weights = weights if head is None else weights[:, [head]]
    weights = 100 * weights.mean((0, 1))[:MOST_TOKENS]  # (N, M)
    chosen = (("layer", layer), ("head", head))
    which = ", ".join(f"mean over {name}s" if one is None else f"{name} {one}" for name, one in chosen)
    figure, axes = _panels(trace, "Where the answer listens", (1.5, 0.5 + 0.19 * len(weights)), side=True)
    (mel, empty), (where, total) = axes
    _draw_mel(mel, trace, times)
    empty.set_axis_off()
    image = _image(where, weights, trace.attention.shape[-1] * trace.token_seconds, cmap=WEIGHT, vmin=0)
    where.invert_yaxis()
    where.set_yticks(np.arange(len(weights)) + 0.5, [_shown(token) for token in trace.tokens[: len(weights)]])
    where.tick_params(axis="y", length=0, labelsize=8)
    _mark(where, times)
    left_out = f", first {MOST_TOKENS} of {len(trace.tokens)} tokens" if len(trace.tokens) > MOST_TOKENS else ""
    where.set_title(f"Attention to the audio, {which}{left_out}")
    total.barh(np.arange(len(weights)) + 0.5, weights.sum(1), height=0.8, color=COLOURS[0])
    total.set_ylim(where.get_ylim())
    total.set_xlim(0, 100)
    total.set_xticks([0, 50, 100])
    total.tick_params(axis="y", length=0, labelleft=False)
    total.grid(axis="y", visible=False)
    total.set_title("On audio, %")
    figure.colorbar(image, ax=axes[:, 1].tolist(), label="% of a token's attention", pad=0.02, aspect=30)
    return figure


@style_context(PAGE)
def plot_heads(trace: Trace, times: Times = ()) -> Figure:
    """The same attention layer by layer and, up to 32 panels, head by head; else the mean of each layer's heads."""
    n_layers, n_heads, n, m = trace.attention.shape
    single = n_layers * n_heads <= 32
    weights = trace.attention if single else trace.attention.mean(1, keepdims=True)
    columns = n_heads if single else min(4, n_layers)
    panels = weights.reshape(-1, n, m)[:, :MOST_TOKENS]
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(0.6 + 1.75 * columns, 0.9 + 1.45 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for number, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
        top = panel.max()
        _image(axis, panel, m * trace.token_seconds, cmap=WEIGHT, vmin=0, vmax=top if top > 0 else 1)
        layer, head = divmod(number, n_heads) if single else (number, None)
        name = f"layer {layer}" if head is None else f"layer {layer}, head {head}"
        axis.set_title(f"{name}: {100 * panel.sum(1).mean():.0f} %", fontsize=8)
        _mark(axis, times)
        axis.set_yticks([0, len(panel)])
    axes[0].invert_yaxis()  # shared by all
    figure.supylabel("token of the answer", fontsize=9)
    _head(figure, trace, "Heads and what share of their attention is on audio")
    caption = "Horizontal axes: seconds. Each panel is shaded up to its own maximum; layers and heads count from 0."
    figure.supxlabel(caption, **CAPTION)
    return figure


@style_context(PAGE)
def plot_pooling(trace: Trace, kept: pd.DataFrame) -> Figure:
    """What each pooling keeps. Left, the course of the frames' first principal component, and its means over windows;
    right, the share of all frames' variance that a linear readout gets back from the tokens (`compare_poolings`)."""
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    course, share = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_course(course, trace, sorted({int(k) for k in kept["k"] if k > 1}))
    for place, (name, points) in enumerate(kept.groupby("pooling", sort=False)):
        x = points["tokens per second"] * (1 + 0.035 * (place - 2))  # side by side, not on top of each other
        kept_, low, high = (100 * points[column].to_numpy() for column in ("kept", "low", "high"))
        spread = np.clip([kept_ - low, high - kept_], 0, None)
        label = f"{name} (as initialised)" if "as initialised" in set(points["weights"]) else name
        style = {"color": COLOURS[place], "marker": MARKS[name], "markersize": 5, "capsize": 2}
        share.errorbar(x, kept_, yerr=spread, linewidth=1, label=label, **style)
    share.set_xscale("log")
    rates = sorted(kept["tokens per second"].unique())
    share.set_xticks(rates, [f"{rate:g}" for rate in rates])
    share.minorticks_off()
    share.set_ylim(0, 105)
    share.set_xlabel("tokens per second of audio")
    share.set_title("Variance kept, %")
    share.legend(fontsize=7.5, loc="lower right")
    _head(figure, trace, "What pooling keeps")
    rows = kept["rows"].iloc[0]
    caption = f"Right: of {rows} rows that the readout was not fitted on; 95 % bootstrap intervals over rows."
    figure.supxlabel(caption, **CAPTION)
    return figure


@style_context(PAGE)
def plot_times(trace: Trace, found: Mapping[str, Times]) -> Figure:
    """Words as boxes over time, a lane for each source of their times, under the log-mel; where there is none, it says
    so."""
    figure, axes = _panels(trace, "When words are said", (1.5, 0.25 + 0.45 * max(1, len(found))))
    _draw_mel(axes[0], trace, ())
    lanes = axes[1]
    for lane, (source, words) in enumerate(found.items()):
        colour = GREY if source == TRUE else COLOURS[lane]
        for word in words:
            length = word["end"] - word["start"]
            lanes.barh(lane, length, left=word["start"], height=0.72, color=colour, alpha=0.3, edgecolor=colour)
            middle = word["start"] + length / 2
            lanes.text(middle, lane, word["word"], ha="center", va="center", fontsize=7.5, clip_on=True)
    lanes.set_yticks(range(len(found)), list(found))
    lanes.set_ylim(max(1, len(found)) - 0.5, -0.5)
    if not found:
        lanes.text(0.01, 0.5, "no word times of this row", transform=lanes.transAxes, va="center", color=GREY)
    lanes.tick_params(axis="y", length=0)
    lanes.grid(axis="y", visible=False)
    for word in found.get(TRUE, ()):
        for end in ("start", "end"):
            lanes.axvline(word[end], color=GREY, linewidth=0.7, linestyle=":")
    return figure


def _panels(
    trace: Trace, title: str, heights: tuple[float, ...], *, height: float | None = None, side: bool = False
) -> tuple[Figure, np.ndarray]:
    """Axes one above the other on one axis of time; with `side` a narrow one beside each."""
    figure = Figure(figsize=(7.2, height or 1.2 + sum(heights)), layout="constrained")
    ratios = {"height_ratios": heights, **({"width_ratios": (6, 1)} if side else {})}
    axes = figure.subplots(len(heights), 2 if side else 1, sharex="col", squeeze=False, **ratios)
    _head(figure, trace, title)
    main = axes[:, 0]
    main[-1].set_xlabel("seconds")
    main[-1].set_xlim(0, trace.seconds)
    return figure, axes if side else main


def _draw_mel(axis: Axes, trace: Trace, times: Times) -> None:
    _image(axis, trace.mel, trace.mel.shape[1] * FRAME_SECONDS / 2, cmap=MAP)
    axis.set_ylabel("mel bin")
    axis.set_yticks([0, len(trace.mel)])
    axis.set_title(f"Log-mel, {len(trace.mel)} bins", pad=14 if times else None)
    _mark(axis, times)
    for word in times:
        place = ((word["start"] + word["end"]) / 2, 1.02)
        axis.text(*place, word["word"], transform=axis.get_xaxis_transform(), ha="center", va="bottom", fontsize=7)


def _image(axis: Axes, values: np.ndarray, seconds: float, **options: object) -> AxesImage:
    """Values (rows, steps) over `seconds`, row 0 at the bottom."""
    axis.grid(False)
    extent = (0, seconds, 0, len(values))
    given = {"aspect": "auto", "origin": "lower", "interpolation": "nearest", "rasterized": True, **options}
    return axis.imshow(values, extent=extent, **given)


def _mark(axis: Axes, times: Times) -> None:
    """Where words begin and end."""
    for time in sorted({word[end] for word in times for end in ("start", "end")}):
        axis.axvline(time, color="white", linewidth=1.4, alpha=0.6)
        axis.axvline(time, color="black", linewidth=0.5, alpha=0.8)


def _draw_course(axis: Axes, trace: Trace, ks: list[int]) -> None:
    course = _principal_components(trace)[0][:, 0]
    middles = (np.arange(len(course)) + 0.5) * FRAME_SECONDS
    axis.plot(middles, course, color="#AAAAAA", linewidth=2.5, label="frames, 20 ms", zorder=1)
    for place, k in enumerate(ks):
        means = course[: len(course) // k * k].reshape(-1, k).mean(1)
        edges = np.arange(len(means) + 1) * k * FRAME_SECONDS
        axis.stairs(means, edges, baseline=None, color=COLOURS[place], label=f"mean of {k}", linewidth=1.1)
    axis.set_xlim(0, trace.seconds)
    axis.set_xlabel("seconds")
    axis.set_title("First principal component")
    axis.legend(fontsize=7.5, ncols=2, frameon=True, framealpha=0.8, edgecolor="none")


def _principal_components(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames' first principal components (C, COMPONENTS) and their basis (COMPONENTS, D)."""
    centred = trace.frames - trace.frames.mean(0)
    _, _, basis = np.linalg.svd(centred, full_matrices=False)
    return centred @ basis[:COMPONENTS].T, basis[:COMPONENTS]


def _shown(token: str) -> str:
    return token.replace("\n", "⏎").replace(" ", "\u00b7").replace("$", r"\$") or "..."


def _head(figure: Figure, trace: Trace, title: str) -> None:
    made = trace.row.labels.get("provenance", "")
    kind = f" ({'synthetic: ' if is_synthetic(made) else ''}{made})" if made else ""
    answer = trace.answer.strip().replace("$", r"\$")
    answer = answer if len(answer) <= 80 else f"{answer[:80]}..."
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=11, fontweight="bold")
    said = f"{trace.model}, row {trace.row.id}{kind}; answer: {answer!r}"
    figure.text(0.01, 0.985, f"\n{said}", ha="left", va="top", fontsize=7.5, color=GREY, linespacing=1.9)
