"""Event-based counts for sound event detection: which events of a response are events of the recording.

The counts are those of sed_eval with the collars of DCASE task 4. They are implemented here because that package has
had no release since 2021 and imports a part of setuptools that no longer exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from auris.metrics.normalize import canonical

COLLAR = 0.2  # seconds
SHARE = 0.2  # collar of an event's end as a share of the true event's length, if that is more than COLLAR
COLLARS = f"collar:{COLLAR:g}s|end:max(collar,{SHARE:.0%})"  # as signatures name them
_ROUNDING = 1e-6  # seconds; times have a resolution of 10 ms, but their difference may exceed the collar by rounding


class Event(TypedDict):
    """A sound event; times in seconds."""

    label: str
    start: float
    end: float


def count(hypothesis: Sequence[Event], reference: Sequence[Event]) -> list[float]:
    """Return the numbers of true positives, false positives and false negatives.

    Two events match if they have the same label, begin within the collar and end within the longer of the two collars.
    Each event is matched once, in the assignment with the most matches.
    """
    candidates = [[n for n, event in enumerate(hypothesis) if _is_match(event, true)] for true in reference]
    assigned: dict[int, int] = {}  # event of the response -> event of the recording

    def assign(event: int, tried: set[int]) -> bool:
        """Assign a partner to an event by Kuhn's algorithm, which reassigns other events if that helps."""
        for other in candidates[event]:
            if other not in tried:
                tried.add(other)
                if other not in assigned or assign(assigned[other], tried):
                    assigned[other] = event
                    return True
        return False

    hits = sum(assign(event, set()) for event in range(len(reference)))
    return [float(hits), float(len(hypothesis) - hits), float(len(reference) - hits)]


def _is_match(event: Event, true: Event) -> bool:
    end_collar = max(COLLAR, SHARE * (true["end"] - true["start"]))
    return (
        canonical(event["label"]) == canonical(true["label"])
        and abs(event["start"] - true["start"]) <= COLLAR + _ROUNDING
        and abs(event["end"] - true["end"]) <= end_collar + _ROUNDING
    )
