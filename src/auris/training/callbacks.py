"""Callbacks that report on a run: losses by task, example responses, unusable rows, faults and progress.

None of them changes the weights. `UnusableRows` and `Faults` may stop the run.
"""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from auris import audio, files
from auris.data.loader import LoaderError
from auris.data.rows import group
from auris.errors import AudioError, RowError, RunStopped
from auris.model.distributed import gather
from auris.model.weights import checkpoint_dir, checkpoint_io
from auris.text import tasks
from auris.text.console import format_duration
from auris.text.tasks import LOSS_CURVES
from auris.training.event_files import ResumableTensorBoardLogger
from auris.training.faults import FAULTS_DIR, Fault, RowPosition, replay_command
from auris.training.lightning_types import audio_module, datamodule, is_log_step

if TYPE_CHECKING:
    from auris.data.datamodule import AudioDataModule

# Number of consecutive rows over which the share of unusable rows is computed (`data.max_unusable`). With a larger
# window a run would notice later that a disk is gone; with a smaller window a few bad rows would stop the run.
WINDOW_ROWS = 1000
# Number of consecutive steps without an update after which a run stops. That many cannot be due to a single bad batch:
# the run has diverged.
MAX_CONSECUTIVE_SKIPS = 10
# Number of validation rows of each group (such as `asr en`, see `data.rows.group`) that TensorBoard shows.
EXAMPLES_PER_GROUP = 2


class TaskLosses(L.Callback):
    """Callback that logs `train/loss/<task>`, and `train/loss/chat <mode>` for dialogues.

    Each value is the mean loss of the task since the last logged step: per supervised token, or per pair in preference
    training. A task without rows since then gets no point on its curve. Sums stay on the device until they are logged.
    """

    def __init__(self) -> None:
        # (2, K): summed loss and number of tokens or pairs, for each of the K curves (LOSS_CURVES).
        self.sums: torch.Tensor | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any = None, batch_idx: int = 0
    ) -> None:
        """Add the step's losses, and log the means if this step is logged."""
        if "curve_sums" not in outputs:  # CTC has no sums by loss curve, because it trains on a single task
            return
        step_sums = outputs["curve_sums"]
        self.sums = step_sums if self.sums is None else self.sums.to(step_sums) + step_sums
        if not is_log_step(trainer):
            return
        losses, counts = self.sums.tolist()
        self.sums = None
        means = {
            f"train/loss/{curve}": loss / n for curve, loss, n in zip(LOSS_CURVES, losses, counts, strict=True) if n
        }
        for logger in trainer.loggers:
            logger.log_metrics(means, trainer.global_step - 1)  # Lightning numbers the steps of its curves from 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sums that have not been logged yet."""
        return {"sums": None if self.sums is None else self.sums.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sums that have not been logged yet."""
        self.sums = None if state_dict["sums"] is None else torch.tensor(state_dict["sums"])


class Examples(L.Callback):
    """Callback that logs a few validation rows of each group to TensorBoard.

    References and answers are logged at every validation, the audio only once each time the run is started. The rows
    are the first EXAMPLES_PER_GROUP rows of each group, no matter which ranks answer them.
    """

    def __init__(self) -> None:
        self.answers: dict[str, dict[int, str]] = {}  # group -> row number -> answer
        self.logged_audio: set[int] = set()  # numbers of the rows whose audio has been logged

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the answers of the previous validation."""
        self.answers = {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any = None,
        batch_idx: int = 0,
        dataloader_idx: int = 0,
    ) -> None:
        """Store the answers to the first rows of each group."""
        for row_number, answer in outputs["answers"].items():
            self._add(group(datamodule(trainer).scored_row(row_number)), {row_number: answer})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather the answers of all ranks and log them on the first rank."""
        for answers_of_rank in gather(self.answers):
            for group_name, answers in answers_of_rank.items():
                self._add(group_name, answers)
        for logger in trainer.loggers:
            if isinstance(logger, ResumableTensorBoardLogger) and trainer.is_global_zero:
                for group_name, answers in self.answers.items():
                    self._log(logger, datamodule(trainer), group_name, answers, trainer.global_step)

    def _add(self, group_name: str, answers: dict[int, str]) -> None:
        """Add answers, given by row number, to a group. Only its first EXAMPLES_PER_GROUP rows are kept."""
        answers = self.answers.get(group_name, {}) | answers
        self.answers[group_name] = {
            row_number: answers[row_number] for row_number in sorted(answers)[:EXAMPLES_PER_GROUP]
        }

    def _log(
        self,
        logger: ResumableTensorBoardLogger,
        data: AudioDataModule,
        group_name: str,
        answers: dict[int, str],
        step: int,
    ) -> None:
        lines = []
        for position, (row_number, answer) in enumerate(answers.items(), 1):
            row = data.scored_row(row_number)
            reference = tasks.get_task(row.labels["task"]).render(row.labels)
            lines += [f"row {row.id}", f"  reference: {reference}", f"  answer:    {answer}"]
            if row_number in self.logged_audio or not data.valid_samples.has_audio:
                continue
            self.logged_audio.add(row_number)
            for clip_number, clip in enumerate(row.clips, 1):
                # A file that was deleted in the meantime is reported by `UnusableRows` at the next validation.
                with suppress(RowError, AudioError):
                    tag = f"val/{group_name}/row {position}" + (f" clip {clip_number}" if len(row.clips) > 1 else "")
                    logger.log_audio(tag, data.valid_samples.read(clip)[: audio.MAX_SAMPLES], step)
        logger.log_text(f"val/{group_name}", lines, step)


class UnusableRows(L.Callback):
    """Callback that counts unusable rows, and writes each of them with the reason to `unusable_rows.jsonl`.

    A summary is printed at the end. The run stops (RunStopped) if too many of its recent training rows are unusable.

    Args:
        run_dir: Directory of the run.
        max_unusable: Largest acceptable share of unusable rows among WINDOW_ROWS consecutive training rows, 0 to 1.
    """

    def __init__(self, run_dir: str | Path, max_unusable: float = 1.0):
        self.path, self.max_unusable = Path(run_dir) / "unusable_rows.jsonl", max_unusable
        self.reasons: dict[str, str] = {}  # row id -> why the row is unusable
        self.counts: Counter[str] = Counter()  # row id -> number of times that the row was reported as unusable
        self.recorded: set[str] = set()  # ids of the rows in the file
        # (number of rows, number of unusable rows) of each recent step, summed over all ranks
        self.recent_steps: deque[tuple[float, float]] = deque()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the counts of a resumed run, and record the rows that are already known to be unusable."""
        is_resumed = trainer.global_step and self.path.is_file()
        recorded = {line["id"]: line["reason"] for line in files.read_jsonl(self.path)} if is_resumed else {}
        self.recorded = set(recorded)
        if not trainer.is_global_zero:  # every rank has restored the state of the first rank; only that rank keeps it
            self.reasons, self.counts = {}, Counter()
            return
        if not trainer.global_step:
            self.path.unlink(missing_ok=True)  # left over from an earlier start that ended before its first checkpoint
        for row_id, reason in recorded.items():  # the restored state lacks the rows of other ranks
            self.reasons.setdefault(row_id, reason)
            self.counts[row_id] = max(1, self.counts[row_id])
        problems = datamodule(trainer).unusable_rows()
        self._record([(row_id, reason) for row_id, reason in problems if row_id not in self.reasons])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any = None, batch_idx: int = 0
    ) -> None:
        """Record the unusable rows of a step, and stop the run if there are too many of them."""
        self._record(outputs["skipped"])
        self.recent_steps.append((float(outputs["rows_read"]), float(outputs["rows_unusable"])))
        while sum(n_rows for n_rows, _ in self.recent_steps) - self.recent_steps[0][0] >= WINDOW_ROWS:
            self.recent_steps.popleft()
        n_rows, n_unusable = (sum(counts) for counts in zip(*self.recent_steps, strict=True))
        if n_unusable > self.max_unusable * max(WINDOW_ROWS, n_rows):
            raise RunStopped(
                f"{n_unusable:.0f} of the last {n_rows:.0f} rows could not be used, more than "
                f"data.max_unusable={self.max_unusable} of {WINDOW_ROWS}; {self.path} lists the rows with the reasons"
            )

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any = None,
        batch_idx: int = 0,
        dataloader_idx: int = 0,
    ) -> None:
        """Record the unusable validation rows. They do not stop a run."""
        self._record(outputs["skipped"])

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather the unusable rows of all ranks and report them."""
        ranks = gather((self.reasons, self.counts))
        self.reasons = {row_id: reason for reasons, _ in ranks for row_id, reason in reasons.items()}
        self.counts = sum((counts for _, counts in ranks), Counter())
        if not self.reasons:
            rank_zero_info("all rows could be used")
            return
        shown = [f"  {row_id} ({self.counts[row_id]}x): {reason}" for row_id, reason in list(self.reasons.items())[:10]]
        more = [f"  ... {self.path} lists all of them"] if len(self.reasons) > 10 else []
        rank_zero_warn("\n".join([f"rows that could not be used: {len(self.reasons)}", *shown, *more]))

    def state_dict(self) -> dict[str, Any]:
        """Return the reason and the count of each unusable row."""
        return {"reasons": dict(self.reasons), "counts": dict(self.counts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the reason and the count of each unusable row."""
        self.reasons, self.counts = dict(state_dict["reasons"]), Counter(state_dict["counts"])

    def _record(self, rows: Sequence[tuple[str, str]]) -> None:
        """Count unusable rows, given as (id, reason). Rows that are not in the file yet are appended to it."""
        new = {row_id: reason for row_id, reason in rows if row_id not in self.recorded}
        if new:
            self.recorded.update(new)
            with files.tolerate_write_errors(self.path):
                files.append_jsonl(self.path, [{"id": row_id, "reason": reason} for row_id, reason in new.items()])
        self.reasons |= rows
        self.counts.update(row_id for row_id, _ in rows)


class Faults(L.Callback):
    """Callback that counts the faults of a run and decides whether the run continues.

    Counts are logged as `faults/<kind>` and reported at the end. A step whose loss or gradient is not finite does not
    change the weights. The rows of such a step, and of a step at which the data loader failed, are written to a file in
    `RUN/faults`, from which `auris replay` repeats the step. The directory also holds a checkpoint of the weights
    before the latest series of non-finite steps.

    Args:
        run_dir: Directory of the run.
        nonfinite: "skip" counts a step whose loss or gradient is not finite, and stops the run after
            MAX_CONSECUTIVE_SKIPS consecutive ones; "stop" stops the run at the first such step.
    """

    def __init__(self, run_dir: str | Path, nonfinite: str = "skip"):
        self.run_dir, self.nonfinite = Path(run_dir), nonfinite
        self.counts = dict.fromkeys(("skipped_steps", "unusable_rows", "lost_workers"), 0)
        self.consecutive_skips = 0
        self.weights_path: str | None = None  # checkpoint of the weights before the skipped steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any = None, batch_idx: int = 0
    ) -> None:
        """Count and log the faults of a step; record the step if its loss or gradient is not finite."""
        loss, norm, update = (float(outputs[name]) for name in ("loss", "grad_norm", "update_norm"))
        is_finite = all(map(math.isfinite, (loss, norm, update)))
        self.consecutive_skips = 0 if is_finite else self.consecutive_skips + 1
        self.counts["skipped_steps"] += not is_finite
        self.counts["unusable_rows"] += round(float(outputs["rows_unusable"]))
        self.counts["lost_workers"] += round(float(outputs["lost_workers"]))
        for kind, count in self.counts.items():
            pl_module.log(f"faults/{kind}", float(count))
        if not is_finite:
            reason = f"the loss is {loss}, the gradient norm is {norm} and the norm of the update is {update}"
            self._handle_nonfinite(trainer, pl_module, trainer.global_step - 1, reason)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Record the rows of a training step at which the data loader failed."""
        if not isinstance(exception, LoaderError) or not trainer.training:
            return
        if file := self._save_fault(trainer, exception.number, str(exception), weights_path=None):
            warnings.warn(
                f"the rows of step {exception.number} are in {file}. To repeat the step: {replay_command(file)}",
                stacklevel=2,
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the counts."""
        faults = [f"{count} {kind.replace('_', ' ')}" for kind, count in self.counts.items() if count]
        rank_zero_info(f"faults: {', '.join(faults) or 'none'}")

    def state_dict(self) -> dict[str, Any]:
        """Return the counts by kind of fault."""
        return dict(self.counts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts by kind of fault."""
        self.counts |= state_dict

    def _handle_nonfinite(self, trainer: L.Trainer, module: L.LightningModule, step: int, reason: str) -> None:
        """Record a step without an update, then warn or stop. Every rank calls this with the same arguments."""
        if self.consecutive_skips == 1:
            self.weights_path = self._save_weights(trainer, module, step)
        message = f"step {step}: {reason}; the step did not change the weights"
        if trainer.is_global_zero and (file := self._save_fault(trainer, step, reason, self.weights_path)):
            message += f". To examine its rows: {replay_command(file)}"
        if self.nonfinite == "stop":
            raise RunStopped(f"{message}. Set nonfinite=skip to continue without this step")
        if self.consecutive_skips == MAX_CONSECUTIVE_SKIPS:
            raise RunStopped(
                f"{message}. The {MAX_CONSECUTIVE_SKIPS - 1} steps before it were not finite either: the run has "
                "diverged; try a lower optim.lr"
            )
        rank_zero_warn(message)

    def _save_weights(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> str | None:
        """Replace the saved weights by the current weights.

        Returns:
            The path of the new checkpoint relative to the run directory, or None if it could not be written.
        """
        folder = self.run_dir / FAULTS_DIR
        if trainer.is_global_zero:
            for old_checkpoint in filter(checkpoint_dir.is_checkpoint, folder.glob("step_*")):
                shutil.rmtree(old_checkpoint, ignore_errors=True)
        with files.tolerate_write_errors(folder):
            path = checkpoint_io.save(folder, step, module=module, state={"recipe": module.hparams["recipe"]})
            return str(path.relative_to(self.run_dir))
        return None  # writing failed

    def _save_fault(self, trainer: L.Trainer, step: int, reason: str, weights_path: str | None) -> Path | None:
        """Write the record of a faulty step; return the path of the record, or None if it cannot be written."""
        data = datamodule(trainer)
        packs_by_rank = [
            [[RowPosition(row=row, id=data.rows[row].id, epoch=epoch) for row, epoch in pack] for pack in packs]
            for packs in data.packs_by_rank(step)
        ]
        with files.tolerate_write_errors(self.run_dir / FAULTS_DIR):
            return Fault(step=step, reason=reason, ranks=packs_by_rank, weights=weights_path).save(self.run_dir)
        return None


@dataclass(frozen=True)
class _Start:
    """Time (by time.monotonic) and step at which this start of the run began to train."""

    time: float
    step: int

    def seconds_left(self, step: int, max_steps: int) -> float:
        """Return how long the steps after `step` will take, at the speed since the start."""
        return (time.monotonic() - self.time) / max(1, step - self.step) * (max_steps - step)


class StatusLog(L.Callback):
    """Callback that prints once a minute where the run is, if there is no progress bar."""

    def __init__(self) -> None:
        self.last_line = 0.0  # by time.monotonic()
        self.start = _Start(0.0, 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember when training starts."""
        self.last_line = time.monotonic()
        self.start = _Start(self.last_line, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any = None, batch_idx: int = 0
    ) -> None:
        """Print the step, the loss and the remaining time if a minute has passed since the last line."""
        if not self._is_due(trainer):
            return
        step, max_steps = trainer.global_step, audio_module(pl_module).max_steps
        seconds = self.start.seconds_left(step, max_steps)
        loss = float(trainer.callback_metrics.get("train/loss", math.nan))
        rank_zero_info(f"step {step:,} of {max_steps:,}, train/loss {loss:.3f}, about {format_duration(seconds)} left")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any = None,
        batch_idx: int = 0,
        dataloader_idx: int = 0,
    ) -> None:
        """Print the number of the batch if a minute has passed since the last line."""
        if self._is_due(trainer):
            n_batches = trainer.num_val_batches[dataloader_idx]
            rank_zero_info(f"step {trainer.global_step:,}: validation, batch {batch_idx + 1} of {n_batches}")

    def _is_due(self, trainer: L.Trainer) -> bool:
        is_due = trainer.progress_bar_callback is None and time.monotonic() - self.last_line >= 60
        if is_due:
            self.last_line = time.monotonic()
        return is_due


class ProgressFile(L.Callback):
    """Callback that writes `progress.json` about every second. The live table of a study reads these files."""

    def __init__(self, run_dir: str | Path):
        self.path = Path(run_dir) / "progress.json"
        self.last_write = 0.0  # by time.monotonic()
        self.start = _Start(0.0, 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember when training starts."""
        self.start = _Start(time.monotonic(), trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any = None, batch_idx: int = 0
    ) -> None:
        """Write the file if a second has passed since the last time, or if this was the last step."""
        if time.monotonic() - self.last_write > 1 or trainer.global_step >= audio_module(pl_module).max_steps:
            self._write(trainer, audio_module(pl_module).max_steps)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file with the metrics of the validation, because the last validation comes after the last step."""
        self._write(trainer, audio_module(pl_module).max_steps)

    def _write(self, trainer: L.Trainer, max_steps: int) -> None:
        if not trainer.is_global_zero:
            return
        self.last_write = time.monotonic()
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        seconds_left = self.start.seconds_left(trainer.global_step, max_steps)
        content = {"step": trainer.global_step, "max_steps": max_steps, "seconds_left": seconds_left, **metrics}
        with files.tolerate_write_errors(self.path):
            files.write_json(self.path, content, indent=None)
