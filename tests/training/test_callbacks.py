"""Callbacks: speeds by a clock of our own, unusable rows counted and named, files that are replaced in one move."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from auris.data.loader import LoaderError
from auris.errors import RunStopped
from auris.text.tasks import CURVES
from auris.training import callbacks
from auris.training.callbacks import Faults, ProgressFile, TaskLosses, UnusableRows
from auris.training.faults import Fault

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


class Log(nn.Linear):
    """A module that keeps the last value of what is logged."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.values: dict[str, float] = {}

    def log(self, name: str, value: float, **_: Any) -> None:
        self.values[name] = value


def trainer(**changed: Any) -> SimpleNamespace:
    known = {"datamodule": SimpleNamespace(problems=list), "world_size": 1, "is_global_zero": True, "global_step": 1}
    return SimpleNamespace(**known | {"callback_metrics": {}} | changed)


# --- the loss of each task ---


class Curves(dict[str, dict[int, float]]):
    """A logger that keeps every point."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.setdefault(name, {})[step] = value


def step_of_tasks(callback: TaskLosses, curves: Curves, step: int, **sums: tuple[float, float]) -> None:
    """One step with these sums: (loss, tokens) of tasks."""
    values = torch.tensor([sums.get(code, (0.0, 0.0)) for code in CURVES]).T
    state = trainer(global_step=step, log_every_n_steps=2, loggers=[curves])
    callback.on_train_batch_end(state, MODULE, {"tasks": values})


def test_the_loss_of_a_task_is_the_mean_over_its_tokens_since_the_last_log():
    callback, curves = TaskLosses(), Curves()
    step_of_tasks(callback, curves, 1, asr=(8.0, 2))
    step_of_tasks(callback, curves, 2, asr=(1.0, 4), aac=(5.0, 2))  # not the mean of means, 2.125
    step_of_tasks(callback, curves, 3)
    step_of_tasks(callback, curves, 4, asr=(3.0, 2))
    assert curves == {"train/loss/asr": {1: 1.5, 3: 1.5}, "train/loss/aac": {1: 2.5}}


def test_the_losses_of_tasks_continue_in_a_resumed_run():
    callback, resumed, curves = TaskLosses(), TaskLosses(), Curves()
    step_of_tasks(callback, curves, 1, asr=(8.0, 2))
    resumed.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    step_of_tasks(resumed, curves, 2, asr=(1.0, 4))
    assert curves == {"train/loss/asr": {1: 1.5}}


# --- unusable rows ---


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said at the end of a run."""
    messages: list[str] = []
    monkeypatch.setattr(callbacks, "rank_zero_warn", messages.append)
    monkeypatch.setattr(callbacks, "rank_zero_info", messages.append)
    return messages


def start(callback: UnusableRows, *problems: tuple[str, str]) -> None:
    callback.on_train_start(trainer(datamodule=SimpleNamespace(problems=lambda: list(problems))), MODULE)


def skip(callback: UnusableRows, *rows: tuple[str, str], met: int = 1, elsewhere: int = 0) -> None:
    """A step of `met` rows in which `rows` could not be used, nor `elsewhere` rows of other ranks."""
    outputs = {"skipped": list(rows), "rows_read": torch.tensor(float(met))}
    outputs["rows_unusable"] = torch.tensor(float(len(rows) + elsewhere))
    callback.on_train_batch_end(trainer(), MODULE, outputs)


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
    (message,) = report
    assert message.splitlines() == [
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


def test_a_resumed_run_keeps_its_counts_and_repeats_no_report(tmp_path, report):
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


@pytest.mark.parametrize("half", ['{"id": "b", "rea', '{"id": "b", "reason": "\u00e9"}'])
def test_half_a_line_of_a_killed_run_costs_no_other_line(tmp_path, report, half):
    first = UnusableRows(tmp_path)
    skip(first, ("a", "bad"))
    with (tmp_path / "unusable_rows.jsonl").open("ab") as file:
        file.write(half.encode()[:-3])
    again, last = UnusableRows(tmp_path), UnusableRows(tmp_path)
    for callback, rows in ((again, (("b", "bad"), ("c", "bad"))), (last, ())):
        callback.on_train_start(trainer(), MODULE)
        skip(callback, *rows)
    assert last.counts == {"a": 1, "b": 1, "c": 1}


def test_after_a_resume_no_rank_repeats_rows_that_another_rank_reported(tmp_path, report):
    first, second = UnusableRows(tmp_path), UnusableRows(tmp_path)
    skip(first, ("a", "bad"))
    skip(second, ("b", "bad"))
    again, other = UnusableRows(tmp_path), UnusableRows(tmp_path)
    for callback, is_first in ((again, True), (other, False)):
        callback.load_state_dict(first.state_dict())
        callback.on_train_start(trainer(is_global_zero=is_first), MODULE)
    skip(again, ("b", "bad"))
    skip(other, ("a", "bad"))
    assert [line["id"] for line in lines(tmp_path)] == ["a", "b"]
    assert again.counts == {"a": 1, "b": 2} and other.counts == {"a": 1}


def test_a_restarted_run_forgets_the_reports_of_an_earlier_attempt(tmp_path, report):
    first = UnusableRows(tmp_path)
    skip(first, ("a", "bad"))
    again = UnusableRows(tmp_path)
    again.on_train_start(trainer(global_step=0), MODULE)
    again.on_fit_end(trainer(), MODULE)
    assert report == ["every row could be used"] and list(tmp_path.iterdir()) == []


def test_rows_beyond_the_share_that_may_be_unusable_stop_the_run_wherever_they_were_met(tmp_path):
    callback = UnusableRows(tmp_path, max_unusable=0.1)
    for _ in range(9):
        skip(callback, *[(f"r{n}", "bad") for n in range(10)], met=100)
        skip(callback, met=1000)  # of any thousand rows in a row, not of all
    skip(callback, *[(f"r{n}", "bad") for n in range(10)], met=100, elsewhere=90)
    with pytest.raises(RunStopped, match=r"121 of the last \d+ rows could not be used, .*max_unusable=0.1 of 1000"):
        skip(callback, ("one", "more"), met=100, elsewhere=20)


def test_no_row_may_be_unusable_where_the_share_is_nothing(tmp_path):
    with pytest.raises(RunStopped, match="unusable_rows.jsonl"):
        skip(UnusableRows(tmp_path, max_unusable=0), ("a", "bad"))


# --- faults ---


class Running:
    """A trainer of two steps' worth of rows on two ranks, which notes where it saves."""

    is_global_zero, training = True, True

    def __init__(self) -> None:
        self.global_step = 0
        rows = [SimpleNamespace(id=f"r{n}") for n in range(4)]
        ranks = [[[(0, 0)], [(2, 0)]], [[(1, 1)], []]]
        self.datamodule = SimpleNamespace(rows=rows, packs_by_rank=lambda step: ranks)

    def step(self, callback: Faults, log: Log, loss: float = 1.0, norm: float = 1.0, **counts: float) -> None:
        self.global_step += 1
        outputs = {"loss": loss, "grad_norm": norm, "rows_unusable": 0, "lost_workers": 0, **counts}
        log.hparams = {"recipe": {}}
        callback.on_train_batch_end(self, log, {k: torch.tensor(float(v)) for k, v in outputs.items()})


NAN, INF = float("nan"), float("inf")


def test_faults_are_counted_across_a_resume_and_reported_at_the_end(tmp_path, report):
    first, log, run = Faults(tmp_path), Log(), Running()
    run.step(first, log, rows_unusable=3)
    run.step(first, log, norm=INF, lost_workers=1)
    again = Faults(tmp_path)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    run.step(again, log, rows_unusable=2)
    assert log.values == {"faults/skipped_steps": 1.0, "faults/unusable_rows": 5.0, "faults/lost_workers": 1.0}
    again.on_fit_end(run, MODULE)
    assert report[-1] == "faults: 1 skipped steps, 5 unusable rows, 1 lost workers"
    fine = Faults(tmp_path)
    fine.on_fit_end(run, MODULE)
    assert report[-1] == "faults: none"


def test_a_step_that_is_not_finite_is_kept_with_its_rows_and_weights(tmp_path, report):
    callback, log, run = Faults(tmp_path), Log(), Running()
    run.step(callback, log)
    run.step(callback, log, loss=NAN)
    run.step(callback, log, norm=NAN)
    file = tmp_path / "faults/step_00000001.json"
    fault = Fault.load(file)
    assert (fault.step, fault.weights) == (1, "faults/step_00000001")
    assert fault.reason == "the loss is nan, the gradient norm 1.0"
    assert [(p.row, p.id, p.epoch) for p in fault.rows()] == [(0, "r0", 0), (2, "r2", 0), (1, "r1", 1)]
    assert f"auris replay fault={file}" in report[0] and "it changed no weight" in report[0]
    assert Fault.load(tmp_path / "faults/step_00000002.json").weights == fault.weights  # nothing has moved since
    run.step(callback, log)
    run.step(callback, log, loss=INF)
    kept = [path.name for path in sorted((tmp_path / "faults").iterdir()) if path.is_dir()]
    assert kept == ["step_00000004"]  # of the last series: weights are large


def test_many_steps_in_a_row_that_are_not_finite_stop_the_run(tmp_path, report):
    callback, log, run = Faults(tmp_path), Log(), Running()
    for _ in range(callbacks.MAX_SKIPS - 1):
        run.step(callback, log, loss=NAN)
    run.step(callback, log)
    for _ in range(callbacks.MAX_SKIPS - 1):
        run.step(callback, log, loss=NAN)
    with pytest.raises(
        RunStopped,
        match=r"step 19: the loss is nan.*The 9 steps before it were not finite either: the run has diverged",
    ):
        run.step(callback, log, loss=NAN)


def test_the_first_step_that_is_not_finite_stops_a_run_that_wants_it(tmp_path):
    callback, log, run = Faults(tmp_path, nonfinite="stop"), Log(), Running()
    run.step(callback, log)
    with pytest.raises(RunStopped, match=r"step 1: .* auris replay fault=.*nonfinite=skip to continue"):
        run.step(callback, log, norm=INF)
    with pytest.raises(ValueError, match="nonfinite=ignore: expected skip or stop"):
        Faults(tmp_path, nonfinite="ignore")


def test_a_step_that_the_loader_gives_up_is_kept_too(tmp_path):
    callback, run = Faults(tmp_path), Running()
    with pytest.warns(UserWarning, match=r"auris replay fault=.*step_00000007.json"):
        callback.on_exception(run, MODULE, LoaderError("workers died", 7))
    assert Fault.load(tmp_path / "faults/step_00000007.json").reason == "workers died"
    callback.on_exception(run, MODULE, ValueError("something else"))
    assert len(list((tmp_path / "faults").iterdir())) == 1


def test_a_full_disk_costs_files_and_warnings_but_no_run(tmp_path, clock):
    """A file where the folder should be: nothing can be written below it."""
    (tmp_path / "run").write_text("")
    faults, rows, progress = (kind(tmp_path / "run") for kind in (Faults, UnusableRows, ProgressFile))
    with pytest.warns(UserWarning, match="faults was not written"):
        Running().step(faults, Log(), loss=NAN)
    with pytest.warns(UserWarning, match="unusable_rows.jsonl was not written"):
        skip(rows, ("a", "bad"))
    with pytest.warns(UserWarning, match="progress.json was not written"):
        progress.on_train_batch_end(trainer(), MODULE, {})
    assert rows.reasons == {"a": "bad"} and faults.counts["skipped_steps"] == 1


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
    last = trainer(global_step=100, callback_metrics={"val/loss": torch.tensor(0.5)})
    callback.on_validation_end(last, MODULE)
    assert json.loads((tmp_path / "progress.json").read_text())["val/loss"] == 0.5  # it comes after the last step
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_only_the_first_rank_writes_progress(tmp_path, clock):
    ProgressFile(tmp_path).on_train_batch_end(trainer(is_global_zero=False), MODULE, {})
    ProgressFile(tmp_path).on_validation_end(trainer(is_global_zero=False), MODULE)
    assert list(tmp_path.iterdir()) == []
