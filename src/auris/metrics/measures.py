"""The table of metrics, `measures.yaml` next to this file, and the scores that follow from it.

The table is the only list of metrics. Adding one means adding an entry there, with a function in `row_stats` and,
unless one of the formulas fits, one in `formulas`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from auris.errors import UserError
from auris.files import read_yaml
from auris.metrics import captions, events, formulas, optional_packages
from auris.metrics import normalize as norm
from auris.metrics import row_stats as row_functions
from auris.metrics.formulas import Scorer

# The panels of the bar figure, in their order.
ACCURACY_PANEL = "Accuracy and F1 (%)"
PANELS = ("Error rate (%)", "Average shift of word times (ms)", "BLEU", "CIDEr-D", ACCURACY_PANEL)

# Replacements of the names in braces in a signature: functions of the language.
PLACEHOLDERS: Mapping[str, Callable[[str], str]] = {
    "normalizer": norm.describe,
    "normalizer_of_characters": lambda language: f"{norm.describe(language).rpartition('|')[0]}|char",
    "bleu": row_functions.describe_bleu,
    "captions": captions.describe,
    "collars": lambda _: events.COLLARS,
    "jiwer": lambda _: optional_packages.describe("jiwer"),
    "pyannote": lambda _: optional_packages.describe("pyannote.metrics"),
}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One entry of the table of metrics; `measures.yaml` describes the fields.

    `row_stats` is a function of (hypothesis, reference, language, classes). Additive metrics have a `formula`, the
    others are computed `over` all rows.
    """

    label: str
    row_stats: row_functions.RowStats
    stats: tuple[str, ...]
    formula: Callable[[np.ndarray], np.ndarray] | None = None
    over: Callable[[Sequence[Any]], Scorer] | None = None
    signature: str | None = "strip+lower|exact"
    higher_is_better: bool = True
    panel: str | None = None
    scale: int = 100
    digits: int = 1
    unit: str = "%"
    package: str | None = None


def _measure(entry: Mapping[str, Any]) -> Measure:
    """Return the measure of an entry of the table, with the functions that it names."""
    fields: dict[str, Any] = {
        **entry,
        "stats": tuple(entry["stats"]),
        "row_stats": getattr(row_functions, entry["row_stats"]),
    }
    fields |= {key: getattr(formulas, entry[key]) for key in ("formula", "over") if key in entry}
    return Measure(**fields)


_TABLE = read_yaml(Path(__file__).with_name("measures.yaml"))["metrics"]
MEASURES: dict[str, Measure] = {metric: _measure(entry) for metric, entry in _TABLE.items()}


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
    template = measure(metric).signature
    if template is None:
        raise UserError(
            f"metric {metric!r} has no signature of its own: it is that of its judge (auris.metrics.judges)"
        )
    return f"{metric}|{re.sub(r'{(.+?)}', lambda name: PLACEHOLDERS[name[1]](language), template)}"


def check(metric: str, language: str | None = None) -> None:
    """Check that the packages that a metric needs are installed; call it before responses are generated.

    Raises:
        UserError: One is missing; the message says how to install it.
    """
    if package := measure(metric).package:
        optional_packages.require(package, f"metric {metric!r}")
    if language is not None and "{normalizer" in (measure(metric).signature or ""):
        norm.check(language)


def for_language(metric: str, language: str) -> str:
    """Return the metric's accurate name: WER of a language written without spaces is a character error rate."""
    return "cer" if metric == "wer" and norm.unit(language) == "char" else metric


def display(metric: str, value: float, sign: str = "") -> str:
    """Format a score without its unit: `8.9` per cent, `0.441` CIDEr-D; `sign="+"` for differences."""
    entry = measure(metric)
    return f"{entry.scale * value:{sign}.{entry.digits}f}"


# --- scores ---------------------------------------------------------------------------------------------------------


def value(metric: str, sums: Sequence[float] | np.ndarray) -> float:
    """Return the score of the summed statistics (K,) of an additive metric.

    Rates are fractions from 0 to 1, BLEU is from 0 to 100. NaN if nothing could be counted.
    """
    formula = measure(metric).formula
    assert formula is not None, f"{metric} is computed over all rows at once: use `score`"
    return float(formula(np.asarray(sums, dtype=float)))


def score(metric: str, rows: Sequence[Any]) -> float:
    """Return the score of rows, given the `stats` of each; NaN if there are no rows or nothing could be counted."""
    return float(scorer(metric, [dict(enumerate(rows))])(np.ones((1, len(rows))))[0])


def scorer(metric: str, seeds: Sequence[Mapping[Any, Any]]) -> Scorer:
    """Return the score of a system as a function of how often each test row counts: weights (S, R) -> (S,).

    Additive statistics are summed over the seeds. Other metrics are averaged over the seeds, because a threshold or a
    class belongs to one seed.

    Args:
        metric: A name in `MEASURES`.
        seeds: The `stats` by row id, for each training seed. The R rows are the sorted ids of all seeds.
    """
    entry = measure(metric)
    indices = {name: index for index, name in enumerate(sorted(set().union(*seeds)))}
    if formula := entry.formula:
        sums = np.zeros((len(indices), len(entry.stats)))
        for seed in filter(None, seeds):
            np.add.at(sums, [indices[name] for name in seed], list(seed.values()))
        return lambda weights: formula(weights @ sums)
    assert entry.over is not None, f"metric {metric!r} has neither a formula nor a scorer"
    scorers = [([indices[name] for name in seed], entry.over(list(seed.values()))) for seed in seeds if seed]
    if not scorers:
        return lambda weights: np.full(len(weights), np.nan)
    return lambda weights: formulas.nan_mean(np.stack([score(weights[:, own]) for own, score in scorers], axis=-1))
