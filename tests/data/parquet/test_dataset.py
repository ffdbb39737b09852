"""Tests of Parquet data: shards hold the rows of their manifest, damage is found, and other Parquet files are read."""

from __future__ import annotations

import datetime
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from rich.console import Console
from torch.utils.data import DataLoader

from auris.data.batches import StepDataset, build_pack
from auris.data.datamodule import AudioDataModule
from auris.data.lengths import measure_lengths
from auris.data.manifests import Manifest, Selection, read_manifests
from auris.data.parquet import reader as parquet
from auris.data.parquet import writer
from auris.data.rows import Row
from auris.data.samples import ChatSamples
from auris.data.shards import pack as pack_shards
from auris.errors import AudioError, RowError, UserError
from auris.text.chat import Qwen2AudioChat
from auris.text.prompts import TagPrompt
from support.manifests import make_sample_builder, speech_rows, write_manifest, write_wave

QUIET = Console(quiet=True)
ASR = {"task": "asr", "language": "en", "text": "the cat sat"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 23 rows: whole files, segments, dialogues, and rows with faults. The last shard will not be full."""
    folder = tmp_path_factory.mktemp("speech")
    rows = speech_rows(folder, [0.3 + 0.03 * n for n in range(18)], with_duration=False)
    rows[1]["duration"] = 0.33
    rows[2] |= {"offset": 0.05, "duration": 0.2}
    rows[3] |= {"offset": 0.1}
    rows[4]["audio"] = "gone.wav"
    rows[5] |= {"audio": "gone.wav", "duration": 0.4}
    rows[6]["text"] = 3
    rows[7]["id"] = "r0"
    (folder / "r8.wav").write_bytes(b"RIFF, but not audio")
    rows[9] |= {"offset": 7.0, "duration": 0.2}
    del rows[10]["id"]
    rows[11]["audio"] = ["r11.wav", "r12.wav"]
    write_wave(folder / "r13.flac", 0.5, rate=44_100)
    rows[13]["audio"] = "r13.flac"
    clip = {"type": "audio", "audio": "r2.wav", "offset": 0.1, "duration": 0.2}
    question = {"role": "user", "content": [clip, {"type": "text", "text": "What?"}, {"audio_url": "r3.wav"}]}
    rows += [
        {"id": "d", "messages": [question, {"role": "assistant", "content": "Rain."}]},
        {"id": "p", "messages": [question], "chosen": "Rain.", "rejected": "Snow."},
        {"id": "s", "messages": [{"role": "user", "content": "<audio>What?"}], "audios": ["r4.wav"], "chosen": "a"},
        {"id": "t", "task": "text", "text": "the mat"},
    ]
    path = write_manifest(folder / "rows.jsonl", rows)
    with path.open("a") as lines:
        lines.write("{not JSON\n")
    return path


@pytest.fixture(scope="module")
def packed(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    pack_shards(str(manifest), out, rows_per_shard=5, processes=1, console=QUIET)
    return out


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    """Copy the shards, so that a test can damage them."""
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def read(path: str | Path, **entry: Any) -> Manifest:
    (manifest,) = read_manifests([{"path": str(path), **entry}])
    return manifest


def build_row(row: Row) -> tuple[Any, ...]:
    """Return tokens, frames and features of a row, or the message of the error as the only element."""
    kind = {"prompt": Qwen2AudioChat(), "kind": ChatSamples} if "messages" in row.labels else {}
    try:
        if row.problem:
            raise RowError(row.problem)
        sample = make_sample_builder(long_audio="skip", **kind).build(row, 0, 0)
    except (RowError, AudioError) as error:
        return (str(error),)
    return sample.ids.tolist(), sample.frames, [mel.tolist() for mel in sample.mels]


def summarise(row: Row) -> tuple[str, str | None, int]:
    return row.id, row.problem, 0 if row.problem else len(row.clips)  # shards store no clips of a row with a problem


# --- the same rows ---


def test_rows_of_shards_equal_those_of_the_manifest_when_iterated_indexed_or_sliced(manifest, packed):
    expected, shard_rows = read(manifest).rows, read(packed).rows
    assert len(shard_rows) == 23 and isinstance(shard_rows, Selection)
    for rows in (list(shard_rows), [shard_rows[n] for n in range(23)], shard_rows[:]):
        assert [summarise(row) for row in rows] == [summarise(row) for row in expected]
        assert [(row.id, row.problem, row.labels.get("task")) for row in rows] == [
            (row.id, row.problem, row.labels.get("task")) for row in expected
        ]
        usable = [(a, b) for a, b in zip(rows, expected, strict=True) if not b.problem]
        assert len(usable) == 19 and all(a.labels == b.labels for a, b in usable)


def test_samples_of_shards_equal_those_of_the_manifest(manifest, packed):
    manifest_rows, shard_rows = read(manifest).rows, read(packed).rows
    expected = [build_row(row) for row in manifest_rows]
    assert sum(len(sample) == 3 for sample in expected) == 14
    actual = [build_row(row) for row in shard_rows]
    different = [n for n, (a, b) in enumerate(zip(actual, expected, strict=True)) if a != b]
    assert different == []


def test_lengths_and_hashes_of_row_ids_equal_those_of_the_manifest_and_need_only_the_index(manifest, packed, tmp_path):
    index_only = tmp_path / "index"
    shutil.copytree(packed, index_only)
    for path in index_only.glob("shard-*.parquet"):
        path.write_bytes(b"\0" * path.stat().st_size)
    samples = make_sample_builder(long_audio="skip")
    expected = measure_lengths([read(manifest)], samples, tmp_path / "a")
    actual = measure_lengths([read(index_only)], samples, tmp_path / "b")
    assert expected.tokens.tolist() == actual.tokens.tolist() and expected.problems == actual.problems
    assert np.array_equal(read(manifest).rows.row_keys, read(packed).rows.row_keys)


def test_training_packs_from_shards_equal_those_from_the_manifest_with_and_without_workers(manifest, packed, tmp_path):
    def module(path: Path, workers: int = 0) -> AudioDataModule:
        data = AudioDataModule(
            samples=make_sample_builder(long_audio="skip"),
            valid_samples=make_sample_builder(long_audio="skip"),
            train=[{"path": str(path), "tasks": ["asr"]}],
            valid=[{"path": str(path), "tasks": ["asr"], "limit": 2}],
            max_steps=4,
            rows_per_step=6,
            token_budget=200,
            num_workers=workers,
            cache_dir=str(tmp_path / path.name),
        )
        data.setup("fit")
        return data

    from_manifest, from_shards = module(manifest), module(packed)
    assert (packed / "shards.json").is_file()
    dataset = StepDataset(from_shards.rows, from_shards.plan, from_shards.samples, 1, 0)
    loader = DataLoader(dataset, sampler=range(4), batch_size=None, collate_fn=list, num_workers=2)
    for step, packs in enumerate(loader):
        expected = StepDataset(from_manifest.rows, from_manifest.plan, from_manifest.samples, 1, 0)[step]
        assert [pack["rows"] for pack in packs] == [pack["rows"] for pack in expected]
        for a, b in zip(packs, expected, strict=True):
            assert torch.equal(a["ids"], b["ids"]) and torch.equal(a["mel"], b["mel"]) and a["skipped"] == b["skipped"]


def test_tasks_and_limit_select_rows_of_shards(packed):
    rows = read(packed, tasks=["chat", "preference"]).rows
    assert [row.id for row in rows] == ["d", "p", "s"]
    assert [row.id for row in read(packed, limit=1).rows] == ["r0", "d", "p", "t", "rows.jsonl:23"]


def test_repacking_shards_gives_the_same_rows(packed, tmp_path):
    pack_shards(str(packed), tmp_path / "again", rows_per_shard=4, processes=1, console=QUIET)
    expected, actual = read(packed).rows, read(tmp_path / "again").rows
    assert [(row.id, build_row(row)) for row in expected] == [(row.id, build_row(row)) for row in actual]


def test_shards_are_read_from_a_url(packed):
    memory = fsspec.filesystem("memory")
    memory.put(str(packed), "/bucket/shards", recursive=True)
    try:
        for url in ("memory://bucket/shards", f"file://{packed}"):
            rows = read(url).rows
            assert [build_row(row) for row in rows] == [build_row(row) for row in read(packed).rows]
    finally:
        memory.rm("/bucket", recursive=True)


def test_the_numbers_of_open_files_and_tables_are_limited(packed, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_OPEN_FILES", 2)
    rows = read(packed).rows
    for n in np.random.default_rng(0).permutation(23):
        build_row(rows[int(n)])
    reader = rows.row_index.reader
    assert (
        reader._open_cached.cache_info().currsize <= 2
        and reader._load_cached.cache_info().currsize <= parquet.MAX_TABLES
    )


def test_rows_of_shards_can_be_pickled(packed):
    rows = read(packed).rows
    build_row(rows[0])
    unpickled = pickle.loads(pickle.dumps(rows))
    assert [build_row(row) for row in unpickled] == [build_row(row) for row in rows]


def test_row_groups_of_a_shard_are_limited_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "GROUP_BYTES", 30_000)
    path = write_manifest(tmp_path / "rows.jsonl", speech_rows(tmp_path, [0.4] * 10))  # 12,844 bytes each
    pack_shards(str(path), tmp_path / "out", rows_per_shard=100, processes=1, console=QUIET)
    metadata = pq.read_metadata(tmp_path / "out" / "shard-00000.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [3, 3, 3, 1]


# --- damage ---


def test_a_flipped_byte_never_changes_a_row_without_an_error(packed, copy):
    path = copy / "shard-00000.parquet"
    content, expected_rows = path.read_bytes(), [build_row(row) for row in read(packed).rows[:5]]
    n_detected = 0
    for position in [*np.random.default_rng(0).integers(len(content), size=150).tolist(), 0, len(content) - 1]:
        flipped = bytearray(content)
        flipped[position] ^= 0x41
        path.write_bytes(flipped)
        rows = read(copy).rows
        for number, expected in enumerate(expected_rows):
            actual = build_row(rows[number])
            if actual != expected:
                n_detected += 1
                assert len(actual) == 1 and str(path) in actual[0], (position, number, actual[0][:200])
    assert n_detected > 100


@pytest.mark.parametrize("n_bytes", [0, 3, 100, -1])
def test_the_rows_of_a_truncated_shard_are_unusable(packed, copy, tmp_path, n_bytes):
    path = copy / "shard-00001.parquet"
    path.write_bytes(path.read_bytes()[:n_bytes])
    rows = read(copy).rows
    assert len(rows) == 23
    for rows_read in (list(rows), [rows[n] for n in range(23)]):
        assert all(f"{path}: it has" in row.problem for row in rows_read[5:10])
        assert [row.id for row in rows_read[10:]] == [row.id for row in read(packed).rows][10:]
    measured = measure_lengths([read(copy)], make_sample_builder(long_audio="skip"), tmp_path / "cache")
    assert set(range(5, 10)) <= set(measured.problems) and not measured.tokens[5:10].any()


def test_the_rows_of_a_missing_shard_are_unusable_until_it_is_restored(packed, copy, tmp_path):
    path = copy / "shard-00003.parquet"
    content = path.read_bytes()
    path.unlink()
    samples = make_sample_builder(long_audio="skip")
    incomplete = measure_lengths([read(copy)], samples, tmp_path / "cache")
    assert f"{path}: no such shard" in incomplete.problems.values()
    path.write_bytes(content)
    complete = measure_lengths([read(copy)], samples, tmp_path / "cache")
    assert complete.tokens.tolist() == measure_lengths([read(packed)], samples, tmp_path / "cache").tokens.tolist()


def test_if_a_shard_is_damaged_during_a_run_only_its_rows_are_skipped(packed, copy):
    rows = read(copy).rows
    path = copy / "shard-00000.parquet"
    content = bytearray(path.read_bytes())
    content[200:-2000] = bytes(len(content) - 2200)
    path.write_bytes(content)
    batch = build_pack(rows, [(n, 0) for n in (0, 1, 13)], make_sample_builder(long_audio="skip"))
    assert batch["rows"] == [13] and len(batch["skipped"]) == 2
    assert all(str(path) in reason for _, reason in batch["skipped"])


@pytest.mark.parametrize("name", ["shards.json", "index.parquet"])
def test_the_error_for_a_damaged_shards_json_or_index_names_the_file(copy, name):
    path = copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=name):
        list(read(copy).rows)


def test_a_directory_whose_packing_did_not_finish_is_an_error(copy):
    (copy / "shards.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"data.train: .*copy has no shards.json: packing did not finish"):
        read(copy)


def test_missing_paths_and_unknown_protocols_are_an_error(tmp_path):
    for path, message in (
        (tmp_path, "has no shards.json; for Parquet files not written by auris, use"),
        (tmp_path / "no.parquet", "there is no file"),
        (tmp_path / "*.parquet", "there is no file"),
        ("memory://nothing/here", "has no shards.json"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            read(path)
    with pytest.raises(ValueError, match="data.train: .*[Pp]rotocol"):
        read("nonsense://bucket/x.parquet")


def test_labels_for_shards_of_auris_are_an_error(packed):
    with pytest.raises(ValueError, match="must be given to `auris shards`"):
        read(packed, labels={"task": "asr"})


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\0b", 300 * "x", "shard-00001.parquet", 7])
@pytest.mark.parametrize("field", ["shards", "index"])
def test_a_shards_json_that_names_other_files_is_an_error_even_with_a_correct_checksum(copy, field, name):
    path = copy / "shards.json"
    shard_list = json.loads(path.read_text())
    shard_list.pop("sha256")
    entry = shard_list["index"] if field == "index" else shard_list["shards"][0]
    entry["name"] = name
    path.write_text(json.dumps(shard_list | {"sha256": parquet.sha256_of(json.dumps(shard_list).encode())}))
    with pytest.raises(ValueError, match="is not a valid list of shards: it lists files other than"):
        read(copy)


@pytest.mark.parametrize("content", ["5", "[]", "null", '"x"', "{", "1" + 5000 * "0", 2000 * "[", '{"audio": 3}'])
def test_an_invalid_row_in_a_shard_is_unusable(packed, monkeypatch, content):
    rows = read(packed).rows
    fields = rows.row_index.reader.read_fields
    monkeypatch.setattr(rows.row_index.reader, "read_fields", lambda *position: fields(*position) | {"row": content})
    assert rows[0].problem


# --- storage that fails ---


class FlakyStorage:
    """Patches methods of fsspec's memory storage, so that the next `failures` calls fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *methods: str):
        self.failures = 0
        for name in methods:
            owner = MemoryFile if hasattr(MemoryFile, name) and name == "read" else MemoryFileSystem
            monkeypatch.setattr(owner, name, self._wrap(getattr(owner, name)))

    def _wrap(self, method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.failures > 0:
                self.failures -= 1
                raise RuntimeError("503 slow down")
            return method(*arguments, **options)

        return call


@pytest.fixture
def bucket(packed, tmp_path):
    """Copy `packed` and the file of `write_hub_dataset` to the memory storage, and return the URL of their folder."""
    memory = fsspec.filesystem("memory")
    memory.put(str(packed), "/bucket/packed", recursive=True)
    memory.put(str(write_hub_dataset(tmp_path, n=3)), "/bucket/a.parquet")
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


def test_a_failed_read_from_storage_is_retried(packed, bucket, monkeypatch):
    for path, settings in ((f"{bucket}/packed", {}), (f"{bucket}/a.parquet", HUB_ENTRY)):
        rows = read(path, **settings).rows
        expected = rows[0].clips[0].path.read()
        rows = read(path, **settings).rows
        with monkeypatch.context() as patch:
            storage = FlakyStorage(patch, "read")
            rows[0]
            storage.failures = 1
            assert rows[0].clips[0].path.read() == expected and storage.failures == 0


def test_the_rows_of_an_unreadable_file_are_unusable_only_until_the_next_start(bucket, tmp_path, monkeypatch):
    path = f"{bucket}/a.parquet"
    with monkeypatch.context() as patch:
        FlakyStorage(patch, "open").failures = 99
        (manifest,) = read_manifests([{"path": path, **HUB_ENTRY}], cache_dir=tmp_path / "cache")
        measured = measure_lengths([manifest], make_sample_builder(), tmp_path / "cache")
        assert list(measured.problems) == [0] and "a.parquet: cannot be read (RuntimeError: 503" in measured.problems[0]
    (manifest,) = read_manifests([{"path": path, **HUB_ENTRY}], cache_dir=tmp_path / "cache")
    measured = measure_lengths([manifest], make_sample_builder(), tmp_path / "cache")
    assert len(manifest.rows) == 3 and measured.problems == {}


@pytest.mark.parametrize("method", ["exists", "ls", "cat_file", "ukey"])
def test_the_error_for_a_storage_that_does_not_answer_gives_its_url(bucket, monkeypatch, method):
    path = f"{bucket}/a.parquet" if method == "ukey" else f"{bucket}/packed"
    with monkeypatch.context() as patch:
        FlakyStorage(patch, method).failures = 99
        with pytest.raises(ValueError, match="bucket.*503 slow down"):
            read(path, **(HUB_ENTRY if method == "ukey" else {}))


# --- Parquet files not written by auris ---


@pytest.mark.parametrize("path", ["../secret.wav", "/etc/passwd", "{root}/secret.wav", "a/../../secret.wav"])
def test_an_audio_path_outside_the_folder_of_its_file_is_not_read(tmp_path, path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_wave(tmp_path / "secret.wav", 0.5)
    paths = pa.array([path.format(root=tmp_path)] * 3)
    rows = read(write_hub_dataset(folder, n=3, audio=paths), **HUB_ENTRY).rows
    assert all(row.problem and "is outside of" in row.problem for row in rows)


@pytest.mark.parametrize("path", ["a\0b.wav", 5000 * "x", "\u202e/猫.wav", " ", "."])
def test_rows_with_impossible_audio_paths_are_unusable(tmp_path, path):
    measured = measure_lengths(
        [read(write_hub_dataset(tmp_path, n=3, audio=pa.array([path] * 3)), **HUB_ENTRY)],
        make_sample_builder(),
        tmp_path / "cache",
    )
    assert list(measured.problems) == [0, 1, 2]


def test_audio_paths_in_a_file_from_a_url_are_not_read(bucket, tmp_path):
    fsspec.filesystem("memory").put(
        str(write_hub_dataset(tmp_path, n=2, audio=pa.array(["a.wav", "b.wav"]))), "/bucket/b.parquet"
    )
    assert all(
        "audio paths in a file from a URL are not read" in row.problem
        for row in read(f"{bucket}/b.parquet", **HUB_ENTRY).rows
    )


def audio_bytes(seconds: float, folder: Path) -> bytes:
    return write_wave(folder / "sound.flac", seconds).read_bytes()


def write_hub_dataset(folder: Path, name: str = "a.parquet", n: int = 5, **fields: Any) -> Path:
    """Write a file as `datasets` does for the Hugging Face Hub: audio as {bytes, path}, several rows per row group."""
    columns = {
        "audio": [{"bytes": audio_bytes(0.3 + 0.1 * k, folder), "path": f"{k}.flac"} for k in range(n)],
        "sentence": [f"the cat sat {k}" for k in range(n)],
        "speaker": pa.array([None] * n, pa.int64()),
    }
    pq.write_table(pa.table(columns | fields), folder / name, row_group_size=2)
    return folder / name


# An entry of `data.train`, without its path, for the files of `write_hub_dataset`.
HUB_ENTRY = {"columns": {"text": "sentence"}, "labels": {"task": "asr", "language": "en"}}


def test_a_hub_dataset_is_read_with_a_column_map(tmp_path):
    rows = read(write_hub_dataset(tmp_path), **HUB_ENTRY).rows
    assert [row.problem for row in rows] == [None] * 5
    assert rows[3].labels == {"text": "the cat sat 3", "task": "asr", "language": "en"}
    assert rows[3].id == "a.parquet:3"
    assert str(rows[3].clips[0].path) == "3.flac in a.parquet:3"
    samples = make_sample_builder(prompt=TagPrompt())
    measured = measure_lengths([read(tmp_path / "a.parquet", **HUB_ENTRY)], samples, tmp_path / "cache")
    assert measured.tokens.tolist() == [len(samples.build(row, 0, 0).ids) for row in rows]


def test_files_that_match_a_pattern_are_read_in_the_order_of_their_names(tmp_path):
    write_hub_dataset(tmp_path, "b.parquet", 3)
    write_hub_dataset(tmp_path, "a.parquet", 2)
    assert [row.id for row in read(tmp_path / "*.parquet", **HUB_ENTRY).rows] == [
        *("a.parquet:0", "a.parquet:1"),
        *("b.parquet:0", "b.parquet:1", "b.parquet:2"),
    ]


def audio_columns(folder: Path) -> dict[str, Any]:
    first, second = audio_bytes(0.3, folder), audio_bytes(0.4, folder)
    clip = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return {
        "bytes without a path": pa.array([{"bytes": first}, {"bytes": second}], pa.struct({"bytes": pa.binary()})),
        "bytes only": pa.array([first, second], pa.binary()),
        "lists of {bytes, path}": pa.array([[{"bytes": first}], [{"bytes": second, "path": "b.flac"}]], pa.list_(clip)),
        "lists of bytes": pa.array([[first], [second]], pa.list_(pa.binary())),
        "large lists": pa.array([[{"bytes": first}], [{"bytes": second}]], pa.large_list(clip)),
    }


@pytest.mark.parametrize("index", range(5))
def test_audio_is_read_from_every_supported_column_type(tmp_path, index):
    column = list(audio_columns(tmp_path).values())[index]
    rows = read(write_hub_dataset(tmp_path, n=2, audio=column), **HUB_ENTRY).rows
    assert [row.problem for row in rows] == [None, None]
    assert [len(row.clips[0].path.read()) for row in rows] == [
        len(audio_bytes(0.3, tmp_path)),
        len(audio_bytes(0.4, tmp_path)),
    ]
    assert [len(build_row(row)) for row in rows] == [3, 3]


@pytest.mark.parametrize("kind", ["strings", "structs"])
def test_an_audio_path_is_relative_to_the_folder_of_its_file(tmp_path, kind):
    write_wave(tmp_path / "x.wav", 0.5)
    paths = ["x.wav", "gone.wav"]
    structs = pa.array(
        [{"bytes": None, "path": path} for path in paths], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    rows = read(write_hub_dataset(tmp_path, n=2, audio=paths if kind == "strings" else structs), **HUB_ENTRY).rows
    assert rows[0].clips[0].path == tmp_path / "x.wav" and len(build_row(rows[0])) == 3
    assert "gone.wav: no such file" in build_row(rows[1])[0]
    assert [row.id for row in rows.without_duration()] == ["a.parquet:0", "a.parquet:1"]


CLIP = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize("write_statistics", [True, False])
def test_each_clip_is_read_from_its_bytes_or_if_they_are_null_from_its_path(tmp_path, write_statistics):
    write_wave(tmp_path / "x.wav", 0.5)
    stored = {"bytes": audio_bytes(0.3, tmp_path), "path": "gone.wav"}
    nameless, linked = {"bytes": stored["bytes"], "path": None}, {"bytes": None, "path": "x.wav"}
    clips = [linked, stored, None, nameless, {"bytes": None, "path": None}, linked, {"bytes": b"", "path": "x.wav"}]
    columns = {"audio": pa.array(clips, CLIP), "sentence": ["the cat"] * 7}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=4, write_statistics=write_statistics)
    for _ in range(2):  # computed, then read from the cache
        (manifest,) = read_manifests([{"path": str(tmp_path / "a.parquet"), **HUB_ENTRY}], cache_dir=tmp_path / "cache")
        rows = list(manifest.rows)
        assert [row.id for row in rows] == [f"a.parquet:{n}" for n in range(7)]
        usable = {n: len(row.clips[0].read()) / 16_000 for n, row in enumerate(rows) if n not in (2, 4, 6)}
        assert usable == {0: 0.5, 1: 0.3, 3: 0.3, 5: 0.5}
        assert "needs `audio`" in rows[2].problem
        assert "no audio is stored there" in build_row(rows[4])[0]
        assert "no audio is stored there" in build_row(rows[6])[0]
        # The digest covers the audio that is stored in the file.
        assert [row.id for row in manifest.rows.without_duration()] == ["a.parquet:0", "a.parquet:5"]


def test_a_row_may_have_clips_in_the_file_and_clips_beside_it(tmp_path):
    write_wave(tmp_path / "x.wav", 0.5)
    clips = [{"bytes": audio_bytes(0.3, tmp_path)}, {"path": "x.wav"}]
    messages = [[{"role": "user", "content": "<audio><audio>Which?"}, {"role": "assistant", "content": "The first."}]]
    audios = pa.array([clips, clips[::-1]], pa.list_(CLIP))
    pq.write_table(pa.table({"messages": messages * 2, "audios": audios}), tmp_path / "chat.parquet")
    rows = read(tmp_path / "chat.parquet").rows
    assert [[len(clip.read()) for clip in row.clips] for row in rows] == [[4800, 8000], [8000, 4800]]


def test_a_path_outside_the_folder_is_not_read_in_a_file_that_also_has_bytes(tmp_path):
    clips = [{"bytes": audio_bytes(0.3, tmp_path)}, {"path": "../x.wav"}]
    rows = read(write_hub_dataset(tmp_path, n=2, audio=pa.array(clips, CLIP)), **HUB_ENTRY).rows
    assert rows[0].problem is None and "is outside of" in rows[1].problem


def test_a_url_in_the_path_of_stored_audio_is_only_a_name(tmp_path):
    clips = [{"bytes": audio_bytes(0.3, tmp_path), "path": "https://a.org/x.flac"}, {"path": "https://a.org/x.flac"}]
    rows = read(write_hub_dataset(tmp_path, n=2, audio=pa.array(clips, CLIP)), **HUB_ENTRY).rows
    assert rows[0].problem is None and len(rows[0].clips[0].read()) == 4800
    assert "URL" in rows[1].problem


@pytest.mark.parametrize("is_list", [False, True])
def test_decoded_samples_are_refused_in_one_sentence(tmp_path, is_list):
    clips = [{"array": [0.1] * 1000, "sampling_rate": 16_000}] * 2
    path = write_hub_dataset(tmp_path, n=2, audio=[[clip] for clip in clips] if is_list else clips)
    with pytest.raises(
        UserError, match=r"a\.parquet: column audio holds decoded samples .* Audio\(decode=False\)"
    ) as error:
        read(path, **HUB_ENTRY)
    assert len(str(error.value)) < 400


def test_the_shared_files_are_read(shared_data):
    for name in ("allnull_nostats", "mixed"):
        rows = read(shared_data / f"faults/parquet/{name}.parquet", **HUB_ENTRY).rows
        assert [(row.problem, len(row.clips[0].read())) for row in rows] == [(None, 24_000)] * 2


def test_a_null_cell_is_a_missing_field(tmp_path):
    clip = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = read(
        write_hub_dataset(
            tmp_path,
            n=3,
            audio=pa.array([None, {"path": "x"}, {"bytes": audio_bytes(0.3, tmp_path)}], clip),
            sentence=["a", "b", None],
        ),
        **HUB_ENTRY,
    ).rows
    assert "needs `audio`" in build_row(rows[0])[0]
    assert "x: no such file" in build_row(rows[1])[0]
    assert "needs the label `text`" in build_row(rows[2])[0]


def test_a_dialogue_uses_the_audio_of_the_column_audios(tmp_path):
    clip = {"bytes": audio_bytes(0.4, tmp_path), "path": "q.flac"}
    messages = [[{"role": "user", "content": "<audio>What?"}, {"role": "assistant", "content": "Rain."}]]
    pq.write_table(pa.table({"messages": messages, "audios": [[clip]]}), tmp_path / "chat.parquet")
    (row,) = read(tmp_path / "chat.parquet").rows
    assert row.problem is None and row.labels["task"] == "chat" and len(build_row(row)) == 3


def test_an_empty_or_damaged_file_counts_as_one_unusable_row(tmp_path):
    write_hub_dataset(tmp_path, "a.parquet", 3)
    write_hub_dataset(
        tmp_path, "b.parquet", 0, audio=pa.array([], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    )
    (tmp_path / "c.parquet").write_bytes(b"")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and no more")
    rows = read(tmp_path / "*.parquet", **HUB_ENTRY).rows
    assert [row.id for row in rows][3:] == ["c.parquet:0", "d.parquet:0"]
    assert all(f"{name}.parquet: cannot be read" in row.problem for name, row in zip("cd", rows[3:], strict=True))


HOSTILE = {
    "numbers": pa.array([1, 2, 3]),
    "lists": pa.array([["a"], [], None]),
    "bytes": pa.array([b"\xff\xfe", b"", None]),
    "times": pa.array([datetime.datetime(2020, 1, 1)] * 3),
    "structs": pa.array([{"a": 1}] * 3),
    "maps": pa.array([[("k", 1), ("k", 2)], [("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    "invalid UTF-8": pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array([0, 2, 4, 6], np.int32)), pa.py_buffer(b"ok\xff\xfeno")]
    ),
}


@pytest.mark.parametrize("field", ["sentence", "audio", "id", "duration", "messages"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_column_of_a_wrong_type_raises_no_exception(tmp_path, kind, field):
    rows = read(write_hub_dataset(tmp_path, n=3, **{field: HOSTILE[kind]}), **HUB_ENTRY).rows
    row_list = list(rows)
    assert [row.id for row in row_list] == [rows[n].id for n in range(3)]
    measured = measure_lengths([read(tmp_path / "a.parquet", **HUB_ENTRY)], make_sample_builder(), tmp_path / "cache")
    assert len(measured.tokens) == 3
    if field in ("sentence", "messages"):
        assert sum(row.problem is not None for row in row_list) >= (1 if kind == "invalid UTF-8" else 2)


def test_a_hub_dataset_can_be_packed_into_shards(tmp_path):
    write_hub_dataset(tmp_path, n=5)
    entry = {"path": str(tmp_path / "a.parquet"), **HUB_ENTRY}
    pack_shards(entry, tmp_path / "out", rows_per_shard=2, processes=1, console=QUIET)
    expected, actual = read(tmp_path / "a.parquet", **HUB_ENTRY).rows, read(tmp_path / "out").rows
    assert [(row.id, row.labels, build_row(row)) for row in actual] == [
        (row.id, row.labels, build_row(row)) for row in expected
    ]


def test_a_shard_is_a_parquet_file_with_audio_as_in_a_hub_dataset(packed, manifest):
    table = pq.read_table(packed / "shard-00000.parquet")
    clip = table.column("audio")[0].as_py()[0]
    assert clip["bytes"] == (manifest.parent / "r0.wav").read_bytes() and clip["path"] == "r0.wav"
    wave, rate = soundfile.read(manifest.parent / "r0.wav")
    assert clip["samples"] == len(wave) and rate == 16_000
