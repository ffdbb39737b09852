"""Tests of rows in the formats of other projects: each is converted to the same row, and faults are reported.

An audio mark is a text such as `<audio>` in a message. It stands for a clip.
"""

from __future__ import annotations

import numpy as np
import pytest

from auris.data.importers import convert
from auris.data.manifests import read_manifests
from auris.data.rows import Clip
from auris.text.chat import message_text
from support.manifests import read_fields, write_wave

CLIP = {"type": "audio", "audio": "a.wav"}
QUESTION = [{"role": "user", "content": [CLIP, {"type": "text", "text": "What is that?"}]}]
MARKED_QUESTION = [{"role": "user", "content": "<audio>What is that?"}]
ANSWER = {"role": "assistant", "content": "Rain."}
WORSE_ANSWER = {"role": "assistant", "content": "No idea."}

CHATS = {
    "auris": {"messages": [*QUESTION, ANSWER]},
    "ms-swift": {"messages": [*MARKED_QUESTION, ANSWER], "audios": ["a.wav"]},
    "one path": {"messages": [*MARKED_QUESTION, ANSWER], "audios": "a.wav"},
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "<audio>What is that?"}, {"from": "gpt", "value": "Rain."}],
        "audios": ["a.wav"],
    },
    "audio parts without a file name": {
        "messages": [
            {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What is that?"}]},
            ANSWER,
        ],
        "audios": ["a.wav"],
    },
    "marks in parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "<audio>What is that?"}]}, ANSWER],
        "audios": ["a.wav"],
    },
    "tokens of Qwen-Audio": {
        "messages": [{"role": "user", "content": "<audio>[[[AUDIO:modality]]]</audio>What is that?"}, ANSWER],
        "audios": ["a.wav"],
    },
    "tokens of Qwen2-Audio": {
        "messages": [{"role": "user", "content": "<|audio_bos|><|AUDIO|><|audio_eos|>What is that?"}, ANSWER],
        "audios": ["a.wav"],
    },
    "ms-swift's sharegpt form": {
        "conversation": [{"human": "<audio>What is that?", "assistant": "Rain."}],
        "audios": ["a.wav"],
    },
    "roles with capital letters": {
        "messages": [{"role": "User", "content": "<audio>What is that?"}, {"role": "Assistant", "content": "Rain."}],
        "audios": ["a.wav"],
    },
    "sharegpt with capital letters": {
        "conversations": [{"from": "Human", "value": "<audio>What is that?"}, {"from": "GPT", "value": "Rain."}],
        "audios": ["a.wav"],
    },
    "alpaca": {"instruction": "<audio>What is that?", "input": "", "output": "Rain.", "audios": ["a.wav"]},
    "query and response": {"query": "<audio>What is that?", "response": "Rain.", "audios": ["a.wav"]},
    "TRL in strings": {"prompt": "<audio>What is that?", "completion": "Rain.", "audios": ["a.wav"]},
    "TRL in messages": {"prompt": QUESTION, "completion": [ANSWER]},
    "NeMo": {
        "conversations": [
            {"from": "User", "value": "a.wav", "type": "audio"},
            {"from": "User", "value": "What is", "type": "text"},
            {"from": "User", "value": "that?", "type": "text"},
            {"from": "Assistant", "value": "Rain.", "type": "text"},
        ]
    },
    "NeMo with other names": {
        "messages": [
            {"role": "user", "content": "a.wav", "type": "audio"},
            {"role": "user", "content": "What is that?", "type": "text"},
            ANSWER,
        ]
    },
    "Qwen-Audio": {
        "conversations": [
            {"from": "user", "value": "Audio 1:<audio>a.wav</audio>\nWhat is that?"},
            {"from": "assistant", "value": "Rain."},
        ]
    },
    "NeMo's sharegpt form": {
        "sound": "a.wav",
        "conversations": [{"from": "human", "value": "<speech>What is that?"}, {"from": "gpt", "value": "Rain."}],
    },
    "auris, read from Parquet": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "audio", "audio": "a.wav", "text": None},
                    {"type": "text", "text": "What is that?", "audio": None},
                ],
            },
            ANSWER,
        ]
    },
}
PAIRS = {
    "auris": {"messages": QUESTION, "chosen": "Rain.", "rejected": "No idea."},
    "auris in messages": {"messages": QUESTION, "chosen": [ANSWER], "rejected": [WORSE_ANSWER]},
    "ms-swift": {"messages": [*MARKED_QUESTION, ANSWER], "rejected_response": "No idea.", "audios": ["a.wav"]},
    "ms-swift in messages": {
        "messages": [*MARKED_QUESTION, ANSWER],
        "audios": ["a.wav"],
        "rejected_messages": [*MARKED_QUESTION, WORSE_ANSWER],
        "rejected_audios": ["a.wav"],
    },
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "<audio>What is that?"}],
        "chosen": {"from": "gpt", "value": "Rain."},
        "rejected": {"from": "gpt", "value": "No idea."},
        "audios": ["a.wav"],
    },
    "LLaMA-Factory's alpaca form": {
        "instruction": "<audio>What is that?",
        "input": "",
        "chosen": "Rain.",
        "rejected": "No idea.",
        "audios": ["a.wav"],
    },
    "query and response": {
        "query": "<audio>What is that?",
        "response": "Rain.",
        "rejected_response": "No idea.",
        "audios": ["a.wav"],
    },
    "LLaMA-Factory in messages": {
        "messages": MARKED_QUESTION,
        "chosen": ANSWER,
        "rejected": WORSE_ANSWER,
        "audios": ["a.wav"],
    },
    "TRL": {"prompt": "<audio>What is that?", "chosen": "Rain.", "rejected": "No idea.", "audios": ["a.wav"]},
    "TRL in messages": {"prompt": QUESTION, "chosen": [ANSWER], "rejected": [WORSE_ANSWER]},
    "TRL without a prompt": {
        "chosen": [*MARKED_QUESTION, ANSWER],
        "rejected": [*MARKED_QUESTION, WORSE_ANSWER],
        "audios": ["a.wav"],
    },
}


@pytest.mark.parametrize("data_format", CHATS)
def test_a_dialogue_in_every_format_becomes_the_same_row(tmp_path, data_format):
    row = read_fields(tmp_path, {**CHATS[data_format], "key": "rain"})
    assert row.problem is None
    assert row.clips == (Clip(tmp_path / "a.wav"),)
    labels = {"task": "chat", "mode": "audio_analysis", "text": "Rain.", "key": "rain"}
    assert row.labels == {**labels, "messages": [*QUESTION, ANSWER]}


@pytest.mark.parametrize("data_format", PAIRS)
def test_a_preference_in_every_format_becomes_the_same_row(tmp_path, data_format):
    row = read_fields(tmp_path, PAIRS[data_format])
    assert row.problem is None
    assert row.clips == (Clip(tmp_path / "a.wav"),)
    answers = {"chosen": "Rain.", "rejected": "No idea.", "text": "Rain."}
    assert row.labels == {"task": "preference", "mode": "audio_analysis", "messages": QUESTION, **answers}


def test_audio_marks_of_the_user_are_replaced_by_the_audio_files_in_order(tmp_path):
    messages = [
        {"role": "system", "content": "Say <audio> for audio."},
        {"role": "user", "content": "<audio><audio>Which is longer?"},
        {"role": "assistant", "content": "The second <audio>."},
        {"role": "user", "content": "And <audio>?"},
        ANSWER,
    ]
    row = read_fields(tmp_path, {"messages": messages, "audios": ["a.wav", "b.wav", "c.wav"]})
    assert row.problem is None
    assert [clip.path.name for clip in row.clips] == ["a.wav", "b.wav", "c.wav"]
    converted = row.labels["messages"]
    assert (converted[0], converted[2]) == (messages[0], messages[2])
    assert [part["type"] for part in converted[1]["content"]] == ["audio", "audio", "text"]
    assert [part["type"] for part in converted[3]["content"]] == ["text", "audio", "text"]


def test_an_escaped_audio_mark_is_text_and_needs_no_audio_file(tmp_path):
    content = r"<audio>What does \<audio> mean, and \<|AUDIO|>?"
    answer = {"role": "assistant", "content": r"The tag \<audio>."}  # only messages of the user have marks
    forms = (
        {"messages": [{"role": "user", "content": content}, answer]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": content}]}, answer]},
        {"conversations": [{"from": "human", "value": content}, {"from": "gpt", "value": answer["content"]}]},
    )
    for fields in forms:
        row = read_fields(tmp_path, {**fields, "audios": ["a.wav"]})
        assert row.problem is None and [clip.path.name for clip in row.clips] == ["a.wav"]
        assert message_text(row.labels["messages"][0]) == "What does <audio> mean, and <|AUDIO|>?"
        assert row.labels["messages"][1] == answer


def test_paths_between_the_marks_of_qwen_audio_are_clips_in_order(tmp_path):
    text = "Audio 1:<audio>a.wav</audio>\nAudio 2:<audio>b b.wav</audio>\nWhich? \\<audio>"
    row = read_fields(tmp_path, {"query": text, "response": "b"})
    assert [clip.path.name for clip in row.clips] == ["a.wav", "b b.wav"]
    assert message_text(row.labels["messages"][0]) == "Which? <audio>"


def test_a_separate_system_prompt_becomes_the_first_message(tmp_path):
    row = read_fields(tmp_path, {**CHATS["LLaMA-Factory"], "system": "Be brief."})
    assert row.labels["messages"][0] == {"role": "system", "content": "Be brief."}
    assert read_fields(tmp_path, {**CHATS["LLaMA-Factory"], "system": ""}).labels["messages"] == [*QUESTION, ANSWER]


@pytest.mark.parametrize(
    ("answers", "last_messages"), [({"chosen": "Rain.", "rejected": "Snow."}, []), ({"output": "Rain."}, [ANSWER])]
)
def test_an_alpaca_question_follows_its_history_and_input(tmp_path, answers, last_messages):
    fields = {"instruction": "And that?", "input": "<audio>", "history": [["<audio>What is that?", "A dog."]]}
    row = read_fields(tmp_path, {**fields, **answers, "audios": ["a.wav", "b.wav"]})
    assert row.problem is None and [clip.path.name for clip in row.clips] == ["a.wav", "b.wav"]
    last = [{"type": "text", "text": "And that?\n"}, {"type": "audio", "audio": "b.wav"}]
    reply = {"role": "assistant", "content": "A dog."}
    assert row.labels["messages"] == [*QUESTION, reply, {"role": "user", "content": last}, *last_messages]


@pytest.mark.parametrize("form", ["LLaMA-Factory", "alpaca", "query and response", "NeMo", "TRL in messages"])
def test_a_system_prompt_of_every_form_becomes_the_first_message(tmp_path, form):
    for name in ("system", "system_prompt"):
        row = read_fields(tmp_path, {**CHATS[form], name: "Be brief."})
        assert row.labels["messages"] == [{"role": "system", "content": "Be brief."}, *QUESTION, ANSWER]


@pytest.mark.parametrize(
    ("segment", "start", "stop"),
    [
        ({"offset": 0.5, "duration": 0.25}, 0.5, 0.75),
        ({"offset": 0.5}, 0.5, 1.0),
        ({"duration": 0.25}, 0.0, 0.25),  # in auris' own form, a duration alone does not cut
        ({"offset": None, "duration": None}, 0.0, 1.0),
        ({}, 0.0, 1.0),
    ],
)
def test_offset_and_duration_of_a_nemo_turn_cut_the_clip(tmp_path, segment, start, stop):
    write_wave(tmp_path / "a.wav", 1.0)
    turns = [{"from": "user", "value": "a.wav", "type": "audio", **segment}, {"from": "assistant", "value": "Rain."}]
    row = read_fields(tmp_path, {"conversations": turns})
    assert row.problem is None
    whole = Clip(tmp_path / "a.wav").read()
    np.testing.assert_array_equal(row.clips[0].read(), whole[round(start * 16_000) : round(stop * 16_000)])


def test_a_null_field_of_a_dialogue_is_a_missing_field(tmp_path):
    """Tables with chats, preferences and several forms have nulls in most fields."""
    names = ("conversation", "chosen", "rejected", "rejected_response", "instruction", "query", "response", "system")
    row = read_fields(tmp_path, {**dict.fromkeys(names), **CHATS["ms-swift"]})
    assert row.problem is None and row.labels["task"] == "chat" and row.labels["messages"] == [*QUESTION, ANSWER]


def test_the_sound_marks_of_nemo_are_text_in_an_answer(tmp_path):
    turns = [{"from": "human", "value": "<sound>"}, {"from": "gpt", "value": "A <sound> tag."}]
    assert read_fields(tmp_path, {"sound": "a.wav", "conversations": turns}).labels["text"] == "A <sound> tag."


def test_a_sound_mark_of_nemo_after_a_backslash_is_text(tmp_path):
    turns = [{"from": "human", "value": r"<sound>What does \<sound> mean?"}, {"from": "gpt", "value": "A clip."}]
    row = read_fields(tmp_path, {"sound": "a.wav", "conversations": turns})
    assert len(row.clips) == 1
    assert row.labels["messages"][0]["content"][-1]["text"] == "What does <sound> mean?"


def test_a_task_row_may_have_fields_of_other_forms(tmp_path):
    fields = {
        "audio": "a.wav",
        "task": "sec",
        "text": "rain",
        "instruction": "x",
        "output": "y",
        "label": 3,
        "weight": 0,
    }
    row = read_fields(tmp_path, fields)
    assert row.problem is None and row.labels["task"] == "sec" and row.labels["output"] == "y"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"audios": []}, "the user's messages have 1 audio mark (<audio>), but the row has 0 audio files"),
        ({"audios": None}, "the user's messages have 1 audio mark (<audio>), but the row has 0 audio files"),
        (
            {"audios": ["a.wav", "b.wav"]},
            "the user's messages have 1 audio mark (<audio>), but the row has 2 audio files",
        ),
        ({"audios": {"path": "a.wav"}}, "`audios` is {'path': 'a.wav'}, expected a list of paths"),
        ({"audios": [3]}, "the audio of a message is 3, expected a path"),
        ({"images": ["a.png"]}, "the row has `images`"),
        ({"videos": "a.mp4"}, "the row has `videos`"),
        ({"tools": '[{"type": "function"}]'}, "the row has `tools`"),
        ({"positive_messages": [[]]}, "the row has `positive_messages`"),
        ({"offset": 1.0}, "the row has `offset`"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "`messages` and `conversations`, expected only one"),
        ({"audios": ["https://example.org/a.wav"]}, "URL"),
        ({"audios": ["data:audio/wav;base64," + "A" * 1000]}, "URL"),
        ({"audios": [{"bytes": None, "path": "a.wav"}]}, "expected a path"),
        ({"rejected_response": "Snow.", "rejected_audios": ["b.wav"]}, "differ before the answer"),
        (
            {"system": "Be brief.", "messages": [{"role": "system", "content": "Be long."}, *MARKED_QUESTION, ANSWER]},
            "`system` and",
        ),
        ({"messages": []}, "`messages` is [], expected a list of messages"),
        ({"messages": "hi"}, "`messages` is 'hi'"),
        (
            {"messages": [*MARKED_QUESTION, {"role": "tool", "content": "x"}]},
            "expected a `role` of system, user, assistant",
        ),
        (
            {"messages": [*MARKED_QUESTION, {"role": "assistant", "content": " "}]},
            "messages[1] (assistant) is empty",
        ),
        ({"rejected_response": "Rain."}, "`chosen` and `rejected` are equal: 'Rain.'"),
        ({"rejected_response": ""}, "`rejected` is empty"),
        ({"rejected_messages": [{"role": "user", "content": "hi"}, WORSE_ANSWER]}, "differ before the answer"),
        (
            {"rejected_messages": [*MARKED_QUESTION, WORSE_ANSWER], "rejected_audios": ["b.wav"]},
            "differ before the answer",
        ),
    ],
)
def test_faults_in_ms_swift_rows_are_reported(tmp_path, fields, message):
    row = read_fields(tmp_path, {**CHATS["ms-swift"], **fields})
    assert message in row.problem and row.id == "row"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conversations": "hi"}, "`conversations` is 'hi', expected a list of messages"),
        ({"conversations": [{"from": "observation", "value": "x"}]}, "expected a `role` of system, user, assistant"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "expected a `role`"),
        ({"conversations": [{"human": "x"}]}, "messages[0] is {'human': 'x'}"),
        (
            {"conversations": [{"from": "user", "value": "a.png", "type": "image"}]},
            "`type` of turn 0 is 'image', expected 'text' or 'audio'",
        ),
        (
            {
                "conversations": [
                    {"from": "user", "value": "x", "type": "text"},
                    {"from": "assistant", "value": "a.wav", "type": "audio"},
                ]
            },
            "only messages of the user may",
        ),
        ({"query": "hi", "response": 3}, "content of a message of the assistant is 3"),
        ({"query": "hi", "response": None}, "no form in docs/forms.md has the fields id, query"),
        (
            {"audio_filepath": "a.wav", "duration": 1.0, "text": "x"},
            "has the fields audio_filepath, duration, id, text",
        ),
        ({"sound": "a.wav", "conversations": [{"from": "human", "value": "no mark"}]}, "0 audio marks"),
        ({"sound": None, "conversations": [{"from": "human", "value": "<sound>"}]}, "1 audio mark (<audio>)"),
        ({**CHATS["alpaca"], "audio": "a.wav", "audios": None}, "a dialogue has `audio`: expected its clips in"),
        ({"query": "hi", "response": "yes", "history": "[['a', 'b']]"}, "list of [question, answer]"),
        ({"prompt": "hi", "completion": {"text": "yes"}}, "`completion` is {'text': 'yes'}, expected a list"),
        (
            {"chosen": "yes", "rejected": "no"},
            "the row has no `prompt`: expected `chosen` and `rejected` to be lists of messages",
        ),
        ({"chosen": [ANSWER], "rejected": [WORSE_ANSWER]}, "`prompt` is []"),
        ({"instruction": 3, "chosen": "yes", "rejected": "no"}, "`instruction` and `input` are [3], expected strings"),
        ({"instruction": "hi", "history": ["hi"], "chosen": "yes", "rejected": "no"}, "list of [question, answer]"),
        ({"instruction": "", "chosen": "yes", "rejected": "no"}, "messages[0] (user) is empty"),
        ({"prompt": "hi", "chosen": [ANSWER, ANSWER], "rejected": "no"}, "a string or one message of the assistant"),
        ({"prompt": "hi", "chosen": {"role": "user", "content": "yes"}, "rejected": "no"}, "`chosen` has role 'user'"),
    ],
)
def test_faults_in_rows_of_other_formats_are_reported(tmp_path, fields, message):
    assert message in read_fields(tmp_path, fields).problem


TOKENS = ["<audio>", "</audio>", "[[[AUDIO:modality]]]", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"]


@pytest.mark.parametrize("mark", [*TOKENS, "".join(TOKENS[3:])])
def test_an_audio_mark_without_an_audio_file_is_an_error_in_every_format(tmp_path, mark):
    text = f"What is {mark}that?"
    messages = [{"from": "human", "value": text}]
    with_audio = [{"role": "user", "content": [CLIP, {"type": "text", "text": text}]}]
    pair = {"chosen": "Rain.", "rejected": "Snow."}
    without_audio = {
        "auris": {"messages": [{"role": "user", "content": text}, ANSWER]},
        "auris, a pair": {"messages": [{"role": "user", "content": text}], **pair},
        "ms-swift": {"messages": [{"role": "user", "content": text}, ANSWER], "rejected_response": "Snow."},
        "LLaMA-Factory": {"conversations": [*messages, {"from": "gpt", "value": "Rain."}]},
        "LLaMA-Factory, a pair": {"conversations": messages, **pair},
        "alpaca": {"instruction": text, **pair},
        "TRL": {"prompt": text, **pair},
        "TRL without a prompt": {
            "chosen": [{"role": "user", "content": text}, ANSWER],
            "rejected": [{"role": "user", "content": text}, WORSE_ANSWER],
        },
    }
    for data_format, fields in without_audio.items():
        assert (
            "the user's messages have 1 audio mark (<audio>), but the row has 0 audio files"
            in read_fields(tmp_path, fields).problem
        ), data_format
    for fields in (
        {"messages": [*with_audio, ANSWER]},
        {"messages": with_audio, **pair},
        {"prompt": with_audio, **pair},
    ):
        assert (
            "the user's messages have 2 audio marks (<audio>), but the row has 1 audio file"
            in read_fields(tmp_path, fields).problem
        )


def test_an_audio_file_without_a_mark_in_the_messages_is_an_error(tmp_path):
    row = read_fields(tmp_path, {**CHATS["auris"], "audios": ["b.wav"]})
    assert "the user's messages have 1 audio mark (<audio>), but the row has 2 audio files" in row.problem


def test_rows_in_the_format_of_auris_are_unchanged():
    for fields in ({"audio": "a.wav", "task": "sec", "text": "rain"}, CHATS["auris"], PAIRS["auris"]):
        assert convert(fields) == fields


def test_the_shared_files_are_read(shared_data):
    """`loss_false.jsonl` is the only file whose rows have an answer that is not learned."""
    folder = shared_data / "faults/forms"
    for path in sorted(folder.glob("*.json*")):
        (manifest,) = read_manifests([path])
        for row in manifest.rows:
            assert row.problem is None, (path.name, row.problem)
            assert all(clip.path.is_file() for clip in row.clips) and bool(row.clips) == ("trl" not in path.name)
            flags = [message.get("loss") for message in row.labels["messages"]]
            assert (False in flags) == (path.name == "loss_false.jsonl")
            assert "a.wav" not in str([message_text(message) for message in row.labels["messages"]])
