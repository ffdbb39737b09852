"""Figures of one row inside a model. Time runs from left to right in all of them.

Shapes as in `trace`: M audio tokens, N response tokens, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.style import context as style_context

from auris.inference.align import ENDS
from auris.inference.inspection.timing import TRUE
from auris.inference.inspection.trace import FRAME_SECONDS, Trace
from auris.text.figure_style import CAPTION, COLOURS, GREY, STYLE
from auris.text.tasks import is_synthetic

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from auris.inference.align import Times, WordTime

# Fonts for characters that matplotlib's own font lacks; the first installed one is used.
EAST_ASIAN = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC")
FONTS = ["DejaVu Sans", *[font for font in EAST_ASIAN if font in get_font_names()][:1]]
PAGE = [STYLE, {"font.family": FONTS}]

MAP = "cividis"  # uniform in lightness and safe for colour blindness (Nunez et al. 2018)
WEIGHT = "Blues"
COMPONENTS = 12  # principal components of the encoder's channels that are shown
MARKS = {"mean": "o", "conv": "s", "attention": "D", "stack": "^", "none": "v"}
MAX_TOKENS = 60  # rows of a figure, so that labels stay readable


@style_context(PAGE)
def plot_sound(trace: Trace, times: Sequence[WordTime] = ()) -> Figure:
    """Plot log-mel, encoder frames and audio tokens over time, with words if `times` are given.

    Frames and tokens are projected on the first principal components of the frames.
    """
    figure, axes = _panels(trace, "Log-mel, encoder frames and audio tokens", (2.0, 1.5, 1.5), height=5.2)
    _draw_mel(axes[0], trace, times)
    frames, basis = _principal_components(trace)
    stacked = trace.pooled.reshape(-1, trace.frames.shape[1])  # `stack` concatenates the frames of a token
    pooled = (stacked - trace.frames.mean(0)) @ basis.T
    reach = np.quantile(np.abs(frames), 0.99)
    parts = [
        (frames, len(frames), FRAME_SECONDS, "Encoder frames"),
        (pooled, len(trace.pooled), trace.token_seconds, "Audio tokens, pooled"),
    ]
    images = []
    for axis, (x, count, step, name) in zip(axes[1:], parts, strict=True):
        images.append(_image(axis, x.T, count * step, cmap=MAP, vmin=-reach, vmax=reach))
        axis.set_ylabel("component")
        axis.set_yticks([0.5, len(basis) - 0.5], ["1", str(len(basis))])
        axis.set_title(f"{name}: {count} of {1000 * step:.0f} ms")
    figure.colorbar(images[-1], ax=axes[1:].tolist(), label="projection", pad=0.01, aspect=25)
    return figure


@style_context(PAGE)
def plot_attention(
    trace: Trace, times: Sequence[WordTime] = (), *, layer: int | None = None, head: int | None = None
) -> Figure:
    """Plot the attention of each response token to the audio over time, and the total share of its attention on audio.

    Args:
        trace: the trace.
        times: words to mark.
        layer: the layer; None: mean over layers.
        head: the head; None: mean over heads.
    """
    weights = trace.attention if layer is None else trace.attention[[layer]]
    weights = weights if head is None else weights[:, [head]]
    weights = 100 * weights.mean((0, 1))[:MAX_TOKENS]  # (N, M)
    selection = (("layer", layer), ("head", head))
    which = ", ".join(f"mean over {name}s" if number is None else f"{name} {number}" for name, number in selection)
    figure, axes = _panels(trace, "Attention of the response to the audio", (1.5, 0.5 + 0.19 * len(weights)), side=True)
    (mel, empty), (where, total) = axes
    _draw_mel(mel, trace, times)
    empty.set_axis_off()
    image = _image(where, weights, trace.attention.shape[-1] * trace.token_seconds, cmap=WEIGHT, vmin=0)
    where.invert_yaxis()
    where.set_yticks(np.arange(len(weights)) + 0.5, [_label(token) for token in trace.tokens[: len(weights)]])
    where.tick_params(axis="y", length=0, labelsize=8)
    _mark(where, times)
    note = f", first {MAX_TOKENS} of {len(trace.tokens)} tokens" if len(trace.tokens) > MAX_TOKENS else ""
    where.set_title(f"Attention to the audio, {which}{note}")
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
def plot_heads(trace: Trace, times: Sequence[WordTime] = ()) -> Figure:
    """Plot the same attention by layer and, up to 32 panels, by head; otherwise the mean over the heads of a layer."""
    n_layers, n_heads, n, m = trace.attention.shape
    single = n_layers * n_heads <= 32
    weights = trace.attention if single else trace.attention.mean(1, keepdims=True)
    columns = n_heads if single else min(4, n_layers)
    panels = weights.reshape(-1, n, m)[:, :MAX_TOKENS]
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
    figure.supylabel("token of the response", fontsize=9)
    _head(figure, trace, "Heads, with the share of their attention on audio")
    caption = "Horizontal axes: seconds. Each panel is scaled to its own maximum. Layers and heads are counted from 0."
    figure.supxlabel(caption, **CAPTION)
    return figure


@style_context(PAGE)
def plot_pooling(trace: Trace, kept: pd.DataFrame) -> Figure:
    """Plot what each pooling keeps.

    The left panel shows the first principal component of the frames and its means over windows. The right panel shows
    the share of the variance of frames that a linear readout recovers from the tokens.

    Args:
        trace: the trace.
        kept: the result of `compare_poolings`.
    """
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    course, share = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_course(course, trace, sorted({int(k) for k in kept["k"] if k > 1}))
    for number, (key, points) in enumerate(kept.groupby("pooling", sort=False)):
        name = str(key)
        x = points["tokens per second"] * (1 + 0.035 * (number - 2))  # shifted, so that points do not overlap
        shares, low, high = (100 * points[column].to_numpy() for column in ("kept", "low", "high"))
        spread = np.clip([shares - low, high - shares], 0, None)
        label = f"{name} (as initialised)" if "as initialised" in set(points["weights"]) else name
        style: dict[str, Any] = {"color": COLOURS[number], "marker": MARKS[name], "markersize": 5, "capsize": 2}
        share.errorbar(x, shares, yerr=spread, linewidth=1, label=label, **style)
    share.set_xscale("log")
    rates = sorted(kept["tokens per second"].unique())
    share.set_xticks(rates, [f"{rate:g}" for rate in rates])
    share.minorticks_off()
    share.set_ylim(0, 105)
    share.set_xlabel("tokens per second of audio")
    share.set_title("Variance kept, %")
    share.legend(fontsize=7.5, loc="lower right")
    _head(figure, trace, "Information kept by pooling")
    rows = kept["rows"].iloc[0]
    caption = f"Right: {rows} rows on which the readout was not fitted, with 95 % bootstrap intervals over rows."
    figure.supxlabel(caption, **CAPTION)
    return figure


@style_context(PAGE)
def plot_times(trace: Trace, times: Mapping[str, Times]) -> Figure:
    """Plot words as boxes over time, with one lane for each source of their times, below the log-mel."""
    figure, axes = _panels(trace, "Times of words", (1.5, 0.25 + 0.45 * max(1, len(times))))
    _draw_mel(axes[0], trace, ())
    lanes = axes[1]
    for lane, (source, words) in enumerate(times.items()):
        colour = GREY if source == TRUE else COLOURS[lane]
        for word in words:
            length = word["end"] - word["start"]
            lanes.barh(lane, length, left=word["start"], height=0.72, color=colour, alpha=0.3, edgecolor=colour)
            middle = word["start"] + length / 2
            lanes.text(middle, lane, word["word"], ha="center", va="center", fontsize=7.5, clip_on=True)
    lanes.set_yticks(range(len(times)), list(times))
    lanes.set_ylim(max(1, len(times)) - 0.5, -0.5)
    if not times:
        lanes.text(0.01, 0.5, "no word times for this row", transform=lanes.transAxes, va="center", color=GREY)
    lanes.tick_params(axis="y", length=0)
    lanes.grid(axis="y", visible=False)
    for word in times.get(TRUE, ()):
        for end in ENDS:
            lanes.axvline(word[end], color=GREY, linewidth=0.7, linestyle=":")
    return figure


def _panels(
    trace: Trace, title: str, heights: tuple[float, ...], *, height: float | None = None, side: bool = False
) -> tuple[Figure, np.ndarray]:
    """Create axes one above the other that share a time axis; with `side` a narrow one to the right of each."""
    figure = Figure(figsize=(7.2, height or 1.2 + sum(heights)), layout="constrained")
    ratios: dict[str, Any] = {"height_ratios": heights, **({"width_ratios": (6, 1)} if side else {})}
    axes = figure.subplots(len(heights), 2 if side else 1, sharex="col", squeeze=False, **ratios)
    _head(figure, trace, title)
    main = axes[:, 0]
    main[-1].set_xlabel("seconds")
    main[-1].set_xlim(0, trace.seconds)
    return figure, axes if side else main


def _draw_mel(axis: Axes, trace: Trace, times: Sequence[WordTime]) -> None:
    _image(axis, trace.mel, trace.mel.shape[1] * FRAME_SECONDS / 2, cmap=MAP)
    axis.set_ylabel("mel bin")
    axis.set_yticks([0, len(trace.mel)])
    axis.set_title(f"Log-mel, {len(trace.mel)} bins", pad=14 if times else None)
    _mark(axis, times)
    for word in times:
        axis.text(
            (word["start"] + word["end"]) / 2,
            1.02,
            word["word"],
            transform=axis.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=7,
        )


def _image(axis: Axes, values: np.ndarray, seconds: float, **options: Any) -> AxesImage:
    """Draw values (rows, steps) over `seconds`, with row 0 at the bottom."""
    axis.grid(False)
    extent = (0, seconds, 0, len(values))
    style: dict[str, Any] = {
        "aspect": "auto",
        "origin": "lower",
        "interpolation": "nearest",
        "rasterized": True,
        **options,
    }
    return axis.imshow(values, extent=extent, **style)


def _mark(axis: Axes, times: Sequence[WordTime]) -> None:
    """Draw lines at the starts and ends of words."""
    for time in sorted({word[end] for word in times for end in ENDS}):
        axis.axvline(time, color="white", linewidth=1.4, alpha=0.6)
        axis.axvline(time, color="black", linewidth=0.5, alpha=0.8)


def _draw_course(axis: Axes, trace: Trace, ks: list[int]) -> None:
    course = _principal_components(trace)[0][:, 0]
    middles = (np.arange(len(course)) + 0.5) * FRAME_SECONDS
    axis.plot(middles, course, color="#AAAAAA", linewidth=2.5, label="frames, 20 ms", zorder=1)
    for number, k in enumerate(ks):
        means = course[: len(course) // k * k].reshape(-1, k).mean(1)
        edges = np.arange(len(means) + 1) * k * FRAME_SECONDS
        axis.stairs(means, edges, baseline=None, color=COLOURS[number], label=f"mean of {k}", linewidth=1.1)
    axis.set_xlim(0, trace.seconds)
    axis.set_xlabel("seconds")
    axis.set_title("First principal component")
    axis.legend(fontsize=7.5, ncols=2, frameon=True, framealpha=0.8, edgecolor="none")


def _principal_components(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames' first principal components (C, COMPONENTS) and their basis (COMPONENTS, D)."""
    centred = trace.frames - trace.frames.mean(0)
    _, _, basis = np.linalg.svd(centred, full_matrices=False)
    return centred @ basis[:COMPONENTS].T, basis[:COMPONENTS]


def _label(token: str) -> str:
    return token.replace("\n", "⏎").replace(" ", "\u00b7").replace("$", r"\$") or "..."


def _head(figure: Figure, trace: Trace, title: str) -> None:
    provenance = trace.row.labels.get("provenance", "")
    kind = f" ({'synthetic: ' if is_synthetic(provenance) else ''}{provenance})" if provenance else ""
    answer = trace.answer.strip().replace("$", r"\$")
    answer = answer if len(answer) <= 80 else f"{answer[:80]}..."
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=11, fontweight="bold")
    details = f"{trace.model}, row {trace.row.id}{kind}; response: {answer!r}"
    figure.text(0.01, 0.985, f"\n{details}", ha="left", va="top", fontsize=7.5, color=GREY, linespacing=1.9)
