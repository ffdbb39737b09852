"""Parallel map of a function over parts of the work, in forked processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from auris.errors import RunStopped

T = TypeVar("T")
R = TypeVar("R")


def parallel_map(work: Callable[[T], R], parts: Sequence[T], processes: int | None = None) -> Iterator[tuple[int, R]]:
    """Yield (number of the part, result) in the order in which parts finish.

    Args:
        work: Function of one part. Its result must be picklable; the function itself need not be.
        parts: Arguments of `work`. They need not be picklable.
        processes: Number of processes; None: one for each core that this process may use.

    Raises:
        RunStopped: A process was killed.
    """
    processes = min(processes or len(os.sched_getaffinity(0)), len(parts))
    if processes <= 1:
        yield from ((number, work(part)) for number, part in enumerate(parts))
        return
    # Forked processes inherit `work` and the parts; only results are pickled.
    with ProcessPoolExecutor(processes, get_context("fork"), _initialize, (work, parts)) as pool:
        numbers: dict[Future[R], int] = {pool.submit(_run_part, number): number for number in range(len(parts))}
        try:
            for future in as_completed(numbers):
                yield numbers.pop(future), future.result()
        except BrokenProcessPool as error:
            raise RunStopped(f"one of {processes} processes was killed; the machine may be out of memory") from error
        finally:
            pool.shutdown(cancel_futures=True)


_work_and_parts: tuple[Callable[[Any], Any], Sequence[Any]] | None = None  # set in each forked process


def _initialize(work: Callable[[Any], Any], parts: Sequence[Any]) -> None:
    global _work_and_parts
    _work_and_parts = work, parts
    reset_signals()


def reset_signals() -> None:
    """Make a worker process end at a signal without a message or traceback, by removing the handlers of Python.

    Ctrl-C, for example, reaches all processes of a command. The main process reports it. Signals that are ignored, as
    SIGHUP after `nohup`, stay ignored.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


def _run_part(number: int) -> Any:
    assert _work_and_parts is not None
    work, parts = _work_and_parts
    return work(parts[number])
