"""Comparison of the arms of a study: scores with intervals, paired differences, and verdicts on the differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from auris.errors import UserError
from auris.metrics import edits, statistics
from auris.metrics.formulas import Scorer
from auris.metrics.measures import ERROR_HEADINGS, ERROR_NOTE, MEASURES, score, scorer, tabulate_errors
from auris.metrics.records import AS_IS, EvaluationName
from auris.metrics.statistics import bootstrap_interval, difference_scorer, percentile_interval, resample_scores
from auris.results import cells
from auris.results.cells import frame_rows
from auris.results.runs import collect, join, list_runs, predictions, sort_arms

KEY = ["benchmark", "group", "metric"]

Key = tuple[str, ...]
"""Values of the columns KEY, which identify a row of the table."""

Columns = dict[str, float]
"""Cells of a row of the table by column."""

Stats = dict[str, list]
"""The `stats` of predictions by row id."""

ValueAndInterval = tuple[float, float, float]
"""A value and the ends of its interval."""

_UNDEFINED: ValueAndInterval = (np.nan, np.nan, np.nan)

# Explains the columns `<arm> drop`.
DROP_NOTE = "drop: how much worse the score is than on the same rows with their original audio."


def table(root: str | Path, arms: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the score of each arm with its interval, and the difference of each other arm to the first arm.

    There is one row for each combination of benchmark, group (a set of test rows) and metric. The readings of a
    benchmark, such as `real@ctc`, are left out if the arms have their own responses to it (`real`): see
    `readings.compare_readings`. The columns are:

    benchmark, group, metric, provenance (origins of the recordings, such as `real` or `tts`), signature (how the score
    was computed), and n (number of test rows that all arms have).

    For every arm: `<arm>`, `<arm> low`, `<arm> high` (score and 95 % interval; statistics are pooled over the seeds,
    and rows are resampled), `<arm> seeds` (number of seeds), `<arm> sd` (standard deviation of the scores of the
    seeds).

    For every arm except the first one: `<arm> - <first>` (the difference), and columns that begin with this name and
    end with ` low`, ` high`, ` seeds low`, ` seeds high` (intervals, see `verdicts`), ` p` (paired permutation test),
    ` p holm` (p corrected for the number of arms) and ` detectable` (the smallest difference that can be detected with
    80 % power). They are computed from the pairs (seed, row id) that both arms have. Statistics are summed over the
    seeds, and the same rows (or speakers, or recordings) are resampled for both arms. `<arm> wins`, `<arm> wins low`
    and `<arm> wins high` state the share of pairs in which the arm's response has a better score than the response of
    the first arm; ties count half.

    For every arm, if the audio of the benchmark was replaced, as in `meld@silence`: `<arm> drop` (how much worse the
    score is than on the same rows with their original audio), `<arm> drop low`, `<arm> drop high` and `<arm> drop p`.

    `attrs["arms"]` contains the arms. `attrs["notes"]` contains sentences about what could not be compared.

    Args:
        root: The study's directory.
        arms: Arms to compare; the first one is the baseline. None: all arms with predictions, in the study's order.

    Raises:
        UserError: An arm has no predictions.
    """
    scored, arms, notes = read_chosen_predictions(root, arms)
    scored = _without_readings(scored)
    signatures: dict[Key, str] = {
        (row["benchmark"], row["task"], row["metric"]): row["signature"] for row in frame_rows(collect(root))
    }
    predictions_by_key = _by_key(scored)
    rows: dict[Key, dict[str, Any]] = {key: dict(zip(KEY, key, strict=True)) for key in predictions_by_key}
    for key, key_predictions in predictions_by_key.items():
        common = set.intersection(*(set(ids) for _, ids in key_predictions.groupby("arm")["id"]))
        provenance = "+".join(sorted(set(key_predictions["provenance"])))
        rows[key] |= {"provenance": provenance, "signature": signatures.get(key, ""), "n": len(common)}
        for arm in arms:
            rows[key] |= score_columns(key_predictions[key_predictions["arm"] == arm], key[-1], arm)
        name = EvaluationName.parse(key[0])
        with_original_audio = predictions_by_key.get((str(name._replace(audio=AS_IS)), *key[1:]))
        if name.audio != AS_IS and with_original_audio is not None:
            for arm in arms:
                rows[key] |= _drop(with_original_audio, key_predictions, key[-1], arm)
    for arm in arms[1:]:
        for key, columns in _compare(predictions_by_key, arms[0], arm, notes).items():
            rows[key] |= columns
    p_columns = [f"{arm} - {arms[0]} p" for arm in arms[1:]]
    for row in rows.values():
        row |= {
            f"{column} holm": p
            for column, p in zip(p_columns, statistics.correct_by_holm([row[c] for c in p_columns]), strict=True)
        }
    frame = pd.DataFrame(rows.values())
    frame.attrs |= {"arms": arms, "notes": notes}
    return frame


def read_chosen_predictions(root: str | Path, arms: Sequence[str] | None) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Return the predictions of the requested arms, the names of these arms in order, and notes about missing data."""
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
        notes.append(
            f"arms that are not in the table, because they have no predictions: {join(sort_arms(root, missing))}"
        )
    for (arm, *key), rows in _by_key(scored, "arm").items():
        if rows.groupby("seed")["id"].agg(frozenset).nunique() > 1:
            notes.append(f"{', '.join(key)}: not all seeds of {arm} were scored on the same rows")
    return scored, chosen, notes


def _without_readings(scored: pd.DataFrame) -> pd.DataFrame:
    """Return predictions without those of readings of a benchmark that the arms have answered themselves."""
    names = {text: EvaluationName.parse(text) for text in scored["benchmark"].unique()}
    left_out = [text for text, name in names.items() if name.reading and name.benchmark in names]
    return scored[~scored["benchmark"].isin(left_out)]


def _by_key(frame: pd.DataFrame, *columns: str) -> dict[Key, pd.DataFrame]:
    """Return the rows of a data frame by the values of `columns` and KEY, in the order in which the values occur."""
    groups = frame.groupby([*columns, *KEY], sort=False)
    return {cast("Key", key): rows for key, rows in groups}  # grouping by a list of columns gives tuples


def _compare(
    predictions_by_key: Mapping[Key, pd.DataFrame], first: str, arm: str, notes: list[str]
) -> dict[Key, Columns]:
    """Return the columns that compare an arm with the first arm; they are NaN in rows that cannot be compared.

    Args:
        predictions_by_key: The predictions for each row of the table.
        first: The first arm.
        arm: The other arm.
        notes: List to which sentences about what cannot be compared are appended.
    """
    scored_benchmarks = {
        side: {key[0] for key, members in predictions_by_key.items() if (members["arm"] == side).any()}
        for side in (first, arm)
    }
    for side, other in ((first, arm), (arm, first)):
        if benchmarks := scored_benchmarks[side] - scored_benchmarks[other]:
            notes.append(f"{join(sorted(benchmarks))}: {side} was scored, {other} was not")
    columns = {}
    for key, key_predictions in predictions_by_key.items():
        columns[key] = _comparison_columns(arm, first)
        name, metric = ", ".join(key), key[-1]
        a, b = (key_predictions[key_predictions["arm"] == side].set_index(["seed", "id"]) for side in (first, arm))
        if a.empty or b.empty:
            if not (a.empty and b.empty) and key[0] in scored_benchmarks[first] & scored_benchmarks[arm]:
                side, other = (first, arm) if b.empty else (arm, first)
                notes.append(f"{name}: {side} was scored, {other} was not")
            continue
        seeds_a, seeds_b = (set(side.index.unique("seed")) for side in (a, b))
        if seeds_a.isdisjoint(seeds_b):
            notes.append(f"{name}: {first} and {arm} have no seed in common, so their difference is not computed")
            continue
        if unpaired := sorted(seeds_a ^ seeds_b):
            notes.append(
                f"{name}: the difference {arm} - {first} ignores seeds that only one arm has: {join(unpaired)}"
            )
        a, b = (side[side.index.isin(seeds_a & seeds_b, level="seed")] for side in (a, b))
        both = a.index.intersection(b.index)
        only_a, only_b = len(a) - len(both), len(b) - len(both)
        if only_a or only_b:
            notes.append(
                f"{name}: the difference ignores {only_a} rows that only {first} has and {only_b} rows that only {arm} "
                "has"
            )
        if both.empty:
            continue
        a, b = (side.loc[both].reset_index() for side in (a, b))
        if differ := (a["reference"].map(json.dumps) != b["reference"].map(json.dumps)).sum():
            notes.append(f"{name}: {differ} rows have different references in {first} and in {arm}")
        n, unit_of_row, stats_a, stats_b = a["id"].nunique(), _unit_of_row(a), _by_seed(a), _by_seed(b)
        change = difference_scorer(scorer(metric, stats_a), scorer(metric, stats_b))
        resampled = resample_scores(change, n, units=unit_of_row)
        columns[key] = _comparison_columns(
            arm,
            first,
            difference=(_score_all_rows(change, n), *percentile_interval(resampled)),
            wins=_win_share(a, b, metric, unit_of_row),
            seeds=_seed_interval(metric, stats_a, stats_b),
            p=statistics.permutation_test(metric, stats_a, stats_b, unit_of_row),
            detectable=statistics.detectable_difference(resampled),
        )
    return columns


def _comparison_columns(
    arm: str,
    first: str,
    difference: ValueAndInterval = _UNDEFINED,
    wins: ValueAndInterval = _UNDEFINED,
    seeds: tuple[float, float] = (np.nan, np.nan),
    p: float = np.nan,
    detectable: float = np.nan,
) -> Columns:
    """Return the columns that compare an arm with the first arm, given their values."""
    name = f"{arm} - {first}"
    columns: Columns = {}
    for part, change, share in zip(("", " low", " high"), difference, wins, strict=True):
        columns |= {f"{name}{part}": change, f"{arm} wins{part}": share}
    columns |= {f"{name} seeds low": seeds[0], f"{name} seeds high": seeds[1]}
    return columns | {f"{name} p": p, f"{name} detectable": detectable}


def format_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a `table` as text, with one column for each arm and each difference; scores have the metric's unit."""
    first, *others = frame.attrs["arms"]
    columns = [first, *others, *(f"{arm} - {first}" for arm in others)]
    texts = []
    for row in frame_rows(frame):
        names = {"benchmark": row["benchmark"], "task": row["group"], "metric": cells.format_heading(row["metric"])}
        texts.append({**names, "n": row["n"], **{column: cells.format_score(row, column) for column in columns}})
    return pd.DataFrame(texts).set_index(["benchmark", "task", "metric"])


def format_markdown(frame: pd.DataFrame, differences: pd.DataFrame) -> str:
    """Return a `table` in Markdown, with one column for each arm; ▲ and ▼ mark scores that are better or worse.

    Args:
        frame: The `table`.
        differences: The `verdicts` on the same arms.
    """
    arms = frame.attrs["arms"]
    error_rows = tabulate_errors_of_arms(frame)
    frame, differences = without_details(frame), without_details(differences)
    texts = format_table(frame).reset_index()[["benchmark", "task", "metric", "n", *arms]]
    positions = {key: position for position, key in enumerate(zip(*(frame[key] for key in KEY), strict=True))}
    marks = {"better": " ▲", "worse": " ▼"}
    for row in frame_rows(differences[differences["verdict"].isin(list(marks))]):
        texts.loc[positions[tuple(row[key] for key in KEY)], row["arm"]] += marks[row["verdict"]]
    if frame["benchmark"].nunique() == 1:
        texts = texts.drop(columns="benchmark")
    lines = markdown_table(list(map(str, texts)), texts.astype(str).values.tolist(), n_number_columns=len(arms) + 1)
    legend = (
        "Brackets: 95 % bootstrap interval over rows (or speakers, recordings); ±: standard deviation over seeds. "
        f"▲ better, ▼ worse than {arms[0]}: the difference exceeds the variation over rows and over "
        "seeds. Unmarked: no such difference was shown."
    )
    lines += ["", legend, ""]
    if error_rows:
        head = ["benchmark", "task", "arm", *ERROR_HEADINGS]
        rows = [[*key, *cells] for key, cells in error_rows.items()]
        lines += [
            "Speech tasks, in %:",
            "",
            *markdown_table(head, rows, n_number_columns=len(ERROR_HEADINGS)),
            "",
            ERROR_NOTE,
            "",
        ]
    return "\n".join(lines)


def markdown_table(head: list[str], rows: list[list[str]], n_number_columns: int) -> list[str]:
    """Return the lines of a table in Markdown, whose last `n_number_columns` columns are aligned to the right."""
    alignment = ["---"] * (len(head) - n_number_columns) + ["--:"] * n_number_columns
    return [f"| {' | '.join(row)} |" for row in (head, alignment, *rows)]


def without_details(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table without the details of error rates, which `tabulate_errors_of_arms` shows as columns."""
    return frame[~frame["metric"].isin(edits.DETAILS)].reset_index(drop=True)


def tabulate_errors_of_arms(frame: pd.DataFrame) -> dict[tuple[str, str, str], list[str]]:
    """Return the error rates of speech tasks and their details by benchmark, task and arm (`tabulate_errors`)."""
    return tabulate_errors(
        ((line["benchmark"], line["group"], arm), line["metric"], line[arm])
        for line in frame_rows(frame)
        for arm in frame.attrs["arms"]
    )


# Two-sided 5 % quantiles of Student's t by degrees of freedom. For more degrees of freedom the last one is used, which
# gives slightly too wide intervals.
_T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def _seed_interval(metric: str, a: Sequence[Stats], b: Sequence[Stats]) -> tuple[float, float]:
    """Return the 95 % interval of the mean difference over paired seeds by Student's t; NaN for a single seed."""
    score_a, score_b = ([_score_all_rows(scorer(metric, [seed]), len(seed)) for seed in side] for side in (a, b))
    differences = np.subtract(score_b, score_a)
    if len(differences) < 2:
        return np.nan, np.nan
    quantile = _T_QUANTILES[min(len(differences) - 1, max(_T_QUANTILES))]
    half_width = quantile * float(np.std(differences, ddof=1)) / len(differences) ** 0.5
    return float(np.mean(differences)) - half_width, float(np.mean(differences)) + half_width


AGAINST = ("first", "previous")
# Verdicts on differences that exceed the noise, which is the variation over test rows and the variation over seeds.
BEYOND_NOISE = ("better", "worse")


def verdicts(
    root: str | Path, arms: Sequence[str] | None = None, against: str = "first", beyond_noise: bool = False
) -> pd.DataFrame:
    """Return verdicts on the differences between arms: which ones exceed the variation over rows and over seeds.

    Columns: benchmark, group, metric, arm, against (the other arm), difference, `rows low` and `rows high` (bootstrap
    interval over test rows), `seeds` (number of seeds), `seeds low` and `seeds high` (interval over paired seeds by
    Student's t), verdict.

    The verdict is "better" or "worse" if both intervals exclude 0, "rows only" or "seeds only" if only the interval
    over rows or over seeds excludes 0, "no difference shown" if neither excludes 0, and "one seed" if there is only one
    seed. The intervals are not corrected for multiple comparisons: where arms do not differ, 1 in 20 intervals is
    expected to exclude 0 by chance.

    Args:
        root: The study's directory.
        arms: Arms to compare; None: all arms with predictions.
        against: `first` compares each arm with the first arm, `previous` with the arm before it.
        beyond_noise: Return only the rows with the verdict better or worse.

    Raises:
        UserError: An arm has no predictions, or `against` is neither `first` nor `previous`.
    """
    if against not in AGAINST:
        raise UserError(f"against={against}: expected {join(AGAINST)}")
    chosen = read_chosen_predictions(root, arms)[1]
    groups = [chosen] if against == "first" or len(chosen) == 1 else pairwise(chosen)
    rows = pd.concat([verdicts_in(table(root, group)) for group in groups], ignore_index=True)
    return rows[rows["verdict"].isin(BEYOND_NOISE)] if beyond_noise else rows


def verdicts_in(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the `verdicts` on the differences to the first arm of a `table`."""
    first, *others = frame.attrs["arms"]
    rows = []
    for row in frame_rows(frame):
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


def _win_share(a: pd.DataFrame, b: pd.DataFrame, metric: str, unit_of_row: np.ndarray) -> ValueAndInterval:
    """Return the share of paired rows in which `b` has the better score, and its 95 % bootstrap interval.

    The share is NaN for metrics that are computed over all rows at once, because single rows then have no score.

    Args:
        a: The predictions of the first arm.
        b: The predictions of the other arm for the same rows and seeds.
        metric: The metric.
        unit_of_row: See `_unit_of_row`.
    """
    formula = MEASURES[metric].formula
    if formula is None:
        return _UNDEFINED
    sign = 1 if MEASURES[metric].higher_is_better else -1
    score_a, score_b = (formula(np.array(side["stats"].tolist(), dtype=float)) for side in (a, b))
    gap = sign * (score_b - score_a)  # NaN if a row contains nothing that can be counted, which is treated as a tie
    won = np.where(np.isnan(gap) | (gap == 0), 0.5, gap > 0)
    stats = pd.DataFrame({"won": won, "pairs": 1.0}).groupby(a["id"]).sum().to_numpy()
    # The share is computed like an accuracy: the sum of `won` divided by the sum of `pairs`.
    return (float(won.mean()), *bootstrap_interval(stats, "accuracy", units=unit_of_row))


def score_columns(rows: pd.DataFrame, metric: str, arm: str) -> Columns:
    """Return the columns with the score of one arm in a row of the table; NaN if the arm has no score there."""
    if rows.empty:
        return {arm: np.nan, f"{arm} low": np.nan, f"{arm} high": np.nan, f"{arm} seeds": 0, f"{arm} sd": np.nan}
    n, arm_scorer = rows["id"].nunique(), scorer(metric, _by_seed(rows))
    low, high = percentile_interval(resample_scores(arm_scorer, n, units=_unit_of_row(rows)))
    seed_scores = [score(metric, seed_rows["stats"].tolist()) for _, seed_rows in rows.groupby("seed")]
    deviation = float(np.std(seed_scores, ddof=1)) if len(seed_scores) > 1 else np.nan
    return {
        arm: _score_all_rows(arm_scorer, n),
        f"{arm} low": low,
        f"{arm} high": high,
        f"{arm} seeds": len(seed_scores),
        f"{arm} sd": deviation,
    }


def _drop(with_original_audio: pd.DataFrame, with_replaced_audio: pd.DataFrame, metric: str, arm: str) -> Columns:
    """Return the columns with the drop of an arm on a benchmark with replaced audio, such as `meld@silence`.

    They are missing if the arm was not scored on the same rows with their original audio.
    """
    original, replaced = (
        side[side["arm"] == arm].set_index(["seed", "id"]) for side in (with_original_audio, with_replaced_audio)
    )
    common = original.index.intersection(replaced.index)
    if common.empty:
        return {}
    original, replaced = (side.loc[common].reset_index() for side in (original, replaced))
    drop = statistics.score_drop(metric, _by_seed(original), _by_seed(replaced), _unit_of_row(replaced))
    return dict(zip([f"{arm} drop", f"{arm} drop low", f"{arm} drop high", f"{arm} drop p"], drop, strict=True))


def _by_seed(rows: pd.DataFrame) -> list[Stats]:
    return [dict(zip(members["id"], members["stats"], strict=True)) for _, members in rows.groupby("seed")]


def _unit_of_row(rows: pd.DataFrame) -> np.ndarray:
    """Return the index of each row's unit, for the rows sorted by id.

    A unit is a speaker, a recording or a row, and is resampled as a whole (`statistics.Units`).
    """
    columns = ["id", *(key for key in statistics.KEYS if key in rows)]
    return statistics.find_units(frame_rows(rows[columns].drop_duplicates("id").sort_values("id"))).indices


def _score_all_rows(score: Scorer, n_rows: int) -> float:
    """Return the score for weights of 1, so that each row counts once."""
    return float(score(np.ones((1, n_rows)))[0])
