"""Tests of manifests: rows decoded on access, the cached index, changed files, and hostile content."""

from __future__ import annotations

import itertools
import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from auris.data import row_index
from auris.data.lengths import measure_lengths
from auris.data.manifests import JoinedRows, Selection, read_manifests, row_keys
from auris.data.rows import FieldMap, Row, row_key
from auris.data.samples import ChatSamples
from auris.text.chat import Qwen2AudioChat
from support.manifests import make_sample_builder, speech_rows, write_manifest

ASR = {"task": "asr", "language": "en", "text": "hello"}


def read(path: Path, cache_dir: Path | None = None, **entry: Any) -> Sequence[Row]:
    (manifest,) = read_manifests([{"path": str(path), **entry}], cache_dir=cache_dir)
    return manifest.rows


def write_rows(folder: Path, n: int = 6) -> Path:
    return write_manifest(folder / "rows.jsonl", [{"id": f"r{k}", "audio": f"{k}.wav", **ASR} for k in range(n)])


def test_rows_behave_like_a_sequence(tmp_path):
    rows = read(write_rows(tmp_path))
    ids = [f"r{k}" for k in range(6)]
    assert [row.id for row in rows] == ids == [rows[k].id for k in range(6)]
    assert rows[-1] == rows[5] and [row.id for row in rows[1:5:2]] == ["r1", "r3"]
    for index in (6, -7):
        with pytest.raises(IndexError):
            rows[index]
    assert pickle.loads(pickle.dumps(rows))[3] == rows[3]


def test_rows_of_several_manifests_behave_like_one_sequence(tmp_path):
    rows = read(write_rows(tmp_path))
    joined = JoinedRows([rows, rows[:2], (), rows])
    ids = [row.id for row in joined]
    assert len(joined) == 14 == len(ids) and ids == [joined[k].id for k in range(14)]
    assert joined[-1].id == "r5" and [row.id for row in joined[5:8]] == ids[5:8]
    with pytest.raises(IndexError):
        joined[14]


def test_a_row_is_decoded_only_on_access(tmp_path, monkeypatch):
    decoded = []
    decode = row_index.Lines.read_record
    monkeypatch.setattr(row_index.Lines, "read_record", lambda self, n: decoded.append(n) or decode(self, n))
    rows = read(write_rows(tmp_path), limit=5)
    assert len(rows) == 5 and decoded == []
    assert rows[3].id == "r3" and decoded == [3]


def test_row_keys_follow_from_the_ids_even_if_an_id_was_replaced(tmp_path):
    """A missing or repeated id is replaced by file name and line number. A row key is a hash of the id."""
    lines = [{"id": "a", **ASR}, {"id": "a", **ASR}, {"id": 7, **ASR}, {"id": None, **ASR}, ASR]
    path = write_manifest(tmp_path / "rows.jsonl", lines)
    with path.open("a") as file:
        file.write("not JSON\n")
    rows = read(path)
    assert [row.id for row in rows] == ["a", "rows.jsonl:2", "7", "rows.jsonl:4", "rows.jsonl:5", "rows.jsonl:6"]
    assert row_keys(rows).tolist() == [row_key(row.id) for row in rows] == row_keys(list(rows)).tolist()


def test_the_index_is_cached_and_rebuilt_if_file_or_field_map_changes(tmp_path, monkeypatch):
    path, cache = write_rows(tmp_path), tmp_path / "cache"
    first = [row.id for row in read(path, cache)]
    with monkeypatch.context() as patch:
        patch.setattr(row_index.Lines, "scan", lambda self: pytest.fail("scanned although cached"))
        assert [row.id for row in read(path, cache)] == first
    assert [row.labels["task"] for row in read(path, cache, labels={"task": "sec"})] == ["sec"] * 6
    write_manifest(path, [{"id": "new", **ASR}])
    assert [row.id for row in read(path, cache)] == ["new"]
    assert len(list(cache.glob("rows-*.npz"))) == 3


def test_a_file_that_changes_during_a_run_is_an_error(tmp_path):
    path = write_rows(tmp_path)
    rows = read(path)
    assert rows[0].id == "r0"
    os.utime(path, ns=(1, 1))
    assert rows[1].id == "r1"  # a new modification time alone is not an error
    with path.open("a") as file:
        file.write(json.dumps({"id": "more", **ASR}) + "\n")
    with pytest.raises(ValueError, match=r"rows.jsonl has changed since its rows were planned"):
        rows[2]


def test_columns_are_renamed_and_labels_added(tmp_path):
    path = write_manifest(tmp_path / "rows.jsonl", [{"wav": "a.wav", "sentence": "hi", "text": "not this"}])
    field_map = {"columns": {"audio": "wav", "text": "sentence"}, "labels": {"task": "asr", "language": "en"}}
    (row,) = read(path, **field_map, tasks=["asr"])
    assert row.problem is None and row.clips[0].path == tmp_path / "a.wav"
    assert row.labels == {"text": "hi", "task": "asr", "language": "en"}


# --- hostile rows ---

LINES = {
    "not UTF-8": b'{"id": "\xff\xfe", "task": "asr"}',
    "half a character": rb'{"id": "\ud800", "task": "asr", "audio": "a.wav", "language": "en", "text": "x"}',
    "half a character in a text": rb'{"id": "h", "task": "asr", "audio": "a.wav", "language": "en", "text": "\udc00x"}',
    "deeply nested": b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of thousands of digits": b'{"id": ' + b"9" * 10_000 + b"}",
    "a BOM": b'\xef\xbb\xbf{"id": "bom", "task": "asr"}',
    "nothing but a number": b"17",
    "a zero byte": b'{"id": "zero", "task": "asr\x00"}',
    "an infinite id": b'{"id": 1e999, "task": Infinity}',
}


@pytest.mark.parametrize("kind", LINES)
def test_a_hostile_line_makes_only_its_own_row_unusable(tmp_path, kind):
    good = json.dumps({"id": "good", "audio": "a.wav", "duration": 1.0, **ASR}).encode()
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([LINES[kind], good, b""]))
    rows = read(tmp_path / "rows.jsonl")
    bad, usable = rows
    assert bad.problem and bad == rows[0] and (usable.id, usable.problem) == ("good", None)
    measured = measure_lengths(read_manifests([tmp_path / "rows.jsonl"]), make_sample_builder(), tmp_path / "cache")
    assert (measured.tokens > 0).tolist() == [False, True]
    measured.problems[0].encode()  # the message can be written as UTF-8


def test_a_line_of_a_text_file_that_is_not_utf8_is_unusable(tmp_path):
    (tmp_path / "lines.txt").write_bytes(b"one\n\xff\xfe\ntwo\n")
    rows = read(tmp_path / "lines.txt")
    assert [row.problem is None for row in rows] == [True, False, True] and "not UTF-8" in rows[1].problem


PATHS = [
    "a\0b.wav",
    "x" * 5000,
    "../" * 2000 + "etc/passwd",
    ".",
    "/dev/zero",
    "/",
    "~",
    "con\nwav",
    "a.wav/b.wav",
    "é" * 300,
]


@pytest.mark.parametrize("index", range(len(PATHS)))
def test_a_hostile_path_makes_only_its_own_row_unusable(tmp_path, index):
    rows = speech_rows(tmp_path, [0.4], with_duration=False)
    bad = {**rows[0], "id": "bad", "audio": PATHS[index]}
    path = write_manifest(tmp_path / "rows.jsonl", [bad, *rows])
    measured = measure_lengths(read_manifests([path]), make_sample_builder(), tmp_path / "cache")
    assert (measured.tokens > 0).tolist() == [False, True] and list(measured.problems) == [0]
    assert measured.problems[0].isprintable() and len(measured.problems[0]) < 12_000


VALUES = [None, True, -1, 1e308, 10**30, float("nan"), "", "\0", "x" * 10_000, [], {}, [[]], [{}], {"a": {"b": []}}]
FIELDS = "id audio task language target_language text question words notes intent slots duration offset key mode"
FIELDS += " messages conversations chosen rejected rejected_response rejected_messages prompt audios gt source system"


def test_a_wrong_type_in_any_field_raises_no_exception(tmp_path):
    question = {"role": "user", "content": [{"type": "audio", "audio": "r0.wav"}]}
    messages = [question, {"role": "assistant", "content": "Rain."}]
    bases: list[dict[str, Any]] = [
        {"audio": "r0.wav", **ASR},
        *(
            {"audio": "r0.wav", "task": task, "language": "en", "text": "x"}
            for task in ("srwt", "mna", "sf", "aqa", "s2tt")
        ),
        {"messages": messages},
        {"messages": messages[:1], "chosen": "a", "rejected": "b"},
        {
            "conversations": [{"from": "human", "value": "<audio>?"}, {"from": "gpt", "value": "x"}],
            "audios": ["r0.wav"],
        },
        {"prompt": "x", "chosen": "a", "rejected": "b"},
        {"audio": "r0.wav", "gt": "x", "source": "librispeech_en"},
    ]
    speech_rows(tmp_path, [0.4])
    rows = [{**base, field: value} for base, field, value in itertools.product(bases, FIELDS.split(), VALUES)]
    nested = [
        {"role": role, "content": value} for role in ("user", 3) for value in (*VALUES, [{"audio": v} for v in VALUES])
    ]
    rows += [{"messages": [message, messages[1]]} for message in nested]
    path = write_manifest(tmp_path / "rows.jsonl", rows)
    manifests = read_manifests([path])
    read_rows = manifests[0].rows
    assert isinstance(read_rows, Selection) and len(read_rows) == len(rows)
    for settings in ({"long_audio": "skip"}, {"long_audio": "window", "kind": ChatSamples, "prompt": Qwen2AudioChat()}):
        measured = measure_lengths(manifests, make_sample_builder(**settings), tmp_path / "cache")
        assert len(measured.tokens) == len(rows)
        assert np.array_equal(measured.tokens == 0, np.isin(np.arange(len(rows)), list(measured.problems)))


def test_an_index_built_in_parallel_equals_one_built_in_one_process(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"id": f"r{n}", **ASR, "task": ["asr", "sec", "no"][n % 3]}) for n in range(40)]
    path.write_text("\n\n".join([*lines[:20], "not JSON", '{"text": "\u2028 \u0085"}', *lines[20:]]) + "\n {}")
    expected = read(path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    for size in (1, 100, 1000):
        monkeypatch.setattr(row_index, "_PIECE_BYTES", size)
        actual = read(path)
        for name, column in vars(expected.row_index.columns).items():
            assert np.array_equal(column, vars(actual.row_index.columns)[name]), name
        assert list(actual) == list(expected)
    (tmp_path / "empty.jsonl").write_text("")
    assert len(row_index.Lines(tmp_path / "empty.jsonl", FieldMap(), None)) == 0


@pytest.mark.parametrize("value", [3, None])
def test_an_unknown_key_of_an_entry_is_an_error_even_if_its_value_is_null(tmp_path, value):
    with pytest.raises(ValueError, match=r"data.train: unknown key \['wieght'\]; expected path, weight"):
        read_manifests([{"path": write_rows(tmp_path), "wieght": value}])


def test_an_entry_that_is_neither_a_path_nor_a_mapping_is_an_error():
    with pytest.raises(ValueError, match=r"data.train: \['a.jsonl'\] is no file; expected a path, or {path: FILE"):
        read_manifests([["a.jsonl"]])


@pytest.mark.parametrize("key", ["data.valid", "data.test"])
def test_a_weight_outside_of_training_data_is_an_error(tmp_path, key):
    with pytest.raises(ValueError, match=f"{key}: weight=2 has no effect, only data.train is a mix"):
        read_manifests([{"path": write_rows(tmp_path), "weight": 2}], key=key)
