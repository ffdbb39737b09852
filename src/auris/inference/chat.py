"""`auris chat checkpoint=PATH`: a conversation in the terminal, or answers to the dialogues of a file.

Standard output holds the answers and nothing else, and messages are read from wherever standard input comes from: a
conversation can be piped in and its answers piped on.
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
from auris.data.rows import FieldMap, Record, decode, parse
from auris.errors import MissingFileError, UsageError, UserError
from auris.files import append_jsonl
from auris.inference import load as pretrained
from auris.inference.audio_model import AudioModel, StreamingDecoder, user_message
from auris.text.answer_formats import Labels
from auris.text.chat import Message, map_audios

HELP = """\
/audio FILE ...   attach sound files to the next message
/reset            forget the conversation
/save FILE        add the conversation to FILE.jsonl, as a row
/help             this list
/quit             leave (so does the end of the input)
Any other line is sent, together with the files that wait; an empty line sends them alone (voice chat)."""

_SHOWN = 20  # rows at fault that are named one by one


class Conversation:
    """A dialogue with a model: what was said, and the sound files that go with what is said next.

    Args:
        system: the system message; None: the chat's own.
        control: keep control tokens in the answers.
        settings: fields of `GenerationSettings`, in place of the model's own.
    """

    def __init__(self, model: AudioModel, *, system: str | None = None, control: bool = True, **settings: Any) -> None:
        self.model, self.control, self.settings = model, control, settings
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self.reset()

    def reset(self) -> None:
        self.messages = list(self._opening)
        self.attachments: list[Path] = []

    def attach(self, path: str | Path) -> float:
        """Let a sound file go with the next message; returns its seconds. Raises AudioError if it cannot be used."""
        path = Path(path).expanduser()
        seconds = audio.n_samples(path) / audio.SAMPLE_RATE
        self.attachments.append(path)
        return seconds

    def send(self, text: str, show: Callable[[str], None]) -> str:
        """The answer to the waiting files and a text, shown as it comes.

        An answer that does not come to its end leaves no trace but that the files wait no longer. Raises ValueError if
        there is none, or what is said could be no row, which `save` makes of it.
        """
        asked = [*self.messages, user_message([str(clip) for clip in self.attachments], text)]
        _check({"messages": asked})
        self.attachments = []
        growing = StreamingDecoder(partial(self.model.tokenizer.decode, control=self.control))

        def stream(_: int, token: int) -> None:
            show(growing.add(token))

        answer = self.model.chat(asked, stream=stream, control=self.control, **self.settings)
        show(growing.rest())
        if not answer.strip():
            raise UserError("the answer is empty; it is no part of the conversation, nor is the question")
        self.messages = [*asked, {"role": "assistant", "content": answer}]
        return answer

    def save(self, path: str | Path) -> None:
        """Add the conversation to a JSONL file as a chat row, its audio relative to that file."""
        path = Path(path).expanduser()
        if path.suffix != ".jsonl":
            raise UserError(f"{str(path)!r}: expected the name of a .jsonl file, which a row is added to")
        if self.messages == self._opening:
            raise UserError("there is no conversation to save yet")
        messages = map_audios(lambda clip: os.path.relpath(clip, path.parent), self.messages)
        append_jsonl(path, [{"messages": messages, "answered_by": self.model.name}])


# --- the terminal -------------------------------------------------------------------------------------------------


def talk(conversation: Conversation, lines: Iterable[str]) -> None:
    """Follow commands and answer messages until `/quit` or the last line. Mistakes are told and end nothing."""
    for line in lines:
        line = line.strip()
        try:
            if line == "/quit":
                return
            if line.startswith("/"):
                _follow(conversation, line)
            elif line or conversation.attachments:
                conversation.send(line, _show)
                _show("\n")
        except (ValueError, OSError) as error:
            _note(f"error: {error}")
        except KeyboardInterrupt:
            _note("\nstopped: the question and its answer are forgotten")


def _follow(conversation: Conversation, line: str) -> None:
    command, *names = shlex.split(line)  # names may be quoted, as a terminal writes a file that is dropped on it
    match command, names:
        case "/audio", [_, *_]:
            for name in names:
                seconds = conversation.attach(name)
                _note(f"{name}: {seconds:.1f} s, goes with the next message")
        case "/reset", []:
            conversation.reset()
            _note("the conversation is forgotten")
        case "/save", [name]:
            conversation.save(name)
            _note(f"added to {name}")
        case "/help", []:
            _note(HELP)
        case _:
            raise UserError(f"{line!r} is none of the commands that /help lists")


def read_lines() -> Iterator[str]:
    """What is typed or piped in; a terminal shows where."""
    prompt = ""
    if sys.stdin.isatty():
        prompt = "> "
        with contextlib.suppress(ImportError):  # not on every system
            import readline  # noqa: F401  (lets `input` edit lines and remember them)
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
    """Answer the dialogues of a JSONL file; returns why some of its rows (by id or line) have no answer.

    The new file has every row in its place, in our form, with an `answer` or a `problem` and its audio relative to the
    new file. A row that ends with the assistant is asked what stands before that message.

    Args:
        system: the system message of dialogues that bring none.
        options: of `AudioModel.chat`.
    """
    if not source.is_file():
        raise MissingFileError(f"input={source}: no such file, expected one of chat rows (JSONL)")
    if out.exists():
        raise UserError(f"output={out} is there already: expected the name of a new file")
    rows = list(_read_rows(source).items())
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        usable = [row for _, row in batch if "problem" not in row]
        answers = _answer(model, [_question(row["messages"], system) for row in usable], **options)
        for row, answer in zip(usable, answers, strict=True):
            row["messages"] = map_audios(lambda clip: os.path.relpath(clip, out.parent), row["messages"])
            row["problem" if isinstance(answer, ValueError) else "answer"] = str(answer)
        append_jsonl(out, [row for _, row in batch])
        _note(f"{start + len(batch)} of {len(rows)} rows")
    return {name: row["problem"] for name, row in rows if "problem" in row}


def _read_rows(source: Path) -> dict[str, dict[str, Any]]:
    """Return the fields of each row by its id, or by its line if an earlier row has the same id."""
    rows = {}
    # Not `splitlines`: an answer may hold line ends of Unicode's own.
    for number, line in enumerate(source.read_bytes().split(b"\n"), start=1):
        if line.strip():
            record = parse(line, f"{source.name}:{number}", FieldMap())
            name = record.id
            if name in rows:
                name, record = record.name, record._replace(problem=f"id {name!r} is used by an earlier row")
            rows[name] = _read_fields(record, source.parent)
    return rows


def _read_fields(record: Record, folder: Path) -> dict[str, Any]:
    """Return a row's fields, its audio where it is found from here; of an unusable row what is left of it, and the
    `problem`."""
    given = record.fields or {}
    fields = {key: value for key, value in given.items() if key not in ("answer", "problem")}  # of an earlier run
    try:
        if record.problem:
            raise UserError(record.problem)
        fields = convert(fields)
        if "messages" not in fields:
            raise UserError("the row has no `messages`")
        _check(fields)
        return fields | {"messages": map_audios(lambda clip: str(folder / clip), fields["messages"])}
    except ValueError as error:
        return fields | {"problem": str(error)}


def _check(fields: Labels) -> None:
    """Raise ValueError for a dialogue that could not be trained on; an open question, once it is answered."""
    messages = fields["messages"]
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, Mapping) and last.get("role") == "user" and fields.keys().isdisjoint({"chosen", "rejected"}):
        fields = {**fields, "messages": [*messages, {"role": "assistant", "content": "-"}]}
    if problem := decode(Record("", fields), Path()).problem:
        raise UserError(problem)


def _question(messages: Sequence[Message], system: str | None) -> list[Message]:
    asked = list(messages[:-1] if messages[-1]["role"] == "assistant" else messages)
    brings = bool(asked) and asked[0]["role"] == "system"
    return asked if brings or system is None else [{"role": "system", "content": system}, *asked]


def _answer(model: AudioModel, dialogues: Sequence[Sequence[Message]], **options: Any) -> list[str | ValueError]:
    """Return the answer to each dialogue, or why there is none; if a batch fails, each is answered alone."""
    try:
        return model.chat(dialogues, **options) if dialogues else []
    except ValueError as error:
        if len(dialogues) == 1:
            return [error]
    return [answer for dialogue in dialogues for answer in _answer(model, [dialogue], **options)]


# --- the command --------------------------------------------------------------------------------------------------


def run(made: Config) -> None:
    """Run `auris chat`: talk, or write answers to the dialogues of `input` to `output`."""
    if (made["input"] is None) != (made["output"] is None):
        given, other = ("input", "output") if made["output"] is None else ("output", "input")
        raise UsageError(f"{given}={made[given]} without {other}: expected {other}=FILE.jsonl too, or neither to talk")
    if not isinstance(made["batch_size"], int) or made["batch_size"] < 1:
        raise UsageError(f"batch_size={made['batch_size']}: expected 1 or more")
    options = {"which": made["which"], "device": made["accelerator"], "long_audio": made["long_audio"]}
    model = pretrained.load(made["checkpoint"], **options)
    model.check_answers()
    settings = made["generation"] | {"control": made["control"]}
    _note(f"{model.name}, answers by {model.settings(chat=True, **made['generation'])}")
    if not model.is_chat:
        _note("it was not trained on dialogues: do not expect it to keep to one")
    if made["seed"] is not None:
        torch.manual_seed(made["seed"])
    if made["input"] is None:
        _note("/help lists the commands")
        talk(Conversation(model, system=made["system"], **settings), read_lines())
        return
    source, out = Path(made["input"]), Path(made["output"])
    problems = answer_file(model, source, out, batch_size=made["batch_size"], system=made["system"], **settings)
    _note(f"wrote {out}")
    if problems:
        _note(f"{len(problems)} rows have no answer:")
        for name, reason in list(problems.items())[:_SHOWN]:
            _note(f"  {name}: {reason}")
