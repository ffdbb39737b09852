"""Formulas that turn the contributions of test rows into scores.

Most metrics are additive: each row contributes a few counts, and the score is a formula of their sums. Five metrics
need all rows at once: EER (one threshold for all rows), macro-F1 and mAP (a mean over the classes that occur), CIDEr-D
(words that occur in many references have a low weight) and AIR-Bench's points (a mean of means). For these, a function
prepares the contributions once and returns a `Scorer`.

Shapes: R rows, S bootstrap samples, K statistics, C classes, T thresholds. `weights` (S, R) is how often each row
counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import numpy as np

Scorer = Callable[[np.ndarray], np.ndarray]  # weights (S, R) -> scores (S,)
Ngram = tuple[str, ...]

# --------------------------------------------------------------------------------------------------------------------
# Formulas of additive statistics: (..., K) -> (...)


def rate(sums: np.ndarray) -> np.ndarray:
    """Return the first statistic divided by the second; NaN if the second is 0."""
    return _divide(sums[..., 0], sums[..., 1])


def f1(sums: np.ndarray) -> np.ndarray:
    """Return F1 from true positives, false positives and false negatives; NaN if all are 0."""
    hits, extra, missed = np.moveaxis(sums, -1, 0)
    return _divide(2 * hits, 2 * hits + extra + missed)


def bleu(sums: np.ndarray) -> np.ndarray:
    """Return corpus BLEU with exponential smoothing: `sacrebleu.BLEU.compute_bleu` for many sums at once."""
    matches, totals = sums[..., 0:4], sums[..., 4:8]
    hypothesis_len, reference_len = sums[..., 8], sums[..., 9]
    missing = (matches == 0) & (totals > 0)
    precisions = _divide(np.where(missing, 0.5 ** np.cumsum(missing, axis=-1), matches), totals)
    shortness = np.minimum(0.0, 1.0 - _divide(reference_len, hypothesis_len))  # log of the brevity penalty
    score = 100.0 * np.exp(np.log(np.nan_to_num(precisions, nan=1.0)).mean(-1) + np.nan_to_num(shortness))
    # 0 if nothing matches, or if the whole corpus is too short for a 4-gram, as in sacrebleu 2.
    return np.where(matches.any(-1) & totals.all(-1), score, 0.0)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a / b, NaN where b is 0."""
    a, b = np.broadcast_arrays(a, b)
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis without NaN; NaN if all values are NaN."""
    return _divide(np.nansum(values, axis=-1), (~np.isnan(values)).sum(-1))


# --------------------------------------------------------------------------------------------------------------------
# Scores of all rows at once: contributions of the rows -> function of how often each row counts


def macro_f1(rows: Sequence[tuple[str, str]]) -> Scorer:
    """Return the scorer of the mean F1 over the classes of the references.

    A response that is not a class is a false negative of its reference's class. A class without rows in a bootstrap
    sample is left out of that sample's mean.

    Args:
        rows: (response, reference) of each row.
    """
    classes = np.array(sorted({reference for _, reference in rows}))
    answered, true = (np.array(side)[:, None] == classes for side in zip(*rows, strict=True))  # (R, C)
    counts = [side.astype(float) for side in (answered & true, answered, true)]

    def score(weights: np.ndarray) -> np.ndarray:
        hits, answers, members = (weights @ side for side in counts)
        return nan_mean(np.where(members > 0, _divide(2 * hits, answers + members), np.nan))

    return score


def mean_average_precision(rows: Sequence[tuple[Collection[str], Collection[str]]]) -> Scorer:
    """Return the scorer of the average precision, averaged over the classes of the references.

    A response names a class or does not, so the precision-recall curve of a class has two points: the rows that name
    it, then all rows.

    Args:
        rows: (classes of the response, true classes) of each row.
    """
    classes = sorted({name for _, reference in rows for name in reference})
    answered, true = (np.array([[c in row[side] for c in classes] for row in rows], dtype=bool) for side in (0, 1))
    counts = [side.astype(float) for side in (answered & true, answered, true)]

    def score(weights: np.ndarray) -> np.ndarray:
        hits, named, members = (weights @ side for side in counts)
        recall = _divide(hits, members)  # NaN where a sample has no row of the class
        precision = np.nan_to_num(_divide(hits, named))
        return nan_mean(recall * precision + (1 - recall) * _divide(members, weights.sum(-1, keepdims=True)))

    return score


def equal_error_rate(rows: Sequence[tuple[float, float]]) -> Scorer:
    """Return the scorer of the equal error rate, computed as torchmetrics' `EER`.

    It is the mean of false acceptance and false rejection at the threshold where these differ least.

    Args:
        rows: (score, 1 if the row should be accepted, otherwise 0).
    """
    scores, targets = np.array(rows, dtype=float).T
    order = np.argsort(-scores, kind="stable")
    targets = targets[order]
    thresholds = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # the last row of each score (T,)

    def score(weights: np.ndarray) -> np.ndarray:
        weights = weights[:, order]
        rates = []
        for kind in (weights * (1 - targets), weights * targets):
            accepted = np.cumsum(kind, axis=-1)[:, thresholds]
            none = np.zeros((len(kind), 1))  # above the highest score
            rates.append(_divide(np.concatenate([none, accepted], axis=-1), kind.sum(-1, keepdims=True)))
        false_acceptance, false_rejection = rates[0], 1 - rates[1]
        nearest = np.abs(false_acceptance - false_rejection).argmin(-1)[:, None]
        return np.take_along_axis((false_acceptance + false_rejection) / 2, nearest, axis=-1)[:, 0]

    return score


def cider(rows: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]]) -> Scorer:
    """Return the scorer of CIDEr-D (Vedantam et al. 2015), computed as in COCO's caption evaluation.

    N-grams up to 4, sigma 6, multiplied by 10. Document frequencies are those of the references of all rows, also for
    bootstrap samples: they belong to the metric, not to the sample.

    Args:
        rows: (words of the response, words of each reference).
    """
    references = [[_ngrams(words) for words in row_references] for _, row_references in rows]
    frequency = Counter(gram for counts in references for gram in set().union(*counts))
    rarity = {gram: math.log(len(rows)) - math.log(count) for gram, count in frequency.items()}
    unseen = math.log(len(rows))

    def weigh(grams: Counter[Ngram]) -> list[dict[Ngram, float]]:
        """Return the weight of each n-gram, for n = 1, 2, 3, 4."""
        vectors: list[dict[Ngram, float]] = [{}, {}, {}, {}]
        for gram, count in grams.items():
            vectors[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
        return vectors

    def similarity(response: Sequence[str], reference: Counter[Ngram], reference_length: int) -> float:
        cosines = []
        for a, b in zip(weigh(_ngrams(response)), weigh(reference), strict=True):
            norms = math.hypot(*a.values()) * math.hypot(*b.values())
            # The smaller of the two weights counts, so repeating a word gains nothing.
            cosines.append(sum(min(w, b.get(gram, 0)) * b.get(gram, 0) for gram, w in a.items()) / (norms or 1))
        # COCO's code takes the number of 2-grams as the length.
        difference = max(len(response) - 1, 0) - max(reference_length - 1, 0)
        return math.exp(-(difference**2) / (2 * 6**2)) * sum(cosines) / 4

    row_scores = []
    for (response, row_references), counts in zip(rows, references, strict=True):
        pairs = zip(row_references, counts, strict=True)
        similarities = [similarity(response, grams, len(words)) for words, grams in pairs]
        row_scores.append(10 * sum(similarities) / len(similarities))
    scores = np.array(row_scores)
    return lambda weights: weights @ scores / weights.sum(-1)


def points_of_groups(rows: Sequence[tuple[str, float | None, float | None]]) -> Scorer:
    """Return the scorer of AIR-Bench's points: mean over groups of the mean over their parts (AIR-Bench's README).

    The points of a part are the mean of the two orders, each averaged over the rows that have points in it. The score
    is NaN if a part has no points in an order; cal_score.py stops there.

    Args:
        rows: (group/part, points in the first order or None, points in the second order or None).
    """
    parts = sorted({part for part, _, _ in rows})
    members = np.array([[part == name for name in parts] for part, _, _ in rows], dtype=float)  # (R, parts)
    orders = [np.array([row[order] for row in rows], dtype=float)[:, None] for order in (1, 2)]  # None becomes NaN
    groups = [np.array([part.startswith(f"{name}/") for part in parts]) for name in {p.split("/")[0] for p in parts}]

    def score(weights: np.ndarray) -> np.ndarray:
        by_order = [
            _divide(weights @ (np.nan_to_num(points) * members), weights @ (~np.isnan(points) * members))
            for points in orders
        ]
        by_part = (by_order[0] + by_order[1]) / 2  # (S, parts)
        return np.mean([by_part[:, group].mean(-1) for group in groups], axis=0)

    return score


def _ngrams(words: Sequence[str]) -> Counter[Ngram]:
    """Count the n-grams of 1 to 4 words."""
    ngrams = ([tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for n in (1, 2, 3, 4))
    return Counter(gram for of_length in ngrams for gram in of_length)
