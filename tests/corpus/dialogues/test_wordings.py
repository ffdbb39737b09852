"""Wordings belong to one split, and the search for a key reads whole words."""

from __future__ import annotations

import pytest

from auris.corpus.dialogues import wordings
from auris.corpus.grammar import SPLITS


@pytest.mark.parametrize("spoken", [False, True])
def test_every_wording_belongs_to_one_split_and_one_question(spoken: bool) -> None:
    owners: dict[str, tuple[str, str]] = {}
    for family in wordings.families(spoken=spoken):
        for split in SPLITS:
            dealt = wordings.questions(family, split, spoken=spoken)
            assert dealt, (family, split)
            for wording in dealt:
                assert wording not in owners, (wording, owners.get(wording), family)
                owners[wording] = family, split


def test_dealing_gives_train_the_most_and_loses_nothing() -> None:
    texts = [f"wording {number}" for number in range(50)]
    dealt = {split: wordings.deal(texts, split) for split in SPLITS}
    assert sorted(wording for several in dealt.values() for wording in several) == sorted(texts)
    assert [len(dealt[split]) for split in SPLITS] == [41, 4, 5]


def test_spoken_wordings_are_lower_case_words() -> None:
    for family in wordings.families(spoken=True):
        for split in SPLITS:
            for wording in wordings.questions(family, split, spoken=True):
                assert all((word.isalpha() and word.islower()) or word[0] == "{" for word in wording.split()), wording
