"""Data loader that replaces workers that die or hang, and continues with the item at which they stopped.

This is possible because an item depends only on its number, and no worker keeps a position. torch's DataLoader, in
contrast, ends the run when a worker dies, and waits forever for a worker that hangs.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from auris.errors import RunStopped, UserError, count

POLL_INTERVAL = 5.0  # seconds between checks that all workers are alive
PREFETCH = 2  # items that a worker prepares in advance (torch's default)
_END = object()  # marks the end of the items
# {signal that ends a worker: frequent reason why the worker receives it}
_SIGNAL_CAUSES: dict[int, str] = {
    signal.SIGKILL: "the machine may be out of memory",
    signal.SIGBUS: "shared memory, /dev/shm, may be full",
}


class LoaderError(RunStopped):
    """Workers died or hung repeatedly while they prepared item `number`."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class _WorkersLostError(Exception):
    """A worker died or hung; all workers of its DataLoader have been killed."""


class Loader:
    """Loader of items [start, stop) of a dataset, in order.

    Its length is `stop`, not `stop - start`, because a resumed Lightning run counts batches from the start of the run.

    Args:
        dataset: Maps a number to an item; the same number always gives the same item.
        start: Number of the first item.
        stop: Number after the last item.
        num_workers: Number of processes that prepare items in advance. With 0, items are prepared in this process, and
            no process is replaced.
        timeout: Seconds to wait for an item before the workers are considered to hang; 0: no limit.
        max_restarts: How often workers are replaced for one item before a LoaderError is raised.
        on_restart: Called with the item's number and the reason whenever workers are replaced.

    Attributes:
        wait_seconds: Total time that the consumer has waited for items.

    Raises:
        LoaderError: During iteration, if workers died or hung more than `max_restarts` times at one item.
    """

    def __init__(
        self,
        dataset: Dataset,
        start: int,
        stop: int,
        *,
        num_workers: int = 0,
        timeout: float = 0,
        max_restarts: int = 0,
        on_restart: Callable[[int, str], None] = lambda number, reason: None,
    ):
        for name, value in {
            "num_workers": num_workers,
            "worker_timeout": timeout,
            "worker_restarts": max_restarts,
        }.items():
            if value < 0:
                raise UserError(f"data.{name}={value}: expected 0 or more")
        self.dataset, self.start, self.stop = dataset, start, stop
        self.num_workers, self.timeout, self.max_restarts = num_workers, timeout, max_restarts
        self.on_restart = on_restart
        self.wait_seconds = 0.0

    def __len__(self) -> int:
        return self.stop

    def __iter__(self) -> Iterator[Any]:
        number, n_losses, one_by_one_until = self.start, 0, self.start
        wait_start = time.perf_counter()
        while number < self.stop:
            one_by_one = number < one_by_one_until
            stop = min(one_by_one_until, self.stop) if one_by_one else self.stop
            try:
                for item in self._read(number, stop, one_by_one):
                    self.wait_seconds += time.perf_counter() - wait_start
                    yield item
                    wait_start = time.perf_counter()
                    number, n_losses = number + 1, 0
            except _WorkersLostError as error:
                n_losses += 1
                if n_losses > self.max_restarts:
                    raise LoaderError(
                        f"loader workers were lost {count(n_losses, 'time')} at step {number} (last reason: {error}); "
                        "set data.num_workers=0 to see the error, data.worker_timeout=SECONDS to give slow storage "
                        "more time, or data.worker_restarts=N to allow more attempts",
                        number,
                    ) from error
                # Any item in preparation may be the cause. One worker that prepares one item at a time finds out which.
                one_by_one_until = number + self.num_workers * PREFETCH
                self.on_restart(number, str(error))

    def _read(self, start: int, stop: int, one_by_one: bool) -> Iterator[Any]:
        """Yield items from new workers; if `one_by_one`, from one worker that prepares one item at a time.

        Raises:
            _WorkersLostError: A worker died or hung.
        """
        loader = DataLoader(
            self.dataset,
            num_workers=1 if one_by_one else self.num_workers,
            prefetch_factor=1 if one_by_one else None,
            sampler=range(start, stop),
            batch_size=None,
            collate_fn=lambda item: item,
            worker_init_fn=_ignore_signals if self.num_workers else None,
            generator=torch.Generator(),  # drawing the workers' seed must not advance the global generator
        )
        if not self.num_workers:
            yield from loader
            return
        earlier_children, handler = active_children(), signal.getsignal(signal.SIGCHLD)
        items = iter(loader)
        # torch has installed a SIGCHLD handler, now or for an earlier loader. When a worker dies, the handler raises in
        # the main thread, even within a collective operation. It is removed, because `_wait` checks the workers.
        is_from_torch = getattr(handler, "__module__", None) == signal_handling.__name__
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if is_from_torch else handler or signal.SIG_DFL)
        workers = [child for child in active_children() if child not in earlier_children]
        requests: SimpleQueue[bool] = SimpleQueue()
        replies: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        # Items are fetched in a thread, because fetching from a worker that hangs never returns.
        Thread(target=_serve, args=(items, requests, replies), daemon=True).start()
        del items  # only the thread refers to the iterator now, so the workers end with the thread
        try:
            while (item := self._wait(requests, replies, workers)) is not _END:
                yield item
        finally:
            requests.put(False)

    def _wait(self, requests: SimpleQueue, replies: SimpleQueue, workers: Collection[BaseProcess]) -> Any:
        """Request an item and wait for it. Raises _WorkersLostError, or the error raised by preparing the item."""
        deadline = time.monotonic() + (self.timeout or math.inf)
        requests.put(True)
        item, error, dead_workers = None, None, []
        while error is None and not dead_workers and time.monotonic() < deadline:
            # After the last item, workers end with exit code 0, maybe before `_END` arrives.
            dead_workers = [worker for worker in workers if worker.exitcode]
            with suppress(Empty):  # an item of a dead worker may still arrive
                item, error = replies.get(timeout=max(0.0, min(POLL_INTERVAL, deadline - time.monotonic())))
                if error is None:
                    return item
        for worker in workers:
            worker.join(timeout=0.1 if error else 0)  # gives a dying worker time to end
        dead_workers = [worker for worker in workers if not worker.is_alive()]
        if error is not None and not dead_workers:  # preparing the item has failed
            raise error
        for worker in workers:
            worker.kill()  # not terminate: a worker may be suspended, or wait for a lock of a dead worker
        reason = ", ".join(map(_describe_end, dead_workers)) or f"no item arrived within {self.timeout:g} s"
        raise _WorkersLostError(reason) from error


def _serve(items: Iterator[Any], requests: SimpleQueue, replies: SimpleQueue) -> None:
    """Reply to each request with an item and None, or with None and the error raised by reading it."""
    while requests.get():
        try:
            replies.put((next(items, _END), None))
        except Exception as error:
            replies.put((None, error))


def _describe_end(worker: BaseProcess) -> str:
    """Describe how a worker ended."""
    code = worker.exitcode or 0
    if code >= 0:
        return f"worker {worker.pid} ended with exit code {code}"
    cause = _SIGNAL_CAUSES.get(-code)
    return f"worker {worker.pid} was killed: {signal.strsignal(-code)}" + (f" ({cause})" if cause else "")


def _ignore_signals(worker: int) -> None:
    """Make a worker ignore the signals that stop a run, except SIGTERM if its parent process has sent it.

    A terminal (Ctrl-C) and a cluster that preempts a job send a signal to all processes of the job. If workers ended at
    this signal, the run would fail before it could save a checkpoint.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    Thread(target=wait, daemon=True).start()
