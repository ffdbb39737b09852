"""Bootstrap intervals, permutation tests and minimum detectable differences of scores.

All functions start from the statistics that rows contribute to a metric (`Measure.stats`), so a resampled error rate or
BLEU is computed over a whole resampled test set. Rows that depend on each other, such as the rows of one speaker, form
a unit (often called a cluster), and units are resampled as a whole.

Shapes: R rows, S bootstrap samples, C units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Any

import numpy as np

from auris.metrics.formulas import Scorer
from auris.metrics.measures import find_measure, scorer

# Fields of predictions. Rows with the same value depend on each other. The field with the larger units comes first.
KEYS = ("speaker", "recording")
MIN_CLUSTERS = 10  # with fewer units, bootstrap intervals are too narrow (Cameron, Gelbach and Miller 2008)
POWER, LEVEL = 0.8, 0.05  # power and significance level of the minimum detectable difference

# Explains the column with values of `detectable_difference_from_one_system` in tables of one run.
DETECTABLE_NOTE = "MDD: minimum detectable difference to a second, independent system (80 % power)."


@dataclass(frozen=True)
class Units:
    """Units of rows that a bootstrap resamples as a whole, because the rows of a speaker or recording are dependent.

    Attributes:
        name: What a unit is: `speaker`, `recording` or `row`.
        indices: (R,) index of each row's unit, from 0 to C-1.
    """

    name: str
    indices: np.ndarray

    def __str__(self) -> str:
        return f"{len(np.unique(self.indices))} {self.name}s"


def find_units(rows: Sequence[Mapping[str, Any]]) -> Units:
    """Return the speakers of rows as units, or else the recordings, or else the rows themselves.

    Speakers or recordings must be known for all rows, and there must be at least MIN_CLUSTERS of them.
    """
    for key in KEYS:
        # In rows of a data frame, a missing value is NaN.
        values = [value for row in rows if isinstance(value := row.get(key), str) and value]
        if len(values) == len(rows) and MIN_CLUSTERS <= len(set(values)) < len(rows):
            return Units(key, np.unique(values, return_inverse=True)[1])
    return Units("row", np.arange(len(rows)))


# --- intervals ------------------------------------------------------------------------------------------------------


def bootstrap_interval(
    rows: Sequence[Any], metric: str, n_samples: int = 1000, seed: int = 0, units: np.ndarray | None = None
) -> tuple[float, float]:
    """Return the ends of the 95 % bootstrap interval of a score, given the `stats` of each row."""
    return percentile_interval(
        resample_scores(scorer(metric, [dict(enumerate(rows))]), len(rows), n_samples, seed, units)
    )


def difference_scorer(a: Scorer, b: Scorer) -> Scorer:
    """Return a scorer of differences: the score of `b` minus the score of `a`, with the same weights of rows."""
    return lambda weights: b(weights) - a(weights)


def percentile_interval(samples: np.ndarray) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval of resampled scores; NaN if all scores are NaN.

    For a paired bootstrap (Koehn 2004), the resampled scores are differences between two systems on the same rows.
    """
    defined = samples[~np.isnan(samples)]  # a score is NaN if its bootstrap sample contains nothing that can be counted
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def resample_scores(
    score: Scorer, n_rows: int, n_samples: int = 1000, seed: int = 0, units: np.ndarray | None = None
) -> np.ndarray:
    """Return the scores (S,) of bootstrap samples.

    Args:
        score: Function of the weights of rows that returns a score, or a difference of two scores.
        n_rows: Number of rows.
        n_samples: Number of bootstrap samples. Up to 50 samples are computed at once, to limit memory.
        seed: Seed of the random numbers.
        units: `Units.indices` (R,); units are drawn with replacement. None: each row is a unit.
    """
    units = np.arange(n_rows) if units is None else units
    n_units, rng = int(units.max()) + 1, np.random.default_rng(seed)
    scores = []
    for start in range(0, n_samples, 50):
        n = min(50, n_samples - start)
        # The units of each sample are shifted to a different range of bins, so that one call counts all samples.
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

    The test exchanges responses between the systems, because under the null hypothesis it does not matter which system
    answered a row. All responses to the rows of a unit are exchanged together. If there are at most `n_samples` ways to
    exchange units, all of them are tried. Otherwise, `n_samples` random ones are tried, and p is never 0 (Phipson and
    Smyth 2010).

    Args:
        metric: A name in `MEASURES`.
        a: For each training seed of the first system, the `stats` by row id.
        b: For each training seed of the second system, the `stats` by row id, with the same ids.
        units: `Units.indices` for the rows sorted by id. None: each row is a unit.
        n_samples: Maximum number of exchanges.
        seed: Seed of the random exchanges.
    """
    assert [set(stats) for stats in a] == [set(stats) for stats in b], "the systems must have the same rows"
    both = [
        {(side, row_id): row for side, stats in enumerate(pair) for row_id, row in stats.items()}
        for pair in zip(a, b, strict=True)
    ]
    score = scorer(metric, both)  # its weights are for the sorted rows of a, followed by the sorted rows of b
    n_rows = len(set().union(*a))
    units = np.arange(n_rows) if units is None else units
    n_units = int(units.max()) + 1

    def differences(exchanged: np.ndarray) -> np.ndarray:
        """Return the score of b minus the score of a (S,), given which units are exchanged (S, C)."""
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
        batch_sizes = [min(50, n_samples - start) for start in range(0, n_samples, 50)]
        exchanged = np.concatenate([differences(rng.integers(2, size=(n, n_units))) for n in batch_sizes])
    # If the difference after an exchange is NaN, the exchange counts as extreme, which makes p larger.
    extreme = np.count_nonzero(~(np.abs(exchanged) < observed - 1e-12))
    return extreme / len(exchanged) if is_exact else (extreme + 1) / (len(exchanged) + 1)


def score_drop(
    metric: str, original: Sequence[Mapping[Any, Any]], altered: Sequence[Mapping[Any, Any]], units: np.ndarray
) -> tuple[float, float, float, float]:
    """Return the drop of a score: how much worse it is on altered rows than on the same rows in their original form.

    Args:
        metric: A name in `MEASURES`.
        original: For each training seed, the `stats` of the original rows by row id.
        altered: For each training seed, the `stats` of the altered rows by row id.
        units: `Units.indices` for the rows sorted by id.

    Returns:
        The drop, the ends of its 95 % interval, and its p value.
    """
    scorers = [scorer(metric, side) for side in (original, altered)]
    worse = difference_scorer(*(reversed(scorers) if find_measure(metric).higher_is_better else scorers))
    value = float(worse(np.ones((1, len(units))))[0])
    interval = percentile_interval(resample_scores(worse, len(units), units=units))
    return value, *interval, permutation_test(metric, original, altered, units)


def correct_by_holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for multiple comparisons (Holm 1979). NaN stays NaN and does not count as a comparison.

    With corrected p values and a threshold of 5 %, at most 1 in 20 sets of comparisons has a false positive.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN comes last
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected.tolist()


def detectable_difference(samples: np.ndarray) -> float:
    """Return the minimum detectable difference, given the differences of two systems from `resample_scores`.

    This is the smallest true difference that a test at significance level LEVEL finds with probability POWER. It equals
    (z of the level + z of the power) standard errors. It is NaN if all resampled differences are equal, because the
    standard error is then unknown.
    """
    defined, normal = samples[~np.isnan(samples)], NormalDist()
    standard_error = float(np.std(defined)) if len(defined) else 0.0
    z_sum = normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)
    # Because of rounding, the standard deviation of equal values may differ slightly from 0.
    return z_sum * standard_error if standard_error > 1e-12 else np.nan


def detectable_difference_from_one_system(samples: np.ndarray) -> float:
    """Return the minimum detectable difference, given resampled scores of one system.

    The other system is assumed to be independent and to have the same standard error. Between systems that fail on the
    same rows, smaller differences can be detected.
    """
    return float(np.sqrt(2)) * detectable_difference(samples)
