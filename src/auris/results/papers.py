"""The papers' tables beside results of ours, for a notebook: as a frame, as a page to read, and as a figure.

Published numbers come from `auris.metrics.published`, ours from the `results.jsonl` of any runs. Numbers stand in the
scale of the published table. Two marks say what must not be compared: ≠ where a number of ours was made otherwise than
the published ones, and † where it is of synthetic stand-ins and not of the benchmark's own recordings.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from auris import results
from auris.errors import UserError
from auris.metrics import published
from auris.metrics.measures import MEASURES
from auris.metrics.published import DIFFERENT, STAND_IN, Line, Published
from auris.text.figure_style import COLOURS, GREY, STYLE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    import pandas as pd

    rows: dict[tuple[str, ...], list[dict]] = {}
    notes: list[str] = published.notes(name, ())
    order = {}
    for place, line in enumerate(published.lines((), name)):
        order[_key(line)] = place
        for cell in line.cells:
            rows[*_key(line), cell.system] = [_published(cell)]
    for system, scored in _systems(studies):
        notes += [note for note in published.notes(name, scored)[1:] if note not in notes]
        for line in published.lines(scored, name):
            if line.ours is not None:
                rows.setdefault((*_key(line), system), []).append(_ours(line))
    lines = [{**dict(zip([*LINE, "system"], key, strict=True)), **_pooled(seeds)} for key, seeds in rows.items()]
    lines.sort(key=lambda line: order[tuple(line[column] for column in LINE)])
    frame = pd.DataFrame(lines)
    frame.attrs |= {"table": name, "notes": notes}
    return frame


def _systems(studies: Iterable[str | Path]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every arm of each study, seed by seed, with its rows of results.jsonl; in the order of its study."""
    for study in studies:
        frame = results.collect(study)
        if frame.empty:
            continue
        named = list(results.status(study)["arm"].unique())
        for (arm, _), rows in sorted(
            frame.groupby(["arm", "seed"]), key=lambda one: (named.index(one[0][0]), one[0][1])
        ):
            yield f"{Path(study).name}/{arm}", rows.to_dict("records")


def _key(line: Line) -> tuple[str, str, str]:
    return line.benchmark, line.part, line.metric


def _published(cell: Published) -> dict[str, Any]:
    number = {"ours": False, "value": cell.printed, "low": np.nan, "high": np.nan, "n": np.nan}
    return {**number, "different": False, "synthetic": False, "decimals": cell.decimals}


def _ours(line: Line) -> dict[str, Any]:
    assert line.ours is not None, line
    numbers = {key: line.scale * line.ours[key] for key in ("value", "low", "high")}
    facts = {"different": line.differs, "synthetic": line.is_stand_in, "decimals": line.decimals}
    return {"ours": True, **numbers, "n": line.ours["n"], **facts}


def _pooled(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ends = {"value": np.mean, "low": np.min, "high": np.max}
    pooled = {key: float(over([seed[key] for seed in seeds])) for key, over in ends.items()}
    marks = {key: any(seed[key] for seed in seeds) for key in ("different", "synthetic")}
    return {**seeds[0], **pooled, **marks, "seeds": len(seeds) if seeds[0]["ours"] else np.nan}


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A `table` for a person: one column per system of ours, each number with its interval and its marks, one for the
    system whose paper it is, and one for all others."""
    import pandas as pd

    owner, rows = _owner(frame), {}
    for row in frame.to_dict("records"):
        line = rows.setdefault((row["benchmark"], row["part"], LABELS.get(row["metric"]) or _label(row["metric"])), {})
        if row["ours"] or row["system"] == owner:
            line[row["system"]] = _said(row)
        else:
            line.setdefault("others", []).append(f"{row['system']} {_said(row)}")
    columns = [*frame[frame["ours"]]["system"].unique(), owner, "others"]
    cells = [
        [", ".join(cell) if isinstance(cell := line.get(c, ""), list) else cell for c in columns]
        for line in rows.values()
    ]
    return pd.DataFrame(cells, index=pd.MultiIndex.from_tuples(rows, names=LINE), columns=columns)


def _said(row: Mapping[str, Any]) -> str:
    digits = row["decimals"]
    if not row["ours"]:
        return f"{row['value']:.{digits}f}"
    marks = (DIFFERENT if row["different"] else "") + (STAND_IN if row["synthetic"] else "")
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}] {marks}".strip()


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
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    own = frame[frame["ours"]]["system"].unique()
    if len(own) > len(COLOURS):
        raise UserError(f"a figure tells at most {len(COLOURS)} systems apart, got {len(own)}: give fewer studies")
    colours = dict(zip(own, COLOURS, strict=False))
    panels: dict[str, list[tuple[str, ...]]] = {}
    for line in dict.fromkeys(zip(*(frame[column] for column in LINE), strict=True)):
        panels.setdefault(_panel(line[2]), []).append(line)
    heights = [0.55 + 0.21 * len(lines) for lines in panels.values()]
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 1.3 + sum(heights)), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, (panel, lines) in zip(axes, panels.items(), strict=True):
            _draw(axis, panel, lines, frame, colours)
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
        figure.supxlabel(textwrap.fill(caption, 115), x=0.01, ha="left", fontsize=7.5, color=GREY)
    return figure


def _panel(metric: str) -> str:
    if metric in ("cider", "spice", "spider"):
        return "Captions: CIDEr, SPICE, SPIDEr"
    if metric.startswith("judged"):
        return "Points of the judge, 0 to 10"
    known = {"wer": "Error rate (%)", "bleu": "BLEU", "aas_official": "Shift of word times, AAS (ms)"}
    return known.get(metric, "Accuracy and mAP")


def _better(metric: str) -> str:
    return "higher" if metric not in MEASURES or MEASURES[metric].higher_is_better else "lower"


def _label(metric: str) -> str:
    return MEASURES[metric].label if metric in MEASURES else metric


def _draw(
    axis: Axes, panel: str, lines: Sequence[tuple[str, ...]], frame: pd.DataFrame, colours: Mapping[str, str]
) -> None:
    of_line = {line: rows.to_dict("records") for line, rows in frame.groupby(LINE, sort=False)}
    apart = 0.6 / max(1, len(colours))
    reach = 0.0
    for y, line in enumerate(lines):
        for row in of_line[line]:
            reach = max(reach, np.nanmax([row["value"], row["high"]]))
            if not row["ours"]:
                main = row["system"] == _owner(frame)
                style = {"color": "black", "zorder": 3} if main else {"color": "#AAAAAA", "zorder": 2}
                axis.plot(row["value"], y, "D" if main else "|", markersize=5 if main else 9, **style)
                continue
            place = y + (list(colours).index(row["system"]) - (len(colours) - 1) / 2) * apart
            colour = colours[row["system"]]
            axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.2, zorder=4)
            face = "white" if row["synthetic"] else colour
            axis.plot(row["value"], place, "o", markersize=4.5, color=colour, markerfacecolor=face, zorder=5)
            if row["different"]:
                mark = {"textcoords": "offset points", "va": "center", "fontsize": 8, "color": colour}
                axis.annotate(DIFFERENT, (row["high"], place), (3, 0), **mark)
    names = [" ".join(dict.fromkeys([line[0], line[1], *_named(panel, line[2])])) for line in lines]
    axis.set_yticks(range(len(lines)), names)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.set_xlim(0, 1.06 * reach)
    axis.set_title(f"{panel}, {_better(lines[0][2])} is better")


def _named(panel: str, metric: str) -> list[str]:
    """The metric, where its panel has several."""
    return [LABELS.get(metric) or _label(metric)] if panel.startswith(("Captions", "Accuracy")) else []


def _owner(frame: pd.DataFrame) -> str:
    """The system that the table is of: it stands first."""
    return frame.loc[~frame["ours"], "system"].iloc[0]


def _handles(frame: pd.DataFrame, colours: Mapping[str, str]) -> list[Any]:
    from matplotlib.lines import Line2D

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
