"""Measures: how what the test rows contribute becomes a score, its interval, and how the score is shown.

`auris.scoring` makes a row's contribution, the `stats` of a line of predictions; here, without any model, data or
library of metrics, contributions become numbers. So a score, a resampled score and the difference of two systems are
one arithmetic. Imports nothing of ours.

Most measures are additive: a row counts a few things, and the score is a formula of the sums. Five are of all the rows
at once, because a row means something only beside the others: EER (one threshold for all), macro-F1 and mAP (a mean
over the classes that occur), CIDEr-D (words that many references share weigh little), AIR-Bench's points (a mean of
means).

Shapes: R rows, S samples, K statistics, C classes, T thresholds. `weights` (S, R): how often each row counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from auris.errors import UserError

Scorer = Callable[[np.ndarray], np.ndarray]  # weights (S, R) -> scores (S,)

# --------------------------------------------------------------------------------------------------------------------
# Formulas of additive statistics: (..., K) -> (...)


def _rate(sums: np.ndarray) -> np.ndarray:
    """First statistic over second; NaN where nothing was counted."""
    return _divide(sums[..., 0], sums[..., 1])


def _f1(sums: np.ndarray) -> np.ndarray:
    hits, extra, missed = np.moveaxis(sums, -1, 0)
    return _divide(2 * hits, 2 * hits + extra + missed)


def _bleu(sums: np.ndarray) -> np.ndarray:
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


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where all of it is."""
    return _divide(np.nansum(values, axis=-1), (~np.isnan(values)).sum(-1))


# --------------------------------------------------------------------------------------------------------------------
# Scores of all rows at once: their contributions -> a function of how often each row counts


def _macro_f1(rows: Sequence[tuple[str, str]]) -> Scorer:
    """Mean F1 over the classes of the references; an answer that is no class is a miss of its reference's class.

    rows: (answer, reference). A class that a sample has no row of is left out of its mean.
    """
    classes = np.array(sorted({true for _, true in rows}))
    answered, true = (np.array(side)[:, None] == classes for side in zip(*rows, strict=True))  # (R, C)
    counts = [side.astype(float) for side in (answered & true, answered, true)]

    def score(weights: np.ndarray) -> np.ndarray:
        hits, answers, members = (weights @ side for side in counts)
        return _mean(np.where(members > 0, _divide(2 * hits, answers + members), np.nan))

    return score


def _mean_average_precision(rows: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Scorer:
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
        return _mean(recall * precision + (1 - recall) * _divide(members, weights.sum(-1, keepdims=True)))

    return score


def _equal_error_rate(rows: Sequence[tuple[float, float]]) -> Scorer:
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


def _cider(rows: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]]) -> Scorer:
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


def _points_of_groups(rows: Sequence[tuple[str, float | None, float | None]]) -> Scorer:
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


# --------------------------------------------------------------------------------------------------------------------
# The measures

# The panels of the bar figure, in their order.
ERROR, BLEU, CIDER, CORRECT = "Error rate (%)", "BLEU", "CIDEr-D", "Accuracy and F1 (%)"
SHIFT = "Average shift of word times (ms)"
PANELS = (ERROR, SHIFT, BLEU, CIDER, CORRECT)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a row contributes, how the contributions become a value, and how the value is shown.

    `stats` names a row's contribution, in order. `formula` makes the value of their sums, `over` of all the rows'
    contributions: one of the two. Shown is value x `scale`, to `digits` decimals, in `unit`.
    """

    stats: tuple[str, ...]
    label: str
    higher_is_better: bool
    panel: str | None = None  # of the bar figure; None: in the table only
    formula: Callable[[np.ndarray], np.ndarray] | None = None
    over: Callable[[Sequence[Any]], Scorer] | None = None
    scale: int = 100
    digits: int = 1
    unit: str = "%"


def _error(label: str, *stats: str) -> Measure:
    return Measure(stats=stats, formula=_rate, higher_is_better=False, label=label, panel=ERROR)


def _share(label: str, counted: str = "correct", of: str = "rows", panel: str | None = CORRECT) -> Measure:
    return Measure(stats=(counted, of), formula=_rate, higher_is_better=True, label=label, panel=panel)


def _lower(label: str, *stats: str) -> Measure:
    return Measure(stats=stats, formula=_rate, higher_is_better=False, label=label)


def _judged(label: str) -> Measure:
    stats = ("group/part", "points, reference first", "points, reference second")
    return Measure(
        stats=stats, over=_points_of_groups, higher_is_better=True, label=label, scale=1, digits=2, unit="1-10"
    )


def _f_score(label: str) -> Measure:
    stats = ("true positives", "false positives", "false negatives")
    return Measure(stats=stats, formula=_f1, higher_is_better=True, label=label, panel=CORRECT)


_BLEU_STATS = tuple(f"{kind} {n}" for kind in ("matches", "totals") for n in (1, 2, 3, 4)) + ("hypothesis", "reference")
MEASURES: dict[str, Measure] = {
    "wer": _error("WER", "errors", "reference units"),
    "cer": _error("CER", "errors", "reference units"),
    "cpwer": _error("cpWER", "errors", "reference units"),
    "der": _error("DER", "seconds in error", "seconds of speech"),
    "jer": _error("JER", "speakers in error", "speakers"),
    "eer": Measure(
        stats=("score", "is a target"),
        over=_equal_error_rate,
        higher_is_better=False,
        label="EER",
        panel=ERROR,
    ),
    "aas_ms": Measure(
        stats=("shift in ms", "matched words"),
        formula=_rate,
        higher_is_better=False,
        label="AAS",
        panel=SHIFT,
        scale=1,
        unit="ms",
    ),
    "aas_official": Measure(
        stats=("shift in s", "matched words"),
        formula=_rate,
        higher_is_better=False,
        label="AAS as released",
        scale=1,
        digits=3,
        unit="s",
    ),
    "word_coverage": _share("words with times", "matched words", "reference words", panel=None),
    "bleu": Measure(
        stats=_BLEU_STATS, formula=_bleu, higher_is_better=True, label="BLEU", panel=BLEU, scale=1, unit="0-100"
    ),
    "cider": Measure(
        stats=("answer", "references"),
        over=_cider,
        higher_is_better=True,
        label="CIDEr-D",
        panel=CIDER,
        scale=1,
        digits=3,
        unit="0-10",
    ),
    "accuracy": _share("accuracy"),
    "macro_f1": Measure(stats=("answer", "reference"), over=_macro_f1, higher_is_better=True, label="macro-F1"),
    "map": Measure(
        stats=("classes named", "true classes"),
        over=_mean_average_precision,
        higher_is_better=True,
        label="mAP",
        panel=CORRECT,
    ),
    "event_f1": _f_score("event F1"),
    "slot_f1": _f_score("slot F1"),
    "intent_accuracy": _share("intent accuracy"),
    "pitch_accuracy": _share("pitch accuracy"),
    "chroma_accuracy": _share("chroma accuracy", panel=None),
    "velocity_accuracy": _share("velocity accuracy"),
    "instrument_accuracy": _share("instrument accuracy"),
    "contains": _share("holds the answer"),
    "choice": _share("right option"),
    "choice_official": _share("right option of the replies with a letter", of="replies with a letter", panel=None),
    "choice_unparsed": _lower("replies without an option", "without an option", "rows"),
    "prefers": _share("prefers the chosen", "preferred"),
    "judged": Measure(
        stats=("points", "rows"),
        formula=_rate,
        higher_is_better=True,
        label="judge's points",
        scale=1,
        unit="in points",
    ),
    "judged_official": _judged("points by AIR-Bench's rules"),
    "judged_strict": _judged("points, failures 0"),
    "judge_wins": _share("better than the reference", "wins", of="replies read", panel=None),
    "judge_flips": _lower("verdicts that the order turns", "flipped", "rows read in both orders"),
    "judge_failed": _lower("judge's replies without points", "failed", "replies"),
    "accuracy_raw": _share("raw accuracy", panel=None),
    "unparsed": _lower("unparsed", "unparsed", "rows"),
}


def measure(metric: str) -> Measure:
    """The measure of that name; ValueError naming the known ones."""
    if metric not in MEASURES:
        raise UserError(f"unknown metric {metric!r}; choose from {', '.join(MEASURES)}")
    return MEASURES[metric]


def display(metric: str, value: float, sign: str = "") -> str:
    """A value as a person reads it, without its unit: `8.9` per cent, `0.441` CIDEr-D; `sign="+"` for differences."""
    known = measure(metric)
    return f"{known.scale * value:{sign}.{known.digits}f}"


# --------------------------------------------------------------------------------------------------------------------
# Scores and intervals


def value(metric: str, sums: Sequence[float] | np.ndarray) -> float:
    """The score of summed statistics (K,) of an additive measure: a fraction 0..1, 0..100 for BLEU; NaN if nothing
    could be counted."""
    formula = measure(metric).formula
    assert formula is not None, f"{metric} is of all rows at once: use score"
    return float(formula(np.asarray(sums, dtype=float)))


def score(metric: str, rows: Sequence[Any]) -> float:
    """The score of rows, given what each contributes (its `stats`); NaN if there are none or nothing counts."""
    return float(scorer(metric, [dict(enumerate(rows))])(np.ones((1, len(rows))))[0])


def scorer(metric: str, seeds: Sequence[Mapping[Any, Any]]) -> Scorer:
    """The score of a system as a function of how often each test row counts: weights (S, R) -> (S,).

    seeds: of each training seed, row id -> what the row contributes. The R rows are those ids, sorted. Seeds are pooled
    where statistics add up, and else the mean of their scores is taken (a threshold or a class belongs to one seed).
    """
    known = measure(metric)
    numbers = {name: number for number, name in enumerate(sorted(set().union(*seeds)))}
    if known.formula:
        sums = np.zeros((len(numbers), len(known.stats)))
        for seed in filter(None, seeds):
            np.add.at(sums, [numbers[name] for name in seed], list(seed.values()))
        return lambda weights: known.formula(weights @ sums)
    parts = [([numbers[name] for name in seed], known.over(list(seed.values()))) for seed in seeds if seed]
    if not parts:
        return lambda weights: np.full(len(weights), np.nan)
    return lambda weights: _mean(np.stack([part(weights[:, mine]) for mine, part in parts], axis=-1))


def bootstrap(
    rows: Sequence[Any], metric: str, n_samples: int = 1000, seed: int = 0, units: np.ndarray | None = None
) -> tuple[float, float]:
    """The `interval` of the score of rows, given what each contributes."""
    return interval(scorer(metric, [dict(enumerate(rows))]), len(rows), n_samples, seed, units)


def difference(a: Scorer, b: Scorer) -> Scorer:
    """The score of b minus that of a on the same rows."""
    return lambda weights: b(weights) - a(weights)


def interval(
    of: Scorer, n_rows: int, n_samples: int = 1000, seed: int = 0, units: np.ndarray | None = None
) -> tuple[float, float]:
    """95 % percentile interval of a score, or of a difference (Koehn 2004: both sides on the same rows), of `samples`;
    NaN if it is never defined."""
    return percentiles(samples(of, n_rows, n_samples, seed, units))


def percentiles(found: np.ndarray) -> tuple[float, float]:
    """The interval that 95 % of samples are in."""
    defined = found[~np.isnan(found)]  # a resample without any reference unit has no score
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def samples(
    of: Scorer, n_rows: int, n_samples: int = 1000, seed: int = 0, units: np.ndarray | None = None
) -> np.ndarray:
    """A score (S,) when its `n_rows` rows are drawn anew with replacement, or with `units` (R,), the number of each
    row's unit, whole units of rows that depend on each other (`auris.metrics.statistics`)."""
    units = np.arange(n_rows) if units is None else units
    return np.concatenate([of(weights[:, units]) for weights in _resamplings(int(units.max()) + 1, n_samples, seed)])


def _resamplings(n_units: int, n_samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each unit is drawn, 50 samples at a time: memory stays small for many, formulas run on many sums."""
    rng = np.random.default_rng(seed)
    for start in range(0, n_samples, 50):
        draws = (rng.integers(n_units, size=n_units) for _ in range(min(50, n_samples - start)))
        yield np.stack([np.bincount(drawn, minlength=n_units) for drawn in draws]).astype(float)
