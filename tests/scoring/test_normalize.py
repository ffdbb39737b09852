"""The normalisers against what the official Qwen2-Audio script returns for the same sentences."""

from __future__ import annotations

import json

import pytest

from auris.scoring.normalize import describe, normalize, unit


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


def test_chinese_differs_only_where_the_official_script_rewrites_numbers_latin_or_signs(pairs):
    differing = {
        row[side]
        for row in pairs
        for side in ("ref", "hyp")
        if row["language"] == "zh" and list(normalize(row[side], "zh")) != row["v2"][f"{side}_items"]
    }
    assert differing and all(any(c.isdigit() or c in "[(（" for c in text) for text in differing), differing


def test_japanese_is_compared_per_character_where_the_official_script_takes_whole_sentences(pairs):
    for row in pairs:
        if row["language"] == "ja":
            assert normalize(row["ref"], "ja") == "".join("".join(row["v2"]["ref_items"]).split())


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("It costs $3.50, Mr. Brown!", "en", "it costs 3 50 mister brown"),
        ("<|startoftranscript|><|fr|>L'été, c'est très beau !<|endoftext|>", "fr", "l été c est très beau"),
        ("这是 iPhone 手机，不是 ＨＵＡＷＥＩ。", "zh", "这是iphone手机不是huawei"),
        ("我 有 ３ 只 猫 !", "zh-CN", "我有3只猫"),
        ("「おはよう！」と彼は言った。", "ja", "おはようと彼は言った"),
        ("<|nospeech|> ...", "en", ""),
    ],
)
def test_normal_form(text, language, expected):
    assert normalize(text, language) == expected


def test_unit_is_the_character_where_words_are_not_spaced():
    assert [unit(language) for language in ("en", "de", "zh", "yue", "ja", "zh-TW")] == ["word"] * 2 + ["char"] * 4


def test_description_admits_what_is_approximate():
    assert describe("en") == "whisper_en+basic|word"
    assert describe("fr") == "whisper_basic|word"
    assert "approximate" in describe("zh")


def test_a_missing_language_is_an_error():
    with pytest.raises(ValueError, match="language"):
        normalize("hello", "")
