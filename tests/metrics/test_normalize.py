"""The normalisers return what the official Qwen2-Audio script returns for the same sentences."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest

from auris.metrics.normalize import contains, counted_unit, describe_normalizer, normalize


@pytest.fixture(scope="module")
def pairs(shared_data) -> list[dict]:
    path = shared_data / "golden/official_scoring/wer.jsonl"
    return [row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if row["kind"] == "pair"]


@pytest.mark.parametrize("language", ["en", "fr", "de", "es", "it", "ko"])
def test_words_equal_the_official_ones(pairs, language):
    rows = [row for row in pairs if row["language"] == language]
    assert len(rows) == 25
    for row in rows:
        for side in ("ref", "hyp"):
            assert normalize(row[side], language).split() == row["v2"][f"{side}_items"], row[side]


def test_cantonese_equals_the_official_characters(pairs):
    pytest.importorskip("zhconv")
    rows = [row for row in pairs if row["language"] == "yue"]
    assert len(rows) == 25
    for row in rows:
        for side in ("ref", "hyp"):
            assert list(normalize(row[side], "yue")) == row["v2"][f"{side}_items"], row[side]


def test_chinese_equals_the_official_characters(pairs):
    rows = [row for row in pairs if row["language"] == "zh"]
    assert len(rows) == 25
    for row in rows:
        for side in ("ref", "hyp"):
            assert list(normalize(row[side], "zh")) == row["v2"][f"{side}_items"], row[side]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Spaces are removed before numbers are parsed, as in the official script.
        ("电话是 139 1234 5678。", "电话是一三九一二三四五六七八"),
        ("房间007，编号12345678", "房间零七编号一二三四五六七八"),
        ("3.05元和0.5元", "三点零五元和零点五元"),
        ("-3到+5度", "三到五度"),
    ],
)
def test_chinese_identifiers_are_spelled_out_by_digit_and_quantities_by_value(text, expected):
    assert normalize(text, "zh") == expected


def test_japanese_is_compared_by_character_instead_of_by_sentence(pairs):
    """The official script compares whole sentences."""
    for row in pairs:
        if row["language"] == "ja":
            assert normalize(row["ref"], "ja") == "".join("".join(row["v2"]["ref_items"]).split())


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("It costs $3.50, Mr. Brown!", "en", "it costs 3 50 mister brown"),
        ("<|startoftranscript|><|fr|>L'été, c'est très beau !<|endoftext|>", "fr", "l été c est très beau"),
        ("这是 iPhone 手机，不是 ＨＵＡＷＥＩ。", "zh", "这是iphone手机不是ｈｕａｗｅｉ"),  # as in the official script
        ("我 有 三 只 猫 !", "zh-CN", "我有三只猫"),
        ("「おはよう！」と彼は言った。", "ja", "おはようと彼は言った"),
        ("<|nospeech|> ...", "en", ""),
    ],
)
def test_normalization_of_examples(text, language, expected):
    assert normalize(text, language) == expected


def test_error_rates_count_characters_in_languages_without_spaces():
    assert [counted_unit(language) for language in ("en", "de", "zh", "yue", "ja", "zh-TW")] == ["word"] * 2 + [
        "char"
    ] * 4


def test_the_description_names_the_normalizers():
    assert describe_normalizer("en") == "whisper_en+basic|word"
    assert describe_normalizer("fr") == "whisper_basic|word"
    assert describe_normalizer("zh-CN") == "cn_tn|char"
    assert describe_normalizer("yue").endswith("whisper_basic|char")


def test_the_description_names_the_package():
    pytest.importorskip("zhconv")
    assert describe_normalizer("yue") == f"zhconv{version('zhconv')}+whisper_basic|char"


def test_a_missing_language_raises_an_error():
    with pytest.raises(ValueError, match="language"):
        normalize("hello", "")


@pytest.mark.parametrize(
    ("text", "key", "language", "expected"),
    [
        ("The speaker is female.", "male", "en", False),
        ("The speaker is male.", "male", "en", True),
        ("Sure. The keyword is GO!", "go", "en", True),
        ("It is now.", "no", "en", False),
        ("They are: a dog, then rain.", "a dog, then rain", "en", True),
        ("They are: a dog and rain.", "a dog, then rain", "en", False),
        ("The speaker says: 女王推盒子.", "女王推盒子", "zh", True),
        ("The speaker says: 女王推盒子.", "男孩", "zh", False),
        ("Whatever is said", "...", "en", True),
    ],
)
def test_a_key_is_searched_by_word_or_by_character(text: str, key: str, language: str, expected: bool) -> None:
    assert contains(text, key, language) is expected
