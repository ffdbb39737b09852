"""Tests of questions that a language model writes: replies are recorded and replayed, invalid questions are counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from auris.completions import Endpoint, ReplyLog
from auris.corpus.dialogues import augmentation
from auris.corpus.dialogues.augmentation import SHIPPED_REPLIES, WrittenQuestion
from auris.corpus.grammar import SPLITS
from support import mock_llm


def constant_reply(text: str):
    return lambda messages: text


def test_the_first_line_of_the_shipped_replies_states_that_templates_wrote_them() -> None:
    first = json.loads(SHIPPED_REPLIES.read_text("utf-8").splitlines()[0])
    assert first["answered by"] == mock_llm.MODEL == "a script of templates, not a language model"


def test_the_shipped_replies_equal_the_current_replies_of_the_mock_model(tmp_path: Path) -> None:
    mock_llm.record(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == SHIPPED_REPLIES.read_bytes()


def test_the_shipped_replies_have_eight_valid_questions_for_each_label() -> None:
    written, rejected = augmentation.write_questions(ReplyLog(SHIPPED_REPLIES), mock_llm.labels(), mock_llm.PAIRS)
    assert not rejected
    assert set(Counter((entry.task, entry.label) for entry in written).values()) == {8}
    assert {entry.model for entry in written} == {mock_llm.MODEL}


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
def test_an_invalid_entry_of_a_reply_is_rejected_and_counted(tmp_path: Path, entry: object, reason: str) -> None:
    valid = {"question": "Who barks?", "answer": "It is a dog."}
    with mock_llm.serve(constant_reply(json.dumps([entry, valid]))) as (url, _):
        log = ReplyLog(tmp_path / "record.jsonl", Endpoint(url=url, model="m"))
        written, rejected = augmentation.write_questions(log, [("sec", "dog")], 2)
    assert written == [WrittenQuestion("sec", "dog", "Who barks?", "It is a dog.", mock_llm.MODEL)]
    assert rejected == {reason: 1}


@pytest.mark.parametrize(
    ("reply", "n_written", "rejected"),
    [
        ('Here you are:\n```json\n[{"question": "Who barks?", "answer": "A dog."}]\n```', 1, {}),
        ("I cannot do that.", 0, {"the reply is no JSON list": 1}),
        ('[{"question": ', 0, {"the reply is no JSON list": 1}),
        ("[broken]", 0, {"the reply is no JSON list": 1}),
    ],
)
def test_a_code_fence_is_ignored_and_replies_without_a_json_list_are_counted(
    tmp_path: Path, reply: str, n_written: int, rejected: dict[str, int]
) -> None:
    with mock_llm.serve(constant_reply(reply)) as (url, _):
        log = ReplyLog(tmp_path / "record.jsonl", Endpoint(url=url, model="m"))
        written, counts = augmentation.write_questions(log, [("sec", "dog")], 4)
    assert (len(written), counts) == (n_written, rejected)


def test_the_same_question_about_several_labels_belongs_to_one_split() -> None:
    written, _ = augmentation.write_questions(ReplyLog(SHIPPED_REPLIES), mock_llm.labels(), mock_llm.PAIRS)
    questions = {
        split: {entry.question for entry in entries} for split, entries in augmentation.split_questions(written).items()
    }
    assert all(questions[split] for split in SPLITS)
    assert sum(map(len, questions.values())) == len({entry.question for entry in written})


def test_too_few_questions_for_three_splits_are_an_error() -> None:
    with pytest.raises(ValueError, match="raise llm.pairs"):
        augmentation.split_questions([WrittenQuestion("sec", "dog", "Who barks?", "A dog.", "m")])
