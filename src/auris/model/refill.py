"""Rows that wait while other rows are decoded. They fill the slots of finished rows (`generate(next_pack=...)`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from auris.model.pack import Pack

# Slots are refilled when at least this fraction of them is free. Prefilling single prompts would use a GPU poorly.
REFILL_FRACTION = 1 / 4


class WaitingRows:
    """A source of further packs of prompts for a decoder whose rows finish one by one.

    Rows are taken in the order of the packs. As many rows are decoded together as there are in the pack of the next
    waiting row. The composition of a batch thus depends only on the packs and the responses.

    Args:
        packs: Row numbers, in packs that fit in memory together.
        build: Takes row numbers and returns a pack of their prompts, without the rows that cannot be read.

    Attributes:
        taken: Numbers of the rows whose prompts were returned, in the order in which they were returned.
    """

    def __init__(self, packs: Sequence[Sequence[int]], build: Callable[[Sequence[int]], Pack]):
        self._waiting = deque((number, len(pack)) for pack in packs for number in pack)
        self._build = build
        self.taken: list[int] = []

    def next_pack(self, running: int = 0) -> Pack | None:
        """Return a pack of prompts for the free slots, or None if too few slots are free or no rows are left.

        Args:
            running: Number of rows that are still being decoded.
        """
        while self._waiting:
            _, n_slots = self._waiting[0]
            if n_slots - running < REFILL_FRACTION * n_slots:
                return None
            n = min(n_slots - running, len(self._waiting))
            pack = self._build([self._waiting.popleft()[0] for _ in range(n)])
            if pack["rows"]:
                self.taken += pack["rows"]
                return pack
        return None
