"""Splitting of captions into words for CIDEr-D.

COCO's evaluation uses Stanford's PTB tokenizer, a Java program of 2014. Here a regular expression approximates it: it
lower-cases, separates contractions, keeps hyphenated words whole and removes punctuation except brackets. (COCO's list
of punctuation has the brackets in capitals only, so the lower-cased ones stay.)
"""

from __future__ import annotations

import re

from auris.metrics import normalize as norm

_CONTRACTION = re.compile(r"(?<=\w)(n't|'(?:s|m|d|ll|re|ve))\b|(?<=\bcan)(not)\b")
_BRACKET_NAMES = ("lrb", "rrb", "lsb", "rsb", "lcb", "rcb")
_BRACKETS = str.maketrans({bracket: f" -{name}- " for bracket, name in zip("()[]{}", _BRACKET_NAMES, strict=True)})
_WORD = re.compile(
    r"-[lr][rsc]b-"
    r"|n't\b|'(?:s|m|d|ll|re|ve)\b"
    r"|(?:[a-z]\.){2,}|[$%&#@]"
    r"|\w+(?:(?:[-'/.]|(?<=\d)[,:](?=\d))\w+)*"
)


def split(text: str, language: str) -> list[str]:
    """Split a caption into words, or into characters in languages written without spaces."""
    if norm.unit(language) == "char":
        return list(norm.normalize(text, language))
    text = norm.canonical(text).replace("’", "'").translate(_BRACKETS)
    return _WORD.findall(_CONTRACTION.sub(r" \1\2", text))


def describe(language: str) -> str:
    """Return the tokenizer's part of a score's signature."""
    return norm.describe(language) if norm.unit(language) == "char" else "tok:ptb-like(approximate)"
