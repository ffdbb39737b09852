"""Scores as the released scripts of Qwen-Audio (v1) and Qwen2-Audio (v2) print them, including their faults.

They serve only the comparison with published numbers. Each function takes all responses of one `source` and returns
what the script would print, or raises `ScriptError` where the script crashes. The scores of `auris.metrics.measures`
drop no row and count failures; where a script has a fault, the docstring here says what they do instead.

The functions are tested against stored outputs of the scripts (tests/metrics/test_official.py). The only known
difference is in Chinese numbers (`normalize`).
"""

from __future__ import annotations

import math
import re
import unicodedata
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
from auris.metrics.normalize import normalize_words, without_tags

Pairs = Sequence[tuple[str, str]]  # (reference, response)


class ScriptError(ValueError):
    """The exception with which the released script would end; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A response and its reference, as the scripts store them.

    Attributes:
        source: The row's `source`, by which the scripts group rows.
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
        version: v1 or v2.
        source: The source of the rows.
        n: The number of rows.
        metric: The name of the number; None if the script stops.
        value: The number; None if the script stops.
        stopped: The exception that the script stops with, if it does.
    """

    script: str
    version: str
    source: str
    n: int
    metric: str | None = None
    value: float | None = None
    stopped: str | None = None


def report(script: str, version: str, answers: Sequence[Answer]) -> list[ScriptScore]:
    """Return the numbers that a script prints for responses, by source.

    Raises:
        UserError: No script has this name.
    """
    if script not in SCRIPTS:
        raise UserError(f"benchmark.script={script}: expected {', '.join(SCRIPTS)}")
    by_source: dict[str, list[Answer]] = {}
    for answer in answers:
        by_source.setdefault(answer.source, []).append(answer)
    lines = []
    for source, rows in by_source.items():
        pairs = [(row.reference, row.reply) for row in rows]
        score = partial(ScriptScore, script=f"{script}.py", version=version, source=source, n=len(rows))
        try:
            values = SCRIPTS[script](pairs, source, rows[0].language, version)
        except ScriptError as error:
            lines.append(score(stopped=str(error)))
            continue
        lines += [score(metric=name, value=value) for name, value in values.items()]
    return lines


# --- evaluate_asr.py ----------------------------------------------------------------------------------------------


def word_error_rate(pairs: Pairs, language: str, version: str) -> float:
    """Return the edits of all pairs divided by the length of all references (`compute_wer`).

    Raises:
        ScriptError: There are no pairs, or the first reference is empty after normalisation. (The script prints its
            first item.)
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

    v1 compares lower-cased words with their punctuation, and characters in zh. v2 compares normalised words, and
    characters in zh and yue. All other languages are compared by words, even if they are written without spaces.
    """
    if version == "v2":
        text, character_languages = _without_punctuation(normalize_words(text, language)), ("zh", "yue")
    else:
        text, character_languages = without_tags(text), ("zh",)
    words = text.lower().split()
    return list("".join(words)) if language in character_languages else words


def _without_punctuation(text: str) -> str:
    """Remove the words that consist of punctuation only."""
    return " ".join(word for word in text.split() if not all(unicodedata.category(c)[0] == "P" for c in word))


def _count_edits(true: Sequence[str], predicted: Sequence[str]) -> int:
    if not true or not predicted:
        return max(len(true), len(predicted))
    # Each item is encoded as one character, because jiwer would split an item at its spaces.
    codes = {item: chr(0x10000 + number) for number, item in enumerate({*true, *predicted})}
    out = jiwer.process_characters("".join(codes[i] for i in true), "".join(codes[i] for i in predicted))
    return out.substitutions + out.deletions + out.insertions


# --- evaluate_st.py -----------------------------------------------------------------------------------------------


def bleu(pairs: Pairs, source: str) -> float:
    """Return corpus BLEU of raw text as sacrebleu 1.5.1 computes it.

    Version 1.5.1 also smooths the precisions if nothing matches at all; 2.x returns 0 then.

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

    Chinese references of `covost2_en_zh` and `.._zh-CN_test` are therefore tokenized like European languages.

    Raises:
        ScriptError: `source` has no second-last part.
    """
    parts = source.split("_")
    if len(parts) < 2:
        raise ScriptError("IndexError: list index out of range")
    return {"zh": "zh", "ja": "ja-mecab"}.get(parts[-2], "13a")


# --- evaluate_srwt.py ---------------------------------------------------------------------------------------------


def alignment_shift(pairs: Pairs) -> float:
    """Return the average shift of matched words in seconds, start plus end.

    The script drops malformed lines from references and responses separately before it pairs them by position, so a
    row may be compared with another row's reference. (`aas_ms` pairs each row with its own.)

    Raises:
        ScriptError: Different numbers of lines remain, or no word matches.
    """
    true, predicted = ([timed for text in side if (timed := timestamps.parse(text))] for side in _sides(pairs))
    if len(true) != len(predicted):
        raise ScriptError(f"AssertionError: {len(true)}, {len(predicted)}")
    total, matched = 0.0, 0
    for reference, reply in zip(true, predicted, strict=True):
        spans = timestamps.matched_spans(reference, reply)
        total += sum(timestamps.distance(a, b) for a, b in spans)
        matched += len(spans)
    if not matched:
        raise ScriptError("ZeroDivisionError: division by zero")
    return total / matched


def timed_words(pairs: Pairs) -> dict[str, float]:
    """Return `alignment_shift` and the error rate of the text without times.

    The error rate is per character in every language, because the script was written for one Chinese data set. The
    script prints both numbers or none.
    """
    return {"aas": alignment_shift(pairs), "wer": word_error_rate(pairs, "zh", "v1")}


# --- evaluate_{emotion,vocal_sound,scene,aqa}.py ------------------------------------------------------------------


def accuracy(pairs: Pairs, version: str) -> float:
    """Return the share of responses that equal the reference exactly; v2 ignores leading space.

    (v1 strips responses before it stores them; stored responses are compared here.)

    Raises:
        ScriptError: There are no pairs.
    """
    if not pairs:
        raise ScriptError("ValueError: Found empty input array")
    return sum((reply if version == "v1" else reply.lstrip()) == true for true, reply in pairs) / len(pairs)


def question_accuracy(pairs: Pairs, source: str) -> dict[str, float]:
    """Return the `accuracy` of answers to questions, and for ClothoAQA that of the `binary` questions.

    Binary questions are those with the reference yes or no in any case.

    Raises:
        ScriptError: There are no pairs, or no binary questions in ClothoAQA.
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
UNREAD = 128  # stands for a pitch or velocity that cannot be parsed; MIDI numbers end at 127


def notes(pairs: Pairs) -> dict[str, float]:
    """Return `instrument`, `velocity`, `pitch` and `chroma` accuracy, and the mean average precision of `qualities`.

    A pitch or velocity that cannot be parsed is a class of its own, so it is correct if the reference cannot be parsed
    either. `chroma` takes modulo 12 the position of a pitch among the pitches that occur, instead of its MIDI number
    (as `chroma_accuracy` does).

    Raises:
        ScriptError: No reference and no response names a known quality.
    """
    true, predicted = ([parse_note(text) for text in side] for side in _sides(pairs))

    def share_equal(field: str) -> float:
        return float(np.mean([getattr(a, field) == getattr(b, field) for a, b in zip(true, predicted, strict=True)]))

    columns = {pitch: column for column, pitch in enumerate(sorted({n.pitch for n in (*true, *predicted)}))}
    chroma = [columns[a.pitch] % 12 == columns[b.pitch] % 12 for a, b in zip(true, predicted, strict=True)]
    named = [[set(n.sonic.split(", ")) & QUALITIES for n in side] for side in (true, predicted)]
    labelled, classes = set().union(*named[0]), set().union(*named[0], *named[1])
    if not classes:
        raise ScriptError("ValueError: unknown format is not supported")
    precision = mean_average_precision([*zip(named[1], named[0], strict=True)])(np.ones((1, len(pairs))))[0]
    return {
        "instrument": share_equal("instrument"),
        "velocity": share_equal("velocity"),
        # scikit-learn averages over the classes that only responses name, too, each with a precision of 0.
        "qualities": float(precision) * len(labelled) / len(classes) if labelled else 0.0,
        "pitch": share_equal("pitch"),
        "chroma": float(np.mean(chroma)),
    }


class Note(NamedTuple):
    """The fields that the script parses from a response."""

    pitch: int
    velocity: int
    instrument: str
    sonic: str


def parse_note(text: str) -> Note:
    """Parse a response as the script does."""

    def number(kind: str) -> int:
        match = re.search(rf"<\|{kind}\|><\|midi_{kind}_(.*?)\|>", text)
        try:
            return int(match[1]) if match else UNREAD
        except ValueError:
            return UNREAD

    def words(kind: str) -> str:
        match = re.search(rf"<\|{kind}\|>(.*)", text)
        return match[1].split("<")[0] if match else ""

    return Note(number("pitch"), number("velocity"), words("instrument"), words("sonic"))


# --- the scripts -------------------------------------------------------------------------------------------------

Script = Callable[[Pairs, str, str, str], dict[str, float]]  # (pairs, source, language, version) -> printed numbers

SCRIPTS: dict[str, Script] = {
    "evaluate_asr": lambda pairs, source, language, version: {"wer": word_error_rate(pairs, language, version)},
    "evaluate_st": lambda pairs, source, language, version: {"bleu": bleu(pairs, source)},
    "evaluate_srwt": lambda pairs, source, language, version: timed_words(pairs),
    "evaluate_emotion": lambda pairs, source, language, version: {"accuracy": accuracy(pairs, version)},
    "evaluate_aqa": lambda pairs, source, language, version: question_accuracy(pairs, source),
    "evaluate_note_analysis": lambda pairs, source, language, version: notes(pairs),
}
# These scripts compute the same as evaluate_emotion, word for word.
SCRIPTS |= dict.fromkeys(("evaluate_vocal_sound", "evaluate_scene"), SCRIPTS["evaluate_emotion"])


def _sides(pairs: Pairs) -> tuple[list[str], list[str]]:
    return [reference for reference, _ in pairs], [reply for _, reply in pairs]
