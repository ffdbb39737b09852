"""The table of metrics: what a row contributes to each, how contributions become a score, and how it is shown.

`MEASURES` is the only list of metrics. Adding one means adding a row there, with a function in `row_stats` and, unless
one of the formulas fits, one in `formulas`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from auris.errors import UserError
from auris.metrics import captions, events, formulas, optional_packages, speakers, timestamps
from auris.metrics import normalize as norm
from auris.metrics import row_stats as of_row
from auris.metrics.formulas import Scorer
from auris.metrics.judges import air_bench
from auris.metrics.optional_packages import describe

# The panels of the bar figure, in their order.
ERROR, BLEU, CIDER, CORRECT = "Error rate (%)", "BLEU", "CIDEr-D", "Accuracy and F1 (%)"
SHIFT = "Average shift of word times (ms)"
PANELS = (ERROR, SHIFT, BLEU, CIDER, CORRECT)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One metric.

    Attributes:
        row_stats: What a row contributes, of (hypothesis, reference, language, classes).
        stats: The names of the entries that a row contributes.
        formula: Additive metrics: the score of the entries' sums.
        over: Other metrics: the scorer of all rows' contributions.
        signature: How the number is computed, of the language: normaliser, unit, tokenizer, policy, library version.
            None for scores of a judge, which has the signature.
        higher_is_better: The direction.
        label: The name in tables and figures.
        panel: The panel of the bar figure; None if the metric is shown in tables only.
        scale: A score is shown multiplied by this.
        digits: The decimals that are shown.
        unit: The unit that is shown.
        package: The optional package that computes it.
        normalises: Whether texts are normalised by language, which may need a package too.
    """

    row_stats: of_row.RowStats
    stats: tuple[str, ...]
    formula: Callable[[np.ndarray], np.ndarray] | None = None
    over: Callable[[Sequence[Any]], Scorer] | None = None
    signature: Callable[[str], str] | None = lambda language: "strip+lower|exact"
    higher_is_better: bool = True
    label: str
    panel: str | None = None
    scale: int = 100
    digits: int = 1
    unit: str = "%"
    package: str | None = None
    normalises: bool = False


def _fixed(text: str) -> Callable[[str], str]:
    return lambda language: text


def _normalised(*parts: str) -> Callable[[str], str]:
    return lambda language: "|".join((norm.describe(language), *parts))


_rate = partial(Measure, formula=formulas.rate)  # the first entry over the second
_share = partial(_rate, stats=("correct", "rows"), panel=CORRECT)
_error = partial(_rate, higher_is_better=False, panel=ERROR)
_lower = partial(_rate, higher_is_better=False)
_f_score = partial(
    Measure, stats=("true positives", "false positives", "false negatives"), formula=formulas.f1, panel=CORRECT
)
_speakers = partial(
    _error, package="pyannote.metrics", signature=lambda _: f"collar:0|overlap:scored|{describe('pyannote.metrics')}"
)


def _air_bench(metric: str) -> dict[str, Any]:
    return {"row_stats": lambda replies, task_name, *_: air_bench.count(metric, replies, task_name), "signature": None}


_points = partial(
    Measure,
    stats=("group/part", "points, reference first", "points, reference second"),
    over=formulas.points_of_groups,
    scale=1,
    digits=2,
    unit="1-10",
)
_EDITS = ("errors", "reference units")
_N_GRAMS = tuple(f"{kind} {n}" for kind in ("matches", "totals") for n in (1, 2, 3, 4)) + ("hypothesis", "reference")

MEASURES: dict[str, Measure] = {
    "wer": _error(
        label="WER",
        row_stats=of_row.word_errors,
        stats=_EDITS,
        signature=lambda language: f"{norm.describe(language)}|{describe('jiwer')}",
        normalises=True,
    ),
    "cer": _error(
        label="CER",
        row_stats=of_row.character_errors,
        stats=_EDITS,
        signature=lambda language: f"{norm.describe(language).rpartition('|')[0]}|char|{describe('jiwer')}",
        normalises=True,
    ),
    "cpwer": _error(
        label="cpWER",
        row_stats=of_row.of_lists(speakers.permuted_word_errors, by_language=True),
        stats=_EDITS,
        signature=lambda language: f"{norm.describe(language)}|best pairing of speakers|{describe('jiwer')}",
        package="scipy.optimize",
        normalises=True,
    ),
    "der": _speakers(
        label="DER",
        row_stats=of_row.of_lists(speakers.diarization_error),
        stats=("seconds in error", "seconds of speech"),
    ),
    "jer": _speakers(
        label="JER",
        row_stats=of_row.of_lists(speakers.jaccard_error),
        stats=("speakers in error", "speakers"),
    ),
    "eer": Measure(
        label="EER",
        row_stats=of_row.verification,
        stats=("score", "is a target"),
        over=formulas.equal_error_rate,
        signature=_fixed("log p(yes) - log p(no)|sums over tokens|nearest threshold"),
        higher_is_better=False,
        panel=ERROR,
    ),
    "aas_ms": _lower(
        label="AAS",
        row_stats=of_row.of_lists(timestamps.shift, by_language=True),
        stats=("shift in ms", "matched words"),
        signature=_normalised("mean of start and end", "matched words"),
        panel=SHIFT,
        scale=1,
        unit="ms",
        normalises=True,
    ),
    "aas_official": _lower(
        label="AAS as released",
        row_stats=of_row.official_shift,
        stats=("shift in s", "matched words"),
        signature=_fixed("evaluate_srwt.py|sum of start and end|first word of an answer left out"),
        scale=1,
        digits=3,
        unit="s",
    ),
    "word_coverage": _rate(
        label="words with times",
        row_stats=of_row.of_lists(timestamps.coverage, by_language=True),
        stats=("matched words", "reference words"),
        signature=_normalised("words with times that match"),
        normalises=True,
    ),
    "bleu": Measure(
        label="BLEU",
        row_stats=of_row.bleu,
        stats=_N_GRAMS,
        formula=formulas.bleu,
        signature=of_row.describe_bleu,
        panel=BLEU,
        scale=1,
        unit="0-100",
    ),
    "cider": Measure(
        label="CIDEr-D",
        row_stats=of_row.caption_words,
        stats=("answer", "references"),
        over=formulas.cider,
        signature=lambda language: f"cider-d|n:4|sigma:6|idf:references of all rows|{captions.describe(language)}",
        panel=CIDER,
        scale=1,
        digits=3,
        unit="0-10",
    ),
    "accuracy": _share(label="accuracy", row_stats=of_row.accuracy),
    "macro_f1": Measure(
        label="macro-F1",
        row_stats=of_row.canonical_pair,
        stats=("answer", "reference"),
        over=formulas.macro_f1,
        signature=_fixed("strip+lower|exact|mean over the references' classes"),
    ),
    "map": Measure(
        label="mAP",
        row_stats=of_row.canonical_classes,
        stats=("classes named", "true classes"),
        over=formulas.mean_average_precision,
        signature=_fixed("strip+lower|named or not|mean over the references' classes"),
        panel=CORRECT,
    ),
    "event_f1": _f_score(
        label="event F1",
        row_stats=of_row.of_lists(events.count),
        signature=_fixed(f"event-based|micro|collar:{events.COLLAR:g}s|end:max(collar,{events.SHARE:.0%})"),
    ),
    "slot_f1": _f_score(
        label="slot F1", row_stats=of_row.slots, signature=_fixed("strip+lower|name=value pairs, micro")
    ),
    "intent_accuracy": _share(label="intent accuracy", row_stats=of_row.intent),
    "pitch_accuracy": _share(
        label="pitch accuracy", row_stats=of_row.equal_numbers, signature=_fixed("midi number|exact")
    ),
    "chroma_accuracy": _share(
        label="chroma accuracy",
        row_stats=of_row.equal_chroma,
        signature=_fixed("midi number modulo 12|exact"),
        panel=None,
    ),
    "velocity_accuracy": _share(
        label="velocity accuracy", row_stats=of_row.equal_numbers, signature=_fixed("midi number|exact")
    ),
    "instrument_accuracy": _share(label="instrument accuracy", row_stats=of_row.accuracy),
    "contains": _share(label="holds the answer", row_stats=of_row.contains, signature=_normalised(), normalises=True),
    "choice": _share(
        label="right option",
        row_stats=of_row.choice("choice"),
        signature=_fixed("letter, or text of one option|no option: wrong"),
    ),
    "choice_official": _share(
        label="right option of the replies with a letter",
        row_stats=of_row.choice("choice_official"),
        stats=("correct", "replies with a letter"),
        signature=_fixed("score_foundation.py|first or last but one character|no letter: left out"),
        panel=None,
    ),
    "choice_unparsed": _lower(
        label="replies without an option",
        row_stats=of_row.choice("choice_unparsed"),
        stats=("without an option", "rows"),
        signature=_fixed("letter, or text of one option|no option: wrong"),
    ),
    "prefers": _share(
        label="prefers the chosen",
        row_stats=of_row.preference,
        stats=("preferred", "rows"),
        signature=_fixed("log p(chosen) > log p(rejected)|sums over tokens"),
    ),
    "judged": _rate(
        label="judge's points",
        row_stats=of_row.points,
        stats=("points", "rows"),
        signature=None,
        scale=1,
        unit="in points",
    ),
    "judged_official": _points(label="points by AIR-Bench's rules", **_air_bench("judged_official")),
    "judged_strict": _points(label="points, failures 0", **_air_bench("judged_strict")),
    "judge_wins": _rate(label="better than the reference", stats=("wins", "replies read"), **_air_bench("judge_wins")),
    "judge_flips": _lower(
        label="verdicts that the order turns",
        stats=("flipped", "rows read in both orders"),
        **_air_bench("judge_flips"),
    ),
    "judge_failed": _lower(
        label="judge's replies without points", stats=("failed", "replies"), **_air_bench("judge_failed")
    ),
    "accuracy_raw": _share(
        label="raw accuracy", row_stats=of_row.raw_accuracy, signature=_fixed("lstrip|exact"), panel=None
    ),
    "unparsed": _lower(label="unparsed", row_stats=of_row.unparsed, stats=("unparsed", "rows")),
}


def measure(metric: str) -> Measure:
    """Return the measure of a metric.

    Raises:
        UserError: No metric has this name; the message lists the names.
    """
    if metric not in MEASURES:
        raise UserError(f"unknown metric {metric!r}; choose from {', '.join(MEASURES)}")
    return MEASURES[metric]


def row_stats(
    metric: str, hypothesis: Any, reference: Any, language: str, classes: Sequence[str] | None = None
) -> list[Any]:
    """Return what a row contributes to a metric; its `stats` name the entries.

    Args:
        metric: A name in `MEASURES`.
        hypothesis: The parsed response; None if it could not be parsed.
        reference: The correct answer in the same form.
        language: The language of both.
        classes: The closed set of answers, or the options of a question, for the metrics that need them.
    """
    return measure(metric).row_stats(hypothesis, reference, language, classes or ())


def signature(metric: str, language: str) -> str:
    """Return how a metric is computed for a language; results are comparable if their signatures are equal."""
    describe_metric = measure(metric).signature
    if describe_metric is None:
        raise UserError(f"the signature of `{metric}` is its judge's: see auris.metrics.judges")
    return f"{metric}|{describe_metric(language)}"


def check(metric: str, language: str | None = None) -> None:
    """Check that the packages that a metric needs are installed; call it before responses are generated.

    Raises:
        UserError: One is missing; the message says how to install it.
    """
    if package := measure(metric).package:
        optional_packages.require(package, f"metric {metric!r}")
    if language is not None and measure(metric).normalises:
        norm.check(language)


def for_language(metric: str, language: str) -> str:
    """Return the metric's accurate name: WER of a language written without spaces is a character error rate."""
    return "cer" if metric == "wer" and norm.unit(language) == "char" else metric


def display(metric: str, value: float, sign: str = "") -> str:
    """Format a score without its unit: `8.9` per cent, `0.441` CIDEr-D; `sign="+"` for differences."""
    known = measure(metric)
    return f"{known.scale * value:{sign}.{known.digits}f}"


# --- scores ---------------------------------------------------------------------------------------------------------


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
    return lambda weights: formulas.nan_mean(np.stack([part(weights[:, mine]) for mine, part in parts], axis=-1))
