"""What can be deleted without changing the weights: throughput, the report on unusable rows, a progress file."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

# Steps over which speeds are averaged; the first ones also pay for warm-up and are left out of it by then.
WINDOW = 20


class Throughput(L.Callback):
    """Tokens and audio seconds per second, on the progress bar and in TensorBoard."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float, float]] = []
        self.tokens = self.audio_seconds = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.tokens += float(outputs["tokens"])
        self.audio_seconds += float(outputs["audio_seconds"])
        self.marks = [*self.marks[-WINDOW:], (time.perf_counter(), self.tokens, self.audio_seconds)]
        (start, tokens, audio), (now, tokens_now, audio_now) = self.marks[0], self.marks[-1]
        if now > start:
            module.log("tokens/s", (tokens_now - tokens) / (now - start), prog_bar=True)
            module.log("audio_s/s", (audio_now - audio) / (now - start), prog_bar=True)
        module.log("train/audio_hours", self.audio_seconds / 3600)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.marks = []  # the time of validation is not the time of training

    def state_dict(self) -> dict[str, float]:
        return {"tokens": self.tokens, "audio_seconds": self.audio_seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.tokens, self.audio_seconds = state["tokens"], state["audio_seconds"]


class UnusableRows(L.Callback):
    """Counts rows that could not be used and names them with their reason, in `unusable_rows.jsonl` and at the end."""

    def __init__(self, run_dir: str | Path):
        self.path = Path(run_dir) / "unusable_rows.jsonl"
        self.reasons: dict[str, str] = {}
        self.counts: Counter[str] = Counter()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # A resumed run has been given its state by now.
        if not trainer.is_global_zero:  # each rank was given the first one's state, and knows the same problems
            self.reasons, self.counts = {}, Counter()
            return
        for row, reason in trainer.datamodule.problems():
            if row not in self.reasons:  # known since before a resume
                self._note(row, reason)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        for row, reason in outputs["skipped"]:
            self._note(row, reason)

    def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        for row, reason in outputs["skipped"]:
            self._note(row, reason)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._gather(trainer)
        if not self.reasons:
            rank_zero_info("every row could be used")
            return
        shown = [f"  {row} ({self.counts[row]}x): {reason}" for row, reason in list(self.reasons.items())[:10]]
        more = [f"  ... all of them in {self.path}"] if len(self.reasons) > 10 else []
        rank_zero_warn("\n".join([f"{len(self.reasons)} rows could not be used:", *shown, *more]))

    def state_dict(self) -> dict[str, Any]:
        return {"reasons": dict(self.reasons), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reasons, self.counts = dict(state["reasons"]), Counter(state["counts"])

    def _gather(self, trainer: L.Trainer) -> None:
        """Every rank's rows, so that the first one reports them all."""
        if trainer.world_size > 1:
            states: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, self.state_dict())
            self.reasons = {row: why for state in states for row, why in state["reasons"].items()}
            self.counts = sum((Counter(state["counts"]) for state in states), Counter())

    def _note(self, row: str, reason: str) -> None:
        if row not in self.reasons:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"id": row, "reason": reason}, ensure_ascii=False) + "\n")
        self.reasons[row] = reason
        self.counts[row] += 1


class ProgressFile(L.Callback):
    """`progress.json` in the run directory, every second: what the study runner shows of runs side by side."""

    def __init__(self, run_dir: str | Path):
        self.path = Path(run_dir) / "progress.json"
        self.written = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        now = time.monotonic()
        if trainer.is_global_zero and (now - self.written > 1 or trainer.global_step >= module.max_steps):
            self.written = now
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            content = {"step": trainer.global_step, "max_steps": module.max_steps, **metrics}
            partial = self.path.with_suffix(".tmp")
            partial.write_text(json.dumps(content))
            partial.replace(self.path)
