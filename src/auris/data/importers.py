"""Conversion of rows in the formats of other projects to auris rows. Each format is recognised by its fields.

An audio mark is a placeholder in a message that shows where a clip belongs, such as `<audio>`; a backslash before it
makes it ordinary text (`auris.text.audio_marks`). The number of audio marks in the user's messages must equal the
number of audio files. A mark without a file, or a file without a mark, would change the meaning of the prompt, so such
a row is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from auris.errors import UserError, count
from auris.text.answer_formats import Notes, Words
from auris.text.audio_marks import MARK, has_marks, split_at_marks
from auris.text.tasks import LANGUAGES

_UNNAMED_AUDIO = {"type": "audio"}  # audio mark that is a part of a message

Fields = Mapping[str, Any]
"""The fields of a row as its file stores them: JSON values by name, in any known format."""


def convert(fields: Fields) -> Fields:
    """Convert the fields of a row to the fields of an auris row. The fields of auris rows are returned unchanged.

    Raises:
        UserError: The row has a known format but is invalid.
    """
    if "conversations" in fields:
        return _convert_llama_factory(fields)
    if "messages" in fields:
        return _convert_swift(fields)
    if "chosen" in fields and "rejected" in fields:
        return _convert_alpaca(fields) if "instruction" in fields else _convert_trl(fields)
    if "gt" in fields and "audio" in fields:
        return _convert_official(fields)
    if "answer_gt" in fields:
        return _convert_air_bench(fields)
    return dict(fields)


# --- dialogues ----------------------------------------------------------------------------------------------------


def _convert_llama_factory(fields: Fields) -> Fields:
    """Convert LLaMA-Factory's sharegpt format (data/README.md): `conversations` of {from, value}.

    LLaMA-Factory's format with `messages` is the format of ms-swift except for `chosen` and `rejected`.
    """
    roles = {"human": "user", "gpt": "assistant"}

    def rename(entry: Any) -> Any:
        if not isinstance(entry, Mapping) or not {"from", "value"} <= entry.keys():
            return entry
        return {"role": roles.get(str(entry["from"]), entry["from"]), "content": entry["value"]}

    fields = dict(fields)
    messages = [rename(entry) for entry in _as_list("conversations", fields.pop("conversations"))]
    answers = {key: rename(fields[key]) for key in ("chosen", "rejected") if key in fields}
    return _convert_dialogue({**fields, **answers, "messages": messages})


def _convert_swift(fields: Fields) -> Fields:
    """Convert ms-swift's standard format (Custom-dataset.md). Auris dialogues are returned unchanged.

    The chosen answer is the last message; the rejected answer is `rejected_response` or the last of
    `rejected_messages`.
    """
    fields = dict(fields)
    messages = _as_list("messages", fields["messages"])
    rejected = fields.pop("rejected_response", None)
    if (rejected_messages := fields.pop("rejected_messages", None)) is not None:
        rejected_messages = _as_list("rejected_messages", rejected_messages)
        audios = fields.get("audios", [])
        if rejected_messages[:-1] != messages[:-1] or fields.pop("rejected_audios", audios) != audios:
            raise UserError("`messages` and `rejected_messages` differ before the answer, expected the same prompt")
        rejected = rejected_messages[-1]
    if rejected is not None:
        fields |= {"chosen": messages[-1], "rejected": rejected}
        messages = messages[:-1]
    return _convert_dialogue({**fields, "messages": messages})


def _convert_alpaca(fields: Fields) -> Fields:
    """Convert LLaMA-Factory's alpaca format of preferences (data/README.md).

    The question is `instruction` and, on the next line, `input`; `history` holds earlier (question, answer) pairs.
    """
    fields = dict(fields)
    question_parts = [part for part in (fields.pop("instruction"), fields.pop("input", None)) if part]
    if not all(isinstance(part, str) for part in question_parts):
        raise UserError(f"`instruction` and `input` are {question_parts!r:.80}, expected strings")
    history = fields.pop("history", None) or []
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        raise UserError(f"`history` is {history!r:.80}, expected a list of [question, answer]")
    texts = [*(text for pair in history for text in pair), "\n".join(question_parts)]
    roles = ("user", "assistant")
    return _convert_trl({**fields, "prompt": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]})


def _convert_trl(fields: Fields) -> Fields:
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
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _as_list("prompt", prompt)
    return _convert_dialogue({**fields, "messages": messages})


def _convert_dialogue(fields: Fields) -> Fields:
    """Put the audio files into the messages, and the text of a `system` field before them as a message."""
    fields = dict(fields)
    for kind in ("images", "videos", "tools"):
        if fields.pop(kind, None):
            raise UserError(f"the row has `{kind}`, expected audio and text only")
    audios = fields.pop("audios", None) or []
    audios = [audios] if isinstance(audios, str) else audios
    if not isinstance(audios, list):
        raise UserError(f"`audios` is {audios!r:.80}, expected a list of paths")
    messages = _place_audio(fields["messages"], audios)
    if system := fields.pop("system", None):  # an empty string means no system message in these formats
        if isinstance(messages[0], Mapping) and messages[0].get("role") == "system":
            raise UserError("the row has `system` and a first message with role 'system', expected only one")
        messages = [{"role": "system", "content": system}, *messages]
    return {**fields, "messages": messages}


def _place_audio(messages: Sequence[Any], audios: Sequence[Any]) -> list[Any]:
    """Replace the k-th audio mark in the user's messages by the k-th of `audios`.

    An audio mark is `MARK` or an audio token in a text, or a part {type: audio} without a path.
    """
    messages = [_split_at_marks(message) for message in messages]
    user_messages = [message for message in messages if isinstance(message, Mapping) and message.get("role") == "user"]
    parts = [
        part for message in user_messages if isinstance(message.get("content"), list) for part in message["content"]
    ]
    n_marks = parts.count(_UNNAMED_AUDIO)
    if n_marks != len(audios):
        # A part with a path is a mark and an audio file at once.
        n_named = sum(isinstance(part, Mapping) and ("audio" in part or "audio_url" in part) for part in parts)
        raise UserError(
            f"the user's messages have {count(n_marks + n_named, 'audio mark')} ({MARK}), "
            f"but the row has {count(n_named + len(audios), 'audio file')}; "
            f"write a mark that is ordinary text as \\{MARK}"
        )
    remaining_audios = iter(audios)
    for part in parts:
        if part == _UNNAMED_AUDIO:
            part["audio"] = next(remaining_audios)
    return messages


def _split_at_marks(message: Any) -> Any:
    """Split the texts of a user's message at audio marks, so that each mark becomes a separate part.

    Null fields of parts are removed: Parquet adds them, since all parts must have the same fields there.
    """
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str) and message.get("role") == "user" and has_marks(content):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        return message
    parts = [
        {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else part
        for part in content
    ]
    if message.get("role") == "user":
        parts = [piece for part in parts for piece in _split_text(part)]
    return {**message, "content": parts}


def _split_text(part: Any) -> list[Any]:
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str) or not has_marks(text):
        return [part]
    return [
        dict(_UNNAMED_AUDIO) if kind == "mark" else {"type": "text", "text": piece}
        for kind, piece in split_at_marks(text)
    ]


def _as_list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError(f"`{name}` is {value!r:.80}, expected a list of messages")
    return value


# --- the evaluation files of the two official repositories ---------------------------------------------------------

# (prefix of `source`, task, language if neither source nor prompt states it), from EVALUATION.md of Qwen-Audio and of
# Qwen2-Audio. If several prefixes match, the first one counts.
_TASKS_BY_SOURCE = (
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
_LANGUAGE_PATTERN = re.compile(rf"<\|({'|'.join(LANGUAGES)})\|>|(?:^|_)({'|'.join(LANGUAGES)})(?=_|$)")


def _convert_official(fields: Fields) -> Fields:
    """Convert evaluation rows of Qwen-Audio and Qwen2-Audio to task rows.

    Qwen-Audio's rows have `{audio, gt, source}` (and `question` for ClothoAQA), Qwen2-Audio's rows also have `prompt`.
    `source` determines the task. `prompt` is only searched for the language of a speech recognition row, because auris
    writes the prompt of the task in its own styles.
    """
    source = str(fields.get("source", "")).lower()
    match = next((entry for entry in _TASKS_BY_SOURCE if source.startswith(entry[0])), None)
    if match is None:
        prefixes = ", ".join(prefix for prefix, _, _ in _TASKS_BY_SOURCE)
        raise UserError(f"`source` is {fields.get('source')!r}, expected it to start with one of {prefixes}")
    _, task, language = match
    row = {**fields, "task": task, "text": fields["gt"]}
    del row["gt"]
    languages = [tag or name for tag, name in _LANGUAGE_PATTERN.findall(source)]
    if task == "s2tt":
        if len(languages) < 2:
            raise UserError(f"`source` is {fields['source']!r}, expected two languages, for example covost2_en_de_test")
        row["language"], row["target_language"] = languages[-2:]
    elif task == "asr":
        prompt_languages = [tag for tag, _ in _LANGUAGE_PATTERN.findall(str(fields.get("prompt", ""))) if tag]
        row["language"] = next(iter([*prompt_languages, *languages, *filter(None, [language])]), None)
    elif task == "aac":
        row["caption_style"] = "clotho" if source.startswith("clotho") else "audiocaps"
        if isinstance(row["text"], list) and row["text"]:  # all captions of a clip
            row["references"], row["text"] = row["text"], row["text"][0]
    elif task == "mna":
        row |= Notes().parse(row.pop("text"))
    elif task == "srwt":
        row |= {"language": (languages or [language])[0], **Words().parse(_OPENING_TAGS.sub("", row.pop("text")))}
    return row


_OPENING_TAGS = re.compile(r"^(?:<\|\w+\|>)*<\|0\.00\|>")  # start of a timed reference, which is part of the prompt

# From Inference_Foundation.py of AIR-Bench. As in that script, a missing choice is written as "None".
_INSTRUCTION = (
    "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, you may only "
    "choose A or B or C or D."
)


def _convert_air_bench(fields: Fields) -> Fields:
    """Convert `{path, question, answer_gt, task_name, dataset_name}` of AIR-Bench to a dialogue.

    Rows of the foundation part of AIR-Bench have `choice_a` to `choice_d`, rows of the chat part have `meta_info`. The
    audio files of each pair of `task_name` and `dataset_name` are in a folder of their own.
    """
    missing = sorted({"path", "question", "task_name", "dataset_name"} - fields.keys())
    if missing:
        raise UserError(f"a row of AIR-Bench (with `answer_gt`) has no {', '.join(missing)}")
    # Name of the folder with the row's audio, and of the group in which the row is scored.
    skill = f"{fields['task_name']}_{fields['dataset_name']}"
    path = f"{skill}/{fields['path']}"
    if fields["task_name"] == "Audio_Grounding":  # its files are listed as .wav but stored as .flac
        path = f"{path[:-3]}flac"
    question = fields["question"]
    if "choice_a" in fields:
        options = {letter: fields.get(f"choice_{letter.lower()}") for letter in "ABCD"}
        if fields["answer_gt"] not in options.values():
            raise UserError(f"`answer_gt` is {fields['answer_gt']!r:.80}, expected one of the choices")
        question = "\n".join([_INSTRUCTION, question, *(f"{letter}. {text}" for letter, text in options.items())])
    parts = [{"type": "audio", "audio": path}, {"type": "text", "text": question}]
    answer = {"role": "assistant", "content": fields["answer_gt"]}
    other_fields = {key: value for key, value in fields.items() if key != "path"}
    return {**other_fields, "skill": skill, "messages": [{"role": "user", "content": parts}, answer]}
