"""Dialogues in ChatML, in the formats of the two released chat models (Qwen-Audio-Chat and Qwen2-Audio-Instruct).

A turn is a piece of a prompt or answer (`prompts.Turn`). A message consists of several turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from auris.errors import UserError, shorten
from auris.files import digest
from auris.text.audio_marks import escape_marks
from auris.text.prompts import END_OF_TEXT, IM_END, IM_START, Control, NaturalPrompt, TagPrompt, Turn, merge_turns

SYSTEM = "You are a helpful assistant."  # default system message of both models
_ROLES = ("system", "user", "assistant")

_AUDIO_KEYS = ("audio", "audio_url")  # keys under which a part of a message may hold a clip

# A dialogue with every element that chat formats write differently. The fingerprint is a digest of its turns.
_FINGERPRINT_DIALOGUE = (
    {"role": "user", "content": [{"type": "audio", "audio": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": [{"type": "audio", "audio": "d"}]},
    {"role": "assistant", "content": "e"},
)

Message = Mapping[str, Any]
"""`{role, content}`; content is a string, or a list of `{type: audio, audio: ...}` and `{type: text, text: ...}`."""


def audios(messages: Sequence[Message]) -> list[Any]:
    """Return the clips of a dialogue (paths, arrays, ...) in the order in which they occur.

    Raises:
        UserError: The messages have an unknown structure.
    """
    _check_roles(messages)
    return [value for message in messages for kind, value in _parse_content(message) if kind == "audio"]


def message_text(message: Message) -> str:
    """Return the text of a message without its audio."""
    return "".join(value for kind, value in _parse_content(message) if kind == "text")


def map_audios(change: Callable[[Any], Any], messages: Sequence[Message]) -> list[Message]:
    """Return a copy of a valid dialogue in which `change` is applied to each clip, in the order of `audios`."""

    def map_part(part: Any) -> Any:
        key = next((key for key in _AUDIO_KEYS if key in part), None)
        return part if key is None else {**part, key: change(part[key])}

    return [
        message if isinstance(message["content"], str) else {**message, "content": [*map(map_part, message["content"])]}
        for message in messages
    ]


def escape_audio_marks(messages: Sequence[Any]) -> list[Any]:
    """Return a copy of messages as a row has them: texts of the user that look like audio marks are escaped."""

    def escape_part(part: Any) -> Any:
        text = part.get("text") if isinstance(part, Mapping) else None
        return {**part, "text": escape_marks(text)} if isinstance(text, str) else part

    def escape(message: Any) -> Any:
        if not isinstance(message, Mapping) or message.get("role") != "user":
            return message
        content = message.get("content")
        if isinstance(content, str):
            content = escape_marks(content)
        elif isinstance(content, list):
            content = [*map(escape_part, content)]
        return {**message, "content": content}

    return [*map(escape, messages)]


class Chat:
    """ChatML format: writes a dialogue as turns, which have the same tokens as in the released chat models.

    There is no switch for the mode: a message with only audio is voice chat, a message with audio and text is audio
    analysis. Text of a message remains text: names of ChatML tokens or of audio tokens in it are tokenised as
    characters, so a message cannot start another message. Audio marks and their escapes (`auris.text.audio_marks`) have
    a meaning only in rows, which are converted to messages without them.

    Attributes:
        audio_begin: Token before the audio of a clip.
        audio_pad: Token that stands for the audio of a clip.
        audio_end: Token after the audio of a clip.
        stop: Control tokens that end an answer.
        clip_template: Text before and after a clip, with fields for the number of the clip and the audio.
        restarts_numbering: Whether the first clip of each message has the number 1. Otherwise the numbers continue.
        header: Control tokens that the role and the line break of a message may contain. With `ALL`, these two are
            tokenised by themselves; with `TAGS`, together with the text that follows them.
    """

    audio_begin: str
    audio_pad: str
    audio_end: str
    stop: tuple[str, ...]
    clip_template: str
    restarts_numbering: bool
    header: Control

    @property
    def audio_pads(self) -> tuple[str, ...]:
        """A tuple of only the audio pad of this format."""
        return (self.audio_pad,)

    def fingerprint(self) -> str:
        """Return a digest of everything that determines how dialogues are written."""
        return digest([type(self).__name__, repr(self.turns(_FINGERPRINT_DIALOGUE, supervise=True))])

    def turns(self, messages: Sequence[Message], *, supervise: bool = False) -> list[Turn]:
        """Write a dialogue as turns.

        Args:
            messages: Messages. If the first message is not a system message, the default system message is added.
            supervise: Whether to train the model on the messages of the assistant and their end tokens, except for
                messages with `loss: false`. The last message must then be from the assistant. Otherwise, a dialogue
                that does not end with the assistant is followed by the beginning of the assistant's next message.

        Raises:
            UserError: The messages have an unknown structure, or `supervise` is set and the last message is not from
                the assistant.
        """
        messages = _add_system_message(messages)
        ends_with_answer = messages[-1]["role"] == "assistant"
        if supervise and not ends_with_answer:
            raise UserError(
                f"the last message is from the {messages[-1]['role']}, expected a message from the assistant in a "
                "dialogue to train on"
            )
        turns = [turn for message_turns in self._write(messages, supervise) for turn in message_turns]
        return merge_turns(turns if ends_with_answer else [*turns, *self._open("assistant")])

    def _write(self, messages: Sequence[Message], supervise: bool = False) -> Iterator[list[Turn]]:
        """Yield the turns of each message."""
        before, after = self.clip_template.split("{audio}")
        clip_number = 0
        for index, message in enumerate(messages):
            is_trained = supervise and message["role"] == "assistant" and message.get("loss", True)
            role = "answer" if is_trained and index + 1 == len(messages) else "prompt"
            clip_number = 0 if self.restarts_numbering else clip_number
            turns = self._open(message["role"])
            for kind, value in _parse_content(message):
                if kind == "text":
                    turns.append(Turn(role, value, is_trained, Control.TAGS))
                else:
                    clip_number += 1
                    turns += [
                        Turn("prompt", before.format(clip_number), False, Control.TAGS),
                        Turn("prompt", self.audio_begin + self.audio_pad + self.audio_end, False),
                        Turn("prompt", after, False, Control.TAGS),
                    ]
            yield [*turns, Turn(role, IM_END, is_trained), Turn(role, "\n", False, self.header)]

    def _open(self, role: str) -> list[Turn]:
        return [Turn("prompt", IM_START, False), Turn("prompt", f"{role}\n", False, self.header)]


class QwenAudioChat(Chat):
    """Format of Qwen-Audio-Chat (qwen_generation_utils.py `make_context`, tokenization_qwen.py `from_list_format`).

    Args:
        spacing: Which of the three published forms the text around a clip has; a key of `SPACINGS`.
    """

    SPACINGS: ClassVar = {
        "released": "Audio {}:{audio}\n",  # from_list_format, which the released chat model uses
        "sft_sample": "Audio {}: {audio}\n",  # assets/sft_sample.txt
        "paper": "Audio {}: {audio}",
    }
    audio_begin, audio_pad, audio_end = TagPrompt.audio_begin, TagPrompt.audio_pad, TagPrompt.audio_end
    stop = (IM_END, IM_START, END_OF_TEXT)
    restarts_numbering = True
    header = Control.ALL

    def __init__(self, *, spacing: str = "released"):
        if spacing not in self.SPACINGS:
            raise UserError(f"spacing={shorten(spacing)}: expected {', '.join(self.SPACINGS)}")
        self.clip_template = self.SPACINGS[spacing]

    def drop_oldest(
        self,
        messages: Sequence[Message],
        length: Callable[[list[Turn], list[Any]], int],
        *,
        max_window_size: int = 6144,
    ) -> list[Message]:
        """Drop the oldest exchanges of a dialogue, as the released chat model does.

        Args:
            messages: The dialogue.
            length: Takes turns and their clips, and returns their number of tokens.
            max_window_size: Maximum number of tokens of the system message and the exchanges before the last question
                (6144 in chat_generation_config.json).
        """
        messages = _add_system_message(messages)
        turns_by_message = list(self._write(messages))
        lengths = [length(turns, audios([message])) for turns, message in zip(turns_by_message, messages, strict=True)]
        # An exchange is a question and its answer. Messages before the first question belong to the first exchange.
        starts = [index for index, message in enumerate(messages) if message["role"] == "user" and index > 1]
        first_kept = starts.pop() if starts else 1
        total = lengths[0] - 1  # the released code counts the line break before the last question as a part of it
        for start in reversed([1, *starts] if first_kept > 1 else []):
            total += sum(lengths[start:first_kept])
            if total >= max_window_size:
                break
            first_kept = start
        return [messages[0], *messages[first_kept:]]

    def _write(self, messages: Sequence[Message], supervise: bool = False) -> Iterator[list[Turn]]:
        """Yield the turns of each message. After an unanswered question, a second line break is a separate token."""
        roles = [message["role"] for message in messages]
        for index, turns in enumerate(super()._write(messages, supervise)):
            is_unanswered = roles[index : index + 2] == ["user", "user"]
            yield [*turns, Turn("prompt", "\n", False, Control.NONE)] if is_unanswered else turns


class Qwen2AudioChat(Chat):
    """Format of Qwen2-Audio-Instruct (the default chat template of transformers' Qwen2AudioProcessor)."""

    audio_begin, audio_pad, audio_end = NaturalPrompt.audio_begin, NaturalPrompt.audio_pad, NaturalPrompt.audio_end
    stop = (END_OF_TEXT, IM_END)
    clip_template = "Audio {}: {audio}\n"
    restarts_numbering = False
    header = Control.TAGS


def _check_roles(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise UserError(f"messages[{number}] is {shorten(message)}, expected a `role` of {', '.join(_ROLES)}")


def _add_system_message(messages: Sequence[Message]) -> list[Message]:
    if not messages:
        raise UserError("a dialogue has no messages, expected at least one {role, content}")
    _check_roles(messages)
    system = [] if messages[0]["role"] == "system" else [{"role": "system", "content": SYSTEM}]
    return [*system, *messages]


def _parse_content(message: Message) -> list[tuple[str, Any]]:
    """Return the parts of a message in order, as ("text", string) or ("audio", clip)."""
    content, message_name = message.get("content"), f"a message of the {message['role']}"
    if isinstance(content, str):
        return [("text", content)]
    if not isinstance(content, Sequence):
        raise UserError(f"the content of {message_name} is {shorten(content)}, expected a string or a list")
    parts: list[tuple[str, Any]] = []
    for part in content:
        clips = [part[key] for key in _AUDIO_KEYS if key in part] if isinstance(part, Mapping) else []
        if clips and message["role"] == "user":
            parts.append(("audio", clips[0]))
        elif clips:
            raise UserError(f"{message_name} contains audio ({shorten(clips[0])}), but only messages of the user may")
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            parts.append(("text", part["text"]))
        else:
            raise UserError(
                f"{message_name} contains {shorten(part)}, expected {{type: audio, audio: ...}} or "
                "{type: text, text: ...}"
            )
    return parts
