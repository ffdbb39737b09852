"""Preemption by a user or a cluster: signals, the exit status that asks for a requeue, and the lock of a run."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
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
# Seconds during which the same signal counts as received once. Launchers signal both a process and its process group,
# and a terminal that closes signals its processes twice.
DUPLICATE_INTERVAL = 0.5

_STOPPED = "stopped by {} before or after training: the same command starts or continues the run"


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
    """Context manager that handles the signals with which a user or a cluster stops a command.

    The signals are SIGINT (Ctrl-C), SIGHUP (the terminal was closed), SIGTERM, and SIGUSR1, which SLURM can be told to
    send before a job's time limit. The first signal raises `Preempted` immediately. While `exits_at_once` is False, the
    signal is only recorded, so that the command can save its state first.

    The same signal again ends the process immediately, without saving. SIGUSR1 never does, because a study sends it to
    runs that may have received it already.

    A signal that the parent process ignores stays ignored: SIGHUP after `nohup`, SIGINT in the background of a script.

    Args:
        message: Message if a signal ends the process immediately, with a field for the name of the signal.
        exits_at_once: Initial value of the attribute.

    Attributes:
        received: Name of the first signal, empty if no signal was received.
        exits_at_once: Whether a signal ends the process immediately. `CheckpointCallback` changes this attribute.
    """

    SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, message: str = _STOPPED, *, exits_at_once: bool = True) -> None:
        self.message, self.received = message, ""
        self.exits_at_once = exits_at_once
        self._first_times: dict[int, float] = {}  # signal -> when it was received first, by time.monotonic()
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():  # Python lets only the main thread set handlers
            handled = [number for number in self.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._previous_handlers = {number: signal.signal(number, self._receive) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        first_time = self._first_times.setdefault(number, now)
        if number != signal.SIGUSR1 and now - first_time > DUPLICATE_INTERVAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self.received:
            return
        self.received = name
        _drop_closed_outputs()
        if not self.exits_at_once:
            repeated = "" if number == signal.SIGUSR1 else f"; {name} again ends the process without saving"
            _print(f"received {name}: saving{repeated}")
            return
        reason = self.message.format(name)
        _print(reason)
        request_requeue()
        raise Preempted(reason)


def _drop_closed_outputs() -> None:
    """Redirect stdout and stderr to the null device if nobody reads them, so that writing cannot fail before a save.

    Ctrl-C also ends the other programs of a pipeline, such as `tee`, and SIGHUP says that the terminal is gone.
    """
    time.sleep(0.05)  # the other programs get the signal at the same time
    for descriptor in (1, 2):
        poller = select.poll()
        poller.register(descriptor, 0)  # errors are reported in any case
        if poller.poll(0):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _print(line: str) -> None:
    """Print a line on stderr, on the first process of a machine.

    A signal may interrupt a write to `sys.stderr`, which then refuses another write, so the file descriptor is used.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, f"\n{line}\n".encode())


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
