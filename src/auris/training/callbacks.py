"""Callbacks that report on a run: losses by task, examples, unusable rows, faulty steps, progress.

None of them changes the weights.
"""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from auris import audio, files
from auris.data.loader import LoaderError
from auris.data.rows import group
from auris.errors import AudioError, RowError, RunStopped, UserError
from auris.model.distributed import gather
from auris.model.weights import checkpoint_dir, checkpoint_io
from auris.text import tasks
from auris.text.tasks import CURVES
from auris.training.event_files import ResumableTensorBoardLogger
from auris.training.faults import FOLDER, Fault, RowPosition, replay_command
from auris.training.lightning_types import audio_module, datamodule, is_log_step

if TYPE_CHECKING:
    from auris.data.datamodule import AudioDataModule

# Number of consecutive rows over which the share of unusable rows is computed (`data.max_unusable`). A larger window
# would notice a lost disk later, a smaller one would stop a run because of a few bad rows.
WINDOW_ROWS = 1000
# Number of consecutive steps without an update after which a run stops. By then the run has diverged; a single bad
# batch is not the cause.
MAX_SKIPS = 10
# Number of rows that TensorBoard shows of each group of validation rows.
EXAMPLES = 2


class TaskLosses(L.Callback):
    """Callback that logs `train/loss/<task>`, and `train/loss/chat <mode>` for dialogues.

    Each value is the mean over the supervised tokens, or over the preference pairs, of the task's rows since the last
    log. A task without rows gets no point. Sums stay on the device until they are logged.
    """

    def __init__(self) -> None:
        self.sums: torch.Tensor | None = None  # (2, K): summed losses and number of tokens for each of CURVES

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any = None, batch_idx: int = 0
    ) -> None:
        """Add the step's losses, and log the means if this step is logged."""
        if "tasks" not in outputs:  # CTC trains on a single task
            return
        new = outputs["tasks"]
        self.sums = new if self.sums is None else self.sums.to(new) + new
        if not is_log_step(trainer):
            return
        losses, tokens = self.sums.tolist()
        self.sums = None
        means = {f"train/loss/{code}": x / n for code, x, n in zip(CURVES, losses, tokens, strict=True) if n}
        for logger in trainer.loggers:
            logger.log_metrics(means, trainer.global_step - 1)  # Lightning's curves number steps from 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sums that are not logged yet."""
        return {"sums": None if self.sums is None else self.sums.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sums that are not logged yet."""
        self.sums = None if state_dict["sums"] is None else torch.tensor(state_dict["sums"])


class Examples(L.Callback):
    """Callback that logs a few validation rows of each group to TensorBoard.

    References and answers are logged at every validation, the audio once per session. The rows are the first ones of
    each group of the validation table, no matter which rank answers them.
    """

    def __init__(self) -> None:
        self.answers: dict[str, dict[int, str]] = {}  # group -> row number -> answer
        self.logged_audio: set[int] = set()  # numbers of the rows whose audio has been logged

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the answers of the last validation."""
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
        for number, answer in outputs["answers"].items():
            self._add(group(datamodule(trainer).target_row(number)), {number: answer})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather the answers of all ranks and log them on the first rank."""
        for answers_of_rank in gather(self.answers):
            for name, answers in answers_of_rank.items():
                self._add(name, answers)
        for logger in trainer.loggers:
            if isinstance(logger, ResumableTensorBoardLogger) and trainer.is_global_zero:
                for name, answers in self.answers.items():
                    self._log(logger, datamodule(trainer), name, answers, trainer.global_step)

    def _add(self, name: str, answers: dict[int, str]) -> None:
        """Add answers to a group and keep those of its first EXAMPLES rows."""
        answers = self.answers.get(name, {}) | answers
        self.answers[name] = {number: answers[number] for number in sorted(answers)[:EXAMPLES]}

    def _log(
        self, logger: ResumableTensorBoardLogger, data: AudioDataModule, name: str, answers: dict[int, str], step: int
    ) -> None:
        lines = []
        for position, (number, answer) in enumerate(answers.items(), 1):
            row = data.target_row(number)
            reference = tasks.get_task(row.labels["task"]).render(row.labels)
            lines += [f"row {row.id}", f"  reference: {reference}", f"  answer:    {answer}"]
            if number in self.logged_audio or not data.valid_samples.has_audio:
                continue
            self.logged_audio.add(number)
            for part, clip in enumerate(row.clips, 1):
                # A file that was deleted in the meantime is reported by `UnusableRows` at the next validation.
                with suppress(RowError, AudioError):
                    tag = f"val/{name}/row {position}" + (f" clip {part}" if len(row.clips) > 1 else "")
                    logger.log_audio(tag, data.valid_samples.read(clip)[: audio.MAX_SAMPLES], step)
        logger.log_text(f"val/{name}", lines, step)


class UnusableRows(L.Callback):
    """Callback that counts unusable rows and reports each with its reason, in `unusable_rows.jsonl` and at the end.

    A run stops (RunStopped) if too many of its recent training rows are unusable.

    Args:
        run_dir: Directory of the run.
        max_unusable: Largest acceptable share of unusable rows among WINDOW_ROWS consecutive training rows.

    Raises:
        UserError: `max_unusable` is not between 0 and 1.
    """

    def __init__(self, run_dir: str | Path, max_unusable: float = 1.0):
        if not 0 <= max_unusable <= 1:
            raise UserError(f"data.max_unusable={max_unusable}: expected a share of the rows, 0 to 1")
        self.path, self.max_unusable = Path(run_dir) / "unusable_rows.jsonl", max_unusable
        self.reasons: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.recorded: set[str] = set()  # ids of the rows in the file
        # (rows, unusable rows) of each recent step, summed over all ranks
        self.recent_steps: deque[tuple[float, float]] = deque()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the counts of a resumed run, and record the rows that are known to be unusable before training."""
        is_resumed = trainer.global_step and self.path.is_file()
        recorded = {line["id"]: line["reason"] for line in files.read_jsonl(self.path)} if is_resumed else {}
        self.recorded = set(recorded)
        if not trainer.is_global_zero:  # the state that every rank has restored is that of the first rank
            self.reasons, self.counts = {}, Counter()
            return
        if not trainer.global_step:
            self.path.unlink(missing_ok=True)  # from an attempt that ended before its first checkpoint
        for row, reason in recorded.items():  # the file holds the rows of all ranks
            self.reasons.setdefault(row, reason)
            self.counts[row] = max(1, self.counts[row])
        self._record([row for row in datamodule(trainer).unusable_rows() if row[0] not in self.reasons])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any = None, batch_idx: int = 0
    ) -> None:
        """Record the unusable rows of a step, and stop the run if there are too many of them."""
        self._record(outputs["skipped"])
        self.recent_steps.append((float(outputs["rows_read"]), float(outputs["rows_unusable"])))
        while sum(rows for rows, _ in self.recent_steps) - self.recent_steps[0][0] >= WINDOW_ROWS:
            self.recent_steps.popleft()
        rows, unusable = (sum(numbers) for numbers in zip(*self.recent_steps, strict=True))
        if unusable > self.max_unusable * max(WINDOW_ROWS, rows):
            raise RunStopped(
                f"{unusable:.0f} of the last {rows:.0f} rows could not be used, more than "
                f"data.max_unusable={self.max_unusable} of {WINDOW_ROWS}: see {self.path}"
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
        self.reasons = {row: reason for reasons, _ in ranks for row, reason in reasons.items()}
        self.counts = sum((counts for _, counts in ranks), Counter())
        if not self.reasons:
            rank_zero_info("every row could be used")
            return
        shown = [f"  {row} ({self.counts[row]}x): {reason}" for row, reason in list(self.reasons.items())[:10]]
        more = [f"  ... all of them in {self.path}"] if len(self.reasons) > 10 else []
        rank_zero_warn("\n".join([f"{len(self.reasons)} rows could not be used:", *shown, *more]))

    def state_dict(self) -> dict[str, Any]:
        """Return the reason and the count of each unusable row."""
        return {"reasons": dict(self.reasons), "counts": dict(self.counts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the reason and the count of each unusable row."""
        self.reasons, self.counts = dict(state_dict["reasons"]), Counter(state_dict["counts"])

    def _record(self, rows: Sequence[tuple[str, str]]) -> None:
        """Count rows, given as (id, reason), and append those that are new to the file."""
        new = {row: reason for row, reason in rows if row not in self.recorded}
        if new:
            self.recorded.update(new)
            with files.tolerate_write_errors(self.path):
                files.append_jsonl(self.path, [{"id": row, "reason": reason} for row, reason in new.items()])
        self.reasons |= rows
        self.counts.update(row for row, _ in rows)


class Faults(L.Callback):
    """Callback that counts the faults of a run and decides whether the run continues.

    Counts are logged as `faults/<kind>` and reported at the end. A step whose loss or gradient is not finite changes no
    weight. Its rows are written to a file in `RUN/faults`, from which `auris replay` repeats the step; so are the rows
    of a step at which the data loader failed. The directory also holds a checkpoint of the weights before the latest
    series of non-finite steps.

    Args:
        run_dir: Directory of the run.
        nonfinite: "skip" counts a non-finite step and stops the run after MAX_SKIPS consecutive ones; "stop" stops the
            run at the first one.

    Raises:
        UserError: `nonfinite` has another value.
    """

    def __init__(self, run_dir: str | Path, nonfinite: str = "skip"):
        if nonfinite not in ("skip", "stop"):
            raise UserError(f"nonfinite={nonfinite}: expected skip or stop")
        self.run_dir, self.nonfinite = Path(run_dir), nonfinite
        self.counts = dict.fromkeys(("skipped_steps", "unusable_rows", "lost_workers"), 0)
        self.consecutive_skips = 0
        self.weights: str | None = None  # checkpoint of the weights before the skipped steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any = None, batch_idx: int = 0
    ) -> None:
        """Count and log the faults of a step; record a step that was not finite."""
        loss, norm = float(outputs["loss"]), float(outputs["grad_norm"])
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        self.consecutive_skips = 0 if is_finite else self.consecutive_skips + 1
        self.counts["skipped_steps"] += not is_finite
        self.counts["unusable_rows"] += round(float(outputs["rows_unusable"]))
        self.counts["lost_workers"] += round(float(outputs["lost_workers"]))
        for kind, number in self.counts.items():
            pl_module.log(f"faults/{kind}", float(number))
        if not is_finite:
            reason = f"the loss is {loss}, the gradient norm {norm}"
            self._handle_nonfinite(trainer, pl_module, trainer.global_step - 1, reason)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Record the rows of a training step at which the data loader failed."""
        if not isinstance(exception, LoaderError) or not trainer.training:
            return
        if file := self._save(trainer, exception.number, str(exception), weights=None):
            warnings.warn(f"the rows of step {exception.number} are in {file}: {replay_command(file)}", stacklevel=2)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the counts."""
        faults = [f"{number} {kind.replace('_', ' ')}" for kind, number in self.counts.items() if number]
        rank_zero_info(f"faults: {', '.join(faults) or 'none'}")

    def state_dict(self) -> dict[str, Any]:
        """Return the counts by kind of fault."""
        return dict(self.counts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts by kind of fault."""
        self.counts |= state_dict

    def _handle_nonfinite(self, trainer: L.Trainer, module: L.LightningModule, step: int, reason: str) -> None:
        """Record a step without an update, then warn or stop. Every rank calls this with the same numbers."""
        if self.consecutive_skips == 1:
            self.weights = self._save_weights(trainer, module, step)
        message = f"step {step}: {reason}; it changed no weight"
        if trainer.is_global_zero and (file := self._save(trainer, step, reason, self.weights)):
            message += f". To examine its rows: {replay_command(file)}"
        if self.nonfinite == "stop":
            raise RunStopped(f"{message}. Set nonfinite=skip to continue without this step")
        if self.consecutive_skips == MAX_SKIPS:
            raise RunStopped(
                f"{message}. The {MAX_SKIPS - 1} steps before it were not finite either: the run has diverged, try a "
                "lower optim.lr"
            )
        rank_zero_warn(message)

    def _save_weights(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> str | None:
        """Replace the saved weights by the current ones; return their path relative to the run directory."""
        folder = self.run_dir / FOLDER
        if trainer.is_global_zero:
            for older in filter(checkpoint_dir.is_checkpoint, folder.glob("step_*")):
                shutil.rmtree(older, ignore_errors=True)
        with files.tolerate_write_errors(folder):
            path = checkpoint_io.save(folder, step, module=module, state={"recipe": module.hparams["recipe"]})
            return str(path.relative_to(self.run_dir))
        return None  # writing failed

    def _save(self, trainer: L.Trainer, step: int, reason: str, weights: str | None) -> Path | None:
        """Write the record of a step; return its path, None if it cannot be written."""
        data = datamodule(trainer)
        ranks = [
            [[RowPosition(row=row, id=data.rows[row].id, epoch=epoch) for row, epoch in pack] for pack in packs]
            for packs in data.packs_by_rank(step)
        ]
        with files.tolerate_write_errors(self.run_dir / FOLDER):
            return Fault(step=step, reason=reason, ranks=ranks, weights=weights).save(self.run_dir)
        return None


class ProgressFile(L.Callback):
    """Callback that writes `progress.json` every second. The table of a running study is made from these files."""

    def __init__(self, run_dir: str | Path):
        self.path = Path(run_dir) / "progress.json"
        self.last_write = 0.0  # by time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any = None, batch_idx: int = 0
    ) -> None:
        """Write the file if a second has passed or the run is complete."""
        if time.monotonic() - self.last_write > 1 or trainer.global_step >= audio_module(pl_module).max_steps:
            self._write(trainer, audio_module(pl_module).max_steps)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file with the metrics of the validation; the last validation comes after the last step."""
        self._write(trainer, audio_module(pl_module).max_steps)

    def _write(self, trainer: L.Trainer, max_steps: int) -> None:
        if not trainer.is_global_zero:
            return
        self.last_write = time.monotonic()
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        content = {"step": trainer.global_step, "max_steps": max_steps, **metrics}
        with files.tolerate_write_errors(self.path):
            files.write_json(self.path, content, indent=None)
