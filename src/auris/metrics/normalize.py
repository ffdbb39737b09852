"""Text normalisation before error rates, as Qwen2-Audio's evaluation does it (eval_audio/evaluate_asr.py).

English passes both of Whisper's normalisers, every other language the basic one with its diacritics kept. Cantonese is
made simplified by zhconv first, as there. Chinese is approximate: the official script spells numbers out with cn_tn,
which no package index carries; cn2an stands in for it, and what cn_tn reads digit by digit (four digits or more before
no measure word) it reads so from seven on, and with a zero in front. Both packages are an extra, needed for Cantonese
and for Chinese with digits only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from auris.errors import UserError
from auris.metrics import optional_packages

CHARACTER_LANGUAGES = ("zh", "yue", "ja")  # written without spaces: scored per character; official: zh and yue only
_PACKAGES = {"zh": "cn2an", "yue": "zhconv"}


def primary(language: str) -> str:
    """The language without its region: `zh-CN` -> `zh`. ValueError if it is empty."""
    if not language:
        raise UserError(
            "a text score needs the row's language (such as en or zh), but it is empty; add `language` to the row"
        )
    return re.split("[-_]", language.lower())[0]


def unit(language: str) -> str:
    """What an error rate of this language counts: `word` or `char`."""
    return "char" if primary(language) in CHARACTER_LANGUAGES else "word"


def normalize(text: str, language: str) -> str:
    """The form of `text` in which two transcripts are compared: words joined by single spaces, or bare characters
    where `unit` is `char`. Equal to the official normalisation but for some numbers of zh, and for ja (the official
    code has no rule and compares whole sentences as words). ValueError if a package for zh or yue is missing."""
    text = written(text, language).strip()
    return re.sub(r"\s", "", text) if unit(language) == "char" else text


def contains(text: str, key: str, language: str) -> bool:
    """Return whether the normalised key occurs in the normalised text, as whole words where there are words.

    This is the only rule by which an answer contains its key: for scores, the judge's rule and the synthetic dialogues.
    Every text contains a key of which normalisation leaves nothing.
    """
    space = " " if unit(language) == "word" else ""
    text, key = (normalize(side, language) for side in (text, key))
    return not key or f"{space}{key}{space}" in f"{space}{text}{space}"


def written(text: str, language: str) -> str:
    """`normalize` before characters are pressed together: words, whatever the language."""
    text = without_tags(text)
    if primary(language) == "en":
        text = _english()(text)
    elif primary(language) == "zh":
        text = _spelled(re.sub(r"\s", "", text))
    elif primary(language) == "yue":
        text = optional_packages.require("zhconv", "a Cantonese text").convert(text, "zh-cn")
    return _basic()(text)


_DIGITS = "零一二三四五六七八九"
_BY_DIGIT = re.compile(r"(?<![\d.])(?:0\d+|\d{7,})(?![\d.])")


def _spelled(text: str) -> str:
    """Chinese with its numbers in characters; a sign in front of a number is punctuation, as officially."""
    if not re.search(r"\d", text):
        return text
    text = _BY_DIGIT.sub(lambda found: "".join(_DIGITS[int(digit)] for digit in found[0]), text)
    return optional_packages.require("cn2an", "a Chinese text with digits").transform(
        re.sub(r"[-+](?=\d)", " ", text), "an2cn"
    )


def canonical(answer: str) -> str:
    """The form in which names of classes, slots and events are compared: without case, the space around them, and the
    choice between composed characters, which a tokenizer writes, and those in parts, as labels may have them."""
    return unicodedata.normalize("NFC", answer.strip().lower())


def describe(language: str) -> str:
    """The normaliser's part of a score's signature, such as `whisper_en+basic|word`."""
    if primary(language) == "en":
        return "whisper_en+basic|word"
    package = optional_packages.describe(_PACKAGES[primary(language)]) if primary(language) in _PACKAGES else ""
    approximate = "(approximate)" if primary(language) == "zh" else ""
    return f"{package + '+' if package else ''}whisper_basic{approximate}|{unit(language)}"


def check(language: str) -> None:
    """Raises ValueError if what the language may need is not installed."""
    if package := _PACKAGES.get(primary(language)):
        optional_packages.require(package, f"a text score of language {language!r}")


def without_tags(text: str) -> str:
    """Official `remove_sp`: `<|...|>` and the spaces before punctuation go."""
    text = re.sub(r"<\|.*?\|>", " ", text)
    text = re.sub(r"\s+", " ", text)
    return re.sub(r" ?([!,.?;:])", r"\1", text)


@cache
def _english() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


@cache
def _basic() -> Callable[[str], str]:
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer()
