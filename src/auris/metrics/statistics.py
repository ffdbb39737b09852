"""What chance does to scores: rows that depend on each other, tests between systems, differences too small to be seen.

Everything works on what rows contribute to a metric, so error rates and BLEU are resampled as corpus scores.

Shapes: R rows, S samples, C clusters of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Any

import numpy as np

from auris.metrics.formulas import Scorer
from auris.metrics.measures import measure, scorer

KEYS = ("speaker", "recording")  # of predictions: what rows may have in common, the wider first
MIN_CLUSTERS = 10  # fewer, and a bootstrap over them gives too narrow an interval (Cameron, Gelbach and Miller 2008)
POWER, LEVEL = 0.8, 0.05  # power and significance level of the minimum detectable difference

# Explains the column of `detectable_alone` in tables of one run.
SHOWS = "shows: the difference to a second, independent system that so many rows show in 80 % of cases."


@dataclass(frozen=True)
class Units:
    """What test rows are drawn in: rows of one speaker, or of one recording, say nothing new about another.

    `of_row` (R,): the number of each row's unit, 0..count-1.
    """

    name: str
    of_row: np.ndarray

    def __str__(self) -> str:
        return f"{len(np.unique(self.of_row))} {self.name}s"


def units(rows: Sequence[Mapping[str, Any]]) -> Units:
    """The widest units that all rows know theirs of and that there are enough of: speakers, recordings, or rows."""
    for key in KEYS:
        known = [row.get(key) for row in rows]
        # A frame of lines of which only some have the field holds NaN there.
        are_known = all(isinstance(name, str) and name for name in known)
        if are_known and MIN_CLUSTERS <= len(set(known)) < len(rows):
            return Units(key, np.unique(known, return_inverse=True)[1])
    return Units("row", np.arange(len(rows)))


# --- intervals ------------------------------------------------------------------------------------------------------


def bootstrap(
    rows: Sequence[Any], metric: str, n_samples: int = 1000, seed: int = 0, units: np.ndarray | None = None
) -> tuple[float, float]:
    """Return the ends of the 95 % interval of the score of rows, given what each contributes."""
    return percentiles(samples(scorer(metric, [dict(enumerate(rows))]), len(rows), n_samples, seed, units))


def difference(a: Scorer, b: Scorer) -> Scorer:
    """The score of b minus that of a on the same rows."""
    return lambda weights: b(weights) - a(weights)


def percentiles(found: np.ndarray) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval of `samples` of a score, or of a difference (Koehn 2004: both
    sides on the same rows); NaN if it is never defined."""
    defined = found[~np.isnan(found)]  # a resample without any reference unit has no score
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def samples(
    of: Scorer, n_rows: int, n_samples: int = 1000, seed: int = 0, units: np.ndarray | None = None
) -> np.ndarray:
    """Return the scores (S,) of resamples: `n_rows` rows drawn with replacement, or with `units` (R,), the number of
    each row's unit, whole units of rows that depend on each other.

    They are computed 50 at a time: memory stays small for many, and formulas run on many sums.
    """
    units = np.arange(n_rows) if units is None else units
    n_units, rng = int(units.max()) + 1, np.random.default_rng(seed)
    found = []
    for start in range(0, n_samples, 50):
        n = min(50, n_samples - start)
        # Bins of their own for each sample: all samples are counted at once.
        drawn = rng.integers(n_units, size=(n, n_units)) + n_units * np.arange(n)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n * n_units).reshape(n, n_units)
        found.append(of(counts.astype(float)[:, units]))
    return np.concatenate(found)


# --- tests ----------------------------------------------------------------------------------------------------------


def permutation_test(
    metric: str,
    a: Sequence[Mapping[Any, Any]],
    b: Sequence[Mapping[Any, Any]],
    of_row: np.ndarray | None = None,
    n_samples: int = 2000,
    seed: int = 0,
) -> float:
    """p of the difference of two systems' scores, two-sided, if it did not matter which of the two answered a row.

    The two systems' answers to a unit are exchanged together; all ways of it are tried where there are no more than
    `n_samples`, so many random ones otherwise (and then p is never 0: Phipson and Smyth 2010).

    a, b: of each training seed, row id -> what the row contributes; the same rows. of_row: `Units.of_row`, in the order
    of the sorted ids; None: each row for itself.
    """
    assert [set(of) for of in a] == [set(of) for of in b], "the two are paired row by row"
    both = [
        {(side, name): stats for side, of in enumerate(pair) for name, stats in of.items()}
        for pair in zip(a, b, strict=True)
    ]
    of = scorer(metric, both)  # rows: those of a, then those of b, each sorted
    n_rows = len(set().union(*a))
    of_row = np.arange(n_rows) if of_row is None else of_row
    n_units = int(of_row.max()) + 1

    def differences(exchanged: np.ndarray) -> np.ndarray:
        """(S, C) which units are exchanged -> the score of b minus that of a (S,)."""
        theirs = exchanged[:, of_row].astype(float)
        return of(np.hstack([theirs, 1 - theirs])) - of(np.hstack([1 - theirs, theirs]))

    observed = abs(differences(np.zeros((1, n_units)))[0])
    if np.isnan(observed):
        return float("nan")
    exact = n_units < 63 and 2**n_units <= n_samples
    if exact:
        found = differences(np.array(list(product((0, 1), repeat=n_units))))
    else:
        rng = np.random.default_rng(seed)
        steps = [min(50, n_samples - start) for start in range(0, n_samples, 50)]
        found = np.concatenate([differences(rng.integers(2, size=(n, n_units))) for n in steps])
    # An exchange after which there is no score counts against the difference.
    extreme = np.count_nonzero(~(np.abs(found) < observed - 1e-12))
    return extreme / len(found) if exact else (extreme + 1) / (len(found) + 1)


def drop(
    metric: str, as_is: Sequence[Mapping[Any, Any]], altered: Sequence[Mapping[Any, Any]], of_row: np.ndarray
) -> tuple[float, float, float, float]:
    """By how much a system scores worse on altered rows than on the same rows as they are, its interval, and p.

    as_is, altered: of each training seed, row id -> what the row contributes.
    """
    of = [scorer(metric, side) for side in (as_is, altered)]
    worse = difference(*(reversed(of) if measure(metric).higher_is_better else of))
    value = float(worse(np.ones((1, len(of_row))))[0])
    interval = percentiles(samples(worse, len(of_row), units=of_row))
    return value, *interval, permutation_test(metric, as_is, altered, of_row)


def holm(p_values: Sequence[float]) -> list[float]:
    """p corrected for so many comparisons (Holm 1979): any of those below 5 % is a false one in at most 5 % of studies.
    NaN stays, and counts as no comparison."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN comes last
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected.tolist()


def detectable(samples: np.ndarray) -> float:
    """The smallest true difference that a test at `LEVEL` finds with probability `POWER`, given resampled differences
    of two systems (`samples`): (z + z) standard errors. NaN where nothing varies: nothing is known of it."""
    defined, normal = samples[~np.isnan(samples)], NormalDist()
    error = float(np.std(defined)) if len(defined) else 0.0
    # Of equal samples the deviation is what rounding leaves.
    return (normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)) * error if error > 1e-12 else np.nan


def detectable_alone(samples: np.ndarray) -> float:
    """`detectable`, given resampled scores of one system: between it and another that varies as much and has nothing
    in common with it. Systems that fail on the same rows differ visibly by less."""
    return float(np.sqrt(2)) * detectable(samples)
