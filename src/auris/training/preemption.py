"""Stopping and restarting a run from outside: a cluster's signals, the exit status to requeue on, the run's lock."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from auris import files
from auris.errors import UserError

# Exit status of a run that was stopped from outside and continues when it is started again: sysexits.h's "temporary
# failure; the user is invited to retry". A job script requeues on it.
REQUEUE = os.EX_TEMPFAIL  # 75
# Environment variable with the path of a file that is created when a run is to be started again. It is for scripts
# whose launcher has an exit status of its own, as torchrun has.
REQUEUE_FILE = "AURIS_REQUEUE"
# Seconds to wait for a previous process's lock: ranks need a while to notice that a peer has died.
LOCK_TIMEOUT = 30.0


class Preempted(SystemExit):
    """Ends a process whose run is to be started again."""

    def __init__(self, reason: str, code: int = REQUEUE) -> None:
        super().__init__(reason)
        self.code = code  # the exit status of the process


class Preemption:
    """Context manager that notes the signals by which a cluster wants its machine back.

    These are SIGTERM, and SIGUSR1, which SLURM is told to send before a job's time ends. Until training begins, a
    signal ends the process at once; from then on it is noted, and `CheckpointCallback` saves at the end of the step.

    Attributes:
        received: name of the signal, empty if there was none.
        at_once: whether a signal ends the process at once.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received = ""
        self.at_once = True
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():  # other threads must not set handlers
            self._before = {one: signal.signal(one, self._note) for one in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if self.at_once:
            request_requeue()
            raise Preempted(f"stopped by {self.received} before a step was taken")


def request_requeue() -> None:
    """Tell the script that started this process to start the run again, if it asked for that (REQUEUE_FILE)."""
    if REQUEUE_FILE in os.environ:
        Path(os.environ[REQUEUE_FILE]).touch()


@contextmanager
def run_lock(run_dir: Path, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold a run directory's lock.

    Raises:
        UserError: another process still holds it after the timeout.
    """
    owner = f"by process {os.getpid()} on {socket.gethostname()}"
    with ExitStack() as stack:
        try:
            stack.enter_context(files.file_lock(run_dir / "lock", timeout=timeout, owner=owner))
        except TimeoutError as error:
            raise UserError(
                f"{run_dir} is being trained already, {error.args[0] or 'by another process'}: wait for it, end it, "
                "or give this run a name of its own (arm=NAME, study=NAME or seed=N)"
            ) from error
        yield
