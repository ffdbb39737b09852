"""What makes a run outlive its processes: a lock, checkpoints and resuming, the cluster's signals, event files.

Unusual here: a position in a run is its number of steps. Lightning's own counters are made from it, and none of its
checkpoint machinery is used, so that all strategies save and resume by the same few lines.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import lightning as L
import numpy as np
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from auris import audio
from auris.errors import UserError
from auris.model.weights import checkpoint_dir

# Exit status of a run that was stopped from outside and goes on when it is started again: sysexits.h's "temporary
# failure; the user is invited to retry". A job script requeues on it.
REQUEUE = os.EX_TEMPFAIL  # 75
# Seconds that a start waits for an earlier one to be gone: processes that lost another of theirs take some to notice.
PATIENCE = 30.0


# Environment variable with the path of a file that is made then, for a script whose launcher ends with a status of its
# own, as torchrun does (`scripts/torchrun.sh`).
REQUEUE_FILE = "AURIS_REQUEUE"


class Preempted(SystemExit):
    """Ends a process whose run is to be started again."""

    def __init__(self, reason: str, code: int = REQUEUE) -> None:
        super().__init__(code)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Preemption:
    """Whether the machine is wanted back: SIGTERM, and SIGUSR1, which SLURM is told to send before a job's time ends.

    A context manager. Until training begins, a signal ends the process at once; then it is noted, and `Checkpoints`
    saves at the end of the step. Lightning's own handlers are not used: the one for SIGTERM communicates inside the
    handler, where another collective may be under way, and the one for SLURM saves there.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received = ""  # name of the signal
        self.at_once = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._before = {one: signal.signal(one, self._note) for one in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if self.at_once:
            leave_word()
            raise Preempted(f"stopped by {self.received} before a step was taken")


def leave_word() -> None:
    """Tell the script that has started this process, where it asks, that the run is to be started again."""
    if REQUEUE_FILE in os.environ:
        Path(os.environ[REQUEUE_FILE]).touch()


@contextmanager
def alone(run_dir: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Have a run directory for this process alone, until it is done or dead, however it dies.

    The lock is the kernel's, of a file that stays. It is one of `fcntl`, not of `flock`: that would be held on to by
    loader workers which outlive the process that they were forked from.

    Raises ValueError if another process still has it after so many seconds.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "lock").open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + patience
        while not _lock(file):
            if time.monotonic() > deadline:
                file.seek(0)
                raise UserError(
                    f"{run_dir} is being trained already, {file.read() or 'by another process'}: wait for it, end it, "
                    "or give this run a name of its own (arm=NAME, study=NAME or seed=N)"
                )
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"by process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        warnings.warn(f"{file.name} cannot be locked ({error}): do not start this run twice", stacklevel=2)
    return True


class Checkpoints(L.Callback):
    """Saves the run and resumes it. To stand after the callbacks whose counts a checkpoint is to hold.

    A checkpoint of step N is taken when all of step N is over: logged, and validated if that was due. Only one that is
    taken because the machine is wanted back in the middle of a validation says that this validation is still to be
    done.

    Args:
        folder: `RUN/checkpoints`.
        every: steps between checkpoints; one more is taken at the end, and at each best validation.
        keep: newest checkpoints that are kept, beside the best one.
        preemption: asked after every step.
        metric: of which the least value is the best.
    """

    def __init__(
        self, folder: str | Path, *, every: int, keep: int, preemption: Preemption, metric: str = "val/loss"
    ) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if value < 1:
                raise UserError(f"checkpoint_{name}={value}: expected 1 or more")
        self.folder, self.every, self.keep, self.metric = Path(folder), every, keep, metric
        self.preemption = preemption
        self.saved: int | None = None  # step of the newest checkpoint that needs no other one
        self.failed = 0
        self.best: dict[str, Any] | None = None  # step, metric and value

    def state_dict(self) -> dict[str, int]:
        return {"failed": self.failed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.failed = state["failed"]

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer._signal_connector.register_signal_handlers = lambda: None  # see `Preemption`
        snapshot = checkpoint_dir.newest(self.folder, warn=rank_zero_warn)
        if snapshot is not None:
            self._resume(trainer, module, snapshot)
        for logger in trainer.loggers:
            if isinstance(logger, Events):
                logger.drop_from(snapshot.step if snapshot else 0)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.preemption.at_once = False

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, step: int) -> None:
        if self._is_wanted_back(trainer):
            self._leave(trainer, module, step)
        if step and step % self.every == 0:
            self._save(trainer, module, step)

    def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if not trainer.sanity_checking and self._is_wanted_back(trainer):
            self._leave(trainer, module, _step(trainer), validating=True)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking or self.metric not in trainer.callback_metrics:
            return
        value, before = float(trainer.callback_metrics[self.metric]), self.best
        is_better = math.isfinite(value) and (before is None or value < before["value"])
        if trainer.strategy.broadcast(is_better):
            self.best = {"step": _step(trainer), "metric": self.metric, "value": value}
            if not self._save(trainer, module, _step(trainer)):
                self.best = before

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._save(trainer, module, _step(trainer))
        self.preemption.at_once = True

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Raises SaveError if what was trained is not on the disk."""
        if self.failed:
            rank_zero_warn(f"{self.failed} times a checkpoint could not be saved")
        if self.saved is None or self.saved < _step(trainer):
            raise checkpoint_dir.SaveError(
                f"the trained weights could not be saved in {self.folder}; the same command goes on from the last "
                "checkpoint there"
            )

    def _is_wanted_back(self, trainer: L.Trainer) -> bool:
        """The same on every process, whichever of them was told."""
        return trainer.strategy.reduce_boolean_decision(bool(self.preemption.received), all=False)

    def _leave(self, trainer: L.Trainer, module: L.LightningModule, step: int, *, validating: bool = False) -> None:
        if step and not self._save(trainer, module, step, validating=validating):
            step = self.saved or 0
        reason = f"stopped by {self.preemption.received or 'a signal to another process'}: the same command goes on "
        reason += f"from step {step}"
        rank_zero_info(f"{reason} (exit status {REQUEUE})")
        leave_word()
        # Lightning's launcher takes a process that it has started for failed, and kills the others, if this is not 0.
        started = isinstance(getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment)
        raise Preempted(reason, 0 if started and not trainer.is_global_zero else REQUEUE)

    def _save(self, trainer: L.Trainer, module: L.LightningModule, step: int, *, validating: bool = False) -> bool:
        """Whether the checkpoint of this step is on the disk."""
        if self.saved == step:
            return True
        for logger in trainer.loggers:
            if isinstance(logger, Events):
                logger.flush()  # steps before a checkpoint are not logged again
        state = {
            "recipe": module.hparams["recipe"],
            "validating": validating,
            "schedules": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "precision": trainer.precision_plugin.state_dict(),
            "best": self.best,
            "callbacks": {one.state_key: state for one in trainer.callbacks if (state := one.state_dict())},
        }
        try:
            checkpoint_dir.write(self.folder, step, module=module, optimizer=trainer.optimizers[0], state=state)
        except checkpoint_dir.SaveError as error:
            self._note_failure(trainer, f"the checkpoint of step {step} could not be saved ({error})")
            return False
        self.saved = step
        if trainer.is_global_zero:
            try:
                checkpoint_dir.prune(self.folder, step, self.keep, self.best and self.best["step"])
            except OSError as error:
                self._note_failure(trainer, f"{self.folder} could not be kept tidy ({error})")
        return True

    def _note_failure(self, trainer: L.Trainer, what: str) -> None:
        self.failed += 1
        newest = f"step {self.saved}" if self.saved else "none"
        rank_zero_warn(f"{what}. Training goes on; newest checkpoint: {newest}")
        if trainer.logger is not None:
            trainer.logger.log_metrics({"faults/checkpoints": self.failed}, _step(trainer))

    def _resume(self, trainer: L.Trainer, module: L.LightningModule, snapshot: checkpoint_dir.CheckpointDir) -> None:
        step, state = snapshot.step, snapshot.state
        checkpoint_dir.restore(snapshot, module=module, optimizer=trainer.optimizers[0])
        for config, schedule in zip(trainer.lr_scheduler_configs, state["schedules"], strict=True):
            config.scheduler.load_state_dict(schedule)
        if state["precision"]:
            trainer.precision_plugin.load_state_dict(state["precision"])
        for callback in trainer.callbacks:
            if callback.state_key in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.state_key])
        trainer.fit_loop.load_state_dict(_counters(trainer, step, validating=state["validating"]))
        self.saved = None if state["validating"] else step
        self.best = self._known_best(state.get("best"))
        rank_zero_info(f"resuming from {snapshot.path}")

    def _known_best(self, mark: dict[str, Any] | None) -> dict[str, Any] | None:
        """The best so far; None if its checkpoint is not there any more."""
        try:
            if mark is not None:
                checkpoint_dir.CheckpointDir(checkpoint_dir.step_dir(self.folder, mark["step"]))
            return mark
        except checkpoint_dir.Damaged as error:
            rank_zero_warn(f"{error}; the best checkpoint is looked for anew")
            return None


def _step(trainer: L.Trainer) -> int:
    """Steps taken: batches, whether the optimizer used them or not."""
    return trainer.fit_loop.total_batch_idx + 1


def _counters(trainer: L.Trainer, step: int, *, validating: bool) -> dict[str, Any]:
    """Lightning's loops as they stand after a step; with `validating`, its validation is still to be done."""

    def count(n: int, **other: int) -> dict[str, dict[str, int]]:
        counts = {"ready": n, "started": n, "processed": n, "completed": n} | other
        return {"total": counts, "current": dict(counts)}

    loops = trainer.fit_loop.state_dict()
    loops["epoch_progress"] = count(1, processed=0, completed=0)
    # A batch that is not completed means to Lightning: saved at its end, its validation is over. One that is, with a
    # batch of the validation that is not: the validation was left, and is to be done from its beginning.
    batches = count(step) if validating else count(step, completed=step - 1)
    loops["epoch_loop.batch_progress"] = {**batches, "is_last_batch": step >= trainer.lightning_module.max_steps}
    loops["epoch_loop.state_dict"] = {"_batches_that_stepped": step - 1}  # it adds one in either case
    done = {"ready": step, "completed": step}
    loops["epoch_loop.manual_optimization.optim_step_progress"] = {"total": done, "current": dict(done)}
    if validating:
        loops["epoch_loop.val_loop.batch_progress"]["total"] = count(1, processed=0, completed=0)["total"]
    return loops


class Events(TensorBoardLogger):
    """TensorBoard's event files, without the steps that are taken again, and without ending a run on a full disk.

    What cannot be written is missing from the curves, up to the next checkpoint; then a new file is begun.
    """

    def __init__(self, run_dir: str | Path) -> None:
        # A second session would write the placeholder of `hp_metric` a second time.
        super().__init__(run_dir, name="", version="", default_hp_metric=False)
        self.failed = 0
        self.is_broken = False
        self._dropped_from: int | None = None  # what readers are still to be told

    @property
    def experiment(self) -> Any:
        try:
            return super().experiment
        except OSError as error:  # Lightning asks whether there is one, and would end the run with any other error
            raise AttributeError(f"{self.log_dir} takes no event files") from error

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._try(super().log_metrics, metrics, step)

    @rank_zero_only
    def log_text(self, tag: str, lines: Sequence[str], step: int) -> None:
        """Lines as they are: what is indented is no markdown to TensorBoard, and no HTML."""
        shown = "\n".join("    " + " ".join(line.splitlines()) for line in lines)
        self._try(lambda: self.experiment.add_text(tag, shown, step))

    @rank_zero_only
    def log_sound(self, tag: str, wave: np.ndarray, step: int) -> None:
        """A sound (L,) at 16 kHz."""
        self._try(lambda: self.experiment.add_audio(tag, wave[None], step, sample_rate=audio.SAMPLE_RATE))

    @rank_zero_only
    def save(self) -> None:
        self._try(super().save)

    @rank_zero_only
    def flush(self) -> None:
        if self.is_broken:
            self._experiment, self.is_broken = None, False
            self._try(self._begin)
        else:
            self._try(super().save)

    @rank_zero_only
    def drop_from(self, step: int) -> None:
        """Have readers drop what earlier sessions have logged from this step on."""
        self._dropped_from = step
        self._try(self._begin)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._try(super().finalize, status)

    def _begin(self) -> None:
        if self._dropped_from is not None:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # here, as it takes a second

            start = Event(step=self._dropped_from, session_log=SessionLog(status=SessionLog.START))
            self.experiment.file_writer.add_event(start)
            self.experiment.flush()
            self._dropped_from = None

    def _try(self, work: Callable[..., None], *arguments: Any) -> None:
        if self.is_broken:
            return
        try:
            work(*arguments)
        except (OSError, ValueError, AttributeError) as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # Lightning raises ValueError from whatever it meets
                cause = cause.__cause__
            if not isinstance(cause, OSError):
                raise
            self.is_broken = True
            self.failed += 1
            rank_zero_warn(f"event files cannot be written ({cause}): the curves will have a gap")
