"""Event-based counts for sound event detection: which events of a response occur in the recording.

The counts equal those of the package sed_eval with the collars (tolerances) of DCASE task 4. They are implemented here
because sed_eval has had no release since 2021 and imports a part of setuptools that no longer exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from auris.metrics.normalize import canonical_form

COLLAR = 0.2  # seconds by which the start of an event may differ
SHARE = 0.2  # share of a true event's length by which its end may differ, if that is more than COLLAR
COLLARS = f"collar:{COLLAR:g}s|end:max(collar,{SHARE:.0%})"  # part of the signature of a score
_ROUNDING = 1e-6  # seconds added to collars, because rounding may push a difference of times above the collar


class Event(TypedDict):
    """A sound event; times are in seconds."""

    label: str
    start: float
    end: float


def count_matches(hypothesis: Sequence[Event], reference: Sequence[Event]) -> list[float]:
    """Return the numbers of true positives, false positives and false negatives.

    Two events match if they have the same label, their starts differ by at most COLLAR, and their ends differ by at
    most COLLAR or SHARE of the true event's length, whichever is longer. Each event is assigned to at most one other
    event, such that the number of matches is as large as possible.
    """
    candidates = [[n for n, event in enumerate(hypothesis) if _is_match(event, true)] for true in reference]
    assigned: dict[int, int] = {}  # index in hypothesis -> index in reference

    def assign(true_index: int, tried: set[int]) -> bool:
        """Try to assign a hypothesis event to a reference event; assigned ones may be moved (Kuhn's algorithm)."""
        for index in candidates[true_index]:
            if index not in tried:
                tried.add(index)
                if index not in assigned or assign(assigned[index], tried):
                    assigned[index] = true_index
                    return True
        return False

    hits = sum(assign(true_index, set()) for true_index in range(len(reference)))
    return [float(hits), float(len(hypothesis) - hits), float(len(reference) - hits)]


def _is_match(event: Event, true: Event) -> bool:
    end_collar = max(COLLAR, SHARE * (true["end"] - true["start"]))
    return (
        canonical_form(event["label"]) == canonical_form(true["label"])
        and abs(event["start"] - true["start"]) <= COLLAR + _ROUNDING
        and abs(event["end"] - true["end"]) <= end_collar + _ROUNDING
    )
