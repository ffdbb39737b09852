"""Flags of other projects: fields of a row or a message that say whether it is learned.

A flag is honoured, or the row is refused: text that its author excluded from training is never trained on. Auris itself
knows one flag, `loss: false` in a message of the assistant (`text.chat`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from auris.data.importers.fields import Fields
from auris.errors import UserError, shorten

# True (or 1): the row or message is learned; false (or 0): it is not; null: there is no flag.
_MESSAGE_ONLY_FLAGS = (
    "weight",  # OpenAI: 0 or 1
    "train_on_turn",  # older files of axolotl
)
_FLAGS = (
    "loss",  # ms-swift
    "loss_scale",  # ms-swift: a factor
    "loss_weight",  # LLaMA-Factory v1: a factor
    "loss_mask",
    "train",
    "training",  # axolotl
    "trainable",
)
_KTO_FLAGS = ("label", "kto_tag")  # TRL and ms-swift; LLaMA-Factory. True: the answer is good
_SKIP_FLAG = "_skipme"  # NeMo. True: the row is not used

# Flags that their projects define for the assistant's messages alone, so that they have no effect in other messages.
_ASSISTANT_FLAGS = ("loss", "loss_scale", "weight")

# Fields of a message that would change what is learned, and that auris cannot honour.
_REFUSED = ("mask", "train_detail", "training_detail", "tool_calls", "function_call", "reasoning_content", "reasoning")

FIELDS = frozenset({*_FLAGS, "kto_tag", _SKIP_FLAG})
"""Names of the flags that any row may have. A row with one of them must be decoded to know whether it is used."""


def check_task_row(fields: Fields) -> None:
    """Refuse a task row that is marked as one not to learn.

    The other fields of a task row are free, so that any value but false, such as a number in `loss`, is no flag.
    """
    for name in FIELDS - {_SKIP_FLAG}:
        if name in fields and fields[name] in (False, 0):
            raise UserError(f"`{name}` is {shorten(fields[name])}: the row is not to be learned")
    _check_skip(fields)


def apply(fields: Fields) -> Fields:
    """Honour the flags of a dialogue, and remove those that are honoured.

    A message of the assistant that is not learned gets `loss: false`. Messages after the last one that is learned
    cannot change what the model learns, and are left out.

    Raises:
        UserError: Nothing in the row is to be learned, or a flag cannot be honoured.
    """
    _check_skip(fields)
    _check_kto(fields)
    if _read_flag(fields, (*_FLAGS, "weight"), "the row") is False:
        raise UserError(f"{_name_flags(fields)}: the row is not to be learned")
    mask = fields.get("mask")  # NeMo: the role whose turns are not learned
    if mask is not None and str(mask).lower() not in ("user", "human"):
        raise UserError(f"`mask` is {shorten(mask)}, expected 'User': auris learns the messages of the assistant")
    removed = {*_FLAGS, "weight", "mask", *_KTO_FLAGS, _SKIP_FLAG}
    row = {name: value for name, value in fields.items() if name not in removed}
    for name in ("chosen", "rejected"):
        answers = row.get(name)
        for answer in answers if isinstance(answers, list) else [answers]:
            if isinstance(answer, Mapping) and _apply_to_message(answer, f"`{name}`").get("loss") is False:
                raise UserError(f"{_name_flags(answer)} in `{name}`: expected two answers to learn from")
    messages = [
        _apply_to_message(message, f"messages[{number}]") if isinstance(message, Mapping) else message
        for number, message in enumerate(row["messages"])
    ]
    if "chosen" not in row and _is_not_learned(messages[-1]):
        messages = _drop_end(messages)
    return {**row, "messages": messages}


def _drop_end(messages: list[Any]) -> list[Any]:
    """Drop the messages after the last one of the assistant that is learned."""
    numbers = [
        number
        for number, message in enumerate(messages)
        if isinstance(message, Mapping) and message.get("role") == "assistant" and not _is_not_learned(message)
    ]
    if not numbers:
        raise UserError("no message of the assistant is learned: `loss` or a similar flag is false in all of them")
    return messages[: numbers[-1] + 1]


def _is_not_learned(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("loss") is False


def _apply_to_message(message: Fields, place: str) -> Fields:
    """Return a message without flags, except for `loss: false` if it is from the assistant and not learned."""
    role, flags = message.get("role"), (*_FLAGS, *_MESSAGE_ONLY_FLAGS)
    for name in _REFUSED:
        if message.get(name):
            raise UserError(f"{place} has `{name}` ({shorten(message[name])}), which auris cannot honour: remove it")
    if role == "assistant":
        is_learned = _read_flag(message, flags, place)
    else:
        is_learned = None
        if _read_flag(message, [name for name in flags if name not in _ASSISTANT_FLAGS], place):
            raise UserError(
                f"{_name_flags(message)} in {place} ({role}): auris learns only the messages of the assistant"
            )
    plain = {name: value for name, value in message.items() if name not in flags and name not in _REFUSED}
    return {**plain, "loss": False} if is_learned is False else plain


def _read_flag(fields: Fields, names: Any, place: str) -> bool | None:
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


def _name_flags(fields: Fields) -> str:
    """Return the flags for a message, such as "`loss` is False"."""
    names = [name for name in (*_FLAGS, *_MESSAGE_ONLY_FLAGS) if fields.get(name) is not None]
    return " and ".join(f"`{name}` is {shorten(fields[name])}" for name in names)


def _check_skip(fields: Fields) -> None:
    if fields.get(_SKIP_FLAG):
        raise UserError(f"the row is marked with `{_SKIP_FLAG}`")


def _check_kto(fields: Fields) -> None:
    """Refuse an answer that KTO's format calls bad. A good answer is learned like any other."""
    for name in _KTO_FLAGS:
        value = fields.get(name)
        if value is None or value in (True, 1):
            continue
        if value in (False, 0):
            raise UserError(f"`{name}` is {shorten(value)}: a bad answer without a better one (KTO), expected a pair")
        raise UserError(f"`{name}` is {shorten(value)}, expected true or false, which says whether the answer is good")
