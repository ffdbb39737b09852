"""Splitting of captions into words for CIDEr-D.

COCO's evaluation uses Stanford's PTB tokenizer of 2014, a Java program. Here it is approximated by regular expressions:
text is lower-cased, contractions are split, hyphenated words are kept whole, and all punctuation except brackets is
removed. COCO keeps brackets because the tokenizer replaces them by lower-cased names such as `-lrb-`, while
COCO's list of punctuation contains the names in capitals.
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


def split_caption(text: str, language: str) -> list[str]:
    """Split a caption into words, or into characters in languages written without spaces."""
    if norm.counted_unit(language) == "char":
        return list(norm.normalize(text, language))
    text = norm.canonical_form(text).replace("’", "'").translate(_BRACKETS)
    return _WORD.findall(_CONTRACTION.sub(r" \1\2", text))


def describe_tokenizer(language: str) -> str:
    """Return the part of a signature that describes how captions are split."""
    return norm.describe_normalizer(language) if norm.counted_unit(language) == "char" else "tok:ptb-like(approximate)"
