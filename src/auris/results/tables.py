"""Arms compared: scores with intervals, paired differences, and which of them exceed what another seed would do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from auris.errors import UserError
from auris.metrics import statistics
from auris.metrics.formulas import Scorer
from auris.metrics.measures import MEASURES, score, scorer, value
from auris.metrics.statistics import bootstrap, difference, interval, percentiles, samples
from auris.results import cells
from auris.results.runs import collect, join, ordered, predictions, runs_of

KEY = ["benchmark", "group", "metric"]


def table(root: str | Path, arms: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per benchmark, group and metric: each arm's score with its interval, each later arm against the first.

    Columns: benchmark, group, metric, provenance, signature, n (test rows common to the arms); for every arm `<arm>`,
    `<arm> low`, `<arm> high` (statistics pooled over its seeds, rows resampled), `<arm> seeds`, `<arm> sd` (standard
    deviation of the single seeds' scores); for every arm after the first `<arm> - <first>` and `<arm> wins` with their
    ` low` and ` high`, as in `compare`, and `<arm> - <first> seeds low` and `... seeds high`, as in `verdicts`;
    `<arm> - <first> p`, ` p holm` (corrected for all arms of the line) and ` detectable`, as in `compare`; of a
    benchmark that is heard otherwise, as `meld@silence`, for every arm `<arm> drop` with its ` low`, ` high` and ` p`,
    by how much it scores worse than on the same rows as they are. `attrs["notes"]` lists, in words, what could not be
    compared row by row. Arms default to all that have predictions, in the order of their study. Raises ValueError for
    an unknown arm.
    """
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
            row |= {name: match[0][of_pair] if match else np.nan for name, of_pair in _paired(arm, arms[0]).items()}
        names = [f"{arm} - {arms[0]} p" for arm in pairs]
        row |= {f"{name} holm": p for name, p in zip(names, statistics.holm([row[n] for n in names]), strict=True)}
        rows.append(row)
    frame = pd.DataFrame(rows)
    frame.attrs["arms"] = list(arms)
    frame.attrs["notes"] = notes + [note for pair in pairs.values() for note in pair.attrs["notes"]]
    return frame


def _paired(arm: str, first: str) -> dict[str, str]:
    """Return the columns of a table that compare an arm with the first one, each with its name in `compare`."""
    name, parts = f"{arm} - {first}", ("", " low", " high")
    columns = {}
    for part in parts:
        columns |= {f"{name}{part}": f"difference{part}", f"{arm} wins{part}": f"wins{part}"}
    columns |= {f"{name} seeds{part}": f"seeds{part}" for part in parts[1:]}
    return columns | {f"{name} {test}": test for test in ("p", "detectable")}


def compare(root: str | Path, arm_a: str, arm_b: str) -> pd.DataFrame:
    """`arm_b` minus `arm_a` on every group that both were scored on, with a 95 % interval.

    Pairs (seed, row id) that both arms have are kept; a row's statistics are summed over the seeds; rows, or what
    units they come in, are resampled, the same for both arms. Columns: benchmark, group, metric, n (rows), units (as
    `24 speakers`), seeds, a, b, difference, `difference low`, `difference high`, p (of a paired permutation test, for
    itself), detectable (the smallest difference that such rows show in 80 % of cases), `seeds low`, `seeds high` (see
    `verdicts`), wins, `wins low`, `wins high` (share of pairs in which the answer of `arm_b` scores better by itself,
    ties counted half), only_a, only_b (pairs without a partner, left out), references_differ. `attrs["notes"]` says so
    in words. Raises ValueError for an unknown arm, or if nothing is common to the two.
    """
    scored, _, notes = _scored(root, [arm_a, arm_b])
    pair = _compare(scored, arm_a, arm_b)
    if pair.empty:
        raise UserError(f"{arm_a} and {arm_b} have no scored row in common: {'; '.join(pair.attrs['notes'])}")
    pair.attrs["notes"] = notes + pair.attrs["notes"]
    return pair


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
    for arm, rows in scored.groupby("arm"):
        for key, of_key in rows.groupby(KEY, sort=False):
            counts = of_key.groupby("seed")["id"].agg(frozenset)
            if counts.nunique() > 1:
                notes.append(f"{_name(key)}: the seeds of {arm} were scored on different rows")
    return scored, arms, notes


def _compare(scored: pd.DataFrame, arm_a: str, arm_b: str) -> pd.DataFrame:
    columns = [*KEY, "n", "units", "seeds", "a", "b", "difference", "difference low", "difference high"]
    columns += ["p", "detectable", "seeds low", "seeds high"]
    columns += ["wins", "wins low", "wins high", "only_a", "only_b", "references_differ"]
    rows, notes = [], []
    benchmarks = {arm: set(scored[scored["arm"] == arm]["benchmark"]) for arm in (arm_a, arm_b)}
    for only, other in ((arm_a, arm_b), (arm_b, arm_a)):
        if of_one := benchmarks[only] - benchmarks[other]:
            notes.append(f"{join(sorted(of_one))}: {only} was scored, {other} was not")
    for key, of_key in scored.groupby(KEY, sort=False):
        a, b = (of_key[of_key["arm"] == arm].set_index(["seed", "id"]) for arm in (arm_a, arm_b))
        if a.empty or b.empty:
            if (len(a) or len(b)) and key[0] in benchmarks[arm_a] & benchmarks[arm_b]:
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
                f"{_name(key)}: {arm_b} - {arm_a} leaves out seed {join(sorted(unpaired))}, which only one has"
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
        scores = (score_a, score_b, score_b - score_a, *percentiles(resampled))
        scores += (statistics.permutation_test(key[-1], *sides, units.of_row), statistics.detectable(resampled))
        scores += (*_seed_interval(a, b, key[-1]), *_wins(a, b, key[-1], units))
        rows.append((*key, n, str(units), len(seeds), *scores, only_a, only_b, differ))
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["notes"] = notes
    return frame


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
    for row in judged.to_dict("records"):
        if row["verdict"] in BEYOND_NOISE:
            shown.loc[lines[tuple(row[key] for key in KEY)], row["arm"]] += {"better": " ▲", "worse": " ▼"}[
                row["verdict"]
            ]
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


def _seed_interval(a: pd.DataFrame, b: pd.DataFrame, metric: str) -> tuple[float, float]:
    """A 95 % interval of the mean difference from its spread over paired seeds, by Student's t; NaN for one seed."""
    found = []
    for seed in a.index.unique(0):
        sides = [side[side.index.get_level_values(0) == seed].reset_index() for side in (a, b)]
        score_a, score_b = (_whole(_scorer(side, metric), side["id"].nunique()) for side in sides)
        found.append(score_b - score_a)
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


def _wins(a: pd.DataFrame, b: pd.DataFrame, metric: str, units: statistics.Units) -> tuple[float, float, float]:
    """Share of paired rows that `b` wins by the rows' own scores, with a 95 % interval from resampling their units;
    NaN for measures of all rows at once, by which a row has no score of its own."""
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
