"""Callbacks that report on a run: losses by task, examples, unusable rows, faulty steps, progress.

None of them changes the weights.
"""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from auris import audio, files
from auris.data.datamodule import AudioDataModule
from auris.data.loader import LoaderError
from auris.data.rows import group
from auris.errors import AudioError, RowError, RunStopped, UserError
from auris.model.distributed import gather
from auris.model.weights import checkpoint_dir, checkpoint_io
from auris.text import tasks
from auris.text.tasks import CURVES
from auris.training.event_files import EventFiles
from auris.training.faults import FOLDER, Fault, Place, command

# Consecutive rows that `max_unusable` is a share of: enough for a rate, few enough to notice a lost disk soon.
ROWS = 1000
# Consecutive steps without an update after which every run stops: it has diverged, this is not a single bad batch.
SKIPS = 10
# Rows of each group of the validation table that TensorBoard shows.
EXAMPLES = 2


class TaskLosses(L.Callback):
    """Logs `train/loss/<task>`, and `train/loss/chat <mode>` for dialogues.

    Each is the mean over the supervised tokens, or the pairs, of a task's rows since the last log. A task without rows
    has no point. Sums stay on the device until they are logged.
    """

    def __init__(self) -> None:
        self.sums: torch.Tensor | None = None  # (2, K): losses and tokens of each of CURVES

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        if "tasks" not in outputs:  # CTC has rows of one task
            return
        new = outputs["tasks"]
        self.sums = new if self.sums is None else self.sums.to(new) + new
        if trainer.global_step % trainer.log_every_n_steps:
            return
        losses, tokens = self.sums.tolist()
        self.sums = None
        means = {f"train/loss/{code}": x / n for code, x, n in zip(CURVES, losses, tokens, strict=True) if n}
        for logger in trainer.loggers:
            logger.log_metrics(means, trainer.global_step - 1)  # steps are numbered from 0 in Lightning's curves

    def state_dict(self) -> dict[str, list[list[float]] | None]:
        return {"sums": None if self.sums is None else self.sums.tolist()}

    def load_state_dict(self, state: Mapping[str, list[list[float]] | None]) -> None:
        self.sums = None if state["sums"] is None else torch.tensor(state["sums"])


class Examples(L.Callback):
    """Logs a few validation rows of each task: references and answers at every validation, the sound once a session.

    They are always the first rows of each group of the validation table, whichever rank has answered them.
    """

    def __init__(self) -> None:
        self.answers: dict[str, dict[int, str]] = {}  # of each group, row number -> answer
        self.played: set[int] = set()  # rows whose sound was logged

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.answers = {}

    def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        for number, answer in outputs["answers"].items():
            self._keep(group(trainer.datamodule.target_row(number)), {number: answer})

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for answers_of_rank in gather(self.answers):
            for name, answers in answers_of_rank.items():
                self._keep(name, answers)
        for logger in trainer.loggers:
            if isinstance(logger, EventFiles) and trainer.is_global_zero:
                for name, answers in self.answers.items():
                    self._log(logger, trainer.datamodule, name, answers, trainer.global_step)

    def _keep(self, name: str, answers: dict[int, str]) -> None:
        answers = self.answers.get(name, {}) | answers
        self.answers[name] = {number: answers[number] for number in sorted(answers)[:EXAMPLES]}

    def _log(self, logger: EventFiles, data: AudioDataModule, name: str, answers: dict[int, str], step: int) -> None:
        lines = []
        for place, (number, answer) in enumerate(answers.items(), 1):
            row = data.target_row(number)
            reference = tasks.find(row.labels["task"]).render(row.labels)
            lines += [f"row {row.id}", f"  reference: {reference}", f"  answer:    {answer}"]
            if number in self.played or not data.valid_samples.has_audio:
                continue
            self.played.add(number)
            for part, clip in enumerate(row.clips, 1):
                with suppress(RowError, AudioError):  # deleted since: `UnusableRows` names it at the next validation
                    tag = f"val/{name}/row {place}" + (f" clip {part}" if len(row.clips) > 1 else "")
                    logger.log_sound(tag, data.valid_samples.read(clip)[: audio.MAX_SAMPLES], step)
        logger.log_text(f"val/{name}", lines, step)


class UnusableRows(L.Callback):
    """Counts rows that could not be used and names them with their reason, in `unusable_rows.jsonl` and at the end.

    Args:
        run_dir: of the run.
        most: largest share of ROWS consecutive training rows that may be unusable; beyond it, the run stops
            (RunStopped).
    """

    def __init__(self, run_dir: str | Path, most: float = 1.0):
        if not 0 <= most <= 1:
            raise UserError(f"data.max_unusable={most}: expected a share of the rows, 0 to 1")
        self.path, self.most = Path(run_dir) / "unusable_rows.jsonl", most
        self.reasons: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.written: set[str] = set()
        self.recent: deque[tuple[float, float]] = deque()  # rows, and unusable rows, of the last steps on all ranks

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        resumed = trainer.global_step and self.path.is_file()
        known = {line["id"]: line["reason"] for line in files.read_jsonl(self.path)} if resumed else {}
        self.written = set(known)
        if not trainer.is_global_zero:  # every rank has restored the first one's state
            self.reasons, self.counts = {}, Counter()
            return
        if not trainer.global_step:
            self.path.unlink(missing_ok=True)  # from an attempt that reached no checkpoint
        for row, reason in known.items():  # including those of other ranks
            self.reasons.setdefault(row, reason)
            self.counts[row] = max(1, self.counts[row])
        self._note([row for row in trainer.datamodule.problems() if row[0] not in self.reasons])

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self._note(outputs["skipped"])
        self.recent.append((float(outputs["rows_met"]), float(outputs["rows_unusable"])))
        while sum(met for met, _ in self.recent) - self.recent[0][0] >= ROWS:
            self.recent.popleft()
        met, unusable = (sum(numbers) for numbers in zip(*self.recent, strict=True))
        if unusable > self.most * max(ROWS, met):
            raise RunStopped(
                f"of the last {met:.0f} rows {unusable:.0f} could not be used, more than "
                f"data.max_unusable={self.most} of {ROWS}: see {self.path}"
            )

    def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self._note(outputs["skipped"])

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        ranks = gather((self.reasons, self.counts))  # the first one reports the rows of all of them
        self.reasons = {row: reason for reasons, _ in ranks for row, reason in reasons.items()}
        self.counts = sum((counts for _, counts in ranks), Counter())
        if not self.reasons:
            rank_zero_info("every row could be used")
            return
        shown = [f"  {row} ({self.counts[row]}x): {reason}" for row, reason in list(self.reasons.items())[:10]]
        more = [f"  ... all of them in {self.path}"] if len(self.reasons) > 10 else []
        rank_zero_warn("\n".join([f"{len(self.reasons)} rows could not be used:", *shown, *more]))

    def state_dict(self) -> dict[str, dict[str, str] | dict[str, int]]:
        return {"reasons": dict(self.reasons), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Mapping]) -> None:
        self.reasons, self.counts = dict(state["reasons"]), Counter(state["counts"])

    def _note(self, rows: Sequence[tuple[str, str]]) -> None:
        """Count rows, given with their reasons, and write those that are new to the file."""
        new = {row: reason for row, reason in rows if row not in self.written}
        if new:
            self.written.update(new)
            with files.tolerate_write_errors(self.path):
                files.append_jsonl(self.path, [{"id": row, "reason": reason} for row, reason in new.items()])
        self.reasons |= rows
        self.counts.update(row for row, _ in rows)


class Faults(L.Callback):
    """Counts the faults of a run, in TensorBoard and at the end, and decides whether the run continues.

    A step whose loss or gradient is not finite changes no weight. Its rows, and those of a step at which the loader
    failed, are written to a file in `faults`, for `auris replay`; next to it are the weights of the last series of such
    steps.

    Args:
        run_dir: of the run.
        nonfinite: "skip" counts such a step and stops the run after SKIPS consecutive ones; "stop" stops it at the
            first one.
    """

    def __init__(self, run_dir: str | Path, nonfinite: str = "skip"):
        if nonfinite not in ("skip", "stop"):
            raise UserError(f"nonfinite={nonfinite}: expected skip or stop")
        self.run_dir, self.nonfinite = Path(run_dir), nonfinite
        self.counts = dict.fromkeys(("skipped_steps", "unusable_rows", "lost_workers"), 0)
        self.in_a_row = 0  # consecutive steps without an update
        self.weights: str | None = None  # checkpoint of the weights before them

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        loss, norm = float(outputs["loss"]), float(outputs["grad_norm"])
        finite = math.isfinite(loss) and math.isfinite(norm)
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.counts["skipped_steps"] += not finite
        self.counts["unusable_rows"] += round(float(outputs["rows_unusable"]))
        self.counts["lost_workers"] += round(float(outputs["lost_workers"]))
        for what, number in self.counts.items():
            module.log(f"faults/{what}", float(number))
        if not finite:
            self._nonfinite(trainer, module, trainer.global_step - 1, f"the loss is {loss}, the gradient's norm {norm}")

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, LoaderError) or not trainer.training:
            return
        if file := self._save(trainer, exception.number, str(exception), weights=None):
            warnings.warn(f"the rows of step {exception.number} are in {file}: {command(file)}", stacklevel=2)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        faults = [f"{number} {what.replace('_', ' ')}" for what, number in self.counts.items() if number]
        rank_zero_info(f"faults: {', '.join(faults) or 'none'}")

    def state_dict(self) -> dict[str, int]:
        return dict(self.counts)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.counts |= state

    def _nonfinite(self, trainer: L.Trainer, module: L.LightningModule, step: int, reason: str) -> None:
        """Record a step that changed nothing. Every rank comes here with the same numbers."""
        if self.in_a_row == 1:
            self.weights = self._save_weights(trainer, module, step)
        message = f"step {step}: {reason}; it changed no weight"
        if trainer.is_global_zero and (file := self._save(trainer, step, reason, self.weights)):
            message += f". What was in it: {command(file)}"
        if self.nonfinite == "stop":
            raise RunStopped(f"{message}. nonfinite=skip goes on without the step")
        if self.in_a_row == SKIPS:
            raise RunStopped(
                f"{message}. So it was in the {SKIPS - 1} steps before: the run has diverged (lower optim.lr?)"
            )
        rank_zero_warn(message)

    def _save_weights(self, trainer: L.Trainer, module: L.LightningModule, step: int) -> str | None:
        """Save the weights in place of earlier ones; return the path relative to the run directory."""
        folder = self.run_dir / FOLDER
        if trainer.is_global_zero:
            for older in filter(checkpoint_dir.is_checkpoint, folder.glob("step_*")):
                shutil.rmtree(older, ignore_errors=True)
        with files.tolerate_write_errors(folder):
            path = checkpoint_io.save(folder, step, module=module, state={"recipe": module.hparams["recipe"]})
            return str(path.relative_to(self.run_dir))
        return None

    def _save(self, trainer: L.Trainer, step: int, reason: str, weights: str | None) -> Path | None:
        data = trainer.datamodule
        ranks = [
            [[Place(row=row, id=data.rows[row].id, epoch=epoch) for row, epoch in pack] for pack in packs]
            for packs in data.packs_by_rank(step)
        ]
        with files.tolerate_write_errors(self.run_dir / FOLDER):
            return Fault(step=step, reason=reason, ranks=ranks, weights=weights).save(self.run_dir)
        return None


class ProgressFile(L.Callback):
    """Writes `progress.json` every second, for the table of the study runner."""

    def __init__(self, run_dir: str | Path):
        self.path = Path(run_dir) / "progress.json"
        self.written = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if time.monotonic() - self.written > 1 or trainer.global_step >= module.max_steps:
            self._write(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._write(trainer, module)  # the last one comes after the last step

    def _write(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self.written = time.monotonic()
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        content = {"step": trainer.global_step, "max_steps": module.max_steps, **metrics}
        with files.tolerate_write_errors(self.path):
            files.write_json(self.path, content, indent=None)
