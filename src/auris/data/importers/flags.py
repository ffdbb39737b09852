"""Flags of other projects: fields of a row or a message that say whether it is learned.

A flag is honoured, or the row is refused: text that its author excluded from training is never trained on. Auris itself
knows one flag, `loss: false` in a message of the assistant (`text.chat`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from auris.data.importers.fields import Fields
from auris.errors import UserError, shorten

# True (or 1): the row or message is learned; false (or 0): it is not; null: there is no flag.
_FLAGS = (
    "loss",  # ms-swift
    "loss_scale",  # ms-swift: a factor
    "loss_weight",  # LLaMA-Factory v1: a factor
    "loss_mask",
    "weight",  # OpenAI: 0 or 1
    "train",
    "training",  # axolotl
    "trainable",
    "train_on_turn",
)
_KTO_FLAGS = ("label", "kto_tag")  # TRL and ms-swift; LLaMA-Factory. True: the answer is good
_ROLE_MASK = "mask"  # NeMo: the role whose turns are not learned
_SKIP_FLAG = "_skipme"  # NeMo. True: the row is not used

# Flags that their projects define for the assistant's messages alone, so that they have no effect in other messages.
_ASSISTANT_FLAGS = ("loss", "loss_scale", "weight")

# Fields of a message that would change what is learned, and that auris cannot honour.
_REFUSED = ("mask", "masked", "train_detail", "training_detail", "tool_calls", "function_call")
_REFUSED += ("reasoning_content", "reasoning")

_TASK_ROW_FLAGS = (*(name for name in _FLAGS if name != "weight"), "kto_tag")
FIELDS = frozenset({*_TASK_ROW_FLAGS, _SKIP_FLAG})
"""Names of the flags of task rows. A row with one of them must be decoded to know whether it is used."""


def check_task_row(fields: Fields) -> None:
    """Refuse a task row that is marked as one not to learn.

    The fields of a task row are free, so that any value but false, such as a number in `loss`, is no flag.
    """
    _check_skip(fields)
    for name in _TASK_ROW_FLAGS:
        if name in fields and fields[name] == 0:  # also equal to False
            raise UserError(f"`{name}` is {fields[name]!r}: the row is not to be learned")


def apply(fields: Fields) -> Fields:
    """Honour the flags of a dialogue, and remove those that are honoured.

    A message of the assistant that is not learned gets `loss: false`. Messages after the last one that is learned
    cannot change what the model learns, and are left out.

    Raises:
        UserError: Nothing in the row is to be learned, or a flag cannot be honoured.
    """
    _check_skip(fields)
    _check_kto(fields)
    if _read_flags(fields, _FLAGS, "the row") is False:
        raise UserError(f"{_describe_flags(fields)}: the row is not to be learned")
    mask = fields.get(_ROLE_MASK)
    if mask is not None and str(mask).lower() not in ("user", "human"):
        raise UserError(f"`mask` is {shorten(mask)}, expected 'User': auris learns the messages of the assistant")
    used = {*_FLAGS, *_KTO_FLAGS, _ROLE_MASK, _SKIP_FLAG}
    row = {name: value for name, value in fields.items() if name not in used}
    row["messages"] = [_apply_to_message(message, f"messages[{n}]") for n, message in enumerate(row["messages"])]
    if "chosen" in row or "rejected" in row:
        _check_answers(row)
    elif not _is_learned(row["messages"][-1]):
        row["messages"] = _drop_end(row["messages"])
    return row


def _apply_to_message(message: Any, place: str) -> Any:
    """Return a message without flags, except for `loss: false` if it is from the assistant and not learned."""
    if not isinstance(message, Mapping) or message.keys() == {"role", "content"}:
        return message
    for name in _REFUSED:
        if message.get(name):
            raise UserError(f"{place} has `{name}` ({shorten(message[name])}), which auris cannot honour: remove it")
    plain = {name: value for name, value in message.items() if name not in (*_FLAGS, *_REFUSED)}
    role = message.get("role")
    if role == "assistant":
        return {**plain, "loss": False} if _read_flags(message, _FLAGS, place) is False else plain
    if _read_flags(message, (name for name in _FLAGS if name not in _ASSISTANT_FLAGS), place):
        raise UserError(f"{_describe_flags(message)} in {place} ({role}): auris learns only the assistant's messages")
    return plain


def _is_learned(message: Any) -> bool:
    """Return False for a message that `_apply_to_message` has marked."""
    return not isinstance(message, Mapping) or message.get("loss", True)


def _drop_end(messages: list[Any]) -> list[Any]:
    """Drop the messages after the last one of the assistant that is learned."""
    roles = [message.get("role") if isinstance(message, Mapping) else None for message in messages]
    learned = [n for n, role in enumerate(roles) if role == "assistant" and _is_learned(messages[n])]
    if not learned:
        raise UserError("no message of the assistant is learned: `loss` or a similar flag is false in all of them")
    return messages[: learned[-1] + 1]


def _check_answers(row: Fields) -> None:
    """Refuse a preference with an answer that is not to be learned."""
    for name in ("chosen", "rejected"):
        answers = row.get(name)
        for answer in answers if isinstance(answers, list) else [answers]:
            if not _is_learned(_apply_to_message(answer, f"`{name}`")):
                raise UserError(f"{_describe_flags(answer)} in `{name}`: expected two answers to learn from")


def _read_flags(fields: Fields, names: Iterable[str], place: str) -> bool | None:
    """Return what the flags say: learned (True), not learned (False), or no flag (None)."""
    values = {name: fields[name] for name in names if fields.get(name) is not None}
    for name, value in values.items():
        if value not in (0, 1):  # also equal to False and True
            raise UserError(
                f"`{name}` of {place} is {shorten(value)}, expected true or false (auris does not weight messages)"
            )
    meanings = {bool(value) for value in values.values()}
    if len(meanings) > 1:
        raise UserError(f"the flags of {place} contradict each other: {shorten(values)}")
    return next(iter(meanings), None)


def _describe_flags(fields: Fields) -> str:
    """Return flags with their values, such as "`loss` is False"."""
    return " and ".join(f"`{name}` is {shorten(fields[name])}" for name in _FLAGS if fields.get(name) is not None)


def _check_skip(fields: Fields) -> None:
    if fields.get(_SKIP_FLAG):
        raise UserError(f"the row is marked with `{_SKIP_FLAG}`")


def _check_kto(fields: Fields) -> None:
    """Refuse an answer that KTO's format calls bad. A good answer is learned like any other."""
    for name in _KTO_FLAGS:
        value = fields.get(name)
        if value is not None and value not in (0, 1):
            raise UserError(f"`{name}` is {shorten(value)}, expected true or false: is the answer good? (KTO)")
        if value is not None and not value:
            raise UserError(f"`{name}` is {value!r}: a bad answer without a better one (KTO), expected a pair")
