"""Rows that wait while others are decoded: they fill the slots of finished sequences (`generate(next_pack=...)`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from auris.model.pack import Pack

# Slots are refilled when this fraction of them is free. Prefilling single prompts would use a GPU poorly.
REFILL_FRACTION = 1 / 4


class WaitingRows:
    """A source of further packs of prompts for a decoder whose sequences finish one by one.

    Rows are taken in the order of the packs. The number of rows decoded together is the size of the next row's pack.
    The composition of a batch thus depends on the packs and the responses only, not on the number of processes.

    Args:
        packs: Numbers of the rows, in packs that fit in memory together.
        build: Returns a pack of the prompts of the given rows, without rows that cannot be read.

    Attributes:
        taken: Numbers of the rows whose prompts were returned, in this order.
    """

    def __init__(self, packs: Sequence[Sequence[int]], build: Callable[[Sequence[int]], Pack]):
        self._waiting = deque((number, len(pack)) for pack in packs for number in pack)
        self._build = build
        self.taken: list[int] = []

    def next_pack(self, running: int = 0) -> Pack | None:
        """Return a pack of prompts for the free slots, or None if there are too few of them or no rows are left.

        Args:
            running: Number of sequences that are still being decoded.
        """
        while self._waiting:
            _, slots = self._waiting[0]
            if slots - running < REFILL_FRACTION * slots:
                return None
            n = min(slots - running, len(self._waiting))
            pack = self._build([self._waiting.popleft()[0] for _ in range(n)])
            if pack["rows"]:
                self.taken += pack["rows"]
                return pack
        return None
