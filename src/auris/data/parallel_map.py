"""Work that is divided over the cores which this process may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, TypeVar

T, R = TypeVar("T"), TypeVar("R")


def divide(work: Callable[[T], R], parts: Sequence[T]) -> Iterator[tuple[int, R]]:
    """What `work` makes of each part, with the number of the part, as they are done."""
    processes = min(len(os.sched_getaffinity(0)), len(parts))
    if processes <= 1:
        yield from ((number, work(part)) for number, part in enumerate(parts))
        return
    # Forked, as the loader's workers are: what the work needs does not travel, only what it found does.
    with ProcessPoolExecutor(processes, get_context("fork"), _receive, (work, parts)) as pool:
        found: dict[Future[R], int] = {pool.submit(_do, number): number for number in range(len(parts))}
        try:
            for done in as_completed(found):
                yield found.pop(done), done.result()
        finally:
            pool.shutdown(cancel_futures=True)


_received: tuple[Callable[[Any], Any], Sequence[Any]] | None = None  # in a process that works


def _receive(work: Callable[[Any], Any], parts: Sequence[Any]) -> None:
    global _received
    _received = work, parts


def _do(number: int) -> Any:
    assert _received is not None
    work, parts = _received
    return work(parts[number])
