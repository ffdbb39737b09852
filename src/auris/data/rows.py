"""Rows. A row is one training or evaluation example, decoded from the fields of a manifest line.

A row is either a task row or, if it has `messages`, a dialogue. `importers` converts rows in the formats of other
projects to one of these two kinds.

A row that cannot be used keeps its position, with the reason in `problem`. It is counted and reported, never dropped
silently, and the other rows keep their positions in the training plan (`data.plan`).
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from auris import audio
from auris.audio import Sound
from auris.data import importers
from auris.data.importers import Fields
from auris.errors import UserError, shorten
from auris.metrics.measures import metric_in_language
from auris.text import chat, tasks
from auris.text.answer_formats import Labels

_NOT_LABELS = {"audio", "offset", "duration", "id"}
EQUAL_ANSWERS = "`chosen` and `rejected` are equal"  # the problem of a preference with equal answers starts with this

_URL = re.compile(r"(^|/)((https?|s3|gs|hf|ftp|file):/|data:audio)")  # in a path, where `://` has become `:/`

# Upper limit of `offset` and `duration`, about eleven days. A larger value is probably not in seconds, and its clip
# would be split into an unbounded number of windows.
MAX_SECONDS = 1e6


@dataclass(frozen=True)
class Clip:
    """An audio file or a segment of it.

    If `offset` is set, the clip is the segment that starts there and is `duration` seconds long (None: to the end of
    the file). Without `offset` the clip is the whole file, and `duration` only states its rounded length.

    Attributes:
        path: The file; a `Sound` if it is stored in a shard.
        offset: Start of the segment in seconds.
        duration: Length in seconds.
    """

    path: Path | Sound
    offset: float | None = None
    duration: float | None = None

    @property
    def segment(self) -> tuple[float, float | None]:
        """Offset and duration of the segment that is read, in seconds."""
        return (0.0, None) if self.offset is None else (self.offset, self.duration)

    def read(self) -> np.ndarray:
        """Return the clip as (L,) float32 at 16 kHz.

        Raises:
            AudioError: The clip cannot be read.
        """
        return audio.read(self.path, *self.segment)

    def n_samples(self) -> int:
        """Return the number of samples L from the file's header, without decoding (`audio.n_samples`).

        Raises:
            AudioError: The header cannot be read.
        """
        return audio.n_samples(self.path, *self.segment)


@dataclass(frozen=True)
class Row:
    """One row of a manifest.

    Attributes:
        id: Unique name.
        clips: Audio in the order in which the prompt refers to it; for a dialogue, the audio of its messages.
        labels: For a task row, all its fields except the audio; the labels that the task needs are among them. For a
            dialogue: `task` (chat, or preference if the row has `chosen` and `rejected`), `messages`, `mode` (a key of
            `tasks.MODES`) and `text`, the answer to the last question. A preference also has `chosen` and `rejected`,
            which are two answers to its last message.
        problem: Why the row cannot be used, or None.
    """

    id: str
    clips: tuple[Clip, ...] = ()
    labels: Labels = field(default_factory=dict)
    problem: str | None = None


class TransientProblem(str):
    """Problem of a row whose file could not be read. The next attempt to read it may succeed."""


class Record(NamedTuple):
    """A row as stored in its file, before it is decoded.

    Attributes:
        name: Position in the file, which is used as the id if the row has no id.
        fields: Fields of the row; None if they cannot be read.
        problem: Why the row cannot be used, if that is known before decoding.
        sounds: The audio of each clip of the row, if it is stored with the fields; None for a clip that is read from
            its path.
        is_cut: Whether the stored audio of a clip with `offset` consists only of the segment.
    """

    name: str
    fields: Fields | None
    problem: str | None = None
    sounds: tuple[Sound | None, ...] = ()
    is_cut: bool = False

    @property
    def id(self) -> str:
        """The row's `id` field, or its name if it has no such field."""
        row_id = None if self.fields is None else self.fields.get("id")
        return self.name if row_id is None else str(row_id)


@dataclass(frozen=True)
class FieldMap:
    """Mapping from the fields of a foreign file to auris fields.

    Attributes:
        columns: {auris field: field in the file}, such as {text: sentence}.
        labels: Labels that are added to every row, such as {task: asr, language: en}.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Labels = field(default_factory=dict)

    def apply(self, fields: Fields) -> Fields:
        """Return the fields renamed, with the labels added."""
        if not self.columns and not self.labels:
            return fields
        mapped = set(self.columns.values())
        unchanged = {key: value for key, value in fields.items() if key not in mapped}
        renamed = {target: fields[source] for target, source in self.columns.items() if source in fields}
        return {**unchanged, **renamed, **self.labels}


def parse_line(line: bytes, name: str, field_map: FieldMap) -> Record:
    """Parse a line of JSON. A fault becomes the record's problem."""
    try:
        fields = json.loads(line.removeprefix(BOM_UTF8).decode())
        if b"\\u" in line:  # an escaped lone surrogate can be neither hashed nor written
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeError as error:
        return Record(name, None, f"not UTF-8: {error}")
    except (ValueError, RecursionError) as error:  # ValueError: also for an integer of thousands of digits
        return Record(name, None, f"not JSON: {error}")
    if not isinstance(fields, dict):
        return Record(name, None, f"expected a JSON object, got {type(fields).__name__}")
    return Record(name, field_map.apply(fields))


def decode_record(record: Record, folder: Path) -> Row:
    """Decode a record, with paths relative to `folder`. A fault becomes the row's problem."""
    fields = record.fields or {}
    labels = {key: value for key, value in fields.items() if key not in _NOT_LABELS}
    if task := importers.dialogue_task(fields):
        labels["task"] = task  # set here, because unusable rows are counted by task too
    if record.problem:
        return Row(record.id, (), labels, record.problem)
    try:
        fields = importers.convert(fields)
        row = (_chat_row if "messages" in fields else _task_row)(fields, record.id, folder)
        row = row if row.problem or not record.sounds else _with_sounds(row, record)
        url = None if row.problem else _find_url(row.clips)
        return row if url is None else replace(row, problem=f"its audio is at the URL {shorten(url)}, expected a file")
    except ValueError as error:
        return Row(record.id, (), labels, str(error))


def _find_url(clips: Sequence[Clip]) -> str | None:
    """Return the first path that is a URL, unless the audio is stored with the row."""
    paths = (str(clip.path) for clip in clips if isinstance(clip.path, Path))
    return next((path for path in paths if _URL.search(path)), None)


def _with_sounds(row: Row, record: Record) -> Row:
    if len(row.clips) != len(record.sounds):
        raise UserError(
            f"clips in the row: {len(row.clips)}, audio files stored with it: {len(record.sounds)}; expected equal "
            "numbers"
        )

    def store(clip: Clip, sound: Sound | None) -> Clip:
        offset = 0.0 if record.is_cut and clip.offset is not None else clip.offset
        return clip if sound is None else replace(clip, path=sound, offset=offset)

    return replace(row, clips=tuple(map(store, row.clips, record.sounds)))


def _task_row(fields: Fields, row_id: str, folder: Path) -> Row:
    labels = {key: value for key, value in fields.items() if key not in _NOT_LABELS}
    paths = fields.get("audio", [])
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"`audio` is {shorten(fields['audio'])}, expected a path or a list of paths")
    segment = parse_segment(fields)
    if segment and len(paths) > 1:
        raise UserError("`offset` and `duration` describe one clip, but the row has several clips")
    clips = tuple(Clip(folder / path, **segment) for path in paths)
    if labels.get("task") in ("chat", "preference"):
        raise UserError(f"task {labels['task']!r} needs `messages`")
    problem = tasks.find_problem(labels)
    if "task" not in labels:
        names = ", ".join(sorted(fields))
        problem = (
            f"no `task` field, and no form in docs/forms.md has the fields {names:.80}: expected one of these forms; "
            "`columns` and `labels` of a manifest's entry rename and add fields"
        )
    elif problem is None and not clips and labels["task"] != "text":
        problem = f"task {labels['task']!r} needs `audio`"
    return Row(row_id, clips, labels, problem)


def parse_segment(fields: Fields) -> dict[str, float]:
    """Return `offset` and `duration` of a clip, as far as they are set.

    Raises:
        UserError: A value is not a number of seconds.
    """
    segment = {name: fields[name] for name in ("offset", "duration") if fields.get(name) is not None}
    for name, value in segment.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= MAX_SECONDS:
            raise UserError(f"`{name}` is {shorten(value)}, expected seconds from 0 to {MAX_SECONDS:.0f}")
    return segment


# --- properties of a row ------------------------------------------------------------------------------------------


def row_key(text: str) -> int:
    """Return a 64-bit hash of a row's id. With 10^8 ids, the probability of any collision is 1 in 3700."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def row_seed(seed: int, epoch: int, row_id: str) -> int:
    """Return the seed (63 bits) of all random choices about one row in one epoch, the same on every machine."""
    return row_key(f"{seed}\x00{epoch}\x00{row_id}") >> 1


def group(row: Row) -> str:
    """Return the group (line of a results table) that a row belongs to, such as `asr en` or `s2tt de-en`."""
    return tasks.result_group(row.labels)


def is_scored(row: Row) -> bool:
    """Return whether a row's answer is scored. Plain text, preferences and unusable rows are not scored."""
    return not row.problem and bool(tasks.get_task(row.labels["task"]).metric)


def answer_language(row: Row) -> str:
    """Return the language of a row's answer."""
    return row.labels.get("target_language") or row.labels.get("language") or "en"


def metric_name(row: Row) -> str:
    """Return the name of the metric for a row's task and language."""
    return metric_in_language(tasks.get_task(row.labels["task"]).metric, answer_language(row))


# --- dialogues ----------------------------------------------------------------------------------------------------


def _chat_row(fields: Fields, row_id: str, folder: Path) -> Row:
    """Decode a dialogue. Raises UserError if it cannot be used."""
    is_preference = "chosen" in fields or "rejected" in fields
    task = "preference" if is_preference else "chat"
    if fields.get("task", task) != task:
        raise UserError(f"`task` is {shorten(fields['task'])}, expected {task!r} for this row with `messages`")
    if "offset" in fields:
        raise UserError("the row has `offset` and `messages`: expected the offset of a clip inside its messages")
    messages = fields["messages"]  # `importers.convert` has checked that this is a list
    clips = tuple(_clip(part, folder) for part in audio_parts(messages))
    if is_preference:
        prompt = messages
        answers = {key: _reply(key, fields.get(key)) for key in ("chosen", "rejected")}
        if are_equal(answers["chosen"], answers["rejected"]):
            raise UserError(f"{EQUAL_ANSWERS}: {shorten(answers['chosen'])}")
        answers["text"] = answers["chosen"]
    else:
        *prompt, answer = messages
        if answer["role"] != "assistant":
            raise UserError(f"the last message has role {shorten(answer['role'])}, expected the assistant's answer")
        answers = {"text": _text(answer, f"messages[{len(prompt)}] (assistant)")}
    _check_prompt(prompt)
    labels = {key: value for key, value in fields.items() if key != "id"}
    labels |= {"task": task, "mode": fields.get("mode") or _mode(prompt), **answers}
    if not isinstance(labels.get("skill", ""), str):
        raise UserError(f"`skill` is {shorten(labels['skill'])}, expected the task of the last question, such as asr")
    if "key" in labels and (not isinstance(labels["key"], str) or not any(map(str.isalnum, labels["key"]))):
        raise UserError(f"`key` is {shorten(labels['key'])}, expected the words that a correct answer contains")
    return Row(row_id, clips, labels, tasks.find_problem(labels))


def audio_parts(messages: Sequence[chat.Message]) -> list[Fields]:
    """Return the audio parts of messages in order.

    Raises:
        UserError: The messages do not have a known structure.
    """
    chat.audios(messages)
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return [part for part in parts if "audio" in part or "audio_url" in part]


def _clip(part: Fields, folder: Path) -> Clip:
    path = part.get("audio", part.get("audio_url"))
    if not isinstance(path, str) or not path:
        raise UserError(f"the audio of a message is {shorten(path)}, expected a path")
    return Clip(folder / path, **parse_segment(part))


def _check_prompt(messages: Sequence[chat.Message]) -> None:
    """Check that the last message before the answer is the user's and that no message is empty.

    Only a system message may be empty, because an empty one replaces the default system message.
    """
    if not messages or messages[-1]["role"] != "user":
        last = f"a message of the {messages[-1]['role']}" if messages else "nothing"
        raise UserError(f"the answer is preceded by {last}, expected a message of the user")
    for number, message in enumerate(messages):
        if message["role"] != "system" and not audio_parts([message]):
            _text(message, f"messages[{number}] ({message['role']})")


def are_equal(answer: str, other: str) -> bool:
    """Return whether two answers are the same text after Unicode composition (NFC), apart from surrounding spaces."""
    first, second = (unicodedata.normalize("NFC", text).strip() for text in (answer, other))
    return first == second


def _text(message: chat.Message, name: str) -> str:
    text = chat.message_text(message)
    if not text.strip():
        raise UserError(f"{name} is empty")
    return text


def _reply(key: str, value: Any) -> str:
    """Return the text of `chosen` or `rejected`, which is a string or a message of the assistant."""
    value = [value] if isinstance(value, Mapping) else value
    messages = [{"role": "assistant", "content": value}] if isinstance(value, str) else value
    if not isinstance(messages, list) or len(messages) != 1 or audio_parts(messages):
        raise UserError(f"`{key}` is {shorten(value)}, expected a string or one message of the assistant")
    if messages[0]["role"] != "assistant":
        raise UserError(f"`{key}` has role {shorten(messages[0]['role'])}, expected 'assistant'")
    return _text(messages[0], f"`{key}`")


def _mode(prompt: Sequence[chat.Message]) -> str:
    """Return `text` for a dialogue without audio, `voice_chat` if its last message has no text, or `audio_analysis`."""
    if not audio_parts(prompt):
        return "text"
    return "audio_analysis" if chat.message_text(prompt[-1]).strip() else "voice_chat"
