"""Formulas of scores: from what the test rows contribute to numbers.

Most metrics are additive: a row counts a few things, and the score is a formula of the sums. Five are computed over
all rows at once, because a row counts only in relation to the others: EER (one threshold for all), macro-F1 and mAP (a
mean over the classes that occur), CIDEr-D (words in many references weigh little), AIR-Bench's points (a mean of
means). For these, a function prepares the contributions once and returns a `Scorer`.

Shapes: R rows, S samples, K statistics, C classes, T thresholds. `weights` (S, R): how often each row counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

Scorer = Callable[[np.ndarray], np.ndarray]  # weights (S, R) -> scores (S,)

# --------------------------------------------------------------------------------------------------------------------
# Formulas of additive statistics: (..., K) -> (...)


def rate(sums: np.ndarray) -> np.ndarray:
    """First statistic over second; NaN where nothing was counted."""
    return _divide(sums[..., 0], sums[..., 1])


def f1(sums: np.ndarray) -> np.ndarray:
    hits, extra, missed = np.moveaxis(sums, -1, 0)
    return _divide(2 * hits, 2 * hits + extra + missed)


def bleu(sums: np.ndarray) -> np.ndarray:
    """Corpus BLEU with exponential smoothing: `sacrebleu.BLEU.compute_bleu`, for many sums at once."""
    matches, totals = sums[..., 0:4], sums[..., 4:8]
    hypothesis_len, reference_len = sums[..., 8], sums[..., 9]
    missing = (matches == 0) & (totals > 0)
    precisions = _divide(np.where(missing, 0.5 ** np.cumsum(missing, axis=-1), matches), totals)
    shortness = np.minimum(0.0, 1.0 - _divide(reference_len, hypothesis_len))  # log of the brevity penalty
    score = 100.0 * np.exp(np.log(np.nan_to_num(precisions, nan=1.0)).mean(-1) + np.nan_to_num(shortness))
    # No match of any order, or too few words for a 4-gram in the whole corpus: 0, as sacrebleu 2 has it.
    return np.where(matches.any(-1) & totals.all(-1), score, 0.0)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    a, b = np.broadcast_arrays(a, b)
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where all of it is."""
    return _divide(np.nansum(values, axis=-1), (~np.isnan(values)).sum(-1))


# --------------------------------------------------------------------------------------------------------------------
# Scores of all rows at once: their contributions -> a function of how often each row counts


def macro_f1(rows: Sequence[tuple[str, str]]) -> Scorer:
    """Mean F1 over the classes of the references; an answer that is no class is a miss of its reference's class.

    rows: (answer, reference). A class that a sample has no row of is left out of its mean.
    """
    classes = np.array(sorted({true for _, true in rows}))
    answered, true = (np.array(side)[:, None] == classes for side in zip(*rows, strict=True))  # (R, C)
    counts = [side.astype(float) for side in (answered & true, answered, true)]

    def score(weights: np.ndarray) -> np.ndarray:
        hits, answers, members = (weights @ side for side in counts)
        return nan_mean(np.where(members > 0, _divide(2 * hits, answers + members), np.nan))

    return score


def mean_average_precision(rows: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Scorer:
    """Mean over the classes of the references of the average precision of naming the class or not.

    rows: (classes named, true classes). An answer names a class or does not, so the precision-recall curve has two
    points: the rows that name it, then all rows.
    """
    classes = sorted({name for _, true in rows for name in true})
    answered, true = (np.array([[c in row[side] for c in classes] for row in rows], dtype=bool) for side in (0, 1))
    counts = [side.astype(float) for side in (answered & true, answered, true)]

    def score(weights: np.ndarray) -> np.ndarray:
        hits, named, members = (weights @ side for side in counts)
        recall = _divide(hits, members)  # NaN where a sample has no row of the class
        precision = np.nan_to_num(_divide(hits, named))
        return nan_mean(recall * precision + (1 - recall) * _divide(members, weights.sum(-1, keepdims=True)))

    return score


def equal_error_rate(rows: Sequence[tuple[float, float]]) -> Scorer:
    """Mean of false acceptance and false rejection at the threshold where they differ least (torchmetrics' `EER`).

    rows: (score, 1 if it should be accepted else 0).
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
    """CIDEr-D (Vedantam et al. 2015): n-grams up to 4, sigma 6, times 10, as in COCO's caption evaluation.

    rows: (words of the answer, words of each reference). Document frequencies are those of all the rows' references,
    in resampled scores too: they are part of the measure, not of the sample.
    """
    references = [[_ngrams(words) for words in of_row] for _, of_row in rows]
    frequency = Counter(gram for of_row in references for gram in set().union(*of_row))
    rarity = {gram: math.log(len(rows)) - math.log(count) for gram, count in frequency.items()}
    unseen = math.log(len(rows))

    def vector(grams: Counter) -> list[dict[tuple[str, ...], float]]:
        """Weight of each n-gram, for n = 1, 2, 3, 4."""
        vectors: list[dict[tuple[str, ...], float]] = [{}, {}, {}, {}]
        for gram, count in grams.items():
            vectors[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
        return vectors

    def similarity(said: Sequence[str], true: Counter, true_length: int) -> float:
        cosines = []
        for a, b in zip(vector(_ngrams(said)), vector(true), strict=True):
            norms = math.hypot(*a.values()) * math.hypot(*b.values())
            # The smaller of the two weights: to repeat a word gains nothing.
            cosines.append(sum(min(w, b.get(gram, 0)) * b.get(gram, 0) for gram, w in a.items()) / (norms or 1))
        # COCO's code takes the number of 2-grams for the length.
        difference = max(len(said) - 1, 0) - max(true_length - 1, 0)
        return math.exp(-(difference**2) / (2 * 6**2)) * sum(cosines) / 4

    scores = []
    for (said, of_row), counted in zip(rows, references, strict=True):
        found = [similarity(said, grams, len(words)) for words, grams in zip(of_row, counted, strict=True)]
        scores.append(10 * sum(found) / len(found))
    scores = np.array(scores)
    return lambda weights: weights @ scores / weights.sum(-1)


def points_of_groups(rows: Sequence[tuple[str, float | None, float | None]]) -> Scorer:
    """Mean over groups of the mean over their parts of a part's points: the mean of two orders, each over the rows that
    have points in it (AIR-Bench's README). NaN where a part has none in an order, as cal_score.py stops there.

    rows: (group/part, points in the first order or None, points in the second).
    """
    parts = sorted({part for part, _, _ in rows})
    members = np.array([[part == name for name in parts] for part, _, _ in rows], dtype=float)  # (R, parts)
    orders = [np.array([row[order] for row in rows], dtype=float)[:, None] for order in (1, 2)]  # None becomes NaN
    groups = [np.array([part.startswith(f"{name}/") for part in parts]) for name in {p.split("/")[0] for p in parts}]

    def score(weights: np.ndarray) -> np.ndarray:
        of_order = [
            _divide(weights @ (np.nan_to_num(points) * members), weights @ (~np.isnan(points) * members))
            for points in orders
        ]
        of_part = sum(of_order) / len(of_order)  # (S, parts)
        return np.mean([of_part[:, group].mean(-1) for group in groups], axis=0)

    return score


def _ngrams(words: Sequence[str]) -> Counter:
    """How often each run of 1 to 4 words occurs."""
    runs = ([tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for n in (1, 2, 3, 4))
    return Counter(gram for of_length in runs for gram in of_length)
