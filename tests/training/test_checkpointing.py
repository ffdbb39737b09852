"""Runs that are killed, stopped, damaged or out of disk space end like an undisturbed run."""

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
from tensorboard.summary.writer import event_file_writer

from auris import config
from auris.files import write_yaml
from auris.model.weights import checkpoint_dir, checkpoint_io
from auris.training import run as train
from auris.training.preemption import REQUEUE_STATUS, Preempted, Preemption, run_lock
from support import runs
from support.recipes import smallest_run, with_run_dir
from support.runs import ROOT, KillAt, Killed, assert_equal, environment, fit, in_processes, read_logs, weights

pytestmark = pytest.mark.usefixtures("single_thread")

STEPS = 6  # validated after steps 3 and 6; saved after steps 2 and 4, and at the end
TAGS = ("train/loss", "train/grad_norm", "train/lr", "train/audio_hours", "val/loss")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("persistence")


@pytest.fixture(scope="module")
def compose_run(corpus: Path, folder: Path):
    """Compose a config with STEPS steps: `compose_run("name", "key=value", ...)`."""
    base = [*smallest_run(corpus, folder), f"max_steps={STEPS}", "checkpoint_every=2", "data.rows_per_step=5"]
    base += [f"data.valid=[{{path: '{corpus}/valid.jsonl', limit: 6}}]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)

        @cache
        def compose_cached(*overrides: str) -> dict:
            return config.resolve(config.compose([*base, *overrides]))

        def compose_named(name: str, *overrides: str) -> dict:
            return with_run_dir(compose_cached(*overrides), name, f"{folder}/runs/scratch/{name}/seed_0")

        yield compose_named


@pytest.fixture(autouse=True)
def event_files_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the numbers of event files five digits.

    TensorBoard reads event files in the order of their names: the second, the process, and a number that counts the
    files of the process. Here several starts of a run are in the same second and process, and 10 would come before 9.
    """
    monkeypatch.setattr(event_file_writer._global_uid, "_value", 10_000)


@pytest.fixture(scope="module")
def undisturbed(compose_run) -> dict:
    """Return the config of a finished run that was not disturbed."""
    run_config = compose_run("undisturbed")
    train.train(run_config)
    return run_config


def claim_run_dir(run_config: dict) -> Path:
    run = Path(run_config["run_dir"])
    train.claim_run_dir(run, run_config)
    return run


def curves(run_config: dict) -> dict[str, list[tuple[int, float]]]:
    """Return the scalar curves of a run in TensorBoard."""
    events = EventAccumulator(run_config["run_dir"], size_guidance={"scalars": 0}).Reload()
    tasks = [tag for tag in events.Tags()["scalars"] if tag.startswith("train/loss/")]
    assert tasks
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in (*TAGS, *sorted(tasks))}


def assert_runs_equal(first: dict, second: dict) -> None:
    assert_equal(weights(first), weights(second))
    assert curves(first) == curves(second)
    bests = [checkpoint_dir.find(run_config["run_dir"]).state["best"] for run_config in (first, second)]
    assert bests[0] == bests[1] and bests[0]["step"] in (3, 6)
    assert all(
        checkpoint_dir.find(run_config["run_dir"], "best").step == bests[0]["step"] for run_config in (first, second)
    )


def assert_runs_close(first: dict, second: dict) -> None:
    """Compare runs on different numbers of processes."""
    assert_equal(weights(first), weights(second), tolerance=1e-6)
    first_curves, second_curves = curves(first), curves(second)
    assert list(first_curves) == list(second_curves)
    for tag in first_curves:  # losses are sums over the rows of a step, so different rows would change them
        assert [step for step, _ in first_curves[tag]] == [step for step, _ in second_curves[tag]]
        assert [value for _, value in first_curves[tag]] == pytest.approx(
            [value for _, value in second_curves[tag]], rel=1e-5
        )


class RunAction(L.Callback):
    """Run an action at the end of the given training steps, or before each batch of the given validations."""

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


def send(*numbers: signal.Signals) -> Callable[[], None]:
    """Return an action that sends signals to this process."""
    return lambda: [os.kill(os.getpid(), number) for number in numbers]


# --- killed -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_killed_at_every_step_and_validation_ends_like_an_undisturbed_run(compose_run, undisturbed):
    run_config = compose_run("killed")
    claim_run_dir(run_config)
    for moment in (1, 2, 3, "validation", 4, 5, 6, "validation"):
        with pytest.raises(Killed):
            fit(run_config, RunAction(die, validations=(1,)) if moment == "validation" else KillAt(moment))
    train.train(run_config)
    assert_runs_equal(undisturbed, run_config)


def test_a_run_killed_with_active_loader_workers_has_curves_without_a_gap(compose_run, undisturbed, tmp_path: Path):
    """SIGKILL: the process flushes nothing and prints nothing."""
    run_config = compose_run("sigkill", "data.num_workers=2")
    claim_run_dir(run_config)
    assert in_processes(lambda: fit(run_config, KillAt(5, rank=0)), 1, tmp_path) == [-signal.SIGKILL], read_logs(
        tmp_path
    )
    assert checkpoint_dir.list_steps(Path(run_config["run_dir"]) / "checkpoints")[0] == 4
    train.train(run_config)
    assert_runs_equal(undisturbed, run_config)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_sharded_run_resumes_after_one_process_is_killed(compose_run, tmp_path: Path, rank: int):
    sharded = "strategy=fsdp", "trainer.devices=2", "data.num_workers=1"
    reference_config, run_config = compose_run(f"pair-{rank}", *sharded), compose_run(f"broken-{rank}", *sharded)
    assert in_processes(lambda: train.train(reference_config), 2, tmp_path / "undisturbed") == [0, 0], read_logs(
        tmp_path
    )
    claim_run_dir(run_config)
    exit_codes = in_processes(lambda: fit(run_config, KillAt(5, rank=rank)), 2, tmp_path / "killed")
    assert exit_codes[rank] == -signal.SIGKILL and exit_codes[1 - rank] == 1, read_logs(tmp_path / "killed")
    assert checkpoint_dir.list_steps(Path(run_config["run_dir"]) / "checkpoints")[0] == 4
    assert in_processes(lambda: train.train(run_config), 2, tmp_path / "again") == [0, 0], read_logs(tmp_path / "again")
    assert_runs_close(reference_config, run_config)
    losses = [[loss for _, loss in curves(run)["train/loss"]] for run in (reference_config, run_config)]
    assert len(losses[0]) == STEPS and losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(compose_run, undisturbed):
    run_config = compose_run("damaged")
    run = claim_run_dir(run_config)
    with pytest.raises(Killed):
        fit(run_config, KillAt(5))
    file = run / "checkpoints/step_00000004/weights-00000-of-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step_00000004.*damaged.*trying the checkpoint before step 4"):
        train.train(run_config)
    assert_runs_equal(undisturbed, run_config)


@pytest.mark.slow
def test_a_run_killed_repeatedly_at_random_times_ends_like_an_undisturbed_run(compose_run, undisturbed, folder: Path):
    """The kill may hit the start, training, validation or saving."""
    run_config = compose_run("again", "checkpoint_every=1", "data.num_workers=1")
    run, rng = claim_run_dir(run_config), random.Random(3)
    for _ in range(5):
        process = start(run_config, folder, slow=True)
        before = checkpoint_dir.list_steps(run / "checkpoints")
        deadline = time.monotonic() + 200
        while checkpoint_dir.list_steps(run / "checkpoints") == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.random() * 1.5)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    train.train(run_config)
    assert_runs_equal(undisturbed, run_config)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_resumes_on_another_number_of_processes_with_the_same_rows(
    compose_run, undisturbed, tmp_path: Path, strategy: str
):
    run_config = compose_run(f"grown-{strategy}")
    claim_run_dir(run_config)
    with pytest.raises(Killed):
        fit(run_config, KillAt(3))
    grown = compose_run(f"grown-{strategy}", f"strategy={strategy}", "trainer.devices=2")
    assert in_processes(lambda: train.train(grown), 2, tmp_path) == [0, 0], read_logs(tmp_path)
    assert_runs_close(undisturbed, grown)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_muon_trains_equally_on_two_processes_and_resumes_on_one(compose_run, tmp_path: Path, strategy: str):
    muon = "optim=muon", "optim.lr=1e-3"
    single, double = compose_run("muon", *muon), compose_run(f"muon-{strategy}", *muon)
    train.train(single)
    parallel = compose_run(f"muon-{strategy}", *muon, f"strategy={strategy}", "trainer.devices=2")
    claim_run_dir(parallel)
    exit_codes = in_processes(lambda: fit(parallel, KillAt(5, rank=1)), 2, tmp_path)
    assert exit_codes[1] == -signal.SIGKILL, read_logs(tmp_path)
    train.train(double)
    assert_runs_close(single, double)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_bfloat16_moments_resume_exactly_on_two_processes(compose_run, tmp_path: Path, strategy: str):
    options = f"strategy={strategy}", "trainer.devices=2", "optim=adamw", "optim.states=bf16"
    reference_config, run_config = (
        compose_run(f"half-{strategy}", *options),
        compose_run(f"half-broken-{strategy}", *options),
    )
    assert in_processes(lambda: train.train(reference_config), 2, tmp_path / "undisturbed") == [0, 0], read_logs(
        tmp_path
    )
    claim_run_dir(run_config)
    exit_codes = in_processes(lambda: fit(run_config, KillAt(5, rank=1)), 2, tmp_path / "killed")
    assert exit_codes[1] == -signal.SIGKILL, read_logs(tmp_path / "killed")
    checkpoint = checkpoint_dir.find(run_config["run_dir"])
    moments = checkpoint.tensors("optimizer")
    assert checkpoint.step == 4
    assert {moments.dtype(name) for name in sorted(moments.keys()) if "exp_avg" in name} == {torch.bfloat16}
    assert in_processes(lambda: train.train(run_config), 2, tmp_path / "again") == [0, 0], read_logs(tmp_path / "again")
    assert_runs_equal(reference_config, run_config)
    losses = [loss for _, loss in curves(run_config)["train/loss"]]
    assert len(losses) == STEPS and losses[-1] < losses[0]


# --- stopped ------------------------------------------------------------------------------------------------------


def test_a_signalled_run_saves_and_asks_to_be_requeued(compose_run, undisturbed, monkeypatch, tmp_path: Path):
    """The signal comes after a step, in a validation, in its repetition, and in the last validation."""
    run_config = compose_run("stopped", "checkpoint_every=100")
    monkeypatch.setenv("AURIS_REQUEUE", str(tmp_path / "requeue"))
    run = claim_run_dir(run_config)
    for signal_numbers, action_times, saved_step in (
        ((signal.SIGINT, signal.SIGINT), {"steps": (1,)}, 1),  # timeout(1) sends a signal twice
        ((signal.SIGHUP,), {"validations": (1,)}, 3),
        ((signal.SIGTERM,), {"validations": (1,)}, 3),
        ((signal.SIGUSR1, signal.SIGTERM), {"validations": (2,)}, 6),
    ):
        with pytest.raises(Preempted, match=f"stopped by {signal_numbers[0].name}") as error:
            fit(run_config, RunAction(send(*signal_numbers), **action_times))
        assert error.value.code == REQUEUE_STATUS == 75
        assert f"continues the run from step {saved_step}" in str(error.value)
        assert checkpoint_dir.list_steps(run / "checkpoints")[0] == saved_step and not (run / "finished.json").exists()
        (tmp_path / "requeue").unlink()  # this file tells a job script to requeue
    train.train(run_config)
    assert_runs_equal(undisturbed, run_config)


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_job_whose_processes_are_all_signalled_saves_and_asks_to_be_requeued(
    compose_run, undisturbed, folder: Path, signal_number
):
    """A terminal and a cluster also signal the workers of the data loader."""
    overrides = "data.num_workers=2", "checkpoint_every=100", "trainer.val_check_interval=1.0"
    run_config = compose_run(f"job-{signal_number.name}", *overrides)
    claim_run_dir(run_config)
    process = start(run_config, folder, slow=True)
    wait_for(Path(run_config["run_dir"]) / "progress.json", lambda: process.poll() is None)
    os.killpg(process.pid, signal_number)
    assert process.wait(timeout=100) == REQUEUE_STATUS, (folder / "output").read_text()[-3000:]
    (saved_step,) = checkpoint_dir.list_steps(Path(run_config["run_dir"]) / "checkpoints")
    assert 1 <= saved_step < STEPS
    train.train(run_config)
    assert_equal(weights(undisturbed), weights(run_config))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_signal_to_one_process_stops_all_processes_and_the_run_resumes(
    compose_run, undisturbed, folder: Path, strategy: str
):
    run_config = compose_run(f"pair-{strategy}", f"strategy={strategy}", "trainer.devices=2", "checkpoint_every=100")
    claim_run_dir(run_config)
    process = start(run_config, folder, slow=True)
    wait_for(Path(run_config["run_dir"]) / "progress.json", lambda: process.poll() is None)
    children = [int(line) for line in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(children[0], signal.SIGTERM)
    assert process.wait(timeout=100) == REQUEUE_STATUS, (folder / "output").read_text()[-3000:]
    (saved_step,) = checkpoint_dir.list_steps(Path(run_config["run_dir"]) / "checkpoints")
    assert 1 <= saved_step < STEPS
    assert start(run_config, folder).wait(timeout=200) == 0, (folder / "output").read_text()[-3000:]
    assert_runs_close(undisturbed, run_config)


@pytest.mark.parametrize("signal_number", Preemption.SIGNALS)
def test_before_training_a_signal_stops_the_process_and_the_signal_handlers_are_restored(
    signal_number, monkeypatch, tmp_path: Path, capfd
):
    monkeypatch.setenv("AURIS_REQUEUE", str(tmp_path / "requeue"))
    before = signal.getsignal(signal_number)
    reason = f"stopped by {signal_number.name} before or after training: the same command starts or continues the run"

    def receive() -> None:
        with Preemption():
            send(signal_number)()
            time.sleep(5)  # the signal arrives at once and interrupts the sleep

    with pytest.raises(Preempted, match=reason) as error:
        receive()
    assert error.value.code == REQUEUE_STATUS and capfd.readouterr().err.strip() == reason
    assert (tmp_path / "requeue").is_file()  # this file tells a job script to requeue
    assert signal.getsignal(signal_number) is before


@pytest.mark.parametrize("signal_number", Preemption.SIGNALS)
def test_a_signal_that_the_parent_process_ignores_stays_ignored(signal_number):
    """`nohup` ignores SIGHUP, and a script's background job ignores SIGINT."""
    before = signal.signal(signal_number, signal.SIG_IGN)
    try:
        with Preemption() as preemption:
            send(signal_number)()
        assert preemption.received == ""
    finally:
        signal.signal(signal_number, before)


# Waits for a signal for 60 s, as a run that saves.
_SAVING = """\
import sys, time
from auris.training.preemption import Preemption
with Preemption(exits_at_once=False) as preemption:
    print("ready", flush=True)
    while not preemption.received:
        time.sleep(0.01)
    print("saving", flush=True)
    time.sleep(float(sys.argv[1]))
    print("saved", flush=True)
raise SystemExit(75)
"""


def start_saving(seconds: float, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", _SAVING, str(seconds)]
    return subprocess.Popen(command, env=environment(), text=True, **options)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_the_same_signal_again_ends_the_process_immediately(signal_number):
    process = start_saving(60, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal_number)
    assert process.stdout.readline() == "saving\n"
    time.sleep(0.6)
    process.send_signal(signal_number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == -signal_number and out == ""  # a shell shows 130, 129 or 143
    name = signal_number.name
    assert err.strip() == f"received {name}: saving; {name} again ends the process without saving"


def test_a_process_whose_output_nobody_reads_after_the_signal_saves():
    """The terminal was closed, or Ctrl-C has ended `tee`."""
    terminal, child_side = os.openpty()
    process = start_saving(0, stdout=subprocess.PIPE, stderr=child_side)
    os.close(child_side)
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=20) == REQUEUE_STATUS


# --- out of disk space --------------------------------------------------------------------------------------------


class BrokenDisk(L.Callback):
    """A disk that refuses writes from the end of step `start` (0: at once) to the end of step `stop`."""

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


def test_a_full_disk_prevents_saving_but_not_training(compose_run, undisturbed, monkeypatch):
    run_config = compose_run("full")
    run = claim_run_dir(run_config)
    with pytest.warns(UserWarning, match="could not be saved") as warnings:
        trainer = fit(run_config, BrokenDisk(monkeypatch, OSError(28, "No space left on device"), 2, 4))
    messages = " ".join(str(warning.message) for warning in warnings)
    assert "the checkpoint of step 2 could not be saved ([Errno 28] No space left" in messages
    assert "the curves will have a gap" in messages and "checkpoints that could not be saved: " in messages
    assert train.count_faults(trainer) == dict.fromkeys(("skipped_steps", "unusable_rows", "lost_workers"), 0) | {
        "checkpoints": 2,
        "event_files": 3,  # at both failed checkpoints and after them
    }
    # The checkpoints of step 2 and of step 3 (the best) are missing.
    assert checkpoint_dir.list_steps(run / "checkpoints")[:2] == [STEPS, 4]
    assert_equal(weights(undisturbed), weights(run_config))
    # Curves are written again once the disk accepts writes.
    assert curves(run_config)["train/loss"][-1] == curves(undisturbed)["train/loss"][-1]


def test_missing_write_permission_prevents_saving_but_not_training_and_is_counted(
    compose_run, undisturbed, monkeypatch
):
    """Writes fail from the start of a resumed run until its second checkpoint."""
    run_config = compose_run("forbidden")
    run = claim_run_dir(run_config)
    with pytest.raises(Killed):
        fit(run_config, KillAt(3))
    build = train.build_trainer

    def build_disturbed(*arguments: object) -> L.Trainer:
        trainer = build(*arguments)
        trainer.callbacks.append(BrokenDisk(monkeypatch, PermissionError(13, "Permission denied"), 0, 4))
        return trainer

    monkeypatch.setattr(train, "build_trainer", build_disturbed)
    with pytest.warns(UserWarning, match=r"event file .*Permission denied"):
        train.train(run_config)
    finished = json.loads((run / "finished.json").read_text())
    assert finished["faults/checkpoints"] == 1 and finished["faults/event_files"] >= 1
    assert_equal(weights(undisturbed), weights(run_config))
    # Steps 2 and 3 (counted from 0) are missing: after a failed write, nothing is logged until the next checkpoint.
    assert [step for step, _ in curves(run_config)["train/loss"]] == [0, 1, 4, 5]


def test_a_run_whose_checkpoint_folder_is_a_file_is_not_marked_as_finished(compose_run, monkeypatch):
    run_config = compose_run("file")
    run = claim_run_dir(run_config)
    with pytest.raises(Killed):
        fit(run_config, KillAt(1))
    (run / "checkpoints").write_text("not a folder")
    with pytest.raises(checkpoint_io.SaveError, match="the trained weights could not be saved"):
        train.train(run_config)
    assert not (run / "finished.json").exists()


def test_a_run_whose_final_weights_cannot_be_saved_is_not_marked_as_finished(compose_run, undisturbed, monkeypatch):
    run_config = compose_run("unsaved")

    def refuse_write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_io, "_write_tensors", refuse_write)
        with pytest.raises(checkpoint_io.SaveError, match="the trained weights could not be saved"):
            train.train(run_config)
    assert not (Path(run_config["run_dir"]) / "finished.json").exists()
    train.train(run_config)
    assert_runs_equal(undisturbed, run_config)


# --- run lock -----------------------------------------------------------------------------------------------------


def test_a_run_in_progress_cannot_be_started_a_second_time(compose_run, undisturbed, tmp_path: Path):
    run, locked_file = Path(undisturbed["run_dir"]), tmp_path / "locked"

    def hold() -> None:
        with run_lock(run):
            os.fork()  # like loader workers, the child survives when its parent is killed
            locked_file.touch()
            time.sleep(20)

    (holder,) = runs.start(hold, 1, tmp_path)
    try:
        wait_for(locked_file, holder.is_alive)
        with (
            pytest.raises(ValueError, match=rf"is already being trained, by process {holder.pid} on "),
            run_lock(run, 0),
        ):
            pytest.fail("two processes hold the lock")
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
    train.train(undisturbed)  # the lock is free again, and the run has nothing left to do


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
    """Train in separate processes that form a group, so that all can be signalled together."""
    write_yaml(folder / "config.yaml", run_config)
    (folder / "disturbed.py").write_text(_SCRIPT)
    command = [sys.executable, folder / "disturbed.py", folder / "config.yaml", str(kill_at), str(slow)]
    with (folder / "output").open("wb") as out:
        return subprocess.Popen(command, env=environment(), stdout=out, stderr=out, start_new_session=True)


def wait_for(file: Path, is_alive: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not file.is_file():
        assert is_alive() and time.monotonic() < end, "the process has ended or does not start"
        time.sleep(0.05)
