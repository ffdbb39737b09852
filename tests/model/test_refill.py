"""Waiting rows fill the slots (places in the generation cache) of finished sequences. Unreadable rows take no slot."""

from __future__ import annotations

from collections.abc import Sequence

from auris.model.pack import Pack
from auris.model.refill import WaitingRows

UNREADABLE = {1, 8, 9, 12}


def build_pack(numbers: Sequence[int]) -> Pack:
    return {"rows": [number for number in numbers if number not in UNREADABLE]}


def test_waiting_rows_fill_free_slots_and_unreadable_rows_are_skipped():
    """The packs have 4, 8 and 1 rows. The pack of the first waiting row sets the number of slots."""
    waiting = WaitingRows([[0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11], [12]], build_pack)

    def take(running: int) -> list[int] | None:
        pack = waiting.next_pack(running)
        return None if pack is None else pack["rows"]

    assert take(0) == [0, 2, 3]
    assert take(7) is None  # one free slot of 8 is too few to refill
    assert take(3) == [4, 5, 6, 7]
    assert take(6) == [10]  # rows 8 and 9 are unreadable
    assert take(6) == [11]
    assert take(5) is None and take(0) is None
    assert waiting.taken == [0, 2, 3, 4, 5, 6, 7, 10, 11]
