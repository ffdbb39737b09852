"""Rows: what a user's data says about one piece of work, from the fields that a file holds to what the rest reads.

A row is a task row, or with `messages` a dialogue; forms of other projects are read as one of the two (`importers`).

A row that cannot be used keeps its place, with the reason in `problem`: the plan of all other rows stays what it would
be without the fault, and the row is counted and named, never dropped silently.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from auris import audio
from auris.audio import Sound
from auris.data import importers
from auris.data.importers import Fields
from auris.errors import UserError
from auris.metrics.measures import for_language
from auris.text import chat, tasks
from auris.text.answer_formats import Labels

_NOT_LABELS = {"audio", "offset", "duration", "id"}
_PAIR = {"chosen", "rejected", "rejected_response", "rejected_messages"}  # any of them makes a dialogue a preference
_DIALOGUE = {"messages", "conversations", *_PAIR}
_NOT_PLAIN = _DIALOGUE | {"gt", "answer_gt"}

EQUAL_ANSWERS = "`chosen` and `rejected` are equal"  # how the problem of a pair begins that is none

# Of `offset` and `duration`: eleven days. What is longer is a wrong unit, and would be windows without number.
MAX_SECONDS = 1e6


@dataclass(frozen=True)
class Clip:
    """A sound file, or with `offset` the stretch of `duration` seconds (None: to the end) from there.

    Without `offset` the file is read whole and `duration` only states its length, as manifests round it. In a shard,
    the file is a `Sound` instead of a path.
    """

    path: Path | Sound
    offset: float | None = None
    duration: float | None = None

    @property
    def segment(self) -> tuple[float, float | None]:
        """Offset and duration of what is read, in seconds."""
        return (0.0, None) if self.offset is None else (self.offset, self.duration)

    def read(self) -> np.ndarray:
        """Return the clip as (L,) float32 at 16 kHz. Raises AudioError."""
        return audio.read(self.path, *self.segment)

    def n_samples(self) -> int:
        """Return L without decoding, from the file's header (`audio.n_samples`). Raises AudioError."""
        return audio.n_samples(self.path, *self.segment)


@dataclass(frozen=True)
class Row:
    """One row of a manifest: paths are relative to the manifest, labels as their task needs them.

    Of a dialogue, labels hold `task` (chat, or preference if there are `chosen` and `rejected`), `messages`, `mode` (a
    key of tasks.MODES) and `text`, the answer that its last question asks for; a preference also `chosen` and
    `rejected`, two such answers, and its messages end with the user's. The k-th clip is the k-th audio of the messages.
    """

    id: str
    clips: tuple[Clip, ...] = ()
    labels: Labels = field(default_factory=dict)
    problem: str | None = None


class TransientProblem(str):
    """A row's problem that may be gone the next time: its file could not be read."""


class Record(NamedTuple):
    """A row as its file holds it."""

    name: str  # where it stands; the id of a row that brings none
    fields: Fields | None  # None where they cannot be read
    problem: str | None = None  # why it cannot be used, as far as its file tells
    sounds: tuple[Sound, ...] = ()  # the files that the fields' audio stands for, where they lie beside the fields
    is_cut: bool = False  # a sound of a clip with an `offset` is that stretch alone

    @property
    def id(self) -> str:
        given = None if self.fields is None else self.fields.get("id")
        return self.name if given is None else str(given)


@dataclass(frozen=True)
class FieldMap:
    """What the fields of somebody else's rows are called here, and labels that all of them have.

    Args:
        columns: {ours: theirs}, as {text: sentence}.
        labels: as {task: asr, language: en}.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Labels = field(default_factory=dict)

    def apply(self, fields: Fields) -> Fields:
        if not self.columns and not self.labels:
            return fields
        theirs = set(self.columns.values())
        kept = {key: value for key, value in fields.items() if key not in theirs}
        renamed = {ours: fields[name] for ours, name in self.columns.items() if name in fields}
        return {**kept, **renamed, **self.labels}


def parse(line: bytes, name: str, form: FieldMap) -> Record:
    """A line of JSON as a record."""
    try:
        fields = json.loads(line.decode())
        if b"\\u" in line:  # escapes may spell half a character, which is no text: it can be neither hashed nor written
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeError as error:
        return Record(name, None, f"not UTF-8: {error}")
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of thousands of digits
        return Record(name, None, f"not JSON: {error}")
    if not isinstance(fields, dict):
        return Record(name, None, f"a row is a JSON object, got {type(fields).__name__}")
    return Record(name, form.apply(fields))


def is_task_row(fields: Fields) -> bool:
    """Whether a task row of our own form: its task and its id stand in its fields."""
    return _NOT_PLAIN.isdisjoint(fields)


def decode(record: Record, folder: Path) -> Row:
    """A record as a row, its paths relative to `folder`; whatever is wrong with it is its problem."""
    fields = record.fields or {}
    labels = {key: value for key, value in fields.items() if key not in _NOT_LABELS}
    if not fields.keys().isdisjoint(_DIALOGUE):
        labels["task"] = "preference" if fields.keys() & _PAIR else "chat"  # also of a row that cannot be used
    if record.problem:
        return Row(record.id, (), labels, record.problem)
    try:
        fields = importers.convert(fields)
        row = (_chat_row if "messages" in fields else _task_row)(fields, record.id, folder)
        return row if row.problem or not record.sounds else _with_sounds(row, record)
    except ValueError as error:
        return Row(record.id, (), labels, str(error))


def _with_sounds(row: Row, record: Record) -> Row:
    if len(row.clips) != len(record.sounds):
        raise UserError(f"the row has {len(row.clips)} clips, and {len(record.sounds)} sound files lie beside it")
    clips = (
        replace(clip, path=sound, offset=0.0 if record.is_cut and clip.offset is not None else clip.offset)
        for clip, sound in zip(row.clips, record.sounds, strict=True)
    )
    return replace(row, clips=tuple(clips))


def _task_row(fields: Fields, identity: str, folder: Path) -> Row:
    labels = {key: value for key, value in fields.items() if key not in _NOT_LABELS}
    paths = fields.get("audio", [])
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"`audio` is {fields['audio']!r}, expected a path or a list of paths")
    stretch = parse_segment(fields)
    if stretch and len(paths) > 1:
        raise UserError("`offset` and `duration` describe one clip, the row has several")
    clips = tuple(Clip(folder / path, **stretch) for path in paths)
    if labels.get("task") in ("chat", "preference"):
        raise UserError(f"task {labels['task']!r} needs `messages`")
    problem = tasks.check(labels)
    if problem is None and not clips and labels["task"] != "text":
        problem = f"task {labels['task']!r} needs `audio`"
    return Row(identity, clips, labels, problem)


def parse_segment(fields: Fields) -> dict[str, float]:
    """`offset` and `duration` of a clip, as far as they are given. Raises ValueError for anything else."""
    stretch = {what: fields[what] for what in ("offset", "duration") if fields.get(what) is not None}
    for what, value in stretch.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= MAX_SECONDS:
            raise UserError(f"`{what}` is {value!r:.80}, expected seconds from 0 to {MAX_SECONDS:.0f}")
    return stretch


# --- what follows from a row --------------------------------------------------------------------------------------


def row_key(text: str) -> int:
    """Return 64 bits that stand for a row's id; two of 10^8 ids collide with a probability of 1 in 3700."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def row_seed(seed: int, epoch: int, row_id: str) -> int:
    """Return the seed (63 bits) of everything random about one row in one epoch, the same on every machine."""
    return row_key(f"{seed}\x00{epoch}\x00{row_id}") >> 1


def group(row: Row) -> str:
    """Return the line of a results table that a row belongs to, as `asr en` or `s2tt de-en`."""
    return tasks.group(row.labels)


def is_scored(row: Row) -> bool:
    """Whether a row has an answer to be scored. Plain text and preferences have none, nor have unusable rows."""
    return not row.problem and bool(tasks.find(row.labels["task"]).metric)


def language(row: Row) -> str:
    """Return the language that a row's answer is written in."""
    return row.labels.get("target_language") or row.labels.get("language") or "en"


def metric(row: Row) -> str:
    """Return the metric of a row's task in the row's language."""
    return for_language(tasks.find(row.labels["task"]).metric, language(row))


# --- dialogues ----------------------------------------------------------------------------------------------------


def _chat_row(fields: Fields, identity: str, folder: Path) -> Row:
    """A dialogue as a row. Raises ValueError saying why it cannot be used."""
    is_pair = "chosen" in fields or "rejected" in fields
    task = "preference" if is_pair else "chat"
    if fields.get("task", task) != task:
        raise UserError(f"`task` is {fields['task']!r}, but a row with `messages` is of task {task!r}")
    if "audio" in fields:
        raise UserError("`audio` beside `messages`: the audio of a dialogue stands in its messages")
    messages = fields["messages"]  # a list: `importers.convert` has looked
    clips = tuple(_clip(part, folder) for part in audio_parts(messages))
    if is_pair:
        asked = messages
        answers = {side: _reply(side, fields.get(side)) for side in ("chosen", "rejected")}
        if are_equal(answers["chosen"], answers["rejected"]):
            raise UserError(f"{EQUAL_ANSWERS}: {answers['chosen']!r:.80}")
        answers["text"] = answers["chosen"]
    else:
        *asked, answer = messages
        if answer["role"] != "assistant":
            raise UserError(f"the last message is the {answer['role']}'s, expected the assistant's answer")
        answers = {"text": _text(answer, f"messages[{len(asked)}], of the assistant,")}
    _check_order(asked)
    labels = {key: value for key, value in fields.items() if key != "id"}
    labels |= {"task": task, "mode": fields.get("mode") or _mode(asked), **answers}
    if not isinstance(labels.get("skill", ""), str):
        raise UserError(f"`skill` is {labels['skill']!r:.80}, expected what the last question asks for, such as asr")
    if "key" in labels and (not isinstance(labels["key"], str) or not any(map(str.isalnum, labels["key"]))):
        raise UserError(f"`key` is {labels['key']!r:.80}, expected what a right answer contains")
    return Row(identity, clips, labels, tasks.check(labels))


def audio_parts(messages: Sequence[chat.Message]) -> list[Fields]:
    """The parts of the messages that are audio, in their order. Raises ValueError for messages of no known shape."""
    chat.audios(messages)
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return [part for part in parts if "audio" in part or "audio_url" in part]


def _clip(part: Fields, folder: Path) -> Clip:
    path = part.get("audio", part.get("audio_url"))
    if not isinstance(path, str) or not path:
        raise UserError(f"the audio of a message is {path!r:.80}, expected a path")
    return Clip(folder / path, **parse_segment(part))


def _check_order(asked: Sequence[chat.Message]) -> None:
    """That a dialogue up to its answer asks something, and says something in each turn. The system's message may be
    empty, instead of the default one."""
    if not asked or asked[-1]["role"] != "user":
        before = f"the {asked[-1]['role']}'s" if asked else "nothing"
        raise UserError(f"before the answer stands {before}, expected the user's message")
    for number, message in enumerate(asked):
        if message["role"] != "system" and not audio_parts([message]):
            _text(message, f"messages[{number}], of the {message['role']},")


def are_equal(answer: str, other: str) -> bool:
    """Whether two answers are one to a tokenizer, which composes characters, but for the space around them."""
    first, second = (unicodedata.normalize("NFC", text).strip() for text in (answer, other))
    return first == second


def _text(message: chat.Message, name: str) -> str:
    text = chat.text_of(message)
    if not text.strip():
        raise UserError(f"{name} is empty")
    return text


def _reply(side: str, given: Any) -> str:
    """One side of a preference, a string or a message of the assistant's, as its text."""
    given = [given] if isinstance(given, Mapping) else given
    messages = [{"role": "assistant", "content": given}] if isinstance(given, str) else given
    if not isinstance(messages, list) or len(messages) != 1 or audio_parts(messages):
        raise UserError(f"`{side}` is {given!r:.80}, expected a string or one message of the assistant")
    if messages[0]["role"] != "assistant":
        raise UserError(f"`{side}` is the {messages[0]['role']}'s, expected the assistant's")
    return _text(messages[0], f"`{side}`")


def _mode(asked: Sequence[chat.Message]) -> str:
    """How the user speaks: by voice where the last message is only audio, in text where the dialogue has none."""
    if not audio_parts(asked):
        return "text"
    return "audio_analysis" if chat.text_of(asked[-1]).strip() else "voice_chat"
