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

# Exit status of a run that was stopped by a signal and continues when it is started again: "temporary failure; the
# user is invited to retry" in sysexits.h. A job script requeues the job if it sees this status.
REQUEUE = os.EX_TEMPFAIL  # 75
# Environment variable with the path of a file that is created when the run should be started again. Scripts need it if
# their launcher replaces the exit status, as torchrun does.
REQUEUE_FILE = "AURIS_REQUEUE"
# Seconds to wait for a previous process's lock: ranks need a while to notice that a peer has died.
LOCK_TIMEOUT = 30.0


class Preempted(SystemExit):
    """Ends the process of a run that should be started again.

    Args:
        reason: Message for the user.
        code: Exit status of the process.
    """

    def __init__(self, reason: str, code: int = REQUEUE) -> None:
        super().__init__(reason)
        self.code = code


class Preemption:
    """Context manager that records the signals with which a cluster preempts a job.

    These are SIGTERM, and SIGUSR1, which SLURM can be told to send before a job's time limit. Before training, a signal
    ends the process immediately. During training it is recorded, and `CheckpointCallback` saves after the current step.

    Attributes:
        received: Name of the signal, empty if there was none.
        at_once: Whether a signal ends the process immediately.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received = ""
        self.at_once = True
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():  # Python allows no other thread to set handlers
            self._before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if self.at_once:
            request_requeue()
            raise Preempted(f"stopped by {self.received} before the first step")


def request_requeue() -> None:
    """Create the file named by REQUEUE_FILE, if the script that started this process has set it."""
    if REQUEUE_FILE in os.environ:
        Path(os.environ[REQUEUE_FILE]).touch()


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
                f"{run_dir} is already being trained, {error.args[0] or 'by another process'}: wait until it has "
                "finished, stop it, or give this run another name (arm=NAME, study=NAME or seed=N)"
            ) from error
        yield
