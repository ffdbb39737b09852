"""Runs that are killed, stopped, damaged or out of room end as the one that nothing happened to."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from auris import recipe, snapshots, train
from auris.persistence import REQUEUE, Checkpoints, Preempted, Preemption
from recipes import smallest_run
from runs import ROOT, KillAt, Killed, assert_equal, environment, fit, train_in_a_process, weights

STEPS = 6  # validated after 3 and 6, saved after 2 and 4, and at the end
TAGS = ("train/loss", "train/grad_norm", "train/lr", "train/audio_hours", "val/loss")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("persistence")


@pytest.fixture
def small(corpus: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Compose a recipe of STEPS steps: `small("arm=a")`."""
    monkeypatch.chdir(ROOT)
    given = [*smallest_run(corpus, folder), f"max_steps={STEPS}", "checkpoint_every=2", "data.rows_per_step=5"]
    return lambda *overrides: recipe.resolve(recipe.compose([*given, *overrides]))


@pytest.fixture
def whole(small) -> dict:
    """The recipe of a run that nothing happened to; trained once."""
    made = small("arm=whole")
    train.train(made)
    return made


def begin(made: dict) -> Path:
    run = Path(made["run_dir"])
    train.claim(run, made)
    return run


def curves(made: dict) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run."""
    events = EventAccumulator(made["run_dir"], size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in TAGS}


def assert_alike(one: dict, other: dict) -> None:
    assert_equal(weights(one), weights(other))
    assert curves(one) == curves(other)
    marks = [snapshots.best_mark(Path(made["run_dir"]) / "checkpoints") for made in (one, other)]
    assert marks[0] == marks[1] and marks[0]["step"] in (3, 6)


def assert_nearly_alike(one: dict, other: dict) -> None:
    """For runs on different numbers of processes."""
    assert_equal(weights(one), weights(other), tolerance=1e-6)
    ours, theirs = curves(one), curves(other)
    for tag in TAGS:  # losses are sums over the rows of a step: other rows would show
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


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_run_killed_at_any_step_ends_as_one_that_was_not(small, whole, step: int):
    made = small(f"arm=killed{step}")
    begin(made)
    with pytest.raises(Killed):
        fit(made, KillAt(step))
    train.train(made)
    assert_alike(whole, made)


@pytest.mark.parametrize("validation", [1, 2])
def test_a_run_killed_in_a_validation_ends_as_one_that_was_not(small, whole, validation: int):
    made = small(f"arm=unvalidated{validation}")
    begin(made)
    with pytest.raises(Killed):
        fit(made, Do(die, validations=(validation,)))
    train.train(made)
    assert_alike(whole, made)


def test_a_process_killed_with_its_workers_under_way_leaves_curves_without_a_gap(small, whole, folder: Path):
    """kill -9: nothing is flushed, nothing is said."""
    made = small("arm=sigkill", "data.num_workers=2")
    begin(made)
    process = start(made, folder, kill_at=5)
    assert process.wait(timeout=200) == -signal.SIGKILL
    assert snapshots.steps(Path(made["run_dir"]) / "checkpoints")[0] == 4
    train.train(made)
    assert_alike(whole, made)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(small, whole):
    made = small("arm=damaged")
    run = begin(made)
    with pytest.raises(Killed):
        fit(made, KillAt(5))
    file = run / "checkpoints/step=00000004/weights-00000-of-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step=00000004.*damaged.*trying the checkpoint before step 4"):
        train.train(made)
    assert_alike(whole, made)


@pytest.mark.slow
def test_a_process_killed_again_and_again_at_any_moment_ends_as_one_that_was_not(small, whole, folder: Path):
    """While it starts, trains, validates or saves, as it happens."""
    made = small("arm=again", "checkpoint_every=1", "data.num_workers=1")
    run, dice = begin(made), random.Random(3)
    for _ in range(5):
        process = start(made, folder, slow=True)
        before = snapshots.steps(run / "checkpoints")
        deadline = time.monotonic() + 200
        while snapshots.steps(run / "checkpoints") == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(dice.random() * 1.5)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    train.train(made)
    assert_alike(whole, made)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_another_number_of_processes_goes_on_with_the_same_rows(small, whole, folder: Path, strategy: str):
    made = small(f"arm=grown-{strategy}")
    begin(made)
    with pytest.raises(Killed):
        fit(made, KillAt(3))
    grown = small(f"arm=grown-{strategy}", f"strategy={strategy}", "trainer.devices=2")
    train_in_a_process(grown, folder)
    assert_nearly_alike(whole, grown)


# --- stopped ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where, saved", [({"steps": (1,)}, 1), ({"steps": (3,)}, 3), ({"validations": (1,)}, 3), ({"validations": (2,)}, 6)]
)
def test_a_run_that_is_told_to_stop_saves_and_is_to_be_started_again(small, whole, where: dict, saved: int):
    name = "-".join(f"{key}{value[0]}" for key, value in where.items())
    made = small(f"arm=stopped-{name}", "checkpoint_every=100")
    run = begin(made)
    with pytest.raises(Preempted) as stopped:
        fit(made, Do(ask_to_stop, **where))
    assert stopped.value.code == REQUEUE == 75 and f"goes on from step {saved}" in str(stopped.value)
    assert snapshots.steps(run / "checkpoints")[0] == saved and not (run / "finished.json").exists()
    train.train(made)
    assert_alike(whole, made)


@pytest.mark.slow
def test_a_job_whose_processes_are_all_told_to_stop_saves_and_exits_to_be_requeued(small, whole, folder: Path):
    """As a cluster tells them: the loader's workers too."""
    made = small("arm=job", "data.num_workers=2", "checkpoint_every=100", "trainer.val_check_interval=1.0")
    begin(made)
    process = start(made, folder, slow=True)
    wait_for(Path(made["run_dir"]) / "progress.json", process)
    os.killpg(process.pid, signal.SIGUSR1)
    assert process.wait(timeout=100) == REQUEUE, (folder / "output").read_text()[-3000:]
    (saved,) = snapshots.steps(Path(made["run_dir"]) / "checkpoints")
    assert 1 <= saved < STEPS
    train.train(made)
    assert_equal(weights(whole), weights(made))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_that_is_told_to_stop_stops_all_and_all_go_on(small, whole, folder: Path, strategy: str):
    made = small(f"arm=pair-{strategy}", f"strategy={strategy}", "trainer.devices=2", "checkpoint_every=100")
    begin(made)
    process = start(made, folder, slow=True)
    wait_for(Path(made["run_dir"]) / "progress.json", process)
    children = [int(line) for line in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(children[0], signal.SIGTERM)
    assert process.wait(timeout=100) == REQUEUE, (folder / "output").read_text()[-3000:]
    (saved,) = snapshots.steps(Path(made["run_dir"]) / "checkpoints")
    assert 1 <= saved < STEPS
    assert start(made, folder).wait(timeout=200) == 0, (folder / "output").read_text()[-3000:]
    assert_nearly_alike(whole, made)


def test_before_training_a_signal_ends_the_process_at_once_and_after_it_means_what_it_did():
    before = [signal.getsignal(one) for one in Preemption.SIGNALS]
    for one in Preemption.SIGNALS:
        with pytest.raises(Preempted, match=f"stopped by {one.name} before a step was taken"), Preemption():
            os.kill(os.getpid(), one)
            time.sleep(5)  # it arrives at once; not to be reached
    assert [signal.getsignal(one) for one in Preemption.SIGNALS] == before


# --- out of room --------------------------------------------------------------------------------------------------


class Full(L.Callback):
    """A disk without room from the end of one step to the end of another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start: int, stop: int) -> None:
        self.patch, self.start, self.stop = monkeypatch, start, stop

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, number: int) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        if number + 1 == self.start:
            self.context = self.patch.context()
            patch = self.context.__enter__()
            patch.setattr(snapshots, "_write_tensors", full)
            patch.setattr("tensorboard.summary.writer.event_file_writer.EventFileWriter.add_event", full)
            patch.setattr("tensorboard.summary.writer.event_file_writer.EventFileWriter.flush", full)
        if number + 1 == self.stop:
            self.context.__exit__(None, None, None)


def test_a_full_disk_stops_nothing_but_saving(small, whole, monkeypatch):
    made = small("arm=full")
    run = begin(made)
    with pytest.warns(UserWarning) as said:
        trainer = fit(made, Full(monkeypatch, 2, 4))
    messages = " ".join(str(one.message) for one in said)
    assert "the checkpoint of step 2 could not be saved ([Errno 28] No space left" in messages
    assert "the curves will have a gap" in messages and "times a checkpoint could not be saved" in messages
    checkpoints = next(one for one in trainer.callbacks if isinstance(one, Checkpoints))
    assert checkpoints.failed == 2 and snapshots.steps(run / "checkpoints")[:2] == [STEPS, 4]  # 2, and 3 as the best
    assert_equal(weights(whole), weights(made))
    assert curves(made)["train/loss"][-1] == curves(whole)["train/loss"][-1]  # written again since there is room


def test_a_run_whose_last_weights_are_not_on_the_disk_has_not_finished(small, whole, monkeypatch):
    made = small("arm=unsaved")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "_write_tensors", full)
        with pytest.raises(snapshots.SaveError, match="the trained weights could not be saved"):
            train.train(made)
    assert not (Path(made["run_dir"]) / "finished.json").exists()
    train.train(made)
    assert_alike(whole, made)


@pytest.mark.parametrize("key", ["checkpoint_every", "checkpoint_keep"])
def test_a_number_of_checkpoints_that_makes_no_sense_is_refused(small, key: str):
    with pytest.raises(ValueError, match=f"{key}=0: expected 1 or more"):
        train.train(small("arm=none", f"{key}=0"))


# --- processes ----------------------------------------------------------------------------------------------------

_SCRIPT = """\
import os, signal, sys, time
from pathlib import Path
import lightning as L
from auris import recipe, train

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
    train.train(recipe.load(Path(sys.argv[1])))
"""


def start(made: dict, folder: Path, *, kill_at: int = -1, slow: bool = False) -> subprocess.Popen:
    """Train in processes of their own, a group that can be told something together."""
    recipe.save(made, folder / "made.yaml")
    (folder / "disturbed.py").write_text(_SCRIPT)
    command = [sys.executable, folder / "disturbed.py", folder / "made.yaml", str(kill_at), str(slow)]
    with (folder / "output").open("wb") as out:
        return subprocess.Popen(command, env=environment(), stdout=out, stderr=out, start_new_session=True)


def wait_for(file: Path, process: subprocess.Popen, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not file.is_file():
        assert process.poll() is None and time.monotonic() < end, "it has ended, or does not begin"
        time.sleep(0.05)
