"""Several speakers, by hand: what pyannote.metrics is asked and what is taken of its answers, and cpWER."""

from __future__ import annotations

import warnings

import pytest

from auris.metrics.measures import row_stats, score


def turn(speaker: str, start: float, end: float) -> dict:
    return {"speaker": speaker, "start": start, "end": end}


TRUE = [turn("ann", 0.0, 4.0), turn("bob", 4.0, 8.0), turn("ann", 7.0, 10.0)]  # one second of both: 11 s of speech


class TestTurns:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("pyannote.metrics")

    def test_names_of_speakers_do_not_matter(self):
        predicted = [{**t, "speaker": {"ann": "speaker 2", "bob": "speaker 1"}[t["speaker"]]} for t in TRUE]
        assert row_stats("der", predicted, TRUE, "en") == pytest.approx([0.0, 11.0])
        assert row_stats("jer", predicted, TRUE, "en") == pytest.approx([0.0, 2.0])

    def test_missed_false_and_confused_speech_add_up(self):
        predicted = [turn("1", 0.0, 5.0), turn("2", 5.0, 8.0), turn("1", 8.0, 11.0)]
        # 4-5 is bob's and given to ann; 7-8 of ann's is missed; 10-11 nobody speaks.
        assert row_stats("der", predicted, TRUE, "en") == pytest.approx([3.0, 11.0])
        # ann: 6 of 9 s (7 true; 2 false, 1 missed) = 3/9; bob: 3 of 4 s = 1/4.
        assert row_stats("jer", predicted, TRUE, "en") == pytest.approx([3 / 9 + 1 / 4, 2.0])

    def test_an_answer_without_turns_misses_all(self):
        assert row_stats("der", [], TRUE, "en") == pytest.approx([11.0, 11.0])
        assert row_stats("jer", None, TRUE, "en") == pytest.approx([2.0, 2.0])

    def test_two_turns_of_one_time_are_both_kept_and_nothing_is_guessed(self):
        true = [turn("a", 0.0, 2.0), turn("b", 0.0, 2.0)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert row_stats("der", true, true, "en") == pytest.approx([0.0, 4.0])
            assert row_stats("der", true[:1], true, "en") == pytest.approx([2.0, 4.0])

    def test_recordings_are_pooled_by_seconds(self):
        rows = [row_stats("der", [], TRUE, "en"), row_stats("der", TRUE, TRUE, "en")]
        assert score("der", rows) == pytest.approx(0.5)


class TestWords:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("scipy")

    def test_the_best_pairing_of_speakers_counts(self):
        true = ["the red fox runs", "It costs $5."]
        assert row_stats("cpwer", ["it costs 5 dollars", "the red dog runs"], true, "de") == [2, 7]
        assert row_stats("cpwer", ["the red fox runs", "it costs five dollars"], true, "en")[0] == 0

    def test_a_speaker_too_many_or_too_few_is_all_insertions_or_deletions(self):
        assert row_stats("cpwer", ["a b", "c d", "e"], ["a b", "c d"], "de") == [1, 4]
        assert row_stats("cpwer", ["a b"], ["c d", "a b"], "de") == [2, 4]
        assert row_stats("cpwer", [], ["c d", "a b"], "de") == [4, 4]

    def test_characters_are_counted_where_words_are_not_spaced(self):
        assert row_stats("cpwer", ["红狐狸", "你好"], ["你好", "红狐"], "zh") == [1, 4]
