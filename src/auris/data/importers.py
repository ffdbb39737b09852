"""Rows of other projects as rows of ours, told by their fields: one function per form, from fields to fields.

A dialogue of whatever form has as many marks of audio in what the user says as audios, or it is refused: a mark that
stands for nothing, or a clip that is heard nowhere, would train something else than what was meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from auris.errors import UserError
from auris.text.answer_formats import Notes, Words
from auris.text.prompts import NaturalPrompt, TagPrompt
from auris.text.tasks import LANGUAGES

MARK = "<audio>"  # where a clip stands in the text of ms-swift and LLaMA-Factory
_UNNAMED = {"type": "audio"}  # ... or as a part of a message

# In a text, all tokens of either system for one clip are one mark, those that stand alone are one each.
_TOKENS = [(style.audio_begin, style.audio_pad, style.audio_end) for style in (TagPrompt, NaturalPrompt)]
_IN_TEXT = [*map("".join, _TOKENS), MARK, *(token for tokens in _TOKENS for token in tokens)]
_MARKS = re.compile(f"({'|'.join(map(re.escape, _IN_TEXT))})")

Fields = Mapping[str, Any]
"""The fields of a row as its file holds them: JSON values by name, in any known form."""


def convert(fields: Fields) -> Fields:
    """A row's fields as ours; those of our own rows as they are.

    Raises ValueError saying what is wrong with a row of a known form.
    """
    if "conversations" in fields:
        return _llama_factory(fields)
    if "messages" in fields:
        return _swift(fields)
    if "chosen" in fields and "rejected" in fields:
        return _alpaca(fields) if "instruction" in fields else _trl(fields)
    if "gt" in fields and "audio" in fields:
        return _official(fields)
    if "answer_gt" in fields:
        return _air_bench(fields)
    return dict(fields)


# --- dialogues ----------------------------------------------------------------------------------------------------


def _llama_factory(fields: Fields) -> Fields:
    """LLaMA-Factory's sharegpt form (data/README.md): `conversations` of {from, value}; its other form, with
    `messages`, is that of ms-swift but for `chosen` and `rejected`."""
    roles = {"human": "user", "gpt": "assistant"}

    def renamed(entry: Any) -> Any:
        if not isinstance(entry, Mapping) or not {"from", "value"} <= entry.keys():
            return entry
        return {"role": roles.get(str(entry["from"]), entry["from"]), "content": entry["value"]}

    fields = dict(fields)
    messages = [renamed(entry) for entry in _as_list("conversations", fields.pop("conversations"))]
    answers = {key: renamed(fields[key]) for key in ("chosen", "rejected") if key in fields}
    return _dialogue({**fields, **answers, "messages": messages})


def _swift(fields: Fields) -> Fields:
    """ms-swift's standard form (Custom-dataset.md): the better answer is the last message, the worse one
    `rejected_response`, or the end of `rejected_messages`. Rows of ours come out as they are."""
    fields = dict(fields)
    messages = _as_list("messages", fields["messages"])
    worse = fields.pop("rejected_response", None)
    if (other := fields.pop("rejected_messages", None)) is not None:
        other = _as_list("rejected_messages", other)
        audios = fields.get("audios", [])
        if other[:-1] != messages[:-1] or fields.pop("rejected_audios", audios) != audios:
            raise UserError("`messages` and `rejected_messages` differ before the answer: expected one prompt")
        worse = other[-1]
    if worse is not None:
        fields |= {"chosen": messages[-1], "rejected": worse}
        messages = messages[:-1]
    return _dialogue({**fields, "messages": messages})


def _alpaca(fields: Fields) -> Fields:
    """LLaMA-Factory's alpaca form of preferences (data/README.md): `instruction` and on the next line `input` are the
    question, `history` the pairs of questions and answers before it."""
    fields = dict(fields)
    asked = [part for part in (fields.pop("instruction"), fields.pop("input", None)) if part]
    if not all(isinstance(part, str) for part in asked):
        raise UserError(f"`instruction` and `input` are {asked!r:.80}, expected strings")
    history = fields.pop("history", None) or []
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        raise UserError(f"`history` is {history!r:.80}, expected a list of [question, answer]")
    said = [*(text for pair in history for text in pair), "\n".join(asked)]
    roles = ("user", "assistant")
    return _trl({**fields, "prompt": [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]})


def _trl(fields: Fields) -> Fields:
    """TRL's preferences (dataset_formats): `prompt` with `chosen` and `rejected`, each a string or messages; without a
    prompt it is what `chosen` and `rejected` begin with alike."""
    fields = dict(fields)
    better, worse = fields["chosen"], fields["rejected"]
    prompt = fields.pop("prompt", None)
    if prompt is None:
        if not isinstance(better, list) or not isinstance(worse, list):
            raise UserError("`chosen` and `rejected` without a `prompt`: expected lists of messages")
        alike = 0
        while alike < min(len(better), len(worse)) - 1 and better[alike] == worse[alike]:
            alike += 1
        prompt, fields["chosen"], fields["rejected"] = better[:alike], better[alike:], worse[alike:]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _as_list("prompt", prompt)
    return _dialogue({**fields, "messages": messages})


def _dialogue(fields: Fields) -> Fields:
    """Messages with their audio in its place, and a `system` beside them as the first of them."""
    fields = dict(fields)
    for kind in ("images", "videos", "tools"):
        if fields.pop(kind, None):
            raise UserError(f"the row has `{kind}`: expected audio and text")
    audios = fields.pop("audios", None) or []
    audios = [audios] if isinstance(audios, str) else audios
    if not isinstance(audios, list):
        raise UserError(f"`audios` is {audios!r:.80}, expected a list of paths")
    messages = _place(fields["messages"], audios)
    if system := fields.pop("system", None):  # an empty one stands for none in these forms
        if isinstance(messages[0], Mapping) and messages[0].get("role") == "system":
            raise UserError("the row has `system` and a first message of the system: expected one of them")
        messages = [{"role": "system", "content": system}, *messages]
    return {**fields, "messages": messages}


def _place(messages: Sequence[Any], audios: Sequence[Any]) -> list[Any]:
    """The k-th mark in what the user says, or the k-th part {type: audio} that names none, is the k-th of `audios`."""
    messages = [_divide(message) for message in messages]
    asked = [message for message in messages if isinstance(message, Mapping) and message.get("role") == "user"]
    parts = [part for message in asked if isinstance(message.get("content"), list) for part in message["content"]]
    marks = parts.count(_UNNAMED)
    if marks != len(audios):
        named = sum(isinstance(part, Mapping) and ("audio" in part or "audio_url" in part) for part in parts)
        raise UserError(
            f"the user's messages have {marks + named} audio marks ({MARK}), the row has {named + len(audios)} audios"
        )
    remaining = iter(audios)
    for part in parts:
        if part == _UNNAMED:
            part["audio"] = next(remaining)
    return messages


def _divide(message: Any) -> Any:
    """A message without the null fields of its parts, which Parquet adds until all parts have the same, and with each
    mark in what the user says as a part of its own."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str) and message.get("role") == "user" and _MARKS.search(content):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        return message
    parts = [
        {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else part
        for part in content
    ]
    if message.get("role") == "user":
        parts = [piece for part in parts for piece in _pieces(part)]
    return {**message, "content": parts}


def _pieces(part: Any) -> list[Any]:
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str) or not _MARKS.search(text):
        return [part]
    pieces = filter(None, _MARKS.split(text))
    return [dict(_UNNAMED) if _MARKS.fullmatch(piece) else {"type": "text", "text": piece} for piece in pieces]


def _as_list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError(f"`{name}` is {value!r:.80}, expected a list of messages")
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
    ("nsynth", "mna", None),
    ("srwt", "srwt", "zh"),
)
_LANGUAGE = re.compile(rf"<\|({'|'.join(LANGUAGES)})\|>|(?:^|_)({'|'.join(LANGUAGES)})(?=_|$)")


def _official(fields: Fields) -> Fields:
    """`{audio, gt, source}` of Qwen-Audio (with `question` for ClothoAQA) and `{audio, prompt, gt, source}` of
    Qwen2-Audio, as task rows: the task is told from `source`, and asked as our prompting styles ask it."""
    source = str(fields.get("source", "")).lower()
    found = next((entry for entry in _SOURCES if source.startswith(entry[0])), None)
    if found is None:
        known = ", ".join(name for name, _, _ in _SOURCES)
        raise UserError(f"`source` is {fields.get('source')!r}; known sources begin with {known}")
    _, task, language = found
    row = {**fields, "task": task, "text": fields["gt"]}
    del row["gt"]
    languages = [tag or name for tag, name in _LANGUAGE.findall(source)]
    if task == "s2tt":
        if len(languages) < 2:
            raise UserError(f"`source` is {fields['source']!r}, expected two languages as in covost2_en_de_test")
        row["language"], row["target_language"] = languages[-2:]
    elif task == "asr":
        asked = [tag for tag, _ in _LANGUAGE.findall(str(fields.get("prompt", ""))) if tag]
        row["language"] = next(iter([*asked, *languages, *filter(None, [language])]), None)
    elif task == "aac":
        row["caption_style"] = "clotho" if source.startswith("clotho") else "audiocaps"
        if isinstance(row["text"], list) and row["text"]:  # all captions of a clip
            row["references"], row["text"] = row["text"], row["text"][0]
    elif task == "mna":
        row |= Notes().parse(row.pop("text"))
    elif task == "srwt":
        row |= {"language": (languages or [language])[0], **Words().parse(_OPENING.sub("", row.pop("text")))}
    return row


_OPENING = re.compile(r"^(?:<\|\w+\|>)*<\|0\.00\|>")  # of a timed reference; what is asked ends with it

# Inference_Foundation.py of AIR-Bench; a choice that there is not is written None, as there.
_CHOOSE = (
    "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, you may only "
    "choose A or B or C or D."
)


def _air_bench(fields: Fields) -> Fields:
    """`{path, question, answer_gt, task_name, dataset_name}` of AIR-Bench as a dialogue: with `choice_a` to `choice_d`
    its foundation part, with `meta_info` its chat part. The audio of a task lies in a folder of its own."""
    missing = sorted({"path", "question", "task_name", "dataset_name"} - fields.keys())
    if missing:
        raise UserError(f"a row of AIR-Bench (`answer_gt`) has no {', '.join(missing)}")
    name = f"{fields['task_name']}_{fields['dataset_name']}"
    path = f"{name}/{fields['path']}"
    if fields["task_name"] == "Audio_Grounding":  # named .wav, and stored as .flac
        path = f"{path[:-3]}flac"
    question = fields["question"]
    if "choice_a" in fields:
        options = {letter: fields.get(f"choice_{letter.lower()}") for letter in "ABCD"}
        if fields["answer_gt"] not in options.values():
            raise UserError(f"`answer_gt` is {fields['answer_gt']!r:.80}, expected one of the choices")
        question = "\n".join([_CHOOSE, question, *(f"{letter}. {text}" for letter, text in options.items())])
    parts = [{"type": "audio", "audio": path}, {"type": "text", "text": question}]
    answer = {"role": "assistant", "content": fields["answer_gt"]}
    rest = {key: value for key, value in fields.items() if key != "path"}
    return {**rest, "skill": name, "messages": [{"role": "user", "content": parts}, answer]}
