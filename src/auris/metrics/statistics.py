"""Bootstrap intervals, permutation tests and minimum detectable differences of scores.

Everything works on the contributions of rows to a metric, so error rates and BLEU are resampled as corpus scores. Rows
that depend on each other, such as those of one speaker, are resampled together.

Shapes: R rows, S samples, C units (clusters of rows).
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

KEYS = ("speaker", "recording")  # fields of predictions that make rows depend on each other, the wider unit first
MIN_CLUSTERS = 10  # a bootstrap over fewer gives too narrow intervals (Cameron, Gelbach and Miller 2008)
POWER, LEVEL = 0.8, 0.05  # power and significance level of the minimum detectable difference

# Explains the column of `detectable_alone` in tables of one run.
DETECTABLE_NOTE = "MDD: minimum detectable difference to a second, independent system (80 % power)."


@dataclass(frozen=True)
class Units:
    """Groups of rows that a bootstrap draws together, because rows of one speaker or recording are not independent.

    Attributes:
        name: speaker, recording or row.
        indices: (R,) the index of each row's unit, 0..C-1.
    """

    name: str
    indices: np.ndarray

    def __str__(self) -> str:
        return f"{len(np.unique(self.indices))} {self.name}s"


def find_units(rows: Sequence[Mapping[str, Any]]) -> Units:
    """Return the widest units that are known for all rows and numerous enough: speakers, recordings or rows."""
    for key in KEYS:
        # A data frame holds NaN for rows without the field.
        names = [name for row in rows if isinstance(name := row.get(key), str) and name]
        if len(names) == len(rows) and MIN_CLUSTERS <= len(set(names)) < len(rows):
            return Units(key, np.unique(names, return_inverse=True)[1])
    return Units("row", np.arange(len(rows)))


# --- intervals ------------------------------------------------------------------------------------------------------


def bootstrap(
    rows: Sequence[Any], metric: str, n_samples: int = 1000, seed: int = 0, units: np.ndarray | None = None
) -> tuple[float, float]:
    """Return the ends of the 95 % bootstrap interval of the score of rows, given the `stats` of each."""
    return percentiles(samples(scorer(metric, [dict(enumerate(rows))]), len(rows), n_samples, seed, units))


def difference(a: Scorer, b: Scorer) -> Scorer:
    """Return the scorer of the score of b minus that of a on the same rows."""
    return lambda weights: b(weights) - a(weights)


def percentiles(samples: np.ndarray) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval of resampled scores; NaN if none is defined.

    Resampled differences have both sides on the same rows (Koehn 2004).
    """
    defined = samples[~np.isnan(samples)]  # a sample in which nothing can be counted has no score
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def samples(
    score: Scorer, n_rows: int, n_samples: int = 1000, seed: int = 0, units: np.ndarray | None = None
) -> np.ndarray:
    """Return the scores (S,) of bootstrap samples.

    Args:
        score: The score, or the difference of two scores, as a function of how often each row counts.
        n_rows: Number of rows.
        n_samples: Number of bootstrap samples. They are computed 50 at a time, to limit memory.
        seed: Seed of the draws.
        units: `Units.indices` (R,): whole units are drawn with replacement. None draws single rows.
    """
    units = np.arange(n_rows) if units is None else units
    n_units, rng = int(units.max()) + 1, np.random.default_rng(seed)
    scores = []
    for start in range(0, n_samples, 50):
        n = min(50, n_samples - start)
        # Each sample has its own range of bins, so that one call counts all samples.
        drawn = rng.integers(n_units, size=(n, n_units)) + n_units * np.arange(n)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=n * n_units).reshape(n, n_units).astype(float)
        scores.append(score(weights[:, units]))
    return np.concatenate(scores)


# --- tests ----------------------------------------------------------------------------------------------------------


def permutation_test(
    metric: str,
    a: Sequence[Mapping[Any, Any]],
    b: Sequence[Mapping[Any, Any]],
    units: np.ndarray | None = None,
    n_samples: int = 2000,
    seed: int = 0,
) -> float:
    """Return the two-sided p value of the difference between the scores of two systems.

    Under the null hypothesis it does not matter which system answered a row. The responses of the two systems to a unit
    are exchanged together. All exchanges are tried if there are at most `n_samples`, otherwise `n_samples` random ones,
    for which p is never 0 (Phipson and Smyth 2010).

    Args:
        metric: A name in `MEASURES`.
        a: The `stats` by row id, for each training seed of the first system.
        b: The same for the second system, with the same row ids.
        units: `Units.indices` in the order of the sorted ids. None: each row is a unit.
        n_samples: Number of exchanges.
        seed: Seed of the random exchanges.
    """
    assert [set(stats) for stats in a] == [set(stats) for stats in b], "the systems must have the same rows"
    both = [
        {(side, name): row for side, stats in enumerate(pair) for name, row in stats.items()}
        for pair in zip(a, b, strict=True)
    ]
    score = scorer(metric, both)  # rows: those of a, then those of b, each sorted
    n_rows = len(set().union(*a))
    units = np.arange(n_rows) if units is None else units
    n_units = int(units.max()) + 1

    def differences(exchanged: np.ndarray) -> np.ndarray:
        """(S, C) which units are exchanged -> (S,) the score of b minus that of a."""
        from_b = exchanged[:, units].astype(float)
        return score(np.hstack([from_b, 1 - from_b])) - score(np.hstack([1 - from_b, from_b]))

    observed = abs(differences(np.zeros((1, n_units)))[0])
    if np.isnan(observed):
        return float("nan")
    is_exact = n_units < 63 and 2**n_units <= n_samples
    if is_exact:
        exchanged = differences(np.array(list(product((0, 1), repeat=n_units))))
    else:
        rng = np.random.default_rng(seed)
        steps = [min(50, n_samples - start) for start in range(0, n_samples, 50)]
        exchanged = np.concatenate([differences(rng.integers(2, size=(n, n_units))) for n in steps])
    # An exchange after which there is no score counts against the difference.
    extreme = np.count_nonzero(~(np.abs(exchanged) < observed - 1e-12))
    return extreme / len(exchanged) if is_exact else (extreme + 1) / (len(exchanged) + 1)


def drop(
    metric: str, as_is: Sequence[Mapping[Any, Any]], altered: Sequence[Mapping[Any, Any]], units: np.ndarray
) -> tuple[float, float, float, float]:
    """Return how much worse a system scores on altered rows than on the same rows as they are.

    Args:
        metric: A name in `MEASURES`.
        as_is: The `stats` by row id, for each training seed.
        altered: The same for the altered rows.
        units: `Units.indices` in the order of the sorted ids.

    Returns:
        The drop, the ends of its 95 % interval, and its p value.
    """
    scorers = [scorer(metric, side) for side in (as_is, altered)]
    worse = difference(*(reversed(scorers) if measure(metric).higher_is_better else scorers))
    value = float(worse(np.ones((1, len(units))))[0])
    interval = percentiles(samples(worse, len(units), units=units))
    return value, *interval, permutation_test(metric, as_is, altered, units)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for multiple comparisons (Holm 1979). NaN stays NaN and is not a comparison.

    With a threshold of 5 %, at most 5 % of studies have any false positive.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN comes last
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected.tolist()


def detectable(samples: np.ndarray) -> float:
    """Return the minimum detectable difference, given resampled differences of two systems (`samples`).

    It is the smallest true difference that a test at `LEVEL` finds with probability `POWER`: (z + z) standard errors.
    NaN if the samples do not vary, because the standard error is then unknown.
    """
    defined, normal = samples[~np.isnan(samples)], NormalDist()
    error = float(np.std(defined)) if len(defined) else 0.0
    # The deviation of equal samples is not exactly 0, because of rounding.
    return (normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)) * error if error > 1e-12 else np.nan


def detectable_alone(samples: np.ndarray) -> float:
    """Return the minimum detectable difference, given resampled scores of one system.

    The other system is assumed to vary as much and to be independent. Smaller differences can be detected between
    systems that fail on the same rows.
    """
    return float(np.sqrt(2)) * detectable(samples)
