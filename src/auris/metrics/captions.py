"""Captions as words for CIDEr-D: as COCO's evaluation has them, but for its tokenizer.

That is Stanford's PTB tokenizer, a Java program of 2014; here a regular expression splits as it does: lower case,
contractions apart, hyphened words whole, no punctuation but brackets (which COCO's list of it has in capitals).
"""

from __future__ import annotations

import re

from auris.metrics import normalize as norm

_APART = re.compile(r"(?<=\w)(n't|'(?:s|m|d|ll|re|ve))\b|(?<=\bcan)(not)\b")
_NAMES = ("lrb", "rrb", "lsb", "rsb", "lcb", "rcb")
_BRACKETS = str.maketrans({sign: f" -{name}- " for sign, name in zip("()[]{}", _NAMES, strict=True)})
_WORD = re.compile(
    r"-[lr][rsc]b-"
    r"|n't\b|'(?:s|m|d|ll|re|ve)\b"
    r"|(?:[a-z]\.){2,}|[$%&#@]"
    r"|\w+(?:(?:[-'/.]|(?<=\d)[,:](?=\d))\w+)*"
)


def split(text: str, language: str) -> list[str]:
    """The words of a caption; characters where words are not spaced."""
    if norm.unit(language) == "char":
        return list(norm.normalize(text, language))
    text = norm.canonical(text).replace("’", "'").translate(_BRACKETS)
    return _WORD.findall(_APART.sub(r" \1\2", text))


def describe(language: str) -> str:
    """The tokenizer's part of a score's signature."""
    return norm.describe(language) if norm.unit(language) == "char" else "tok:ptb-like(approximate)"
