"""Figures of what a model computes for one row. In all of them, the horizontal axis is time.

Shapes are named as in `trace`: M audio tokens, N tokens of the response, C encoder frames, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.style import context as style_context

from auris.inference.align import TIME_KEYS
from auris.inference.inspection.timing import LABELLED
from auris.inference.inspection.trace import FRAME_SECONDS, Trace
from auris.text.figure_style import CAPTION, COLOURS, GREY, STYLE
from auris.text.tasks import is_synthetic

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from auris.inference.align import Times, WordTime

# Fonts for characters that matplotlib's own font lacks; the first installed one is used.
EAST_ASIAN_FONTS = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC")
FONTS = ["DejaVu Sans", *[font for font in EAST_ASIAN_FONTS if font in get_font_names()][:1]]
FIGURE_STYLE = [STYLE, {"font.family": FONTS}]

FEATURE_COLOURS = "cividis"  # uniform in lightness and safe for colour blindness (Nunez et al. 2018)
ATTENTION_COLOURS = "Blues"
N_COMPONENTS = 12  # number of principal components of the encoder's channels that are shown
MARKERS = {"mean": "o", "conv": "s", "attention": "D", "stack": "^", "none": "v"}  # by pooling
MAX_TOKENS = 60  # maximum number of response tokens in a figure, so that their labels stay readable


@style_context(FIGURE_STYLE)
def plot_sound(trace: Trace, times: Sequence[WordTime] = ()) -> Figure:
    """Plot log-mel, encoder frames and audio tokens over time, with words if `times` are given.

    Frames and tokens are projected to the first principal components of the frames.
    """
    figure, axes = _make_panels(trace, "Log-mel, encoder frames and audio tokens", (2.0, 1.5, 1.5), height=5.2)
    _draw_mel(axes[0], trace, times)
    frames, basis = _principal_components(trace)
    # The pooling `stack` concatenates the frames of a window, which are separated here.
    vectors = trace.pooled.reshape(-1, trace.frames.shape[1])
    pooled = (vectors - trace.frames.mean(0)) @ basis.T
    limit = np.quantile(np.abs(frames), 0.99)
    panels = [
        (frames, len(frames), FRAME_SECONDS, "Encoder frames"),
        (pooled, len(trace.pooled), trace.token_seconds, "Audio tokens, pooled"),
    ]
    images = []
    for axis, (x, n, seconds, name) in zip(axes[1:], panels, strict=True):
        images.append(_draw_image(axis, x.T, n * seconds, cmap=FEATURE_COLOURS, vmin=-limit, vmax=limit))
        axis.set_ylabel("component")
        axis.set_yticks([0.5, len(basis) - 0.5], ["1", str(len(basis))])
        axis.set_title(f"{name}: {n}, {1000 * seconds:.0f} ms each")
    figure.colorbar(images[-1], ax=axes[1:].tolist(), label="projection", pad=0.01, aspect=25)
    return figure


@style_context(FIGURE_STYLE)
def plot_attention(
    trace: Trace, times: Sequence[WordTime] = (), *, layer: int | None = None, head: int | None = None
) -> Figure:
    """Plot how the attention of each response token is distributed over the audio, and which share of it is on audio.

    Args:
        trace: the trace.
        times: words whose starts and ends are drawn.
        layer: index of the layer; None: the mean over layers.
        head: index of the head; None: the mean over heads.
    """
    weights = trace.attention if layer is None else trace.attention[[layer]]
    weights = weights if head is None else weights[:, [head]]
    weights = 100 * weights.mean((0, 1))[:MAX_TOKENS]  # (N, M)
    indices = (("layer", layer), ("head", head))
    selection = ", ".join(f"mean over {name}s" if index is None else f"{name} {index}" for name, index in indices)
    figure, axes = _make_panels(
        trace, "Attention of the response to the audio", (1.5, 0.5 + 0.19 * len(weights)), with_side_panels=True
    )
    (mel, empty), (main, total) = axes
    _draw_mel(mel, trace, times)
    empty.set_axis_off()
    image = _draw_image(main, weights, trace.attention.shape[-1] * trace.token_seconds, cmap=ATTENTION_COLOURS, vmin=0)
    main.invert_yaxis()
    main.set_yticks(np.arange(len(weights)) + 0.5, [_label(token) for token in trace.tokens[: len(weights)]])
    main.tick_params(axis="y", length=0, labelsize=8)
    _draw_word_limits(main, times)
    note = f", first {MAX_TOKENS} of {len(trace.tokens)} tokens" if len(trace.tokens) > MAX_TOKENS else ""
    main.set_title(f"Attention to the audio, {selection}{note}")
    total.barh(np.arange(len(weights)) + 0.5, weights.sum(1), height=0.8, color=COLOURS[0])
    total.set_ylim(main.get_ylim())
    total.set_xlim(0, 100)
    total.set_xticks([0, 50, 100])
    total.tick_params(axis="y", length=0, labelleft=False)
    total.grid(axis="y", visible=False)
    total.set_title("On audio, %")
    figure.colorbar(image, ax=axes[:, 1].tolist(), label="% of a token's attention", pad=0.02, aspect=30)
    return figure


@style_context(FIGURE_STYLE)
def plot_heads(trace: Trace, times: Sequence[WordTime] = ()) -> Figure:
    """Plot the attention of the response to the audio in a panel for each layer and head.

    If the layers have more than 32 heads in total, each layer has one panel with the mean over its heads.
    """
    n_layers, n_heads, n, m = trace.attention.shape
    has_head_panels = n_layers * n_heads <= 32
    weights = trace.attention if has_head_panels else trace.attention.mean(1, keepdims=True)
    n_columns = n_heads if has_head_panels else min(4, n_layers)
    panels = weights.reshape(-1, n, m)[:, :MAX_TOKENS]
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(0.6 + 1.75 * n_columns, 0.9 + 1.45 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for number, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
        vmax = panel.max() or 1
        _draw_image(axis, panel, m * trace.token_seconds, cmap=ATTENTION_COLOURS, vmin=0, vmax=vmax)
        layer, head = divmod(number, n_heads) if has_head_panels else (number, None)
        name = f"layer {layer}" if head is None else f"layer {layer}, head {head}"
        axis.set_title(f"{name}: {100 * panel.sum(1).mean():.0f} %", fontsize=8)
        _draw_word_limits(axis, times)
        axis.set_yticks([0, len(panel)])
    axes[0].invert_yaxis()  # all panels share its vertical axis
    figure.supylabel("token of the response", fontsize=9)
    _add_title(figure, trace, "Heads, with the share of their attention on audio")
    caption = "Horizontal axes: seconds. Each panel is scaled to its own maximum. Layers and heads are counted from 0."
    figure.supxlabel(caption, **CAPTION)
    return figure


@style_context(FIGURE_STYLE)
def plot_pooling(trace: Trace, kept: pd.DataFrame) -> Figure:
    """Plot how much information each pooling keeps.

    The left panel shows the first principal component of the frames and its means over windows. The right panel shows
    the share of the variance of frames that a linear readout recovers from the tokens.

    Args:
        trace: the trace.
        kept: the result of `compare_poolings`.
    """
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    component_axis, share_axis = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_first_component(component_axis, trace, sorted({int(k) for k in kept["k"] if k > 1}))
    for number, (key, points) in enumerate(kept.groupby("pooling", sort=False)):
        name = str(key)
        x = points["tokens per second"] * (1 + 0.035 * (number - 2))  # shifted so that points do not overlap
        shares, low, high = (100 * points[column].to_numpy() for column in ("kept", "low", "high"))
        spread = np.clip([shares - low, high - shares], 0, None)
        label = f"{name} (as initialised)" if "as initialised" in set(points["weights"]) else name
        style: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[name], "markersize": 5, "capsize": 2}
        share_axis.errorbar(x, shares, yerr=spread, linewidth=1, label=label, **style)
    share_axis.set_xscale("log")
    rates = sorted(kept["tokens per second"].unique())
    share_axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
    share_axis.minorticks_off()
    share_axis.set_ylim(0, 105)
    share_axis.set_xlabel("tokens per second of audio")
    share_axis.set_title("Variance kept, %")
    share_axis.legend(fontsize=7.5, loc="lower right")
    _add_title(figure, trace, "Information kept by pooling")
    n_rows = kept["rows"].iloc[0]
    caption = f"Right: {n_rows} rows on which the readout was not fitted, with 95 % bootstrap intervals over rows."
    figure.supxlabel(caption, **CAPTION)
    return figure


@style_context(FIGURE_STYLE)
def plot_times(trace: Trace, times: Mapping[str, Times]) -> Figure:
    """Plot words as boxes over time below the log-mel, with one lane for each source of word times."""
    figure, axes = _make_panels(trace, "Times of words", (1.5, 0.25 + 0.45 * max(1, len(times))))
    _draw_mel(axes[0], trace, ())
    lanes = axes[1]
    for lane, (source, words) in enumerate(times.items()):
        colour = GREY if source == LABELLED else COLOURS[lane]
        for word in words:
            duration = word["end"] - word["start"]
            lanes.barh(lane, duration, left=word["start"], height=0.72, color=colour, alpha=0.3, edgecolor=colour)
            middle = word["start"] + duration / 2
            lanes.text(middle, lane, word["word"], ha="center", va="center", fontsize=7.5, clip_on=True)
    lanes.set_yticks(range(len(times)), list(times))
    lanes.set_ylim(max(1, len(times)) - 0.5, -0.5)
    if not times:
        lanes.text(0.01, 0.5, "no word times for this row", transform=lanes.transAxes, va="center", color=GREY)
    lanes.tick_params(axis="y", length=0)
    lanes.grid(axis="y", visible=False)
    for word in times.get(LABELLED, ()):
        for key in TIME_KEYS:
            lanes.axvline(word[key], color=GREY, linewidth=0.7, linestyle=":")
    return figure


def _make_panels(
    trace: Trace,
    title: str,
    heights: tuple[float, ...],
    *,
    height: float | None = None,
    with_side_panels: bool = False,
) -> tuple[Figure, np.ndarray]:
    """Create a figure with panels one above the other, which share a time axis.

    Args:
        trace: the trace.
        title: title of the figure.
        heights: relative height of each panel.
        height: height of the figure in inches; None: the sum of `heights`, and room for the title.
        with_side_panels: add a narrow panel to the right of each panel.

    Returns:
        The figure, and its panels: an array (rows,), or (rows, 2) with side panels.
    """
    figure = Figure(figsize=(7.2, height or 1.2 + sum(heights)), layout="constrained")
    ratios: dict[str, Any] = {"height_ratios": heights, **({"width_ratios": (6, 1)} if with_side_panels else {})}
    axes = figure.subplots(len(heights), 2 if with_side_panels else 1, sharex="col", squeeze=False, **ratios)
    _add_title(figure, trace, title)
    main = axes[:, 0]
    main[-1].set_xlabel("seconds")
    main[-1].set_xlim(0, trace.seconds)
    return figure, axes if with_side_panels else main


def _draw_mel(axis: Axes, trace: Trace, times: Sequence[WordTime]) -> None:
    seconds = trace.mel.shape[1] * FRAME_SECONDS / 2  # a mel frame is half as long as an encoder frame
    _draw_image(axis, trace.mel, seconds, cmap=FEATURE_COLOURS)
    axis.set_ylabel("mel bin")
    axis.set_yticks([0, len(trace.mel)])
    axis.set_title(f"Log-mel, {len(trace.mel)} bins", pad=14 if times else None)
    _draw_word_limits(axis, times)
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


def _draw_image(axis: Axes, values: np.ndarray, seconds: float, **options: Any) -> AxesImage:
    """Draw an array of values (rows, steps) over a time of `seconds`, with row 0 at the bottom."""
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


def _draw_word_limits(axis: Axes, times: Sequence[WordTime]) -> None:
    """Draw vertical lines at the starts and ends of words."""
    for time in sorted({word[key] for word in times for key in TIME_KEYS}):
        axis.axvline(time, color="white", linewidth=1.4, alpha=0.6)
        axis.axvline(time, color="black", linewidth=0.5, alpha=0.8)


def _draw_first_component(axis: Axes, trace: Trace, ks: list[int]) -> None:
    values = _principal_components(trace)[0][:, 0]
    middles = (np.arange(len(values)) + 0.5) * FRAME_SECONDS
    axis.plot(middles, values, color="#AAAAAA", linewidth=2.5, label="frames, 20 ms", zorder=1)
    for number, k in enumerate(ks):
        means = values[: len(values) // k * k].reshape(-1, k).mean(1)
        edges = np.arange(len(means) + 1) * k * FRAME_SECONDS
        axis.stairs(means, edges, baseline=None, color=COLOURS[number], label=f"mean of {k}", linewidth=1.1)
    axis.set_xlim(0, trace.seconds)
    axis.set_xlabel("seconds")
    axis.set_title("First principal component")
    axis.legend(fontsize=7.5, ncols=2, frameon=True, framealpha=0.8, edgecolor="none")


def _principal_components(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Return the projections of the frames (C, N_COMPONENTS), and the principal components (N_COMPONENTS, D)."""
    centred = trace.frames - trace.frames.mean(0)
    _, _, basis = np.linalg.svd(centred, full_matrices=False)
    return centred @ basis[:N_COMPONENTS].T, basis[:N_COMPONENTS]


def _label(token: str) -> str:
    return token.replace("\n", "⏎").replace(" ", "\u00b7").replace("$", r"\$") or "..."


def _add_title(figure: Figure, trace: Trace, title: str) -> None:
    provenance = trace.row.labels.get("provenance", "")
    origin = f" ({'synthetic: ' if is_synthetic(provenance) else ''}{provenance})" if provenance else ""
    response = trace.answer.strip().replace("$", r"\$")
    response = response if len(response) <= 80 else f"{response[:80]}..."
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=11, fontweight="bold")
    details = f"{trace.model}, row {trace.row.id}{origin}; response: {response!r}"
    figure.text(0.01, 0.985, f"\n{details}", ha="left", va="top", fontsize=7.5, color=GREY, linespacing=1.9)
