"""Tests of rows of the official evaluation files: each becomes a task row, and faults are reported."""

from __future__ import annotations

import pytest

from auris.data.rows import Clip
from support.manifests import read_fields


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({"source": "librispeech_test_clean", "gt": "hi"}, {"task": "asr", "language": "en", "text": "hi"}),
        ({"source": "aishell1_test", "gt": "你好"}, {"task": "asr", "language": "zh", "text": "你好"}),
        ({"source": "cv15_asr_fr", "gt": "salut"}, {"task": "asr", "language": "fr", "text": "salut"}),
        ({"source": "cv15_asr_yue", "gt": "佢哋"}, {"task": "asr", "language": "yue", "text": "佢哋"}),
        (
            {"source": "fleurs", "gt": "hi", "prompt": "Detect the language and recognize the speech: <|zh|>"},
            {"task": "asr", "language": "zh", "text": "hi"},
        ),
        (
            {"source": "covost2_en_zh_test", "gt": "你好"},
            {"task": "s2tt", "language": "en", "target_language": "zh", "text": "你好"},
        ),
        ({"source": "meld", "gt": "joy"}, {"task": "er", "text": "joy"}),
        (
            {"source": "clothoaqa_val", "question": "Where is this?", "gt": "road"},
            {"task": "aqa", "question": "Where is this?", "text": "road"},
        ),
        ({"source": "clotho_test", "gt": "A car."}, {"task": "aac", "caption_style": "clotho", "text": "A car."}),
        (
            {"source": "audiocaps_test", "gt": ["A car.", "A loud car."]},
            {"caption_style": "audiocaps", "text": "A car.", "references": ["A car.", "A loud car."]},
        ),
    ],
)
def test_rows_of_the_official_evaluation_files_become_task_rows(tmp_path, fields, labels):
    row = read_fields(tmp_path, {"audio": "a.wav", **fields})
    assert row.problem is None and row.clips == (Clip(tmp_path / "a.wav"),)
    assert row.labels.items() >= labels.items() and "gt" not in row.labels


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"source": "mystery_test", "gt": "x"},
            "`source` is 'mystery_test', expected it to start with one of librispeech",
        ),
        ({"gt": "x"}, "`source` is None"),
        ({"source": "covost2_test", "gt": "x"}, "expected two languages"),
        ({"source": "cv15_asr_ru", "gt": "x"}, "task 'asr' needs the label `language`"),
        ({"source": "meld", "gt": ["joy", "anger"]}, "label `text` is list"),
        ({"source": "clotho_test", "gt": []}, "label `text` is list"),
        ({"source": "clotho_test", "gt": ["one", 2]}, "`references[1]` is 2"),
    ],
)
def test_faults_in_official_evaluation_rows_are_reported(tmp_path, fields, message):
    assert message in read_fields(tmp_path, {"audio": "a.wav", **fields}).problem
