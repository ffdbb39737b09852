"""Processes that share work without a Trainer. torchrun starts them, and each process holds the whole model.

They exchange Python objects over gloo, independent of the model's device. There is a single collective operation, in
which each rank either passes a value or reports that it has failed, so no rank waits for a rank that has failed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from auris.errors import UserError
from auris.model.distributed import gather

Item = TypeVar("Item")
Result = TypeVar("Result")

# The timeout is long, because the other ranks wait while the first rank asks a judge. A short timeout is not needed to
# detect that a process has died, because torchrun notices that immediately.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """The processes of a job, as seen by one of them.

    Attributes:
        rank: Rank of this process.
        world: Number of processes.
    """

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the first rank, which reads and writes files."""
        return self.rank == 0

    def exchange(self, value: Any, *, failed: bool = False) -> list[Any]:
        """Return the values of all ranks, in the order of the ranks.

        If a rank has failed, this call returns only on that rank, which can then raise its error; all other ranks exit
        (SystemExit). If several ranks have failed, it returns only on the first of them.

        Args:
            value: The value of this rank.
            failed: Whether this rank has failed.
        """
        states = gather((failed, value))
        failures = [rank for rank, (failed, _) in enumerate(states) if failed]
        if failures and failures[0] != self.rank:
            sys.exit(0)  # with another exit status, torchrun would kill the failed rank before it prints its error
        return [value for _, value in states]

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yield the results of all items in order, on every rank. Each rank computes every `world`-th result."""
        for start in range(0, len(items), self.world):
            own_items = items[start + self.rank : start + self.rank + 1]  # one item, or none at the end
            for results in self.exchange([work(item) for item in own_items]):
                yield from results


@contextmanager
def join_ranks(accelerator: str) -> Generator[Ranks]:
    """Connect the processes that torchrun has started. Each process gets a GPU, unless accelerator=cpu.

    An error on any rank ends all ranks; one rank raises the error.

    Raises:
        UserError: There are more processes on this machine than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    dist.init_process_group("gloo", timeout=TIMEOUT)
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    try:
        if accelerator != "cpu" and torch.cuda.is_available():
            _select_gpu(int(os.environ["LOCAL_RANK"]))
        yield ranks
        ranks.exchange(None)  # wait until all ranks have succeeded
    except Exception:
        ranks.exchange(None, failed=True)
        raise
    finally:
        dist.destroy_process_group()


def _select_gpu(local_rank: int) -> None:
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}, but only {torch.cuda.device_count()} GPUs are "
            "visible: start fewer processes or set accelerator=cpu."
        )
    torch.cuda.set_device(local_rank)
