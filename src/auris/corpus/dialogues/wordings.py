"""Wordings of instruction dialogues, read from `wordings.yaml`.

Each wording belongs to one split (`select`), so no instruction of the test split occurs in training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from auris.corpus.draws import Rng, pick
from auris.corpus.grammar import SHARES
from auris.files import read_yaml

# Forms of an answer: the bare content, a sentence, or a sentence with a polite opening.
FORMS = ("terse", "sentence", "polite")

_DATA = read_yaml(Path(__file__).with_name("wordings.yaml"))
_CLOSINGS: list[str] = _DATA["closings"]
_SPOKEN_OPENINGS: list[str] = _DATA["spoken_openings"]
_TYPED: dict[str, list[str]] = _DATA["typed"]
_SPOKEN: dict[str, list[str]] = _DATA["spoken"]
SENTENCES: dict[str, str] = _DATA["sentences"]
NAMED: dict[str, str] = _DATA["named"]
THINGS: dict[str, str] = _DATA["things"]
NUMBERS: list[str] = _DATA["numbers"]
OPPOSITES: list[list[str]] = _DATA["opposites"]
CATEGORIES: dict[str, list[str]] = _DATA["categories"]
SOURCES: dict[str, list[str]] = _DATA["sources"]
FAMILIES: dict[str, list[str]] = _DATA["families"]


def select(wordings: Sequence[str], split: str) -> tuple[str, ...]:
    """Return the wordings that belong to `split`.

    The shares of the splits are those of the corpus's sentences; valid and test get at least one wording each.
    """
    assert len(wordings) > 2, wordings
    ranked = sorted(set(wordings), key=lambda wording: hashlib.sha256(wording.encode()).digest())
    valid, test = (max(1, round(SHARES[name] / 100 * len(ranked))) for name in ("valid", "test"))
    by_split = {"test": ranked[:test], "valid": ranked[test : test + valid], "train": ranked[test + valid :]}
    return tuple(by_split[split])


@cache
def questions(family: str, split: str, *, spoken: bool = False) -> tuple[str, ...]:
    """Return the wordings of `split` for a family of questions, as templates with braces."""
    if spoken:
        return select([opening + body for opening in _SPOKEN_OPENINGS for body in _SPOKEN[family]], split)
    return select([body + closing for closing in _CLOSINGS for body in _TYPED[family]], split)


def families(*, spoken: bool = False) -> tuple[str, ...]:
    """Return the names of all families of questions."""
    return tuple(_SPOKEN if spoken else _TYPED)


def ask(rng: Rng, family: str, split: str, *, spoken: bool = False, **fields: str) -> str:
    """Return a question of `family` in a random wording of `split`, with its braces filled from `fields`."""
    question = pick(rng, questions(family, split, spoken=spoken)).format(**fields)
    return question if spoken else _capitalise(question)


def _capitalise(text: str) -> str:
    """Capitalise the beginning of each sentence."""
    return ". ".join(sentence[:1].upper() + sentence[1:] for sentence in text.split(". "))


@cache
def typed() -> frozenset[str]:
    """Return every typed question without braces, in its final form."""
    bodies = (_capitalise(body) for questions in _TYPED.values() for body in questions if "{" not in body)
    return frozenset(body + closing for body in bodies for closing in _CLOSINGS)
