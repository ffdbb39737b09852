"""Functions that compute the statistics that a test row contributes to a metric; `measures.yaml` names them.

Every function takes `hypothesis, reference, language, classes` and returns a list, whose entries `Measure.stats` names.
The task's answer format has parsed the hypothesis and the reference. They are strings unless stated otherwise. If a
response could not be parsed, the hypothesis is None and is treated as empty.
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
from auris.metrics.normalize import canonical_form

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

Classes = Sequence[str]
Entity = Mapping[str, str]  # with the keys `type` and `value`
RowStats = Callable[[Any, Any, str, Classes], list[Any]]

# Tokenizers by target language, as in evaluate_st.py of both releases. All other languages use 13a.
BLEU_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab"}


def _correct_and_total(is_correct: bool) -> list[float]:
    return [float(is_correct), 1.0]


# --- text -----------------------------------------------------------------------------------------------------------


def word_errors(hypothesis: str, reference: str, language: str, _: Classes) -> list[float]:
    """Count edits of words, or of characters in languages that are written without spaces (`edits.count_edits`)."""
    return edits.count_edits(hypothesis, reference, language, unit=norm.counted_unit(language))


def character_errors(hypothesis: str, reference: str, language: str, _: Classes) -> list[float]:
    """Count edits of characters. As usual with jiwer, the spaces between words are also characters."""
    return edits.count_edits(hypothesis, reference, language, unit="char")


def _edits_of_kind(kind: str, hypothesis: str, reference: str, language: str, _: Classes) -> list[float]:
    """Count the edits of one kind, in the units of `word_errors`."""
    return edits.count_edits(hypothesis, reference, language, unit=norm.counted_unit(language), kinds=[kind])


insertions, deletions, substitutions = (
    partial(_edits_of_kind, kind) for kind in ("insertions", "deletions", "substitutions")
)


def empty(hypothesis: str, reference: str, language: str, _: Classes) -> list[float]:
    """Check whether nothing is left of the hypothesis after normalisation.

    A row whose reference is empty as well, such as silence, is not counted.
    """
    if not norm.normalize(reference, language):
        return [0.0, 0.0]
    return _correct_and_total(not norm.normalize(hypothesis, language))


def runaway(hypothesis: tuple[str, bool], reference: str, *_: Any) -> list[float]:
    """Check whether a response did not end by itself.

    It ended by length, without a stop token, or it is repetitive (`edits.is_repetitive`) although the reference is not.

    Args:
        hypothesis: The response, and whether it ended by length.
        reference: The correct text.
        *_: Not used.
    """
    text, ended_by_length = hypothesis
    return _correct_and_total(ended_by_length or (edits.is_repetitive(text) and not edits.is_repetitive(reference)))


def bleu(hypothesis: str, reference: str, language: str, _: Classes) -> list[float]:
    """Count the n-grams of texts that are not normalised; `language` is the target language."""
    result = sentence_bleu(language).sentence_score(hypothesis, [reference])
    return [float(count) for count in (*result.counts, *result.totals, result.sys_len, result.ref_len)]


@cache
def sentence_bleu(language: str) -> BLEU:
    """Return sacrebleu's BLEU metric with the tokenizer for a target language."""
    from sacrebleu.metrics import BLEU

    # sacrebleu warns without effective_order. The option changes only scores of sentences, which are not used here.
    return BLEU(tokenize=BLEU_TOKENIZERS.get(norm.base_language(language), "13a"), effective_order=True)


def describe_bleu(language: str) -> str:
    """Return the signature of BLEU: sacrebleu's settings and version."""
    tokenizer = sentence_bleu(language).tokenizer_signature
    return f"nrefs:1|case:mixed|eff:no|tok:{tokenizer}|smooth:exp|version:{version('sacrebleu')}"


def caption_words(hypothesis: str, reference: str | Sequence[str], language: str, _: Classes) -> list[Any]:
    """Return the words of the hypothesis, and the words of each reference if there are several."""
    references = [reference] if isinstance(reference, str) else reference
    return [
        captions.split_caption(hypothesis, language),
        [captions.split_caption(text, language) for text in references],
    ]


def contains(hypothesis: str, reference: str, language: str, _: Classes) -> list[float]:
    """Check whether the hypothesis contains the reference (`normalize.contains`).

    A row whose reference is empty after normalisation is not counted.
    """
    if not norm.normalize(reference, language):
        return [0.0, 0.0]
    return _correct_and_total(norm.contains(hypothesis, reference, language))


# --- classes --------------------------------------------------------------------------------------------------------


def accuracy(hypothesis: str, reference: str, *_: Any) -> list[float]:
    """Compare the canonical forms of hypothesis and reference (`normalize.canonical_form`)."""
    return _correct_and_total(canonical_form(hypothesis) == canonical_form(reference))


def raw_accuracy(hypothesis: str, reference: str, *_: Any) -> list[float]:
    """Compare exact strings except for leading spaces of the hypothesis, as Qwen2-Audio's scripts do."""
    return _correct_and_total(hypothesis.lstrip() == reference)


def canonical_pair(hypothesis: str, reference: str, *_: Any) -> list[str]:
    """Return the class names of hypothesis and reference in canonical form."""
    return [canonical_form(hypothesis), canonical_form(reference)]


def canonical_classes(hypothesis: Classes | None, reference: Classes, *_: Any) -> list[list[str]]:
    """Return the sets of class names of hypothesis and reference as sorted lists, in canonical form."""
    return [sorted({canonical_form(name) for name in names or ()}) for names in (hypothesis, reference)]


def unparsed(hypothesis: str, _: str, __: str, classes: Classes) -> list[float]:
    """Count a response as unparsed if it is not one of the task's classes."""
    if not classes:
        raise UserError("metric 'unparsed' needs the list of the task's classes, but the list is empty")
    return _correct_and_total(canonical_form(hypothesis) not in {canonical_form(name) for name in classes})


def _option(metric: str, hypothesis: str, reference: str, _: str, classes: Classes) -> list[float]:
    """Compare the option that a response names with the correct one; `classes` are the options of the question."""
    if not classes:
        raise UserError(f"metric {metric!r} needs the options of the question, but the row has none")
    return choices.count_choice(metric, hypothesis, reference, classes)


choice, choice_official, choice_unparsed = (
    partial(_option, metric) for metric in ("choice", "choice_official", "choice_unparsed")
)


# --- structures -----------------------------------------------------------------------------------------------------


def equal_numbers(hypothesis: int | None, reference: int, *_: Any) -> list[float]:
    """Compare two numbers."""
    return _correct_and_total(hypothesis == reference)


def equal_chroma(hypothesis: int | None, reference: int, *_: Any) -> list[float]:
    """Compare MIDI numbers modulo 12, so that octaves are ignored."""
    return _correct_and_total(hypothesis is not None and hypothesis % 12 == reference % 12)


def slots(hypothesis: Mapping | Sequence[Entity] | None, reference: Mapping | Sequence[Entity], *_: Any) -> list[float]:
    """Count the true positives, false positives and false negatives among pairs of name and value.

    The arguments are either {intent, slots: {name: value}} or a list of {type, value}.
    """
    predicted, true = _count_slots(hypothesis), _count_slots(reference)
    return [float(count.total()) for count in (predicted & true, predicted - true, true - predicted)]


def _count_slots(parsed: Mapping | Sequence[Entity] | None) -> Counter[tuple[str, str]]:
    """Count each pair of name and value, because the same entity may occur more than once."""
    if isinstance(parsed, Mapping):
        pairs = (parsed.get("slots") or {}).items()
    else:
        pairs = ((entity["type"], entity["value"]) for entity in parsed or [])
    return Counter((canonical_form(name), canonical_form(str(value))) for name, value in pairs)


def intent(hypothesis: Mapping | None, reference: Mapping, *_: Any) -> list[float]:
    """Compare the intents of hypothesis and reference."""
    name = None if hypothesis is None else hypothesis.get("intent")
    return _correct_and_total(name is not None and canonical_form(name) == canonical_form(reference["intent"]))


def official_shift(hypothesis: str, reference: str, *_: Any) -> list[float]:
    """Compare word times as the released script does (`timestamps.official_shift`)."""
    return list(timestamps.official_shift(hypothesis, reference))


def _adapt_list_function(count: Callable[..., Sequence[float]], *, takes_language: bool = False) -> RowStats:
    """Return a `RowStats` function that calls a function of two lists; a hypothesis of None becomes an empty list.

    Args:
        count: The function of hypothesis and reference.
        takes_language: Whether `count` has the language as its third parameter.
    """

    def row_stats(hypothesis: Sequence | None, reference: Sequence, language: str, _: Classes) -> list[float]:
        return list(count(hypothesis or [], reference, *[language][:takes_language]))

    return row_stats


events_found = _adapt_list_function(events.count_matches)
diarization_error = _adapt_list_function(speakers.diarization_error)
jaccard_error = _adapt_list_function(speakers.jaccard_error)
permuted_word_errors = _adapt_list_function(speakers.permuted_word_errors, takes_language=True)
shift = _adapt_list_function(timestamps.shift, takes_language=True)
word_coverage = _adapt_list_function(timestamps.coverage, takes_language=True)


# --- scores ---------------------------------------------------------------------------------------------------------


def preference(rejected: float, chosen: float, *_: Any) -> list[float]:
    """Count a preference pair as correct if the chosen answer has the higher log-probability."""
    return _correct_and_total(chosen > rejected)


def text_loss(logp: float, n_tokens: float, *_: Any) -> list[float]:
    """Return the negative log-probability of a text, in nats, and the number of its tokens."""
    return [-float(logp), float(n_tokens)]


def verification(score: float, is_target: bool, *_: Any) -> list[float]:
    """Return the score of a verification trial and whether it is a target trial; targets should have high scores."""
    return [float(score), float(is_target)]


def points(points: float, *_: Any) -> list[float]:
    """Return the points of a judge and a count of 1."""
    return [float(points), 1.0]


def _judge_stats(metric: str, replies: Sequence[str], task_name: str, *_: Any) -> list[Any]:
    """Return what the judge's replies (passed as hypothesis) contribute; the reference is AIR-Bench's task name."""
    return air_bench.row_statistics(metric, replies, task_name)


judged_official, judged_strict, judge_wins, judge_flips, judge_failed = (
    partial(_judge_stats, metric) for metric in air_bench.METRICS
)
