"""Text normalisation before error rates, as Qwen2-Audio's evaluation does it (eval_audio/evaluate_asr.py).

English passes both of Whisper's normalisers, every other language the basic one with its diacritics kept. Chinese is
approximate: the official script spells numbers out with cn_tn, which no package index carries.
"""

from __future__ import annotations

import re
from functools import cache

from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

CHARACTER_LANGUAGES = ("zh", "yue", "ja")  # written without spaces: scored per character; official: zh and yue only


def primary(language: str) -> str:
    """The language without its region: `zh-CN` -> `zh`. ValueError if it is empty."""
    if not language:
        raise ValueError(
            "a text score needs the row's language (such as en or zh), but it is empty; add `language` to the row"
        )
    return re.split("[-_]", language.lower())[0]


def unit(language: str) -> str:
    """What an error rate of this language counts: `word` or `char`."""
    return "char" if primary(language) in CHARACTER_LANGUAGES else "word"


def normalize(text: str, language: str) -> str:
    """The form of `text` in which two transcripts are compared: words joined by single spaces, or bare characters
    where `unit` is `char`. Equal to the official normalisation but for zh and yue (numbers stay digits, traditional
    characters stay) and ja (the official code has no rule and compares whole sentences as words)."""
    text = _remove_tags(text)
    if primary(language) == "en":
        text = _english()(text)
    text = _basic()(text).strip()
    return re.sub(r"\s", "", text) if unit(language) == "char" else text


def describe(language: str) -> str:
    """The normaliser's part of a score's signature, such as `whisper_en+basic|word`."""
    if primary(language) == "en":
        return "whisper_en+basic|word"
    approximate = "(approximate)" if primary(language) in ("zh", "yue") else ""
    return f"whisper_basic{approximate}|{unit(language)}"


def _remove_tags(text: str) -> str:
    """Official `remove_sp`: `<|...|>` and the spaces before punctuation go."""
    text = re.sub(r"<\|.*?\|>", " ", text)
    text = re.sub(r"\s+", " ", text)
    return re.sub(r" ?([!,.?;:])", r"\1", text)


@cache
def _english() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()


@cache
def _basic() -> BasicTextNormalizer:
    return BasicTextNormalizer()
