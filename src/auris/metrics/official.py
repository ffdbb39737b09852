"""Scores as the released scripts of Qwen-Audio (v1) and Qwen2-Audio (v2) print them, faults included.

These scores are only for comparison with published numbers. Each function takes all responses with the same `source`
and returns the number that the script would print, or raises `ScriptError` if the script would crash. In contrast, the
scores of `auris.metrics.measures` include all rows and count failures. The docstrings here mention the faults of the
scripts.

The functions are tested against stored outputs of the scripts (tests/metrics/test_official.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jiwer
import numpy as np
from sacrebleu.metrics import BLEU

from auris.errors import UserError
from auris.metrics import timestamps
from auris.metrics.formulas import mean_average_precision
from auris.metrics.normalize import normalize_words, remove_tags

Pairs = Sequence[tuple[str, str]]  # (reference, response)


class ScriptError(ValueError):
    """The released script would crash; the message states the exception that it would raise."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A response and its reference, with the fields that the scripts use.

    Attributes:
        source: The row's `source`. The scripts compute one score for each source.
        reference: The correct answer.
        reply: The response.
        language: The language of the response.
    """

    source: str
    reference: str
    reply: str
    language: str


@dataclass(frozen=True, kw_only=True)
class ScriptScore:
    """One number that a script prints.

    Attributes:
        script: The name of the script.
        version: The version of the script, v1 or v2.
        source: The source of the rows.
        n: The number of rows.
        metric: The name of the number; None if the script crashes.
        value: The number; None if the script crashes.
        stopped: The exception with which the script crashes; None if it does not crash.
    """

    script: str
    version: str
    source: str
    n: int
    metric: str | None = None
    value: float | None = None
    stopped: str | None = None


def script_scores(script: str, version: str, answers: Sequence[Answer]) -> list[ScriptScore]:
    """Return the numbers that a script prints for responses; each source has separate numbers.

    Args:
        script: A key of SCRIPTS.
        version: The version of the script, v1 or v2.
        answers: The responses.

    Raises:
        UserError: There is no script with this name.
    """
    if script not in SCRIPTS:
        raise UserError(f"benchmark.script={script}: expected one of {', '.join(SCRIPTS)}")
    by_source: dict[str, list[Answer]] = {}
    for answer in answers:
        by_source.setdefault(answer.source, []).append(answer)
    scores = []
    for source, members in by_source.items():
        pairs = [(answer.reference, answer.reply) for answer in members]
        make_score = partial(ScriptScore, script=f"{script}.py", version=version, source=source, n=len(members))
        try:
            values = SCRIPTS[script](pairs, source, members[0].language, version)
        except ScriptError as error:
            scores.append(make_score(stopped=str(error)))
            continue
        scores += [make_score(metric=metric, value=value) for metric, value in values.items()]
    return scores


# --- evaluate_asr.py ----------------------------------------------------------------------------------------------


def word_error_rate(pairs: Pairs, language: str, version: str) -> float:
    """Return the number of edits in all pairs divided by the length of all references (`compute_wer`).

    Raises:
        ScriptError: There are no pairs, or the first reference is empty after normalisation. (The script crashes there
            because it prints the first word or character of this reference.)
    """
    if not pairs:
        raise ScriptError("ZeroDivisionError: division by zero")
    errors, length = 0, 0
    for number, (reference, reply) in enumerate(pairs):
        true, predicted = (split_text(text, language, version) for text in (reference, reply))
        if number == 0 and not true:
            raise ScriptError("IndexError: list index out of range")
        errors += _count_edits(true, predicted)
        length += len(true)
    return errors / length


def split_text(text: str, language: str, version: str) -> list[str]:
    """Split a text into the words or characters that the script compares.

    v1 only lower-cases the text and keeps punctuation; v2 normalises the text. v1 compares characters in zh, and v2 in
    zh and yue. In all other languages the script compares words, even if they are written without spaces.
    """
    if version == "v2":
        text, character_languages = normalize_words(text, language), ("zh", "yue")
    else:
        text, character_languages = remove_tags(text), ("zh",)
    words = text.lower().split()
    return list("".join(words)) if language in character_languages else words


def _count_edits(true: Sequence[str], predicted: Sequence[str]) -> int:
    if not true or not predicted:
        return max(len(true), len(predicted))
    # Each item is encoded as one character, because jiwer would split items that contain spaces.
    codes = {item: chr(0x10000 + number) for number, item in enumerate({*true, *predicted})}
    out = jiwer.process_characters("".join(codes[i] for i in true), "".join(codes[i] for i in predicted))
    return out.substitutions + out.deletions + out.insertions


# --- evaluate_st.py -----------------------------------------------------------------------------------------------


def bleu(pairs: Pairs, source: str) -> float:
    """Return corpus BLEU of texts that are not normalised, as sacrebleu 1.5.1 computes it.

    If no n-gram matches at all, sacrebleu 1.5.1 smooths the precisions, whereas sacrebleu 2 returns 0.

    Raises:
        ScriptError: A reference is empty.
    """
    tokenizer = bleu_tokenizer(source)
    if not all(reference for reference, _ in pairs):
        raise ScriptError("EOFError: No valid references for a sentence!")
    result = BLEU(tokenize=tokenizer).corpus_score([reply for _, reply in pairs], [[ref for ref, _ in pairs]])
    if any(result.counts) or not all(result.totals):
        return result.score
    logs = [math.log(100 / (2**order * total)) for order, total in enumerate(result.totals, start=1)]
    return result.bp * math.exp(sum(logs) / len(logs))


def bleu_tokenizer(source: str) -> str:
    """Return the tokenizer that the script chooses by the second-last part of `source`: `covost2_en_zh_test` -> zh.

    If `source` is `covost2_en_zh` or ends in `_zh-CN_test`, the script therefore tokenizes Chinese references like
    references in European languages.

    Raises:
        ScriptError: `source` has no second-last part.
    """
    parts = source.split("_")
    if len(parts) < 2:
        raise ScriptError("IndexError: list index out of range")
    return {"zh": "zh", "ja": "ja-mecab"}.get(parts[-2], "13a")


# --- evaluate_srwt.py ---------------------------------------------------------------------------------------------


def alignment_shift(pairs: Pairs) -> float:
    """Return the average shift of matched words in seconds: the shift of the start plus the shift of the end.

    The script drops malformed references and malformed responses before it pairs the remaining ones by position, so a
    response may be compared with the reference of another row. (The metric `aas_ms` compares each response with the
    reference of the same row.)

    Raises:
        ScriptError: The numbers of remaining references and responses differ, or no word matches.
    """
    true, predicted = (
        [timed for text in texts if (timed := timestamps.parse_timed_text(text))] for texts in _unzip(pairs)
    )
    if len(true) != len(predicted):
        raise ScriptError(f"AssertionError: {len(true)}, {len(predicted)}")
    total, matched = 0.0, 0
    for reference, reply in zip(true, predicted, strict=True):
        spans = timestamps.matched_spans(reference, reply)
        total += sum(timestamps.span_distance(a, b) for a, b in spans)
        matched += len(spans)
    if not matched:
        raise ScriptError("ZeroDivisionError: division by zero")
    return total / matched


def timed_word_scores(pairs: Pairs) -> dict[str, float]:
    """Return `alignment_shift` and the error rate of the text without times.

    The error rate counts characters in every language, because the script was written for a Chinese data set. If one of
    the two numbers cannot be computed, the script prints neither.
    """
    return {"aas": alignment_shift(pairs), "wer": word_error_rate(pairs, "zh", "v1")}


# --- evaluate_{emotion,vocal_sound,scene,aqa}.py ------------------------------------------------------------------


def accuracy(pairs: Pairs, version: str) -> float:
    """Return the share of responses that equal the reference exactly; v2 ignores leading spaces of responses.

    (v1 strips responses before it stores them. This function expects stored responses, so it does not strip them.)

    Raises:
        ScriptError: There are no pairs.
    """
    if not pairs:
        raise ScriptError("ValueError: Found empty input array")
    return sum((reply if version == "v1" else reply.lstrip()) == true for true, reply in pairs) / len(pairs)


def question_accuracy(pairs: Pairs, source: str) -> dict[str, float]:
    """Return the `accuracy` over all questions, and for ClothoAQA also the accuracy over `binary` questions.

    A question is binary if its reference is yes or no, in upper or lower case.

    Raises:
        ScriptError: There are no pairs, or ClothoAQA has no binary questions.
    """
    accuracies = {"accuracy": accuracy(pairs, "v1")}
    if source.startswith("clotho"):
        accuracies["binary"] = accuracy([pair for pair in pairs if pair[0].lower() in ("yes", "no")], "v1")
    return accuracies


# --- evaluate_note_analysis.py ------------------------------------------------------------------------------------

QUALITIES = frozenset(
    {
        "dark",
        "distortion",
        "nonlinear_env",
        "bright",
        "fast_decay",
        "long_release",
        "tempo-synced",
        "reverb",
        "multiphonic",
        "percussive",
    }
)
UNREAD = 128  # value of a pitch or velocity that cannot be parsed; valid MIDI numbers are at most 127


def note_scores(pairs: Pairs) -> dict[str, float]:
    """Return `instrument`, `velocity`, `pitch` and `chroma` accuracy, and the mean average precision of `qualities`.

    A pitch or velocity that cannot be parsed is treated as an additional class, so it is correct if the reference
    cannot be parsed either. For `chroma`, the script numbers the pitches that occur in the data and compares these
    numbers modulo 12, whereas the metric `chroma_accuracy` compares MIDI numbers modulo 12.

    Raises:
        ScriptError: None of the references and responses names a known quality.
    """
    true, predicted = ([parse_note(text) for text in texts] for texts in _unzip(pairs))

    def share_equal(field: str) -> float:
        return float(np.mean([getattr(a, field) == getattr(b, field) for a, b in zip(true, predicted, strict=True)]))

    columns = {pitch: column for column, pitch in enumerate(sorted({n.pitch for n in (*true, *predicted)}))}
    chroma = [columns[a.pitch] % 12 == columns[b.pitch] % 12 for a, b in zip(true, predicted, strict=True)]
    true_qualities, predicted_qualities = (
        [set(note.sonic.split(", ")) & QUALITIES for note in notes_of_side] for notes_of_side in (true, predicted)
    )
    true_classes, classes = set().union(*true_qualities), set().union(*true_qualities, *predicted_qualities)
    if not classes:
        raise ScriptError("ValueError: unknown format is not supported")
    rows = [*zip(predicted_qualities, true_qualities, strict=True)]
    precision = mean_average_precision(rows)(np.ones((1, len(pairs))))[0]
    return {
        "instrument": share_equal("instrument"),
        "velocity": share_equal("velocity"),
        # scikit-learn's average also includes classes that occur only in responses, with a precision of 0.
        "qualities": float(precision) * len(true_classes) / len(classes) if true_classes else 0.0,
        "pitch": share_equal("pitch"),
        "chroma": float(np.mean(chroma)),
    }


class Note(NamedTuple):
    """The fields that the script parses from a response; `sonic` is the list of qualities as text."""

    pitch: int
    velocity: int
    instrument: str
    sonic: str


def parse_note(text: str) -> Note:
    """Parse a response or a reference as the script does."""

    def parse_number(kind: str) -> int:
        match = re.search(rf"<\|{kind}\|><\|midi_{kind}_(.*?)\|>", text)
        try:
            return int(match[1]) if match else UNREAD
        except ValueError:
            return UNREAD

    def parse_words(kind: str) -> str:
        match = re.search(rf"<\|{kind}\|>(.*)", text)
        return match[1].split("<")[0] if match else ""

    return Note(parse_number("pitch"), parse_number("velocity"), parse_words("instrument"), parse_words("sonic"))


# --- the scripts -------------------------------------------------------------------------------------------------

Script = Callable[[Pairs, str, str, str], dict[str, float]]  # (pairs, source, language, version) -> printed numbers

SCRIPTS: dict[str, Script] = {
    "evaluate_asr": lambda pairs, source, language, version: {"wer": word_error_rate(pairs, language, version)},
    "evaluate_st": lambda pairs, source, language, version: {"bleu": bleu(pairs, source)},
    "evaluate_srwt": lambda pairs, source, language, version: timed_word_scores(pairs),
    "evaluate_emotion": lambda pairs, source, language, version: {"accuracy": accuracy(pairs, version)},
    "evaluate_aqa": lambda pairs, source, language, version: question_accuracy(pairs, source),
    "evaluate_note_analysis": lambda pairs, source, language, version: note_scores(pairs),
}
# The code of these scripts is the same as that of evaluate_emotion.
SCRIPTS |= dict.fromkeys(("evaluate_vocal_sound", "evaluate_scene"), SCRIPTS["evaluate_emotion"])


def _unzip(pairs: Pairs) -> tuple[list[str], list[str]]:
    """Return all references and all responses."""
    return [reference for reference, _ in pairs], [reply for _, reply in pairs]
