"""Kinds of edits equal the counts of jiwer; empty and runaway transcripts."""

from __future__ import annotations

import random

import jiwer
import pytest

from auris.metrics.edits import is_repetitive
from auris.metrics.measures import row_stats, score

KINDS = ("insertions", "deletions", "substitutions")


@pytest.mark.parametrize(
    ("language", "metric", "process"),
    [
        ("en", "wer", jiwer.process_words),
        ("fr", "wer", jiwer.process_words),
        ("zh", "cer", jiwer.process_characters),
    ],
)
def test_kinds_of_edits_equal_jiwer_and_add_up_to_the_error_rate(language, metric, process):
    rng = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta"] if language != "zh" else list("狗猫鸟鱼")
    separator = "" if language == "zh" else " "
    texts = [[separator.join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(20)] for _ in range(2)]
    expected = process(*texts)
    rows = {kind: [row_stats(kind, h, r, language) for r, h in zip(*texts, strict=True)] for kind in (*KINDS, metric)}
    n_reference = expected.hits + expected.substitutions + expected.deletions
    scores = {kind: score(kind, stats) for kind, stats in rows.items()}
    assert scores == pytest.approx(
        {kind: getattr(expected, kind) / n_reference for kind in KINDS} | {metric: getattr(expected, metric)}
    )
    assert sum(scores[kind] for kind in KINDS) == pytest.approx(scores[metric])


def test_a_text_for_silence_is_inserted_and_has_no_share_of_empty_responses():
    assert row_stats("insertions", "thank you", "", "en") == [2, 0]
    assert row_stats("empty", "", "", "en") == row_stats("empty", "thank you", "", "en") == [0, 0]


@pytest.mark.parametrize("response", ["", " ", "...", "<|nospeech|>", "。"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_response_without_words_is_empty(response, language):
    assert row_stats("empty", response, "ok", language) == [1, 1]
    assert row_stats("empty", f"{response}b", "ok", language) == [0, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the cat sat on the mat", False),
        ("no no no", False),
        ("thank you " * 12, True),
        ("谢谢大家" * 12, True),
        ("今天天气很好我们去公园吧", False),
        ("he said that he would come back later in the evening to fix the old wooden bridge over the river", False),
        ("", False),
    ],
)
def test_repetitive_texts_exceed_the_compression_ratio_of_whisper(text, expected):
    assert is_repetitive(text) is expected


def test_a_runaway_response_ends_by_length_or_repeats_itself_unlike_the_reference():
    loop = "thank you " * 12
    assert row_stats("runaway", ("a dog", False), "a dog", "en") == [0, 1]
    assert row_stats("runaway", ("a dog", True), "a dog barks", "en") == [1, 1]
    assert row_stats("runaway", (loop, False), "thank you", "en") == [1, 1]
    assert row_stats("runaway", (loop, False), loop, "en") == [0, 1]
