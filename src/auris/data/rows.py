"""Manifest rows: one JSON object a line (JSONL), or plain text lines (`.txt`) for the language model alone.

A row is a task row, or with `messages` a dialogue; forms of other projects are read as one of the two (`importers`).

A row that cannot be used keeps its place, with the reason in `problem`: the plan of all other rows stays what it would
be without the fault, and the row is counted and named, never dropped silently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from auris import prompts, tasks
from auris.data import importers

_NOT_LABELS = {"audio", "offset", "duration", "id"}
_PAIR = {"chosen", "rejected", "rejected_response", "rejected_messages"}  # any of them makes a dialogue a preference
_DIALOGUE = {"messages", "conversations", *_PAIR}

EQUAL_ANSWERS = "`chosen` and `rejected` are equal"  # how the problem of a pair begins that is none


@dataclass(frozen=True)
class Clip:
    """An audio file, or with `offset` the stretch of `duration` seconds (None: to the end) from there.

    Without `offset` the file is read whole and `duration` only states its length, as manifests round it.
    """

    path: Path
    offset: float | None = None
    duration: float | None = None


@dataclass(frozen=True)
class Row:
    """One row of a manifest: paths are relative to the manifest, labels as their task needs them.

    Of a dialogue, labels hold `task` (chat, or preference if there are `chosen` and `rejected`), `messages`, `mode` (a
    key of tasks.MODES) and `text`, the answer that its last question asks for; a preference also `chosen` and
    `rejected`, two such answers, and its messages end with the user's. The k-th clip is the k-th audio of the messages.
    """

    id: str
    clips: tuple[Clip, ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The rows of one source, with its share in the mix (`weight=None`: in proportion to its rows)."""

    path: Path
    rows: tuple[Row, ...]
    weight: float | None = None
    tasks: tuple[str, ...] = ()  # those kept; empty: all

    @property
    def name(self) -> str:
        return " ".join([str(self.path), *self.tasks])

    def digest(self) -> str:
        """A hash of the manifest file: part of the key under which its index is cached."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]


def read_manifests(sources: Sequence[str | Path | Mapping[str, Any]], *, key: str = "data.train") -> list[Manifest]:
    """Each entry is a path or `{path, weight, tasks, limit}`: `tasks` keeps some tasks, `limit` the first rows of each.

    Raises FileNotFoundError for a missing manifest and ValueError for an entry with unknown keys, or when two rows of
    different manifests share an id (ids name rows in the plan, in predictions and in comparisons).
    """
    manifests = []
    for entry in entries(sources, key=key):
        path = Path(entry["path"])
        rows = tuple(_select(_read(path), entry.get("tasks"), entry.get("limit")))
        if not rows:
            raise ValueError(f"{key}: {path} has no rows" + (f" of tasks {entry['tasks']}" if "tasks" in entry else ""))
        manifests.append(Manifest(path, rows, entry.get("weight"), tuple(entry.get("tasks") or ())))
    seen: dict[str, str] = {}
    for manifest in manifests:
        for row in manifest.rows:
            if seen.setdefault(row.id, manifest.name) != manifest.name:
                raise ValueError(
                    f"{key}: row id {row.id!r} is in {seen[row.id]} and in {manifest.name}; ids must differ"
                )
    return manifests


def entries(sources: Sequence[str | Path | Mapping[str, Any]], *, key: str) -> list[dict[str, Any]]:
    """The entries of a config's list as dicts, their files known to exist; raises as `read_manifests`."""
    found = [{"path": source} if isinstance(source, (str, Path)) else dict(source) for source in sources]
    for entry in found:
        unknown = set(entry) - {"path", "weight", "tasks", "limit"}
        if unknown:
            raise ValueError(f"{key}: unknown key {sorted(unknown)}; an entry has path, weight, tasks, limit")
        path = Path(entry["path"])
        if not path.is_file():
            raise FileNotFoundError(
                f"{key}: no manifest at {path}. The embedded corpus is made by "
                f"`python -m auris.corpus out={path.parent}`; for your own rows set {key}=[FILE.jsonl]"
            )
    return found


def _select(rows: Iterator[Row], keep: Sequence[str] | None, limit: int | None) -> Iterator[Row]:
    for code in keep or ():
        tasks.find(code)
    taken: dict[str, int] = {}
    for row in rows:
        code = str(row.labels.get("task"))  # whatever a row holds: a wrong task is a row with a problem
        if keep and code not in keep:
            continue
        taken[code] = taken.get(code, 0) + 1
        if limit is None or taken[code] <= limit:
            yield row


def _read(path: Path) -> Iterator[Row]:
    seen: set[str] = set()
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            name = f"{path.name}:{number}"
            row = _text_row(line, name) if path.suffix == ".txt" else _json_row(line, name, path.parent)
            if row.id in seen:
                row = Row(name, row.clips, row.labels, f"id {row.id!r} is used by an earlier row")
            seen.add(row.id)
            yield row


def _text_row(line: str, name: str) -> Row:
    return Row(name, (), {"task": "text", "text": line.strip()})


def _json_row(line: str, name: str, folder: Path) -> Row:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        return Row(name, problem=f"not JSON: {error}")
    if not isinstance(fields, dict):
        return Row(name, problem=f"a row is a JSON object, got {type(fields).__name__}")
    identity = str(fields.get("id", name))
    labels = {key: value for key, value in fields.items() if key not in _NOT_LABELS}
    if fields.keys() & _DIALOGUE:
        labels["task"] = "preference" if fields.keys() & _PAIR else "chat"  # also of a row that cannot be used
    try:
        fields = importers.convert(fields)
        if "messages" in fields:
            return _chat_row(fields, identity, folder)
        return _task_row(fields, identity, folder)
    except ValueError as error:
        return Row(identity, (), labels, str(error))


def _task_row(fields: Mapping[str, Any], identity: str, folder: Path) -> Row:
    labels = {key: value for key, value in fields.items() if key not in _NOT_LABELS}
    paths = fields.get("audio", [])
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"`audio` is {fields['audio']!r}, expected a path or a list of paths")
    seconds = _seconds(fields)
    if seconds and len(paths) > 1:
        raise ValueError("`offset` and `duration` describe one clip, the row has several")
    clips = tuple(Clip(folder / path, **seconds) for path in paths)
    if labels.get("task") in ("chat", "preference"):
        raise ValueError(f"task {labels['task']!r} needs `messages`")
    problem = tasks.check(labels)
    if problem is None and not clips and labels["task"] != "text":
        problem = f"task {labels['task']!r} needs `audio`"
    return Row(identity, clips, labels, problem)


def _seconds(fields: Mapping[str, Any]) -> dict[str, float]:
    """`offset` and `duration` of a clip, as far as they are given. Raises ValueError for what is no number >= 0."""
    seconds = {what: fields[what] for what in ("offset", "duration") if fields.get(what) is not None}
    for what, value in seconds.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
            raise ValueError(f"`{what}` is {value!r}, expected seconds >= 0")
    return seconds


# --- dialogues ----------------------------------------------------------------------------------------------------


def _chat_row(fields: Mapping[str, Any], identity: str, folder: Path) -> Row:
    """A dialogue as a row. Raises ValueError saying why it cannot be used."""
    is_pair = "chosen" in fields or "rejected" in fields
    task = "preference" if is_pair else "chat"
    if fields.get("task", task) != task:
        raise ValueError(f"`task` is {fields['task']!r}, but a row with `messages` is of task {task!r}")
    if "audio" in fields:
        raise ValueError("`audio` beside `messages`: the audio of a dialogue stands in its messages")
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"`messages` is {messages!r:.80}, expected a list of {{role, content}}")
    clips = tuple(_clip(part, folder) for part in _audio_parts(messages))
    if is_pair:
        asked = messages
        answers = {side: _reply(side, fields.get(side)) for side in ("chosen", "rejected")}
        if answers["chosen"].strip() == answers["rejected"].strip():
            raise ValueError(f"{EQUAL_ANSWERS}: {answers['chosen']!r:.80}")
        answers["text"] = answers["chosen"]
    else:
        *asked, answer = messages
        if answer["role"] != "assistant":
            raise ValueError(f"the last message is the {answer['role']}'s, expected the assistant's answer")
        answers = {"text": _text(answer, len(asked))}
    _check_order(asked)
    labels = {key: value for key, value in fields.items() if key != "id"}
    labels |= {"task": task, "mode": fields.get("mode") or _mode(asked), **answers}
    if "key" in labels and (not isinstance(labels["key"], str) or not labels["key"].strip()):
        raise ValueError(f"`key` is {labels['key']!r:.80}, expected what a right answer contains")
    return Row(identity, clips, labels, tasks.check(labels))


def _audio_parts(messages: Sequence[prompts.Message]) -> list[Mapping[str, Any]]:
    """The parts of the messages that are audio, in their order. Raises ValueError for messages of no known shape."""
    prompts.audios(messages)
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return [part for part in parts if "audio" in part or "audio_url" in part]


def _clip(part: Mapping[str, Any], folder: Path) -> Clip:
    path = part.get("audio", part.get("audio_url"))
    if not isinstance(path, str) or not path:
        raise ValueError(f"the audio of a message is {path!r:.80}, expected a path")
    return Clip(folder / path, **_seconds(part))


def _check_order(asked: Sequence[prompts.Message]) -> None:
    """That a dialogue up to its answer asks something, and says something in each turn."""
    if not asked or asked[-1]["role"] != "user":
        before = f"the {asked[-1]['role']}'s" if asked else "nothing"
        raise ValueError(f"before the answer stands {before}, expected the user's message")
    for number, message in enumerate(asked):
        if not _audio_parts([message]):
            _text(message, number)


def _text(message: prompts.Message, number: int) -> str:
    text = prompts.text_of(message)
    if not text.strip():
        raise ValueError(f"messages[{number}], of the {message['role']}, is empty")
    return text


def _reply(side: str, given: Any) -> str:
    """One side of a preference, a string or a message of the assistant's, as its text."""
    given = [given] if isinstance(given, Mapping) else given
    messages = [{"role": "assistant", "content": given}] if isinstance(given, str) else given
    if not isinstance(messages, list) or len(messages) != 1 or _audio_parts(messages):
        raise ValueError(f"`{side}` is {given!r:.80}, expected a string or one message of the assistant")
    if messages[0]["role"] != "assistant":
        raise ValueError(f"`{side}` is the {messages[0]['role']}'s, expected the assistant's")
    text = prompts.text_of(messages[0])
    if not text.strip():
        raise ValueError(f"`{side}` is empty")
    return text


def _mode(asked: Sequence[prompts.Message]) -> str:
    """How the user speaks: by voice where the last message is only audio, in text where the dialogue has none."""
    if not _audio_parts(asked):
        return "text"
    return "audio_analysis" if prompts.text_of(asked[-1]).strip() else "voice_chat"
