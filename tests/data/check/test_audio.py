"""Tests of the data check: every kind of fault is found, and good rows have no findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from auris.data.check.audio import KINDS, Report, Source, check_rows, clipped_share
from auris.data.manifests import read_manifests
from support.manifests import write_manifest

RATE = 16_000


def speech_like(seconds: float = 1.0, *, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Return low-frequency noise whose loudness rises and falls."""
    n = round(seconds * rate)
    noise = np.convolve(np.random.default_rng(seed).normal(size=n), np.hanning(20), "same")
    wave = noise * np.sin(np.linspace(0, 3 * np.pi, n))
    return (0.5 * wave / np.abs(wave).max()).astype(np.float32)


def write_row(folder: Path, name: str, wave: np.ndarray, rate: int = RATE, **fields: Any) -> dict[str, Any]:
    path = folder / fields.pop("audio", f"{name}.wav")
    soundfile.write(path, wave, rate)
    row = {"id": name, "audio": path.name, "task": "asr", "language": "en", "text": f"the {name} of it"}
    return {key: value for key, value in {**row, **fields}.items() if value is not None}


def check_sets(folder: Path, rows: list[dict[str, Any]], **sets: list[dict[str, Any]]) -> Report:
    """Check several sets of rows.

    Args:
        folder: Folder of the audio files.
        rows: Rows whose `split` names their set.
        sets: Rows of other sets, by the name of the set.
    """
    sources = []
    for name, set_rows in (({"rows": rows} if rows else {}) | sets).items():
        [manifest] = read_manifests([write_manifest(folder / f"{name}.jsonl", set_rows)])
        sources.append(Source(name, manifest.rows, None if name == "rows" else name))
    return check_rows(sources, jobs=2)


def check_one_set(folder: Path, *rows: dict[str, Any]) -> Report:
    return check_sets(folder, list(rows))


def rows_by_kind(report: Report) -> dict[str, list[str]]:
    """Return the ids of the rows with findings, by kind of finding."""
    kinds: dict[str, list[str]] = {}
    for finding in report.findings:
        kinds.setdefault(finding.kind, []).append(finding.row)
    return kinds


def test_good_rows_have_no_findings_and_are_counted(tmp_path):
    rows = [write_row(tmp_path, f"r{n}", speech_like(1 + n / 4, seed=n), duration=1 + n / 4) for n in range(3)]
    rows.append(write_row(tmp_path, "stereo", np.stack([speech_like(seed=8), speech_like(seed=9)], 1), split="test"))
    rows.append(
        write_row(tmp_path, "fast", speech_like(2.0, seed=10, rate=44_100), 44_100, audio="fast.flac", split="dev")
    )
    report = check_sets(tmp_path, rows)
    assert report.findings == () and set(report.counts()) == set(KINDS)
    assert report.n_rows == {"rows": 3, "test": 1, "valid": 1}
    assert report.seconds == pytest.approx({"rows": 3.75, "test": 1.0, "valid": 2.0})


# --- one clip ---


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_missing_damaged_and_empty_audio_is_corrupt(tmp_path, suffix):
    rows = [write_row(tmp_path, name, speech_like(seed=n), audio=name + suffix) for n, name in enumerate("abcd")]
    (tmp_path / f"a{suffix}").unlink()
    (tmp_path / f"b{suffix}").write_bytes(b"")
    (tmp_path / f"c{suffix}").write_bytes((tmp_path / f"c{suffix}").read_bytes()[:30])
    assert rows_by_kind(check_sets(tmp_path, rows)) == {"corrupt": ["a", "b", "c"]}


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_truncated_file_is_corrupt_even_if_its_row_has_no_duration(tmp_path, suffix):
    row = write_row(tmp_path, "a", speech_like(4.0), audio=f"a{suffix}")
    path = tmp_path / row["audio"]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    [finding] = check_one_set(tmp_path, row).findings
    assert finding.kind == "corrupt" and ("truncated" in finding.reason or "cannot be decoded" in finding.reason)


def test_a_wav_that_was_written_to_a_pipe_is_not_corrupt(tmp_path):
    """The header of such a file states the largest possible length."""
    row = write_row(tmp_path, "a", speech_like())
    data = bytearray((tmp_path / "a.wav").read_bytes())
    start = data.index(b"data") + 4
    data[4:8] = data[start : start + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(bytes(data))
    assert check_one_set(tmp_path, row).findings == ()


def dither() -> np.ndarray:
    return np.random.default_rng(0).choice([-1, 0, 1], RATE) / 2**15


@pytest.mark.parametrize(
    ("wave", "kinds"),
    [
        (np.zeros(RATE), {"silent": ["a"]}),
        (np.full(RATE, 0.3), {"silent": ["a"]}),  # a constant offset
        (0.3 + dither(), {"silent": ["a"]}),
        (5e-4 * speech_like(), {}),  # quiet, but not silent
        (np.stack([speech_like(), -speech_like()], 1), {"silent": ["a"]}),  # its channels cancel each other
        (np.stack([speech_like(), np.zeros(RATE)], 1), {}),  # a silent channel
        (np.concatenate([0.3 + 0.2 * speech_like(), np.zeros(RATE)]), {}),  # padding after an offset
        (np.clip(speech_like(), 0, None), {}),
        (np.stack([speech_like(), np.full(RATE, 0.3)], 1), {}),
        (np.stack([speech_like(), dither()], 1), {}),
        (np.round(4 * speech_like() / np.abs(speech_like()).max()) / 128, {}),  # quiet audio of 8 bits
    ],
)
def test_silent_and_constant_audio_is_found(tmp_path, wave, kinds):
    assert rows_by_kind(check_one_set(tmp_path, write_row(tmp_path, "a", wave))) == kinds


@pytest.mark.parametrize(("rate", "suffix"), [(RATE, ".wav"), (8_000, ".wav"), (44_100, ".flac"), (48_000, ".wav")])
@pytest.mark.parametrize(("gain", "limit", "is_clipped"), [(8.0, 1.0, True), (8.0, 0.4, True), (1.9, 1.0, False)])
def test_clipping_is_found_at_full_scale_and_below_it(tmp_path, rate, suffix, gain, limit, is_clipped):
    wave = np.clip(gain * speech_like(rate=rate), -limit, limit)
    report = check_one_set(tmp_path, write_row(tmp_path, "a", wave, rate, audio=f"a{suffix}"))
    assert rows_by_kind(report) == ({"clipped": ["a"]} if is_clipped else {})


def test_channels_without_sound_are_not_clipped(tmp_path: Path, shared_data: Path):
    for name in ("stereo_silent_right", "six_channels"):
        row = {"id": name, "audio": str(shared_data / f"faults/audio/{name}.wav"), "task": "asr", "language": "en"}
        assert not check_one_set(tmp_path, row | {"text": "a"}).findings


def test_clipping_in_one_of_two_channels_is_found(tmp_path):
    wave = np.stack([speech_like(), np.clip(8 * speech_like(seed=1), -1, 1)], 1)
    assert rows_by_kind(check_one_set(tmp_path, write_row(tmp_path, "a", wave))) == {"clipped": ["a"]}


def test_clipping_survives_a_lossy_codec(tmp_path):
    wave = np.clip(8 * speech_like(3.0), -1, 1)
    assert rows_by_kind(check_one_set(tmp_path, write_row(tmp_path, "a", wave, audio="a.ogg"))) == {"clipped": ["a"]}


@pytest.mark.parametrize("pitch", [30, 50, 120, 1000])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_pure_tone_is_not_clipped(pitch, rate):
    time = np.arange(2 * rate) / rate
    for peak in (1.0 - 2**-15, 0.8, 0.3, 0.003):  # 0.003: 100 steps of 16-bit audio
        tone = np.round(peak * np.sin(2 * np.pi * pitch * time) * 2**15) / 2**15
        assert clipped_share(tone[:, None]) == 0


def test_only_the_segment_of_a_row_is_checked(tmp_path):
    """The second half of the file is clipped, and only the second row reads it."""
    wave = np.concatenate([speech_like(1.0), np.clip(8 * speech_like(1.0, seed=1), -1, 1)])
    row = write_row(tmp_path, "a", wave)
    first, second = {**row, "offset": 0.0, "duration": 1.0}, {**row, "id": "b", "offset": 1.0, "duration": 1.0}
    assert rows_by_kind(check_one_set(tmp_path, first, second)) == {"clipped": ["b"]}


# --- one row ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"duration": 2.0}, "is 1.00 s long, but the row states 2.00 s"),
        ({"duration": 0.9}, "is 1.00 s long, but the row states 0.90 s"),
        ({"duration": 1.05}, None),  # durations in manifests are rounded
        ({"offset": 3.0, "duration": 1.0}, "offset 3.0 s is beyond the end"),
        ({"offset": 0.5, "duration": 2.0}, "runs past the end"),
        ({"text": "far too many words for one second of sound, whoever reads them"}, "50 letters in 1.00 s"),
        ({"text": "二十三个字在一秒钟之内谁也不可能说得完的吧是吗", "language": "zh"}, "23 letters in 1.00 s"),
        (
            {"words": [{"word": "hi", "start": 0, "end": 1.5}], "task": "srwt"},
            "`words` end at 1.50 s, but the clip is 1.00",
        ),
    ],
)
def test_audio_whose_length_contradicts_its_row_is_found(tmp_path, fields, message):
    report = check_one_set(tmp_path, write_row(tmp_path, "a", speech_like(), **fields))
    assert rows_by_kind(report) == ({"length": ["a"]} if message else {})
    assert not message or message in report.findings[0].reason


def test_an_unusable_row_is_found_and_its_audio_is_not_read(tmp_path):
    path = write_manifest(
        tmp_path / "rows.jsonl", [write_row(tmp_path, "a", speech_like()), {"id": "b", "task": "asr"}]
    )
    path.write_text(path.read_text() + '{"id": "c", oops\n[1]\n' + json.dumps({"id": "d", "task": "mystery"}) + "\n")
    [manifest] = read_manifests([path])
    report = check_rows([Source("rows", manifest.rows)])
    assert rows_by_kind(report) == {"unusable": ["b", "rows.jsonl:3", "rows.jsonl:4", "d"]}
    assert report.n_rows["rows"] == 5


@pytest.mark.parametrize(
    "labels",
    [{"words": "hello"}, {"words": [3]}, {"split": ["a"]}, {"speaker": {}}, {"turns": 0}, {"references": "x"}],
)
def test_labels_that_the_task_does_not_use_are_not_checked(tmp_path, labels):
    assert check_one_set(tmp_path, write_row(tmp_path, "a", speech_like(), **labels)).findings == ()


def test_an_impossible_file_name_is_reported_as_corrupt(tmp_path):
    row = write_row(tmp_path, "a", speech_like())
    assert rows_by_kind(check_one_set(tmp_path, {**row, "audio": "x" * 5000})) == {"corrupt": ["a"]}


# --- between rows ---


def test_the_same_audio_in_another_container_is_a_duplicate(tmp_path):
    wave = np.round(speech_like() * 2**15) / 2**15
    rows = [write_row(tmp_path, "a", wave), write_row(tmp_path, "b", wave, audio="b.flac", text="something else")]
    report = check_sets(tmp_path, [*rows, write_row(tmp_path, "c", wave[:-200])])
    [finding] = report.findings
    assert (finding.kind, finding.row, finding.other) == ("duplicate", "b", "a")


def test_the_same_clip_in_another_task_is_not_a_duplicate(tmp_path):
    wave = speech_like()
    questions = ({"question": "Is it raining?", "text": "no"}, {"question": "Who speaks?", "text": "a man"})
    rows = [
        write_row(tmp_path, "asr", wave),
        write_row(tmp_path, "sgc", wave, task="sgc", text="male"),
        *(write_row(tmp_path, f"q{n}", wave, task="aqa", **labels) for n, labels in enumerate(questions)),
        *(write_row(tmp_path, f"c{n}", wave, task="aac", text=f"caption {n}") for n in range(2)),
    ]
    assert check_sets(tmp_path, rows).findings == ()
    duplicates = [write_row(tmp_path, "c9", wave, task="aac", text="caption 1")]
    duplicates += [write_row(tmp_path, "q9", wave, task="aqa", question="Is it raining?", text="yes")]
    assert rows_by_kind(check_sets(tmp_path, [*rows, *duplicates])) == {"duplicate": ["c9", "q9"]}


def test_a_test_row_with_audio_of_a_training_row_is_contaminated_even_in_another_task(tmp_path):
    wave = speech_like()
    train = [write_row(tmp_path, "a", wave), write_row(tmp_path, "b", speech_like(seed=1))]
    test = [write_row(tmp_path, "t", wave, task="sgc", text="male"), write_row(tmp_path, "u", speech_like(seed=2))]
    report = check_sets(tmp_path, [], test=test, train=train)  # the order of the sets does not matter
    [finding] = report.findings
    assert (finding.kind, finding.row, finding.source, finding.other) == ("contaminated", "t", "test", "a")
    assert finding.reason == "the same audio as a of train"


@pytest.mark.parametrize(
    ("train_text", "test_text", "is_contaminated"),
    [
        ("The cat sat on it.", "the cat sat on it", True),
        ("他们都很好。", "他们，都很好", True),
        ("the cat sat on it", "the cat sat on them", False),
    ],
)
def test_a_test_row_with_a_sentence_of_a_training_row_is_contaminated(tmp_path, train_text, test_text, is_contaminated):
    train = [write_row(tmp_path, name, speech_like(seed=n), text=train_text) for n, name in enumerate("ab")]
    test = [write_row(tmp_path, "t", speech_like(seed=3), text=test_text)]
    report = check_sets(tmp_path, [], train=train, test=test)
    assert rows_by_kind(report) == ({"contaminated": ["t"]} if is_contaminated else {})
    assert not is_contaminated or report.findings[0].reason == "the same sentence as a of train"


def test_words_with_times_are_compared_with_plain_transcripts(tmp_path):
    words = [{"word": "the", "start": 0, "end": 0.2}, {"word": "cat", "start": 0.2, "end": 0.5}]
    train = [write_row(tmp_path, "a", speech_like(), task="srwt", text=None, words=words)]
    test = [write_row(tmp_path, "t", speech_like(seed=1), text="The cat")]
    assert rows_by_kind(check_sets(tmp_path, [], train=train, test=test)) == {"contaminated": ["t"]}


def test_equal_classes_and_answers_are_not_contamination(tmp_path):
    classes = [write_row(tmp_path, name, speech_like(seed=n), task="sec", text="rain") for n, name in enumerate("ab")]
    fields = {"task": "aqa", "question": "Is it raining?", "text": "yes"}
    questions = [write_row(tmp_path, name, speech_like(seed=n), **fields) for n, name in enumerate("cd", start=2)]
    report = check_sets(tmp_path, [], train=[classes[0], questions[0]], test=[classes[1], questions[1]])
    assert report.findings == ()


@pytest.mark.parametrize(
    ("split", "name"),
    [("train-clean-100", "train"), ("dev", "valid"), ("test-iOS", "test"), ("Eval", "test"), ("x", "x")],
)
def test_split_names_are_mapped_to_train_valid_and_test(tmp_path, split, name):
    report = check_sets(tmp_path, [write_row(tmp_path, "a", speech_like(), split=split)])
    assert list(report.n_rows) == [name]


def test_the_shared_real_recordings_have_no_fault_but_clipping(shared_data):
    """Some recordings of ESC-50 are clipped."""
    paths = {name: shared_data / f"real/esc50.{name}.jsonl" for name in ("train", "test")}
    sources = [
        Source(name, read_manifests([{"path": path, "limit": 12}])[0].rows, name) for name, path in paths.items()
    ]
    report = check_rows(sources, jobs=2)
    assert report.n_rows == {"train": 12, "test": 12}
    assert set(rows_by_kind(report)) <= {"clipped"}
