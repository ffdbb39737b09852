"""Wordings of instruction dialogues, read from `wordings.yaml`.

Each wording belongs to one split (`select_split`), so no instruction of the test split occurs in training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from auris.corpus.draws import Rng, pick
from auris.corpus.grammar import SPLIT_PERCENTAGES
from auris.files import read_yaml

# Forms of an answer: only the content, a sentence, or a sentence with a polite opening.
FORMS = ("terse", "sentence", "polite")

_DATA = read_yaml(Path(__file__).with_name("wordings.yaml"))
_CLOSINGS: list[str] = _DATA["closings"]
_SPOKEN_OPENINGS: list[str] = _DATA["spoken_openings"]
_TYPED_QUESTIONS: dict[str, list[str]] = _DATA["typed"]
_SPOKEN_QUESTIONS: dict[str, list[str]] = _DATA["spoken"]
ANSWER_SENTENCES: dict[str, str] = _DATA["sentences"]
LABEL_PHRASES: dict[str, str] = _DATA["label_phrases"]
LABEL_KINDS: dict[str, str] = _DATA["label_kinds"]
NUMBERS: list[str] = _DATA["numbers"]
OPPOSITES: list[list[str]] = _DATA["opposites"]
CATEGORIES: dict[str, list[str]] = _DATA["categories"]
SOUND_SOURCES: dict[str, list[str]] = _DATA["sources"]
INSTRUMENT_FAMILIES: dict[str, list[str]] = _DATA["families"]


def select_split(wordings: Sequence[str], split: str) -> tuple[str, ...]:
    """Return the wordings that belong to `split`.

    The wordings are divided in the same proportions as the corpus's sentences (`grammar.SPLIT_PERCENTAGES`), but valid
    and test have at least one wording each.
    """
    assert len(wordings) > 2, wordings
    by_hash = sorted(set(wordings), key=lambda wording: hashlib.sha256(wording.encode()).digest())
    n_valid, n_test = (max(1, round(SPLIT_PERCENTAGES[name] / 100 * len(by_hash))) for name in ("valid", "test"))
    by_split = {
        "test": by_hash[:n_test],
        "valid": by_hash[n_test : n_test + n_valid],
        "train": by_hash[n_test + n_valid :],
    }
    return tuple(by_split[split])


@cache
def select_questions(family: str, split: str, *, spoken: bool = False) -> tuple[str, ...]:
    """Return the wordings of a family of questions that belong to `split`. They are templates with braces."""
    if spoken:
        return select_split(
            [opening + body for opening in _SPOKEN_OPENINGS for body in _SPOKEN_QUESTIONS[family]], split
        )
    return select_split([body + closing for closing in _CLOSINGS for body in _TYPED_QUESTIONS[family]], split)


def question_families(*, spoken: bool = False) -> tuple[str, ...]:
    """Return the names of all families of typed or spoken questions."""
    return tuple(_SPOKEN_QUESTIONS if spoken else _TYPED_QUESTIONS)


def draw_question(rng: Rng, family: str, split: str, *, spoken: bool = False, **fields: str) -> str:
    """Return a question of `family` in a random wording of `split`, with its braces filled from `fields`."""
    question = pick(rng, select_questions(family, split, spoken=spoken)).format(**fields)
    return question if spoken else _capitalise(question)


def _capitalise(text: str) -> str:
    """Capitalise the beginning of each sentence."""
    return ". ".join(sentence[:1].upper() + sentence[1:] for sentence in text.split(". "))


@cache
def fixed_typed_questions() -> frozenset[str]:
    """Return the final form of every typed question whose template has no braces."""
    bodies = (_capitalise(body) for questions in _TYPED_QUESTIONS.values() for body in questions if "{" not in body)
    return frozenset(body + closing for body in bodies for closing in _CLOSINGS)
