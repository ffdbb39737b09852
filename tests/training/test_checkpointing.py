"""Runs that are killed, stopped, damaged or out of room end as the one that nothing happened to."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from auris import config
from auris.files import write_yaml
from auris.model.weights import checkpoint_dir, checkpoint_io
from auris.training import run as train
from auris.training.preemption import REQUEUE, Preempted, Preemption, run_lock
from support import runs
from support.recipes import smallest_run, with_run_dir
from support.runs import ROOT, KillAt, Killed, assert_equal, environment, fit, in_processes, read_logs, weights

STEPS = 6  # validated after 3 and 6, saved after 2 and 4, and at the end
TAGS = ("train/loss", "train/grad_norm", "train/lr", "train/audio_hours", "val/loss")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("persistence")


@pytest.fixture(scope="module")
def small(corpus: Path, folder: Path):
    """Compose a recipe of STEPS steps: `small("name", "key=value", ...)`."""
    given = [*smallest_run(corpus, folder), f"max_steps={STEPS}", "checkpoint_every=2", "data.rows_per_step=5"]
    given += [f"data.valid=[{{path: '{corpus}/valid.jsonl', limit: 6}}]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)

        @cache
        def compose(*overrides: str) -> dict:
            return config.resolve(config.compose([*given, *overrides]))

        def compose_named(name: str, *overrides: str) -> dict:
            return with_run_dir(compose(*overrides), name, f"{folder}/runs/scratch/{name}/seed_0")

        yield compose_named


@pytest.fixture(scope="module")
def whole(small) -> dict:
    """The recipe of a run that nothing happened to."""
    run_config = small("whole")
    train.train(run_config)
    return run_config


def begin(run_config: dict) -> Path:
    run = Path(run_config["run_dir"])
    train.claim(run, run_config)
    return run


def curves(run_config: dict) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run."""
    events = EventAccumulator(run_config["run_dir"], size_guidance={"scalars": 0}).Reload()
    tasks = [tag for tag in events.Tags()["scalars"] if tag.startswith("train/loss/")]
    assert tasks
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in (*TAGS, *sorted(tasks))}


def assert_alike(one: dict, other: dict) -> None:
    assert_equal(weights(one), weights(other))
    assert curves(one) == curves(other)
    marks = [checkpoint_dir.find(run_config["run_dir"]).state["best"] for run_config in (one, other)]
    assert marks[0] == marks[1] and marks[0]["step"] in (3, 6)
    assert all(
        checkpoint_dir.find(run_config["run_dir"], "best").step == marks[0]["step"] for run_config in (one, other)
    )


def assert_nearly_alike(one: dict, other: dict) -> None:
    """For runs on different numbers of processes."""
    assert_equal(weights(one), weights(other), tolerance=1e-6)
    ours, theirs = curves(one), curves(other)
    assert list(ours) == list(theirs)
    for tag in ours:  # losses are sums over the rows of a step: other rows would show
        assert [step for step, _ in ours[tag]] == [step for step, _ in theirs[tag]]
        assert [value for _, value in ours[tag]] == pytest.approx([value for _, value in theirs[tag]], rel=1e-5)


class Do(L.Callback):
    """Does something at the end of the training steps, or of the validations' batches, that are named."""

    def __init__(self, action, *, steps: tuple[int, ...] = (), validations: tuple[int, ...] = ()) -> None:
        self.action, self.steps, self.validations = action, steps, validations
        self.n_validations = 0

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, number: int) -> None:
        if number + 1 in self.steps:
            self.action()

    def on_validation_start(self, *_: object) -> None:
        self.n_validations += 1

    def on_validation_batch_start(self, *_: object) -> None:
        if self.n_validations in self.validations:
            self.action()


def die() -> None:
    raise Killed


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# --- killed -------------------------------------------------------------------------------------------------------


def test_a_run_killed_at_every_step_and_in_every_validation_ends_as_one_that_was_not(small, whole):
    run_config = small("killed")
    begin(run_config)
    for moment in (1, 2, 3, "validation", 4, 5, 6, "validation"):
        with pytest.raises(Killed):
            fit(run_config, Do(die, validations=(1,)) if moment == "validation" else KillAt(moment))
    train.train(run_config)
    assert_alike(whole, run_config)


def test_a_process_killed_with_its_workers_under_way_leaves_curves_without_a_gap(small, whole, tmp_path: Path):
    """kill -9: nothing is flushed, nothing is said."""
    run_config = small("sigkill", "data.num_workers=2")
    begin(run_config)
    assert in_processes(lambda: fit(run_config, KillAt(5, rank=0)), 1, tmp_path) == [-signal.SIGKILL], read_logs(
        tmp_path
    )
    assert checkpoint_dir.list_steps(Path(run_config["run_dir"]) / "checkpoints")[0] == 4
    train.train(run_config)
    assert_alike(whole, run_config)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_sharded_run_resumes_after_one_process_is_killed(small, tmp_path: Path, rank: int):
    sharded = "strategy=fsdp", "trainer.devices=2", "data.num_workers=1"
    undisturbed, run_config = small(f"pair-{rank}", *sharded), small(f"broken-{rank}", *sharded)
    assert in_processes(lambda: train.train(undisturbed), 2, tmp_path / "undisturbed") == [0, 0], read_logs(tmp_path)
    begin(run_config)
    ends = in_processes(lambda: fit(run_config, KillAt(5, rank=rank)), 2, tmp_path / "killed")
    assert ends[rank] == -signal.SIGKILL and ends[1 - rank] == 1, read_logs(tmp_path / "killed")
    assert checkpoint_dir.list_steps(Path(run_config["run_dir"]) / "checkpoints")[0] == 4
    assert in_processes(lambda: train.train(run_config), 2, tmp_path / "again") == [0, 0], read_logs(tmp_path / "again")
    assert_nearly_alike(undisturbed, run_config)
    losses = [[loss for _, loss in curves(one)["train/loss"]] for one in (undisturbed, run_config)]
    assert len(losses[0]) == STEPS and losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(small, whole):
    run_config = small("damaged")
    run = begin(run_config)
    with pytest.raises(Killed):
        fit(run_config, KillAt(5))
    file = run / "checkpoints/step_00000004/weights-00000-of-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step_00000004.*damaged.*trying the checkpoint before step 4"):
        train.train(run_config)
    assert_alike(whole, run_config)


@pytest.mark.slow
def test_a_process_killed_again_and_again_at_any_moment_ends_as_one_that_was_not(small, whole, folder: Path):
    """While it starts, trains, validates or saves, as it happens."""
    run_config = small("again", "checkpoint_every=1", "data.num_workers=1")
    run, dice = begin(run_config), random.Random(3)
    for _ in range(5):
        process = start(run_config, folder, slow=True)
        before = checkpoint_dir.list_steps(run / "checkpoints")
        deadline = time.monotonic() + 200
        while checkpoint_dir.list_steps(run / "checkpoints") == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(dice.random() * 1.5)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    train.train(run_config)
    assert_alike(whole, run_config)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_resumes_on_another_number_of_processes_with_the_same_rows(small, whole, tmp_path: Path, strategy: str):
    run_config = small(f"grown-{strategy}")
    begin(run_config)
    with pytest.raises(Killed):
        fit(run_config, KillAt(3))
    grown = small(f"grown-{strategy}", f"strategy={strategy}", "trainer.devices=2")
    assert in_processes(lambda: train.train(grown), 2, tmp_path) == [0, 0], read_logs(tmp_path)
    assert_nearly_alike(whole, grown)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_bfloat16_moments_resume_exactly_on_two_processes(small, tmp_path: Path, strategy: str):
    options = f"strategy={strategy}", "trainer.devices=2", "optim.states=bf16", "optim.betas=[0.9,0.98]"
    undisturbed, run_config = small(f"half-{strategy}", *options), small(f"half-broken-{strategy}", *options)
    assert in_processes(lambda: train.train(undisturbed), 2, tmp_path / "undisturbed") == [0, 0], read_logs(tmp_path)
    begin(run_config)
    ends = in_processes(lambda: fit(run_config, KillAt(5, rank=1)), 2, tmp_path / "killed")
    assert ends[1] == -signal.SIGKILL, read_logs(tmp_path / "killed")
    snapshot = checkpoint_dir.find(run_config["run_dir"])
    stored = snapshot.tensors("optimizer")
    assert snapshot.step == 4
    assert {stored.dtype(name) for name in sorted(stored.keys()) if "exp_avg" in name} == {torch.bfloat16}
    assert in_processes(lambda: train.train(run_config), 2, tmp_path / "again") == [0, 0], read_logs(tmp_path / "again")
    assert_alike(undisturbed, run_config)
    losses = [loss for _, loss in curves(run_config)["train/loss"]]
    assert len(losses) == STEPS and losses[-1] < losses[0]


# --- stopped ------------------------------------------------------------------------------------------------------


def test_a_signalled_run_saves_and_asks_to_be_requeued(small, whole, monkeypatch, tmp_path: Path):
    """After a step, in a validation, in the same one when it is done again, and in the last one."""
    run_config = small("stopped", "checkpoint_every=100")
    monkeypatch.setenv("AURIS_REQUEUE", str(tmp_path / "requeue"))
    run = begin(run_config)
    for where, saved in (
        ({"steps": (1,)}, 1),
        ({"validations": (1,)}, 3),
        ({"validations": (1,)}, 3),
        ({"validations": (2,)}, 6),
    ):
        with pytest.raises(Preempted) as stopped:
            fit(run_config, Do(ask_to_stop, **where))
        assert stopped.value.code == REQUEUE == 75 and f"continues from step {saved}" in str(stopped.value)
        assert checkpoint_dir.list_steps(run / "checkpoints")[0] == saved and not (run / "finished.json").exists()
        (tmp_path / "requeue").unlink()  # what a script is told by
    train.train(run_config)
    assert_alike(whole, run_config)


@pytest.mark.slow
def test_a_job_of_which_all_processes_are_signalled_saves_and_asks_to_be_requeued(small, whole, folder: Path):
    """As a cluster tells them: the loader's workers too."""
    run_config = small("job", "data.num_workers=2", "checkpoint_every=100", "trainer.val_check_interval=1.0")
    begin(run_config)
    process = start(run_config, folder, slow=True)
    wait_for(Path(run_config["run_dir"]) / "progress.json", lambda: process.poll() is None)
    os.killpg(process.pid, signal.SIGUSR1)
    assert process.wait(timeout=100) == REQUEUE, (folder / "output").read_text()[-3000:]
    (saved,) = checkpoint_dir.list_steps(Path(run_config["run_dir"]) / "checkpoints")
    assert 1 <= saved < STEPS
    train.train(run_config)
    assert_equal(weights(whole), weights(run_config))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_signalled_process_stops_all_and_the_run_resumes(small, whole, folder: Path, strategy: str):
    run_config = small(f"pair-{strategy}", f"strategy={strategy}", "trainer.devices=2", "checkpoint_every=100")
    begin(run_config)
    process = start(run_config, folder, slow=True)
    wait_for(Path(run_config["run_dir"]) / "progress.json", lambda: process.poll() is None)
    children = [int(line) for line in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(children[0], signal.SIGTERM)
    assert process.wait(timeout=100) == REQUEUE, (folder / "output").read_text()[-3000:]
    (saved,) = checkpoint_dir.list_steps(Path(run_config["run_dir"]) / "checkpoints")
    assert 1 <= saved < STEPS
    assert start(run_config, folder).wait(timeout=200) == 0, (folder / "output").read_text()[-3000:]
    assert_nearly_alike(whole, run_config)


def test_a_signal_before_training_ends_the_process_at_once_and_handlers_are_restored(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("AURIS_REQUEUE", str(tmp_path / "requeue"))
    before = [signal.getsignal(one) for one in Preemption.SIGNALS]

    def receive(number: signal.Signals) -> None:
        with Preemption():
            os.kill(os.getpid(), number)
            time.sleep(5)  # the signal arrives at once and ends this

    for one in Preemption.SIGNALS:
        with pytest.raises(Preempted, match=f"stopped by {one.name} before the first step"), Preemption():  # noqa: PT012
            os.kill(os.getpid(), one)
            time.sleep(5)  # it arrives at once; not to be reached
        (tmp_path / "requeue").unlink()  # what a script is told by
    assert [signal.getsignal(one) for one in Preemption.SIGNALS] == before


# --- out of room --------------------------------------------------------------------------------------------------


class Broken(L.Callback):
    """A disk that takes nothing from the end of one step to the end of another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception, start: int, stop: int) -> None:
        self.patch, self.error, self.start, self.stop = monkeypatch, error, start, stop
        if not start:
            self.refuse()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, number: int) -> None:
        if number + 1 == self.start:
            self.refuse()
        if number + 1 == self.stop:
            self.patch.undo()

    def refuse(self) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise self.error

        self.patch.setattr(checkpoint_io, "_write_tensors", refuse)
        for name in ("__init__", "add_event", "flush"):
            self.patch.setattr(f"tensorboard.summary.writer.event_file_writer.EventFileWriter.{name}", refuse)


def test_a_full_disk_stops_nothing_but_saving(small, whole, monkeypatch):
    run_config = small("full")
    run = begin(run_config)
    with pytest.warns(UserWarning, match="could not be saved") as warnings:
        trainer = fit(run_config, Broken(monkeypatch, OSError(28, "No space left on device"), 2, 4))
    messages = " ".join(str(one.message) for one in warnings)
    assert "the checkpoint of step 2 could not be saved ([Errno 28] No space left" in messages
    assert "the curves will have a gap" in messages and "checkpoints could not be saved" in messages
    assert train.count_faults(trainer) == dict.fromkeys(("skipped_steps", "unusable_rows", "lost_workers"), 0) | {
        "checkpoints": 2,
        "event_files": 3,  # at each of these and after them
    }
    assert checkpoint_dir.list_steps(run / "checkpoints")[:2] == [STEPS, 4]  # 2, and 3 as the best
    assert_equal(weights(whole), weights(run_config))
    assert curves(run_config)["train/loss"][-1] == curves(whole)["train/loss"][-1]  # written again since there is room


def test_files_that_may_not_be_written_stop_nothing_but_saving_and_are_counted_at_the_end(small, whole, monkeypatch):
    """From the first moment of a run that is gone on with, until its second checkpoint."""
    run_config = small("forbidden")
    run = begin(run_config)
    with pytest.raises(Killed):
        fit(run_config, KillAt(3))
    build = train.build_trainer

    def disturbed(*arguments: object) -> L.Trainer:
        trainer = build(*arguments)
        trainer.callbacks.append(Broken(monkeypatch, PermissionError(13, "Permission denied"), 0, 4))
        return trainer

    monkeypatch.setattr(train, "build_trainer", disturbed)
    with pytest.warns(UserWarning, match=r"event files.*Permission denied"):
        train.train(run_config)
    finished = json.loads((run / "finished.json").read_text())
    assert finished["faults/checkpoints"] == 1 and finished["faults/event_files"] >= 1
    assert_equal(weights(whole), weights(run_config))
    assert [step for step, _ in curves(run_config)["train/loss"]] == [0, 1, 4, 5]  # 2 was logged and dropped


def test_a_file_in_place_of_the_checkpoint_folder_only_prevents_checkpoints(small, monkeypatch):
    run_config = small("file")
    run = begin(run_config)
    with pytest.raises(Killed):
        fit(run_config, KillAt(1))
    (run / "checkpoints").write_text("not a folder")
    with pytest.raises(checkpoint_io.SaveError, match="the trained weights could not be saved"):
        train.train(run_config)
    assert not (run / "finished.json").exists()


def test_a_run_whose_last_weights_are_not_on_the_disk_has_not_finished(small, whole, monkeypatch):
    run_config = small("unsaved")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_io, "_write_tensors", full)
        with pytest.raises(checkpoint_io.SaveError, match="the trained weights could not be saved"):
            train.train(run_config)
    assert not (Path(run_config["run_dir"]) / "finished.json").exists()
    train.train(run_config)
    assert_alike(whole, run_config)


@pytest.mark.parametrize("key", ["checkpoint_every", "checkpoint_keep"])
def test_a_number_of_checkpoints_that_makes_no_sense_is_refused(small, key: str):
    with pytest.raises(ValueError, match=f"{key}=0: expected 1 or more"):
        train.train(small("none", f"{key}=0"))


# --- alone --------------------------------------------------------------------------------------------------------


def test_a_running_run_is_not_started_twice(small, whole, tmp_path: Path):
    run, held = Path(whole["run_dir"]), tmp_path / "held"

    def hold() -> None:
        with run_lock(run):
            os.fork()  # as loader workers are, which live on when the process is killed
            held.touch()
            time.sleep(20)

    (holder,) = runs.start(hold, 1, tmp_path)
    try:
        wait_for(held, holder.is_alive)
        with (
            pytest.raises(ValueError, match=rf"is already being trained, by process {holder.pid} on "),
            run_lock(run, 0),
        ):
            pytest.fail("two at once")
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
    train.train(whole)  # finished already


# --- processes ----------------------------------------------------------------------------------------------------

_SCRIPT = """\
import os, signal, sys, time
from pathlib import Path
import lightning as L
from auris.files import read_yaml
from auris.training import run as train

class Disturb(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if slow:
            time.sleep(1)  # so that a signal comes before the end

if __name__ == "__main__":
    kill_at, slow = int(sys.argv[2]), sys.argv[3] == "True"
    build = train.build_trainer
    def disturbed(*arguments):
        trainer = build(*arguments)
        trainer.callbacks.append(Disturb())
        return trainer
    train.build_trainer = disturbed
    train.train(read_yaml(Path(sys.argv[1])))
"""


def start(run_config: dict, folder: Path, *, kill_at: int = -1, slow: bool = False) -> subprocess.Popen:
    """Train in processes of their own, a group that can be told something together."""
    write_yaml(folder / "made.yaml", run_config)
    (folder / "disturbed.py").write_text(_SCRIPT)
    command = [sys.executable, folder / "disturbed.py", folder / "made.yaml", str(kill_at), str(slow)]
    with (folder / "output").open("wb") as out:
        return subprocess.Popen(command, env=environment(), stdout=out, stderr=out, start_new_session=True)


def wait_for(file: Path, lives: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not file.is_file():
        assert lives() and time.monotonic() < end, "it has ended, or does not begin"
        time.sleep(0.05)
