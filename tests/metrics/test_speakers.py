"""Scores of rows with several speakers (DER, JER, cpWER) equal values computed by hand."""

from __future__ import annotations

import warnings

import pytest

from auris.metrics.measures import row_stats, score


def turn(speaker: str, start: float, end: float) -> dict:
    return {"speaker": speaker, "start": start, "end": end}


REFERENCE = [turn("ann", 0.0, 4.0), turn("bob", 4.0, 8.0), turn("ann", 7.0, 10.0)]  # 11 s of speech with 1 s of overlap


class TestTurns:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("pyannote.metrics")

    def test_speaker_names_do_not_change_the_score(self):
        predicted = [{**t, "speaker": {"ann": "speaker 2", "bob": "speaker 1"}[t["speaker"]]} for t in REFERENCE]
        assert row_stats("der", predicted, REFERENCE, "en") == pytest.approx([0.0, 11.0])
        assert row_stats("jer", predicted, REFERENCE, "en") == pytest.approx([0.0, 2.0])

    def test_missed_false_and_confused_speech_add_up(self):
        predicted = [turn("1", 0.0, 5.0), turn("2", 5.0, 8.0), turn("1", 8.0, 11.0)]
        # From 4 to 5 s, bob is taken for ann. From 7 to 8 s, ann is missed. From 10 to 11 s, there is a false alarm.
        assert row_stats("der", predicted, REFERENCE, "en") == pytest.approx([3.0, 11.0])
        # ann: 7 s of reference and 2 s of false alarm are 9 s, of which 2 s (false) and 1 s (missed) are wrong: 3/9.
        # bob: 1 s of 4 s is missed: 1/4.
        assert row_stats("jer", predicted, REFERENCE, "en") == pytest.approx([3 / 9 + 1 / 4, 2.0])

    def test_an_answer_without_turns_misses_all_speech(self):
        assert row_stats("der", [], REFERENCE, "en") == pytest.approx([11.0, 11.0])
        assert row_stats("jer", None, REFERENCE, "en") == pytest.approx([2.0, 2.0])

    def test_simultaneous_turns_are_scored_separately_without_a_warning(self):
        reference = [turn("a", 0.0, 2.0), turn("b", 0.0, 2.0)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert row_stats("der", reference, reference, "en") == pytest.approx([0.0, 4.0])
            assert row_stats("der", reference[:1], reference, "en") == pytest.approx([2.0, 4.0])

    def test_recordings_are_weighted_by_their_seconds_of_speech(self):
        rows = [row_stats("der", [], REFERENCE, "en"), row_stats("der", REFERENCE, REFERENCE, "en")]
        assert score("der", rows) == pytest.approx(0.5)


class TestWords:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("scipy")

    def test_the_best_pairing_of_speakers_is_scored(self):
        reference = ["the red fox runs", "It costs $5."]
        assert row_stats("cpwer", ["it costs 5 dollars", "the red dog runs"], reference, "de") == [2, 7]
        assert row_stats("cpwer", ["the red fox runs", "it costs five dollars"], reference, "en")[0] == 0

    def test_an_extra_speaker_adds_insertions_and_a_missing_one_adds_deletions(self):
        assert row_stats("cpwer", ["a b", "c d", "e"], ["a b", "c d"], "de") == [1, 4]
        assert row_stats("cpwer", ["a b"], ["c d", "a b"], "de") == [2, 4]
        assert row_stats("cpwer", [], ["c d", "a b"], "de") == [4, 4]

    def test_chinese_is_counted_in_characters(self):
        assert row_stats("cpwer", ["红狐狸", "你好"], ["你好", "红狐"], "zh") == [1, 4]
