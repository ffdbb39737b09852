"""A data loader that outlives its workers: those that die or hang are replaced, and reading goes on where it stopped.

It can, because an item follows from its number alone and no worker holds a position. torch's own loader ends a run with
the first worker that dies, and waits for ever for one that hangs.
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

from auris.errors import RunStopped, UserError

POLL_INTERVAL = 5.0  # seconds between two looks at whether all workers live
PREFETCH = 2  # items that a worker makes ahead: torch's default
_END = object()
# What often stands behind a signal that ended a worker.
_CAUSES = {signal.SIGKILL: "the machine's memory may be full", signal.SIGBUS: "shared memory, /dev/shm, may be full"}


class LoaderError(RunStopped):
    """Workers were lost again and again over one item, `number`."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class _WorkersLostError(Exception):
    """Workers that died or hung; all of that loader have been ended."""


class Loader:
    """Items `start .. stop - 1` of a dataset in order. Its length is `stop`: Lightning, resumed, counts from the first.

    Args:
        dataset: number -> item, the same one whenever and wherever it is asked for.
        num_workers: processes that make items ahead; with 0 they are made here, and nothing can be replaced.
        timeout: seconds to wait for an item before its workers count as hung; 0: any time.
        restarts: how often workers are replaced over one item; the next time is a LoaderError.
        on_restart: told the item's number and the reason, each time.

    `waited`: seconds that who reads it has waited for items so far.
    """

    def __init__(
        self,
        dataset: Dataset,
        start: int,
        stop: int,
        *,
        num_workers: int = 0,
        timeout: float = 0,
        restarts: int = 0,
        on_restart: Callable[[int, str], None] = lambda number, reason: None,
    ):
        for name, value in {"num_workers": num_workers, "worker_timeout": timeout, "worker_restarts": restarts}.items():
            if value < 0:
                raise UserError(f"data.{name}={value}: expected 0 or more")
        self.dataset, self.start, self.stop = dataset, start, stop
        self.num_workers, self.timeout, self.restarts = num_workers, timeout, restarts
        self.on_restart = on_restart
        self.waited = 0.0

    def __len__(self) -> int:
        return self.stop

    def __iter__(self) -> Iterator[Any]:
        number, lost, careful_until = self.start, 0, self.start
        asked = time.perf_counter()
        while number < self.stop:
            careful = number < careful_until
            stop = min(careful_until, self.stop) if careful else self.stop
            try:
                for item in self._read(number, stop, careful):
                    self.waited += time.perf_counter() - asked
                    yield item
                    asked = time.perf_counter()
                    number, lost = number + 1, 0
            except _WorkersLostError as error:
                lost += 1
                if lost > self.restarts:
                    raise LoaderError(
                        f"loader workers were lost {lost} times over step {number} (the last time: {error}); "
                        "data.num_workers=0 shows what happens, data.worker_timeout=SECONDS gives slow storage more "
                        "time, data.worker_restarts=N tries more often",
                        number,
                    ) from error
                # Any item that was being made ahead may be at fault; one worker that makes one at a time shows which.
                careful_until = number + self.num_workers * PREFETCH
                self.on_restart(number, str(error))

    def _read(self, start: int, stop: int, careful: bool) -> Iterator[Any]:
        """Yield items made by new workers. `careful`: one worker makes one item at a time."""
        workers = {"num_workers": 1, "prefetch_factor": 1} if careful else {"num_workers": self.num_workers}
        loader = DataLoader(
            self.dataset,
            sampler=range(start, stop),
            batch_size=None,
            collate_fn=lambda item: item,
            worker_init_fn=_outlive_signals if self.num_workers else None,
            generator=torch.Generator(),  # the seed that it draws for workers must not move the run's own generator
            **workers,
        )
        if not self.num_workers:
            yield from loader
            return
        others, handler = active_children(), signal.getsignal(signal.SIGCHLD)
        items = iter(loader)
        # torch has set a handler that raises in whatever the main thread is doing when a worker dies, be it in the
        # middle of a collective operation; or it had before, for a loader of somebody else's. `_wait` looks by itself.
        is_torchs = getattr(handler, "__module__", None) == signal_handling.__name__
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if is_torchs else handler or signal.SIG_DFL)
        processes = [child for child in active_children() if child not in others]
        asked: SimpleQueue[bool] = SimpleQueue()
        given: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        # In a thread, as there is no end to how long a worker that hangs can keep who fetches from it.
        Thread(target=_serve, args=(items, asked, given), daemon=True).start()
        del items  # the thread's alone, which ends the workers with it
        try:
            while (item := self._wait(asked, given, processes)) is not _END:
                yield item
        finally:
            asked.put(False)

    def _wait(self, asked: SimpleQueue, given: SimpleQueue, workers: Collection[BaseProcess]) -> Any:
        deadline = time.monotonic() + (self.timeout or math.inf)
        asked.put(True)
        item, error, dead = None, None, []
        while error is None and not dead and time.monotonic() < deadline:
            dead = [worker for worker in workers if not worker.is_alive()]
            with suppress(Empty):  # what a dead one has left behind may still be on its way
                item, error = given.get(timeout=max(0.0, min(POLL_INTERVAL, deadline - time.monotonic())))
                if error is None:
                    return item
        for worker in workers:
            worker.join(timeout=0.1 if error else 0)  # one that is about to die has time to
        dead = [worker for worker in workers if not worker.is_alive()]
        if error is not None and not dead:  # what making an item has raised
            raise error
        for worker in workers:
            worker.kill()  # also one that is stopped, or waits for a lock that a dead one has taken along
        raise _WorkersLostError(", ".join(map(_end_of, dead)) or f"nothing came for {self.timeout:g} s") from error


def _serve(items: Iterator[Any], asked: SimpleQueue, given: SimpleQueue) -> None:
    """Give an item, or what reading it has raised, each time that one is asked for."""
    while asked.get():
        try:
            given.put((next(items, _END), None))
        except Exception as error:
            given.put((None, error))


def _end_of(worker: BaseProcess) -> str:
    """How a worker ended."""
    code = worker.exitcode or 0
    if code >= 0:
        return f"worker {worker.pid} ended with code {code}"
    cause = _CAUSES.get(-code)
    return f"worker {worker.pid} ended: {signal.strsignal(-code)}" + (f" ({cause})" if cause else "")


def _outlive_signals(worker: int) -> None:
    """In a worker: end on a SIGTERM of the process that reads it, and on nobody else's.

    A cluster that wants its machine back tells all processes of a job; the run would fail for want of a worker before
    it has saved.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    Thread(target=wait, daemon=True).start()
