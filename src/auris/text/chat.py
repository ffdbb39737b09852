"""Dialogues in ChatML, written as the two released chat systems write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from auris.errors import UserError
from auris.files import digest
from auris.text.prompts import END_OF_TEXT, IM_END, IM_START, Control, NaturalPrompt, TagPrompt, Turn, merge

SYSTEM = "You are a helpful assistant."  # of both chats, where a dialogue brings no system message
_ROLES = ("system", "user", "assistant")

_AUDIO = ("audio", "audio_url")  # what names the clip in a part of a message

# A dialogue with everything that chat templates write in their own way.
_PROBE = (
    {"role": "user", "content": [{"type": "audio", "audio": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": [{"type": "audio", "audio": "d"}]},
    {"role": "assistant", "content": "e"},
)

# {role, content}: content is a string, or a list of {type: audio, audio: ...} and {type: text, text: ...}
Message = Mapping[str, Any]


def audios(messages: Sequence[Message]) -> list[Any]:
    """What stands for the clips of a dialogue (paths, arrays, ...), in the order of their marks in its turns.

    Raises ValueError if the messages are none of the known shapes.
    """
    _check_roles(messages)
    return [value for message in messages for kind, value in _content(message) if kind == "audio"]


def text_of(message: Message) -> str:
    """The text of a message; its audio is left out."""
    return "".join(value for kind, value in _content(message) if kind == "text")


def map_audios(change: Callable[[Any], Any], messages: Sequence[Message]) -> list[Message]:
    """A dialogue of known shape with what stands for each clip changed, in the order of `audios`."""

    def part(given: Any) -> Any:
        key = next((key for key in _AUDIO if key in given), None)
        return given if key is None else {**given, key: change(given[key])}

    return [
        message if isinstance(message["content"], str) else {**message, "content": [*map(part, message["content"])]}
        for message in messages
    ]


class Chat:
    """ChatML: a dialogue as turns, equal to the released chats token by token. No mode switch: a message that is only
    audio is voice chat, one with text beside it is audio analysis.

    What a message says is text: the strings of ChatML or of audio marks in it stay characters, a dialogue cannot be
    continued from within. Raises ValueError if the messages are none of the known shapes.
    """

    audio_begin: str
    audio_pad: str
    audio_end: str
    stop: tuple[str, ...]  # what ends an answer
    label: str  # how a clip is announced
    restarts: bool  # the numbers of clips start anew in each message
    header: Control  # ALL: `role\n` is tokenised by itself; TAGS: together with the text that follows

    def fingerprint(self) -> str:
        """Return a digest of what decides how dialogues are written."""
        return digest([type(self).__name__, repr(self.turns(_PROBE, supervise=True))])

    def turns(self, messages: Sequence[Message], *, supervise: bool = False) -> list[Turn]:
        """A dialogue as turns.

        Args:
            messages: `{role, content}`; the default system message is put before them if they bring none.
            supervise: train what the assistant says and the end of it; the last message is then the answer. Without, a
                dialogue that ends with the user is followed by the beginning of an answer, to be generated.
        """
        messages = _with_system(messages)
        ends = messages[-1]["role"] == "assistant"
        if supervise and not ends:
            raise UserError(f"a dialogue to train on ends with the assistant, got {messages[-1]['role']!r} last")
        turns = [turn for message in self._write(messages, supervise) for turn in message]
        return merge(turns if ends else [*turns, *self._open("assistant")])

    def _write(self, messages: Sequence[Message], supervise: bool = False) -> Iterator[list[Turn]]:
        """Each message as turns of its own."""
        before, after = self.label.split("{audio}")
        count = 0
        for number, message in enumerate(messages):
            trained = supervise and message["role"] == "assistant"
            part = "answer" if trained and number + 1 == len(messages) else "prompt"
            count = 0 if self.restarts else count
            turns = self._open(message["role"])
            for kind, value in _content(message):
                if kind == "text":
                    turns.append(Turn(part, value, trained, Control.TAGS))
                else:
                    count += 1
                    turns += [
                        Turn("prompt", before.format(count), False, Control.TAGS),
                        Turn("prompt", self.audio_begin + self.audio_pad + self.audio_end, False),
                        Turn("prompt", after, False, Control.TAGS),
                    ]
            yield [*turns, Turn(part, IM_END, trained), Turn(part, "\n", False, self.header)]

    def _open(self, role: str) -> list[Turn]:
        return [Turn("prompt", IM_START, False), Turn("prompt", f"{role}\n", False, self.header)]


class QwenAudioChat(Chat):
    """Qwen-Audio-Chat (qwen_generation_utils.py `make_context`, tokenization_qwen.py `from_list_format`).

    Args:
        spacing: how a clip is announced: a key of `SPACINGS`, the three forms that were published.
    """

    SPACINGS = {
        "released": "Audio {}:{audio}\n",  # from_list_format: what the released chat reads
        "sft_sample": "Audio {}: {audio}\n",  # assets/sft_sample.txt
        "paper": "Audio {}: {audio}",
    }
    audio_begin, audio_pad, audio_end = TagPrompt.audio_begin, TagPrompt.audio_pad, TagPrompt.audio_end
    stop = (IM_END, IM_START, END_OF_TEXT)
    restarts = True
    header = Control.ALL

    def __init__(self, *, spacing: str = "released"):
        if spacing not in self.SPACINGS:
            raise UserError(f"spacing={spacing!r}: expected {', '.join(self.SPACINGS)}")
        self.label = self.SPACINGS[spacing]

    def recent(
        self,
        messages: Sequence[Message],
        length: Callable[[list[Turn], list[Any]], int],
        *,
        max_window_size: int = 6144,
    ) -> list[Message]:
        """The dialogue without its oldest exchanges, as the released chat shortens it.

        Args:
            length: tokens of turns with these audios.
            max_window_size: the newest exchanges are kept as long as they and the system message stay below; the last
                question is not counted (6144 in chat_generation_config.json).
        """
        messages = _with_system(messages)
        written = list(self._write(messages))
        sizes = [length(turns, audios([message])) for turns, message in zip(written, messages, strict=True)]
        # An exchange is a question and its answer; whatever precedes the first question goes with it.
        starts = [n for n, message in enumerate(messages) if message["role"] == "user" and n > 1]
        first = starts.pop() if starts else 1
        size = sizes[0] - 1  # the last line end belongs to the question
        for start in reversed([1, *starts] if first > 1 else []):
            size += sum(sizes[start:first])
            if size >= max_window_size:
                break
            first = start
        return [messages[0], *messages[first:]]

    def _write(self, messages: Sequence[Message], supervise: bool = False) -> Iterator[list[Turn]]:
        """An unanswered question is followed by a second line end, a token of its own."""
        roles = [message["role"] for message in messages]
        for number, turns in enumerate(super()._write(messages, supervise)):
            unanswered = roles[number : number + 2] == ["user", "user"]
            yield [*turns, Turn("prompt", "\n", False, Control.NONE)] if unanswered else turns


class Qwen2AudioChat(Chat):
    """Qwen2-Audio-Instruct (the default chat template of transformers' Qwen2AudioProcessor)."""

    audio_begin, audio_pad, audio_end = NaturalPrompt.audio_begin, NaturalPrompt.audio_pad, NaturalPrompt.audio_end
    stop = (END_OF_TEXT, IM_END)
    label = "Audio {}: {audio}\n"
    restarts = False
    header = Control.TAGS


def _check_roles(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise UserError(f"messages[{number}] is {message!r:.80}, expected a `role` of {', '.join(_ROLES)}")


def _with_system(messages: Sequence[Message]) -> list[Message]:
    if not messages:
        raise UserError("a dialogue has at least one message {role, content}, got none")
    _check_roles(messages)
    system = [] if messages[0]["role"] == "system" else [{"role": "system", "content": SYSTEM}]
    return [*system, *messages]


def _content(message: Message) -> list[tuple[str, Any]]:
    """A message's content in order: ("text", string) and ("audio", what stands for a clip)."""
    content, where = message.get("content"), f"a message of the {message['role']}"
    if isinstance(content, str):
        return [("text", content)]
    if not isinstance(content, Sequence):
        raise UserError(f"the content of {where} is {content!r:.80}, expected a string or a list")
    found: list[tuple[str, Any]] = []
    for part in content:
        clip = [part[key] for key in _AUDIO if key in part] if isinstance(part, Mapping) else []
        if clip and message["role"] == "user":
            found.append(("audio", clip[0]))
        elif clip:
            raise UserError(f"{where} holds audio {clip[0]!r:.80}; only the user's can")
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            found.append(("text", part["text"]))
        else:
            raise UserError(
                f"{where} holds {part!r:.80}, expected {{type: audio, audio: ...}} or {{type: text, text: ...}}"
            )
    return found
