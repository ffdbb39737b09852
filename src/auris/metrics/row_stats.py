"""Functions that compute what a test row contributes to a metric; `measures.yaml` assigns them to metrics.

Every function takes `hypothesis, reference, language, classes` and returns the entries that the metric's `stats` name.
Both sides are parsed by the task's answer format; they are text unless stated otherwise. A hypothesis of None is a
response that could not be parsed; it contains nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from auris.errors import UserError
from auris.metrics import captions, choices, edits, events, speakers, timestamps
from auris.metrics import normalize as norm
from auris.metrics.judges import air_bench
from auris.metrics.normalize import canonical

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

Classes = Sequence[str]
Entity = Mapping[str, str]  # {type, value}
RowStats = Callable[[Any, Any, str, Classes], list[Any]]

BLEU_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab"}  # evaluate_st.py of both releases; every other target language: 13a


def _counted(is_correct: bool) -> list[float]:
    return [float(is_correct), 1.0]


# --- text -----------------------------------------------------------------------------------------------------------


def word_errors(hypothesis: str, reference: str, language: str, _: Classes) -> list[float]:
    """Count words, or characters in languages written without spaces.

    An empty reference adds its hypothesis as insertions and nothing to the length, as in the official script.
    """
    return edits.count(hypothesis, reference, language, unit=norm.unit(language))


def character_errors(hypothesis: str, reference: str, language: str, _: Classes) -> list[float]:
    """Count characters, including the spaces between words (jiwer)."""
    return edits.count(hypothesis, reference, language, unit="char")


def bleu(hypothesis: str, reference: str, language: str, _: Classes) -> list[float]:
    """Count n-grams of raw text; `language` is the target language."""
    result = sentence_bleu(language).sentence_score(hypothesis, [reference])
    return [float(count) for count in (*result.counts, *result.totals, result.sys_len, result.ref_len)]


@cache
def sentence_bleu(language: str) -> BLEU:
    """Return sacrebleu's metric for a target language."""
    from sacrebleu.metrics import BLEU

    # Effective order changes only the sentence's own score, which is not used; without it sacrebleu warns.
    return BLEU(tokenize=BLEU_TOKENIZERS.get(norm.base_language(language), "13a"), effective_order=True)


def describe_bleu(language: str) -> str:
    """Return the part of BLEU's signature that depends on sacrebleu."""
    tokenizer = sentence_bleu(language).tokenizer_signature
    return f"nrefs:1|case:mixed|eff:no|tok:{tokenizer}|smooth:exp|version:{version('sacrebleu')}"


def caption_words(hypothesis: str, reference: str | Sequence[str], language: str, _: Classes) -> list[Any]:
    """Split a caption and its reference, or several references, into words."""
    references = [reference] if isinstance(reference, str) else reference
    return [captions.split(hypothesis, language), [captions.split(text, language) for text in references]]


def contains(hypothesis: str, reference: str, language: str, _: Classes) -> list[float]:
    """Look for the reference in the hypothesis (`normalize.contains`); an empty reference is not counted."""
    if not norm.normalize(reference, language):
        return [0.0, 0.0]
    return _counted(norm.contains(hypothesis, reference, language))


# --- classes --------------------------------------------------------------------------------------------------------


def accuracy(hypothesis: str, reference: str, *_: Any) -> list[float]:
    """Compare canonical forms (`normalize.canonical`)."""
    return _counted(canonical(hypothesis) == canonical(reference))


def raw_accuracy(hypothesis: str, reference: str, *_: Any) -> list[float]:
    """Compare as Qwen2-Audio's scripts do: only leading space is ignored."""
    return _counted(hypothesis.lstrip() == reference)


def canonical_pair(hypothesis: str, reference: str, *_: Any) -> list[str]:
    """Return both class names in canonical form."""
    return [canonical(hypothesis), canonical(reference)]


def canonical_classes(hypothesis: Classes | None, reference: Classes, *_: Any) -> list[list[str]]:
    """Return both sets of class names in canonical form, sorted."""
    return [sorted({canonical(name) for name in side or ()}) for side in (hypothesis, reference)]


def unparsed(hypothesis: str, _: str, __: str, classes: Classes) -> list[float]:
    """Count a response that is not one of the task's classes."""
    if not classes:
        raise UserError("metric 'unparsed' needs the task's closed set of classes, but got none")
    return _counted(canonical(hypothesis) not in {canonical(name) for name in classes})


def _option(metric: str, hypothesis: str, reference: str, _: str, classes: Classes) -> list[float]:
    """Determine which option of a question is meant; classes are the options."""
    if not classes:
        raise UserError(f"metric {metric!r} needs the options of the question, but got none")
    return choices.count(metric, hypothesis, reference, classes)


choice, choice_official, choice_unparsed = (
    partial(_option, metric) for metric in ("choice", "choice_official", "choice_unparsed")
)


# --- structures -----------------------------------------------------------------------------------------------------


def equal_numbers(hypothesis: int | None, reference: int, *_: Any) -> list[float]:
    """Compare two numbers."""
    return _counted(hypothesis == reference)


def equal_chroma(hypothesis: int | None, reference: int, *_: Any) -> list[float]:
    """Compare MIDI numbers modulo the octave."""
    return _counted(hypothesis is not None and hypothesis % 12 == reference % 12)


def slots(hypothesis: Mapping | Sequence[Entity] | None, reference: Mapping | Sequence[Entity], *_: Any) -> list[float]:
    """Count pairs of name and value in {intent, slots: {name: value}} or in a list of {type, value}."""
    predicted, true = _slots(hypothesis), _slots(reference)
    return [float(count.total()) for count in (predicted & true, predicted - true, true - predicted)]


def _slots(parsed: Mapping | Sequence[Entity] | None) -> Counter[tuple[str, str]]:
    """Count each pair of name and value: entities of one type may occur more than once."""
    if isinstance(parsed, Mapping):
        pairs = (parsed.get("slots") or {}).items()
    else:
        pairs = ((entity["type"], entity["value"]) for entity in parsed or [])
    return Counter((canonical(name), canonical(str(value))) for name, value in pairs)


def intent(hypothesis: Mapping | None, reference: Mapping, *_: Any) -> list[float]:
    """Compare the intents of two requests."""
    name = None if hypothesis is None else hypothesis.get("intent")
    return _counted(name is not None and canonical(name) == canonical(reference["intent"]))


def official_shift(hypothesis: str, reference: str, *_: Any) -> list[float]:
    """Compare word times as the released script does (`timestamps.official_shift`)."""
    return list(timestamps.official_shift(hypothesis, reference))


def _of_lists(count: Callable[..., Sequence[float]], *, by_language: bool = False) -> RowStats:
    """Adapt a function of two lists, and of the language if `by_language`. A hypothesis of None is an empty list."""

    def row_stats(hypothesis: Sequence | None, reference: Sequence, language: str, _: Classes) -> list[float]:
        return list(count(hypothesis or [], reference, *[language][:by_language]))

    return row_stats


events_found = _of_lists(events.count)
diarization_error = _of_lists(speakers.diarization_error)
jaccard_error = _of_lists(speakers.jaccard_error)
permuted_word_errors = _of_lists(speakers.permuted_word_errors, by_language=True)
shift = _of_lists(timestamps.shift, by_language=True)
word_coverage = _of_lists(timestamps.coverage, by_language=True)


# --- scores ---------------------------------------------------------------------------------------------------------


def preference(rejected: float, chosen: float, *_: Any) -> list[float]:
    """Compare the log-probabilities of the rejected and the chosen answer."""
    return _counted(chosen > rejected)


def verification(score: float, is_target: bool, *_: Any) -> list[float]:
    """Return the score, which is higher the more likely the row is accepted, and whether it should be accepted."""
    return [float(score), float(is_target)]


def points(points: float, *_: Any) -> list[float]:
    """Return a judge's points."""
    return [float(points), 1.0]


def _verdicts(metric: str, replies: Sequence[str], task_name: str, *_: Any) -> list[Any]:
    return air_bench.count(metric, replies, task_name)


judged_official, judged_strict, judge_wins, judge_flips, judge_failed = (
    partial(_verdicts, metric) for metric in air_bench.METRICS
)
