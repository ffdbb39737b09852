"""The table of metrics (`measures.yaml` next to this file) and the computation of scores from it.

The table is the only list of metrics. To add a metric, add an entry to the table, a function to `row_stats` and, unless
an existing formula fits, a function to `formulas`.

Every metric has a signature, a text such as `wer|whisper_en+basic|word|jiwer4.0.0` that states how its scores are
computed. Scores are comparable if their signatures are equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from auris.errors import UserError, shorten
from auris.files import read_yaml
from auris.metrics import captions, edits, events, formulas, optional_packages
from auris.metrics import normalize as norm
from auris.metrics import row_stats as row_functions
from auris.metrics.formulas import Scorer

Key = TypeVar("Key", bound=Hashable)

# The panels of the bar figure (`results.figures.plot_bars`), from top to bottom.
ACCURACY_PANEL = "Accuracy and F1 (%)"
PANELS = ("Error rate (%)", "Average shift of word times (ms)", "BLEU", "CIDEr-D", ACCURACY_PANEL)

# Signatures in the table contain names in braces. Each name is replaced by the text that its function here returns for
# a language.
PLACEHOLDERS: Mapping[str, Callable[[str], str]] = {
    "normalizer": norm.describe_normalizer,
    "normalizer_of_characters": lambda language: f"{norm.describe_normalizer(language).rpartition('|')[0]}|char",
    "bleu": row_functions.describe_bleu,
    "captions": captions.describe_tokenizer,
    "collars": lambda _: events.COLLARS,
    "compression": lambda _: str(edits.MAX_COMPRESSION_RATIO),
    "jiwer": lambda _: optional_packages.describe_version("jiwer"),
    "pyannote": lambda _: optional_packages.describe_version("pyannote.metrics"),
}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One entry of the table of metrics; `measures.yaml` describes the fields.

    `row_stats` is a function of (hypothesis, reference, language, classes). Additive metrics, whose row statistics are
    summed over the rows, have a `formula`. All other metrics have `over`, which computes the score from all rows at
    once.
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
    """Return the measure for an entry of the table, with names of functions replaced by the functions."""
    fields: dict[str, Any] = {
        **entry,
        "stats": tuple(entry["stats"]),
        "row_stats": getattr(row_functions, entry["row_stats"]),
    }
    fields |= {key: getattr(formulas, entry[key]) for key in ("formula", "over") if key in entry}
    return Measure(**fields)


_TABLE = read_yaml(Path(__file__).with_name("measures.yaml"))["metrics"]
MEASURES: dict[str, Measure] = {metric: _measure(entry) for metric, entry in _TABLE.items()}


def find_measure(metric: str) -> Measure:
    """Return the measure of a metric.

    Raises:
        UserError: No metric has this name; the message lists the valid names.
    """
    if metric not in MEASURES:
        raise UserError(f"unknown metric {shorten(metric)}; choose from {', '.join(MEASURES)}")
    return MEASURES[metric]


def table_position(metric: str) -> int:
    """Return the position of a metric in the table of metrics, in whose order metrics are shown; others come last."""
    return list(MEASURES).index(metric) if metric in MEASURES else len(MEASURES)


def row_stats(
    metric: str, hypothesis: Any, reference: Any, language: str, classes: Sequence[str] | None = None
) -> list[Any]:
    """Return the statistics that a row contributes to a metric; `find_measure(metric).stats` names them.

    Args:
        metric: A name in `MEASURES`.
        hypothesis: The parsed response; None if it could not be parsed.
        reference: The correct answer, parsed in the same way.
        language: The language of the hypothesis and the reference.
        classes: All valid answers of the task, or the options of a question, for the metrics that need them.
    """
    return find_measure(metric).row_stats(hypothesis, reference, language, classes or ())


def signature(metric: str, language: str) -> str:
    """Return how a metric is computed for a language; results are comparable if their signatures are equal."""
    template = find_measure(metric).signature
    if template is None:
        raise UserError(
            f"metric {metric!r} has no signature in the table: its judge states the signature (auris.metrics.judges)"
        )
    return f"{metric}|{re.sub(r'{(.+?)}', lambda name: PLACEHOLDERS[name[1]](language), template)}"


def check_packages(metric: str, language: str | None = None) -> None:
    """Check that the packages that a metric needs are installed. Call this before responses are generated.

    Raises:
        UserError: A package is missing; the message says how to install it.
    """
    if package := find_measure(metric).package:
        optional_packages.import_package(package, f"metric {metric!r}")
    if language is not None and "{normalizer" in (find_measure(metric).signature or ""):
        norm.check_packages(language)


def metric_in_language(metric: str, language: str) -> str:
    """Return the name of a metric in a language: WER is called CER in languages that are written without spaces."""
    return "cer" if metric == "wer" and norm.counted_unit(language) == "char" else metric


def format_value(metric: str, value: float, sign: str = "") -> str:
    """Format a score without its unit, for example 0.089 as `8.9` (%); `sign="+"` gives positive numbers a sign."""
    entry = find_measure(metric)
    return f"{entry.scale * value:{sign}.{entry.digits}f}"


ERROR_HEADINGS = ("WER, CER", "ins.", "del.", "sub.", "empty", "runaway")
ERROR_NOTE = (
    "ins., del., sub.: insertions, deletions and substitutions per word or character of the references; empty: "
    "responses without words; runaway: responses that ended by length, or that compress by more than "
    f"{edits.MAX_COMPRESSION_RATIO} (Whisper's threshold for repetition)."
)


def tabulate_errors(scores: Iterable[tuple[Key, str, float | None]]) -> dict[Key, list[str]]:
    """Return the error rates of speech tasks next to their details, as texts in the order of ERROR_HEADINGS.

    Args:
        scores: For each score a key (such as the task and the system), the metric and the value. Scores of other
            metrics and undefined scores are left out.
    """
    columns = ("rate", *edits.DETAILS)
    texts: dict[Key, dict[str, str]] = {}
    for key, metric, value in scores:
        column = "rate" if metric in edits.RATES else metric
        if column in columns and value is not None and not math.isnan(value):
            texts.setdefault(key, {})[column] = format_value(metric, value)
    with_details = {key: row for key, row in texts.items() if row.keys() & set(edits.DETAILS)}
    return {key: [row.get(column, "-") for column in columns] for key, row in with_details.items()}


# --- scores ---------------------------------------------------------------------------------------------------------


def score_from_sums(metric: str, sums: Sequence[float] | np.ndarray) -> float:
    """Return the score of an additive metric, given the sums (K,) of its row statistics.

    Rates are fractions from 0 to 1, BLEU is a number from 0 to 100. A rate is NaN if its denominator is 0.
    """
    formula = find_measure(metric).formula
    assert formula is not None, f"{metric} is computed over all rows at once: use `score`"
    return float(formula(np.asarray(sums, dtype=float)))


def score(metric: str, rows: Sequence[Any]) -> float:
    """Return the score of rows, given the `stats` of each row; NaN if it is undefined, such as a rate without rows."""
    return float(scorer(metric, [dict(enumerate(rows))])(np.ones((1, len(rows))))[0])


def scorer(metric: str, seeds: Sequence[Mapping[Any, Any]]) -> Scorer:
    """Return a function that computes a system's score from weights, which state how often each test row counts.

    The function takes weights (S, R) for S bootstrap samples of R rows and returns S scores. The statistics of additive
    metrics are summed over the training seeds. The scores of other metrics are averaged over the seeds, because the
    responses of one seed determine, for example, the threshold of the EER.

    Args:
        metric: A name in `MEASURES`.
        seeds: For each training seed, the `stats` of each row by row id. The weights are for the rows sorted by id.
    """
    entry = find_measure(metric)
    indices = {row_id: index for index, row_id in enumerate(sorted(set().union(*seeds)))}
    if formula := entry.formula:
        sums = np.zeros((len(indices), len(entry.stats)))
        for seed in filter(None, seeds):
            np.add.at(sums, [indices[row_id] for row_id in seed], list(seed.values()))
        return lambda weights: formula(weights @ sums)
    assert entry.over is not None, f"metric {metric!r} has neither a formula nor a scorer"
    seed_scorers = [([indices[row_id] for row_id in seed], entry.over(list(seed.values()))) for seed in seeds if seed]
    if not seed_scorers:
        return lambda weights: np.full(len(weights), np.nan)
    return lambda weights: formulas.nan_mean(
        np.stack([seed_scorer(weights[:, columns]) for columns, seed_scorer in seed_scorers], axis=-1)
    )
