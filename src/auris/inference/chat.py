"""`auris chat checkpoint=PATH`: a conversation in the terminal, or responses to the dialogues of a file.

Messages are read from standard input and only responses are written to standard output, so both can be pipes.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from auris import audio
from auris.config import Config
from auris.data.importers import convert
from auris.data.row_files import iterate_rows
from auris.data.rows import FieldMap, Record, decode_record, parse_line
from auris.errors import MissingFileError, UsageError, UserError, shorten
from auris.files import append_jsonl, read_jsonl
from auris.inference import load as pretrained
from auris.inference.audio_model import AudioModel, StreamingDecoder, user_message
from auris.text.answer_formats import Labels
from auris.text.audio_marks import split_at_marks
from auris.text.chat import Message, escape_audio_marks, map_audios

HELP = """\
/audio FILE ...   attach audio files to the next message
/reset            start a new conversation
/save FILE.jsonl  append the conversation to this file as a row
/help             show this list
/quit             quit (as does the end of the input)
Any other line is sent as a message with the attached files. An empty line sends only the files (voice chat)."""

_MAX_SHOWN = 20  # maximum number of failed rows that are listed


class Conversation:
    """A dialogue with a model: the messages so far, and audio files that are attached to the next message.

    Args:
        model: the model.
        system: the system message; None: the default system message of the model's dialogues.
        keep_control_tokens: keep control tokens in the responses.
        settings: fields of `GenerationSettings` that replace the model's own settings.
    """

    def __init__(
        self, model: AudioModel, *, system: str | None = None, keep_control_tokens: bool = True, **settings: Any
    ) -> None:
        self.model, self.keep_control_tokens, self.settings = model, keep_control_tokens, settings
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self.reset()

    def reset(self) -> None:
        """Start a new conversation."""
        self.messages = list(self._opening)
        self.attachments: list[Path] = []

    def attach(self, path: str | Path) -> float:
        """Attach an audio file to the next message and return its duration in seconds.

        Raises:
            AudioError: the file cannot be used.
        """
        path = Path(path).expanduser()
        seconds = audio.n_samples(path) / audio.SAMPLE_RATE
        self.attachments.append(path)
        return seconds

    def send(self, text: str, show: Callable[[str], None]) -> str:
        """Send a text with the attached files, and return the response.

        If the response is interrupted, the conversation does not change, but the files are no longer attached.

        Args:
            text: the message; empty for voice chat. As in a row, a backslash before an audio mark such as `<audio>`
                makes it ordinary text.
            show: called with each piece of the response as soon as it is known.

        Raises:
            UserError: the response is empty, or the conversation would not be a valid row when it is saved.
        """
        clips = [str(path) for path in self.attachments]
        _check_dialogue({"messages": [*escape_audio_marks(self.messages), user_message(clips, text)]})
        unescaped_text = "".join(piece for _, piece in split_at_marks(text))
        messages = [*self.messages, user_message(clips, unescaped_text)]
        self.attachments = []
        decoder = StreamingDecoder(partial(self.model.tokenizer.decode, keep_control_tokens=self.keep_control_tokens))

        def stream(_: int, token: int) -> None:
            show(decoder.add(token))

        response = self.model.chat(
            messages, stream=stream, keep_control_tokens=self.keep_control_tokens, **self.settings
        )
        assert isinstance(response, str)  # `chat` returns a list only for several dialogues
        show(decoder.finish())
        if not response.strip():
            raise UserError("the response is empty: your message and the response were not added to the conversation")
        self.messages = [*messages, {"role": "assistant", "content": response}]
        return response

    def save(self, path: str | Path) -> None:
        """Append the conversation to a JSONL file as a row, with audio paths relative to the folder of the file."""
        path = Path(path).expanduser()
        if path.suffix != ".jsonl":
            raise UserError(f"{str(path)!r}: expected the name of a .jsonl file")
        if self.messages == self._opening:
            raise UserError("the conversation is empty, there is nothing to save")
        messages = map_audios(lambda clip: os.path.relpath(clip, path.parent), self.messages)
        append_jsonl(path, [{"messages": escape_audio_marks(messages), "answered_by": self.model.name}])


# --- the terminal -------------------------------------------------------------------------------------------------


def talk(conversation: Conversation, lines: Iterable[str]) -> None:
    """Execute commands and respond to messages until `/quit` or the last line.

    Errors are printed and do not end the conversation.

    Args:
        conversation: the conversation.
        lines: the user's input.
    """
    for line in lines:
        line = line.strip()
        try:
            if line == "/quit":
                return
            if line.startswith("/"):
                _execute(conversation, line)
            elif line or conversation.attachments:
                conversation.send(line, _show)
                _show("\n")
        except (ValueError, OSError) as error:
            _note(f"error: {error}")
        except KeyboardInterrupt:
            _note("\nstopped: your message and the response were not added to the conversation")


def _execute(conversation: Conversation, line: str) -> None:
    # `shlex`, because a terminal quotes the path of a file that the user drops on it.
    command, *arguments = shlex.split(line)
    match command, arguments:
        case "/audio", [_, *_]:
            for path in arguments:
                seconds = conversation.attach(path)
                _note(f"attached {path} ({seconds:.1f} s) to the next message")
        case "/reset", []:
            conversation.reset()
            _note("started a new conversation")
        case "/save", [path]:
            conversation.save(path)
            _note(f"appended the conversation to {path}")
        case "/help", []:
            _note(HELP)
        case _:
            raise UserError(f"{shorten(line)}: unknown command or wrong arguments (/help lists the commands)")


def read_lines() -> Iterator[str]:
    """Yield the lines of standard input, with a prompt if it is a terminal."""
    prompt = ""
    if sys.stdin.isatty():
        prompt = "> "
        with contextlib.suppress(ImportError):  # some systems do not have it
            import readline  # noqa: F401  (adds line editing and a history to `input`)
    while True:
        try:
            yield input(prompt)
        except (EOFError, KeyboardInterrupt):
            return


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- files --------------------------------------------------------------------------------------------------------


def answer_file(
    model: AudioModel, source: Path, out: Path, *, batch_size: int, system: str | None = None, **options: Any
) -> dict[str, str]:
    """Respond to the dialogues in a JSONL file.

    The new file has the same rows in the same order, in the format of auris, each with an `answer` or a `problem`, and
    with audio paths relative to the folder of the new file. If the last message of a row is from the assistant, the
    model does not see this message and responds to the messages before it.

    Args:
        model: the model.
        source: the JSONL file.
        out: the new file.
        batch_size: number of rows that are processed together.
        system: system message for dialogues without a system message.
        options: options of `AudioModel.chat`.

    Returns:
        The problem of each row without a response, by the row's id, or by its place in the file
        (`FILE:LINE`) if an earlier row has the same id.
    """
    if not source.is_file():
        raise MissingFileError(f"input={source}: no such file, expected a JSONL file of chat rows")
    if out.exists():
        raise UserError(f"output={out} already exists: expected the name of a new file")
    rows = list(_read_rows(source).items())
    if not rows:
        raise UserError(f"input={source}: the file has no rows")
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        usable = [row for _, row in batch if "problem" not in row]
        responses = _respond(model, [_prompt_messages(row["messages"], system) for row in usable], **options)
        for row, response in zip(usable, responses, strict=True):
            messages = map_audios(lambda clip: os.path.relpath(clip, out.parent), row["messages"])
            row["messages"] = escape_audio_marks(messages)
            row["problem" if isinstance(response, ValueError) else "answer"] = str(response)
        append_jsonl(out, [row for _, row in batch])
        _note(f"rows processed: {start + len(batch)} of {len(rows)}")
    return {key: row["problem"] for key, row in rows if "problem" in row}


def _read_rows(source: Path) -> dict[str, dict[str, Any]]:
    """Return the fields of each row by its id, or by its place (`FILE:LINE`) if an earlier row has the same id."""
    rows = {}
    for number, line in iterate_rows(source):
        record = parse_line(line, f"{source.name}:{number}", FieldMap())
        key = record.id
        if key in rows:
            key, record = record.name, record._replace(problem=f"id {shorten(key)} is used by an earlier row")
        rows[key] = _read_fields(record, source.parent)
    return rows


def _read_fields(record: Record, folder: Path) -> dict[str, Any]:
    """Return a row's fields with audio paths relative to the working directory, or with its `problem`."""
    # An earlier call of `answer_file` may have added `answer` and `problem`, which are left out.
    fields = {key: value for key, value in (record.fields or {}).items() if key not in ("answer", "problem")}
    try:
        if record.problem:
            raise UserError(record.problem)
        converted = dict(convert(fields))
        if "messages" not in converted:
            raise UserError("the row has no `messages`")
        _check_dialogue(converted | {"messages": escape_audio_marks(converted["messages"])})
        return converted | {"messages": map_audios(lambda clip: str(folder / clip), converted["messages"])}
    except ValueError as error:
        return fields | {"problem": str(error)}


def _check_dialogue(fields: Labels) -> None:
    """Raise UserError for a dialogue that would not be a valid row once the user's last message has a response."""
    messages = fields["messages"]
    last = messages[-1] if isinstance(messages, list) and messages else None
    # A preference already has two responses to its last message, `chosen` and `rejected`.
    if isinstance(last, Mapping) and last.get("role") == "user" and fields.keys().isdisjoint({"chosen", "rejected"}):
        fields = {**fields, "messages": [*messages, {"role": "assistant", "content": "-"}]}
    if problem := decode_record(Record("", fields), Path()).problem:
        raise UserError(problem)


def _prompt_messages(messages: Sequence[Message], system: str | None) -> list[Message]:
    """Return the messages to which the model responds. If they have no system message, `system` is added."""
    prompt = list(messages[:-1] if messages[-1]["role"] == "assistant" else messages)
    has_system = bool(prompt) and prompt[0]["role"] == "system"
    return prompt if has_system or system is None else [{"role": "system", "content": system}, *prompt]


def _respond(model: AudioModel, dialogues: Sequence[Sequence[Message]], **options: Any) -> list[str | ValueError]:
    """Return the response to each dialogue, or its error. If a batch fails, its dialogues are processed one by one."""
    try:
        return list(model.chat(dialogues, **options)) if dialogues else []
    except ValueError as error:
        if len(dialogues) == 1:
            return [error]
    return [response for dialogue in dialogues for response in _respond(model, [dialogue], **options)]


# --- the command --------------------------------------------------------------------------------------------------


def run(config: Config) -> None:
    """Run `auris chat`: hold a conversation, or respond to the dialogues in `input` and write them to `output`."""
    if (config["input"] is None) != (config["output"] is None):
        key, missing = ("input", "output") if config["output"] is None else ("output", "input")
        raise UsageError(
            f"{key}={config[key]} without {missing}: add {missing}=FILE.jsonl, or remove {key} for a conversation"
        )
    options = {"which": config["which"], "device": config["accelerator"], "long_audio": config["long_audio"]}
    model = pretrained.load(config["checkpoint"], **options)
    model.check_can_respond()
    settings = config["generation"] | {"keep_control_tokens": config["control"]}
    _note(f"{model.name}, {model.settings(chat=True, **config['generation'])}")
    if not model.is_chat:
        _note("warning: this model was not trained on dialogues")
    if config["seed"] is not None:
        torch.manual_seed(config["seed"])
    if config["input"] is None:
        _note("/help lists the commands")
        talk(Conversation(model, system=config["system"], **settings), read_lines())
        return
    source, out = Path(config["input"]), Path(config["output"])
    problems = answer_file(model, source, out, batch_size=config["batch_size"], system=config["system"], **settings)
    _note(f"wrote {out}")
    if problems:
        _note(f"rows without a response: {len(problems)}")
        for row_key, problem in list(problems.items())[:_MAX_SHOWN]:
            _note(f"  {row_key}: {problem}")
    if len(problems) == len(read_jsonl(out)):
        raise UserError(f"input={source}: no row has a response")
