"""Waiting rows fill the slots of finished sequences, and those that cannot be read take none."""

from __future__ import annotations

from collections.abc import Sequence

from auris.model.pack import Pack
from auris.model.refill import WaitingRows

UNREADABLE = {1, 8, 9, 12}


def build(numbers: Sequence[int]) -> Pack:
    return {"rows": [number for number in numbers if number not in UNREADABLE]}


def test_rows_wait_for_a_place_and_those_that_cannot_be_read_take_none():
    """Packs of 4, 8 and 1 rows: as many are decoded together as the pack of the first one that waits has."""
    waiting = WaitingRows([[0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11], [12]], build)

    def take(running: int) -> list[int] | None:
        pack = waiting.next_pack(running)
        return None if pack is None else pack["rows"]

    assert take(0) == [0, 2, 3]
    assert take(7) is None  # of 8 places
    assert take(3) == [4, 5, 6, 7]
    assert take(6) == [10]  # 8 and 9 cannot be read
    assert take(6) == [11]
    assert take(5) is None and take(0) is None
    assert waiting.taken == [0, 2, 3, 4, 5, 6, 7, 10, 11]
