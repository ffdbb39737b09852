"""Tests of column maps: every table format gives the same rows, and invalid cells make a row unusable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from auris.data.prepare.tables import EmbeddedAudio, files, table
from auris.text import tasks
from support import layouts

ROWS = [
    {"clip": "a", "said": 'the "red" fox', "mood": 3, "who": "ann"},
    {"clip": "b", "said": "a, b; c", "mood": 4, "who": "bob"},
]
COLUMNS = {"audio": "clips/{clip}.wav", "text": "said", "speaker": "who", "emotion": "mood"}
LABELS = {"task": "asr", "language": "en"}
VALUES = {"emotion": {3: "happy", "*": "other"}}


def write_table(folder: Path, kind: str) -> str:
    lines = [ROWS[0].keys(), *(row.values() for row in ROWS)]
    if kind == "csv":
        quoted = (['"' + str(cell).replace('"', '""') + '"' for cell in line] for line in lines)
        path = layouts.text(folder / "t.csv", *(",".join(line) for line in quoted))
        path.write_bytes("\ufeff".encode() + path.read_bytes())  # spreadsheets write a byte order mark
    elif kind == "tsv":
        layouts.text(folder / "t.tsv", *("\t".join(map(str, line)) for line in lines))
    elif kind == "jsonl":
        layouts.text(folder / "t.jsonl", *map(json.dumps, ROWS))
    else:
        pa = pytest.importorskip("pyarrow")
        pa.parquet = pytest.importorskip("pyarrow.parquet")
        pa.parquet.write_table(pa.Table.from_pylist(ROWS), folder / "t.parquet")
    return f"t.{kind}"


def read(root: Path, **settings: Any) -> list[dict[str, Any]]:
    defaults = {"files": "t.csv", "name": "mine", "columns": COLUMNS, "labels": LABELS, "values": VALUES}
    return list(table(root, **defaults | settings))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_table_format_gives_the_same_rows(tmp_path, kind):
    first, second = read(tmp_path, files=write_table(tmp_path, kind))
    assert first == {
        "id": "mine/clips/a",
        "audio": tmp_path / "clips/a.wav",
        "text": 'the "red" fox',
        "speaker": "ann",
        "emotion": "happy",
        **LABELS,
    }
    assert (second["text"], second["emotion"]) == ("a, b; c", "other")


def test_a_pattern_reads_several_tables_and_audio_paths_are_relative_to_each(tmp_path):
    for split in ("train", "test"):
        layouts.text(tmp_path / split / "metadata.csv", "file_name,transcription", "a.wav,hello")
    rows = read(tmp_path, files="*/metadata.csv", columns={"audio": "file_name", "text": "transcription"}, values=None)
    assert [row["audio"] for row in rows] == [tmp_path / split / "a.wav" for split in ("test", "train")]
    assert [row["id"] for row in rows] == ["mine/test/a", "mine/train/a"]
    assert not any("split" in row for row in rows)


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("{split}/metadata.csv", {"train": "train/metadata.csv", "test": "test/metadata.csv"}),
        (
            "data/{split}-0*.csv",
            {"train": "data/train-00000-of-00002.csv", "test-clean": "data/test-clean-00000-of-1.csv"},
        ),
        ("*/{split}.csv", {"x": "any/x.csv"}),
    ],
)
def test_the_split_can_be_part_of_the_path_of_a_table(tmp_path, pattern, paths):
    for path in paths.values():
        layouts.text(tmp_path / path, "audio,text", "a.wav,hello")
    settings = {"files": pattern, "values": None}
    rows = read(tmp_path, columns=None, **settings)
    assert {row["split"] for row in rows} == set(paths)
    assert {row["split"] for row in read(tmp_path, columns=None, **settings, labels={"split": "own"})} == {"own"}


def test_without_a_column_map_columns_become_labels(tmp_path):
    layouts.text(tmp_path / "t.csv", "id,audio,text,offset,duration", "x,a.wav,hello,1.5,2")
    [row] = read(tmp_path, columns=None, values=None)
    assert row == {
        "id": "mine/x",
        "audio": tmp_path / "a.wav",
        "text": "hello",
        "offset": 1.5,
        "duration": 2.0,
        **LABELS,
    }


def test_a_dotted_column_is_a_field_of_a_label_and_structured_labels_are_json(tmp_path):
    cells = ["a.wav", "60", "100", "guitar", '["bright"]', '[{"word": "hi", "start": 0, "end": 0.4}]']
    layouts.text(tmp_path / "t.tsv", "audio\tmidi\tvel\tinst\tquality\twords", "\t".join(cells))
    columns = {"notes.pitch": "midi", "notes.velocity": "vel", "notes.instrument": "inst", "notes.sonic": "quality"}
    columns |= {"audio": "audio", "words": "words"}
    [row] = read(tmp_path, files="t.tsv", columns=columns, labels={"task": "mna"}, values=None)
    assert row["notes"] == {"pitch": 60, "velocity": 100, "instrument": "guitar", "sonic": ["bright"]}
    assert row["words"][0]["end"] == 0.4 and tasks.find_problem(row) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.wav,hello", "t.csv:2: 2 columns, expected 3"),
        ("a.wav,hello,angry", "`emotion` is 'angry', expected a key of layout.values.emotion: happy"),
        (",hello,happy", None),
    ],
)
def test_a_faulty_line_is_an_unusable_row(tmp_path, line, message):
    layouts.text(tmp_path / "t.csv", "audio,text,emotion", line, "b.wav,hello,happy")
    columns = {"audio": "audio", "text": "text", "emotion": "emotion"}
    bad, good = read(tmp_path, columns=columns, values={"emotion": {"happy": "joy"}})
    assert bad.get("problem") == message and good["emotion"] == "joy"
    assert message or "audio" not in bad  # `prepare` reports the missing audio


@pytest.mark.parametrize(
    ("columns", "cell", "message"),
    [
        ({"duration": "x"}, "long", "`duration` is 'long', expected a number"),
        ({"slots": "x"}, "{oops", "`slots` is '{oops', expected JSON"),
        ({"text": "y"}, "a", "there is no column 'y', expected one of audio, x"),
        ({"text": "{x}/{y}"}, "a", "there is no column 'y'"),
    ],
)
def test_a_cell_that_cannot_be_converted_makes_its_row_unusable(tmp_path, columns, cell, message):
    layouts.text(tmp_path / "t.tsv", "audio\tx", f"a.wav\t{cell}")
    [row] = read(tmp_path, files="t.tsv", columns={"audio": "audio", **columns}, values=None)
    assert message in row["problem"] and row["id"].startswith("mine/")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"files": "none.csv"}, FileNotFoundError, "layout.files=none.csv matches no file below"),
        ({"files": "t.xlsx"}, ValueError, "expected a table with the suffix .csv, .tsv, .jsonl, .json, .parquet"),
        ({"columns": {"text": "said"}, "values": None}, ValueError, "layout.columns has no `audio`"),
        (
            {"values": {"mood": {}}},
            ValueError,
            "layout.values has mood, but layout.columns does not: add layout.columns.mood",
        ),
    ],
)
def test_an_invalid_column_map_is_an_error(tmp_path, settings, error, message):
    write_table(tmp_path, "csv")
    layouts.text(tmp_path / "t.xlsx", "not a table")
    with pytest.raises(error, match=message):
        read(tmp_path, **settings)


def test_a_table_that_is_not_utf8_is_an_error(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"audio,text\na.wav,\xff\xfe\n")
    with pytest.raises(ValueError, match=r"t.csv, after line 0: .*codec can't decode"):
        read(tmp_path)


def test_a_json_line_that_is_not_an_object_is_an_unusable_row(tmp_path):
    layouts.text(tmp_path / "t.jsonl", "[1, 2]", "{oops", "")
    first, second = read(tmp_path, files="t.jsonl")
    assert first["problem"] == "t.jsonl:1: expected a JSON object, got list"
    assert second["problem"].startswith("t.jsonl:2: not JSON")


# --- hub datasets ---


def write_hub_dataset(folder: Path) -> None:
    """Write a table as `datasets` does, with embedded audio and classes as numbers."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    sound = layouts.sound(folder / "a.wav").read_bytes()
    rows = [{"audio": {"bytes": sound, "path": "a.wav"}, "label": number} for number in (1, -1)]
    features = {"label": {"names": ["yes", "no"], "_type": "ClassLabel"}, "audio": {"_type": "Audio"}}
    arrow_table = pa.Table.from_pylist(rows)
    arrow_table = arrow_table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (folder / "data").mkdir()
    parquet.write_table(arrow_table, folder / "data/train-00000-of-00001.parquet")


def test_a_hub_dataset_gives_embedded_audio_and_class_names(tmp_path):
    write_hub_dataset(tmp_path)
    columns = {"audio": "audio", "text": "label"}
    first, second = read(tmp_path, files="data/*.parquet", columns=columns, values=None)
    assert isinstance(first["audio"], EmbeddedAudio) and first["audio"].data == (tmp_path / "a.wav").read_bytes()
    assert first["text"] == "no" and first["audio"].suffix == ".wav"
    assert second["text"] == "-1"  # -1 is not a class, so it is not converted
    assert first["id"] == "mine/data/train-00000-of-00001:1"


def test_a_file_that_is_not_parquet_is_an_error(tmp_path):
    pytest.importorskip("pyarrow")
    layouts.text(tmp_path / "t.parquet", "not parquet")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        read(tmp_path, files="t.parquet")


# --- labels in file names ---


def test_labels_can_be_read_from_file_names(tmp_path):
    for name in ("dog/1.wav", "cat/2.flac", "dog/readme.txt"):
        layouts.text(tmp_path / name, "")
    settings = {"name": "mine", "columns": None, "labels": {"task": "sec"}, "values": None}
    rows = list(files(tmp_path, pattern=r"(?P<text>[^/]+)/[^/]+\.(wav|flac)", **settings))
    assert rows == [
        {"id": "mine/cat/2", "audio": tmp_path / "cat/2.flac", "text": "cat", "task": "sec"},
        {"id": "mine/dog/1", "audio": tmp_path / "dog/1.wav", "text": "dog", "task": "sec"},
    ]
    with pytest.raises(FileNotFoundError, match=r"matches none of the 3 files below .* \(for example cat/2.flac\)"):
        list(files(tmp_path, pattern="nothing", **settings))
    with pytest.raises(ValueError, match="layout.pattern="):
        list(files(tmp_path, pattern="(", **settings))
