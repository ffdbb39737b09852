"""Sound events: those of an answer that are events of the recording, by label and time.

The event-based counts of sed_eval with the collars of DCASE's task 4. That package has had no release since 2021 and
imports what setuptools no longer has, so the counting is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from auris.metrics.normalize import canonical

COLLAR = 0.2  # seconds
SHARE = 0.2  # of the true event's length: the collar of its end, if longer
COLLARS = f"collar:{COLLAR:g}s|end:max(collar,{SHARE:.0%})"  # as signatures name them
_ROUNDING = 1e-6  # times are written to 10 ms; their difference in floating point may lie above the collar


class Event(TypedDict):
    """A sound event; times in seconds."""

    label: str
    start: float
    end: float


def count(hypothesis: Sequence[Event], reference: Sequence[Event]) -> list[float]:
    """Events found, events that are not there, events missed.

    An event is found if one of its label begins within the collar and ends within the longer of the two collars; each
    serves once, in the pairing that finds most.
    """
    fits = [[n for n, said in enumerate(hypothesis) if _fits(said, true)] for true in reference]
    taken: dict[int, int] = {}  # event of the answer -> event of the recording

    def find(event: int, tried: set[int]) -> bool:
        """Kuhn's algorithm: give the event a partner, moving others to new ones where that helps."""
        for other in fits[event]:
            if other not in tried:
                tried.add(other)
                if other not in taken or find(taken[other], tried):
                    taken[other] = event
                    return True
        return False

    found = sum(find(event, set()) for event in range(len(reference)))
    return [float(found), float(len(hypothesis) - found), float(len(reference) - found)]


def _fits(said: Event, true: Event) -> bool:
    end_collar = max(COLLAR, SHARE * (true["end"] - true["start"]))
    return (
        canonical(said["label"]) == canonical(true["label"])
        and abs(said["start"] - true["start"]) <= COLLAR + _ROUNDING
        and abs(said["end"] - true["end"]) <= end_collar + _ROUNDING
    )
