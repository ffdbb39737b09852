"""From the files of finished runs to a table, a comparison with intervals and figures. Of ours it imports only
`measures` and `statistics`.

    python -m auris.results study=demo [runs=runs] [arms=a,b]

A run is the directory `runs/<study>/<arm>/seed=<n>/`. What is read of it:

`results.jsonl`, one line per score:
    {study, arm, seed, benchmark, task, split, metric, value, low, high, n, units, detectable, signature, provenance}
    `task` is the group of rows that the score is of, such as "asr en", "s2tt de-en" or "sec".
`predictions/<benchmark>.jsonl`, one line per test row and metric:
    {id, task, language, group, metric, stats, hypothesis, reference, provenance, audio_seconds,
    speaker, recording}
    `group` is what `task` is above; `stats` is what the row contributes (`auris.measures`). A row scored by two metrics
    (accuracy, unparsed) is two lines; (group, metric, id) occurs once in a file.
`events.out.tfevents*`, TensorBoard scalars: `train/loss`, `val/loss`, `val/<group>/<metric>`.

Everything in the table is computed from the predictions, so that arms are compared row by row. Rates are fractions from
0 to 1 in files and functions and per cent where a person reads them; what has another unit has it everywhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from auris import statistics
from auris.measures import (
    CORRECT,
    MEASURES,
    PANELS,
    Scorer,
    bootstrap,
    difference,
    display,
    interval,
    measure,
    percentiles,
    samples,
    score,
    scorer,
    value,
)

if TYPE_CHECKING:  # pandas, matplotlib, rich and tensorboard are imported where they are used: --help is quick
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# --------------------------------------------------------------------------------------------------------------------
# Reading


def collect(root: str | Path) -> pd.DataFrame:
    """All rows of all `results.jsonl` of a study (`runs/<study>`), as the evaluations wrote them."""
    import pandas as pd

    return pd.DataFrame([row for _, _, run in _runs(root) for row in _lines(run / "results.jsonl")])


def predictions(root: str | Path) -> pd.DataFrame:
    """All prediction lines of a study, with the columns `arm`, `seed` and `benchmark` added.

    Raises ValueError for a line twice in a file, or statistics that do not fit their metric.
    """
    import pandas as pd

    frames = []
    for arm, seed, run in _runs(root):
        for path in sorted(run.glob("predictions/*.jsonl")):
            frame = pd.DataFrame(_lines(path))
            if frame.empty:
                continue
            repeated = frame.duplicated(["group", "metric", "id"])
            if repeated.any():
                row = frame[repeated].iloc[0]
                raise ValueError(f"{path}: row {row['id']!r} ({row['group']}, {row['metric']}) occurs more than once")
            for metric, stats in zip(frame["metric"], frame["stats"], strict=True):
                if len(stats) != len(measure(metric).stats):
                    raise ValueError(
                        f"{path}: {metric} has the statistics {MEASURES[metric].stats}, but a row holds {stats}"
                    )
            frames.append(frame.assign(arm=arm, seed=seed, benchmark=path.stem))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def curves(root: str | Path) -> pd.DataFrame:
    """Every TensorBoard scalar of every run of a study: columns arm, seed, tag, step, value."""
    import pandas as pd
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = []
    for arm, seed, run in _runs(root):
        if any(run.glob("events.out.tfevents*")):
            events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()  # 0: keep every point
            for tag in events.Tags()["scalars"]:
                rows += [(arm, seed, tag, event.step, event.value) for event in events.Scalars(tag)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "tag", "step", "value"])
    # A resumed run logs the steps since its last checkpoint again.
    return frame.drop_duplicates(["arm", "seed", "tag", "step"], keep="last", ignore_index=True)


def _runs(root: str | Path) -> list[tuple[str, int, Path]]:
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no study at {root}; {_studies(root.parent)}")
    found = [(path.parent.name, int(path.name[5:]), path) for path in root.glob("*/seed=*") if path.name[5:].isdigit()]
    if not found:
        raise FileNotFoundError(f"{root} holds no runs (<arm>/seed=<n>/); {_studies(root.parent)}")
    return sorted(found)


def _studies(runs: Path) -> str:
    names = sorted({path.parent.parent.name for path in runs.glob("*/*/seed=*")})
    return f"studies in {runs}: {', '.join(names)}" if names else f"{runs} holds no study yet"


def _lines(path: Path) -> Iterator[dict]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON ({error}); evaluate the run again") from None


# --------------------------------------------------------------------------------------------------------------------
# Comparing

KEY = ["benchmark", "group", "metric"]


def table(root: str | Path, arms: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per benchmark, group and metric: each arm's score with its interval, each later arm against the first.

    Columns: benchmark, group, metric, provenance, signature, n (test rows common to the arms); for every arm `<arm>`,
    `<arm> low`, `<arm> high` (statistics pooled over its seeds, rows resampled), `<arm> seeds`, `<arm> sd` (standard
    deviation of the single seeds' scores); for every arm after the first `<arm> - <first>` and `<arm> wins` with their
    ` low` and ` high`, and `<arm> - <first> p`, ` p holm` (corrected for all arms of the line) and ` detectable`, as in
    `compare`; of a benchmark that is heard otherwise, as `meld@silence`, for every arm `<arm> drop` with its ` low`,
    ` high` and ` p`, by how much it scores worse than on the same rows as they are. `attrs["notes"]` lists, in words,
    what could not be compared row by row. Arms default to all that have predictions, sorted by their words. Raises
    ValueError for an unknown arm.
    """
    import pandas as pd

    scored, arms, notes = _scored(root, arms)
    signatures = {}
    for row in collect(root).to_dict("records"):
        signatures[row["benchmark"], row["task"], row["metric"]] = row["signature"]
    pairs = {arm: _compare(scored, arms[0], arm) for arm in arms[1:]}
    rows = []
    for key, rows_of_key in scored.groupby(KEY, sort=False):
        common = set.intersection(*(set(ids) for _, ids in rows_of_key.groupby("arm")["id"]))
        row = dict(zip(KEY, key, strict=True))
        row["provenance"] = "+".join(sorted(set(rows_of_key["provenance"])))
        row["signature"] = signatures.get(key, "")
        row["n"] = len(common)
        for arm in arms:
            row |= _score(rows_of_key[rows_of_key["arm"] == arm], key[-1], arm)
        for arm in arms if "@" in key[0] else ():
            row |= _drop(scored[scored["arm"] == arm], key, arm)
        for arm, pair in pairs.items():
            match = pair[(pair[KEY] == list(key)).all(axis=1)].to_dict("records")
            for part in ("", " low", " high"):
                row[f"{arm} - {arms[0]}{part}"] = match[0][f"difference{part}"] if match else np.nan
                row[f"{arm} wins{part}"] = match[0][f"wins{part}"] if match else np.nan
            for part in ("p", "detectable"):
                row[f"{arm} - {arms[0]} {part}"] = match[0][part] if match else np.nan
        names = [f"{arm} - {arms[0]} p" for arm in pairs]
        row |= {f"{name} holm": p for name, p in zip(names, statistics.holm([row[n] for n in names]), strict=True)}
        rows.append(row)
    frame = pd.DataFrame(rows)
    frame.attrs["arms"] = list(arms)
    frame.attrs["notes"] = notes + [note for pair in pairs.values() for note in pair.attrs["notes"]]
    return frame


def compare(root: str | Path, arm_a: str, arm_b: str) -> pd.DataFrame:
    """`arm_b` minus `arm_a` on every group that both were scored on, with a 95 % interval.

    Pairs (seed, row id) that both arms have are kept; a row's statistics are summed over the seeds; rows, or what
    units they come in, are resampled, the same for both arms. Columns: benchmark, group, metric, n (rows), units (as
    `24 speakers`), seeds, a, b, difference, `difference low`, `difference high`, p (of a paired permutation test, for
    itself), detectable (the smallest difference that such rows show in 80 % of cases), wins, `wins low`,
    `wins high` (share of pairs in which the answer of `arm_b` scores better by itself, ties counted half), only_a,
    only_b (pairs without a partner, left out), references_differ. `attrs["notes"]` says so in words. Raises ValueError
    for an unknown arm, or if nothing is common to the two.
    """
    scored, _, notes = _scored(root, [arm_a, arm_b])
    pair = _compare(scored, arm_a, arm_b)
    if pair.empty:
        raise ValueError(f"{arm_a} and {arm_b} have no scored row in common: {'; '.join(pair.attrs['notes'])}")
    pair.attrs["notes"] = notes + pair.attrs["notes"]
    return pair


def _scored(root: str | Path, asked: Sequence[str] | None) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The predictions of the arms asked for, the arms in order, and what is missing in words."""
    scored = predictions(root)
    if scored.empty:
        raise ValueError(f"no run of {root} has predictions yet; evaluate one: python -m auris.evaluate checkpoint=RUN")
    known = _sorted(scored["arm"].unique())
    if unknown := [arm for arm in asked or () if arm not in known]:
        raise ValueError(f"no predictions of {_join(unknown)} in {root}; arms=... may name {_join(known)}")
    arms = list(dict.fromkeys(asked or known))
    scored = scored[scored["arm"].isin(arms)]
    notes = []
    if not asked and (others := {arm for arm, _, _ in _runs(root)} - set(known)):
        notes.append(f"not in the table, for want of predictions: {_join(_sorted(others))}")
    for arm, rows in scored.groupby("arm"):
        for key, of_key in rows.groupby(KEY, sort=False):
            counts = of_key.groupby("seed")["id"].agg(frozenset)
            if counts.nunique() > 1:
                notes.append(f"{_name(key)}: the seeds of {arm} were scored on different rows")
    return scored, arms, notes


def _compare(scored: pd.DataFrame, arm_a: str, arm_b: str) -> pd.DataFrame:
    import pandas as pd

    columns = [*KEY, "n", "units", "seeds", "a", "b", "difference", "difference low", "difference high"]
    columns += ["p", "detectable", "wins", "wins low", "wins high", "only_a", "only_b", "references_differ"]
    rows, notes = [], []
    for key, of_key in scored.groupby(KEY, sort=False):
        a, b = (of_key[of_key["arm"] == arm].set_index(["seed", "id"]) for arm in (arm_a, arm_b))
        if a.empty or b.empty:
            if len(a) or len(b):
                notes.append(
                    f"{_name(key)}: {arm_a if b.empty else arm_b} was scored, {arm_b if b.empty else arm_a} was not"
                )
            continue
        seeds = sorted(set(a.index.unique(0)) & set(b.index.unique(0)))
        unpaired = set(a.index.unique(0)) ^ set(b.index.unique(0))
        if not seeds:
            notes.append(f"{_name(key)}: {arm_a} and {arm_b} have no seed in common, so no difference")
            continue
        if unpaired:
            notes.append(
                f"{_name(key)}: {arm_b} - {arm_a} leaves out seed {_join(sorted(unpaired))}, which only one has"
            )
        a, b = (side[side.index.isin(seeds, level=0)] for side in (a, b))
        both = a.index.intersection(b.index)
        only_a, only_b = len(a) - len(both), len(b) - len(both)
        if only_a or only_b:
            notes.append(
                f"{_name(key)}: {only_a} rows only in {arm_a}, {only_b} only in {arm_b}: left out of the difference"
            )
        if not len(both):
            continue
        a, b = a.loc[both], b.loc[both]
        differ = int((a["reference"].map(json.dumps) != b["reference"].map(json.dumps)).sum())
        if differ:
            notes.append(f"{_name(key)}: {differ} rows have another reference in {arm_a} than in {arm_b}")
        sides = [_by_seed(side.reset_index()) for side in (a, b)]
        n, (of_a, of_b) = len(both.unique(1)), (scorer(key[-1], side) for side in sides)
        score_a, score_b = (_whole(of, n) for of in (of_a, of_b))
        units = _units(a.reset_index())
        resampled = samples(difference(of_a, of_b), n, units=units.of_row)
        chance = (statistics.permutation_test(key[-1], *sides, units.of_row), statistics.detectable(resampled))
        scores = (score_a, score_b, score_b - score_a, *percentiles(resampled), *chance, *_wins(a, b, key[-1], units))
        rows.append((*key, n, str(units), len(seeds), *scores, only_a, only_b, differ))
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["notes"] = notes
    return frame


def _wins(a: pd.DataFrame, b: pd.DataFrame, metric: str, units: statistics.Units) -> tuple[float, float, float]:
    """Share of paired rows that `b` wins by the rows' own scores, with a 95 % interval from resampling their units;
    NaN for measures of all rows at once, by which a row has no score of its own."""
    import pandas as pd

    if MEASURES[metric].formula is None:
        return np.nan, np.nan, np.nan
    sign = 1 if MEASURES[metric].higher_is_better else -1
    score_a, score_b = (np.array([value(metric, row) for row in side["stats"]]) for side in (a, b))
    gap = sign * (score_b - score_a)  # NaN where a row holds nothing to count: a tie
    won = np.where(np.isnan(gap) | (gap == 0), 0.5, gap > 0)
    stats = pd.DataFrame({"won": won, "pairs": 1.0}).groupby(a.index.get_level_values("id")).sum().to_numpy()
    return (float(won.mean()), *bootstrap(stats, "accuracy", units=units.of_row))


def _score(rows: pd.DataFrame, metric: str, arm: str) -> dict[str, float]:
    """The columns of one arm in one row of the table; NaN if it was not scored there."""
    if rows.empty:
        return {arm: np.nan, f"{arm} low": np.nan, f"{arm} high": np.nan, f"{arm} seeds": 0, f"{arm} sd": np.nan}
    n, of = rows["id"].nunique(), _scorer(rows, metric)
    low, high = interval(of, n, units=_units(rows).of_row)
    singles = [score(metric, of_seed["stats"].tolist()) for _, of_seed in rows.groupby("seed")]
    spread = float(np.std(singles, ddof=1)) if len(singles) > 1 else np.nan
    point = _whole(of, n)
    return {arm: point, f"{arm} low": low, f"{arm} high": high, f"{arm} seeds": len(singles), f"{arm} sd": spread}


def _drop(scored: pd.DataFrame, key: Sequence[str], arm: str) -> dict[str, float]:
    """The columns of what an arm loses on a benchmark that is heard otherwise, `meld@silence`, beside the same rows as
    they are; none where there are no such rows."""
    sides = []
    for benchmark in (key[0].rpartition("@")[0], key[0]):
        of_line = (scored[KEY] == [benchmark, *key[1:]]).all(axis=1)
        sides.append(scored[of_line].set_index(["seed", "id"]))
    common = sides[0].index.intersection(sides[1].index)
    if not len(common):
        return {}
    sides = [side.loc[common].reset_index() for side in sides]
    units = _units(sides[1])
    found = statistics.drop(key[-1], *(_by_seed(side) for side in sides), units.of_row)
    return dict(zip([f"{arm} drop", f"{arm} drop low", f"{arm} drop high", f"{arm} drop p"], found, strict=True))


def _scorer(rows: pd.DataFrame, metric: str) -> Scorer:
    """The score of the prediction lines of one or more seeds; its rows are their ids, sorted."""
    return scorer(metric, _by_seed(rows))


def _by_seed(rows: pd.DataFrame) -> list[dict]:
    """Of each seed, row id -> what the row contributes."""
    return [dict(zip(seed["id"], seed["stats"], strict=True)) for _, seed in rows.groupby("seed")]


def _units(rows: pd.DataFrame) -> statistics.Units:
    """The units of a line's rows, in the order of their sorted ids."""
    return statistics.units(rows.drop_duplicates("id").sort_values("id").to_dict("records"))


def _whole(of: Scorer, n_rows: int) -> float:
    return float(of(np.ones((1, n_rows)))[0])


def _name(key: tuple[str, ...]) -> str:
    benchmark, group, metric = key
    return f"{benchmark}, {group}, {metric}"


def _sorted(arms: Iterable[str]) -> list[str]:
    return sorted(arms, key=lambda arm: arm.split("_"))  # by words: qwen_audio before qwen2_audio


def _join(items: Sequence) -> str:
    return ", ".join(str(item) for item in items)


# --------------------------------------------------------------------------------------------------------------------
# Drawing

# Okabe and Ito's colours, which colour-blind readers tell apart too (jfly.uni-koeln.de/color), less their pale yellow
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
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
        caption = f"Test-set score{pooled}; whiskers: 95 % bootstrap interval over test rows.\n{_provenance(frame)}"
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
            axis.plot([low, high], [at, at], color="black", linewidth=1, solid_capstyle="butt")
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
    axis.set_title(f"{panel}, {better} is better")


def plot_curves(root: str | Path, arms: Sequence[str] | None = None) -> Figure:
    """Training loss (smoothed), validation loss and validation metrics over steps, one line per arm: the mean of its
    seeds, with their range as a band. Arms default to those that have predictions, else to all that have events; an
    arm without events has no line. Raises ValueError for an unknown arm, or if nothing was logged."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    points = curves(root)
    points = points[(points["tag"] == "train/loss") | points["tag"].str.startswith("val/")]
    logged = set(points["arm"])
    runs = _runs(root)
    if arms is None:
        evaluated = {arm for arm, _, run in runs if any(run.glob("predictions/*.jsonl"))}
        arms = _sorted(evaluated & logged or logged)
    if unknown := set(arms) - {arm for arm, _, _ in runs}:
        raise ValueError(f"no runs of {_join(_sorted(unknown))} in {root}; arms=... may name {_join(_sorted(logged))}")
    if not logged & set(arms):
        raise ValueError(f"the runs of {_join(arms) or 'any arm'} in {root} hold no train/loss or val/* scalars")
    points = points[points["arm"].isin(arms)]
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
        band = " Lines: mean of the seeds; bands: their range." if seeds > 1 else ""
        tested = collect(root)
        data = "" if tested.empty else f"\n{_provenance(tested)}"
        figure.supxlabel(
            f"Horizontal axis: training steps. Scores: validation rows.{band}{data}",
            x=0.01,
            ha="left",
            fontsize=7.5,
            color=GREY,
        )
    return figure


def _draw_curves(axis: Axes, tag: str, points: pd.DataFrame, colours: dict[str, str]) -> None:
    metric = tag.rpartition("/")[2]
    known = MEASURES.get(metric)
    for arm, colour in colours.items():
        seeds = points[points["arm"] == arm].pivot(index="step", columns="seed", values="value").sort_index()
        if known:
            seeds = known.scale * seeds
        if tag == "train/loss":
            seeds = seeds.ewm(span=_span(len(seeds))).mean()
        axis.plot(seeds.index, seeds.mean(axis=1), color=colour, linewidth=1.4, marker="." if len(seeds) < 12 else None)
        axis.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=colour, alpha=0.2, linewidth=0)
    axis.margins(x=0.02)
    if tag == "train/loss":
        axis.set_title("Training loss, smoothed")
    elif known:
        axis.set_title(f"{tag.split('/', 1)[1].rpartition('/')[0]}: {known.label} ({known.unit})")
        axis.set_ylim(0, 102 if known.panel == CORRECT else None)
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


def _head(figure: Figure, root: str | Path, colours: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=arm) for arm, colour in colours.items()]
    figure.legend(handles=patches, loc="outside upper right", ncols=3, fontsize=9, handlelength=1, handleheight=1)
    figure.suptitle(f"Study {Path(root).name}", x=0.01, ha="left", fontsize=11, fontweight="bold")


def _provenance(frame: pd.DataFrame) -> str:
    """What the data is, in one sentence for a reader who sees only the figure."""
    kinds = {kind for joined in frame["provenance"] for kind in joined.split("+")}
    if kinds <= SYNTHETIC:
        return (
            f"Synthetic data ({_join(sorted(kinds))}): shows that the systems learn; says nothing of real recordings."
        )
    if kinds == {"real"}:
        return "Real recordings."
    of_benchmark = frame.groupby("benchmark")["provenance"].agg(lambda p: "+".join(sorted(set("+".join(p).split("+")))))
    named = [
        f"{name}: {'synthetic, ' if set(of.split('+')) <= SYNTHETIC else ''}{of}" for name, of in of_benchmark.items()
    ]
    return f"Data: {'; '.join(named)}."


# --------------------------------------------------------------------------------------------------------------------
# Command line

USAGE = """usage: python -m auris.results study=NAME [runs=runs] [arms=a,b]

Prints the table of a study and writes table.csv, bars.png, bars.pdf, curves.png and curves.pdf into RUNS/NAME/.

  study   the study to read, as in runs/<study>/<arm>/seed=<n>/
  runs    the directory that holds the studies (default: runs)
  arms    the arms to compare, in this order; differences are to the first (default: all that are evaluated)"""


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m auris.results`; see `USAGE`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"--help", "-h"} & set(argv):
        print(USAGE)
        return
    try:
        given = _parse(argv)
        root = Path(given["runs"]) / given["study"]
        arms = given["arms"].split(",") if given["arms"] else None
        frame = table(root, arms)
        written = _write(root, frame)
    except (ValueError, FileNotFoundError) as error:  # the user's mistakes: one sentence, no traceback
        raise SystemExit(f"auris.results: {error}") from None
    _show(frame, given["study"])
    print("\n".join(["", *(f"wrote {path}" for path in written)]))


def _parse(argv: Sequence[str]) -> dict[str, str]:
    given = {"study": "", "runs": "runs", "arms": ""}
    for argument in argv:
        key, equals, text = argument.partition("=")
        if not equals or key not in given:
            raise ValueError(f"cannot read {argument!r}; accepted: study=NAME, runs=DIR, arms=a,b (see --help)")
        given[key] = text
    if not given["study"]:
        raise ValueError(f"which study? give study=NAME; {_studies(Path(given['runs']))}")
    return given


def _write(root: Path, frame: pd.DataFrame) -> list[Path]:
    from matplotlib import rc_context

    arms = frame.attrs["arms"]
    frame.to_csv(root / "table.csv", index=False)
    figures = {"bars": plot_bars(root, arms)}
    logged = set(curves(root)["arm"])
    if logged & set(arms):
        figures["curves"] = plot_curves(root, arms)
    if untrained := [arm for arm in arms if arm not in logged]:
        frame.attrs["notes"].append(f"no curves of {_join(untrained)}: no TensorBoard events there")
    written = [root / "table.csv"]
    for name, figure in figures.items():
        for suffix in ("png", "pdf"):
            written.append(root / f"{name}.{suffix}")
            with rc_context(STYLE):  # resolution and fonts are read when the file is made
                figure.savefig(written[-1])
    return written


def _show(frame: pd.DataFrame, study: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    arms = frame.attrs["arms"]
    several = frame["benchmark"].nunique() > 1
    title = f"Study {study}" if several else f"Study {study}, benchmark {frame['benchmark'].iloc[0]}"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    plain = KEY if several else KEY[1:]
    for column in plain:
        shown.add_column(column, no_wrap=True)
    drops = [f"{arm} drop" for arm in arms if f"{arm} drop" in frame]
    for column in ("n", *arms, *(f"{arm} - {arms[0]}" for arm in arms[1:]), *drops):
        shown.add_column(column, justify="right")
    for row in frame.to_dict("records"):
        arrow = "↑" if MEASURES[row["metric"]].higher_is_better else "↓"
        cells = [f"{row[column]} {arrow}" if column == "metric" else row[column] for column in plain]
        cells.append(str(row["n"]))
        cells += [format_score(row, arm) for arm in arms]
        cells += [_coloured(row, f"{arm} - {arms[0]}") for arm in arms[1:]]
        cells += [escape(format_score(row, name)) for name in drops]
        shown.add_row(*cells)
    console = Console()
    console.print(shown)
    spread = "; ± standard deviation over seeds" if frame[[f"{arm} sd" for arm in arms]].notna().any(axis=None) else ""
    units = {name: MEASURES[name].unit for name in frame["metric"]}
    others = "".join(f", {name} {unit}" for name, unit in units.items() if unit != "%")
    drawn = "rows, or speakers or recordings where ten or more are known and shared"
    legend = f"Scores in %{others} [95 % bootstrap interval over {drawn}]{spread}; ↑ higher is better, ↓ lower."
    for line in (
        legend,
        *_tested(frame),
        *_judges(frame),
        *_judged(frame),
        _provenance(frame),
        *(f"note: {note}" for note in frame.attrs["notes"]),
    ):
        console.print(line, highlight=False, markup=False)


def _tested(frame: pd.DataFrame) -> Iterator[str]:
    """How many differences a test finds, each for itself and corrected for the number of arms."""
    first, *others = frame.attrs["arms"]
    alone, holm = (frame[[f"{arm} - {first} {kind}" for arm in others]].to_numpy(float) for kind in ("p", "p holm"))
    if n := np.count_nonzero(~np.isnan(alone)):
        found = [f"{np.count_nonzero(p < statistics.LEVEL)}" for p in (alone, holm)]
        corrected = f", {found[1]} corrected for the {len(others)} arms of a line (Holm)" if len(others) > 1 else ""
        yield (
            f"Paired permutation test: of {n} differences {found[0]} have p < {statistics.LEVEL}{corrected}; of "
            f"{n} that are none {statistics.LEVEL * n:.0f} would."
        )


def _judges(frame: pd.DataFrame) -> Iterator[str]:
    """Who gave points, in every table that shows some."""
    rows = frame[frame["metric"].str.startswith("judge")]
    yield from sorted({f"{row['metric']}: {row['signature']}" for row in rows.to_dict("records")})


def _judged(frame: pd.DataFrame) -> Iterator[str]:
    """How often a judge liked an arm's answer better than the first arm's."""
    first, *others = frame.attrs["arms"]
    for row in frame[frame["metric"] == "judged"].to_dict("records"):
        for arm in others:
            share, low, high = (100 * row[f"{arm} wins{part}"] for part in ("", " low", " high"))
            if not np.isnan(share):
                what = f"{arm} over {first}, {row['group']}, ties half"
                yield f"Win rate of {what}: {share:.1f} % [{low:.1f}, {high:.1f}] ({row['signature']})"


def format_score(row: dict, column: str) -> str:
    """`8.9 [7.1, 10.8]`: a column of a table row with its interval, in its unit; `-` if it has no value."""
    metric, sign = row["metric"], "+" if " - " in column or column.endswith(" drop") else ""
    point, low, high = (display(metric, row[f"{column}{part}"], sign) for part in ("", " low", " high"))
    spread = row.get(f"{column} sd", np.nan)
    seeds = "" if np.isnan(spread) else f" ±{display(metric, spread)}"
    return "-" if np.isnan(row[column]) else f"{point} [{low}, {high}]{seeds}"


def _coloured(row: dict, column: str) -> str:
    from rich.markup import escape

    text, low, high = escape(format_score(row, column)), row[f"{column} low"], row[f"{column} high"]
    if low <= 0 <= high or np.isnan(low):
        return text
    better = (low > 0) == MEASURES[row["metric"]].higher_is_better
    return f"[bold {'green' if better else 'red'}]{text}[/]"


if __name__ == "__main__":
    main()
