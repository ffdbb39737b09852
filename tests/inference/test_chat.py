"""Chat in the terminal and batch answers: responses equal those of `AudioModel.chat`, and errors end neither."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import soundfile

import auris
from auris import cli
from auris.data.manifests import read_manifests
from auris.inference.audio_model import AudioModel, StreamingDecoder
from auris.inference.chat import Conversation, answer_file, talk
from auris.text.chat import message_text
from support import published
from support.manifests import tokenizer, write_manifest, write_wave

SETTINGS = {"max_new_tokens": 8, "keep_control_tokens": True}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen2_audio") / "model"
    published.qwen2_audio(path)
    published.edit_json(path / "generation_config.json", "chat_format", value="chatml")
    return path


@pytest.fixture(scope="module")
def model(model_dir: Path) -> AudioModel:
    return auris.load(model_dir)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wave(tmp_path_factory.mktemp("clips") / "a clip.wav", 1.3)


def user_with_audio(clip: Path, text: str = "") -> dict[str, Any]:
    text_part = [{"type": "text", "text": text}] if text else []
    return {"role": "user", "content": [{"type": "audio", "audio": str(clip)}, *text_part]}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


# --- one conversation ---


def test_each_response_depends_on_the_whole_conversation(model: AudioModel, clip: Path, capsys: pytest.CaptureFixture):
    talk(Conversation(model, **SETTINGS), [f'/audio "{clip}"', "what is it?", "and now?\n"])
    first = model.chat([user_with_audio(clip, "what is it?")], **SETTINGS)
    second = model.chat([user_with_audio(clip, "what is it?"), assistant(first), user("and now?")], **SETTINGS)
    out, notes = capsys.readouterr()
    assert out == f"{first}\n{second}\n"
    assert first.strip() and second != model.chat([user("and now?")], **SETTINGS)
    assert "(1.3 s) to the next message" in notes


def test_an_empty_line_sends_only_the_clips(model: AudioModel, clip: Path, capsys: pytest.CaptureFixture):
    talk(Conversation(model, **SETTINGS), ["", f"/audio '{clip}'", "", ""])
    assert capsys.readouterr().out == model.chat([user_with_audio(clip)], **SETTINGS) + "\n"


def test_several_clips_are_sent_with_one_message(model: AudioModel, clip: Path, tmp_path: Path):
    other = write_wave(tmp_path / "other.wav", 0.7)
    conversation = Conversation(model, **SETTINGS)
    talk(conversation, [f"/audio '{clip}' {other}", "both?"])
    content = [*user_with_audio(clip)["content"], *user_with_audio(other, "both?")["content"]]
    assert conversation.messages[0]["content"] == content
    assert conversation.messages[1]["content"] == model.chat([{"role": "user", "content": content}], **SETTINGS)


def test_reset_forgets_the_conversation(model: AudioModel, clip: Path, capsys: pytest.CaptureFixture):
    talk(Conversation(model, **SETTINGS), ["the cat", f"/audio '{clip}'", "/reset", "and now?"])
    *_, last = capsys.readouterr().out.splitlines()
    assert last == model.chat([user("and now?")], **SETTINGS)


def test_a_system_message_opens_each_conversation(model: AudioModel):
    conversation = Conversation(model, system="Be short.", **SETTINGS)
    talk(conversation, ["hello", "/reset", "hello"])
    messages = [{"role": "system", "content": "Be short."}, user("hello")]
    assert (
        conversation.messages[-1]
        == assistant(model.chat(messages, **SETTINGS))
        != assistant(model.chat([user("hello")], **SETTINGS))
    )
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant"]


def test_errors_are_reported_without_ending_the_conversation(
    model: AudioModel, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "noise.wav").write_text("no sound")
    errors = {
        "/audio missing.wav": "missing.wav: no such file",
        f"/audio {tmp_path}/noise.wav": "noise.wav: cannot be decoded",
        "/audio": "'/audio': unknown command",
        "/audio 'half": "No closing quotation",
        "/load it": "'/load it': unknown command",
        "/save talk.txt": "'talk.txt': expected the name of a .jsonl file",
        f"/save {tmp_path}/talk.jsonl": "nothing to save",
    }
    talk(Conversation(model, **SETTINGS), [*errors, "hello", "/quit", "not read"])
    out, notes = capsys.readouterr()
    assert out == model.chat([user("hello")], **SETTINGS) + "\n"
    lines = notes.splitlines()
    assert len(lines) == len(errors)
    for line, reason in zip(lines, errors.values(), strict=True):
        assert line.startswith("error: ") and reason in line
    assert not (tmp_path / "talk.jsonl").exists()


def test_help_names_every_command(model: AudioModel, capsys: pytest.CaptureFixture):
    talk(Conversation(model, **SETTINGS), ["/help"])
    out, notes = capsys.readouterr()
    assert not out and all(command in notes for command in ("/audio", "/reset", "/save", "/help", "/quit"))


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_unanswered_message_is_not_part_of_the_conversation(
    model: AudioModel, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, error: BaseException
):
    conversation = Conversation(model, **SETTINGS)
    talk(conversation, ["hello"])
    before = list(conversation.messages)

    def fail(*_: Any, **__: Any) -> str:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(model, "chat", fail)
        talk(conversation, [f"/audio '{clip}'", "what?"])
    assert conversation.messages == before and conversation.attachments == []
    assert "were not added" in (notes := capsys.readouterr().err) or "error: no" in notes
    talk(conversation, ["and now?"])
    assert conversation.messages == [
        *before,
        user("and now?") | {"content": conversation.messages[2]["content"]},
        conversation.messages[3],
    ]


def test_an_empty_answer_is_an_error(model: AudioModel, monkeypatch: pytest.MonkeyPatch):
    conversation = Conversation(model, **SETTINGS)
    monkeypatch.setattr(model, "chat", lambda *_, **__: " ")
    with pytest.raises(ValueError, match="the response is empty"):
        conversation.send("hello", print)
    assert conversation.messages == []


def test_a_saved_conversation_is_a_training_row(model: AudioModel, clip: Path, tmp_path: Path):
    conversation = Conversation(model, **SETTINGS)
    file = tmp_path / "deeper/talks.jsonl"
    talk(conversation, [f"/audio '{clip}'", "what is it?", f"/save {file}", "and now?", f"/save {file}"])
    [manifest] = read_manifests([file])
    assert [(row.problem, row.labels["task"], row.labels["mode"]) for row in manifest.rows] == [
        (None, "chat", "audio_analysis")
    ] * 2
    first_save, second_save = manifest.rows
    assert [len(row.labels["messages"]) for row in (first_save, second_save)] == [2, 4]
    assert (
        first_save.clips[0].path.resolve() == clip.resolve()
        and not Path(first_save.labels["messages"][0]["content"][0]["audio"]).is_absolute()
    )
    assert second_save.labels["text"] == conversation.messages[-1]["content"]
    assert first_save.labels["answered_by"] == "released/model/seed_0"


def test_every_conversation_can_be_saved_as_a_row(model: AudioModel, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Text with an audio mark is refused when it is sent, unless the mark is escaped. An empty system message is saved
    like any other.
    """
    conversation = Conversation(model, system="", **SETTINGS)
    file = tmp_path / "talks.jsonl"
    escaped = r"what is \<audio>, and \<|AUDIO|>?"
    talk(conversation, ["what is <audio>?", "what is <|AUDIO|>?", escaped, "hello", f"/save {file}"])
    literal = "what is <audio>, and <|AUDIO|>?"
    assert message_text(conversation.messages[1]) == literal
    assert capsys.readouterr().err.count("the user's messages have 1 audio mark (<audio>)") == 2
    [manifest] = read_manifests([file])
    [row] = manifest.rows
    texts = [message_text(message) for message in row.labels["messages"] if message["role"] != "assistant"]
    assert row.problem is None and texts == ["", literal, "hello"]


# --- streaming ---


def test_a_character_is_shown_once_its_last_token_has_arrived():
    ids = tokenizer().encode_plain("a猫は寝る 🎵!")
    decoder = StreamingDecoder(tokenizer().decode)
    pieces = [decoder.add(token) for token in ids]
    assert "".join(pieces) == "a猫は寝る 🎵!" and decoder.finish() == ""
    assert len([piece for piece in pieces if piece]) > 3


def test_incomplete_characters_are_shown_at_the_end():
    *ids, _ = tokenizer().encode_plain("a🎵")
    decoder = StreamingDecoder(tokenizer().decode)
    assert "".join(decoder.add(token) for token in ids) == "a"
    assert "a" + decoder.finish() == tokenizer().decode(ids) == "a\ufffd"


# --- a file of dialogues ---


@pytest.fixture
def dialogues(clip: Path, tmp_path: Path) -> Path:
    write_wave(tmp_path / "here.wav", 0.8)
    question = {"role": "user", "content": [{"type": "audio", "audio": "here.wav"}, {"type": "text", "text": "what?"}]}
    rows = [
        {"id": "open", "messages": [question], "kind": "test"},
        {
            "messages": [user("hello"), assistant("hi"), user("and now?"), assistant("the cat")],
            "answer": "of an earlier run",
        },
        {"id": "absent", "messages": [user_with_audio(Path("no.wav"), "what?")]},
        {"id": "swift", "messages": [user("<audio>what?")], "audios": ["here.wav"]},
        {"id": "role", "messages": [{"role": "robot", "content": "hello"}]},
        {"id": "task", "audio": "here.wav", "task": "sec", "text": "dog"},
        {"id": "bytes", "messages": [{"role": "user", "content": [{"type": "audio", "audio": {"bytes": 1}}]}]},
    ]
    return write_manifest(tmp_path / "dialogues.jsonl", rows)


def read_answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_all_dialogues_of_a_file_are_answered(model: AudioModel, dialogues: Path, tmp_path: Path, batch_size: int):
    with dialogues.open("a") as file:
        file.write("\n{broken\n")
    out = tmp_path / "new/answers.jsonl"
    problems = answer_file(model, dialogues, out, batch_size=batch_size, **SETTINGS)
    rows = read_answers(out)
    answer_to_audio = model.chat([user_with_audio(tmp_path / "here.wav", "what?")], **SETTINGS)
    answer_to_dialogue = model.chat([user("hello"), assistant("hi"), user("and now?")], **SETTINGS)
    assert [row.get("answer") for row in rows] == [
        answer_to_audio,
        answer_to_dialogue,
        None,
        answer_to_audio,
        *[None] * 4,
    ]
    assert {name: row["problem"] for name, row in zip(problems, [rows[2], *rows[4:]], strict=True)} == problems
    assert list(problems) == ["absent", "role", "task", "bytes", "dialogues.jsonl:9"]
    for name, reason in {
        "absent": "no.wav: no such file",
        "role": "expected a `role` of",
        "task": "no `messages`",
        "bytes": "expected a path",
        "dialogues.jsonl:9": "Expecting property name",
    }.items():
        assert reason in problems[name]
    assert rows[0]["kind"] == "test" and rows[1]["messages"][-1] == assistant("the cat")
    for row in (rows[0], rows[3]):
        assert row["messages"][0]["content"][0] == {"type": "audio", "audio": "../here.wav"}


def test_escaped_audio_marks_are_text_for_the_model_and_are_escaped_again_in_the_output(model, tmp_path: Path):
    source = write_manifest(tmp_path / "in.jsonl", [{"messages": [user(r"what is \<audio>?")]}])
    files = [source, tmp_path / "out.jsonl", tmp_path / "again.jsonl"]
    for file, out in pairwise(files):
        assert answer_file(model, file, out, batch_size=1, **SETTINGS) == {}
    answer = model.chat([user("what is <audio>?")], **SETTINGS)
    for file in files[1:]:
        [row] = read_answers(file)
        assert row["answer"] == answer and message_text(row["messages"][0]) == r"what is \<audio>?"


def test_a_system_message_is_added_only_to_dialogues_without_one(model: AudioModel, tmp_path: Path):
    own_system = {"role": "system", "content": "Be long."}
    source = write_manifest(
        tmp_path / "in.jsonl", [{"messages": [user("hello")]}, {"messages": [own_system, user("hello")]}]
    )
    assert answer_file(model, source, tmp_path / "out.jsonl", batch_size=2, system="Be short.", **SETTINGS) == {}
    default_system = {"role": "system", "content": "Be short."}
    expected = [model.chat([system, user("hello")], **SETTINGS) for system in (default_system, own_system)]
    assert [row["answer"] for row in read_answers(tmp_path / "out.jsonl")] == expected and len(set(expected)) == 2


def test_rows_are_checked_as_in_training_and_the_problems_have_the_same_wording(model: AudioModel, tmp_path: Path):
    empty, hello = {"role": "assistant", "content": " "}, user("hello")
    clip = {"type": "audio", "audio": "here.wav"}
    dialogues = [
        {"messages": [hello, empty]},
        {"messages": [hello, empty, hello, assistant("hi")]},
        {"messages": [assistant("hi")]},
        {"messages": [hello, assistant("hi"), assistant("hi")]},
        {"messages": [user(" "), assistant("hi")]},
        {"messages": [user("<audio>what?"), assistant("hi")]},
        {"messages": [user("<|AUDIO|>what?"), assistant("hi")]},
        {"messages": [{"role": "user", "content": [clip | {"offset": -1}]}, assistant("hi")]},
        {"messages": [hello, assistant("hi")], "audio": "here.wav"},
        {"messages": [hello, assistant("hi")], "task": "asr"},
        {"messages": [hello, assistant("hi")], "mode": "loud"},
        {"messages": [hello, assistant("hi")], "key": 3},
        {"messages": [hello], "chosen": "hi", "rejected": "hi "},
        {"messages": [{"role": "system", "content": "a"}, hello, assistant("hi")], "system": "b"},
        {"id": "good", "messages": [hello, assistant("hi")]},
        {"id": "good", "messages": [hello, assistant("yo")]},
    ]
    source = write_manifest(tmp_path / "in.jsonl", dialogues)
    problems = answer_file(model, source, tmp_path / "out.jsonl", batch_size=4, **SETTINGS)
    expected = {row.id: row.problem for row in read_manifests([source])[0].rows if row.problem}
    assert problems == expected and len(problems) == 15
    open_ended = [{"messages": row["messages"][:-1]} for row in dialogues[4:6]]
    source = write_manifest(tmp_path / "open.jsonl", open_ended)
    reasons = answer_file(model, source, tmp_path / "answers.jsonl", batch_size=4, **SETTINGS).values()
    assert [*reasons] == [expected[f"in.jsonl:{line}"] for line in (5, 6)]


def test_only_the_given_segment_of_a_file_is_used(model: AudioModel, clip: Path, tmp_path: Path):
    def question(path: Path | str, **segment: float) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "audio", "audio": str(path), **segment}]}]

    wave, _ = soundfile.read(clip)
    soundfile.write(tmp_path / "segment.wav", wave[8000:12800], 16_000)
    expected = model.chat(question(tmp_path / "segment.wav"), **SETTINGS)
    segment = {"offset": 0.5, "duration": 0.3}
    assert model.chat(question(clip, **segment), **SETTINGS) == expected != model.chat(question(clip), **SETTINGS)
    (tmp_path / "here.wav").symlink_to(clip)
    rows = [
        {"id": "r", "messages": question("here.wav", **segment)},
        {"id": "wrong duration", "messages": question("here.wav", duration=9)},
    ]
    problems = answer_file(
        model, write_manifest(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", batch_size=2, **SETTINGS
    )
    answers = read_answers(tmp_path / "out.jsonl")
    assert answers[0]["answer"] == expected and answers[0]["messages"] == question("here.wav", **segment)
    assert "is 1.30 s long, but the manifest states 9.00 s" in problems["wrong duration"]
    with pytest.raises(ValueError, match="for an array: only files have"):
        model.chat([{"role": "user", "content": [{"type": "audio", "audio": wave, **segment}]}])


def test_an_existing_output_or_a_missing_input_is_refused(model: AudioModel, dialogues: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="output=.*dialogues.jsonl already exists"):
        answer_file(model, dialogues, dialogues, batch_size=2)
    with pytest.raises(FileNotFoundError, match="input=.*no.jsonl: no such file"):
        answer_file(model, tmp_path / "no.jsonl", tmp_path / "out.jsonl", batch_size=2)


# --- the command ---


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that calls the command in an empty folder and returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, lines: str = "") -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return cli.main(["chat", *arguments]), *capsys.readouterr()

    return call


def test_a_piped_conversation_prints_only_responses_to_stdout(
    command: Callable[..., Any], model_dir: Path, model: AudioModel, clip: Path
):
    arguments = [f"checkpoint={model_dir}", "generation.max_new_tokens=8"]
    code, out, notes = command(*arguments, lines=f"/audio '{clip}'\nwhat is it?\n")
    assert code == 0 and out == model.chat([user_with_audio(clip, "what is it?")], **SETTINGS) + "\n"
    assert "released/model/seed_0" in notes and "max_new_tokens=8" in notes and "not trained on dialogues" not in notes


def test_the_seed_makes_a_sampled_conversation_reproducible(command: Callable[..., Any], model_dir: Path):
    arguments = [f"checkpoint={model_dir}", "generation.do_sample=true", "generation.max_new_tokens=8"]
    outputs = [command(*arguments, f"seed={seed}", lines="hello\nhello\n")[1] for seed in (1, 1, 2)]
    assert outputs[0] == outputs[1] != outputs[2]
    assert len(set(outputs[0].splitlines())) == 2


def test_the_command_answers_a_file_and_reports_rows_without_a_response(
    command: Callable[..., Any], model_dir: Path, dialogues: Path, tmp_path: Path
):
    code, out, notes = command(
        f"checkpoint={model_dir}", f"input={dialogues}", "output=out.jsonl", "generation.max_new_tokens=4"
    )
    assert (
        code == 0
        and out == ""
        and "rows without a response: 4" in notes
        and "absent: no.wav" in notes.replace(str(tmp_path) + "/", "")
    )
    assert len(read_answers(tmp_path / "out.jsonl")) == 7


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["input=a.jsonl"], "input=a.jsonl without output"),
        (["output=a.jsonl"], "output=a.jsonl without input"),
        (["batch_size=0"], "batch_size=0: expected an integer >= 1"),
        (["generation.top_k=5"], "top_k=5 has no effect without sampling"),
        (["long_audio=never"], "long_audio='never'"),
    ],
)
def test_invalid_settings_are_refused_before_the_conversation(
    command: Callable[..., Any], model_dir: Path, arguments: list[str], reason: str
):
    code, out, notes = command(f"checkpoint={model_dir}", *arguments, lines="hello\n")
    assert code != 0 and notes.splitlines()[-1].startswith("error: ") and reason in notes and out == ""


def test_a_model_not_trained_on_dialogues_causes_a_warning(command: Callable[..., Any], tmp_path: Path):
    published.run(tmp_path / "raw")
    published.run(tmp_path / "tuned", "objective=sft", "prompt=chat_v2", "data.view=chat")
    published.run(tmp_path / "ctc", "experiment=encoder_ctc")
    _, _, notes = command(f"checkpoint={tmp_path}/raw")
    assert "this model was not trained on dialogues" in notes
    _, _, notes = command(f"checkpoint={tmp_path}/tuned")
    assert "this model was not trained on dialogues" not in notes
    code, _, notes = command(f"checkpoint={tmp_path}/ctc")
    assert code == 1 and "does not respond to prompts" in notes
