"""Text normalisation before error rates are computed, as in Qwen2-Audio's script eval_audio/evaluate_asr.py.

English is normalised by both of Whisper's normalisers, Chinese as by cn_tn (`auris.metrics.chinese`). All other
languages are normalised only by Whisper's basic normaliser, which keeps diacritics. As in the official script, zhconv,
an optional package, first converts Cantonese to simplified characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from auris.errors import UserError
from auris.metrics import optional_packages
from auris.metrics.chinese import normalize_chinese

# Languages that are written without spaces and scored by characters. The official script does this only for zh and yue.
CHARACTER_LANGUAGES = ("zh", "yue", "ja")
_CANTONESE_PACKAGE = "zhconv"


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
    The result equals the official normalisation except for ja: the official script has no rule for ja and compares
    whole sentences as words.

    Raises:
        UserError: The package that yue needs is not installed.
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
    if base_language(language) == "zh":
        return normalize_chinese(re.sub(r"\s", "", text))
    if base_language(language) == "en":
        text = _english()(text)
    elif base_language(language) == "yue":
        text = optional_packages.import_package(_CANTONESE_PACKAGE, "a Cantonese text").convert(text, "zh-cn")
    return _basic()(text)


def canonical_form(answer: str) -> str:
    """Return the form in which names of classes, slots and events are compared.

    Case and surrounding spaces are ignored. Unicode characters are composed (NFC), because tokenizers compose them,
    whereas labels may contain decomposed characters.
    """
    return unicodedata.normalize("NFC", answer.strip().lower())


def describe_normalizer(language: str) -> str:
    """Return the part of a signature that describes the normaliser, such as `whisper_en+basic|word`."""
    normalizers = {
        "en": "whisper_en+basic",
        "zh": "cn_tn",
        "yue": "+".join(filter(None, (optional_packages.describe_version(_CANTONESE_PACKAGE), "whisper_basic"))),
    }
    return f"{normalizers.get(base_language(language), 'whisper_basic')}|{counted_unit(language)}"


def check_packages(language: str) -> None:
    """Check that the package for normalising this language is installed, if there is one.

    Raises:
        UserError: The package is not installed.
    """
    if base_language(language) == "yue":
        optional_packages.import_package(_CANTONESE_PACKAGE, f"a text score in language {language!r}")


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
