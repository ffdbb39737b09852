"""Tests of the wording of messages: counts, and values of any size."""

from __future__ import annotations

from pathlib import Path

import pytest

from auris.data.rows import Record, decode_record
from auris.errors import count, shorten
from auris.text.tasks import TASKS


def test_a_value_in_a_message_has_at_most_80_characters():
    assert shorten("a" * 78) == repr("a" * 78) and shorten([1, None]) == "[1, None]"
    for value in ("a" * 79, [0.1] * 1000, {"array": [0.1] * 1000}):
        text = shorten(value)
        assert len(text) == 80 and text.endswith("…") and repr(value).startswith(text[:-1])
    assert shorten("abcdef", 5) == "'abc…"


def test_a_count_has_its_noun_in_the_right_form():
    assert [count(number, "row") for number in (0, 1, 2048)] == ["0 rows", "1 row", "2,048 rows"]


QUESTION, ANSWER = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}
# Rows of every structure. In each, one value after another is replaced.
ROWS = [
    *(
        {"audio": "a.wav", "task": code, **dict.fromkeys((*task.needs, *task.optional), "x")}
        for code, task in TASKS.items()
    ),
    {"audio": "a.wav", "task": "asr", "language": "en", "text": "x", "offset": 1, "duration": 2, "loss": True},
    {
        "messages": [QUESTION, ANSWER],
        "audios": [],
        "system": "x",
        "key": "x",
        "skill": "asr",
        "label": 1,
        "mask": "User",
    },
    {"messages": [QUESTION], "chosen": "x", "rejected": "y", "task": "preference"},
    {"messages": [QUESTION, ANSWER], "rejected_messages": [QUESTION, ANSWER], "rejected_audios": []},
    {"conversations": [{"from": "user", "value": "x", "type": "text"}], "sound": "a.wav", "_skipme": 0},
    {"conversation": [{"human": "x", "assistant": "y"}]},
    {"instruction": "x", "input": "y", "output": "z", "history": [], "images": []},
    {"query": "x", "response": "y", "weight": 1},
    {"prompt": "x", "completion": "y"},
    {"audio": "a.wav", "gt": "x", "source": "covost2_en_de"},
    {"path": "a.wav", "question": "x", "answer_gt": "y", "task_name": "z", "dataset_name": "u", "choice_a": "y"},
]
HUGE = [[0.1] * 10_000, "a" * 50_000, {"array": [0.1] * 10_000}, {"a" * 50_000: 1}]
HUGE += [
    [{"role": "r" * 50_000, "content": "x"}],
    [QUESTION, {"role": "assistant", "content": "x", "loss": "l" * 50_000}],
]


@pytest.mark.parametrize("value", HUGE, ids=["numbers", "text", "array", "key", "role", "flag"])
def test_the_problem_of_a_row_is_short_whatever_the_row_contains(value):
    for fields in ROWS:
        for name in fields:
            problem = decode_record(Record("row", {**fields, name: value}), Path()).problem
            assert problem is None or len(problem) < 1000, (name, problem[:200])
