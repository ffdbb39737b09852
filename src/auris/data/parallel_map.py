"""Map a function over parts in forked processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from auris.errors import RunStopped

T = TypeVar("T")
R = TypeVar("R")


def parallel_map(work: Callable[[T], R], parts: Sequence[T], processes: int | None = None) -> Iterator[tuple[int, R]]:
    """Yield (number of the part, result) as parts finish, in any order.

    Args:
        work: Function of one part. Only its result must be picklable.
        parts: Arguments of `work`; they need not be picklable.
        processes: Number of processes; None: one for each core that this process may use.

    Raises:
        RunStopped: A process was killed.
    """
    processes = min(processes or len(os.sched_getaffinity(0)), len(parts))
    if processes <= 1:
        yield from ((number, work(part)) for number, part in enumerate(parts))
        return
    # Forked processes inherit `work` and the parts; only results are pickled.
    with ProcessPoolExecutor(processes, get_context("fork"), _receive, (work, parts)) as pool:
        numbers: dict[Future[R], int] = {pool.submit(_do, number): number for number in range(len(parts))}
        try:
            for done in as_completed(numbers):
                yield numbers.pop(done), done.result()
        except BrokenProcessPool as error:
            raise RunStopped(f"one of {processes} processes was killed; the machine may be out of memory") from error
        finally:
            pool.shutdown(cancel_futures=True)


_received: tuple[Callable[[Any], Any], Sequence[Any]] | None = None  # set in each forked process


def _receive(work: Callable[[Any], Any], parts: Sequence[Any]) -> None:
    global _received
    _received = work, parts


def _do(number: int) -> Any:
    assert _received is not None
    work, parts = _received
    return work(parts[number])
