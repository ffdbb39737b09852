"""Placement of audio files at the audio marks of the user's messages.

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
from auris.text.audio_marks import MARK, has_marks, split_at_marks

_UNNAMED_AUDIO = {"type": "audio"}  # audio mark that is a part of a message
# Qwen-Audio writes the path of a clip between its marks. The text around them is written by `text.chat`.
_PATH_IN_MARKS = re.compile(r"(?:Audio ?\d+: ?)?(?<!\\)<audio>([^<>\[\]\n]+)</audio>\n?")


def place_audio(messages: Sequence[Any], audios: Sequence[Any]) -> list[Any]:
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
    parts: list[Any] = []
    for number, content in enumerate(_PATH_IN_MARKS.split(text)):  # texts and paths alternate
        if number % 2:
            parts.append({"type": "audio", "audio": content})
        else:
            parts += [
                dict(_UNNAMED_AUDIO) if kind == "mark" else {"type": "text", "text": piece}
                for kind, piece in split_at_marks(content)
            ]
    return parts
