"""Tests of the wordings of questions: each belongs to one split, and spoken ones consist of lower-case words.

A family contains the wordings of one question.
"""

from __future__ import annotations

import pytest

from auris.corpus.dialogues import wordings
from auris.corpus.grammar import SPLITS


@pytest.mark.parametrize("spoken", [False, True])
def test_every_wording_belongs_to_one_split_and_one_family(spoken: bool) -> None:
    owners: dict[str, tuple[str, str]] = {}
    for family in wordings.question_families(spoken=spoken):
        for split in SPLITS:
            split_wordings = wordings.select_questions(family, split, spoken=spoken)
            assert split_wordings, (family, split)
            for wording in split_wordings:
                assert wording not in owners, (wording, owners.get(wording), family)
                owners[wording] = family, split


def test_wordings_are_divided_among_the_splits_and_most_are_for_training() -> None:
    all_wordings = [f"wording {number}" for number in range(50)]
    by_split = {split: wordings.select_split(all_wordings, split) for split in SPLITS}
    assert sorted(wording for split_wordings in by_split.values() for wording in split_wordings) == sorted(all_wordings)
    assert [len(by_split[split]) for split in SPLITS] == [41, 4, 5]


def test_spoken_wordings_are_lower_case_words_and_placeholders() -> None:
    for family in wordings.question_families(spoken=True):
        for split in SPLITS:
            for wording in wordings.select_questions(family, split, spoken=True):
                assert all((word.isalpha() and word.islower()) or word[0] == "{" for word in wording.split()), wording
