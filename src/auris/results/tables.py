"""Comparison of the arms of a study: scores with intervals, paired differences, and which of these exceed the noise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from auris.errors import UserError
from auris.metrics import statistics
from auris.metrics.formulas import Scorer
from auris.metrics.measures import MEASURES, score, scorer
from auris.metrics.statistics import bootstrap, difference, percentiles, samples
from auris.results import cells
from auris.results.cells import lines_of
from auris.results.runs import collect, join, list_runs, predictions, sort_arms

KEY = ["benchmark", "group", "metric"]

Key = tuple[str, ...]
"""Values of the columns KEY."""

Columns = dict[str, float]
"""Cells of one row of a table by column."""

Stats = dict[str, list]
"""The `stats` of predictions by row id."""

Interval = tuple[float, float, float]
"""A value and the ends of its interval."""

_NO_INTERVAL: Interval = (np.nan, np.nan, np.nan)


def table(root: str | Path, arms: Sequence[str] | None = None) -> pd.DataFrame:
    """Return each arm's score with its interval, and each later arm's difference to the first one.

    There is one row per benchmark, group and metric, with these columns:

    benchmark, group, metric, provenance, signature, n (number of test rows that all arms have).

    For every arm: `<arm>`, `<arm> low`, `<arm> high` (score and 95 % interval; statistics are pooled over the seeds,
    rows are resampled), `<arm> seeds` (number of seeds), `<arm> sd` (standard deviation of the scores of single seeds).

    For every arm after the first: `<arm> - <first>` (the difference), and with this prefix ` low`, ` high`, ` seeds
    low`, ` seeds high` (see `verdicts`), ` p` (paired permutation test), ` p holm` (corrected for all arms of the row)
    and ` detectable` (the difference that such rows detect with 80 % power). They are computed from the pairs (seed,
    row id) that both arms have. Statistics are summed over the seeds, and rows or their units are resampled, the same
    for both arms. `<arm> wins` with ` low` and ` high` is the share of pairs in which the response of the arm has the
    better score by itself; ties count half.

    For a benchmark with replaced audio, such as `meld@silence`, for every arm: `<arm> drop` with ` low`, ` high` and
    ` p`, how much worse the score is than on the same rows with their own audio.

    `attrs["arms"]` has the arms, `attrs["notes"]` sentences about what could not be compared row by row.

    Args:
        root: The study's directory.
        arms: Arms to compare, the first one being the baseline. None: all arms with predictions, in the study's order.

    Raises:
        UserError: An arm has no predictions.
    """
    scored, arms, notes = _read(root, arms)
    signatures: dict[Key, str] = {
        (row["benchmark"], row["task"], row["metric"]): row["signature"] for row in lines_of(collect(root))
    }
    lines = _by_key(scored)
    rows: dict[Key, dict[str, Any]] = {key: dict(zip(KEY, key, strict=True)) for key in lines}
    for key, line in lines.items():
        common = set.intersection(*(set(ids) for _, ids in line.groupby("arm")["id"]))
        provenance = "+".join(sorted(set(line["provenance"])))
        rows[key] |= {"provenance": provenance, "signature": signatures.get(key, ""), "n": len(common)}
        for arm in arms:
            rows[key] |= _score(line[line["arm"] == arm], key[-1], arm)
        as_is = lines.get((key[0].rpartition("@")[0], *key[1:]))
        if as_is is not None:
            for arm in arms:
                rows[key] |= _drop(as_is, line, key[-1], arm)
    for arm in arms[1:]:
        for key, columns in _compare(lines, arms[0], arm, notes).items():
            rows[key] |= columns
    names = [f"{arm} - {arms[0]} p" for arm in arms[1:]]
    for row in rows.values():
        row |= {f"{name} holm": p for name, p in zip(names, statistics.holm([row[n] for n in names]), strict=True)}
    frame = pd.DataFrame(rows.values())
    frame.attrs |= {"arms": arms, "notes": notes}
    return frame


def _read(root: str | Path, arms: Sequence[str] | None) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Return the predictions of the requested arms, these arms in order, and notes about what is missing."""
    scored = predictions(root)
    if scored.empty:
        raise UserError(f"no run of {root} has predictions yet; evaluate one: auris evaluate checkpoint=RUN")
    evaluated = sort_arms(root, scored["arm"].unique())
    if unknown := [arm for arm in arms or () if arm not in evaluated]:
        raise UserError(f"no predictions of {join(unknown)} in {root}; expected arms=[...] from {join(evaluated)}")
    chosen = list(dict.fromkeys(arms or evaluated))
    scored = scored[scored["arm"].isin(chosen)]
    notes = []
    if not arms and (missing := {arm for arm, _, _ in list_runs(root)} - set(evaluated)):
        notes.append(f"not in the table, because they have no predictions: {join(sort_arms(root, missing))}")
    for (arm, *key), rows in _by_key(scored, "arm").items():
        if rows.groupby("seed")["id"].agg(frozenset).nunique() > 1:
            notes.append(f"{', '.join(key)}: the seeds of {arm} were scored on different rows")
    return scored, chosen, notes


def _by_key(frame: pd.DataFrame, *columns: str) -> dict[Key, pd.DataFrame]:
    """Return the rows of a frame by the values of `columns` and KEY, in the order in which these occur."""
    groups = frame.groupby([*columns, *KEY], sort=False)
    return {cast("Key", key): rows for key, rows in groups}  # grouping by a list of columns gives tuples


def _compare(lines: Mapping[Key, pd.DataFrame], first: str, arm: str, notes: list[str]) -> dict[Key, Columns]:
    """Return the columns that compare an arm with the first one, with NaN where they cannot be compared.

    Args:
        lines: The predictions of each row of the table.
        first: The arm to compare with.
        arm: The other arm.
        notes: Sentences about what cannot be compared are appended.
    """
    scored = {side: {key[0] for key, line in lines.items() if (line["arm"] == side).any()} for side in (first, arm)}
    for side, other in ((first, arm), (arm, first)):
        if benchmarks := scored[side] - scored[other]:
            notes.append(f"{join(sorted(benchmarks))}: {side} was scored, {other} was not")
    columns = {}
    for key, line in lines.items():
        columns[key] = _paired(arm, first)
        name, metric = ", ".join(key), key[-1]
        a, b = (line[line["arm"] == side].set_index(["seed", "id"]) for side in (first, arm))
        if a.empty or b.empty:
            if not (a.empty and b.empty) and key[0] in scored[first] & scored[arm]:
                side, other = (first, arm) if b.empty else (arm, first)
                notes.append(f"{name}: {side} was scored, {other} was not")
            continue
        seeds_a, seeds_b = (set(side.index.unique("seed")) for side in (a, b))
        if seeds_a.isdisjoint(seeds_b):
            notes.append(f"{name}: {first} and {arm} have no seed in common, so no difference")
            continue
        if unpaired := sorted(seeds_a ^ seeds_b):
            notes.append(f"{name}: {arm} - {first} leaves out seed {join(unpaired)}, which only one arm has")
        a, b = (side[side.index.isin(seeds_a & seeds_b, level="seed")] for side in (a, b))
        both = a.index.intersection(b.index)
        only_a, only_b = len(a) - len(both), len(b) - len(both)
        if only_a or only_b:
            notes.append(f"{name}: {only_a} rows only in {first}, {only_b} only in {arm}; the difference ignores them")
        if both.empty:
            continue
        a, b = (side.loc[both].reset_index() for side in (a, b))
        if differ := (a["reference"].map(json.dumps) != b["reference"].map(json.dumps)).sum():
            notes.append(f"{name}: {differ} rows have different references in {first} and in {arm}")
        n, units, stats_a, stats_b = a["id"].nunique(), _units(a), _by_seed(a), _by_seed(b)
        change = difference(scorer(metric, stats_a), scorer(metric, stats_b))
        resampled = samples(change, n, units=units)
        columns[key] = _paired(
            arm,
            first,
            difference=(_all_rows(change, n), *percentiles(resampled)),
            wins=_wins(a, b, metric, units),
            seeds=_seed_interval(metric, stats_a, stats_b),
            p=statistics.permutation_test(metric, stats_a, stats_b, units),
            detectable=statistics.detectable(resampled),
        )
    return columns


def _paired(
    arm: str,
    first: str,
    difference: Interval = _NO_INTERVAL,
    wins: Interval = _NO_INTERVAL,
    seeds: tuple[float, float] = (np.nan, np.nan),
    p: float = np.nan,
    detectable: float = np.nan,
) -> Columns:
    """Return the columns that compare an arm with the first one."""
    name = f"{arm} - {first}"
    columns: Columns = {}
    for part, change, share in zip(("", " low", " high"), difference, wins, strict=True):
        columns |= {f"{name}{part}": change, f"{arm} wins{part}": share}
    columns |= {f"{name} seeds low": seeds[0], f"{name} seeds high": seeds[1]}
    return columns | {f"{name} p": p, f"{name} detectable": detectable}


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a `table` as text: one column for each arm and difference, with intervals, in the metric's unit."""
    first, *others = frame.attrs["arms"]
    columns = [first, *others, *(f"{arm} - {first}" for arm in others)]
    rows = []
    for line in lines_of(frame):
        names = {"benchmark": line["benchmark"], "task": line["group"], "metric": cells.heading(line["metric"])}
        rows.append({**names, "n": line["n"], **{column: cells.score(line, column) for column in columns}})
    return pd.DataFrame(rows).set_index(["benchmark", "task", "metric"])


def markdown(frame: pd.DataFrame, differences: pd.DataFrame) -> str:
    """Return a `table` in Markdown, with one column for each arm, marked by its verdict.

    Args:
        frame: The `table`.
        differences: The `verdicts` of the same arms.
    """
    texts = readable(frame).reset_index()[["benchmark", "task", "metric", "n", *frame.attrs["arms"]]]
    lines = {key: index for index, key in enumerate(zip(*(frame[key] for key in KEY), strict=True))}
    marks = {"better": " ▲", "worse": " ▼"}
    for row in lines_of(differences[differences["verdict"].isin(list(marks))]):
        texts.loc[lines[tuple(row[key] for key in KEY)], row["arm"]] += marks[row["verdict"]]
    if frame["benchmark"].nunique() == 1:
        texts = texts.drop(columns="benchmark")
    numbers = len(frame.attrs["arms"]) + 1
    alignment = ["---"] * (texts.shape[1] - numbers) + ["--:"] * numbers
    rows: list[list[str]] = [list(map(str, texts)), alignment, *texts.astype(str).values.tolist()]
    legend = (
        "Brackets: 95 % bootstrap interval over rows (or speakers, recordings); ±: standard deviation over seeds. ▲ "
        f"better, ▼ worse than {frame.attrs['arms'][0]} beyond the noise of rows and of seeds; unmarked: no such "
        "difference shown."
    )
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", legend, ""])


# Quantiles of Student's t, two-sided 5 %, by degrees of freedom. The last one is used for more, slightly too wide.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def _seed_interval(metric: str, a: Sequence[Stats], b: Sequence[Stats]) -> tuple[float, float]:
    """Return the 95 % interval of the mean difference over paired seeds, by Student's t; NaN for one seed."""
    score_a, score_b = ([_all_rows(scorer(metric, [seed]), len(seed)) for seed in side] for side in (a, b))
    differences = np.subtract(score_b, score_a)
    if len(differences) < 2:
        return np.nan, np.nan
    half = _T[min(len(differences) - 1, max(_T))] * float(np.std(differences, ddof=1)) / len(differences) ** 0.5
    return float(np.mean(differences)) - half, float(np.mean(differences)) + half


AGAINST = ("first", "previous")
BEYOND_NOISE = ("better", "worse")  # verdicts on differences that exceed the noise of rows and of seeds


def verdicts(
    root: str | Path, arms: Sequence[str] | None = None, against: str = "first", beyond_noise: bool = False
) -> pd.DataFrame:
    """Return which differences between arms exceed the noise of test rows and the noise of seeds.

    Columns: benchmark, group, metric, arm, against, difference, `rows low`, `rows high` (bootstrap over rows), `seeds`,
    `seeds low`, `seeds high` (Student's t over paired seeds), verdict.

    The verdict is "better" or "worse" if both intervals exclude 0, "rows only" or "seeds only" if one does, "no
    difference shown" if none does, and "one seed" if there is only one. The intervals are not corrected for multiple
    comparisons: 1 of 20 is expected to exclude 0 by chance.

    Args:
        root: The study's directory.
        arms: Arms to compare; None: all arms with predictions.
        against: `first` compares each arm with the first one, `previous` with the one before it.
        beyond_noise: Return only the rows with the verdict better or worse.

    Raises:
        UserError: An arm has no predictions, or `against` is neither of the two.
    """
    if against not in AGAINST:
        raise UserError(f"against={against}: expected {join(AGAINST)}")
    chosen = _read(root, arms)[1]
    groups = [chosen] if against == "first" or len(chosen) == 1 else pairwise(chosen)
    rows = pd.concat([verdicts_in(table(root, group)) for group in groups], ignore_index=True)
    return rows[rows["verdict"].isin(BEYOND_NOISE)] if beyond_noise else rows


def verdicts_in(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the `verdicts` of a `table`, against its first arm."""
    first, *others = frame.attrs["arms"]
    rows = []
    for row in lines_of(frame):
        for arm in others:
            name = f"{arm} - {first}"
            seeds = int(min(row[f"{arm} seeds"], row[f"{first} seeds"]))
            over_rows, over_seeds = ((row[f"{name}{kind} low"], row[f"{name}{kind} high"]) for kind in ("", " seeds"))
            if not np.isnan(row[name]):
                verdict = _verdict(row["metric"], row[name], over_rows, over_seeds)
                key = (row[column] for column in KEY)
                rows.append((*key, arm, first, row[name], *over_rows, seeds, *over_seeds, verdict))
    columns = [*KEY, "arm", "against", "difference", "rows low", "rows high"]
    columns += ["seeds", "seeds low", "seeds high", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def _verdict(metric: str, difference: float, rows: tuple[float, float], seeds: tuple[float, float]) -> str:
    if np.isnan(seeds[0]):
        return "one seed"
    beyond_rows, beyond_seeds = (low > 0 or high < 0 for low, high in (rows, seeds))
    if beyond_rows and beyond_seeds:
        return "better" if (difference > 0) == MEASURES[metric].higher_is_better else "worse"
    return "rows only" if beyond_rows else "seeds only" if beyond_seeds else "no difference shown"


def _wins(a: pd.DataFrame, b: pd.DataFrame, metric: str, units: np.ndarray) -> Interval:
    """Return the share of paired rows in which `b` has the better score, with a 95 % bootstrap interval over units.

    NaN for metrics that are computed over all rows at once, because a single row has no score then.
    """
    formula = MEASURES[metric].formula
    if formula is None:
        return _NO_INTERVAL
    sign = 1 if MEASURES[metric].higher_is_better else -1
    score_a, score_b = (formula(np.array(side["stats"].tolist(), dtype=float)) for side in (a, b))
    gap = sign * (score_b - score_a)  # NaN if nothing can be counted in a row: a tie
    won = np.where(np.isnan(gap) | (gap == 0), 0.5, gap > 0)
    stats = pd.DataFrame({"won": won, "pairs": 1.0}).groupby(a["id"]).sum().to_numpy()
    return (float(won.mean()), *bootstrap(stats, "accuracy", units=units))


def _score(rows: pd.DataFrame, metric: str, arm: str) -> Columns:
    """Return the columns of one arm in one row of the table; NaN if the arm has no score there."""
    if rows.empty:
        return {arm: np.nan, f"{arm} low": np.nan, f"{arm} high": np.nan, f"{arm} seeds": 0, f"{arm} sd": np.nan}
    n, own_scorer = rows["id"].nunique(), scorer(metric, _by_seed(rows))
    low, high = percentiles(samples(own_scorer, n, units=_units(rows)))
    seed_scores = [score(metric, seed["stats"].tolist()) for _, seed in rows.groupby("seed")]
    spread = float(np.std(seed_scores, ddof=1)) if len(seed_scores) > 1 else np.nan
    return {
        arm: _all_rows(own_scorer, n),
        f"{arm} low": low,
        f"{arm} high": high,
        f"{arm} seeds": len(seed_scores),
        f"{arm} sd": spread,
    }


def _drop(as_is: pd.DataFrame, altered: pd.DataFrame, metric: str, arm: str) -> Columns:
    """Return the columns of an arm's drop on a benchmark with replaced audio, such as `meld@silence`.

    Empty if the arm was not scored on the same rows with their own audio.
    """
    own, replaced = (line[line["arm"] == arm].set_index(["seed", "id"]) for line in (as_is, altered))
    common = own.index.intersection(replaced.index)
    if common.empty:
        return {}
    own, replaced = (side.loc[common].reset_index() for side in (own, replaced))
    drop = statistics.drop(metric, _by_seed(own), _by_seed(replaced), _units(replaced))
    return dict(zip([f"{arm} drop", f"{arm} drop low", f"{arm} drop high", f"{arm} drop p"], drop, strict=True))


def _by_seed(rows: pd.DataFrame) -> list[Stats]:
    return [dict(zip(seed["id"], seed["stats"], strict=True)) for _, seed in rows.groupby("seed")]


def _units(rows: pd.DataFrame) -> np.ndarray:
    """Return the index of each row's unit (`statistics.Units.indices`), in the order of the sorted ids."""
    columns = ["id", *(key for key in statistics.KEYS if key in rows)]
    return statistics.find_units(lines_of(rows[columns].drop_duplicates("id").sort_values("id"))).indices


def _all_rows(score: Scorer, n_rows: int) -> float:
    """Return the score in which each row counts once."""
    return float(score(np.ones((1, n_rows)))[0])
