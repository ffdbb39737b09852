"""Tests of `auris prepare`: the written manifest, the list of unusable rows, and no partial output after an error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml
from rich.console import Console

from auris import cli, config
from auris.data.manifests import read_manifests
from auris.data.prepare import convert as prepare
from auris.data.prepare.convert import Summary
from auris.data.prepare.tables import EmbeddedAudio
from support import layouts


def rows_of(folder: Path, *names: str) -> list[dict[str, Any]]:
    """Write a sound for each name and return a row for each sound."""
    labels = {"task": "asr", "language": "en", "text": "hello"}
    return [{"id": name, "audio": layouts.sound(folder / f"{name}.wav"), **labels} for name in names]


def write(rows: Any, out: Path, **settings: Any) -> Summary:
    defaults = {"labels": {"provenance": "real"}, "jobs": 2, "console": Console(quiet=True)}
    return prepare.prepare(rows, out, **defaults | settings)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_manifest_has_the_measured_duration_of_each_clip_and_relative_paths(tmp_path):
    layouts.sound(tmp_path / "in/a.flac", 1.25, 44_100)
    row = {"id": "a", "audio": tmp_path / "in/a.flac", "task": "asr", "language": "en", "text": "hé", "split": "dev"}
    summary = write([row], tmp_path / "out/rows.jsonl")
    [written] = read_lines(tmp_path / "out/rows.jsonl")
    assert written == {**row, "audio": "../in/a.flac", "duration": 1.25, "provenance": "real"}
    [manifest] = read_manifests([tmp_path / "out/rows.jsonl"])
    assert manifest.rows[0].problem is None and manifest.rows[0].clips[0].path.is_file()
    assert summary.rows == {("dev", "asr"): 1} and summary.seconds["dev", "asr"] == 1.25
    assert not (tmp_path / "out/rows.unusable.jsonl").exists()


def test_a_row_may_override_the_common_labels(tmp_path):
    first, second = rows_of(tmp_path, "a", "b")
    write([{**first, "provenance": "tts"}, second], tmp_path / "rows.jsonl")
    assert [row["provenance"] for row in read_lines(tmp_path / "rows.jsonl")] == ["tts", "real"]


def test_output_to_a_folder_has_a_manifest_for_each_split(tmp_path):
    rows = [
        {**row, "split": split}
        for row, split in zip(rows_of(tmp_path, *"abc"), ("train", "test", "train"), strict=True)
    ]
    write([*rows, {"id": "d", "problem": "gone"}], tmp_path / "out")
    assert [row["id"] for row in read_lines(tmp_path / "out/train.jsonl")] == ["a", "c"]
    assert [row["id"] for row in read_lines(tmp_path / "out/test.jsonl")] == ["b"]
    assert read_lines(tmp_path / "out/unusable.jsonl") == [{"provenance": "real", "id": "d", "problem": "gone"}]


def test_a_segment_without_a_duration_ends_at_the_end_of_the_file(tmp_path):
    layouts.sound(tmp_path / "a.wav", 2.0)
    row = {"audio": tmp_path / "a.wav", "task": "asr", "language": "en", "text": "hello"}
    rows = [{**row, "id": "end", "offset": 1.5}, {**row, "id": "over", "offset": 1.5, "duration": 0.6}]
    write([*rows, {**row, "id": "beyond", "offset": 3.0, "duration": 1.0}], tmp_path / "rows.jsonl")
    assert [row["duration"] for row in read_lines(tmp_path / "rows.jsonl")] == [0.5, 0.5]
    [bad] = read_lines(tmp_path / "rows.unusable.jsonl")
    assert bad["id"] == "beyond" and "is beyond the end of the file at 2.000 s" in bad["problem"]


def test_audio_embedded_in_a_table_is_saved_next_to_the_manifest(tmp_path):
    data = layouts.sound(tmp_path / "a.flac", 0.75).read_bytes()
    row = {"id": "a", "audio": EmbeddedAudio(data, ".flac"), "task": "sec", "text": "rain"}
    write([row], tmp_path / "out/rows.jsonl")
    [written] = read_lines(tmp_path / "out/rows.jsonl")
    assert written["duration"] == 0.75
    assert (tmp_path / "out" / written["audio"]).read_bytes() == data


def test_rows_with_two_clips_keep_a_list_of_paths(tmp_path):
    first, second = (row["audio"] for row in rows_of(tmp_path, "a", "b"))
    write([{"id": "p", "audio": [first, second], "task": "sec", "text": "rain"}], tmp_path / "rows.jsonl")
    [row] = read_lines(tmp_path / "rows.jsonl")
    assert row["audio"] == ["a.wav", "b.wav"] and "duration" not in row


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"audio": Path("/nowhere/a.wav")}, "/nowhere/a.wav: no such file"),
        ({"audio": None}, "`audio`"),
        ({"audio": 3}, "`audio`"),
        ({"audio": []}, "needs `audio`"),
        ({"text": " "}, "label `text` is empty"),
        ({"task": "mystery"}, "unknown task 'mystery'"),
        ({"language": "xx"}, "label `language` is 'xx'"),
        ({"offset": "2"}, "`offset` is '2', expected seconds"),
        ({"problem": "the corpus says so"}, "the corpus says so"),
        ({"audio": Path("a" * 5000)}, "no such file"),
        ({"audio": Path("a\0b")}, "no such file"),
        ({"text": "half a \ud83d"}, "surrogates not allowed"),
        ({"duration": 2.0}, "is 0.50 s long, but the row states 2.00 s"),
        ({"split": ["train"], "text": 3}, "label `text` is int"),
    ],
)
def test_an_unusable_row_is_written_to_a_separate_file_with_its_reason(tmp_path, fields, message):
    bad, good = rows_of(tmp_path, "a", "b")
    summary = write([{**bad, **fields}, good], tmp_path / "rows.jsonl")
    [row] = read_lines(tmp_path / "rows.unusable.jsonl")
    assert message in row["problem"] and row["id"] == "a"
    assert [row["id"] for row in read_lines(tmp_path / "rows.jsonl")] == ["b"]
    assert summary.unusable.total() == 1


def test_the_name_of_a_split_cannot_escape_the_output_folder(tmp_path):
    rows = [{**row, "split": "../../x"} for row in rows_of(tmp_path / "in", "a")]
    write(rows, tmp_path / "deep/out")
    assert [path.name for path in (tmp_path / "deep/out").iterdir()] == ["..-..-x.jsonl"]


def test_rows_with_undecodable_audio_or_a_repeated_id_are_unusable(tmp_path):
    first, second, third = rows_of(tmp_path, "a", "b", "c")
    second["audio"].write_bytes(b"not audio")
    write([first, second, {**third, "id": "a"}], tmp_path / "rows.jsonl")
    problems = [row["problem"] for row in read_lines(tmp_path / "rows.unusable.jsonl")]
    assert "cannot be decoded" in problems[0] and problems[1] == "its id 'a' is used by an earlier row"


def test_the_summary_counts_unusable_rows_by_reason_and_gives_examples(tmp_path):
    unusable = [{**row, "audio": tmp_path / f"none/{row['id']}.wav"} for row in rows_of(tmp_path, *"abcdefg")]
    summary = write([*unusable, *rows_of(tmp_path, "z")], tmp_path / "rows.jsonl")
    [(reason, number)] = summary.unusable.items()
    assert number == 7 and "no such file" in reason and len(summary.examples[reason]) == 5


def test_an_error_leaves_no_output_files(tmp_path):
    def rows_with_error() -> Iterator[dict[str, Any]]:
        yield from rows_of(tmp_path / "in", "a")
        raise ValueError("the table ends in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        write(rows_with_error(), tmp_path / "out/rows.jsonl")
    with pytest.raises(ValueError, match="none of 1 row can be used"):
        write([{"id": "a", "problem": "gone"}], tmp_path / "out/rows.jsonl")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("out", ["rows.jsonl", "folder"])
def test_existing_files_are_not_overwritten(tmp_path, out):
    write(rows_of(tmp_path / "in", "a"), tmp_path / out)
    with pytest.raises(ValueError, match="already exists"):
        write(rows_of(tmp_path / "in", "a"), tmp_path / out)


# --- the command line ---


def run_prepare(*arguments: str) -> int:
    return cli.main(["prepare", *arguments])


def test_the_command_writes_a_manifest_and_prints_a_summary(tmp_path, monkeypatch, capsys):
    layouts.librispeech(tmp_path)
    (tmp_path / "LibriSpeech/dev-clean/84/121123/84-121123-0001.flac").unlink()
    out = tmp_path / "libri.jsonl"
    assert run_prepare("layout=librispeech", f"root={tmp_path}", f"out={out}") == 0
    printed = capsys.readouterr().out
    assert (
        f"wrote {out}" in printed
        and "rows that cannot be used: 1 (" in printed
        and "84-121123-0001.flac: no such" in printed
    )
    assert len(read_manifests([out])[0].rows) == 3


def test_a_custom_column_map_can_be_set_on_the_command_line(tmp_path, monkeypatch):
    layouts.text(tmp_path / "metadata.csv", "file_name,transcription", "a.wav,hello")
    layouts.sound(tmp_path / "a.wav")
    arguments = ["layout=table", "layout.columns={audio: file_name, text: transcription}"]
    arguments += ["layout.labels={task: asr, language: en}", f"root={tmp_path}", f"out={tmp_path}/rows.jsonl"]
    assert run_prepare(*arguments) == 0
    [row] = read_lines(tmp_path / "rows.jsonl")
    assert (row["text"], row["duration"], row["provenance"]) == ("hello", 0.5, "real")


def test_a_layout_file_in_the_working_directory_can_be_used(tmp_path, monkeypatch):
    example = (config.CONFIGS / "layout/esc50.yaml").read_text(encoding="utf-8")
    layouts.text(tmp_path / "layout/my_sounds.yaml", example.replace("name: esc50", "name: mine"))
    layouts.esc50(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    assert run_prepare("layout=my_sounds", f"root={tmp_path}/in", "out=rows") == 0
    assert {row["id"] for row in read_lines(tmp_path / "rows/test.jsonl")} == {
        "mine/audio/5-9032-A-0",
        "mine/audio/5-181977-A-35",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["root=.", "out=a.jsonl"], "error: layout= is missing, expected a layout"),
        (["layout=clotho", "out=a.jsonl"], "error: root= is missing, expected the folder of the corpus"),
        (["layout=clotho", "root=."], "error: out= is missing, expected a new .jsonl file or a folder"),
        (["layout=clotho", "root=nowhere", "out=a.jsonl"], "error: root=nowhere: there is no such folder"),
        (["layout=librispeech", "root=.", "out=a.jsonl", "layout.tasks=[er]"], "does not have the layout"),
    ],
)
def test_user_errors_are_reported_in_one_sentence(tmp_path, monkeypatch, arguments, message, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_prepare(*arguments) != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["esc50", "speech_commands", "ravdess"])
def test_the_layouts_in_the_readme_equal_the_config_files(name):
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    [in_readme] = (
        yaml.safe_load(block)
        for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        if f"# {name}.yaml" in block
    )
    in_configs = yaml.safe_load((config.CONFIGS / f"layout/{name}.yaml").read_text(encoding="utf-8"))
    assert in_readme.keys() == in_configs.keys()
    for key, value in in_readme.items():
        if isinstance(value, dict):
            assert value.items() <= in_configs[key].items() or (
                key == "values" and value.keys() <= in_configs[key].keys()
            )
        else:
            assert value == in_configs[key]


def test_durations_are_those_of_the_decoded_audio(tmp_path):
    path = layouts.sound(tmp_path / "a.mp3", 1.0, 32_000)
    write([{"id": "a", "audio": path, "task": "sec", "text": "rain"}], tmp_path / "rows.jsonl")
    [row] = read_lines(tmp_path / "rows.jsonl")
    assert abs(row["duration"] - len(soundfile.read(path)[0]) / 32_000) < 1e-4
