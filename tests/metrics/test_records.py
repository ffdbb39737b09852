"""Records of predictions/*.jsonl and results.jsonl: round trips, and errors for invalid lines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from auris.metrics.records import Prediction, ResultRow, read_records, write_records

PREDICTION = {
    "id": "a-0",
    "task": "asr",
    "language": "en",
    "group": "asr en",
    "metric": "wer",
    "provenance": "real",
    "audio_seconds": 1.5,
    "speaker": None,
    "recording": "a.wav",
    "stats": [1.0, 4.0],
    "hypothesis": "the cat sat\u2028down",
    "reference": "the cat sat down",
}
RESULT = {
    "study": "s",
    "arm": "a",
    "seed": 0,
    "benchmark": "embedded",
    "task": "asr en",
    "split": "test",
    "metric": "wer",
    "value": 0.25,
    "low": 0.0,
    "high": 0.5,
    "n": 1,
    "units": "1 rows",  # what the bootstrap draws
    "detectable": None,  # minimum detectable difference
    "signature": "wer|made up",
    "provenance": "real",
}
JUDGED_PREDICTION = PREDICTION | {"replies": ["8 6", None], "failures": [None, "no reply"]}


@pytest.mark.parametrize(
    ("kind", "line"),
    [(Prediction, PREDICTION), (Prediction, JUDGED_PREDICTION), (ResultRow, RESULT), (ResultRow, RESULT | {"p": 0.25})],
)
def test_written_records_are_read_back_with_keys_in_order(kind, line: dict, tmp_path: Path):
    path = tmp_path / "run" / "file.jsonl"
    write_records(path, [kind(**line)])
    assert path.read_text(encoding="utf-8") == json.dumps(line, ensure_ascii=False) + "\n"
    assert [record.to_json() for record in read_records(path, kind)] == [line]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (
            ResultRow,
            RESULT | {"value": math.nan, "low": math.nan, "high": math.nan, "reason": "no reference"},
        ),
        (Prediction, PREDICTION | {"audio_seconds": math.nan, "stats": [math.nan, 1.0]}),
    ],
)
def test_undefined_numbers_are_null_in_files_and_nan_in_records(kind, fields: dict, tmp_path: Path):
    path = tmp_path / "file.jsonl"
    write_records(path, [kind(**fields)])
    assert "NaN" not in path.read_text() and "null" in path.read_text()
    [record] = read_records(path, kind)
    assert str(record) == str(kind(**fields))  # NaN is not equal to itself


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {key: RESULT[key] for key in RESULT if key not in ("units", "low")},
            "line 2 is not a valid ResultRow .*'low' and 'units'",
        ),
        (RESULT | {"colour": "red"}, "line 2 is not a valid ResultRow .*'colour'"),
    ],
)
def test_the_error_for_an_invalid_line_names_its_number(line: dict, message: str, tmp_path: Path):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in (RESULT, line)))
    with pytest.raises(ValueError, match=message):
        read_records(path, ResultRow)
    path.write_text(json.dumps(RESULT) + "\n" + json.dumps(RESULT)[:-20])
    with pytest.raises(ValueError, match="line 2 is not a valid ResultRow .*; evaluate the run again"):
        read_records(path, ResultRow)
