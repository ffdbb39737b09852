"""Tests of `auris shards`: parallel packing, resuming after an interruption, refused settings, and verification."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from rich.console import Console

from auris import cli
from auris.data import shards as command
from auris.data.manifests import read_manifests
from auris.data.parquet import writer
from support.manifests import speech_rows, write_manifest
from support.runs import ROOT

N = 17


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    rows = speech_rows(folder, [0.1 + 0.01 * n for n in range(N)])
    rows[4]["audio"] = "gone.wav"
    return write_manifest(folder / "rows.jsonl", rows)


def pack(manifest: Path, out: Path, processes: int = 1, **entry: object) -> Console:
    console = Console(record=True, width=200, file=io.StringIO())
    settings = {"rows_per_shard": 3, "processes": processes, "console": console}
    command.pack({"path": str(manifest), **entry}, out, **settings)
    return console


def file_contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def packed_dir(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    pack(manifest, out)
    return out


def test_two_processes_write_the_same_files_as_one(manifest, packed_dir, tmp_path):
    pack(manifest, tmp_path / "two", processes=2)
    assert file_contents(tmp_path / "two") == file_contents(packed_dir)
    names = {"index.parquet", "problems.jsonl", "shards.json", *(f"shard-0000{n}.parquet" for n in range(6))}
    assert set(file_contents(packed_dir)) == names


def test_unusable_rows_are_counted_and_listed(manifest, tmp_path):
    output = pack(manifest, tmp_path / "out").export_text()
    assert "rows that cannot be used: 1, " in output and "r4: " in output and "gone.wav: no such file" in output
    (line,) = (tmp_path / "out/problems.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "r4"
    assert len(read_manifests([tmp_path / "out"])[0].rows) == N


def test_a_clip_that_the_disk_cannot_read_is_reported_with_its_row(manifest, tmp_path, monkeypatch):
    read_bytes = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path == manifest.parent / "r2.wav":
            raise OSError(errno.EIO, "Input/output error")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    pack(manifest, tmp_path / "out")
    problems = [json.loads(line) for line in (tmp_path / "out/problems.jsonl").read_text().splitlines()]
    assert [problem["id"] for problem in problems] == ["r2", "r4"]
    assert "r2.wav: cannot be read ([Errno 5] Input/output error)" in problems[0]["reason"]


def test_packing_resumes_after_an_error(manifest, packed_dir, tmp_path, monkeypatch):
    """The disk is full at the fourth shard of the first run."""
    open_atomic, out = writer.open_atomic, tmp_path / "out"

    @contextmanager
    def open_on_full_disk(path: Path, mode: str, **options: bool) -> Iterator[IO[bytes]]:
        with open_atomic(path, mode, **options) as file:
            yield file
            if path.name == "shard-00003.parquet":
                raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "open_atomic", open_on_full_disk)
        with pytest.raises(OSError, match="No space left"):
            pack(manifest, out)
    with pytest.raises(FileNotFoundError, match="packing did not finish"):
        read_manifests([out])
    mtimes = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.parquet")}
    assert len(mtimes) == 3 and not list(out.glob("*.tmp"))
    pack(manifest, out)
    assert file_contents(out) == file_contents(packed_dir)
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in mtimes.items())


@pytest.mark.slow
def test_packing_resumes_after_being_killed(manifest, packed_dir, tmp_path):
    out = tmp_path / "out"
    arguments = [f"rows={manifest}", f"out={out}", "rows_per_shard=3", "processes=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    command_line = [sys.executable, "-m", "auris", "shards", *arguments]
    process = subprocess.Popen(command_line, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("shard-*.parquet")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    pack(manifest, out)
    assert file_contents(out) == file_contents(packed_dir)


@pytest.mark.parametrize("n_bytes", [None, 50, -1])
def test_repeating_the_command_packs_only_damaged_shards(manifest, packed_dir, tmp_path, n_bytes):
    out = tmp_path / "out"
    pack(manifest, out)
    damaged, intact = out / "shard-00002.parquet", out / "shard-00001.parquet"
    before = intact.stat().st_mtime_ns
    if n_bytes is None:
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:n_bytes] + bytes(1))
    (out / "index.parquet").write_bytes(b"")
    pack(manifest, out)
    assert file_contents(out) == file_contents(packed_dir) and intact.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["shards.json", "shard-00002.json"])
@pytest.mark.parametrize("damaged", [b"", b"[1]", b'{"sha256": 1', b"\xff\xfe"])
def test_a_damaged_list_of_shards_is_reported_and_its_shards_are_packed_again(
    manifest, packed_dir, tmp_path, name, damaged
):
    out = tmp_path / "out"
    shutil.copytree(packed_dir, out)
    (out / name).write_bytes(damaged)
    assert f"{out / name} is damaged" in pack(manifest, out).export_text()
    assert file_contents(out) == file_contents(packed_dir)


@pytest.mark.parametrize("entry", [{"limit": 5}, {"tasks": ["asr"], "limit": 1}, {"labels": {"speaker": "eve"}}])
def test_a_directory_with_shards_of_other_rows_is_an_error_and_stays_unchanged(manifest, packed_dir, entry):
    before = file_contents(packed_dir)
    with pytest.raises(ValueError, match="holds shards of other rows"):
        pack(manifest, packed_dir, **entry)
    assert file_contents(packed_dir) == before


def test_the_check_finds_every_damaged_or_missing_file(manifest, tmp_path):
    out = tmp_path / "out"
    pack(manifest, out)
    console = Console(record=True, width=300, file=io.StringIO())
    assert command.check(out, console) == []
    path = out / "shard-00004.parquet"
    flipped = bytearray(path.read_bytes())
    flipped[40] ^= 1
    path.write_bytes(flipped)
    (out / "shard-00000.parquet").unlink()
    messages = command.check(out, console)
    assert len(messages) == 2 and "no such file" in messages[0] and f"{path}: its checksum is" in messages[1]
    assert "5 intact files, 2 damaged files" in console.export_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected rows=FILE and out=DIR"),
        (["rows=a.jsonl", "out=s3://b/c"], "a local directory"),
        (["rows=a.jsonl", "out=b"], "rows: there is no file a.jsonl"),
        (["check=nowhere"], "nowhere has no shards.json"),
    ],
)
def test_the_command_reports_user_errors_in_one_sentence(arguments, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["shards", *arguments]) != 0
    assert re.match(f"error: .*{message}", capsys.readouterr().err)
