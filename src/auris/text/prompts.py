"""Prompt styles of the base models: hierarchical tags (Qwen-Audio) and natural language (Qwen2-Audio).

A style turns the labels of a row into turns. A turn states whether it is supervised and which control tokens its text
may contain, so masks and safety are decided here and not by later token arithmetic. Text of a row or a user cannot open
a turn, end an answer or stand for audio.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar, Protocol, Self

import numpy as np

from auris.errors import UserError
from auris.files import digest
from auris.text import tasks
from auris.text.answer_formats import Labels, Tag

END_OF_TEXT = "<|endoftext|>"  # ends an answer in both base models (Qwen-Audio FAQ.md; Qwen2-Audio evaluation)
IM_START, IM_END = "<|im_start|>", "<|im_end|>"  # ChatML: begin and end of a message

# Tags in the order of Qwen-Audio's tokenization_qwen.py, in three groups separated by timestamps and notes.
_TAGS = (
    "startoftranscript startofanalysis translate transcribe caption keyword unknown "
    "en zh de es ko fr ja it zh_tr notimestamps sil timestamps",
    "caption_audiocaps caption_clotho audioset_ontology caption_plain itn wo_itn startofentityvalue endofentityvalue "
    "startofentitytype endofentitytype named_entity_recognition audio_grounding startofword endofword delim "
    "emotion_recognition music_description note_analysis pitch",
    "sonic instrument speaker_meta song_meta question answer choice scene event vocal_classification "
    "speech_understanding scenario action entities speech_edit",
)

FIELD = re.compile(r"\{(\w+)\}")  # a label in a template
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
    """Which control tokens a text may contain."""

    NONE = "none"  # none: labels of a row
    TAGS = "tags"  # Qwen-Audio's tags, as in its chat, but neither ChatML nor audio marks: text of dialogues
    ALL = "all"  # every control token of the vocabulary: text written by auris


@dataclass(frozen=True)
class Turn:
    """A part of a prompt or answer.

    Each turn is tokenised by itself, so that no byte-pair merge crosses its ends.

    Attributes:
        role: "prompt" or "answer".
        text: Text of the turn.
        supervise: Whether its tokens are trained.
        control: Which control tokens the text may contain.
    """

    role: str
    text: str
    supervise: bool
    control: Control = Control.ALL


def merge(turns: Iterable[Turn]) -> list[Turn]:
    """Join neighbouring turns that differ only in their text, so that byte-pair merges see whole instructions."""
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last and (last.role, last.supervise, last.control) == (turn.role, turn.supervise, turn.control):
            merged[-1] = replace(last, text=last.text + turn.text)
        else:
            merged.append(turn)
    return merged


class PromptStyle(Protocol):
    """A way to write prompts, as selected by the config group `prompt`: natural, tags, both or one of the chats."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Control tokens that end an answer."""
        ...

    def fingerprint(self) -> str:
        """Return a digest of everything that determines how rows or dialogues are written."""
        ...


class RowPromptStyle(PromptStyle, Protocol):
    """A prompt style for task rows: natural, tags or both."""

    @property
    def styles(self) -> tuple[Prompt, ...]:
        """The styles; each row is written in one of them."""
        ...

    def turns(self, labels: Labels, n_clips: int, rng: np.random.Generator | None = None) -> list[Turn]:
        """Write a row: in its canonical wording without `rng`, in a random one with it."""
        ...

    def variants(self, labels: Labels, n_clips: int) -> list[list[Turn]]:
        """Write a row in every way in which `turns` may write it."""
        ...


class Prompt(ABC):
    """Base class of the natural and the tag style. A template of the task table is filled with the labels of a row.

    Attributes:
        stop: Control tokens that end an answer.

    Args:
        supervise_tags: Also train the tags after the first one, as Qwen-Audio does (it predicts the language tag, for
            instance). In the natural style this applies to the language tag at the end of the instruction, which the
            Qwen2-Audio paper shows once as given and once as predicted.
    """

    audio_begin: str
    audio_pad: str  # occurs once per clip in a turn's text; the tokenizer expands it to the clip's audio tokens
    audio_end: str
    natural: bool  # whether answers are in natural language, without control tokens
    stop: tuple[str, ...] = (END_OF_TEXT,)
    wording: str | None = None  # replaces the wordings of all tasks: see `asking`

    def __init__(self, *, supervise_tags: bool = True):
        self.supervise_tags = supervise_tags

    @abstractmethod
    def templates(self, task: tasks.Task) -> tuple[str, ...]:
        """Return the wordings of a task; the first is the canonical one, used in evaluation."""

    @property
    def styles(self) -> tuple[Prompt, ...]:
        """This style alone."""
        return (self,)

    def asking(self, wording: str) -> Self:
        """Return this style with a benchmark's wording for all tasks; a wording is a template as in the task table."""
        style = copy(self)
        style.wording = wording
        return style

    def wordings(self, labels: Labels) -> tuple[str, ...]:
        """Return the wordings of a row's task; the first is the canonical one."""
        return (self.wording,) if self.wording else self.templates(tasks.find(labels["task"]))

    def turns(self, labels: Labels, n_clips: int, rng: np.random.Generator | None = None) -> list[Turn]:
        """Write a row: in its canonical wording without `rng`, in a random one with it."""
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
        """Write a prompt after the audio without changes, as the scripts of both releases do for the base models.

        Names of control tokens in it become control tokens, as they do there. For untrusted text, use a chat.
        """
        return [Turn("prompt", self._audio(n_clips) + prompt, supervise=False)]

    def _audio(self, n_clips: int) -> str:
        return (self.audio_begin + self.audio_pad + self.audio_end) * n_clips

    def _write(self, wording: str, labels: Labels, n_clips: int) -> list[Turn]:
        if problem := tasks.check(labels):
            raise UserError(problem)
        return [*self.ask(wording, tasks.closed_fields(labels), labels, n_clips), *self.answer(labels)]

    def ask(self, wording: str, closed_fields: Mapping[str, str], labels: Labels, n_clips: int) -> list[Turn]:
        """Write the prompt of a row.

        Args:
            wording: Template of the task table.
            closed_fields: Fields whose values may be part of a control token (`tasks.closed_fields`). They are filled
                first, so that tags and instructions are tokenised as a whole.
            labels: Labels of the row, which fill the other fields as plain text.
            n_clips: Number of clips before the instruction.
        """
        wording = FIELD.sub(lambda match: closed_fields.get(match[1], match[0]), wording)
        turns = [Turn("prompt", self._audio(n_clips), supervise=False)] if n_clips else []
        for number, piece in enumerate(filter(None, _TAG_OR_FIELD.split(wording))):
            if field := FIELD.fullmatch(piece):
                turns.append(Turn("prompt", labels[field[1]], supervise=False, control=Control.NONE))
            else:
                is_later_tag = number > 0 and _TAG_OR_FIELD.fullmatch(piece) is not None
                turns.append(Turn("prompt", piece, supervise=self.supervise_tags and is_later_tag))
        return merge(turns)

    def answer(self, labels: Labels) -> list[Turn]:
        """Write the answer of a row and the token that ends it."""
        pieces = tasks.find(labels["task"]).answer.render(labels, tags=not self.natural)
        controls = [Control.ALL if isinstance(piece, Tag) else Control.NONE for piece in pieces]
        turns = [Turn("answer", piece, True, control) for piece, control in zip(pieces, controls, strict=True)]
        return merge([*turns, Turn("answer", END_OF_TEXT, supervise=True)])


class TagPrompt(Prompt):
    """Hierarchical tags: transcription, language, task, text language, timestamps, output (Qwen-Audio section 3.2)."""

    audio_begin, audio_pad, audio_end = "<audio>", "[[[AUDIO:modality]]]", "</audio>"
    natural = False

    def templates(self, task: tasks.Task) -> tuple[str, ...]:
        """Return the tags of a task."""
        return (task.tags,)


class NaturalPrompt(Prompt):
    """Natural-language instructions (Qwen2-Audio section 2), without a space between the audio and the instruction.

    Args:
        supervise_tags: See `Prompt`.
        wordings: Wordings to use of each task: "all"; "seen", all except the last; "unseen", only the last. If a model
            is trained with the seen ones, evaluation with the unseen ones tests whether it reads the instruction. A
            task with a single wording always has that wording.
    """

    audio_begin, audio_pad, audio_end = "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"
    natural = True
    WORDINGS: ClassVar = {"all": slice(None), "seen": slice(-1), "unseen": slice(-1, None)}

    def __init__(self, *, supervise_tags: bool = True, wordings: str = "all"):
        if wordings not in self.WORDINGS:
            raise UserError(f"prompt.wordings={wordings}: expected {', '.join(self.WORDINGS)}")
        super().__init__(supervise_tags=supervise_tags)
        self.subset = wordings

    def templates(self, task: tasks.Task) -> tuple[str, ...]:
        """Return the selected instructions of a task."""
        return task.wordings[self.WORDINGS[self.subset]] if task.paraphrases else task.wordings


class BothPrompts:
    """Tags or natural language, drawn for each row. The embedded substitute for Qwen-7B learns both styles with it.

    Args:
        supervise_tags: See `Prompt`.
        wordings: See `NaturalPrompt`.
    """

    stop: tuple[str, ...] = Prompt.stop

    def __init__(self, *, supervise_tags: bool = True, wordings: str = "all"):
        natural = NaturalPrompt(supervise_tags=supervise_tags, wordings=wordings)
        self.styles: tuple[Prompt, ...] = (TagPrompt(supervise_tags=supervise_tags), natural)

    def turns(self, labels: Labels, n_clips: int, rng: np.random.Generator | None = None) -> list[Turn]:
        """Write a row: with tags without `rng`, in a random style and wording with it."""
        style = self.styles[0 if rng is None else int(rng.integers(len(self.styles)))]
        return style.turns(labels, n_clips, rng)

    def variants(self, labels: Labels, n_clips: int) -> list[list[Turn]]:
        """Write a row in every wording of both styles."""
        return [turns for style in self.styles for turns in style.variants(labels, n_clips)]

    def fingerprint(self) -> str:
        """Return a digest of everything that determines how rows are written."""
        return digest([style.fingerprint() for style in self.styles])
