"""Event-based scores: matching of events by label and time, with the exact limits of the collars."""

from __future__ import annotations

import pytest

from auris.metrics.events import count_matches


def event(label: str, start: float, end: float) -> dict:
    return {"label": label, "start": start, "end": end}


def test_events_match_by_label_start_and_end():
    reference = [event("dog", 1.0, 2.0), event("rain", 0.0, 10.0)]
    assert count_matches(reference, reference) == [2, 0, 0]
    assert count_matches([event(" Dog", 1.2, 1.8), event("rain", 0.2, 8.0)], reference) == [2, 0, 0]
    assert count_matches([event("cat", 1.0, 2.0)], reference) == [0, 1, 2]
    assert count_matches([], reference) == [0, 0, 2]
    assert count_matches(reference, []) == [0, 2, 0]


@pytest.mark.parametrize(
    ("start", "end", "is_match"),
    [
        (0.8, 2.0, True),  # in floating point, 1.0 - 0.8 is slightly above the collar of 0.2, which is tolerated
        (0.79, 2.0, False),
        (1.0, 1.8, True),
        (1.0, 1.79, False),  # 20 % of one second is not longer than the collar, so the limit is the collar
    ],
)
def test_the_collar_is_200_ms_for_an_event_of_one_second(start, end, is_match):
    assert count_matches([event("dog", start, end)], [event("dog", 1.0, 2.0)])[0] == is_match


def test_the_collar_at_the_end_of_a_long_event_is_20_percent_of_its_length():
    assert count_matches([event("rain", 0.0, 8.0)], [event("rain", 0.0, 10.0)])[0] == 1
    assert count_matches([event("rain", 0.0, 7.99)], [event("rain", 0.0, 10.0)])[0] == 0


def test_events_are_paired_one_to_one_with_the_most_matches():
    # The first reference event matches both predictions, and the second one matches only the first prediction.
    reference = [event("dog", 1.0, 2.0), event("dog", 0.8, 1.8)]
    assert count_matches([event("dog", 0.9, 1.9), event("dog", 1.1, 2.1)], reference) == [2, 0, 0]
    assert count_matches([event("dog", 1.0, 2.0)], reference) == [1, 0, 1]
    assert count_matches(3 * [event("dog", 1.0, 2.0)], reference[:1]) == [1, 2, 0]


def test_counts_equal_sed_eval():
    """sed_eval 0.2.1 (t_collar 0.2, percentage_of_length 0.2, optimal matching) finds 3 matches for these events.

    On 300 random cases the counts were equal too, except where floating point lifts a difference of 200 ms above the
    collar.
    """
    reference = [event("a", 0.0, 1.0), event("a", 0.5, 3.5), event("b", 2.0, 2.4), event("b", 4.0, 9.0)]
    predicted = [
        event("a", 0.15, 1.15),
        event("a", 0.55, 3.0),
        event("b", 2.0, 2.65),
        event("b", 4.1, 8.1),
        event("a", 5.0, 6.0),
    ]
    assert count_matches(predicted, reference) == [3, 2, 1]
