"""Tests of `auris doctor` on data: its arguments, its JSON report, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.console import Console

from auris import cli
from auris.data import shards
from support import layouts
from support.manifests import write_manifest


def write_manifests(folder: Path, **letters_by_name: str) -> dict[str, Path]:
    """Write a manifest for each name with a row for each letter. The row of a capital letter is silent."""
    paths = {}
    for name, letters in letters_by_name.items():
        rows = []
        for letter in letters:
            path = layouts.sound(folder / f"{name}_{letter}.wav", pitch=100 * ord(letter.lower()) % 7000)
            if letter.isupper():
                soundfile.write(path, np.zeros(8000), 16_000)
            rows.append({"id": f"{name}-{letter}", "audio": path.name, "task": "sec", "text": "rain"})
        paths[name] = write_manifest(folder / f"{name}.jsonl", rows)
    return paths


def run_doctor(folder: Path, *arguments: str) -> tuple[object, dict[str, Any]]:
    """Return the exit code and the report."""
    report = folder / "report.json"
    code = cli.main(["doctor", *arguments, f"report={report}", "jobs=1"])
    return code, json.loads(report.read_text()) if report.is_file() else {}


def test_good_data_passes_the_check(tmp_path, capsys):
    paths = write_manifests(tmp_path, rows="abc")
    code, report = run_doctor(tmp_path, f"data={paths['rows']}")
    assert code == 0
    assert report["failed"] is False and report["findings"] == [] and report["rows"] == {"rows": 3}
    assert set(report["counts"].values()) == {0} and report["sources"] == [str(paths["rows"])]
    assert "contaminated" in capsys.readouterr().out


def test_faults_are_printed_and_reported_and_the_command_fails(tmp_path, capsys):
    paths = write_manifests(tmp_path, train="abC", test="ad")
    code, report = run_doctor(tmp_path, f"data=[{paths['train']},{paths['test']}]")
    assert code == 1 and report["failed"] is True
    assert report["counts"]["silent"] == 1 and report["counts"]["contaminated"] == 1
    silent, contaminated = report["findings"]
    assert silent["row"] == "train-C" and silent["kind"] == "silent" and silent["source"] == str(paths["train"])
    assert contaminated == {
        "kind": "contaminated",
        "row": "test-a",
        "source": str(paths["test"]),
        "reason": "the same audio as train-a of train",
        "other": "train-a",
    }
    printed = capsys.readouterr().out
    assert "test-a" in printed and "the same audio as train-a of train" in printed


def test_the_sets_are_named_by_the_keys_of_the_data_config(tmp_path):
    paths = write_manifests(tmp_path, one="ab", two="ac")
    arguments = ["data=manifest", f"data.train=[{paths['two']}]", f"data.test=[{paths['one']}]"]
    code, report = run_doctor(tmp_path, *arguments)
    assert code == 1 and report["rows"] == {"train": 2, "test": 2}
    assert [finding["row"] for finding in report["findings"]] == ["one-a"]


def test_data_can_be_named_by_an_option_of_the_config_group(tmp_path, corpus):
    code, report = run_doctor(tmp_path, "data=embedded", f"data.root={corpus}")
    assert set(report["rows"]) == {"train", "valid", "test"}
    assert code == (1 if report["findings"] else 0)
    assert report["counts"]["corrupt"] == report["counts"]["silent"] == report["counts"]["length"] == 0


def test_tolerated_kinds_of_findings_do_not_fail_the_command(tmp_path, capsys):
    path = write_manifests(tmp_path, rows="aB")["rows"]
    code, report = run_doctor(tmp_path, f"data={path}", "tolerate=[silent]")
    assert code == 0 and report["counts"]["silent"] == 1 and report["tolerated"] == ["silent"]
    assert run_doctor(tmp_path, f"data={path}", "tolerate=[noisy]")[0] == 1
    assert "tolerate=['noisy']: expected some of unusable, corrupt" in capsys.readouterr().err


def test_the_same_row_ids_in_two_manifests_are_not_an_error(tmp_path):
    paths = write_manifests(tmp_path / "a", rows="ab") | {"again": write_manifests(tmp_path / "b", rows="cd")["rows"]}
    code, report = run_doctor(tmp_path, f"data=[{paths['rows']},{paths['again']}]")
    assert code == 0 and report["rows"] == {"rows": 4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["data=manifest"], "error: data has no rows: expected data=FILE.jsonl"),
    ],
)
def test_missing_files_are_reported_in_one_sentence(tmp_path, arguments, message, capsys):
    assert run_doctor(tmp_path, *arguments)[0] == 1
    assert message in capsys.readouterr().err


def test_only_the_first_findings_of_a_kind_are_printed(tmp_path, capsys):
    path = write_manifests(tmp_path, rows="ABCDEFGHIJKL")["rows"]
    _, report = run_doctor(tmp_path, f"data={path}")
    assert len(report["findings"]) == 12
    printed = capsys.readouterr().out
    assert "rows-J" in printed and "rows-K" not in printed and "and 2 more" in printed


def test_shards_have_the_same_findings_as_their_manifest(tmp_path):
    path = write_manifests(tmp_path, rows="abCa")["rows"]
    _, expected = run_doctor(tmp_path, f"data={path}")
    shards.pack(str(path), tmp_path / "packed", rows_per_shard=2, processes=1, console=Console(quiet=True))
    code, report = run_doctor(tmp_path, f"data={tmp_path}/packed")
    assert code == 1 and report["counts"] == expected["counts"]
    assert [finding["row"] for finding in report["findings"]] == [finding["row"] for finding in expected["findings"]]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("data=embedded", ["data=embedded"]),
        ("data=a.jsonl", ["data=manifest", "+data.files=[a.jsonl]"]),
        (
            "data=[a.jsonl,{path: b.jsonl, limit: 3}]",
            ["data=manifest", "+data.files=[a.jsonl,{path: b.jsonl, limit: 3}]"],
        ),
        ("data.train=[a.jsonl]", ["data.train=[a.jsonl]"]),
        ("checkpoint=data", ["checkpoint=data"]),
    ],
)
def test_paths_and_options_are_distinguished(argument, expected):
    assert cli.name_data([argument]) == expected
