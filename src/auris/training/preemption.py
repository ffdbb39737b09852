"""Preemption by a cluster: signals, the exit status that asks for a requeue, and the lock of a run directory."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from auris import files
from auris.errors import UserError

# Exit status of a run that was stopped by a signal and continues when it is started again. In sysexits.h it means
# "temporary failure; the user is invited to retry". A job script should requeue the job if it sees this status.
REQUEUE_STATUS = os.EX_TEMPFAIL  # 75
# Environment variable with the path of a file that is created when the run should be started again. Scripts need the
# file if their launcher replaces the exit status, as torchrun does.
REQUEUE_FILE_VARIABLE = "AURIS_REQUEUE"
# Seconds to wait for the lock of an earlier start of the run, whose ranks need a while to notice that a peer has died.
LOCK_TIMEOUT = 30.0


class Preempted(SystemExit):
    """Exception that ends the process of a run that should be started again.

    Args:
        reason: Message for the user.
        code: Exit status of the process.
    """

    def __init__(self, reason: str, code: int = REQUEUE_STATUS) -> None:
        super().__init__(reason)
        self.code = code


class Preemption:
    """Context manager that handles the signals with which a cluster preempts a job.

    The signals are SIGTERM, and SIGUSR1, which SLURM can be told to send before a job's time limit. Before and after
    training, a signal ends the process immediately. During training the signal is recorded, and `CheckpointCallback`
    saves a checkpoint after the current step and ends the run.

    Attributes:
        received: Name of the last signal, empty if no signal was received.
        exits_at_once: Whether a signal ends the process immediately. `CheckpointCallback` sets this attribute.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received = ""
        self.exits_at_once = True
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():  # Python lets only the main thread set handlers
            self._previous_handlers = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if self.exits_at_once:
            request_requeue()
            raise Preempted(f"stopped by {self.received} before or after training")


def request_requeue() -> None:
    """Create the file whose path is in the environment variable REQUEUE_FILE_VARIABLE, if the variable is set."""
    if REQUEUE_FILE_VARIABLE in os.environ:
        Path(os.environ[REQUEUE_FILE_VARIABLE]).touch()


@contextmanager
def run_lock(run_dir: Path, timeout: float = LOCK_TIMEOUT) -> Generator[None]:
    """Hold the lock of a run directory.

    Args:
        run_dir: Directory of the run.
        timeout: Seconds to wait for the lock.

    Raises:
        UserError: Another process still holds the lock after the timeout.
    """
    owner = f"by process {os.getpid()} on {socket.gethostname()}"
    with ExitStack() as stack:
        try:
            stack.enter_context(files.file_lock(run_dir / "lock", timeout=timeout, owner=owner))
        except TimeoutError as error:
            raise UserError(
                f"{run_dir} is already being trained, {error.args[0] or 'by another process'}: wait until that process "
                "has finished, stop it, or give this run another name (arm=NAME, study=NAME or seed=N)"
            ) from error
        yield
