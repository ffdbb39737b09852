"""Tests of manifest rows: valid rows, the reasons of unusable ones, and the selection of rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from auris.data.manifests import read_manifests
from auris.data.rows import Clip, Row
from support.manifests import write_manifest

ASR = {"task": "asr", "language": "en", "text": "hello"}


def read(folder: Path, *rows: dict, **entry) -> Sequence[Row]:
    path = write_manifest(folder / "rows.jsonl", list(rows))
    (manifest,) = read_manifests([{"path": path, **entry}])
    return manifest.rows


def test_a_row_has_an_id_clips_and_labels(tmp_path):
    (row,) = read(tmp_path, {"id": "a", "audio": "wav/a.flac", "duration": 1.5, "speaker": "eve", **ASR})
    assert row == Row("a", (Clip(tmp_path / "wav/a.flac", None, 1.5),), {**ASR, "speaker": "eve"})


def test_a_row_may_have_several_clips_a_segment_or_an_absolute_path(tmp_path):
    rows = read(
        tmp_path,
        {"id": "two", "audio": ["a.wav", "b.wav"], **ASR},
        {"id": "segment", "audio": "a.wav", "offset": 2, "duration": 0.5, **ASR},
        {"id": "absolute", "audio": str(tmp_path / "x" / "c.wav"), **ASR},
    )
    assert [row.problem for row in rows] == [None] * 3
    assert rows[0].clips == (Clip(tmp_path / "a.wav"), Clip(tmp_path / "b.wav"))
    assert rows[1].clips == (Clip(tmp_path / "a.wav", 2, 0.5),)
    assert rows[2].clips == (Clip(tmp_path / "x" / "c.wav"),)


def test_a_row_without_an_id_is_named_by_its_line_number_which_counts_blank_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps({"audio": "a.wav", **ASR}) + "\n\n" + json.dumps({"audio": "b.wav", **ASR}))
    (manifest,) = read_manifests([path])
    assert [row.id for row in manifest.rows] == ["rows.jsonl:2", "rows.jsonl:4"]


def test_lines_of_a_text_file_are_text_rows(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("one line\n\n  zwei Zeilen \n", encoding="utf-8")
    (manifest,) = read_manifests([str(path)])
    labels = [{"task": "text", "text": "one line"}, {"task": "text", "text": "zwei Zeilen"}]
    assert [row.labels for row in manifest.rows] == labels
    assert all(row.clips == () and row.problem is None for row in manifest.rows)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not JSON"),
        ('["a", "list"]', "got list"),
        ('{"audio": "a.wav", "text": "x", "language": "en"}', "no `task` field"),
        ('{"audio": "a.wav", "task": "opera"}', "unknown task 'opera'"),
        ('{"audio": "a.wav", "task": ["asr"], "text": "x", "language": "en"}', "unknown task ['asr']"),
        ('{"audio": "a.wav", "task": "asr", "text": "", "language": "en"}', "`text` is empty"),
        ('{"audio": "a.wav", "task": "asr", "text": "x", "language": ["en"]}', "`language`"),
        ('{"task": "asr", "text": "x", "language": "en"}', "needs `audio`"),
        ('{"audio": null, "task": "asr", "text": "x", "language": "en"}', "`audio` is None"),
        ('{"audio": [1], "task": "asr", "text": "x", "language": "en"}', "`audio` is [1]"),
        ('{"audio": "", "task": "asr", "text": "x", "language": "en"}', "`audio` is ''"),
        ('{"audio": "a.wav", "duration": "2 s", "task": "asr", "text": "x", "language": "en"}', "`duration` is '2 s'"),
        ('{"audio": "a.wav", "duration": NaN, "task": "asr", "text": "x", "language": "en"}', "`duration` is nan"),
        ('{"audio": "a.wav", "offset": -1, "task": "asr", "text": "x", "language": "en"}', "`offset` is -1"),
        ('{"audio": "a.wav", "offset": true, "task": "asr", "text": "x", "language": "en"}', "`offset` is True"),
        ('{"audio": ["a.wav", "b.wav"], "duration": 2, "task": "asr", "text": "x", "language": "en"}', "several"),
    ],
)
def test_an_unusable_row_keeps_its_position_and_has_a_reason(tmp_path, line, message):
    good = json.dumps({"id": "good", "audio": "a.wav", **ASR})
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n{good}\n")
    (manifest,) = read_manifests([path])
    bad, usable = manifest.rows
    assert message in bad.problem
    assert bad.id == "rows.jsonl:1"
    assert (usable.id, usable.problem) == ("good", None)


def test_of_several_rows_with_one_id_only_the_first_is_usable(tmp_path):
    first, second = read(tmp_path, *({"id": "a", "audio": f"{n}.wav", **ASR} for n in "xy"))
    assert first.problem is None
    assert "'a'" in second.problem and second.id != "a"


def test_the_error_for_a_missing_manifest_says_how_to_create_one(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_manifests([tmp_path / "train.jsonl"], key="data.valid")
    for part in ("data.valid=[FILE.jsonl]", str(tmp_path / "train.jsonl"), f"auris corpus out={tmp_path}"):
        assert part in str(error.value)


def test_an_unknown_key_of_an_entry_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"data.train: unknown key \['wieght'\]"):
        read(tmp_path, {"id": "a", "audio": "a.wav", **ASR}, wieght=2)


def test_the_same_row_id_in_two_manifests_is_an_error(tmp_path):
    paths = [write_manifest(tmp_path / name, [{"id": "a", "audio": "a.wav", **ASR}]) for name in ("1.jsonl", "2.jsonl")]
    with pytest.raises(ValueError, match="row id 'a' is in .*1.jsonl and in .*2.jsonl"):
        read_manifests(paths)


def rows_of_three_tasks(folder: Path) -> list[dict]:
    task_labels = [("asr", ASR), ("sec", {"task": "sec", "text": "rain"}), ("mic", {"task": "mic", "text": "flute"})]
    return [{"id": f"{code}{n}", "audio": "a.wav", **labels} for n in range(3) for code, labels in task_labels]


def test_rows_can_be_selected_by_task_and_limited_to_the_first_of_each_task(tmp_path):
    rows = read(tmp_path, *rows_of_three_tasks(tmp_path), tasks=["asr", "mic"], limit=2)
    assert [row.id for row in rows] == ["asr0", "mic0", "asr1", "mic1"]
    assert len(read(tmp_path, *rows_of_three_tasks(tmp_path), limit=1)) == 3


def test_tasks_without_rows_and_unknown_tasks_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="has no rows of tasks"):
        read(tmp_path, *rows_of_three_tasks(tmp_path), tasks=["lid"])
    with pytest.raises(ValueError, match="unknown task 'arsr'"):
        read(tmp_path, *rows_of_three_tasks(tmp_path), tasks=["arsr"])


def test_an_empty_manifest_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="rows.jsonl has no rows$"):
        read(tmp_path)


def test_a_manifest_has_the_weight_of_its_entry(tmp_path):
    path = write_manifest(tmp_path / "rows.jsonl", rows_of_three_tasks(tmp_path))
    weighted, plain = read_manifests([{"path": path, "weight": 3, "tasks": ["asr"]}])[0], read_manifests([path])[0]
    assert (weighted.weight, plain.weight) == (3, None)


def test_the_digest_changes_with_the_content_of_the_file(tmp_path):
    def digest() -> str:
        return read_manifests([tmp_path / "rows.jsonl"])[0].digest

    write_manifest(tmp_path / "rows.jsonl", rows_of_three_tasks(tmp_path))
    before = digest()
    assert digest() == before
    write_manifest(tmp_path / "rows.jsonl", rows_of_three_tasks(tmp_path)[:-1])
    assert digest() != before


# --- dialogues ---

CLIP = {"type": "audio", "audio": "wav/a.flac", "duration": 1.5}
QUESTION = {"role": "user", "content": [CLIP, {"type": "text", "text": "What is that?"}]}
ANSWER = {"role": "assistant", "content": "Rain."}


def test_a_dialogue_has_the_clips_of_its_messages_and_its_last_answer_as_labels(tmp_path):
    second_question = {
        "role": "user",
        "content": [{"audio_url": "b.wav", "offset": 1, "duration": 2}, {"text": "And that?"}],
    }
    last_answer = {"role": "assistant", "content": [{"type": "text", "text": "A "}, {"type": "text", "text": "dog."}]}
    messages = [QUESTION, ANSWER, second_question, last_answer]
    (row,) = read(tmp_path, {"id": "d", "messages": messages, "key": "dog", "provenance": "tts"})
    assert row.clips == (Clip(tmp_path / "wav/a.flac", None, 1.5), Clip(tmp_path / "b.wav", 1, 2))
    assert row.labels == {
        "task": "chat",
        "messages": messages,
        "mode": "audio_analysis",
        "text": "A dog.",
        "key": "dog",
        "provenance": "tts",
    }
    assert (row.id, row.problem) == ("d", None)


AUDIO_ONLY = {"role": "user", "content": [CLIP]}
TEXT_ONLY = {"role": "user", "content": "What is that?"}


@pytest.mark.parametrize(
    ("prompt", "mode"),
    [
        ([QUESTION], "audio_analysis"),
        ([AUDIO_ONLY], "voice_chat"),
        ([{"role": "user", "content": [CLIP, {"text": " "}]}], "voice_chat"),
        ([TEXT_ONLY], "text"),
        ([QUESTION, ANSWER, AUDIO_ONLY], "voice_chat"),
        ([AUDIO_ONLY, ANSWER, TEXT_ONLY], "audio_analysis"),  # the text asks about the earlier audio
    ],
)
def test_the_mode_of_a_dialogue_follows_from_its_last_question(tmp_path, prompt, mode):
    chat, pair, explicit = read(
        tmp_path,
        {"messages": [*prompt, ANSWER]},
        {"messages": prompt, "chosen": "yes", "rejected": "no"},
        {"messages": [*prompt, ANSWER], "mode": "text"},
    )
    assert [row.labels["mode"] for row in (chat, pair, explicit)] == [mode, mode, "text"]


def test_a_preference_has_a_chosen_and_a_rejected_answer(tmp_path):
    (row,) = read(tmp_path, {"messages": [QUESTION], "chosen": [ANSWER], "rejected": "Snow."})
    assert row.problem is None and row.labels["task"] == "preference"
    assert [row.labels[name] for name in ("chosen", "rejected", "text")] == ["Rain.", "Snow.", "Rain."]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "`messages` is [], expected a list of messages"),
        ({"messages": "hi"}, "`messages` is 'hi'"),
        ({"messages": [QUESTION]}, "the last message has role 'user', expected the assistant's answer"),
        ({"messages": [ANSWER]}, "the answer is preceded by nothing"),
        ({"messages": [QUESTION, ANSWER, ANSWER]}, "the answer is preceded by a message of the assistant"),
        ({"messages": [QUESTION, {"role": "robot", "content": "hi"}]}, "expected a `role` of system, user, assistant"),
        ({"messages": [QUESTION, {"role": "assistant", "content": "\n"}]}, "messages[1] (assistant) is empty"),
        (
            {"messages": [TEXT_ONLY, {"role": "assistant", "content": ""}, TEXT_ONLY, ANSWER]},
            "messages[1] (assistant) is empty",
        ),
        ({"messages": [{"role": "user", "content": []}, ANSWER]}, "messages[0] (user) is empty"),
        ({"messages": [QUESTION, {"role": "assistant", "content": [CLIP]}]}, "only messages of the user may"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}, "contains {'type': 'image'}"),
        ({"messages": [{"role": "user", "content": [{"audio": 3}]}, ANSWER]}, "the audio of a message is 3"),
        ({"messages": [{"role": "user", "content": [{**CLIP, "duration": -1}]}, ANSWER]}, "`duration` is -1"),
        ({"messages": [TEXT_ONLY, ANSWER], "audio": "a.wav"}, "a dialogue has `audio`: expected its clips in `audios`"),
        ({"messages": [TEXT_ONLY, ANSWER], "task": "asr"}, "`task` is 'asr', expected 'chat'"),
        ({"messages": [TEXT_ONLY, ANSWER], "mode": "loud"}, "label `mode` is 'loud'; valid modes"),
        ({"messages": [TEXT_ONLY, ANSWER], "key": " "}, "`key` is ' '"),
        ({"messages": [TEXT_ONLY, ANSWER], "skill": 3}, "`skill` is 3, expected"),
        (
            {"messages": [TEXT_ONLY, ANSWER], "key": "..."},
            "`key` is '...', expected the words that a correct answer contains",
        ),
        ({"task": "chat", "audio": "a.wav"}, "task 'chat' needs `messages`"),
        (
            {"messages": [QUESTION], "chosen": "Rain.", "rejected": " Rain.\n"},
            "`chosen` and `rejected` are equal: 'Rain.'",
        ),
        (
            {
                "messages": [QUESTION],
                "chosen": "Un caf\u00e9.",
                "rejected": "Un cafe\u0301.",
            },  # equal after Unicode normalisation
            "`chosen` and `rejected` are equal",
        ),
        ({"messages": [QUESTION], "chosen": "Rain."}, "`rejected` is None"),
        ({"messages": [QUESTION], "chosen": "Rain.", "rejected": ""}, "`rejected` is empty"),
        (
            {"messages": [QUESTION], "chosen": [QUESTION], "rejected": "x"},
            "expected a string or one message of the assistant",
        ),
        (
            {"messages": [QUESTION, ANSWER], "chosen": "a", "rejected": "b"},
            "the answer is preceded by a message of the assistant",
        ),
    ],
)
def test_an_unusable_dialogue_keeps_its_position_and_has_a_reason(tmp_path, fields, message):
    bad, good = read(tmp_path, {"id": "bad", **fields}, {"id": "good", "messages": [QUESTION, ANSWER]})
    assert message in bad.problem
    assert (bad.id, good.id, good.problem) == ("bad", "good", None)
    assert bad.labels["task"] in ("chat", "preference")  # the row is still counted under its task


def test_an_empty_system_message_replaces_the_default_one(tmp_path):
    empty = {"role": "system", "content": ""}
    chat, pair = read(
        tmp_path,
        {"messages": [empty, QUESTION, ANSWER]},
        {"messages": [empty, QUESTION], "chosen": "a", "rejected": "b"},
    )
    assert chat.problem is pair.problem is None and chat.labels["messages"][0] == empty


def test_dialogues_are_selected_by_task_like_other_rows(tmp_path):
    rows = [
        {"messages": [TEXT_ONLY, ANSWER]},
        {"messages": [TEXT_ONLY], "chosen": "a", "rejected": "b"},
        *rows_of_three_tasks(tmp_path),
    ]
    assert [row.labels["task"] for row in read(tmp_path, *rows, tasks=["preference", "chat"])] == ["chat", "preference"]
