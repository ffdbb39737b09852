"""Callback that saves checkpoints of a run, and resumes the run from the newest one.

The position in a run is the number of steps taken. Lightning's own checkpointing is not used, so that all strategies
save and resume through the same code (`auris.model.weights.checkpoint_dir`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypedDict

import lightning as L
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from auris import compat
from auris.errors import RunStopped
from auris.model import dtensor
from auris.model.weights import checkpoint_dir, checkpoint_io
from auris.training.event_files import ResumableTensorBoardLogger
from auris.training.lightning_types import audio_module, trainer_callbacks
from auris.training.preemption import REQUEUE_STATUS, Preempted, Preemption, request_requeue

_METRIC = "val/loss"  # the checkpoint with the smallest value is the best one


class Best(TypedDict):
    """The validation with the smallest loss so far, as it is stored in a checkpoint."""

    step: int
    metric: str
    value: float


class CheckpointCallback(L.Callback):
    """Callback that saves the run and resumes it. It must come after the callbacks whose state a checkpoint stores.

    The checkpoint of step N is saved after step N has been logged and, if a validation is due, after the validation. A
    run that is preempted during a validation saves a checkpoint which says that the validation must be repeated.

    If a checkpoint cannot be written, training continues. Each failure is logged and counted.

    Args:
        folder: `RUN/checkpoints`.
        every: Number of steps between checkpoints. Further checkpoints are saved at the end, and after each validation
            whose loss is the smallest so far.
        keep: Number of newest checkpoints to keep, in addition to the best checkpoint.
        preemption: Tells after every step whether the run has been preempted.
    """

    def __init__(self, folder: str | Path, *, every: int, keep: int, preemption: Preemption) -> None:
        self.folder, self.every, self.keep, self.preemption = Path(folder), every, keep, preemption
        self.saved_step: int | None = None  # step of the newest complete checkpoint
        self.n_failed = 0  # number of checkpoints that could not be saved
        self.best: Best | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the number of checkpoints that could not be saved."""
        return {"failed": self.n_failed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of checkpoints that could not be saved."""
        self.n_failed = state_dict["failed"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Resume from the newest checkpoint, if there is one."""
        compat.disable_signal_handlers(trainer)  # `Preemption` handles signals
        checkpoint = checkpoint_dir.find_newest(self.folder, warn=rank_zero_warn)
        if checkpoint is not None:
            self._resume(trainer, pl_module, checkpoint)
        for logger in _event_files(trainer):
            logger.drop_from(checkpoint.step if checkpoint else 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on, let a signal end the run after the current step instead of immediately."""
        self.preemption.exits_at_once = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save a checkpoint if one is due. If the run has been preempted, save one and exit.

        `batch_idx` is the number of steps taken.
        """
        if self._is_preempted(trainer):
            self._save_and_exit(trainer, pl_module, batch_idx)
        if batch_idx and batch_idx % self.every == 0:
            self._save(trainer, pl_module, batch_idx)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any = None,
        batch_idx: int = 0,
        dataloader_idx: int = 0,
    ) -> None:
        """Save and end the run if it has been preempted."""
        if not trainer.sanity_checking and self._is_preempted(trainer):
            self._save_and_exit(trainer, pl_module, _count_steps(trainer), repeat_validation=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save a checkpoint if the validation is the best one so far."""
        if trainer.sanity_checking or _METRIC not in trainer.callback_metrics:
            return
        value, previous_best = float(trainer.callback_metrics[_METRIC]), self.best
        is_better = math.isfinite(value) and (previous_best is None or value < previous_best["value"])
        if trainer.strategy.broadcast(is_better):
            self.best = {"step": _count_steps(trainer), "metric": _METRIC, "value": value}
            if not self._save(trainer, pl_module, _count_steps(trainer)):
                self.best = previous_best

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save a checkpoint of the last step."""
        self._save(trainer, pl_module, _count_steps(trainer))
        self.preemption.exits_at_once = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report how many checkpoints could not be saved.

        Raises:
            SaveError: The weights after the last step are not on disk.
        """
        if self.n_failed:
            rank_zero_warn(f"checkpoints that could not be saved: {self.n_failed}")
        if self.saved_step is None or self.saved_step < _count_steps(trainer):
            raise checkpoint_io.SaveError(
                f"the trained weights could not be saved in {self.folder}; run the same command again to continue from "
                "the last checkpoint there"
            )

    def _is_preempted(self, trainer: L.Trainer) -> bool:
        """Return whether any process has received a signal. The result is the same on every process."""
        return trainer.strategy.reduce_boolean_decision(bool(self.preemption.received), all=False)

    def _save_and_exit(
        self, trainer: L.Trainer, module: L.LightningModule, step: int, *, repeat_validation: bool = False
    ) -> None:
        """Save a step and raise Preempted."""
        if step and not self._save(trainer, module, step, repeat_validation=repeat_validation):
            step = self.saved_step or 0
        signal = self.preemption.received or "a signal to another process"
        reason = f"stopped by {signal}: the same command continues the run from step {step}"
        rank_zero_info(f"{reason} (exit status {REQUEUE_STATUS})")
        request_requeue()
        # Lightning's launcher kills all processes as soon as a child process exits with a status other than 0, so child
        # processes exit with 0.
        is_launched = isinstance(getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment)
        raise Preempted(reason, 0 if is_launched and not trainer.is_global_zero else REQUEUE_STATUS)

    def _save(
        self, trainer: L.Trainer, module: L.LightningModule, step: int, *, repeat_validation: bool = False
    ) -> bool:
        """Save the checkpoint of a step, unless it is already saved; return whether it is on disk.

        Args:
            trainer: The trainer.
            module: The LightningModule.
            step: Number of steps taken.
            repeat_validation: Whether the validation after this step was interrupted, so that a resumed run repeats it.

        Raises:
            RunStopped: A weight is not finite.
        """
        if self.saved_step == step:
            return True
        self._check_weights(trainer, module, step)
        for logger in _event_files(trainer):
            logger.flush()  # a run that resumes from this checkpoint does not log the steps before it again
        state = {
            "recipe": module.hparams["recipe"],
            "validating": repeat_validation,
            "schedules": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "precision": trainer.precision_plugin.state_dict(),
            "best": self.best,
            "callbacks": {
                callback.state_key: state for callback in trainer_callbacks(trainer) if (state := callback.state_dict())
            },
        }
        try:
            checkpoint_io.save(self.folder, step, module=module, optimizer=trainer.optimizers[0], state=state)
        except checkpoint_io.SaveError as error:
            self._record_failure(trainer, f"the checkpoint of step {step} could not be saved ({error})")
            return False
        self.saved_step = step
        if trainer.is_global_zero:
            try:
                checkpoint_dir.prune(self.folder, step, self.keep, self.best and self.best["step"])
            except OSError as error:
                self._record_failure(trainer, f"old checkpoints in {self.folder} could not be deleted ({error})")
        return True

    def _check_weights(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> None:
        """Raise RunStopped on all processes if a weight on one of them is not finite."""
        nonfinite = [
            name for name, weight in module.named_parameters() if not dtensor.local_part(weight)[0].isfinite().all()
        ]
        if trainer.strategy.reduce_boolean_decision(bool(nonfinite), all=False):
            newest = f"the same command continues from step {self.saved_step}" if self.saved_step else "none was saved"
            where = f", for example {nonfinite[0]}" if nonfinite else ""
            raise RunStopped(
                f"weights are not finite after step {step}{where}, so no checkpoint of them is saved; {newest}. Try a "
                "lower optim.lr"
            )

    def _record_failure(self, trainer: L.Trainer, message: str) -> None:
        self.n_failed += 1
        newest = f"step {self.saved_step}" if self.saved_step else "none"
        rank_zero_warn(f"{message}. Training continues; newest checkpoint: {newest}")
        if trainer.logger is not None:
            trainer.logger.log_metrics({"faults/checkpoints": self.n_failed}, _count_steps(trainer))

    def _resume(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: checkpoint_dir.CheckpointDir) -> None:
        """Restore the weights, the states of optimizer, schedules and callbacks, and the position in the run."""
        step, state = checkpoint.step, checkpoint.state
        checkpoint_io.restore(checkpoint, module=module, optimizer=trainer.optimizers[0])
        for config, schedule in zip(trainer.lr_scheduler_configs, state["schedules"], strict=True):
            config.scheduler.load_state_dict(schedule)
        if state["precision"]:
            trainer.precision_plugin.load_state_dict(state["precision"])
        for callback in trainer_callbacks(trainer):
            if callback.state_key in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.state_key])
        compat.set_loop_position(
            trainer, step, max_steps=audio_module(module).max_steps, repeat_validation=state["validating"]
        )
        # A checkpoint from within a validation does not count as saved, so that it can be replaced later.
        self.saved_step = None if state["validating"] else step
        self.best = self._best_if_on_disk(state["best"])
        rank_zero_info(f"resuming from {checkpoint.path}")

    def _best_if_on_disk(self, best: Best | None) -> Best | None:
        """Return the best validation so far, or None with a warning if its checkpoint is missing or damaged."""
        try:
            if best is not None:
                checkpoint_dir.CheckpointDir(checkpoint_dir.step_dir(self.folder, best["step"]))
            return best
        except checkpoint_dir.DamagedError as error:
            rank_zero_warn(f"{error}; the search for the best checkpoint starts over")
            return None


def _count_steps(trainer: L.Trainer) -> int:
    """Return the number of steps taken, including the steps that changed no weights."""
    return trainer.fit_loop.total_batch_idx + 1


def _event_files(trainer: L.Trainer) -> list[ResumableTensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, ResumableTensorBoardLogger)]
