"""Dialogues and preferences in the formats of other projects. docs/forms.md shows an example of each.

Every function takes the fields of a row, and returns those of an auris dialogue: `messages`, and for a preference also
`chosen` and `rejected`. Messages keep their other fields, such as the flags that `flags` honours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from auris.data.importers.fields import Fields, require_messages
from auris.data.importers.placement import place_audio
from auris.errors import UserError, shorten
from auris.text.audio_marks import MARK

MESSAGE_FIELDS = ("messages", "conversations", "conversation")  # a row has its messages in one of these fields

# Roles, in any case, and what auris calls them. Other roles are refused (`text.chat`).
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}
_ROLES |= {role: role for role in ("system", "user", "assistant")}

# What auris cannot learn from. A row with any of these is refused.
_OTHER_MODALITIES = {"images", "image", "videos", "video", "objects", "tools", "functions", "function_call"}
_OTHER_MODALITIES |= {
    f"{prefix}_{name}"
    for prefix in ("rejected", "positive", "negative")
    for name in ("messages", "audios", "images", "videos", "tools", "objects")
}


def convert_messages(fields: Fields) -> Fields:
    """Convert a row with a list of messages, the format of most projects.

    A message is {role, content} (ms-swift, OpenAI, LLaMA-Factory) or {from, value} (sharegpt format of LLaMA-Factory).
    NeMo's turns {from, value, type} hold one text or one clip each. ms-swift's {human, assistant} are two messages.
    """
    name, *others = (name for name in MESSAGE_FIELDS if name in fields)
    if others:
        raise UserError(f"the row has `{name}` and `{others[0]}`, expected only one")
    entries = require_messages(name, fields[name])
    fields = {key: value for key, value in fields.items() if key not in MESSAGE_FIELDS}
    messages = [message for entry in entries for message in _read_entry(entry)]
    if any(isinstance(entry, Mapping) and _is_nemo_turn(entry) for entry in entries):
        messages = _read_nemo_turns(messages)
    for key in ("chosen", "rejected"):
        if isinstance(fields.get(key), Mapping):
            [fields[key]] = _read_entry(fields[key])
    sound = fields.pop("sound", None)  # NeMo's sharegpt format
    if sound:
        fields["audios"] = sound
    if sound or name == "conversations":  # a mark without `sound` is a lost clip
        messages = [_replace_sound_mark(message) for message in messages]
    return _finish({**fields, "messages": messages})


def convert_alpaca(fields: Fields) -> Fields:
    """Convert the alpaca format of LLaMA-Factory and ms-swift, with `output` or with `chosen` and `rejected`.

    The question is `instruction` and, on the next line, `input`.
    """
    fields = dict(fields)
    question_parts = [part for part in (fields.pop("instruction"), fields.pop("input", None)) if part]
    if not all(isinstance(part, str) for part in question_parts):
        raise UserError(f"`instruction` and `input` are {shorten(question_parts)}, expected strings")
    return _convert_question(fields, "\n".join(question_parts), "output")


def convert_query(fields: Fields) -> Fields:
    """Convert the query-response format of ms-swift: `query`, `response`, and optionally `history`."""
    fields = dict(fields)
    return _convert_question(fields, fields.pop("query"), "response")


def _convert_question(fields: dict[str, Any], question: Any, answer_name: str) -> Fields:
    """Convert a row with one question. `history` holds earlier pairs of question and answer, which are learned too."""
    history = fields.pop("history", None) or []
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        raise UserError(f"`history` is {shorten(history)}, expected a list of [question, answer]")
    texts = [*(text for pair in history for text in pair), question]
    if "chosen" not in fields:
        texts.append(fields.pop(answer_name))
    roles = ("user", "assistant")
    return _finish({**fields, "messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]})


def convert_completion(fields: Fields) -> Fields:
    """Convert TRL's prompt-completion format, each of the two a string or messages. Only the completion is learned."""
    fields = dict(fields)
    prompt, completion = fields.pop("prompt"), fields.pop("completion")
    answers = _as_messages("assistant", "completion", completion)
    # A `loss` of the message itself takes precedence. `flags` refuses other flags that contradict this one.
    prompt = [
        {"loss": False, **message} if isinstance(message, Mapping) and message.get("role") == "assistant" else message
        for message in _as_messages("user", "prompt", prompt)
    ]
    return _finish({**fields, "messages": [*prompt, *answers]})


def convert_pair(fields: Fields) -> Fields:
    """Convert TRL's preference format (dataset_formats): `prompt`, `chosen` and `rejected`, each a string or messages.

    Without `prompt`, the messages that `chosen` and `rejected` have in common at the start are the prompt.
    """
    fields = dict(fields)
    chosen, rejected = fields["chosen"], fields["rejected"]
    prompt = fields.pop("prompt", None)
    if prompt is None:
        if not isinstance(chosen, list) or not isinstance(rejected, list):
            raise UserError("the row has no `prompt`: expected `chosen` and `rejected` to be lists of messages")
        n_common = 0
        while n_common < min(len(chosen), len(rejected)) - 1 and chosen[n_common] == rejected[n_common]:
            n_common += 1
        prompt, fields["chosen"], fields["rejected"] = chosen[:n_common], chosen[n_common:], rejected[n_common:]
    return _finish({**fields, "messages": _as_messages("user", "prompt", prompt)})


def _as_messages(role: str, name: str, value: Any) -> list[Any]:
    """Return the messages of a field of TRL. A string is one message of `role`."""
    return [{"role": role, "content": value}] if isinstance(value, str) else require_messages(name, value)


# --- messages -----------------------------------------------------------------------------------------------------


def _read_entry(entry: Any) -> list[Any]:
    """Return the messages of an entry as {role, content}. An entry of unknown structure is returned unchanged."""
    if not isinstance(entry, Mapping):
        return [entry]
    if {"human", "assistant"} <= entry.keys():
        rest = {key: value for key, value in entry.items() if key not in ("human", "assistant")}
        question = {"role": "user", "content": entry["human"]}
        return [question, {"role": "assistant", "content": entry["assistant"], **rest}]
    if {"from", "value"} <= entry.keys():
        rest = {key: value for key, value in entry.items() if key not in ("from", "value")}
        entry = {"role": entry["from"], "content": entry["value"], **rest}
    role = entry.get("role")
    return [{**entry, "role": _ROLES.get(role.lower(), role)} if isinstance(role, str) else entry]


def _is_nemo_turn(entry: Fields) -> bool:
    """Return whether an entry holds one text or one clip. `type` of {role, content} may mean something else."""
    return "type" in entry and ("from" in entry or entry["type"] == "audio")


def _read_nemo_turns(messages: Sequence[Any]) -> list[Any]:
    """Convert messages {role, content, type}, which are NeMo's turns (`NeMoMultimodalConversation`).

    A turn of type `audio` is the segment of a file from `offset` (default: 0) that is `duration` seconds long (default:
    to the end). As in NeMo, consecutive turns of one role are one message, with a space between two texts.
    """
    turns = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise UserError(f"turn {number} is {shorten(message)}, expected {{from, value, type}}")
        turn = dict(message)
        kind = turn.pop("type", None)
        if kind == "audio":
            segment = {name: turn.pop(name, None) for name in ("offset", "duration")}
            turn.pop("sampling_rate", None)
            part = {"type": "audio", "audio": turn["content"]}
            if segment["offset"] is not None or segment["duration"] is not None:
                part |= {**segment, "offset": segment["offset"] or 0.0}  # without an offset, `duration` cuts nothing
            turn["content"] = part
        elif kind not in ("text", None):
            raise UserError(f"`type` of turn {number} is {shorten(kind)}, expected 'text' or 'audio'")
        turns.append(turn)
    groups = groupby(turns, key=lambda turn: {**turn, "content": None})
    return [{**shared, "content": _join_contents(turn["content"] for turn in group)} for shared, group in groups]


def _join_contents(contents: Iterable[Any]) -> Any:
    """Join texts and audio parts to the content of one message."""
    parts: list[Any] = []
    for is_text, group in groupby(contents, key=lambda content: isinstance(content, str)):
        run = list(group)
        parts += [{"type": "text", "text": " ".join(run)}] if is_text else run
    return parts[0]["text"] if len(parts) == 1 and parts[0].get("type") == "text" else parts


def _replace_sound_mark(message: Any) -> Any:
    """Replace the audio marks of NeMo's sharegpt format in a message of the user by those of ms-swift.

    After a backslash they are ordinary text, as the other audio marks are.
    """
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, str) or message["role"] != "user":
        return message
    text = re.sub(r"(\\?)(<sound>|<speech>)", lambda match: match[2] if match[1] else MARK, content)
    return {**message, "content": text}


# --- the whole row ------------------------------------------------------------------------------------------------


def _finish(fields: Fields) -> Fields:
    """Separate the answers of a preference, put the audio files into the messages and the system message before them.

    The chosen answer of ms-swift is the last message; the rejected answer is `rejected_response` or the last of
    `rejected_messages`.
    """
    fields = dict(fields)
    messages, audios = fields["messages"], fields.pop("audios", None) or []
    rejected = fields.pop("rejected_response", None)
    rejected_messages = fields.pop("rejected_messages", None)
    rejected_audios = fields.pop("rejected_audios", None)
    if rejected_messages is not None:
        rejected_messages = require_messages("rejected_messages", rejected_messages)
        if rejected_messages[:-1] != messages[:-1]:
            raise UserError("`messages` and `rejected_messages` differ before the answer, expected the same prompt")
        rejected = rejected_messages[-1]
    if rejected_audios is not None and rejected_audios != audios:
        raise UserError("`audios` and `rejected_audios` differ before the answer, expected the same prompt")
    if rejected is not None:
        fields |= {"chosen": messages[-1], "rejected": rejected}
        messages = messages[:-1]
    for name in sorted(fields.keys() & _OTHER_MODALITIES):
        if fields.pop(name) not in (None, "", [], {}, "[]"):
            raise UserError(f"the row has `{name}`, expected audio and text only")
    if "audio" in fields:
        raise UserError("a dialogue has `audio`: expected its clips in `audios`, or inside its messages")
    audios = [audios] if isinstance(audios, str) else audios
    if not isinstance(audios, list):
        raise UserError(f"`audios` is {shorten(audios)}, expected a list of paths")
    messages = place_audio(messages, audios)
    system = [text for name in ("system", "system_prompt") if (text := fields.pop(name, None))]
    if system:  # an empty string means no system message in these formats
        if isinstance(messages[0], Mapping) and messages[0].get("role") == "system":
            raise UserError("the row has `system` and a first message with role 'system', expected only one")
        messages = [{"role": "system", "content": system[0]}, *messages]
    return {**fields, "messages": messages}
