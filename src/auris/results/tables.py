"""Arms compared: scores with intervals, paired differences, and which of them exceed what another seed would do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from auris.errors import UserError
from auris.metrics import statistics
from auris.metrics.formulas import Scorer
from auris.metrics.measures import MEASURES, score, scorer
from auris.metrics.statistics import bootstrap, difference, percentiles, samples
from auris.results import cells
from auris.results.runs import collect, join, ordered, predictions, runs_of

KEY = ["benchmark", "group", "metric"]

Key = tuple[str, str, str]

Columns = dict[str, float]
"""Cells of one row of a table by column."""
Stats = dict[str, list]
"""What each row contributes to a score, by row id."""


def table(root: str | Path, arms: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per benchmark, group and metric: each arm's score with its interval, each later arm against the first.

    Columns: benchmark, group, metric, provenance, signature, n (test rows common to the arms); for every arm `<arm>`,
    `<arm> low`, `<arm> high` (statistics pooled over its seeds, rows resampled), `<arm> seeds`, `<arm> sd` (standard
    deviation of the single seeds' scores).

    For every arm after the first, the columns of `<arm> - <first>`: the difference, ` low`, ` high`, ` seeds low` and
    ` seeds high` (see `verdicts`), ` p` (of a paired permutation test), ` p holm` (corrected for all arms of the line)
    and ` detectable` (the smallest difference that such rows show in 80 % of cases). They are computed from the pairs
    (seed, row id) that both arms have: statistics are summed over the seeds, and rows, or the units that they come in,
    are resampled, the same for both arms. `<arm> wins` with ` low` and ` high` is the share of pairs in which the
    answer of the arm scores better by itself, ties counted half.

    Of a benchmark that is heard otherwise, as `meld@silence`, for every arm `<arm> drop` with its ` low`, ` high` and
    ` p`, by how much it scores worse than on the same rows as they are.

    `attrs["notes"]` lists, in words, what could not be compared row by row. Arms default to all that have predictions,
    in the order of their study. Raises ValueError for an unknown arm.
    """
    scored, arms, notes = _scored(root, arms)
    signatures = {}
    for row in collect(root).to_dict("records"):
        signatures[row["benchmark"], row["task"], row["metric"]] = row["signature"]
    lines = dict(list(scored.groupby(KEY, sort=False)))
    rows = {key: dict(zip(KEY, key, strict=True)) for key in lines}
    for key, line in lines.items():
        common = set.intersection(*(set(ids) for _, ids in line.groupby("arm")["id"]))
        provenance = "+".join(sorted(set(line["provenance"])))
        rows[key] |= {"provenance": provenance, "signature": signatures.get(key, ""), "n": len(common)}
        for arm in arms:
            rows[key] |= _score(line[line["arm"] == arm], key[-1], arm)
        as_is = lines.get((key[0].rpartition("@")[0], *key[1:]))
        for arm in arms if as_is is not None else ():
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


def _scored(root: str | Path, asked: Sequence[str] | None) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The predictions of the arms asked for, the arms in order, and what is missing in words."""
    scored = predictions(root)
    if scored.empty:
        raise UserError(f"no run of {root} has predictions yet; evaluate one: auris evaluate checkpoint=RUN")
    known = ordered(root, scored["arm"].unique())
    if unknown := [arm for arm in asked or () if arm not in known]:
        raise UserError(f"no predictions of {join(unknown)} in {root}; arms=... may name {join(known)}")
    arms = list(dict.fromkeys(asked or known))
    scored = scored[scored["arm"].isin(arms)]
    notes = []
    if not asked and (others := {arm for arm, _, _ in runs_of(root)} - set(known)):
        notes.append(f"not in the table, for want of predictions: {join(ordered(root, others))}")
    for (arm, *key), rows in scored.groupby(["arm", *KEY], sort=False):
        if rows.groupby("seed")["id"].agg(frozenset).nunique() > 1:
            notes.append(f"{', '.join(key)}: the seeds of {arm} were scored on different rows")
    return scored, arms, notes


def _compare(lines: Mapping[Key, pd.DataFrame], first: str, arm: str, notes: list[str]) -> dict[Key, Columns]:
    """Return the columns of a table that compare an arm with the first one, NaN where nothing can be compared.

    Args:
        lines: the predictions that belong to each row of the table.
        notes: what cannot be compared is added to them, in words.
    """
    scored = {one: {key[0] for key, line in lines.items() if (line["arm"] == one).any()} for one in (first, arm)}
    for one, other in ((first, arm), (arm, first)):
        if benchmarks := scored[one] - scored[other]:
            notes.append(f"{join(sorted(benchmarks))}: {one} was scored, {other} was not")
    columns = {}
    for key, line in lines.items():
        columns[key] = _paired(arm, first)
        name, metric = ", ".join(key), key[-1]
        a, b = (line[line["arm"] == one].set_index(["seed", "id"]) for one in (first, arm))
        if a.empty or b.empty:
            if not (a.empty and b.empty) and key[0] in scored[first] & scored[arm]:
                one, other = (first, arm) if b.empty else (arm, first)
                notes.append(f"{name}: {one} was scored, {other} was not")
            continue
        seeds_a, seeds_b = (set(side.index.unique("seed")) for side in (a, b))
        if seeds_a.isdisjoint(seeds_b):
            notes.append(f"{name}: {first} and {arm} have no seed in common, so no difference")
            continue
        if unpaired := sorted(seeds_a ^ seeds_b):
            notes.append(f"{name}: {arm} - {first} leaves out seed {join(unpaired)}, which only one has")
        a, b = (side[side.index.isin(seeds_a & seeds_b, level="seed")] for side in (a, b))
        both = a.index.intersection(b.index)
        only_a, only_b = len(a) - len(both), len(b) - len(both)
        if only_a or only_b:
            notes.append(f"{name}: {only_a} rows only in {first}, {only_b} only in {arm}: left out of the difference")
        if both.empty:
            continue
        a, b = (side.loc[both].reset_index() for side in (a, b))
        if differ := (a["reference"].map(json.dumps) != b["reference"].map(json.dumps)).sum():
            notes.append(f"{name}: {differ} rows have another reference in {first} than in {arm}")
        n, units, sides = a["id"].nunique(), _units(a), [_by_seed(a), _by_seed(b)]
        change = difference(*(scorer(metric, side) for side in sides))
        resampled = samples(change, n, units=units)
        columns[key] = _paired(
            arm,
            first,
            difference=(_whole(change, n), *percentiles(resampled)),
            wins=_wins(a, b, metric, units),
            seeds=_seed_interval(metric, *sides),
            p=statistics.permutation_test(metric, *sides, units),
            detectable=statistics.detectable(resampled),
        )
    return columns


def _paired(
    arm: str,
    first: str,
    difference: tuple[float, float, float] = (np.nan, np.nan, np.nan),
    wins: tuple[float, float, float] = (np.nan, np.nan, np.nan),
    seeds: tuple[float, float] = (np.nan, np.nan),
    p: float = np.nan,
    detectable: float = np.nan,
) -> Columns:
    """Return the columns that compare an arm with the first one."""
    name, columns = f"{arm} - {first}", {}
    for part, of_difference, of_wins in zip(("", " low", " high"), difference, wins, strict=True):
        columns |= {f"{name}{part}": of_difference, f"{arm} wins{part}": of_wins}
    columns |= {f"{name} seeds low": seeds[0], f"{name} seeds high": seeds[1]}
    return columns | {f"{name} p": p, f"{name} detectable": detectable}


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A `table` for a person: of each arm and each difference one column, with its interval, in the metric's unit."""
    first, *others = frame.attrs["arms"]
    columns = [first, *others, *(f"{arm} - {first}" for arm in others)]
    rows = []
    for line in frame.to_dict("records"):
        where = {"benchmark": line["benchmark"], "task": line["group"], "metric": cells.heading(line["metric"])}
        rows.append({**where, "n": line["n"], **{column: cells.score(line, column) for column in columns}})
    return pd.DataFrame(rows).set_index(["benchmark", "task", "metric"])


def markdown(frame: pd.DataFrame, judged: pd.DataFrame) -> str:
    """A `table` to paste into a README or a paper's notes: of each arm one column, marked by its verdict.

    Args:
        judged: the `verdicts` of the same arms.
    """
    shown = readable(frame).reset_index()[["benchmark", "task", "metric", "n", *frame.attrs["arms"]]]
    lines = {key: place for place, key in enumerate(zip(*(frame[key] for key in KEY), strict=True))}
    marks = {"better": " ▲", "worse": " ▼"}
    for row in judged[judged["verdict"].isin(list(marks))].to_dict("records"):
        shown.loc[lines[tuple(row[key] for key in KEY)], row["arm"]] += marks[row["verdict"]]
    if frame["benchmark"].nunique() == 1:
        shown = shown.drop(columns="benchmark")
    numbers = len(frame.attrs["arms"]) + 1
    rows = [list(shown), ["---"] * (shown.shape[1] - numbers) + ["--:"] * numbers, *shown.astype(str).values.tolist()]
    legend = (
        "In brackets the 95 % bootstrap interval over rows (or speakers, recordings), behind ± the standard deviation "
        f"over seeds. ▲ better, ▼ worse than {frame.attrs['arms'][0]} beyond the noise of rows and that of seeds; "
        "unmarked: not shown."
    )
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", legend, ""])


# Student's t, two-sided 5 %, by degrees of freedom; beyond the last that one, which is a little too wide.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def _seed_interval(metric: str, a: Sequence[Stats], b: Sequence[Stats]) -> tuple[float, float]:
    """A 95 % interval of the mean difference from its spread over paired seeds, by Student's t; NaN for one seed."""
    score_a, score_b = ([_whole(scorer(metric, [seed]), len(seed)) for seed in side] for side in (a, b))
    found = np.subtract(score_b, score_a)
    if len(found) < 2:
        return np.nan, np.nan
    reach = _T[min(len(found) - 1, max(_T))] * float(np.std(found, ddof=1)) / len(found) ** 0.5
    return float(np.mean(found)) - reach, float(np.mean(found)) + reach


AGAINST = ("first", "previous")
BEYOND_NOISE = ("better", "worse")  # verdicts on differences that exceed that of rows and that of seeds


def verdicts(
    root: str | Path, arms: Sequence[str] | None = None, against: str = "first", beyond_noise: bool = False
) -> pd.DataFrame:
    """Which differences of arms exceed noise, of which there are two kinds: other test rows, and other seeds. `against`
    the first arm, or the previous one in the order of the arms, as on a ladder; `beyond_noise`: only those that are
    better or worse.

    Columns: benchmark, group, metric, arm, against, difference, `rows low`, `rows high` (bootstrap over rows), `seeds`,
    `seeds low`, `seeds high` (Student's t over paired seeds), verdict: "better" or "worse" where both intervals leave
    out 0, "rows only" or "seeds only" where one does, "no difference shown" where none does, "one seed" where seeds
    were not varied. Each interval is for itself: of twenty differences that are none, one is expected outside of it.
    Raises ValueError as `table`, and for another `against`.
    """
    if against not in AGAINST:
        raise UserError(f"against={against}: expected {join(AGAINST)}")
    chosen = _scored(root, arms)[1]
    groups = [chosen] if against == "first" or len(chosen) == 1 else pairwise(chosen)
    found = pd.concat([verdicts_in(table(root, group)) for group in groups], ignore_index=True)
    return found[found["verdict"].isin(BEYOND_NOISE)] if beyond_noise else found


def verdicts_in(frame: pd.DataFrame) -> pd.DataFrame:
    """The `verdicts` of a `table`, against its first arm."""
    first, *others = frame.attrs["arms"]
    rows = []
    for row in frame.to_dict("records"):
        for arm in others:
            name = f"{arm} - {first}"
            seeds = int(min(row[f"{arm} seeds"], row[f"{first} seeds"]))
            intervals = [(row[f"{name}{kind} low"], row[f"{name}{kind} high"]) for kind in ("", " seeds")]
            if not np.isnan(row[name]):
                verdict = _verdict(row["metric"], row[name], *intervals)
                found = (arm, first, row[name], *intervals[0], seeds, *intervals[1], verdict)
                rows.append((*(row[key] for key in KEY), *found))
    columns = [*KEY, "arm", "against", "difference", "rows low", "rows high"]
    columns += ["seeds", "seeds low", "seeds high", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def _verdict(metric: str, difference: float, rows: tuple[float, float], seeds: tuple[float, float]) -> str:
    if np.isnan(seeds[0]):
        return "one seed"
    beyond = [low > 0 or high < 0 for low, high in (rows, seeds)]
    if all(beyond):
        return "better" if (difference > 0) == MEASURES[metric].higher_is_better else "worse"
    return {(True, False): "rows only", (False, True): "seeds only"}.get(tuple(beyond), "no difference shown")


def _wins(a: pd.DataFrame, b: pd.DataFrame, metric: str, units: np.ndarray) -> tuple[float, float, float]:
    """Share of paired rows that `b` wins by the rows' own scores, with a 95 % interval from resampling their units;
    NaN for measures of all rows at once, by which a row has no score of its own."""
    formula = MEASURES[metric].formula
    if formula is None:
        return np.nan, np.nan, np.nan
    sign = 1 if MEASURES[metric].higher_is_better else -1
    score_a, score_b = (formula(np.array(side["stats"].tolist(), dtype=float)) for side in (a, b))
    gap = sign * (score_b - score_a)  # NaN where a row holds nothing to count: a tie
    won = np.where(np.isnan(gap) | (gap == 0), 0.5, gap > 0)
    stats = pd.DataFrame({"won": won, "pairs": 1.0}).groupby(a["id"]).sum().to_numpy()
    return (float(won.mean()), *bootstrap(stats, "accuracy", units=units))


def _score(rows: pd.DataFrame, metric: str, arm: str) -> Columns:
    """The columns of one arm in one row of the table; NaN if it was not scored there."""
    if rows.empty:
        return {arm: np.nan, f"{arm} low": np.nan, f"{arm} high": np.nan, f"{arm} seeds": 0, f"{arm} sd": np.nan}
    n, of = rows["id"].nunique(), scorer(metric, _by_seed(rows))
    low, high = percentiles(samples(of, n, units=_units(rows)))
    singles = [score(metric, of_seed["stats"].tolist()) for _, of_seed in rows.groupby("seed")]
    spread = float(np.std(singles, ddof=1)) if len(singles) > 1 else np.nan
    point = _whole(of, n)
    return {arm: point, f"{arm} low": low, f"{arm} high": high, f"{arm} seeds": len(singles), f"{arm} sd": spread}


def _drop(as_is: pd.DataFrame, altered: pd.DataFrame, metric: str, arm: str) -> Columns:
    """The columns of what an arm loses on a benchmark that is heard otherwise, `meld@silence`, beside the same rows as
    they are; none where there are no such rows."""
    sides = [line[line["arm"] == arm].set_index(["seed", "id"]) for line in (as_is, altered)]
    common = sides[0].index.intersection(sides[1].index)
    if common.empty:
        return {}
    sides = [side.loc[common].reset_index() for side in sides]
    found = statistics.drop(metric, *(_by_seed(side) for side in sides), _units(sides[1]))
    return dict(zip([f"{arm} drop", f"{arm} drop low", f"{arm} drop high", f"{arm} drop p"], found, strict=True))


def _by_seed(rows: pd.DataFrame) -> list[Stats]:
    return [dict(zip(seed["id"], seed["stats"], strict=True)) for _, seed in rows.groupby("seed")]


def _units(rows: pd.DataFrame) -> np.ndarray:
    """The number of each row's unit (`statistics.Units`), in the order of the sorted ids."""
    columns = ["id", *(key for key in statistics.KEYS if key in rows)]
    return statistics.units(rows[columns].drop_duplicates("id").sort_values("id").to_dict("records")).of_row


def _whole(of: Scorer, n_rows: int) -> float:
    return float(of(np.ones((1, n_rows)))[0])
