"""Callback that saves a run and resumes it.

A position in a run is its number of steps. None of Lightning's checkpoint machinery is used, so that all strategies
save and resume by the same few lines (`auris.model.weights.checkpoint_dir`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypedDict

import lightning as L
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from auris import compat
from auris.errors import UserError
from auris.model.weights import checkpoint_dir, checkpoint_io
from auris.training.event_files import EventFiles
from auris.training.preemption import REQUEUE, Preempted, Preemption, request_requeue

_METRIC = "val/loss"  # its least value is the best


class Best(TypedDict):
    """The best validation so far, as it stands in a checkpoint."""

    step: int
    metric: str
    value: float


class CheckpointCallback(L.Callback):
    """Saves the run and resumes it. It belongs after the callbacks whose counts a checkpoint is to hold.

    The checkpoint of step N is taken when all of step N is over: logged, and validated if that was due. Only a
    checkpoint that is taken in the middle of a validation, because the machine is wanted back, notes that this
    validation is still to be done.

    If a checkpoint cannot be written, training continues. Each failure is logged and counted.

    Args:
        folder: `RUN/checkpoints`.
        every: steps between checkpoints. There is one more at the end, and one at each best validation.
        keep: newest checkpoints to keep, in addition to the best one.
        preemption: asked after every step.

    Raises:
        UserError: `every` or `keep` is below 1.
    """

    def __init__(self, folder: str | Path, *, every: int, keep: int, preemption: Preemption) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if value < 1:
                raise UserError(f"checkpoint_{name}={value}: expected 1 or more")
        self.folder, self.every, self.keep, self.preemption = Path(folder), every, keep, preemption
        self.saved: int | None = None  # step of the newest complete checkpoint
        self.failed = 0
        self.best: Best | None = None

    def state_dict(self) -> dict[str, int]:
        return {"failed": self.failed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.failed = state["failed"]

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        compat.leave_signals_alone(trainer)  # `Preemption` handles them
        snapshot = checkpoint_dir.find_newest(self.folder, warn=rank_zero_warn)
        if snapshot is not None:
            self._resume(trainer, module, snapshot)
        for logger in _event_files(trainer):
            logger.drop_from(snapshot.step if snapshot else 0)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.preemption.at_once = False

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, step: int) -> None:
        if self._is_preempted(trainer):
            self._leave(trainer, module, step)
        if step and step % self.every == 0:
            self._save(trainer, module, step)

    def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if not trainer.sanity_checking and self._is_preempted(trainer):
            self._leave(trainer, module, _steps_taken(trainer), validating=True)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking or _METRIC not in trainer.callback_metrics:
            return
        value, before = float(trainer.callback_metrics[_METRIC]), self.best
        is_better = math.isfinite(value) and (before is None or value < before["value"])
        if trainer.strategy.broadcast(is_better):
            self.best = {"step": _steps_taken(trainer), "metric": _METRIC, "value": value}
            if not self._save(trainer, module, _steps_taken(trainer)):
                self.best = before

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._save(trainer, module, _steps_taken(trainer))
        self.preemption.at_once = True

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Raise SaveError if the trained weights are not on the disk."""
        if self.failed:
            rank_zero_warn(f"{self.failed} times a checkpoint could not be saved")
        if self.saved is None or self.saved < _steps_taken(trainer):
            raise checkpoint_io.SaveError(
                f"the trained weights could not be saved in {self.folder}; the same command goes on from the last "
                "checkpoint there"
            )

    def _is_preempted(self, trainer: L.Trainer) -> bool:
        """Return the same on every process, whichever of them got a signal."""
        return trainer.strategy.reduce_boolean_decision(bool(self.preemption.received), all=False)

    def _leave(self, trainer: L.Trainer, module: L.LightningModule, step: int, *, validating: bool = False) -> None:
        if step and not self._save(trainer, module, step, validating=validating):
            step = self.saved or 0
        reason = f"stopped by {self.preemption.received or 'a signal to another process'}: the same command goes on "
        reason += f"from step {step}"
        rank_zero_info(f"{reason} (exit status {REQUEUE})")
        request_requeue()
        # Lightning's launcher takes a child process with any status but 0 for failed, and kills the others.
        is_child = isinstance(getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment)
        raise Preempted(reason, 0 if is_child and not trainer.is_global_zero else REQUEUE)

    def _save(self, trainer: L.Trainer, module: L.LightningModule, step: int, *, validating: bool = False) -> bool:
        """Save the checkpoint of a step; return whether it is on the disk."""
        if self.saved == step:
            return True
        for logger in _event_files(trainer):
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
            checkpoint_io.save(self.folder, step, module=module, optimizer=trainer.optimizers[0], state=state)
        except checkpoint_io.SaveError as error:
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
            trainer.logger.log_metrics({"faults/checkpoints": self.failed}, _steps_taken(trainer))

    def _resume(self, trainer: L.Trainer, module: L.LightningModule, snapshot: checkpoint_dir.CheckpointDir) -> None:
        step, state = snapshot.step, snapshot.state
        checkpoint_io.restore(snapshot, module=module, optimizer=trainer.optimizers[0])
        for config, schedule in zip(trainer.lr_scheduler_configs, state["schedules"], strict=True):
            config.scheduler.load_state_dict(schedule)
        if state["precision"]:
            trainer.precision_plugin.load_state_dict(state["precision"])
        for callback in trainer.callbacks:
            if callback.state_key in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.state_key])
        compat.set_position(trainer, step, max_steps=module.max_steps, validating=state["validating"])
        self.saved = None if state["validating"] else step
        self.best = self._existing(state["best"])
        rank_zero_info(f"resuming from {snapshot.path}")

    def _existing(self, best: Best | None) -> Best | None:
        """Return the best so far, or None if its checkpoint does not exist any more."""
        try:
            if best is not None:
                checkpoint_dir.CheckpointDir(checkpoint_dir.step_dir(self.folder, best["step"]))
            return best
        except checkpoint_dir.DamagedError as error:
            rank_zero_warn(f"{error}; the best checkpoint is looked for anew")
            return None


def _steps_taken(trainer: L.Trainer) -> int:
    """Return the number of batches, whether the optimizer used them or not."""
    return trainer.fit_loop.total_batch_idx + 1


def _event_files(trainer: L.Trainer) -> list[EventFiles]:
    return [logger for logger in trainer.loggers if isinstance(logger, EventFiles)]
