"""TensorBoard event files of a run that may be resumed, and whose disk may be full."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from auris import audio, compat


class EventFiles(TensorBoardLogger):
    """Logger whose curves have every step once, and whose errors do not end a run.

    What cannot be written is missing from the curves until the next checkpoint; then a new file is begun.

    Args:
        run_dir: directory of the event files.
    """

    def __init__(self, run_dir: str | Path) -> None:
        # A second session would write the placeholder of `hp_metric` a second time.
        super().__init__(run_dir, name="", version="", default_hp_metric=False)
        self.failed = 0
        self.is_broken = False
        self._dropped_from: int | None = None  # step that readers have not been told of yet

    @property
    def experiment(self) -> Any:
        try:
            return super().experiment
        except OSError as error:  # Lightning tests for the attribute, and any other error would end the run
            raise AttributeError(f"{self.log_dir} takes no event files") from error

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._try(super().log_metrics, metrics, step)

    def log_text(self, tag: str, lines: Sequence[str], step: int) -> None:
        """Log lines literally: TensorBoard takes indented text neither for Markdown nor for HTML."""
        shown = "\n".join("    " + " ".join(line.splitlines()) for line in lines)
        self._try(lambda: self.experiment.add_text(tag, shown, step))

    def log_sound(self, tag: str, wave: np.ndarray, step: int) -> None:
        """Log a sound (L,) at 16 kHz."""
        self._try(lambda: self.experiment.add_audio(tag, wave[None], step, sample_rate=audio.SAMPLE_RATE))

    def save(self) -> None:
        self._try(super().save)

    def flush(self) -> None:
        """Write what was logged so far, or begin a new file if the present one is broken."""
        if self.is_broken:
            compat.forget_event_file(self)
            self.is_broken = False
            self._try(self._begin)
        else:
            self.save()

    def drop_from(self, step: int) -> None:
        """Have readers drop what earlier sessions have logged from this step on."""
        self._dropped_from = step
        self._try(self._begin)

    def finalize(self, status: str) -> None:
        self._try(super().finalize, status)

    def _begin(self) -> None:
        if self._dropped_from is not None:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # here, as it takes a second

            start = Event(step=self._dropped_from, session_log=SessionLog(status=SessionLog.START))
            self.experiment.file_writer.add_event(start)
            self.experiment.flush()
            self._dropped_from = None

    @rank_zero_only
    def _try(self, write: Callable[..., None], *arguments: Any) -> None:
        if self.is_broken:
            return
        try:
            write(*arguments)
        except (OSError, ValueError, AttributeError) as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # Lightning raises ValueError from any error
                cause = cause.__cause__
            if not isinstance(cause, OSError):
                raise
            self.is_broken = True
            self.failed += 1
            rank_zero_warn(f"event files cannot be written ({cause}): the curves will have a gap")
