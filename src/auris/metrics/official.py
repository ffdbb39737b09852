"""Scores as the released scripts of Qwen-Audio (v1) and Qwen2-Audio (v2) print them, including their faults.

For comparison with published numbers only: each function takes all replies of one `source` and returns what the script
would, or raises `Stopped` where the script dies. The scores that nothing is dropped from, and that failures count in,
are those of `auris.metrics.measures`; next to a fault stands what they do instead.

Tried against stored outputs of the scripts (tests/metrics/test_official.py). Known to differ: numbers in Chinese
(`normalize`).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jiwer
import numpy as np
from sacrebleu.metrics import BLEU

from auris.errors import UserError
from auris.metrics import timestamps
from auris.metrics.formulas import mean_average_precision
from auris.metrics.normalize import without_tags, written

Pairs = Sequence[tuple[str, str]]  # (reference, reply)


class Stopped(ValueError):
    """The released script ends with an exception here: the message names it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A reply to a row, both as the scripts store them; `source` is the row's, in `language` it is answered."""

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
    """Return what a script prints of answers, for each source and number.

    Raises:
        UserError: No script has this name.
    """
    if script not in SCRIPTS:
        raise UserError(f"benchmark.script={script}: expected {', '.join(SCRIPTS)}")
    of_source: dict[str, list[Answer]] = {}
    for answer in answers:
        of_source.setdefault(answer.source, []).append(answer)
    lines = []
    for source, rows in of_source.items():
        pairs = [(row.reference, row.reply) for row in rows]
        score = partial(ScriptScore, script=f"{script}.py", version=version, source=source, n=len(rows))
        try:
            found = SCRIPTS[script](pairs, source, rows[0].language, version)
        except Stopped as error:
            lines.append(score(stopped=str(error)))
            continue
        lines += [score(metric=name, value=value) for name, value in found.items()]
    return lines


# --- evaluate_asr.py ----------------------------------------------------------------------------------------------


def word_error_rate(pairs: Pairs, language: str, version: str) -> float:
    """`compute_wer`: edits of all pairs over the length of all references.

    Raises Stopped for no pairs, and for a first reference that nothing is left of, of which it prints the first item.
    """
    if not pairs:
        raise Stopped("ZeroDivisionError: division by zero")
    errors, length = 0, 0
    for number, (reference, reply) in enumerate(pairs):
        true, said = (items(text, language, version) for text in (reference, reply))
        if number == 0 and not true:
            raise Stopped("IndexError: list index out of range")
        errors += _edits(true, said)
        length += len(true)
    return errors / length


def items(text: str, language: str, version: str) -> list[str]:
    """What is compared: v1 lower-cased words with their punctuation, and characters of zh; v2 normalised words, and
    characters of zh and yue. Any other language is words, also where it is written without spaces."""
    if version == "v2":
        said, by_character = _without_punctuation(written(text, language)), ("zh", "yue")
    else:
        said, by_character = without_tags(text), ("zh",)
    words = said.lower().split()
    return list("".join(words)) if language in by_character else words


def _without_punctuation(text: str) -> str:
    """Without the words that are nothing but punctuation."""
    return " ".join(word for word in text.split() if not all(unicodedata.category(c)[0] == "P" for c in word))


def _edits(true: Sequence[str], said: Sequence[str]) -> int:
    if not true or not said:
        return max(len(true), len(said))
    # Items as single characters: an item may hold anything, and jiwer would split it at spaces.
    codes = {item: chr(0x10000 + number) for number, item in enumerate({*true, *said})}
    out = jiwer.process_characters("".join(codes[i] for i in true), "".join(codes[i] for i in said))
    return out.substitutions + out.deletions + out.insertions


# --- evaluate_st.py -----------------------------------------------------------------------------------------------


def bleu(pairs: Pairs, source: str) -> float:
    """Corpus BLEU of raw text by sacrebleu 1.5.1, which smooths also where nothing matches at all (2.x returns 0).

    Raises Stopped for an empty reference.
    """
    tokenizer = bleu_tokenizer(source)
    if not all(reference for reference, _ in pairs):
        raise Stopped("EOFError: No valid references for a sentence!")
    found = BLEU(tokenize=tokenizer).corpus_score([said for _, said in pairs], [[ref for ref, _ in pairs]])
    if any(found.counts) or not all(found.totals):
        return found.score
    logs = [math.log(100 / (2**order * total)) for order, total in enumerate(found.totals, start=1)]
    return found.bp * math.exp(sum(logs) / len(logs))


def bleu_tokenizer(source: str) -> str:
    """By the second-last part of `source`: `covost2_en_zh_test` -> zh. So `covost2_en_zh` and `.._zh-CN_test`, which
    are Chinese too, are split as if they were European."""
    parts = source.split("_")
    if len(parts) < 2:
        raise Stopped("IndexError: list index out of range")
    return {"zh": "zh", "ja": "ja-mecab"}.get(parts[-2], "13a")


# --- evaluate_srwt.py ---------------------------------------------------------------------------------------------


def alignment_shift(pairs: Pairs) -> float:
    """Seconds by which matched words are shifted, start plus end. Malformed lines are dropped from either side before
    the two are paired by position: rows may be compared with their neighbours (`aas_ms` pairs each with its own)."""
    true, said = ([timed for text in side if (timed := timestamps.read(text))] for side in _sides(pairs))
    if len(true) != len(said):
        raise Stopped(f"AssertionError: {len(true)}, {len(said)}")
    total, matched = 0.0, 0
    for reference, reply in zip(true, said, strict=True):
        found = timestamps.matched_spans(reference, reply)
        total += sum(timestamps.distance(a, b) for a, b in found)
        matched += len(found)
    if not matched:
        raise Stopped("ZeroDivisionError: division by zero")
    return total / matched


def timed_words(pairs: Pairs) -> dict[str, float]:
    """`alignment_shift`, and the error rate of what is left without times: by the character, whatever the language, as
    the script knows one data set only, which is Chinese. It prints both or none."""
    return {"aas": alignment_shift(pairs), "wer": word_error_rate(pairs, "zh", "v1")}


# --- evaluate_{emotion,vocal_sound,scene,aqa}.py ------------------------------------------------------------------


def accuracy(pairs: Pairs, version: str) -> float:
    """Share of replies that are the reference, letter by letter: v1 compares them as they are, v2 without the space
    before them. (v1 strips replies before it stores them; these are stored ones.)"""
    if not pairs:
        raise Stopped("ValueError: Found empty input array")
    return sum((said if version == "v1" else said.lstrip()) == true for true, said in pairs) / len(pairs)


def question_accuracy(pairs: Pairs, source: str) -> dict[str, float]:
    """`accuracy` of answers to questions, and for ClothoAQA `binary`: of the rows with the reference yes or no, exactly
    so written but for case. Stops where there is none."""
    found = {"accuracy": accuracy(pairs, "v1")}
    if source.startswith("clotho"):
        found["binary"] = accuracy([pair for pair in pairs if pair[0].lower() in ("yes", "no")], "v1")
    return found


# --- evaluate_note_analysis.py ------------------------------------------------------------------------------------

QUALITIES = frozenset(
    ["dark", "distortion", "nonlinear_env", "bright", "fast_decay"]
    + ["long_release", "tempo-synced", "reverb", "multiphonic", "percussive"]
)
UNREAD = 128  # a pitch or a velocity that cannot be read: a MIDI number that there is not


def notes(pairs: Pairs) -> dict[str, float]:
    """`instrument`, `velocity`, `pitch` and `chroma` accuracy and the mean average precision of `qualities`.

    An unread pitch or velocity counts as one more class, right where both are unread. `chroma` takes which of the
    pitches that occur it is modulo 12, not the MIDI number (`chroma_accuracy` does). Raises Stopped where no reference
    and no reply names a known quality.
    """
    true, said = ([note(text) for text in side] for side in _sides(pairs))

    def same(what: str) -> float:
        return float(np.mean([getattr(a, what) == getattr(b, what) for a, b in zip(true, said, strict=True)]))

    columns = {pitch: column for column, pitch in enumerate(sorted({n.pitch for n in (*true, *said)}))}
    chroma = [columns[a.pitch] % 12 == columns[b.pitch] % 12 for a, b in zip(true, said, strict=True)]
    named = [[set(n.sonic.split(", ")) & QUALITIES for n in side] for side in (true, said)]
    labelled, classes = set().union(*named[0]), set().union(*named[0], *named[1])
    if not classes:
        raise Stopped("ValueError: unknown format is not supported")
    precision = mean_average_precision([*zip(named[1], named[0], strict=True)])(np.ones((1, len(pairs))))[0]
    return {
        "instrument": same("instrument"),
        "velocity": same("velocity"),
        # scikit-learn's mean has a 0 for each class that only replies name.
        "qualities": float(precision) * len(labelled) / len(classes) if labelled else 0.0,
        "pitch": same("pitch"),
        "chroma": float(np.mean(chroma)),
    }


class Note(NamedTuple):
    """What the script reads out of a reply."""

    pitch: int
    velocity: int
    instrument: str
    sonic: str


def note(text: str) -> Note:
    def number(kind: str) -> int:
        found = re.search(rf"<\|{kind}\|><\|midi_{kind}_(.*?)\|>", text)
        try:
            return int(found[1]) if found else UNREAD
        except ValueError:
            return UNREAD

    def words(kind: str) -> str:
        found = re.search(rf"<\|{kind}\|>(.*)", text)
        return found[1].split("<")[0] if found else ""

    return Note(number("pitch"), number("velocity"), words("instrument"), words("sonic"))


# --- the scripts -------------------------------------------------------------------------------------------------

SCRIPTS = {
    "evaluate_asr": lambda pairs, source, language, version: {"wer": word_error_rate(pairs, language, version)},
    "evaluate_st": lambda pairs, source, language, version: {"bleu": bleu(pairs, source)},
    "evaluate_srwt": lambda pairs, source, language, version: timed_words(pairs),
    "evaluate_emotion": lambda pairs, source, language, version: {"accuracy": accuracy(pairs, version)},
    "evaluate_aqa": lambda pairs, source, language, version: question_accuracy(pairs, source),
    "evaluate_note_analysis": lambda pairs, source, language, version: notes(pairs),
}
SCRIPTS |= dict.fromkeys(("evaluate_vocal_sound", "evaluate_scene"), SCRIPTS["evaluate_emotion"])  # word for word


def _sides(pairs: Pairs) -> tuple[list[str], list[str]]:
    return [true for true, _ in pairs], [said for _, said in pairs]
