"""Each fault that is planted in a few rows is found, under its kind; sound rows have none."""

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
    """Noise of low frequencies whose loudness swells and falls."""
    n = round(seconds * rate)
    noise = np.convolve(np.random.default_rng(seed).normal(size=n), np.hanning(20), "same")
    wave = noise * np.sin(np.linspace(0, 3 * np.pi, n))
    return (0.5 * wave / np.abs(wave).max()).astype(np.float32)


def write_row(folder: Path, name: str, wave: np.ndarray, rate: int = RATE, **changed: Any) -> dict[str, Any]:
    path = folder / changed.pop("audio", f"{name}.wav")
    soundfile.write(path, wave, rate)
    given = {"id": name, "audio": path.name, "task": "asr", "language": "en", "text": f"the {name} of it"}
    return {key: value for key, value in {**given, **changed}.items() if value is not None}


def look(folder: Path, rows: list[dict[str, Any]], **sets: list[dict[str, Any]]) -> Report:
    sources = []
    for name, listed in (({"rows": rows} if rows else {}) | sets).items():
        [manifest] = read_manifests([write_manifest(folder / f"{name}.jsonl", listed)])
        sources.append(Source(name, manifest.rows, None if name == "rows" else name))
    return check_rows(sources, jobs=2)


def look_at(folder: Path, *rows: dict[str, Any]) -> Report:
    return look(folder, list(rows))


def found(report: Report) -> dict[str, list[str]]:
    """Rows by kind."""
    kinds: dict[str, list[str]] = {}
    for one in report.findings:
        kinds.setdefault(one.kind, []).append(one.row)
    return kinds


def test_good_rows_have_no_findings_and_are_counted(tmp_path):
    rows = [write_row(tmp_path, f"r{n}", speech_like(1 + n / 4, seed=n), duration=1 + n / 4) for n in range(3)]
    rows.append(write_row(tmp_path, "stereo", np.stack([speech_like(seed=8), speech_like(seed=9)], 1), split="test"))
    rows.append(
        write_row(tmp_path, "fast", speech_like(2.0, seed=10, rate=44_100), 44_100, audio="fast.flac", split="dev")
    )
    report = look(tmp_path, rows)
    assert report.findings == () and set(report.counts()) == set(KINDS)
    assert report.rows == {"rows": 3, "test": 1, "valid": 1}
    assert report.seconds == pytest.approx({"rows": 3.75, "test": 1.0, "valid": 2.0})


# --- one clip ---


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_sound_that_is_missing_damaged_or_empty_is_corrupt(tmp_path, suffix):
    rows = [write_row(tmp_path, name, speech_like(seed=n), audio=name + suffix) for n, name in enumerate("abcd")]
    (tmp_path / f"a{suffix}").unlink()
    (tmp_path / f"b{suffix}").write_bytes(b"")
    (tmp_path / f"c{suffix}").write_bytes((tmp_path / f"c{suffix}").read_bytes()[:30])
    assert found(look(tmp_path, rows)) == {"corrupt": ["a", "b", "c"]}


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_file_that_was_cut_off_is_corrupt_though_its_row_states_no_length(tmp_path, suffix):
    row = write_row(tmp_path, "a", speech_like(4.0), audio=f"a{suffix}")
    path = tmp_path / row["audio"]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    [one] = look_at(tmp_path, row).findings
    assert one.kind == "corrupt" and "truncated" in one.reason or "cannot be decoded" in one.reason


def test_a_wav_that_was_written_to_a_pipe_is_whole(tmp_path):
    """Its header states the largest length there is."""
    row = write_row(tmp_path, "a", speech_like())
    data = bytearray((tmp_path / "a.wav").read_bytes())
    start = data.index(b"data") + 4
    data[4:8] = data[start : start + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(bytes(data))
    assert look_at(tmp_path, row).findings == ()


@pytest.mark.parametrize(
    ("wave", "kinds"),
    [
        (np.zeros(RATE), {"silent": ["a"]}),
        (np.full(RATE, 0.3), {"silent": ["a"]}),  # a constant is no sound
        (5e-4 * speech_like(), {}),  # faint
    ],
)
def test_silence(tmp_path, wave, kinds):
    assert found(look_at(tmp_path, write_row(tmp_path, "a", wave))) == kinds


@pytest.mark.parametrize(("rate", "suffix"), [(RATE, ".wav"), (8_000, ".wav"), (44_100, ".flac"), (48_000, ".wav")])
@pytest.mark.parametrize(("gain", "limit", "is_clipped"), [(8.0, 1.0, True), (8.0, 0.4, True), (1.9, 1.0, False)])
def test_clipping_is_found_at_full_scale_and_below_it(tmp_path, rate, suffix, gain, limit, is_clipped):
    wave = np.clip(gain * speech_like(rate=rate), -limit, limit)
    report = look_at(tmp_path, write_row(tmp_path, "a", wave, rate, audio=f"a{suffix}"))
    assert found(report) == ({"clipped": ["a"]} if is_clipped else {})


def test_clipping_in_one_of_two_channels_is_found(tmp_path):
    wave = np.stack([speech_like(), np.clip(8 * speech_like(seed=1), -1, 1)], 1)
    assert found(look_at(tmp_path, write_row(tmp_path, "a", wave))) == {"clipped": ["a"]}


def test_clipping_survives_a_lossy_codec(tmp_path):
    wave = np.clip(8 * speech_like(3.0), -1, 1)
    assert found(look_at(tmp_path, write_row(tmp_path, "a", wave, audio="a.ogg"))) == {"clipped": ["a"]}


@pytest.mark.parametrize("pitch", [30, 50, 120, 1000])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_pure_tone_is_not_clipped(pitch, rate):
    time = np.arange(2 * rate) / rate
    for peak in (1.0 - 2**-15, 0.8, 0.3):
        tone = np.round(peak * np.sin(2 * np.pi * pitch * time) * 2**15) / 2**15
        assert clipped_share(tone[:, None]) == 0


def test_a_stretch_is_looked_at_alone(tmp_path):
    """Its second half is clipped."""
    wave = np.concatenate([speech_like(1.0), np.clip(8 * speech_like(1.0, seed=1), -1, 1)])
    row = write_row(tmp_path, "a", wave)
    first, second = {**row, "offset": 0.0, "duration": 1.0}, {**row, "id": "b", "offset": 1.0, "duration": 1.0}
    assert found(look_at(tmp_path, first, second)) == {"clipped": ["b"]}


# --- one row ---


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"duration": 2.0}, "has 1.00 s, but the row states 2.00 s"),
        ({"duration": 0.9}, "has 1.00 s, but the row states 0.90 s"),
        ({"duration": 1.05}, None),  # manifests round
        ({"offset": 3.0, "duration": 1.0}, "offset 3.0 s is beyond its end"),
        ({"offset": 0.5, "duration": 2.0}, "runs past its end"),
        ({"text": "far too many words for one second of sound, whoever reads them"}, "50 letters in 1.00 s"),
        ({"text": "二十三个字在一秒钟之内谁也不可能说得完的吧是吗", "language": "zh"}, "23 letters in 1.00 s"),
        (
            {"words": [{"word": "hi", "start": 0, "end": 1.5}], "task": "srwt"},
            "`words` end at 1.50 s, but the clip has 1.00",
        ),
    ],
)
def test_sound_that_is_not_as_long_as_its_row_says(tmp_path, changed, message):
    report = look_at(tmp_path, write_row(tmp_path, "a", speech_like(), **changed))
    assert found(report) == ({"length": ["a"]} if message else {})
    assert not message or message in report.findings[0].reason


def test_a_row_that_cannot_be_used_is_named_and_its_sound_left_alone(tmp_path):
    path = write_manifest(
        tmp_path / "rows.jsonl", [write_row(tmp_path, "a", speech_like()), {"id": "b", "task": "asr"}]
    )
    path.write_text(path.read_text() + '{"id": "c", oops\n[1]\n' + json.dumps({"id": "d", "task": "mystery"}) + "\n")
    [manifest] = read_manifests([path])
    report = check_rows([Source("rows", manifest.rows)])
    assert found(report) == {"unusable": ["b", "rows.jsonl:3", "rows.jsonl:4", "d"]}
    assert report.rows["rows"] == 5


@pytest.mark.parametrize(
    "hostile",
    [{"words": "hello"}, {"words": [3]}, {"split": ["a"]}, {"speaker": {}}, {"turns": 0}, {"references": "x"}],
)
def test_labels_that_its_task_does_not_need_are_left_alone(tmp_path, hostile):
    assert look_at(tmp_path, write_row(tmp_path, "a", speech_like(), **hostile)).findings == ()


def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path):
    row = write_row(tmp_path, "a", speech_like())
    assert found(look_at(tmp_path, {**row, "audio": "x" * 5000})) == {"corrupt": ["a"]}


# --- between rows ---


def test_the_same_audio_in_any_container_is_a_duplicate(tmp_path):
    wave = np.round(speech_like() * 2**15) / 2**15
    rows = [write_row(tmp_path, "a", wave), write_row(tmp_path, "b", wave, audio="b.flac", text="something else")]
    report = look(tmp_path, [*rows, write_row(tmp_path, "c", wave[:-200])])
    [one] = report.findings
    assert (one.kind, one.row, one.other) == ("duplicate", "b", "a")


def test_the_same_clip_in_another_task_is_no_duplicate(tmp_path):
    wave = speech_like()
    questions = ({"question": "Is it raining?", "text": "no"}, {"question": "Who speaks?", "text": "a man"})
    rows = [
        write_row(tmp_path, "asr", wave),
        write_row(tmp_path, "sgc", wave, task="sgc", text="male"),
        *(write_row(tmp_path, f"q{n}", wave, task="aqa", **one) for n, one in enumerate(questions)),
        *(write_row(tmp_path, f"c{n}", wave, task="aac", text=f"caption {n}") for n in range(2)),
    ]
    assert look(tmp_path, rows).findings == ()
    again = [write_row(tmp_path, "c9", wave, task="aac", text="caption 1")]
    again += [write_row(tmp_path, "q9", wave, task="aqa", question="Is it raining?", text="yes")]
    assert found(look(tmp_path, [*rows, *again])) == {"duplicate": ["c9", "q9"]}


def test_audio_of_a_training_row_contaminates_a_test_set_for_any_task(tmp_path):
    wave = speech_like()
    train = [write_row(tmp_path, "a", wave), write_row(tmp_path, "b", speech_like(seed=1))]
    test = [write_row(tmp_path, "t", wave, task="sgc", text="male"), write_row(tmp_path, "u", speech_like(seed=2))]
    report = look(tmp_path, [], test=test, train=train)  # in whatever order they are given
    [one] = report.findings
    assert (one.kind, one.row, one.source, one.other) == ("contaminated", "t", "test", "a")
    assert one.reason == "the same audio as a of train"


@pytest.mark.parametrize(
    ("known", "asked", "is_contaminated"),
    [
        ("The cat sat on it.", "the cat sat on it", True),
        ("他们都很好。", "他们，都很好", True),
        ("the cat sat on it", "the cat sat on them", False),
    ],
)
def test_a_sentence_of_a_training_row_contaminates_a_test_set(tmp_path, known, asked, is_contaminated):
    train = [write_row(tmp_path, name, speech_like(seed=n), text=known) for n, name in enumerate("ab")]
    test = [write_row(tmp_path, "t", speech_like(seed=3), text=asked)]
    report = look(tmp_path, [], train=train, test=test)
    assert found(report) == ({"contaminated": ["t"]} if is_contaminated else {})
    assert not is_contaminated or report.findings[0].reason == "the same sentence as a of train"


def test_words_with_times_and_the_plain_transcript_are_the_same_sentence(tmp_path):
    words = [{"word": "the", "start": 0, "end": 0.2}, {"word": "cat", "start": 0.2, "end": 0.5}]
    train = [write_row(tmp_path, "a", speech_like(), task="srwt", text=None, words=words)]
    test = [write_row(tmp_path, "t", speech_like(seed=1), text="The cat")]
    assert found(look(tmp_path, [], train=train, test=test)) == {"contaminated": ["t"]}


def test_classes_and_answers_are_shared_by_all_sets(tmp_path):
    closed = [write_row(tmp_path, name, speech_like(seed=n), task="sec", text="rain") for n, name in enumerate("ab")]
    asked = {"task": "aqa", "question": "Is it raining?", "text": "yes"}
    asks = [write_row(tmp_path, name, speech_like(seed=n), **asked) for n, name in enumerate("cd", start=2)]
    report = look(tmp_path, [], train=[closed[0], asks[0]], test=[closed[1], asks[1]])
    assert report.findings == ()


@pytest.mark.parametrize(
    ("split", "name"),
    [("train-clean-100", "train"), ("dev", "valid"), ("test-iOS", "test"), ("Eval", "test"), ("x", "x")],
)
def test_splits_of_many_names_are_of_few_sets(tmp_path, split, name):
    report = look(tmp_path, [write_row(tmp_path, "a", speech_like(), split=split)])
    assert list(report.rows) == [name]


def test_the_shared_real_recordings_have_no_faults(shared_data):
    """Coffee orders, which are the shortest to decode; a part of ESC-50 is clipped, and says so."""
    paths = {name: shared_data / f"real/esc50.{name}.jsonl" for name in ("train", "test")}
    sources = [
        Source(name, read_manifests([{"path": path, "limit": 12}])[0].rows, name) for name, path in paths.items()
    ]
    report = check_rows(sources, jobs=2)
    assert report.rows == {"train": 12, "test": 12}
    assert set(found(report)) <= {"clipped"}
