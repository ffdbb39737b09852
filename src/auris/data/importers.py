"""Rows of other projects as rows of ours, told by their fields: one function per form, from fields to fields.

A form that marks audio in its text (`<audio>`) has as many marks as audios, or the row is refused: a mark that stands
for nothing, or a clip that is heard nowhere, would train something else than what was meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from auris.tasks import LANGUAGES

MARK = "<audio>"  # where a clip stands in the text of ms-swift and LLaMA-Factory

Fields = Mapping[str, Any]


def convert(fields: Fields) -> dict[str, Any]:
    """A row's fields as ours; those of our own rows as they are.

    Raises ValueError saying what is wrong with a row of a known form.
    """
    if "conversations" in fields:
        return _llama_factory(fields)
    if "messages" in fields:
        return _swift(fields) if _is_marked(fields) else dict(fields)
    if "chosen" in fields and "rejected" in fields:
        return _trl(fields)
    if "gt" in fields and "audio" in fields:
        return _official(fields)
    return dict(fields)


# --- dialogues ----------------------------------------------------------------------------------------------------


def _llama_factory(fields: Fields) -> dict[str, Any]:
    """LLaMA-Factory's sharegpt form (data/README.md): `conversations` of {from, value}; its other form, with
    `messages`, is that of ms-swift but for `chosen` and `rejected`."""
    roles = {"human": "user", "gpt": "assistant"}

    def renamed(entry: Any) -> Any:
        if not isinstance(entry, Mapping) or not {"from", "value"} <= entry.keys():
            return entry
        return {"role": roles.get(str(entry["from"]), entry["from"]), "content": entry["value"]}

    answers = {key: renamed(fields[key]) for key in ("chosen", "rejected") if key in fields}
    messages = [renamed(entry) for entry in _as_list("conversations", fields["conversations"])]
    rest = {key: value for key, value in fields.items() if key != "conversations"}
    return _dialogue({**rest, **answers, "messages": messages})


def _is_marked(fields: Fields) -> bool:
    """Whether a row with `messages` is of another project: audio beside them or marked in them, or its own fields."""
    if not fields.keys().isdisjoint({"audios", "rejected_response", "rejected_messages", "system"}):
        return True
    messages = fields["messages"] if isinstance(fields["messages"], list) else []
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    return any(isinstance(content, str) and MARK in content for content in contents)


def _swift(fields: Fields) -> dict[str, Any]:
    """ms-swift's standard form (Custom-dataset.md): the better answer is the last message, the worse one
    `rejected_response`, or the end of `rejected_messages`."""
    fields = dict(fields)
    messages = _as_list("messages", fields["messages"])
    worse = fields.pop("rejected_response", None)
    if (other := fields.pop("rejected_messages", None)) is not None:
        other = _as_list("rejected_messages", other)
        audios = fields.get("audios", [])
        if other[:-1] != messages[:-1] or fields.pop("rejected_audios", audios) != audios:
            raise ValueError("`messages` and `rejected_messages` differ before the answer: expected one prompt")
        worse = other[-1]
    if worse is not None:
        fields |= {"chosen": messages[-1], "rejected": worse}
        messages = messages[:-1]
    return _dialogue({**fields, "messages": messages})


def _trl(fields: Fields) -> dict[str, Any]:
    """TRL's preferences (dataset_formats): `prompt` with `chosen` and `rejected`, each a string or messages; without a
    prompt it is what `chosen` and `rejected` begin with alike."""
    fields = dict(fields)
    better, worse = fields["chosen"], fields["rejected"]
    prompt = fields.pop("prompt", None)
    if prompt is None:
        if not isinstance(better, list) or not isinstance(worse, list):
            raise ValueError("`chosen` and `rejected` without a `prompt`: expected lists of messages")
        alike = 0
        while alike < min(len(better), len(worse)) - 1 and better[alike] == worse[alike]:
            alike += 1
        prompt, fields["chosen"], fields["rejected"] = better[:alike], better[alike:], worse[alike:]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _as_list("prompt", prompt)
    return _dialogue({**fields, "messages": messages})


def _dialogue(fields: Fields) -> dict[str, Any]:
    """Messages with their audio in its place, and a `system` beside them as the first of them."""
    fields = dict(fields)
    for kind in ("images", "videos", "tools"):
        if fields.pop(kind, None):
            raise ValueError(f"the row has `{kind}`: expected audio and text")
    audios = fields.pop("audios", None) or []
    audios = [audios] if isinstance(audios, str) else audios
    if not isinstance(audios, list):
        raise ValueError(f"`audios` is {audios!r:.80}, expected a list of paths")
    messages = _place(fields["messages"], audios)
    if system := fields.pop("system", None):
        messages = [{"role": "system", "content": system}, *messages]
    return {**fields, "messages": messages}


def _place(messages: Sequence[Any], audios: Sequence[Any]) -> list[Any]:
    """The k-th mark in what the user says, or the k-th part {type: audio} that names none, is the k-th of `audios`."""
    remaining = iter(audios)
    marks = 0

    def next_audio() -> dict[str, Any]:
        nonlocal marks
        marks += 1
        return {"type": "audio", "audio": next(remaining, None)}

    def placed(content: Any) -> Any:
        if isinstance(content, str) and MARK in content:
            pieces = re.split(f"({re.escape(MARK)})", content)
            return [next_audio() if piece == MARK else {"type": "text", "text": piece} for piece in pieces if piece]
        if isinstance(content, list):
            return [next_audio() if part == {"type": "audio"} else part for part in content]
        return content

    found = [
        {**message, "content": placed(message.get("content"))}
        if isinstance(message, Mapping) and message.get("role") == "user"
        else message
        for message in messages
    ]
    if marks != len(audios):
        raise ValueError(f"the user's messages have {marks} audio marks ({MARK}), the row has {len(audios)} audios")
    return found


def _as_list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{name}` is {value!r:.80}, expected a list of messages")
    return value


# --- the evaluation files of the two official repositories ---------------------------------------------------------

# Beginning of `source`, task, language where it is not in the source or the prompt (EVALUATION.md of Qwen-Audio and of
# Qwen2-Audio). The first that fits counts.
_SOURCES = (
    ("librispeech", "asr", "en"),
    ("aishell", "asr", "zh"),
    ("cv15", "asr", None),
    ("fleurs", "asr", None),
    ("covost", "s2tt", None),
    ("meld", "er", None),
    ("vocalsound", "vsc", None),
    ("clothoaqa", "aqa", None),
    ("clotho", "aac", None),
    ("audiocaps", "aac", None),
    ("tut2017", "asc", None),
    ("cochlscene", "asc", None),
)
_LANGUAGE = re.compile(rf"<\|({'|'.join(LANGUAGES)})\|>|(?:^|_)({'|'.join(LANGUAGES)})(?=_|$)")


def _official(fields: Fields) -> dict[str, Any]:
    """`{audio, gt, source}` of Qwen-Audio (with `question` for ClothoAQA) and `{audio, prompt, gt, source}` of
    Qwen2-Audio, as task rows: the task is told from `source`, and asked as our prompting styles ask it."""
    source = str(fields.get("source", "")).lower()
    found = next((entry for entry in _SOURCES if source.startswith(entry[0])), None)
    if found is None:
        known = ", ".join(name for name, _, _ in _SOURCES)
        raise ValueError(f"`source` is {fields.get('source')!r}; known sources begin with {known}")
    _, task, language = found
    rest = {key: value for key, value in fields.items() if key != "gt"}
    row = {**rest, "task": task, "text": fields["gt"]}
    languages = [tag or name for tag, name in _LANGUAGE.findall(source)]
    if task == "s2tt":
        if len(languages) < 2:
            raise ValueError(f"`source` is {fields['source']!r}, expected two languages as in covost2_en_de_test")
        row["language"], row["target_language"] = languages[-2:]
    elif task == "asr":
        asked = [tag for tag, _ in _LANGUAGE.findall(str(fields.get("prompt", ""))) if tag]
        row["language"] = next(iter([*asked, *languages, *filter(None, [language])]), None)
    elif task == "aac":
        row["caption_style"] = "clotho" if source.startswith("clotho") else "audiocaps"
        if isinstance(row["text"], list) and row["text"]:  # all captions of a clip
            row["references"], row["text"] = row["text"], row["text"][0]
    return row
