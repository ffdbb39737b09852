"""Tests of flags that say what is learned: each is honoured, or the row is refused with the flag's name."""

from __future__ import annotations

import pytest

from auris.data.lengths import measure_lengths
from auris.data.manifests import read_manifests
from auris.data.rows import Row
from auris.data.samples import ChatSamples
from auris.text.chat import Qwen2AudioChat
from support.manifests import make_sample_builder, read_fields, tokenizer, write_manifest, write_wave

QUESTION = {"role": "user", "content": "What falls?"}
BAD, GOOD = {"role": "assistant", "content": "Snow."}, {"role": "assistant", "content": "Rain."}
FLAGS = ["loss", "loss_scale", "loss_weight", "loss_mask", "weight", "train", "training", "trainable", "train_on_turn"]


def learned_text(row: Row) -> str:
    """Return the text that a row trains on, without its end tokens."""
    assert row.problem is None
    sample = make_sample_builder(ChatSamples, prompt=Qwen2AudioChat()).build(row, 0, epoch=0)
    return tokenizer().decode([int(token) for token in sample.ids[sample.supervise]]).replace("<|im_end|>", "")


@pytest.mark.parametrize("value", [False, 0, 0.0])
@pytest.mark.parametrize("flag", FLAGS)
def test_a_message_with_a_false_flag_is_not_learned(tmp_path, flag, value):
    messages = [QUESTION, {**BAD, flag: value}, QUESTION, {**GOOD, flag: None}]
    assert learned_text(read_fields(tmp_path, {"messages": messages})) == "Rain."


@pytest.mark.parametrize("flag", FLAGS)
def test_a_message_with_a_true_flag_is_learned(tmp_path, flag):
    row = read_fields(tmp_path, {"messages": [QUESTION, {**GOOD, flag: 1}]})
    assert learned_text(row) == "Rain." and row.labels["messages"] == [QUESTION, GOOD]


FORMS = {
    "LLaMA-Factory": {
        "conversations": [
            {"from": "human", "value": "What falls?"},
            {"from": "gpt", "value": "Snow.", "loss": False},
            {"from": "human", "value": "What falls?"},
            {"from": "gpt", "value": "Rain.", "loss": True},
        ]
    },
    "NeMo": {
        "conversations": [
            {"from": "User", "value": "What falls?", "type": "text"},
            {"from": "Assistant", "value": "Snow.", "type": "text", "loss": False},
            {"from": "User", "value": "What falls?", "type": "text"},
            {"from": "Assistant", "value": "Rain.", "type": "text"},
        ]
    },
    "ms-swift's sharegpt form": {
        "conversation": [
            {"human": "What falls?", "assistant": "Snow.", "loss": False},
            {"human": "What falls?", "assistant": "Rain."},
        ]
    },
    "TRL learns the completion alone": {"prompt": [QUESTION, BAD, QUESTION], "completion": [GOOD]},
    "a true flag of the row": {"messages": [QUESTION, GOOD], "loss": True, "weight": 1},
    "a good answer of KTO": {"messages": [QUESTION, GOOD], "label": True},
    "KTO in the alpaca form": {"instruction": "What falls?", "output": "Rain.", "kto_tag": True},
    "the mask of NeMo": {
        "conversations": [{"from": "User", "value": "a"}, {"from": "gpt", "value": "Rain."}],
        "mask": "User",
    },
    "a flag of a question": {"messages": [{**QUESTION, "loss": True, "weight": 1, "loss_weight": 0.0}, GOOD]},
    "an answer that ends the row and is not learned": {"messages": [QUESTION, GOOD, QUESTION, {**BAD, "loss": False}]},
}


@pytest.mark.parametrize("form", FORMS)
def test_only_what_the_flags_allow_is_learned_in_every_form(tmp_path, form):
    assert learned_text(read_fields(tmp_path, FORMS[form])) == "Rain."


def test_messages_after_the_last_one_that_is_learned_are_left_out_with_their_clips(tmp_path):
    messages = [QUESTION, GOOD, {"role": "user", "content": "<audio>"}, {**BAD, "loss": False}]
    row = read_fields(tmp_path, {"messages": messages, "audios": ["a.wav"]})
    assert (row.problem, row.clips, row.labels["messages"]) == (None, (), [QUESTION, GOOD])


TASK_ROW = {"audio": "a.wav", "task": "asr", "language": "en", "text": "the cat"}
CHAT = {"messages": [QUESTION, GOOD]}
PAIR = {"messages": [QUESTION], "chosen": "Rain.", "rejected": "Snow."}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [QUESTION, {**BAD, "loss": False}]}, "no message of the assistant is learned"),
        (
            {"messages": [QUESTION, {**GOOD, "loss": "false"}]},
            "`loss` of messages[1] is 'false', expected true or false",
        ),
        ({"messages": [QUESTION, {**GOOD, "weight": 0.5}]}, "`weight` of messages[1] is 0.5, expected true or false"),
        ({"messages": [QUESTION, {**GOOD, "loss_scale": 2.0}]}, "`loss_scale` of messages[1] is 2.0"),
        ({"messages": [QUESTION, {**GOOD, "loss": True, "weight": 0}]}, "contradict each other"),
        ({"messages": [QUESTION, {**GOOD, "mask": True}]}, "messages[1] has `mask`"),
        ({"messages": [QUESTION, {**GOOD, "masked": True}]}, "messages[1] has `masked`"),
        ({"messages": [QUESTION, {**GOOD, "tool_calls": [{}]}]}, "messages[1] has `tool_calls`"),
        ({"messages": [QUESTION, {**GOOD, "train_detail": [{"train": False}]}]}, "messages[1] has `train_detail`"),
        ({"messages": [{**QUESTION, "training": True}, GOOD]}, "`training` is True in messages[0] (user)"),
        *(({**CHAT, flag: False}, f"`{flag}` is False: the row") for flag in FLAGS),
        ({**CHAT, "weight": 3}, "`weight` of the row is 3"),
        ({**CHAT, "label": False}, "`label` is False: a bad answer"),
        ({**CHAT, "label": 0}, "`label` is 0: a bad answer"),
        ({**CHAT, "label": "dog"}, "`label` is 'dog', expected true or false"),
        ({"instruction": "a", "output": "b", "kto_tag": False}, "`kto_tag` is False: a bad answer"),
        ({"query": "a", "response": "b", "label": False}, "`label` is False: a bad answer"),
        ({"prompt": "a", "completion": "b", "label": False}, "`label` is False: a bad answer"),
        ({**CHAT, "mask": "Assistant"}, "`mask` is 'Assistant', expected 'User'"),
        ({**CHAT, "_skipme": 1}, "marked with `_skipme`"),
        ({**PAIR, "loss": False}, "`loss` is False: the row"),
        ({**PAIR, "chosen": {**GOOD, "loss": False}}, "`loss` is False in `chosen`"),
        ({**TASK_ROW, "loss": False}, "`loss` is False: the row"),
        ({**TASK_ROW, "trainable": 0}, "`trainable` is 0: the row"),
        ({**TASK_ROW, "_skipme": True}, "marked with `_skipme`"),
    ],
)
def test_a_row_with_a_flag_that_cannot_be_honoured_is_refused(tmp_path, fields, message):
    assert message in str(read_fields(tmp_path, fields).problem)


def test_a_number_in_a_free_field_of_a_task_row_is_no_flag(tmp_path):
    row = read_fields(tmp_path, {**TASK_ROW, "loss": 0.37, "train": "split 1", "_skipme": False})
    assert row.problem is None and row.labels["loss"] == 0.37


def test_a_row_that_is_not_to_be_learned_is_known_before_training_also_with_a_stated_duration(tmp_path):
    """Rows with a duration are measured without being decoded."""
    write_wave(tmp_path / "a.wav", 1.0)
    rows = [{**TASK_ROW, "id": "a", "duration": 1.0}, {**TASK_ROW, "id": "b", "duration": 1.0, "loss": False}]
    manifests = read_manifests([write_manifest(tmp_path / "rows.jsonl", rows)])
    lengths = measure_lengths(manifests, make_sample_builder(), tmp_path / "cache")
    assert list(lengths.problems.values()) == ["`loss` is False: the row is not to be learned"]


def test_fields_that_nothing_uses_are_reported_once_a_file_with_a_count(tmp_path):
    rows = [{**CHAT, "topic": n, "key": "rain"} for n in range(3)]
    rows += [{"messages": [{**QUESTION, "name": "Ann"}, GOOD], "channel": "a"}, {**TASK_ROW, "topic": "x"}]
    clip = {"type": "audio", "audio": "a.wav", "offset": 1.0, "end": 2.0}
    rows.append({"messages": [{"role": "user", "content": [clip]}, GOOD]})
    path = write_manifest(tmp_path / "rows.jsonl", rows)
    for _ in range(2):  # computed, then read from the cache
        with pytest.warns(UserWarning, match="fields that auris does not use") as warned:
            read_manifests([path], cache_dir=tmp_path / "cache")
        lists = [str(warning.message).partition("use: ")[2] for warning in warned]
        assert list(filter(None, lists)) == [  # torch may warn too
            "`channel` (1 row), `messages[].content[].end` (1 row), `messages[].name` (1 row), `topic` (3 rows)"
        ]
