"""Tests of clips over 30 s at inference: overlapping windows, and transcripts merged at their common words."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auris.data.long_audio import OVERLAP, WINDOW, merge_transcripts, overlapping_windows, split_row
from auris.data.rows import Clip, Row


def accept_all(row: Row) -> bool:
    return True


@pytest.mark.parametrize("seconds", [30.01, 31.0, 55.0, 55.01, 80.0, 137.7])
def test_windows_cover_the_clip_and_overlap(seconds: float):
    spans = overlapping_windows(seconds)
    assert spans[0][0] == 0 and sum(spans[-1]) == pytest.approx(seconds)
    for (offset, duration), (next_offset, _) in itertools.pairwise(spans):
        assert duration == WINDOW
        assert OVERLAP - 2e-3 <= offset + duration - next_offset < WINDOW
    assert (
        len(overlapping_windows(55.0)) == 2 and len(overlapping_windows(55.01)) == 3 and overlapping_windows(30.0) == []
    )


def test_only_a_long_row_is_split_into_windows(tmp_path: Path):
    soundfile.write(tmp_path / "long.wav", np.zeros(40 * 8000), 8000)
    soundfile.write(tmp_path / "short.wav", np.zeros(8000), 8000)
    long = Row("a", (Clip(tmp_path / "long.wav"),), {"task": "asr"})
    assert [(r.id, r.clips[0].offset, r.clips[0].duration) for r in split_row(long, accept_all)] == [
        ("a#0", 0.0, 30.0),
        ("a#1", 10.0, 30.0),
    ]
    segment = Row("b", (Clip(tmp_path / "long.wav", offset=5.0, duration=34.0),), {"task": "asr"})
    assert [r.clips[0].offset for r in split_row(segment, accept_all)] == [5.0, 9.0]
    short = Row("c", (Clip(tmp_path / "short.wav"),), {"task": "asr"})
    assert split_row(short, accept_all) == [short]
    assert split_row(long, lambda row: False) == [long]


def test_transcripts_are_merged_at_their_common_words():
    transcripts = ["the red fox ran over the", "Over the hill, and then it", "and then it slept."]
    assert merge_transcripts(transcripts, "en") == "the red fox ran over the hill, and then it slept."


def test_a_word_cut_by_a_window_is_taken_from_the_other_window():
    assert (
        merge_transcripts(["we went to the old harb", "the old harbour at dawn"], "en")
        == "we went to the old harbour at dawn"
    )


def test_transcripts_without_common_words_are_concatenated():
    assert merge_transcripts(["one two", "three four"], "en") == "one two three four"
    assert merge_transcripts(["", "three four"], "en") == "three four" and merge_transcripts(["one", ""], "en") == "one"


def test_transcripts_in_languages_without_spaces_are_merged_by_character():
    assert merge_transcripts(["红狐狸在花园里", "花园里睡觉"], "zh") == "红狐狸在花园里睡觉"


def test_a_common_word_far_from_the_overlap_is_ignored():
    first = "start " + " ".join(f"w{n}" for n in range(60)) + " over the"
    second = "over the " + " ".join(f"v{n}" for n in range(60)) + " start"
    assert merge_transcripts([first, second], "en") == first + second.removeprefix("over the")
