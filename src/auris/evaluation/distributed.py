"""Processes that share a piece of work without a Trainer: started by torchrun, each with the whole model.

What goes between them are Python objects, over gloo, whatever the model runs on. There is one way to meet, in which
each brings its value or says that it has failed: so none waits for one that is gone, whatever the others were about.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from auris.errors import UserError

# Others wait while the first one asks a judge. A process that is killed is noticed at once, by torchrun.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among those of its job; the default is to be alone."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def exchange(self, value: Any) -> list[Any]:
        """Everybody's values, in the order of the ranks. Where another one has failed, this process ends (SystemExit)
        and leaves it to that one to say why."""
        return [value] if self.world == 1 else self._meet(value, failed=False)

    def fail(self) -> None:
        """Tell the others that this process goes on no more; of several that do so, the first is left to speak."""
        if self.world > 1:
            self._meet(None, failed=True)

    def _meet(self, value: Any, *, failed: bool) -> list[Any]:
        met: list[Any] = [None] * self.world
        dist.all_gather_object(met, (failed, value))
        failures = [rank for rank, (failed, _) in enumerate(met) if failed]
        if failures and failures[0] != self.rank:
            sys.exit(0)  # with another status a launcher would end the one that speaks before it has spoken
        return [value for _, value in met]


@contextmanager
def joined(accelerator: str) -> Iterator[Ranks]:
    """The processes that torchrun has started together with this one, each with a GPU of its own unless told to be on
    the CPU. An error of any ends all, and one of them raises it.

    Raises ValueError if there are more of them on a machine than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    try:
        if accelerator != "cpu" and torch.cuda.is_available():
            _take_gpu(int(os.environ["LOCAL_RANK"]))
        yield ranks
        ranks.exchange(None)  # none has succeeded before all have
    except Exception:
        ranks.fail()
        raise
    finally:
        dist.destroy_process_group()


def _take_gpu(place: int) -> None:
    if place >= torch.cuda.device_count():
        raise UserError(
            f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}: expected as many GPUs, and here are "
            f"{torch.cuda.device_count()} (accelerator=cpu needs none)"
        )
    torch.cuda.set_device(place)
