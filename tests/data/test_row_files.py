"""Tests of files of rows: JSON lines and arrays are read, and any other file is refused with what it is."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from auris.data import row_index
from auris.data.manifests import read_manifests
from auris.errors import UserError
from support.manifests import speech_rows

BOM = b"\xef\xbb\xbf"
ROWS = [
    {"id": f"r{n}", "audio": "a.wav", "task": "asr", "language": "en", "text": text}
    for n, text in enumerate(["the cat", "日本語, ]", 'a "quote" \\ ['])
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def read(path: Path, content: bytes, cache_dir: Path | None = None):
    path.write_bytes(content)
    (manifest,) = read_manifests([path], cache_dir=cache_dir)
    return manifest.rows


def array(**options) -> bytes:
    return json.dumps(ROWS, **options).encode()


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        BOM + LINES,
        LINES.replace(b"\n", b"\r\n"),
        BOM + b"\r\n" + LINES,
        LINES + BOM + b"",  # files with byte order marks, joined by `cat`
        array(),
        array(ensure_ascii=False),
        array(ensure_ascii=False, indent=2).replace(b"\n", b"\r\n"),
        BOM + b" \n" + array(ensure_ascii=False, indent=1) + b"\n\n",
        array(separators=(",", ":")),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_rows_are_the_same_in_every_file_of_rows(tmp_path, name, content):
    for _ in range(2):  # computed, then read from the cache
        rows = read(tmp_path / name, content, tmp_path / "cache")
        usable = [row for row in rows if row.problem is None]
        assert [(row.id, row.labels["text"]) for row in usable] == [(row["id"], row["text"]) for row in ROWS]
        assert rows[1].labels == list(rows)[1].labels


def test_a_damaged_first_row_does_not_make_the_file_another_kind(tmp_path):
    rows = read(tmp_path / "rows.jsonl", b"damaged\n" + LINES)
    assert [row.problem is None for row in rows] == [False, True, True, True]


def test_a_row_of_an_array_without_an_id_is_named_by_its_place(tmp_path):
    rows = read(tmp_path / "rows.json", json.dumps([{"text": "a", "task": "text"}] * 2 + [7]).encode())
    assert [(row.id, row.problem) for row in rows] == [
        ("rows.json:1", None),
        ("rows.json:2", None),
        ("rows.json:3", "expected a JSON object, got int"),
    ]


def test_an_array_is_read_by_its_positions_in_the_file(tmp_path, monkeypatch):
    """A row is read by one short read, as in a file of JSON lines."""
    rows = read(tmp_path / "rows.json", array(ensure_ascii=False))
    lengths = []
    pread = row_index.os.pread
    monkeypatch.setattr(row_index.os, "pread", lambda *args: lengths.append(args[1]) or pread(*args))
    assert rows[2].id == "r2" and lengths[0] < len(array(ensure_ascii=False)) / 2


def test_a_text_file_may_begin_with_a_byte_order_mark(tmp_path):
    rows = read(tmp_path / "a.txt", BOM + "[日\nb\n".encode())
    assert [row.labels["text"] for row in rows] == ["[日", "b"]


DATASET_INFO = {"mine": {"file_name": "train.json", "columns": {"prompt": "q"}}, "hub": {"hf_hub_url": "a/b"}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", gzip.compress(LINES), "compressed with gzip: decompress it with `gunzip --keep`"),
        ("a.jsonl.gz", gzip.compress(LINES), "compressed with gzip"),
        ("a.json.gz", gzip.compress(array()), "compressed with gzip"),
        ("a.jsonl.bz2", bz2.compress(LINES), "compressed with bzip2"),
        ("a.jsonl.xz", lzma.compress(LINES), "compressed with xz"),
        ("a.jsonl", LINES.decode().encode("utf-16"), "encoded in UTF-16"),
        ("a.jsonl", LINES.decode().encode("utf-16-be"), "encoded in UTF-16"),
        ("a.json", array().decode().encode("utf-16-le"), "encoded in UTF-16"),
        ("a.txt", LINES.decode().encode("utf-16"), "encoded in UTF-16"),
        ("a.jsonl", b"PAR1...", "a Parquet file"),
        ("a.csv", b"audio,text\n", "a table: convert it with `auris prepare layout=table`"),
        ("a.json", json.dumps(DATASET_INFO).encode(), "describes data sets for LLaMA-Factory"),
        ("dataset_info.json", json.dumps(DATASET_INFO, indent=2).encode(), "describes data sets for LLaMA-Factory"),
        ("a.json", json.dumps({"data": ROWS}, indent=2).encode(), "one JSON object over several lines"),
        ("a.json", array()[:-20], "a JSON array that is damaged after 2 rows"),
        ("a.json", array().replace(b"}, {", b"} {"), "damaged after 1 row: expected a comma or ]"),
        ("a.json", array(indent=1) + array(indent=1), "continues after the end of a JSON array"),
        ("a.json", b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS), "JSON objects over several lines"),
        ("a.arrow", b"ARROW1\0\0\xff\xff\xff\xff", "starts with 'ARROW1"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\nsize 12\n", "starts with 'version https://git-lfs"),
        ("A.CSV", b"audio,text\n", "a table"),
        ("a.json", b"[]", "has no rows"),
        ("a.json", b"", "has no rows"),
        ("a.jsonl", b"\n \n", "has no rows"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_sentence(tmp_path, name, content, message):
    with pytest.raises(UserError) as error:
        read(tmp_path / name, content)
    assert message in str(error.value) and name in str(error.value) and len(str(error.value)) < 300


def test_prepare_reads_the_same_files(tmp_path):
    from auris.data.prepare.toolkits import manifest

    (tmp_path / "rows.json").write_text(json.dumps(speech_rows(tmp_path, [0.1, 0.2])), encoding="utf-8")
    assert [row["id"] for row in manifest(tmp_path, files="*.json")] == ["r0", "r1"]
    (tmp_path / "rows.json").write_bytes(gzip.compress(LINES))
    with pytest.raises(UserError, match="compressed with gzip"):
        list(manifest(tmp_path, files="*.json"))


def test_the_shared_files_are_read(shared_data):
    for name, ids in (("manifests/array.json", ["a", "b"]), ("manifests/bom.jsonl", ["a", "b"])):
        (manifest,) = read_manifests([shared_data / "faults" / name])
        assert [(row.id, row.problem) for row in manifest.rows] == [(row_id, None) for row_id in ids]
