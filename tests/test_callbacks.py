"""Callbacks: speeds by a clock of our own, unusable rows counted and named, files that are replaced in one move."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from auris import callbacks
from auris.callbacks import ProgressFile, Throughput, UnusableRows

MODULE = SimpleNamespace(max_steps=100)


class Clock:
    """Stands in for the `time` module; moves only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 50.0
        monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=self.read, monotonic=self.read))

    def read(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Log:
    """A module that keeps the last value of what is logged."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def log(self, name: str, value: float, **_: Any) -> None:
        self.values[name] = value


def trainer(**changed: Any) -> SimpleNamespace:
    known = {"datamodule": SimpleNamespace(problems=list), "world_size": 1, "is_global_zero": True, "global_step": 1}
    return SimpleNamespace(**known | {"callback_metrics": {}} | changed)


# --- throughput ---


def work(callback: Throughput, log: Log, clock: Clock, seconds: float, tokens: float, audio: float = 0.0) -> None:
    clock.now += seconds
    callback.on_train_batch_end(trainer(), log, {"tokens": torch.tensor(tokens), "audio_seconds": torch.tensor(audio)})


def test_speed_is_work_over_time_without_the_first_step(clock):
    callback, log = Throughput(), Log()
    work(callback, log, clock, seconds=60, tokens=7)  # warm-up
    assert "tokens/s" not in log.values
    work(callback, log, clock, seconds=2, tokens=100, audio=30)
    work(callback, log, clock, seconds=3, tokens=400, audio=20)
    assert log.values["tokens/s"] == pytest.approx(100)
    assert log.values["audio_s/s"] == pytest.approx(10)


def test_speed_is_that_of_the_last_steps(clock):
    callback, log = Throughput(), Log()
    work(callback, log, clock, seconds=1, tokens=1)
    for _ in range(5):
        work(callback, log, clock, seconds=1, tokens=1)
    for _ in range(callbacks.WINDOW):
        work(callback, log, clock, seconds=1, tokens=50)
    assert log.values["tokens/s"] == pytest.approx(50)


def test_the_time_of_validation_does_not_count(clock):
    callback, log = Throughput(), Log()
    for _ in range(3):
        work(callback, log, clock, seconds=1, tokens=10)
    clock.now += 1000
    callback.on_validation_end(trainer(), log)
    work(callback, log, clock, seconds=1, tokens=10)
    work(callback, log, clock, seconds=1, tokens=10)
    assert log.values["tokens/s"] == pytest.approx(10)


def test_audio_hours_go_on_after_a_resume(clock):
    first, log = Throughput(), Log()
    work(first, log, clock, seconds=1, tokens=5, audio=1800)
    again = Throughput()
    again.load_state_dict(first.state_dict())
    work(again, log, clock, seconds=1, tokens=5, audio=1800)
    assert log.values["train/audio_hours"] == pytest.approx(1.0)


# --- unusable rows ---


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said at the end of a run."""
    said: list[str] = []
    monkeypatch.setattr(callbacks, "rank_zero_warn", said.append)
    monkeypatch.setattr(callbacks, "rank_zero_info", said.append)
    return said


def start(callback: UnusableRows, *problems: tuple[str, str]) -> None:
    callback.on_train_start(trainer(datamodule=SimpleNamespace(problems=lambda: list(problems))), MODULE)


def skip(callback: UnusableRows, *rows: tuple[str, str]) -> None:
    callback.on_train_batch_end(trainer(), MODULE, {"skipped": list(rows)})


def lines(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "unusable_rows.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_row_is_named_once_with_its_reason_and_counted(tmp_path, report):
    callback = UnusableRows(tmp_path / "run")
    start(callback, ("a", "no `task` field"))
    skip(callback, ("b", "cannot be decoded"))
    skip(callback, ("b", "cannot be decoded"), ("c", "Stille 猫"))
    callback.on_validation_batch_end(trainer(), MODULE, {"skipped": [("v", "too long")]})
    callback.on_fit_end(trainer(), MODULE)
    assert [line["id"] for line in lines(tmp_path / "run")] == ["a", "b", "c", "v"]
    assert lines(tmp_path / "run")[2]["reason"] == "Stille 猫"
    (said,) = report
    assert said.splitlines() == [
        "4 rows could not be used:",
        "  a (1x): no `task` field",
        "  b (2x): cannot be decoded",
        "  c (1x): Stille 猫",
        "  v (1x): too long",
    ]


def test_a_run_without_unusable_rows_says_so_and_leaves_no_file(tmp_path, report):
    callback = UnusableRows(tmp_path)
    start(callback)
    skip(callback)
    callback.on_fit_end(trainer(), MODULE)
    assert report == ["every row could be used"]
    assert list(tmp_path.iterdir()) == []


def test_ten_rows_are_shown_and_the_file_has_all(tmp_path, report):
    callback = UnusableRows(tmp_path)
    skip(callback, *((f"r{n}", "bad") for n in range(13)))
    callback.on_fit_end(trainer(), MODULE)
    shown = report[0].splitlines()
    assert shown[0] == "13 rows could not be used:" and len(shown) == 12
    assert str(tmp_path / "unusable_rows.jsonl") in shown[-1]
    assert len(lines(tmp_path)) == 13


def test_a_resumed_run_keeps_what_it_knew_and_repeats_nothing(tmp_path, report):
    first = UnusableRows(tmp_path)
    start(first, ("a", "no `task` field"))
    skip(first, ("b", "cannot be decoded"))
    again = UnusableRows(tmp_path)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    start(again, ("a", "no `task` field"))
    skip(again, ("b", "cannot be decoded"))
    again.on_fit_end(trainer(), MODULE)
    assert [line["id"] for line in lines(tmp_path)] == ["a", "b"]
    assert report[0].splitlines()[1:] == ["  a (1x): no `task` field", "  b (2x): cannot be decoded"]


# --- files that a run is watched and resumed by ---


def test_progress_is_written_each_second_and_at_the_last_step(tmp_path, clock):
    callback = ProgressFile(tmp_path)

    def step(number: int, **metrics: float) -> dict[str, float]:
        values = {name: torch.tensor(value) for name, value in metrics.items()}
        callback.on_train_batch_end(trainer(global_step=number, callback_metrics=values), MODULE, {})
        return json.loads((tmp_path / "progress.json").read_text())

    assert step(1, loss=4.0) == {"step": 1, "max_steps": 100, "loss": 4.0}
    clock.now += 0.5
    assert step(2)["step"] == 1
    clock.now += 0.6
    assert step(3, loss=2.5) == {"step": 3, "max_steps": 100, "loss": 2.5}
    clock.now += 0.1
    assert step(100)["step"] == 100
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_only_the_first_rank_writes_progress(tmp_path, clock):
    ProgressFile(tmp_path).on_train_batch_end(trainer(is_global_zero=False), MODULE, {})
    assert list(tmp_path.iterdir()) == []
