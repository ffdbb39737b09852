"""Text normalisation before error rates are computed, as in Qwen2-Audio's script eval_audio/evaluate_asr.py.

English is normalised by both of Whisper's normalisers. All other languages are normalised only by the basic one, which
keeps diacritics. As in the official script, zhconv first converts Cantonese to simplified characters.

For Chinese, the result is approximate. The official script spells numbers out with cn_tn, which is not on any package
index, so cn2an is used instead. cn_tn reads a number digit by digit if it has four or more digits and no measure
word. Here, only numbers of seven or more digits and numbers with a leading zero are read digit by digit. zhconv and
cn2an are optional packages, needed only for Cantonese and for Chinese text that contains digits.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from auris.errors import UserError
from auris.metrics import optional_packages

# Languages that are written without spaces and scored by characters. The official script does this only for zh and yue.
CHARACTER_LANGUAGES = ("zh", "yue", "ja")
_PACKAGES = {"zh": "cn2an", "yue": "zhconv"}


def base_language(language: str) -> str:
    """Return a language code without its region: `zh-CN` -> `zh`.

    Raises:
        UserError: The language is empty.
    """
    if not language:
        raise UserError(
            "a text score needs the language of the row, but it is empty: add `language` to the row, such as en or zh"
        )
    return re.split("[-_]", language.lower())[0]


def counted_unit(language: str) -> str:
    """Return what an error rate counts in this language: `word` or `char`."""
    return "char" if base_language(language) in CHARACTER_LANGUAGES else "word"


def normalize(text: str, language: str) -> str:
    """Return the normalised form of a transcript, in which transcripts are compared.

    Words are separated by single spaces. In languages whose `counted_unit` is `char`, all spaces are removed.
    The result equals the official normalisation except for some numbers in zh, and for ja: the official script has no
    rule for ja and compares whole sentences as words.

    Raises:
        UserError: The package that zh or yue needs is not installed.
    """
    text = normalize_words(text, language).strip()
    return re.sub(r"\s", "", text) if counted_unit(language) == "char" else text


def contains(text: str, key: str, language: str) -> bool:
    """Return whether a text contains the words `key`, after both have been normalised.

    In languages that are written with spaces, the key must match whole words. Every text contains a key that is empty
    after normalisation. Scores, the rule-based judge and the synthetic dialogues all use this function.
    """
    boundary = " " if counted_unit(language) == "word" else ""
    text, key = normalize(text, language), normalize(key, language)
    return not key or f"{boundary}{key}{boundary}" in f"{boundary}{text}{boundary}"


def normalize_words(text: str, language: str) -> str:
    """Return a text normalised as by `normalize`, but keep the spaces that `normalize` removes in some languages."""
    text = remove_tags(text)
    if base_language(language) == "en":
        text = _english()(text)
    elif base_language(language) == "zh":
        text = _spell_numbers(re.sub(r"\s", "", text))
    elif base_language(language) == "yue":
        text = optional_packages.import_package("zhconv", "a Cantonese text").convert(text, "zh-cn")
    return _basic()(text)


_CHINESE_DIGITS = "零一二三四五六七八九"
_READ_BY_DIGIT = re.compile(r"(?<![\d.])(?:0\d+|\d{7,})(?![\d.])")  # matches numbers that are read digit by digit


def _spell_numbers(text: str) -> str:
    """Spell out the numbers in a Chinese text.

    As in the official script, a plus or minus sign before a number is treated as punctuation.
    """
    if not re.search(r"\d", text):
        return text
    text = _READ_BY_DIGIT.sub(lambda match: "".join(_CHINESE_DIGITS[int(digit)] for digit in match[0]), text)
    return optional_packages.import_package("cn2an", "a Chinese text with digits").transform(
        re.sub(r"[-+](?=\d)", " ", text), "an2cn"
    )


def canonical_form(answer: str) -> str:
    """Return the form in which names of classes, slots and events are compared.

    Case and surrounding spaces are ignored. Unicode characters are composed (NFC), because tokenizers compose them,
    whereas labels may contain decomposed characters.
    """
    return unicodedata.normalize("NFC", answer.strip().lower())


def describe_normalizer(language: str) -> str:
    """Return the part of a signature that describes the normaliser, such as `whisper_en+basic|word`."""
    if base_language(language) == "en":
        return "whisper_en+basic|word"
    package = (
        optional_packages.describe_version(_PACKAGES[base_language(language)])
        if base_language(language) in _PACKAGES
        else ""
    )
    approximate = "(approximate)" if base_language(language) == "zh" else ""
    return f"{package + '+' if package else ''}whisper_basic{approximate}|{counted_unit(language)}"


def check_packages(language: str) -> None:
    """Check that the package for normalising this language is installed, if there is one.

    Raises:
        UserError: The package is not installed.
    """
    if package := _PACKAGES.get(base_language(language)):
        optional_packages.import_package(package, f"a text score in language {language!r}")


def remove_tags(text: str) -> str:
    """Remove `<|...|>` tags and spaces before punctuation, like `remove_sp` in the official script."""
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
