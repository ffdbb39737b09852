"""Scores of word times equal the stored outputs of the released script and values computed by hand."""

from __future__ import annotations

import json

import pytest

from auris.metrics.measures import row_stats, score, score_from_sums
from auris.metrics.timestamps import match_items

WORDS = [
    {"word": "the", "start": 0.0, "end": 0.11},
    {"word": "old", "start": 0.20, "end": 0.45},
    {"word": "doctor", "start": 0.45, "end": 0.90},
]


def shifted(**shifts: float) -> list[dict]:
    """Return `WORDS` with their `start` or `end` shifted by some seconds."""
    return [{**word, **{end: word[end] + shift for end, shift in shifts.items()}} for word in WORDS]


@pytest.fixture(scope="module")
def golden(shared_data) -> list[dict]:
    path = shared_data / "golden/official_scoring/aas.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_shift_and_number_of_words_of_each_pair_equal_the_released_script(golden):
    pairs = [row for row in golden if row["kind"] == "pair"]
    assert len(pairs) == 35
    for row in pairs:
        # If the script fails on a pair, it has compared none of its words.
        expected = [row["accumulated_shift"] or 0.0, row["accumulated_tokens"] or 0]
        assert row_stats("aas_official", row["hyp"], row["ref"], "zh") == pytest.approx(expected, abs=1e-9), row["name"]


def test_corpus_shift_equals_the_released_script_if_the_script_pairs_rows_correctly(golden):
    pairs = {row["name"]: row for row in golden if row["kind"] == "pair"}
    corpora = {row["name"]: row for row in golden if row["kind"] == "corpus"}

    def computed(name: str) -> float:
        rows = [pairs[member] for member in corpora[name]["members"]]
        return score("aas_official", [row_stats("aas_official", row["hyp"], row["ref"], "zh") for row in rows])

    for name in ("good_only", "two_languages", "malformed_in_the_same_row", "with_a_row_without_matches", "ties"):
        assert computed(name) == pytest.approx(corpora[name]["aas"], abs=1e-9), name
    # The script fails on the malformed answer of the third row. auris scores the other two rows.
    assert corpora["one_malformed_hypothesis"]["aas"] is None and computed("one_malformed_hypothesis") > 0
    # The script compares rows with their neighbours. If rows are paired correctly, only one row can be compared, and
    # its shift is twice as large.
    name = "row_shift_gives_a_number_without_error"
    assert (corpora[name]["aas"], computed(name)) == (pytest.approx(0.1), pytest.approx(0.2))


def test_ties_are_resolved_as_in_the_edit_distance_package():
    """The expected matches are those of edit-distance 1.0.9, which also equalled ours on 3,000 random pairs."""
    assert match_items("bbdbcc", "bccccaa") == [(0, 0), (4, 4)]
    assert match_items("甲乙甲乙", "乙甲乙甲") == [(1, 0), (2, 1), (3, 2)]
    assert match_items("abc", "") == match_items("", "abc") == []


def test_the_shift_of_a_word_is_the_mean_of_the_shifts_of_its_start_and_end_in_milliseconds():
    assert row_stats("aas_ms", shifted(start=0.02, end=0.04), WORDS, "en") == pytest.approx([90.0, 3])
    assert score_from_sums("aas_ms", [90.0, 3]) == 30.0
    assert row_stats("aas_ms", WORDS, WORDS, "en") == [0, 3]


def test_the_official_shift_is_in_seconds_and_skips_the_first_word():
    reference = "the<|0.20|>old<|0.45|>doctor<|0.90|>"
    predicted = "the<|0.22|>old<|0.47|>doctor<|0.92|>"
    # The released script misses the first word of an answer because the time before it is in the prompt.
    assert row_stats("aas_official", predicted, reference, "en") == pytest.approx([0.08, 2])
    assert row_stats("aas_official", f"<|0.00|>{predicted}", reference, "en") == pytest.approx([0.10, 3])
    assert row_stats("aas_official", "<|sil|><|0.50|>a<|0.70|>", "<|sil|><|0.50|>a<|0.72|>", "en")[1] == 1


def test_words_with_both_times_match_by_their_normalised_text():
    predicted = [
        {**WORDS[0], "word": "The"},
        {**WORDS[1], "word": "bold"},
        {**WORDS[2], "word": "Doctor.", "end": None},
    ]
    assert row_stats("word_coverage", predicted, WORDS, "en") == [1, 3]
    assert row_stats("aas_ms", predicted, WORDS, "en") == [0, 1]


def test_word_coverage_is_the_fraction_of_words_in_the_mean_shift():
    rows = [row_stats("word_coverage", predicted, WORDS, "en") for predicted in (WORDS, [], WORDS[:1])]
    assert rows == [[3, 3], [0, 3], [1, 3]]
    assert score("word_coverage", rows) == pytest.approx(4 / 9)


def test_chinese_is_timed_by_character():
    reference = [{"word": c, "start": 0.2 * i, "end": 0.2 * (i + 1)} for i, c in enumerate("面条机")]
    predicted = [{"word": c, "start": 0.2 * i + 0.1, "end": 0.2 * (i + 1) + 0.1} for i, c in enumerate("面包机")]
    assert row_stats("aas_ms", predicted, reference, "zh") == pytest.approx([200.0, 2])
