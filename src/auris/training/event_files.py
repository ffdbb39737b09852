"""TensorBoard logger for runs that may be resumed and whose disk may become full."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from auris import audio, compat


class ResumableTensorBoardLogger(TensorBoardLogger):
    """TensorBoard logger whose curves show every step once even in a resumed run, and whose errors do not end a run.

    After a failed write, nothing is logged until the next checkpoint. Then a new event file is started.

    Args:
        run_dir: Directory of the event files.
    """

    def __init__(self, run_dir: str | Path) -> None:
        # With the default, every start of the run would log Lightning's placeholder for `hp_metric`.
        super().__init__(run_dir, name="", version="", default_hp_metric=False)
        self.n_failed = 0  # number of failed writes
        self.is_broken = False  # whether a write to the current event file has failed
        self._dropped_from: int | None = None  # the argument of `drop_from`, until it has been written

    @property
    def experiment(self) -> Any:
        """The SummaryWriter.

        Raises:
            AttributeError: No event file can be created. Lightning tolerates this exception, but any other exception
                would end the run.
        """
        try:
            return super().experiment
        except OSError as error:
            raise AttributeError(f"no event file can be created in {self.log_dir}") from error

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics; a failed write is counted and reported."""
        self._try(super().log_metrics, metrics, step)

    def log_text(self, tag: str, lines: Sequence[str], step: int) -> None:
        """Log lines verbatim. They are indented, because TensorBoard would interpret them as Markdown otherwise."""
        text = "\n".join("    " + " ".join(line.splitlines()) for line in lines)
        self._try(lambda: self.experiment.add_text(tag, text, step))

    def log_audio(self, tag: str, wave: np.ndarray, step: int) -> None:
        """Log a waveform (L,) at 16 kHz."""
        self._try(lambda: self.experiment.add_audio(tag, wave[None], step, sample_rate=audio.SAMPLE_RATE))

    def save(self) -> None:
        """Flush the event file; a failed write is counted and reported."""
        self._try(super().save)

    def flush(self) -> None:
        """Write everything that has been logged, or start a new file if the current one is broken."""
        if self.is_broken:
            compat.forget_event_file(self)
            self.is_broken = False
            self._try(self._write_session_start)
        else:
            self.save()

    def drop_from(self, step: int) -> None:
        """Have TensorBoard ignore everything that earlier starts of the run logged at this step or later."""
        self._dropped_from = step
        self._try(self._write_session_start)

    def finalize(self, status: str) -> None:
        """Close the event file; a failed write is counted and reported."""
        self._try(super().finalize, status)

    def _write_session_start(self) -> None:
        """Write the event that `drop_from` requested, unless it has been written."""
        if self._dropped_from is not None:
            # Imported here because it takes a second.
            # pyrefly: ignore[missing-module-attribute]  # protobuf creates these classes at run time
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog

            start = Event(step=self._dropped_from, session_log=SessionLog(status=SessionLog.START))
            self.experiment.file_writer.add_event(start)
            self.experiment.flush()
            self._dropped_from = None

    @rank_zero_only
    def _try(self, write: Callable[..., None], *arguments: Any) -> None:
        """Call `write` on the first rank; count and report an OSError or an error caused by one, without raising it."""
        if self.is_broken:
            return
        try:
            write(*arguments)
        except (OSError, ValueError, AttributeError) as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # Lightning and `experiment` wrap the original error in another one
                cause = cause.__cause__
            if not isinstance(cause, OSError):
                raise
            self.is_broken = True
            self.n_failed += 1
            rank_zero_warn(f"the event file cannot be written ({cause}): the curves will have a gap")
