"""Callbacks: losses of tasks, reports of unusable rows and faults, and files that are replaced atomically."""

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
from auris.text.tasks import LOSS_CURVES
from auris.training import callbacks
from auris.training.callbacks import Faults, ProgressFile, StatusLog, TaskLosses, UnusableRows
from auris.training.faults import Fault

MODULE = SimpleNamespace(max_steps=100)


class Clock:
    """A stand-in for the `time` module. Tests advance it explicitly."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 50.0
        monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=self.read, monotonic=self.read))

    def read(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class LoggingModule(nn.Linear):
    """A module that records the last value of each logged name."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.values: dict[str, float] = {}

    def log(self, name: str, value: float, **_: Any) -> None:
        self.values[name] = value


def trainer(**overrides: Any) -> SimpleNamespace:
    defaults = {
        "datamodule": SimpleNamespace(unusable_rows=list),
        "world_size": 1,
        "is_global_zero": True,
        "global_step": 1,
    }
    return SimpleNamespace(**defaults | {"callback_metrics": {}} | overrides)


# --- the loss of each task ---


class CurveLogger(dict[str, dict[int, float]]):
    """A logger that records every point."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.setdefault(name, {})[step] = value


def run_step(callback: TaskLosses, curves: CurveLogger, step: int, **sums: tuple[float, float]) -> None:
    """Run the callback for one step, given the sum of losses and the number of tokens of each task."""
    values = torch.tensor([sums.get(code, (0.0, 0.0)) for code in LOSS_CURVES]).T
    state = trainer(global_step=step, log_every_n_steps=2, loggers=[curves])
    callback.on_train_batch_end(state, MODULE, {"curve_sums": values})


def test_the_loss_of_a_task_is_the_mean_over_its_tokens_since_the_last_log():
    callback, curves = TaskLosses(), CurveLogger()
    run_step(callback, curves, 1, asr=(8.0, 2))
    run_step(callback, curves, 2, asr=(1.0, 4), aac=(5.0, 2))  # for asr, the mean of the two means would be 2.125
    run_step(callback, curves, 3)
    run_step(callback, curves, 4, asr=(3.0, 2))
    assert curves == {"train/loss/asr": {1: 1.5, 3: 1.5}, "train/loss/aac": {1: 2.5}}


def test_the_losses_of_tasks_continue_in_a_resumed_run():
    callback, resumed, curves = TaskLosses(), TaskLosses(), CurveLogger()
    run_step(callback, curves, 1, asr=(8.0, 2))
    resumed.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    run_step(resumed, curves, 2, asr=(1.0, 4))
    assert curves == {"train/loss/asr": {1: 1.5}}


# --- unusable rows ---


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what the callbacks report to the user."""
    messages: list[str] = []
    monkeypatch.setattr(callbacks, "rank_zero_warn", messages.append)
    monkeypatch.setattr(callbacks, "rank_zero_info", messages.append)
    return messages


def test_a_run_without_a_progress_bar_says_once_a_minute_where_it_is(monkeypatch: pytest.MonkeyPatch):
    seconds, lines = [0.0], []
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    monkeypatch.setattr(callbacks, "rank_zero_info", lines.append)
    log = StatusLog()
    state = SimpleNamespace(global_step=10, progress_bar_callback=None, num_val_batches=[8])
    state.callback_metrics = {"train/loss": torch.tensor(2.5)}
    log.on_train_start(state, MODULE)
    for step in range(11, 41):
        seconds[0] += 5.0
        state.global_step = step
        log.on_train_batch_end(state, MODULE, {})
    assert lines == [
        "step 22 of 100, train/loss 2.500, about 6 min left",
        "step 34 of 100, train/loss 2.500, about 6 min left",
    ]
    seconds[0] += 40.0
    log.on_validation_batch_end(state, MODULE, {}, batch_idx=2)
    assert lines[2:] == ["step 40: validation, batch 3 of 8"]
    state.progress_bar_callback = object()
    seconds[0] += 100.0
    log.on_train_batch_end(state, MODULE, {})
    assert len(lines) == 3


def start(callback: UnusableRows, *problems: tuple[str, str]) -> None:
    callback.on_train_start(trainer(datamodule=SimpleNamespace(unusable_rows=lambda: list(problems))), MODULE)


def skip_rows(callback: UnusableRows, *rows: tuple[str, str], n_read: int = 1, n_unusable_elsewhere: int = 0) -> None:
    """Run a step that reads `n_read` rows. `rows` and `n_unusable_elsewhere` rows of other ranks are unusable."""
    outputs = {"skipped": list(rows), "rows_read": torch.tensor(float(n_read))}
    outputs["rows_unusable"] = torch.tensor(float(len(rows) + n_unusable_elsewhere))
    callback.on_train_batch_end(trainer(), MODULE, outputs)


def read_lines(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "unusable_rows.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_unusable_row_is_reported_once_with_count_and_reason(tmp_path, messages):
    callback = UnusableRows(tmp_path / "run")
    start(callback, ("a", "no `task` field"))
    skip_rows(callback, ("b", "cannot be decoded"))
    skip_rows(callback, ("b", "cannot be decoded"), ("c", "Stille 猫"))
    callback.on_validation_batch_end(trainer(), MODULE, {"skipped": [("v", "too long")]})
    callback.on_fit_end(trainer(), MODULE)
    assert [line["id"] for line in read_lines(tmp_path / "run")] == ["a", "b", "c", "v"]
    assert read_lines(tmp_path / "run")[2]["reason"] == "Stille 猫"
    (message,) = messages
    assert message.splitlines() == [
        "rows that could not be used: 4",
        "  a (1x): no `task` field",
        "  b (2x): cannot be decoded",
        "  c (1x): Stille 猫",
        "  v (1x): too long",
    ]


def test_a_run_without_unusable_rows_says_so_and_leaves_no_file(tmp_path, messages):
    callback = UnusableRows(tmp_path)
    start(callback)
    skip_rows(callback)
    callback.on_fit_end(trainer(), MODULE)
    assert messages == ["all rows could be used"]
    assert list(tmp_path.iterdir()) == []


def test_the_report_lists_ten_rows_and_the_file_lists_all(tmp_path, messages):
    callback = UnusableRows(tmp_path)
    skip_rows(callback, *((f"r{n}", "bad") for n in range(13)))
    callback.on_fit_end(trainer(), MODULE)
    report_lines = messages[0].splitlines()
    assert report_lines[0] == "rows that could not be used: 13" and len(report_lines) == 12
    assert str(tmp_path / "unusable_rows.jsonl") in report_lines[-1]
    assert len(read_lines(tmp_path)) == 13


def test_a_resumed_run_keeps_its_counts_and_reports_no_row_twice(tmp_path, messages):
    first = UnusableRows(tmp_path)
    start(first, ("a", "no `task` field"))
    skip_rows(first, ("b", "cannot be decoded"))
    resumed = UnusableRows(tmp_path)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    start(resumed, ("a", "no `task` field"))
    skip_rows(resumed, ("b", "cannot be decoded"))
    resumed.on_fit_end(trainer(), MODULE)
    assert [line["id"] for line in read_lines(tmp_path)] == ["a", "b"]
    assert messages[0].splitlines()[1:] == ["  a (1x): no `task` field", "  b (2x): cannot be decoded"]


@pytest.mark.parametrize("truncated_line", ['{"id": "b", "rea', '{"id": "b", "reason": "\u00e9"}'])
def test_a_truncated_line_of_a_killed_run_does_not_damage_other_lines(tmp_path, messages, truncated_line):
    first = UnusableRows(tmp_path)
    skip_rows(first, ("a", "bad"))
    with (tmp_path / "unusable_rows.jsonl").open("ab") as file:
        file.write(truncated_line.encode()[:-3])
    second, third = UnusableRows(tmp_path), UnusableRows(tmp_path)
    for callback, rows in ((second, (("b", "bad"), ("c", "bad"))), (third, ())):
        callback.on_train_start(trainer(), MODULE)
        skip_rows(callback, *rows)
    assert third.counts == {"a": 1, "b": 1, "c": 1}


def test_after_a_resume_no_rank_reports_rows_that_another_rank_reported(tmp_path, messages):
    first, second = UnusableRows(tmp_path), UnusableRows(tmp_path)
    skip_rows(first, ("a", "bad"))
    skip_rows(second, ("b", "bad"))
    resumed_first, resumed_second = UnusableRows(tmp_path), UnusableRows(tmp_path)
    for callback, is_global_zero in ((resumed_first, True), (resumed_second, False)):
        callback.load_state_dict(first.state_dict())
        callback.on_train_start(trainer(is_global_zero=is_global_zero), MODULE)
    skip_rows(resumed_first, ("b", "bad"))
    skip_rows(resumed_second, ("a", "bad"))
    assert [line["id"] for line in read_lines(tmp_path)] == ["a", "b"]
    assert resumed_first.counts == {"a": 1, "b": 2} and resumed_second.counts == {"a": 1}


def test_a_restarted_run_forgets_the_reports_of_an_earlier_attempt(tmp_path, messages):
    first = UnusableRows(tmp_path)
    skip_rows(first, ("a", "bad"))
    restarted = UnusableRows(tmp_path)
    restarted.on_train_start(trainer(global_step=0), MODULE)
    restarted.on_fit_end(trainer(), MODULE)
    assert messages == ["all rows could be used"] and list(tmp_path.iterdir()) == []


def test_too_many_unusable_rows_on_all_ranks_together_stop_the_run(tmp_path):
    callback = UnusableRows(tmp_path, max_unusable=0.1)
    for _ in range(9):
        skip_rows(callback, *[(f"r{n}", "bad") for n in range(10)], n_read=100)
        skip_rows(callback, n_read=1000)  # only the last 1000 rows count, and all of these are usable
    skip_rows(callback, *[(f"r{n}", "bad") for n in range(10)], n_read=100, n_unusable_elsewhere=90)
    with pytest.raises(RunStopped, match=r"121 of the last \d+ rows could not be used, .*max_unusable=0.1 of 1000"):
        skip_rows(callback, ("one", "more"), n_read=100, n_unusable_elsewhere=20)


def test_one_unusable_row_stops_the_run_if_max_unusable_is_zero(tmp_path):
    with pytest.raises(RunStopped, match="unusable_rows.jsonl"):
        skip_rows(UnusableRows(tmp_path, max_unusable=0), ("a", "bad"))


# --- faults ---


class FakeTrainer:
    """A trainer stand-in with fixed packs on two ranks."""

    is_global_zero, training = True, True

    def __init__(self) -> None:
        self.global_step = 0
        rows = [SimpleNamespace(id=f"r{n}") for n in range(4)]
        ranks = [[[(0, 0)], [(2, 0)]], [[(1, 1)], []]]  # the packs of each rank; a pack is a list of (row, epoch)
        self.datamodule = SimpleNamespace(rows=rows, packs_by_rank=lambda step: ranks)

    def step(
        self, callback: Faults, module: LoggingModule, loss: float = 1.0, norm: float = 1.0, **counts: float
    ) -> None:
        self.global_step += 1
        outputs = {
            "loss": loss,
            "grad_norm": norm,
            "update_norm": norm,
            "rows_unusable": 0,
            "lost_workers": 0,
            **counts,
        }
        module.hparams = {"recipe": {}}
        callback.on_train_batch_end(self, module, {k: torch.tensor(float(v)) for k, v in outputs.items()})


NAN, INF = float("nan"), float("inf")


def test_faults_are_counted_across_a_resume_and_reported_at_the_end(tmp_path, messages):
    first, module, fake_trainer = Faults(tmp_path), LoggingModule(), FakeTrainer()
    fake_trainer.step(first, module, rows_unusable=3)
    fake_trainer.step(first, module, norm=INF, lost_workers=1)
    resumed = Faults(tmp_path)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    fake_trainer.step(resumed, module, rows_unusable=2)
    assert module.values == {"faults/skipped_steps": 1.0, "faults/unusable_rows": 5.0, "faults/lost_workers": 1.0}
    resumed.on_fit_end(fake_trainer, MODULE)
    assert messages[-1] == "faults: 1 skipped steps, 5 unusable rows, 1 lost workers"
    without_faults = Faults(tmp_path)
    without_faults.on_fit_end(fake_trainer, MODULE)
    assert messages[-1] == "faults: none"


def test_a_non_finite_step_is_saved_with_its_rows_and_weights(tmp_path, messages):
    callback, module, fake_trainer = Faults(tmp_path), LoggingModule(), FakeTrainer()
    fake_trainer.step(callback, module)
    fake_trainer.step(callback, module, loss=NAN)
    fake_trainer.step(callback, module, norm=NAN)
    file = tmp_path / "faults/step_00000001.json"
    fault = Fault.load(file)
    assert (fault.step, fault.weights) == (1, "faults/step_00000001")
    assert fault.reason == "the loss is nan, the gradient norm is 1.0 and the norm of the update is 1.0"
    assert [(p.row, p.id, p.epoch) for p in fault.rows()] == [(0, "r0", 0), (2, "r2", 0), (1, "r1", 1)]
    assert f"auris replay fault={file}" in messages[0] and "the step did not change the weights" in messages[0]
    # The weights have not changed since the first fault, so both faults share them.
    assert Fault.load(tmp_path / "faults/step_00000002.json").weights == fault.weights
    fake_trainer.step(callback, module)
    fake_trainer.step(callback, module, loss=INF)
    weight_dirs = [path.name for path in sorted((tmp_path / "faults").iterdir()) if path.is_dir()]
    # Only the weights of the last series of faults are kept, because they are large.
    assert weight_dirs == ["step_00000004"]


def test_many_consecutive_non_finite_steps_stop_the_run(tmp_path, messages):
    callback, module, fake_trainer = Faults(tmp_path), LoggingModule(), FakeTrainer()
    for _ in range(callbacks.MAX_CONSECUTIVE_SKIPS - 1):
        fake_trainer.step(callback, module, loss=NAN)
    fake_trainer.step(callback, module)
    for _ in range(callbacks.MAX_CONSECUTIVE_SKIPS - 1):
        fake_trainer.step(callback, module, loss=NAN)
    with pytest.raises(
        RunStopped,
        match=r"step 19: the loss is nan.*The 9 steps before it were not finite either: the run has diverged",
    ):
        fake_trainer.step(callback, module, loss=NAN)


def test_the_first_non_finite_step_stops_a_run_whose_setting_nonfinite_is_stop(tmp_path):
    callback, module, fake_trainer = Faults(tmp_path, nonfinite="stop"), LoggingModule(), FakeTrainer()
    fake_trainer.step(callback, module)
    with pytest.raises(RunStopped, match=r"step 1: .* auris replay fault=.*nonfinite=skip to continue"):
        fake_trainer.step(callback, module, norm=INF)


def test_a_step_that_the_loader_cannot_read_is_saved(tmp_path):
    callback, fake_trainer = Faults(tmp_path), FakeTrainer()
    with pytest.warns(UserWarning, match=r"auris replay fault=.*step_00000007.json"):
        callback.on_exception(fake_trainer, MODULE, LoaderError("workers died", 7))
    assert Fault.load(tmp_path / "faults/step_00000007.json").reason == "workers died"
    callback.on_exception(fake_trainer, MODULE, ValueError("something else"))
    assert len(list((tmp_path / "faults").iterdir())) == 1


def test_files_that_cannot_be_written_cause_warnings_but_do_not_stop_the_run(tmp_path, clock):
    """A file with the name of the run folder makes every write below it fail."""
    (tmp_path / "run").write_text("")
    faults, rows, progress = (kind(tmp_path / "run") for kind in (Faults, UnusableRows, ProgressFile))
    with pytest.warns(UserWarning, match="faults was not written"):
        FakeTrainer().step(faults, LoggingModule(), loss=NAN)
    with pytest.warns(UserWarning, match="unusable_rows.jsonl was not written"):
        skip_rows(rows, ("a", "bad"))
    with pytest.warns(UserWarning, match="progress.json was not written"):
        progress.on_train_batch_end(trainer(), MODULE, {})
    assert rows.reasons == {"a": "bad"} and faults.counts["skipped_steps"] == 1


# --- progress ---


def test_progress_is_written_once_a_second_and_at_the_last_step(tmp_path, clock):
    callback = ProgressFile(tmp_path)
    callback.on_train_start(trainer(global_step=0), MODULE)

    def step(number: int, **metrics: float) -> dict[str, float]:
        values = {name: torch.tensor(value) for name, value in metrics.items()}
        callback.on_train_batch_end(trainer(global_step=number, callback_metrics=values), MODULE, {})
        return json.loads((tmp_path / "progress.json").read_text())

    clock.now += 2.0
    assert step(1, loss=4.0) == {"step": 1, "max_steps": 100, "seconds_left": 198.0, "loss": 4.0}
    clock.now += 0.5
    assert step(2)["step"] == 1
    clock.now += 0.6
    assert step(3, loss=2.5) == {
        "step": 3,
        "max_steps": 100,
        "seconds_left": pytest.approx((2.0 + 0.5 + 0.6) / 3 * 97),
        "loss": 2.5,
    }
    clock.now += 0.1
    assert step(100)["step"] == 100
    last = trainer(global_step=100, callback_metrics={"val/loss": torch.tensor(0.5)})
    callback.on_validation_end(last, MODULE)
    assert json.loads((tmp_path / "progress.json").read_text())["val/loss"] == 0.5  # validation follows the last step
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_only_the_first_rank_writes_progress(tmp_path, clock):
    ProgressFile(tmp_path).on_train_batch_end(trainer(is_global_zero=False), MODULE, {})
    ProgressFile(tmp_path).on_validation_end(trainer(is_global_zero=False), MODULE)
    assert list(tmp_path.iterdir()) == []
