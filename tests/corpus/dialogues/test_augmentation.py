"""A language model's questions: asked over HTTP once, recorded, replayed without a network; bad replies are counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from auris.completions import Endpoint, Record
from auris.corpus.dialogues import augmentation
from auris.corpus.dialogues.augmentation import SHIPPED, Written
from auris.corpus.grammar import SPLITS
from support import stand_in


def replying(text: str):
    return lambda messages: text


def test_the_shipped_recording_says_in_its_first_line_that_no_language_model_wrote_it() -> None:
    first = json.loads(SHIPPED.read_text("utf-8").splitlines()[0])
    assert first["answered by"] == stand_in.MODEL == "a script of templates, not a language model"


def test_the_shipped_recording_equals_the_stand_in_s_current_replies(tmp_path: Path) -> None:
    stand_in.record(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == SHIPPED.read_bytes()


def test_the_shipped_recording_gives_eight_good_pairs_for_each_label() -> None:
    written, refused = augmentation.write(Record(SHIPPED), stand_in.labels(), stand_in.PAIRS)
    assert not refused
    assert set(Counter((entry.task, entry.label) for entry in written).values()) == {8}
    assert {entry.model for entry in written} == {stand_in.MODEL}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"question": "What is it?"}, "no question with an answer"),
        ({"question": " ", "answer": "A dog."}, "no question with an answer"),
        ("What is it?", "no question with an answer"),
        ({"question": "What is it?", "answer": "Some dogs."}, "the label is not in the answer"),
        ({"question": "Is it a dog?", "answer": "Yes, a dog."}, "the question gives the label away"),
        ({"question": "Which sound can be heard?", "answer": "A dog."}, "a template asks the same"),
    ],
)
def test_a_bad_pair_is_refused_and_counted(tmp_path: Path, entry: object, reason: str) -> None:
    good = {"question": "Who barks?", "answer": "It is a dog."}
    with stand_in.serve(replying(json.dumps([entry, good]))) as (url, _):
        record = Record(tmp_path / "record.jsonl", Endpoint(url=url, model="m"))
        written, refused = augmentation.write(record, [("sec", "dog")], 2)
    assert written == [Written("sec", "dog", "Who barks?", "It is a dog.", stand_in.MODEL)]
    assert refused == {reason: 1}


@pytest.mark.parametrize(
    ("reply", "pairs", "refused"),
    [
        ('Here you are:\n```json\n[{"question": "Who barks?", "answer": "A dog."}]\n```', 1, {}),
        ("I cannot do that.", 0, {"the reply is no JSON list": 1}),
        ('[{"question": ', 0, {"the reply is no JSON list": 1}),
        ("[broken]", 0, {"the reply is no JSON list": 1}),
    ],
)
def test_a_code_fence_is_ignored_and_replies_without_a_list_are_counted(
    tmp_path: Path, reply: str, pairs: int, refused: dict[str, int]
) -> None:
    with stand_in.serve(replying(reply)) as (url, _):
        record = Record(tmp_path / "record.jsonl", Endpoint(url=url, model="m"))
        written, counted = augmentation.write(record, [("sec", "dog")], 4)
    assert (len(written), counted) == (pairs, refused)


def test_a_question_belongs_to_one_split_whatever_label_it_was_written_for() -> None:
    written, _ = augmentation.write(Record(SHIPPED), stand_in.labels(), stand_in.PAIRS)
    asked = {split: {entry.question for entry in several} for split, several in augmentation.deal(written).items()}
    assert all(asked[split] for split in SPLITS)
    assert sum(map(len, asked.values())) == len({entry.question for entry in written})


def test_too_few_questions_for_three_splits_is_an_error() -> None:
    with pytest.raises(ValueError, match="raise llm.pairs"):
        augmentation.deal([Written("sec", "dog", "Who barks?", "A dog.", "m")])
