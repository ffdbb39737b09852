"""Conversion of rows in the formats of other projects to auris rows. Each format is recognised by its fields.

docs/forms.md lists the formats, with an example of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from auris.data.importers import benchmarks, dialogues, flags
from auris.data.importers.fields import Fields

__all__ = ["Fields", "convert", "dialogue_task", "is_task_row", "unused_fields"]

_PREFERENCE_FIELDS = {"chosen", "rejected", "rejected_response", "rejected_messages"}
_TASKS_OF_DIALOGUES = (None, "chat", "preference")


class _Format(NamedTuple):
    """A format of rows.

    Attributes:
        fields: Fields that identify the format: a row has all of them.
        convert: Function that converts the fields of a row.
        is_dialogue: Whether the rows are dialogues or preferences.
        yields_to_task: Whether a row that states the task of a task row is a task row, although it has the fields.
    """

    fields: frozenset[str]
    convert: Callable[[Fields], Fields]
    is_dialogue: bool = True
    yields_to_task: bool = False


# The first format that fits counts.
_FORMATS = (
    *(_Format(frozenset({name}), dialogues.convert_messages) for name in dialogues.MESSAGE_FIELDS),
    _Format(frozenset({"instruction", "chosen", "rejected"}), dialogues.convert_alpaca),
    _Format(frozenset({"chosen", "rejected"}), dialogues.convert_pair),
    _Format(frozenset({"instruction", "output"}), dialogues.convert_alpaca, yields_to_task=True),
    _Format(frozenset({"query", "response"}), dialogues.convert_query, yields_to_task=True),
    _Format(frozenset({"prompt", "completion"}), dialogues.convert_completion, yields_to_task=True),
    _Format(frozenset({"gt", "audio"}), benchmarks.convert_official, is_dialogue=False),
    _Format(frozenset({"answer_gt"}), benchmarks.convert_air_bench, is_dialogue=False),
)
# A row with none of these fields is a task row that no format and no flag concerns.
_NON_TASK_FIELDS = frozenset(
    {*dialogues.MESSAGE_FIELDS, *_PREFERENCE_FIELDS, "instruction", "query", "completion", "gt", "answer_gt"}
    | flags.FIELDS
)


def is_task_row(fields: Fields) -> bool:
    """Return whether fields belong to an auris task row, whose `task` and `id` can be read without decoding."""
    return _NON_TASK_FIELDS.isdisjoint(fields)


def _drop_nulls(fields: Fields) -> Fields:
    """Return the fields without nulls, which mean that a row of this format has no such field.

    Task rows are returned unchanged.
    """
    return fields if is_task_row(fields) else {name: value for name, value in fields.items() if value is not None}


def _find_format(fields: Fields) -> _Format | None:
    is_task = "task" in fields and fields["task"] not in _TASKS_OF_DIALOGUES
    formats = (form for form in _FORMATS if form.fields <= fields.keys() and not (is_task and form.yields_to_task))
    return next(formats, None)


def dialogue_task(fields: Fields) -> str | None:
    """Return `chat` or `preference` if fields of any format belong to a dialogue, else None."""
    fields = _drop_nulls(fields)
    if not _PREFERENCE_FIELDS.isdisjoint(fields):
        return "preference"
    form = _find_format(fields)
    return "chat" if form is not None and form.is_dialogue else None


def convert(fields: Fields) -> Fields:
    """Convert the fields of a row to the fields of an auris row. The fields of auris rows are returned unchanged.

    Raises:
        UserError: The row has a known format but is invalid, or it is marked as a row not to learn.
    """
    fields = _drop_nulls(fields)
    form = _find_format(fields)
    if form is None:
        flags.check_task_row(fields)
        return dict(fields)
    converted = form.convert(fields)
    return flags.apply(converted) if form.is_dialogue else converted


# Fields of a dialogue that auris uses, or that its own commands write.
_USED_FIELDS = {
    *("task", "mode", "messages", "chosen", "rejected", "text", "key", "skill"),
    *("language", "split", "speaker", "provenance", "licence", "sources"),
    *("kind", "form", "fault", "spoken", "written_by", "seed"),
    *("annotator", "scores", "metric", "answered_by", "judge"),
}
_USED_IN_MESSAGES = {"role", "content", "loss"}
_USED_IN_PARTS = {"type", "text", "audio", "audio_url", "offset", "duration"}


def unused_fields(row: Fields) -> Iterator[str]:
    """Yield the names of the fields of a valid dialogue that nothing uses, such as `topic` or `messages[].name`."""
    if "answer_gt" in row:  # AIR-Bench, whose judges choose among the fields
        return
    yield from row.keys() - _USED_FIELDS
    names = {name for message in row["messages"] for name in message}
    yield from (f"messages[].{name}" for name in names - _USED_IN_MESSAGES)
    contents = [message["content"] for message in row["messages"] if not isinstance(message["content"], str)]
    names = {name for content in contents for part in content for name in part}
    yield from (f"messages[].content[].{name}" for name in names - _USED_IN_PARTS)
