"""Tests of rows in the formats of other projects: each is converted to the same row, and faults are reported.

An audio mark is a text such as `<audio>` in a message. It stands for a clip.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from auris.data.importers import convert
from auris.data.manifests import read_manifests
from auris.data.rows import Clip, Row
from auris.text.chat import message_text
from support.manifests import write_manifest

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


def read(folder: Path, fields: dict) -> Row:
    (manifest,) = read_manifests([write_manifest(folder / "rows.jsonl", [{"id": "row", **fields}])])
    return manifest.rows[0]


@pytest.mark.parametrize("data_format", CHATS)
def test_a_dialogue_in_every_format_becomes_the_same_row(tmp_path, data_format):
    row = read(tmp_path, {**CHATS[data_format], "key": "rain"})
    assert row.problem is None
    assert row.clips == (Clip(tmp_path / "a.wav"),)
    labels = {"task": "chat", "mode": "audio_analysis", "text": "Rain.", "key": "rain"}
    assert row.labels == {**labels, "messages": [*QUESTION, ANSWER]}


@pytest.mark.parametrize("data_format", PAIRS)
def test_a_preference_in_every_format_becomes_the_same_row(tmp_path, data_format):
    row = read(tmp_path, PAIRS[data_format])
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
    row = read(tmp_path, {"messages": messages, "audios": ["a.wav", "b.wav", "c.wav"]})
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
        row = read(tmp_path, {**fields, "audios": ["a.wav"]})
        assert row.problem is None and [clip.path.name for clip in row.clips] == ["a.wav"]
        assert message_text(row.labels["messages"][0]) == "What does <audio> mean, and <|AUDIO|>?"
        assert row.labels["messages"][1] == answer


def test_a_separate_system_prompt_becomes_the_first_message(tmp_path):
    row = read(tmp_path, {**CHATS["LLaMA-Factory"], "system": "Be brief."})
    assert row.labels["messages"][0] == {"role": "system", "content": "Be brief."}
    assert read(tmp_path, {**CHATS["LLaMA-Factory"], "system": ""}).labels["messages"] == [*QUESTION, ANSWER]


def test_an_alpaca_question_follows_its_history_and_input(tmp_path):
    fields = {"instruction": "And that?", "input": "<audio>", "history": [["<audio>What is that?", "A dog."]]}
    row = read(tmp_path, {**fields, "chosen": "Rain.", "rejected": "Snow.", "audios": ["a.wav", "b.wav"]})
    assert row.problem is None and [clip.path.name for clip in row.clips] == ["a.wav", "b.wav"]
    last = [{"type": "text", "text": "And that?\n"}, {"type": "audio", "audio": "b.wav"}]
    reply = {"role": "assistant", "content": "A dog."}
    assert row.labels["messages"] == [*QUESTION, reply, {"role": "user", "content": last}]


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
    row = read(tmp_path, {**CHATS["ms-swift"], **fields})
    assert message in row.problem and row.id == "row"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conversations": "hi"}, "`conversations` is 'hi', expected a list of messages"),
        ({"conversations": [{"from": "observation", "value": "x"}]}, "expected a `role` of system, user, assistant"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "expected a `role`"),
        ({"conversations": [{"human": "x"}]}, "messages[0] is {'human': 'x'}"),
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
    assert message in read(tmp_path, fields).problem


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
            in read(tmp_path, fields).problem
        ), data_format
    for fields in (
        {"messages": [*with_audio, ANSWER]},
        {"messages": with_audio, **pair},
        {"prompt": with_audio, **pair},
    ):
        assert (
            "the user's messages have 2 audio marks (<audio>), but the row has 1 audio file"
            in read(tmp_path, fields).problem
        )


def test_an_audio_file_without_a_mark_in_the_messages_is_an_error(tmp_path):
    row = read(tmp_path, {**CHATS["auris"], "audios": ["b.wav"]})
    assert "the user's messages have 1 audio mark (<audio>), but the row has 2 audio files" in row.problem


def test_rows_in_the_format_of_auris_are_unchanged():
    for fields in ({"audio": "a.wav", "task": "sec", "text": "rain"}, CHATS["auris"], PAIRS["auris"]):
        assert convert(fields) == fields


# --- the official evaluation files ---


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({"source": "librispeech_test_clean", "gt": "hi"}, {"task": "asr", "language": "en", "text": "hi"}),
        ({"source": "aishell1_test", "gt": "你好"}, {"task": "asr", "language": "zh", "text": "你好"}),
        ({"source": "cv15_asr_fr", "gt": "salut"}, {"task": "asr", "language": "fr", "text": "salut"}),
        ({"source": "cv15_asr_yue", "gt": "佢哋"}, {"task": "asr", "language": "yue", "text": "佢哋"}),
        (
            {"source": "fleurs", "gt": "hi", "prompt": "Detect the language and recognize the speech: <|zh|>"},
            {"task": "asr", "language": "zh", "text": "hi"},
        ),
        (
            {"source": "covost2_en_zh_test", "gt": "你好"},
            {"task": "s2tt", "language": "en", "target_language": "zh", "text": "你好"},
        ),
        ({"source": "meld", "gt": "joy"}, {"task": "er", "text": "joy"}),
        (
            {"source": "clothoaqa_val", "question": "Where is this?", "gt": "road"},
            {"task": "aqa", "question": "Where is this?", "text": "road"},
        ),
        ({"source": "clotho_test", "gt": "A car."}, {"task": "aac", "caption_style": "clotho", "text": "A car."}),
        (
            {"source": "audiocaps_test", "gt": ["A car.", "A loud car."]},
            {"caption_style": "audiocaps", "text": "A car.", "references": ["A car.", "A loud car."]},
        ),
    ],
)
def test_rows_of_the_official_evaluation_files_become_task_rows(tmp_path, fields, labels):
    row = read(tmp_path, {"audio": "a.wav", **fields})
    assert row.problem is None and row.clips == (Clip(tmp_path / "a.wav"),)
    assert row.labels.items() >= labels.items() and "gt" not in row.labels


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"source": "mystery_test", "gt": "x"},
            "`source` is 'mystery_test', expected it to start with one of librispeech",
        ),
        ({"gt": "x"}, "`source` is None"),
        ({"source": "covost2_test", "gt": "x"}, "expected two languages"),
        ({"source": "cv15_asr_ru", "gt": "x"}, "task 'asr' needs the label `language`"),
        ({"source": "meld", "gt": ["joy", "anger"]}, "label `text` is list"),
        ({"source": "clotho_test", "gt": []}, "label `text` is list"),
        ({"source": "clotho_test", "gt": ["one", 2]}, "`references[1]` is 2"),
    ],
)
def test_faults_in_official_evaluation_rows_are_reported(tmp_path, fields, message):
    assert message in read(tmp_path, {"audio": "a.wav", **fields}).problem
