"""What chance does to scores: rows that depend on each other, tests between systems, differences too small to be seen.

All of it works on what rows contribute (`auris.metrics.measures`), so error rates and BLEU are resampled as corpus
scores. Of ours it imports `measures` alone.

Shapes as there: R rows, S samples; C clusters of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Any

import numpy as np

from auris.metrics.measures import difference, interval, measure, scorer

KEYS = ("speaker", "recording")  # of predictions: what rows may have in common, the wider first
MIN_CLUSTERS = 10  # fewer, and a bootstrap over them gives too narrow an interval (Cameron, Gelbach and Miller 2008)
POWER, LEVEL = 0.8, 0.05  # of a difference that can be seen: how often it is, and how often one is seen that is not


@dataclass(frozen=True)
class Units:
    """What test rows are drawn in: rows of one speaker, or of one recording, say nothing new about another.

    `of_row` (R,): the number of each row's unit, 0..count-1.
    """

    name: str
    of_row: np.ndarray

    @property
    def count(self) -> int:
        return int(self.of_row.max()) + 1 if len(self.of_row) else 0

    def __str__(self) -> str:
        return f"{self.count} {self.name}s"


def units(rows: Sequence[Mapping[str, Any]]) -> Units:
    """The widest units that all rows know theirs of and that there are enough of: speakers, recordings, or rows."""
    for key in KEYS:
        known = [row.get(key) for row in rows]
        # A frame of lines of which only some have the field holds NaN there.
        if not all(isinstance(name, str) and name for name in known) or len(set(known)) < MIN_CLUSTERS:
            continue
        if len(set(known)) < len(rows):
            return Units(key, np.unique(known, return_inverse=True)[1])
    return Units("row", np.arange(len(rows)))


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
    return value, *interval(worse, len(of_row), units=of_row), permutation_test(metric, as_is, altered, of_row)


def holm(p_values: Sequence[float]) -> list[float]:
    """p corrected for so many comparisons (Holm 1979): any of those below 5 % is a false one in at most 5 % of studies.
    NaN stays, and counts as no comparison."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN comes last
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected.tolist()


def detectable(samples: np.ndarray, power: float = POWER, level: float = LEVEL) -> float:
    """The smallest true difference that a test at `level` finds with probability `power`, given resampled differences
    of two systems (`measures.samples`): (z + z) standard errors. NaN where nothing varies: nothing is known of it."""
    defined, normal = samples[~np.isnan(samples)], NormalDist()
    error = float(np.std(defined)) if len(defined) else 0.0
    # Of equal samples the deviation is what rounding leaves.
    return (normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power)) * error if error > 1e-12 else np.nan


def detectable_alone(samples: np.ndarray, power: float = POWER, level: float = LEVEL) -> float:
    """`detectable`, given resampled scores of one system: between it and another that varies as much and has nothing
    in common with it. Systems that fail on the same rows differ visibly by less."""
    return float(np.sqrt(2)) * detectable(samples, power, level)
