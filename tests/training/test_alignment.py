"""Counts of how a path spells a transcript."""

from __future__ import annotations

from auris.training.alignment import count_path

BLANK = 99


def nonzero(counts: dict) -> dict:
    return {field: dict(counter) for field, counter in counts.items() if counter}


def test_repeats_and_blanks_are_counted():
    path = [BLANK, BLANK, 5, 5, 5, 7, BLANK, 7, BLANK]
    assert nonzero(count_path(path, [5, 7, 7], blank=BLANK)) == {
        "repeats": {3: 1, 1: 2},
        "blanks": {0: 1, 1: 1},
        "blanks_at_start": {2: 1},
        "blanks_at_end": {1: 1},
        "confusions": {(5, 5): 1, (7, 7): 2},
    }


def test_edits_are_counted_by_token():
    counts = nonzero(count_path([5, 6, 8, 4], [5, 7, 8, 3, 2], blank=BLANK))
    assert sum(counts["confusions"].values()) + sum(counts.get("deletions", {}).values()) == 5
    assert counts["confusions"][5, 5] == 1 and counts["confusions"][5 + 3, 8] == 1 and counts["confusions"][7, 6] == 1
    assert nonzero(count_path([5, 9, 7], [5, 7], blank=BLANK))["insertions"] == {9: 1}
    assert nonzero(count_path([5], [5, 7], blank=BLANK))["deletions"] == {7: 1}


def test_a_path_of_blanks_has_no_token():
    assert nonzero(count_path([BLANK] * 4, [5, 7], blank=BLANK)) == {
        "blanks_at_end": {4: 1},
        "deletions": {5: 1, 7: 1},
    }
