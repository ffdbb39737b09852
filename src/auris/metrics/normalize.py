"""Text normalisation before error rates, as Qwen2-Audio's evaluation does it (eval_audio/evaluate_asr.py).

English passes both of Whisper's normalisers, every other language the basic one, which keeps diacritics. Cantonese is
converted to simplified characters by zhconv first, as in the official script.

Chinese is approximate. The official script spells numbers out with cn_tn, which is not on any package index, so cn2an
replaces it. cn_tn reads a number of four or more digits without a measure word digit by digit; here numbers of seven
or more digits, or with a leading zero, are read so. zhconv and cn2an are an extra, needed only for Cantonese and for
Chinese with digits.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from auris.errors import UserError
from auris.metrics import optional_packages

# Languages written without spaces, scored per character. (The official script does so for zh and yue only.)
CHARACTER_LANGUAGES = ("zh", "yue", "ja")
_PACKAGES = {"zh": "cn2an", "yue": "zhconv"}


def base_language(language: str) -> str:
    """Return the language without its region: `zh-CN` -> `zh`.

    Raises:
        UserError: The language is empty.
    """
    if not language:
        raise UserError(
            "a text score needs the row's language, but it is empty: add `language` to the row, such as en or zh"
        )
    return re.split("[-_]", language.lower())[0]


def unit(language: str) -> str:
    """Return what an error rate of this language counts: `word` or `char`."""
    return "char" if base_language(language) in CHARACTER_LANGUAGES else "word"


def normalize(text: str, language: str) -> str:
    """Return the form in which two transcripts are compared.

    Words are joined by single spaces; if `unit` is `char`, all spaces are removed. The result is that of the official
    normalisation, except for some numbers in zh, and for ja, for which the official code has no rule and compares whole
    sentences as words.

    Raises:
        UserError: The package that zh or yue needs is not installed.
    """
    text = normalize_words(text, language).strip()
    return re.sub(r"\s", "", text) if unit(language) == "char" else text


def contains(text: str, key: str, language: str) -> bool:
    """Return whether the normalised key occurs in the normalised text, as whole words where there are words.

    Scores, the rule-based judge and the synthetic dialogues all use this rule. Every text contains a key that is empty
    after normalisation.
    """
    space = " " if unit(language) == "word" else ""
    text, key = (normalize(side, language) for side in (text, key))
    return not key or f"{space}{key}{space}" in f"{space}{text}{space}"


def normalize_words(text: str, language: str) -> str:
    """Normalise a text in the same way as `normalize`, but keep the spaces in every language."""
    text = without_tags(text)
    if base_language(language) == "en":
        text = _english()(text)
    elif base_language(language) == "zh":
        text = _spell_numbers(re.sub(r"\s", "", text))
    elif base_language(language) == "yue":
        text = optional_packages.require("zhconv", "a Cantonese text").convert(text, "zh-cn")
    return _basic()(text)


_DIGITS = "零一二三四五六七八九"
_BY_DIGIT = re.compile(r"(?<![\d.])(?:0\d+|\d{7,})(?![\d.])")


def _spell_numbers(text: str) -> str:
    """Write the numbers of a Chinese text in characters.

    A sign before a number is punctuation, as in the official script.
    """
    if not re.search(r"\d", text):
        return text
    text = _BY_DIGIT.sub(lambda match: "".join(_DIGITS[int(digit)] for digit in match[0]), text)
    return optional_packages.require("cn2an", "a Chinese text with digits").transform(
        re.sub(r"[-+](?=\d)", " ", text), "an2cn"
    )


def canonical(answer: str) -> str:
    """Return the form in which names of classes, slots and events are compared.

    Case and surrounding space are ignored. Characters are composed (NFC), as a tokenizer writes them; labels may hold
    them decomposed.
    """
    return unicodedata.normalize("NFC", answer.strip().lower())


def describe(language: str) -> str:
    """Return the normaliser's part of a score's signature, such as `whisper_en+basic|word`."""
    if base_language(language) == "en":
        return "whisper_en+basic|word"
    package = (
        optional_packages.describe(_PACKAGES[base_language(language)]) if base_language(language) in _PACKAGES else ""
    )
    approximate = "(approximate)" if base_language(language) == "zh" else ""
    return f"{package + '+' if package else ''}whisper_basic{approximate}|{unit(language)}"


def check(language: str) -> None:
    """Check that the package which the language may need is installed.

    Raises:
        UserError: It is not.
    """
    if package := _PACKAGES.get(base_language(language)):
        optional_packages.require(package, f"a text score of language {language!r}")


def without_tags(text: str) -> str:
    """Remove `<|...|>` tags and spaces before punctuation (`remove_sp` of the official script)."""
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
