"""Manifests: what a row may look like, what is wrong with one that cannot be used, and which rows are taken."""

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


def test_a_row_is_its_clips_its_labels_and_its_id(tmp_path):
    (row,) = read(tmp_path, {"id": "a", "audio": "wav/a.flac", "duration": 1.5, "speaker": "eve", **ASR})
    assert row == Row("a", (Clip(tmp_path / "wav/a.flac", None, 1.5),), {**ASR, "speaker": "eve"})


def test_several_clips_a_segment_and_an_absolute_path(tmp_path):
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


def test_a_row_without_an_id_is_called_by_its_line_and_blank_lines_count(tmp_path):
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
    ("line", "named"),
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
def test_an_unusable_row_keeps_its_place_with_its_reason(tmp_path, line, named):
    good = json.dumps({"id": "good", "audio": "a.wav", **ASR})
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n{good}\n")
    (manifest,) = read_manifests([path])
    bad, fine = manifest.rows
    assert named in bad.problem
    assert bad.id == "rows.jsonl:1"
    assert (fine.id, fine.problem) == ("good", None)


def test_an_id_used_twice_is_named_and_the_first_row_stays(tmp_path):
    first, second = read(tmp_path, *({"id": "a", "audio": f"{n}.wav", **ASR} for n in "xy"))
    assert first.problem is None
    assert "'a'" in second.problem and second.id != "a"


def test_a_missing_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_manifests([tmp_path / "train.jsonl"], key="data.valid")
    for part in ("data.valid=[FILE.jsonl]", str(tmp_path / "train.jsonl"), f"auris corpus out={tmp_path}"):
        assert part in str(error.value)


def test_an_unknown_key_of_an_entry_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"data.train: unknown key \['wieght'\]"):
        read(tmp_path, {"id": "a", "audio": "a.wav", **ASR}, wieght=2)


def test_rows_of_two_manifests_with_one_id_are_refused(tmp_path):
    paths = [write_manifest(tmp_path / name, [{"id": "a", "audio": "a.wav", **ASR}]) for name in ("1.jsonl", "2.jsonl")]
    with pytest.raises(ValueError, match="row id 'a' is in .*1.jsonl and in .*2.jsonl"):
        read_manifests(paths)


def mixed(folder: Path) -> list[dict]:
    kinds = [("asr", ASR), ("sec", {"task": "sec", "text": "rain"}), ("mic", {"task": "mic", "text": "flute"})]
    return [{"id": f"{code}{n}", "audio": "a.wav", **labels} for n in range(3) for code, labels in kinds]


def test_tasks_keeps_some_and_limit_the_first_of_each(tmp_path):
    rows = read(tmp_path, *mixed(tmp_path), tasks=["asr", "mic"], limit=2)
    assert [row.id for row in rows] == ["asr0", "mic0", "asr1", "mic1"]
    assert len(read(tmp_path, *mixed(tmp_path), limit=1)) == 3


def test_tasks_that_leave_nothing_are_an_error_and_misspelt_ones_are_named(tmp_path):
    with pytest.raises(ValueError, match="has no rows of tasks"):
        read(tmp_path, *mixed(tmp_path), tasks=["lid"])
    with pytest.raises(ValueError, match="unknown task 'arsr'"):
        read(tmp_path, *mixed(tmp_path), tasks=["arsr"])


def test_an_empty_manifest_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="rows.jsonl has no rows$"):
        read(tmp_path)


def test_a_weight_is_kept(tmp_path):
    path = write_manifest(tmp_path / "rows.jsonl", mixed(tmp_path))
    weighted, plain = read_manifests([{"path": path, "weight": 3, "tasks": ["asr"]}])[0], read_manifests([path])[0]
    assert (weighted.weight, plain.weight) == (3, None)


def test_the_digest_follows_the_file(tmp_path):
    def digest() -> str:
        return read_manifests([tmp_path / "rows.jsonl"])[0].digest

    write_manifest(tmp_path / "rows.jsonl", mixed(tmp_path))
    before = digest()
    assert digest() == before
    write_manifest(tmp_path / "rows.jsonl", mixed(tmp_path)[:-1])
    assert digest() != before


# --- dialogues ---

HEARD = {"type": "audio", "audio": "wav/a.flac", "duration": 1.5}
ASKED = {"role": "user", "content": [HEARD, {"type": "text", "text": "What is that?"}]}
ANSWER = {"role": "assistant", "content": "Rain."}


def test_a_dialogue_is_its_messages_the_clips_in_them_and_its_last_answer(tmp_path):
    again = {"role": "user", "content": [{"audio_url": "b.wav", "offset": 1, "duration": 2}, {"text": "And that?"}]}
    last = {"role": "assistant", "content": [{"type": "text", "text": "A "}, {"type": "text", "text": "dog."}]}
    messages = [ASKED, ANSWER, again, last]
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


VOICE = {"role": "user", "content": [HEARD]}
TYPED = {"role": "user", "content": "What is that?"}


@pytest.mark.parametrize(
    ("asked", "mode"),
    [
        ([ASKED], "audio_analysis"),
        ([VOICE], "voice_chat"),
        ([{"role": "user", "content": [HEARD, {"text": " "}]}], "voice_chat"),
        ([TYPED], "text"),
        ([ASKED, ANSWER, VOICE], "voice_chat"),
        ([VOICE, ANSWER, TYPED], "audio_analysis"),  # of the audio that came before
    ],
)
def test_the_mode_of_a_dialogue_follows_from_its_last_question(tmp_path, asked, mode):
    chat, pair, spoken = read(
        tmp_path,
        {"messages": [*asked, ANSWER]},
        {"messages": asked, "chosen": "yes", "rejected": "no"},
        {"messages": [*asked, ANSWER], "mode": "text"},
    )
    assert [row.labels["mode"] for row in (chat, pair, spoken)] == [mode, mode, "text"]


def test_a_preference_has_two_answers_to_one_dialogue(tmp_path):
    (row,) = read(tmp_path, {"messages": [ASKED], "chosen": [ANSWER], "rejected": "Snow."})
    assert row.problem is None and row.labels["task"] == "preference"
    assert [row.labels[name] for name in ("chosen", "rejected", "text")] == ["Rain.", "Snow.", "Rain."]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "`messages` is [], expected a list of messages"),
        ({"messages": "hi"}, "`messages` is 'hi'"),
        ({"messages": [ASKED]}, "the last message has role 'user', expected the assistant's answer"),
        ({"messages": [ANSWER]}, "the answer is preceded by nothing"),
        ({"messages": [ASKED, ANSWER, ANSWER]}, "the answer is preceded by a message of the assistant"),
        ({"messages": [ASKED, {"role": "robot", "content": "hi"}]}, "expected a `role` of system, user, assistant"),
        ({"messages": [ASKED, {"role": "assistant", "content": "\n"}]}, "messages[1], of the assistant, is empty"),
        (
            {"messages": [TYPED, {"role": "assistant", "content": ""}, TYPED, ANSWER]},
            "messages[1], of the assistant, is empty",
        ),
        ({"messages": [{"role": "user", "content": []}, ANSWER]}, "messages[0], of the user, is empty"),
        ({"messages": [ASKED, {"role": "assistant", "content": [HEARD]}]}, "only the user's can"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}, "holds {'type': 'image'}"),
        ({"messages": [{"role": "user", "content": [{"audio": 3}]}, ANSWER]}, "the audio of a message is 3"),
        ({"messages": [{"role": "user", "content": [{**HEARD, "duration": -1}]}, ANSWER]}, "`duration` is -1"),
        ({"messages": [TYPED, ANSWER], "audio": "a.wav"}, "the row has `audio` and `messages`"),
        ({"messages": [TYPED, ANSWER], "task": "asr"}, "`task` is 'asr', expected 'chat'"),
        ({"messages": [TYPED, ANSWER], "mode": "loud"}, "label `mode` is 'loud'; known modes"),
        ({"messages": [TYPED, ANSWER], "key": " "}, "`key` is ' '"),
        ({"messages": [TYPED, ANSWER], "skill": 3}, "`skill` is 3, expected"),
        (
            {"messages": [TYPED, ANSWER], "key": "..."},
            "`key` is '...', expected the words that a correct answer contains",
        ),
        ({"task": "chat", "audio": "a.wav"}, "task 'chat' needs `messages`"),
        (
            {"messages": [ASKED], "chosen": "Rain.", "rejected": " Rain.\n"},
            "`chosen` and `rejected` are equal: 'Rain.'",
        ),
        (
            {"messages": [ASKED], "chosen": "Un caf\u00e9.", "rejected": "Un cafe\u0301."},  # to a tokenizer the same
            "`chosen` and `rejected` are equal",
        ),
        ({"messages": [ASKED], "chosen": "Rain."}, "`rejected` is None"),
        ({"messages": [ASKED], "chosen": "Rain.", "rejected": ""}, "`rejected` is empty"),
        (
            {"messages": [ASKED], "chosen": [ASKED], "rejected": "x"},
            "expected a string or one message of the assistant",
        ),
        (
            {"messages": [ASKED, ANSWER], "chosen": "a", "rejected": "b"},
            "the answer is preceded by a message of the assistant",
        ),
    ],
)
def test_an_unusable_dialogue_keeps_its_place_with_its_reason(tmp_path, fields, message):
    bad, good = read(tmp_path, {"id": "bad", **fields}, {"id": "good", "messages": [ASKED, ANSWER]})
    assert message in bad.problem
    assert (bad.id, good.id, good.problem) == ("bad", "good", None)
    assert bad.labels["task"] in ("chat", "preference")  # it is counted among the rows of its task


def test_an_empty_system_message_takes_the_place_of_the_default_one(tmp_path):
    empty = {"role": "system", "content": ""}
    chat, pair = read(
        tmp_path, {"messages": [empty, ASKED, ANSWER]}, {"messages": [empty, ASKED], "chosen": "a", "rejected": "b"}
    )
    assert chat.problem is pair.problem is None and chat.labels["messages"][0] == empty


def test_dialogues_are_chosen_by_task_like_other_rows(tmp_path):
    rows = [{"messages": [TYPED, ANSWER]}, {"messages": [TYPED], "chosen": "a", "rejected": "b"}, *mixed(tmp_path)]
    assert [row.labels["task"] for row in read(tmp_path, *rows, tasks=["preference", "chat"])] == ["chat", "preference"]
