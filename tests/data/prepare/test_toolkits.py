"""Tests of reading Lhotse cuts, Kaldi data directories and manifests of auris."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from auris.data.prepare.toolkits import kaldi, lhotse, manifest
from auris.text import tasks
from support import layouts


def cut(**fields: Any) -> dict[str, Any]:
    """Return what `CutSet.to_file` writes for a cut from the middle of a recording, with one supervision."""
    supervision = {
        "id": "sup-1",
        "recording_id": "rec-1",
        "start": 0.0,
        "duration": 2.5,
        "channel": 0,
        "text": "hello there",
        "language": "English",
        "speaker": "ann",
        "alignment": {"word": [["hello", 0.1, 0.4, None], ["there", 0.6, 0.5, None]]},
    }
    recording = {
        "id": "rec-1",
        "sources": [{"type": "file", "channels": [0], "source": "wav/rec-1.wav"}],
        "sampling_rate": 16000,
        "num_samples": 160000,
        "duration": 10.0,
        "channel_ids": [0],
    }
    mono_cut = {"id": "rec-1-0", "start": 4.0, "duration": 2.5, "channel": 0, "supervisions": [supervision]}
    return {**mono_cut, "recording": recording, "type": "MonoCut", **fields}


def read_cuts(root: Path, *cuts: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    layouts.text(root / "cuts.jsonl", *map(json.dumps, cuts))
    defaults = {"files": "*cuts*.jsonl*", "task": "asr", "language": None, "name": "l", "split": None}
    return list(lhotse(root, **defaults | settings))


def test_each_supervision_of_a_cut_is_a_row(tmp_path):
    [row] = read_cuts(tmp_path, cut(), split="train")
    assert row == {
        "id": "l/sup-1",
        "audio": tmp_path / "wav/rec-1.wav",
        "task": "asr",
        "offset": 4.0,
        "duration": 2.5,
        "speaker": "ann",
        "language": "en",
        "text": "hello there",
        "split": "train",
    }
    assert tasks.find_problem(row) is None


def test_times_of_supervisions_and_words_are_relative_to_the_cut(tmp_path):
    """A supervision that starts before its cut is shortened to the part inside the cut."""
    starts_early = {**cut()["supervisions"][0], "start": -0.5, "duration": 2.0}
    ends_late = {**starts_early, "id": "sup-2", "start": 1.0, "duration": 9.0}
    ends_late["alignment"] = {"word": [["now", 1.2, 0.3, None]]}
    first, second = read_cuts(tmp_path, cut(supervisions=[starts_early, ends_late]), task="srwt")
    assert (first["offset"], first["duration"]) == (4.0, 1.5)
    assert (second["offset"], second["duration"]) == (5.0, 1.5)  # shortened at the end of the cut
    assert first["words"][1] == {"word": "there", "start": 0.6, "end": 1.1}
    assert second["words"] == [{"word": "now", "start": 0.2, "end": 0.5}]
    assert tasks.find_problem(first) is None


def test_cuts_may_be_gzipped(tmp_path):
    (tmp_path / "cuts_train.jsonl.gz").write_bytes(gzip.compress(json.dumps(cut()).encode()))
    settings = {"files": "*cuts*.jsonl*", "task": "asr", "language": None, "name": "l", "split": None}
    assert [row["id"] for row in lhotse(tmp_path, **settings)] == ["l/sup-1"]


def cut_with_recording(**fields: Any) -> dict[str, Any]:
    return cut(recording={**cut()["recording"], **fields})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (cut(type="MixedCut"), "a MixedCut, expected a MonoCut"),
        (cut(supervisions=[]), "cut rec-1-0 has no supervision"),
        (cut_with_recording(transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}]), "has the transforms Speed"),
        (cut_with_recording(sources=[{"type": "command", "channels": [0], "source": "sox"}]), "of type 'command'"),
        (cut_with_recording(sources=[{"type": "file", "channels": [0, 1], "source": "a"}]), "several channels"),
        ({"id": "x"}, "no 'recording'"),
        ([], "cuts.jsonl:1"),
    ],
)
def test_an_unsupported_cut_is_an_unusable_row(tmp_path, bad, message):
    first, second = read_cuts(tmp_path, bad, cut())
    assert message in first["problem"] and "problem" not in second


def test_a_row_with_word_times_needs_a_word_alignment(tmp_path):
    unaligned = {key: value for key, value in cut()["supervisions"][0].items() if key != "alignment"}
    [row] = read_cuts(tmp_path, cut(supervisions=[unaligned]), task="srwt")
    assert "supervision sup-1 has no word alignment" in row["problem"]


def test_an_unsupported_task_and_missing_cuts_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="layout.task=sgc: expected asr or srwt"):
        read_cuts(tmp_path, cut(), task="sgc")
    with pytest.raises(FileNotFoundError, match="layout.files=none matches no file below"):
        read_cuts(tmp_path, cut(), files="none")


# --- Kaldi ---


def kaldi_folder(root: Path) -> Path:
    folder = root / "data/train"
    layouts.text(folder / "wav.scp", "rec1 wav/rec1.wav", "rec2 sph2pipe -f wav rec2.sph |", "rec3 /abs/rec3.wav")
    layouts.text(folder / "text", "ann-1 hello there", "ann-2 and you", "bob-1 no sound", "bob-2 gone", "bob-3")
    segments = ["ann-1 rec1 0.50 2.25", "ann-2 rec3 3 -1", "bob-1 rec2 0 1", "bob-3 rec1 1 2", "cat-1 rec1 0 x"]
    layouts.text(folder / "segments", *segments)
    layouts.text(folder / "utt2spk", "ann-1 ann", "ann-2 ann", "bob-1 bob")
    layouts.text(folder / "spk2gender", "ann f", "bob m")
    return root


def read_kaldi(root: Path, **settings: Any) -> dict[str, dict[str, Any]]:
    defaults = {"folders": ["data/train"], "language": "en", "name": "k"}
    return {row["id"]: row for row in kaldi(root, **defaults | settings)}


def test_kaldi_utterances_are_segments_of_recordings(tmp_path):
    rows = read_kaldi(kaldi_folder(tmp_path))
    assert rows["k/train/ann-1"] == {
        "id": "k/train/ann-1",
        "task": "asr",
        "split": "train",
        "audio": tmp_path / "wav/rec1.wav",
        "offset": 0.5,
        "duration": 1.75,
        "text": "hello there",
        "language": "en",
        "speaker": "ann",
        "gender": "female",
    }
    to_the_end = rows["k/train/ann-2"]
    assert to_the_end["audio"] == Path("/abs/rec3.wav") and to_the_end["offset"] == 3 and "duration" not in to_the_end


def test_kaldi_utterances_without_audio_or_text_are_unusable(tmp_path):
    rows = read_kaldi(kaldi_folder(tmp_path))
    assert "wav.scp has a command for rec2, and auris runs no commands" in rows["k/train/bob-1"]["problem"]
    assert "segments has no line" in rows["k/train/bob-2"]["problem"]
    assert "segments has no line `cat-1 RECORDING START END` with times in seconds" in rows["k/train/cat-1"]["problem"]
    assert "text" not in rows["k/train/bob-3"] and "needs the label `text`" in tasks.find_problem(rows["k/train/bob-3"])


def test_without_a_segments_file_each_recording_is_an_utterance(tmp_path):
    folder = kaldi_folder(tmp_path) / "data/train"
    (folder / "segments").unlink()
    layouts.text(folder / "text", "rec1 hello there", "rec9 gone")
    layouts.text(folder / "utt2lang", "rec1 de")
    rows = read_kaldi(tmp_path)
    assert rows["k/train/rec1"].items() >= {"audio": tmp_path / "wav/rec1.wav", "language": "de"}.items()
    assert "offset" not in rows["k/train/rec1"]
    assert rows["k/train/rec9"]["problem"] == "wav.scp has no recording rec9"


def test_missing_kaldi_folders_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"layout.folders=\[\]: expected data directories"):
        read_kaldi(tmp_path, folders=[])
    with pytest.raises(FileNotFoundError, match="there is no .*data/train/wav.scp"):
        read_kaldi(tmp_path)


# --- manifests of auris ---


def test_manifests_of_auris_keep_all_fields(tmp_path):
    row = {"id": "x", "audio": "a.wav", "task": "sec", "text": "rain", "fold": 3}
    two_clips = {"audio": ["a.wav", "b.wav"], "task": "sec", "text": "rain"}
    layouts.text(tmp_path / "sub/rows.jsonl", json.dumps(row), json.dumps(two_clips))
    first, second = manifest(tmp_path, files="*/*.jsonl")
    assert first == {**row, "set": "rows", "audio": tmp_path / "sub/a.wav"}
    assert second == {
        **two_clips,
        "set": "rows",
        "id": "rows.jsonl:2",
        "audio": [tmp_path / "sub/a.wav", tmp_path / "sub/b.wav"],
    }


def test_manifests_keep_chosen_rows_and_hold_out_speakers(tmp_path):
    rows = [
        {
            "id": f"{speaker}-{n}",
            "audio": "a.wav",
            "task": "asr",
            "speaker": speaker,
            "split": "train",
            "language": "en",
        }
        for speaker in range(20)
        for n in range(3)
    ]
    few = [{**row, "id": f"few-{row['id']}"} for row in rows[:12]]  # four speakers
    other = [{**rows[0], "id": "other", "language": "de"}, {**rows[0], "id": "test", "split": "test"}]
    layouts.text(tmp_path / "many.train.jsonl", *map(json.dumps, [*rows, *other]))
    layouts.text(tmp_path / "few.train.jsonl", *map(json.dumps, few))
    kept = list(manifest(tmp_path, files="*.jsonl", only={"language": ["en"]}, valid_share=0.2))
    assert {row["id"] for row in kept} == {row["id"] for row in [*rows, *few, other[1]]}
    assert {row["set"] for row in kept} == {"many", "few"}
    speakers = {split: {row["speaker"] for row in kept if row["split"] == split} for split in ("train", "valid")}
    assert len(speakers["valid"]) == 4  # of 20
    assert {row["id"] for row in kept if row["split"] == "test"} == {"test"}
    held_out = {row["id"] for row in rows if row["speaker"] in speakers["valid"]}
    assert {row["id"] for row in kept if row["split"] == "valid"} == held_out


def test_a_speaker_in_two_files_is_in_one_split(tmp_path):
    """The speakers that are held out of the first file alone are not those of the second one alone."""
    for name, speakers in (("a", range(6)), ("b", range(20))):
        lines = [
            {"id": f"{name}{n}", "audio": "a.wav", "task": "asr", "speaker": n, "split": "train"} for n in speakers
        ]
        layouts.text(tmp_path / f"{name}.jsonl", *map(json.dumps, lines))
    rows = list(manifest(tmp_path, files="*.jsonl", valid_share=0.1))
    speakers = {split: {row["speaker"] for row in rows if row["split"] == split} for split in ("train", "valid")}
    assert len(speakers["valid"]) == 3 and not speakers["train"] & speakers["valid"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"only": {"language": "en"}}, r"layout.only={'language': 'en'}: expected {label: \[value, ...\]}"),
        ({"only": ["en"]}, "layout.only=.*: expected {label"),
        ({"only": {"languages": ["en"]}}, "layout.only=.*: no row has the label languages"),
        ({"valid_share": 0.5}, "layout.valid_share=0.5: expected a file with training rows of at least 5 speakers"),
    ],
)
def test_selections_without_effect_are_refused(tmp_path, settings, message):
    row = {"id": "x", "audio": "a.wav", "task": "asr", "language": "en", "speaker": "s", "split": "train"}
    layouts.text(tmp_path / "rows.jsonl", json.dumps(row))
    with pytest.raises(ValueError, match=message):
        manifest(tmp_path, files="*.jsonl", **settings)


def test_rows_that_are_not_task_rows_are_unusable(tmp_path):
    layouts.text(tmp_path / "rows.jsonl", "{oops", "3", json.dumps({"messages": []}))
    messages = ["not JSON", "expected a JSON object, got int", "the row is a dialogue"]
    assert all(
        message in row["problem"] for message, row in zip(messages, manifest(tmp_path, files="*.jsonl"), strict=True)
    )


def test_the_shared_real_recordings_can_be_read(shared_data):
    manifests = (shared_data / "real").glob("*.jsonl")
    rows = list(manifest(shared_data / "real", files="*.jsonl"))
    assert len(rows) == sum(len(path.read_text(encoding="utf-8").splitlines()) for path in manifests) > 2000
    assert all("problem" not in row and row["audio"].is_file() and tasks.find_problem(row) is None for row in rows)
