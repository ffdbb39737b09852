"""Prompt styles of the base models: hierarchical tags (Qwen-Audio) and natural language (Qwen2-Audio).

A style writes a row, from its labels, as a list of turns. A turn is a piece of a prompt or answer, not a message of a
speaker. It states whether it is supervised and which control tokens its text may contain, so the loss mask does not
have to be derived from tokens later. Text of a row or a user cannot begin a message, end an answer or stand for audio.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar, Protocol, Self

import numpy as np

from auris.errors import UserError
from auris.files import digest
from auris.text import tasks
from auris.text.answer_formats import Labels, Tag
from auris.text.audio_marks import QWEN2_AUDIO_TOKENS, QWEN_AUDIO_TOKENS, split_at_marks

END_OF_TEXT = "<|endoftext|>"  # ends an answer in both base models (Qwen-Audio FAQ.md; Qwen2-Audio evaluation)
IM_START, IM_END = "<|im_start|>", "<|im_end|>"  # ChatML: begin and end of a message

# Tags in the order of Qwen-Audio's tokenization_qwen.py, in three groups. The timestamps are between the first two
# groups, the notes between the last two.
_TAGS = (
    "startoftranscript startofanalysis translate transcribe caption keyword unknown "
    "en zh de es ko fr ja it zh_tr notimestamps sil timestamps",
    "caption_audiocaps caption_clotho audioset_ontology caption_plain itn wo_itn startofentityvalue endofentityvalue "
    "startofentitytype endofentitytype named_entity_recognition audio_grounding startofword endofword delim "
    "emotion_recognition music_description note_analysis pitch",
    "sonic instrument speaker_meta song_meta question answer choice scene event vocal_classification "
    "speech_understanding scenario action entities speech_edit",
)

FIELD = re.compile(r"\{(\w+)\}")  # a field of a template, which a label fills
_TAG_OR_FIELD = re.compile(r"(<\|[^|<>]*\|>|\{\w+\})")


def audio_tags() -> list[str]:
    """Return Qwen-Audio's 3,311 tags in the order of its vocabulary: tasks, languages, 10 ms timestamps, MIDI notes."""
    first, second, third = ([f"<|{name}|>" for name in names.split()] for names in _TAGS)
    return [
        *first,
        *(f"<|{hundredths / 100:.2f}|>" for hundredths in range(3001)),  # <|0.00|> .. <|30.00|>
        *second,
        *(f"<|midi_pitch_{note}|>" for note in range(128)),
        "<|velocity|>",
        *(f"<|midi_velocity_{level}|>" for level in range(128)),
        *third,
    ]


class Control(Enum):
    """The control tokens that a text may contain. The names of other control tokens in it are plain characters."""

    NONE = "none"  # no control tokens; for labels of a row
    TAGS = "tags"  # Qwen-Audio's tags, as in its chat, but no ChatML or audio tokens; for text of dialogues
    ALL = "all"  # every control token of the vocabulary; for text that auris writes


@dataclass(frozen=True)
class Turn:
    """A piece of a prompt or answer with one text, one loss mask value and one set of allowed control tokens.

    Each turn is tokenised by itself, so that no token contains characters of two turns.

    Attributes:
        role: "prompt" or "answer".
        text: Text of the turn.
        supervise: Whether the model is trained to predict the tokens of the turn.
        control: The control tokens that the text may contain.
    """

    role: str
    text: str
    supervise: bool
    control: Control = Control.ALL


def merge_turns(turns: Iterable[Turn]) -> list[Turn]:
    """Join neighbouring turns that differ only in their text, so that an instruction is tokenised as a whole."""
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last and (last.role, last.supervise, last.control) == (turn.role, turn.supervise, turn.control):
            merged[-1] = replace(last, text=last.text + turn.text)
        else:
            merged.append(turn)
    return merged


class PromptStyle(Protocol):
    """A way to write prompts: natural, tags, both or one of the chat formats. The config group `prompt` selects it."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Control tokens that end an answer."""
        ...

    @property
    def audio_pads(self) -> tuple[str, ...]:
        """Tokens that stand for the audio of a clip. They determine the control tokens that a vocabulary needs."""
        ...

    def fingerprint(self) -> str:
        """Return a digest of everything that determines how rows or dialogues are written."""
        ...


class RowPromptStyle(PromptStyle, Protocol):
    """A prompt style for task rows: natural, tags or both."""

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The single styles (tags or natural language). Each row is written in one of them."""
        ...

    def turns(self, labels: Labels, n_clips: int, rng: np.random.Generator | None = None) -> list[Turn]:
        """Write a row. Its wording is drawn with `rng`; without `rng` it is the canonical wording."""
        ...

    def variants(self, labels: Labels, n_clips: int) -> list[list[Turn]]:
        """Write a row in every way in which `turns` may write it."""
        ...


class Prompt(ABC):
    """Base class of the tag style and the natural style, which fill a template of the task table with a row's labels.

    A template is also called a wording, because a task may have several in natural language.

    Attributes:
        audio_begin: Token before the audio of a clip.
        audio_pad: Token that stands for the audio of a clip. It occurs once per clip in a turn's text, and the
            tokenizer expands it to the clip's audio tokens.
        audio_end: Token after the audio of a clip.
        natural: Whether answers are in natural language, without control tokens.
        stop: Control tokens that end an answer.
        wording: A wording that replaces the wordings of all tasks (see `with_wording`), or None.

    Args:
        supervise_tags: Whether the model is trained to predict the tags of a prompt too, except the first one.
            Qwen-Audio is, and predicts the language tag, for instance. In the natural style this concerns the language
            tag at the end of the instruction, which the Qwen2-Audio paper shows once as given and once as predicted.
    """

    audio_begin: str
    audio_pad: str
    audio_end: str
    natural: bool
    stop: tuple[str, ...] = (END_OF_TEXT,)
    wording: str | None = None

    def __init__(self, *, supervise_tags: bool = True):
        self.supervise_tags = supervise_tags

    @abstractmethod
    def templates(self, task: tasks.Task) -> tuple[str, ...]:
        """Return the wordings of a task. The first wording is the canonical one, which is used in evaluation."""

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """A tuple of only this style."""
        return (self,)

    @property
    def audio_pads(self) -> tuple[str, ...]:
        """A tuple of only the audio pad of this style."""
        return (self.audio_pad,)

    def with_wording(self, wording: str) -> Self:
        """Return a copy of this style that uses `wording`, for instance a benchmark's, for all tasks."""
        style = copy(self)
        style.wording = wording
        return style

    def wordings(self, labels: Labels) -> tuple[str, ...]:
        """Return the wordings of a row's task. The first wording is the canonical one."""
        return (self.wording,) if self.wording else self.templates(tasks.get_task(labels["task"]))

    def turns(self, labels: Labels, n_clips: int, rng: np.random.Generator | None = None) -> list[Turn]:
        """Write a row. Its wording is drawn with `rng`; without `rng` it is the canonical wording."""
        wordings = self.wordings(labels)
        return self._write(wordings[0] if rng is None else wordings[int(rng.integers(len(wordings)))], labels, n_clips)

    def variants(self, labels: Labels, n_clips: int) -> list[list[Turn]]:
        """Write a row in every way in which `turns` may write it."""
        return [self._write(wording, labels, n_clips) for wording in self.wordings(labels)]

    def fingerprint(self) -> str:
        """Return a digest of everything that determines how rows are written."""
        wordings = [self.wording] if self.wording else [self.templates(task) for task in tasks.TASKS.values()]
        return digest([type(self).__name__, wordings])

    def raw(self, prompt: str, n_clips: int) -> list[Turn]:
        """Write the audio followed by an unchanged prompt, as the scripts of both releases do for the base models.

        As in these scripts, names of control tokens in the prompt become control tokens. A backslash before an audio
        mark makes it ordinary text (`auris.text.audio_marks`). For untrusted text, use a chat format.
        """
        turns = [
            Turn("prompt", piece, supervise=False, control=Control.NONE if kind == "escaped" else Control.ALL)
            for kind, piece in split_at_marks(prompt)
        ]
        return merge_turns([Turn("prompt", self._audio(n_clips), supervise=False), *turns])

    def _audio(self, n_clips: int) -> str:
        return (self.audio_begin + self.audio_pad + self.audio_end) * n_clips

    def _write(self, wording: str, labels: Labels, n_clips: int) -> list[Turn]:
        if problem := tasks.find_problem(labels):
            raise UserError(problem)
        return [*self.ask(wording, tasks.closed_fields(labels), labels, n_clips), *self.answer(labels)]

    def ask(self, wording: str, closed_fields: Mapping[str, str], labels: Labels, n_clips: int) -> list[Turn]:
        """Write the prompt of a row.

        Args:
            wording: Template of the task table, or a benchmark's prompt. A backslash before an audio mark makes it
                ordinary text (`auris.text.audio_marks`).
            closed_fields: Values of the fields with a finite set of values (`tasks.closed_fields`), which may be part
                of a control token. They are filled in first, so that tags and instructions are tokenised as a whole.
            labels: Labels of the row. They fill the other fields as plain text, in separate turns.
            n_clips: Number of clips before the instruction.
        """
        wording = FIELD.sub(lambda match: closed_fields.get(match[1], match[0]), wording)
        turns = [Turn("prompt", self._audio(n_clips), supervise=False)] if n_clips else []
        for index, (is_escaped, piece) in enumerate(_split_wording(wording)):
            if is_escaped:
                turns.append(Turn("prompt", piece, supervise=False, control=Control.NONE))
            elif field := FIELD.fullmatch(piece):
                turns.append(Turn("prompt", labels[field[1]], supervise=False, control=Control.NONE))
            else:
                is_later_tag = index > 0 and _TAG_OR_FIELD.fullmatch(piece) is not None
                turns.append(Turn("prompt", piece, supervise=self.supervise_tags and is_later_tag))
        return merge_turns(turns)

    def answer(self, labels: Labels) -> list[Turn]:
        """Write the answer of a row and the token that ends it."""
        pieces = tasks.get_task(labels["task"]).answer.render(labels, tags=not self.natural)
        controls = [Control.ALL if isinstance(piece, Tag) else Control.NONE for piece in pieces]
        turns = [Turn("answer", piece, True, control) for piece, control in zip(pieces, controls, strict=True)]
        return merge_turns([*turns, Turn("answer", END_OF_TEXT, supervise=True)])


def _split_wording(wording: str) -> Iterator[tuple[bool, str]]:
    """Yield the tags, fields and texts of a wording, with whether they are escaped audio marks."""
    for kind, text in split_at_marks(wording):
        is_escaped = kind == "escaped"
        for piece in [text] if is_escaped else filter(None, _TAG_OR_FIELD.split(text)):
            yield is_escaped, piece


class TagPrompt(Prompt):
    """Hierarchical tags: transcription, language, task, text language, timestamps, output (Qwen-Audio section 3.2)."""

    audio_begin, audio_pad, audio_end = QWEN_AUDIO_TOKENS
    natural = False

    def templates(self, task: tasks.Task) -> tuple[str, ...]:
        """Return the tags of a task."""
        return (task.tags,)


class NaturalPrompt(Prompt):
    """Natural-language instructions (Qwen2-Audio section 2), without a space between the audio and the instruction.

    Args:
        supervise_tags: See `Prompt`.
        wordings: Which wordings of each task to use: "all"; "seen", all except the last one; or "unseen", only the last
            one. If a model is trained with the seen wordings, evaluation with the unseen wordings tests whether it
            understands the instruction. A task with a single wording always uses that wording.
    """

    audio_begin, audio_pad, audio_end = QWEN2_AUDIO_TOKENS
    natural = True
    WORDINGS: ClassVar = {"all": slice(None), "seen": slice(-1), "unseen": slice(-1, None)}

    def __init__(self, *, supervise_tags: bool = True, wordings: str = "all"):
        if wordings not in self.WORDINGS:
            raise UserError(f"prompt.wordings={wordings}: expected {', '.join(self.WORDINGS)}")
        super().__init__(supervise_tags=supervise_tags)
        self.wordings_subset = wordings

    def templates(self, task: tasks.Task) -> tuple[str, ...]:
        """Return the selected instructions of a task."""
        return task.wordings[self.WORDINGS[self.wordings_subset]] if task.paraphrases else task.wordings


class BothPrompts:
    """Tags or natural language, drawn for each row.

    It is used to train the small language model that replaces Qwen-7B for the synthetic corpus, which thus learns both
    styles.

    Args:
        supervise_tags: See `Prompt`.
        wordings: See `NaturalPrompt`.
    """

    stop: tuple[str, ...] = Prompt.stop
    audio_pads: tuple[str, ...] = (TagPrompt.audio_pad, NaturalPrompt.audio_pad)

    def __init__(self, *, supervise_tags: bool = True, wordings: str = "all"):
        natural = NaturalPrompt(supervise_tags=supervise_tags, wordings=wordings)
        self.prompts: tuple[Prompt, ...] = (TagPrompt(supervise_tags=supervise_tags), natural)

    def turns(self, labels: Labels, n_clips: int, rng: np.random.Generator | None = None) -> list[Turn]:
        """Write a row. Its style and wording are drawn with `rng`; without `rng` it is written with tags."""
        style = self.prompts[0 if rng is None else int(rng.integers(len(self.prompts)))]
        return style.turns(labels, n_clips, rng)

    def variants(self, labels: Labels, n_clips: int) -> list[list[Turn]]:
        """Write a row in every wording of both styles."""
        return [turns for prompt in self.prompts for turns in prompt.variants(labels, n_clips)]

    def fingerprint(self) -> str:
        """Return a digest of everything that determines how rows are written."""
        return digest([prompt.fingerprint() for prompt in self.prompts])
