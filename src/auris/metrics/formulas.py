"""Formulas that compute scores from the statistics that test rows contribute.

Most metrics are additive: each row contributes a few counts, and the score is a formula of the sums of these counts.
Some metrics need all rows at once: EER (one threshold for all rows), macro-F1 and mAP (a mean over the classes that
occur), CIDEr-D (words that occur in many references have a low weight) and AIR-Bench's points (a mean of means). For
these metrics, a function prepares the statistics once and returns a `Scorer`, which computes the scores of many
bootstrap samples.

Shapes: R rows, S bootstrap samples, K statistics, C classes, T thresholds. An entry of `weights` (S, R) states how
often a row counts in a bootstrap sample.
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
    """Return the first statistic divided by the second one; NaN if the second one is 0."""
    return _divide(sums[..., 0], sums[..., 1])


def f1(sums: np.ndarray) -> np.ndarray:
    """Return F1 from true positives, false positives and false negatives; NaN if all three are 0."""
    hits, extra, missed = np.moveaxis(sums, -1, 0)
    return _divide(2 * hits, 2 * hits + extra + missed)


def bleu(sums: np.ndarray) -> np.ndarray:
    """Return corpus BLEU with exponential smoothing, like `sacrebleu.BLEU.compute_bleu` but for many sums at once."""
    matches, totals = sums[..., 0:4], sums[..., 4:8]
    hypothesis_len, reference_len = sums[..., 8], sums[..., 9]
    missing = (matches == 0) & (totals > 0)
    precisions = _divide(np.where(missing, 0.5 ** np.cumsum(missing, axis=-1), matches), totals)
    log_penalty = np.minimum(0.0, 1.0 - _divide(reference_len, hypothesis_len))  # log of the brevity penalty
    score = 100.0 * np.exp(np.log(np.nan_to_num(precisions, nan=1.0)).mean(-1) + np.nan_to_num(log_penalty))
    # As in sacrebleu 2, BLEU is 0 if no n-gram matches, or if the hypotheses contain no 4-gram.
    return np.where(matches.any(-1) & totals.all(-1), score, 0.0)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a / b, with NaN where b is 0."""
    a, b = np.broadcast_arrays(a, b)
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis, ignoring NaN; NaN if all values are NaN."""
    return _divide(np.nansum(values, axis=-1), (~np.isnan(values)).sum(-1))


# --------------------------------------------------------------------------------------------------------------------
# Metrics that need all rows at once: statistics of the rows -> Scorer


def macro_f1(rows: Sequence[tuple[str, str]]) -> Scorer:
    """Return a scorer for macro-F1, the mean F1 over the classes of the references.

    A response that is not one of these classes is a false negative for the class of the reference. If a class has no
    rows in a bootstrap sample, the mean for that sample does not include it.

    Args:
        rows: (response, reference) of each row.
    """
    classes = np.array(sorted({reference for _, reference in rows}))
    predicted, true = (np.array(names)[:, None] == classes for names in zip(*rows, strict=True))  # (R, C)
    indicators = [matrix.astype(float) for matrix in (predicted & true, predicted, true)]

    def score(weights: np.ndarray) -> np.ndarray:
        n_hits, n_predicted, n_true = (weights @ matrix for matrix in indicators)  # (S, C)
        return nan_mean(np.where(n_true > 0, _divide(2 * n_hits, n_predicted + n_true), np.nan))

    return score


def mean_average_precision(rows: Sequence[tuple[Collection[str], Collection[str]]]) -> Scorer:
    """Return a scorer for mAP, the mean of the average precision over the classes of the references.

    A response either names a class or does not name it, without a confidence. The precision-recall curve of a class
    therefore has two points: one for the rows whose response names the class, and one for all rows.

    Args:
        rows: (classes of the response, true classes) of each row.
    """
    classes = sorted({name for _, reference in rows for name in reference})
    predicted, true = (np.array([[c in row[side] for c in classes] for row in rows], dtype=bool) for side in (0, 1))
    indicators = [matrix.astype(float) for matrix in (predicted & true, predicted, true)]

    def score(weights: np.ndarray) -> np.ndarray:
        n_hits, n_predicted, n_true = (weights @ matrix for matrix in indicators)  # (S, C)
        recall = _divide(n_hits, n_true)  # NaN if a class has no rows in a bootstrap sample
        precision = np.nan_to_num(_divide(n_hits, n_predicted))
        return nan_mean(recall * precision + (1 - recall) * _divide(n_true, weights.sum(-1, keepdims=True)))

    return score


def equal_error_rate(rows: Sequence[tuple[float, float]]) -> Scorer:
    """Return a scorer for the equal error rate, computed like torchmetrics' `EER`.

    The equal error rate is the mean of the false acceptance rate and the false rejection rate at the threshold at which
    these two rates differ least.

    Args:
        rows: For each row, (score, 1 if the row should be accepted, otherwise 0).
    """
    scores, targets = np.array(rows, dtype=float).T
    order = np.argsort(-scores, kind="stable")
    targets = targets[order]
    thresholds = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # (T,) last row of each group of equal scores

    def score(weights: np.ndarray) -> np.ndarray:
        weights = weights[:, order]
        rates = []
        for class_weights in (weights * (1 - targets), weights * targets):
            accepted = np.cumsum(class_weights, axis=-1)[:, thresholds]
            zeros = np.zeros((len(class_weights), 1))  # a threshold above all scores accepts no row
            rates.append(_divide(np.concatenate([zeros, accepted], axis=-1), class_weights.sum(-1, keepdims=True)))
        false_acceptance, false_rejection = rates[0], 1 - rates[1]
        nearest = np.abs(false_acceptance - false_rejection).argmin(-1)[:, None]
        return np.take_along_axis((false_acceptance + false_rejection) / 2, nearest, axis=-1)[:, 0]

    return score


def cider(rows: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]]) -> Scorer:
    """Return a scorer for CIDEr-D (Vedantam et al. 2015), computed as in COCO's caption evaluation.

    It uses n-grams of up to 4 words and a sigma of 6, and multiplies scores by 10. Bootstrap samples use the document
    frequencies of the references of all rows, because the frequencies are part of the metric.

    Args:
        rows: For each row, (words of the response, words of each reference).
    """
    references = [[_count_ngrams(words) for words in row_references] for _, row_references in rows]
    document_frequency = Counter(gram for counts in references for gram in set().union(*counts))
    idf = {gram: math.log(len(rows)) - math.log(count) for gram, count in document_frequency.items()}
    idf_of_unseen = math.log(len(rows))

    def compute_tf_idf(grams: Counter[Ngram]) -> list[dict[Ngram, float]]:
        """Return the weight of each n-gram in separate dictionaries for n = 1, 2, 3, 4."""
        vectors: list[dict[Ngram, float]] = [{}, {}, {}, {}]
        for gram, count in grams.items():
            vectors[len(gram) - 1][gram] = count * idf.get(gram, idf_of_unseen)
        return vectors

    def similarity(response: Sequence[str], reference: Counter[Ngram], reference_length: int) -> float:
        cosines = []
        for a, b in zip(compute_tf_idf(_count_ngrams(response)), compute_tf_idf(reference), strict=True):
            norms = math.hypot(*a.values()) * math.hypot(*b.values())
            # The weight in the response is limited to the weight in the reference, so repeated words gain nothing.
            cosines.append(sum(min(w, b.get(gram, 0)) * b.get(gram, 0) for gram, w in a.items()) / (norms or 1))
        # COCO's code uses the number of 2-grams as the length of a caption.
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
    """Return a scorer for AIR-Bench's points (AIR-Bench's README).

    Answer and reference are presented to the judge in two orders. For each order, the points of a part are the mean
    over the rows of the part that have points. The points of a part are the mean of the two orders, the points of a
    group are the mean of its parts, and the score is the mean of the groups. The score is NaN if a part has no points
    in an order; cal_score.py crashes in this case.

    Args:
        rows: For each row, (group/part, points in the first order or None, points in the second order or None).
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


def _count_ngrams(words: Sequence[str]) -> Counter[Ngram]:
    """Count the n-grams of 1 to 4 words."""
    ngrams = ([tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for n in (1, 2, 3, 4))
    return Counter(gram for ngrams_of_length in ngrams for gram in ngrams_of_length)
