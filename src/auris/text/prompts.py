"""Prompt styles of the base models, from a row's labels to turns: hierarchical tags (Qwen-Audio), natural language
(Qwen2-Audio).

A turn says whether it is supervised and which control tokens its text may hold; masking and safety are decided here,
never by token arithmetic later. What a row or a user wrote cannot open a turn, end an answer or stand for audio.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from enum import Enum
from typing import Self

import numpy as np

from auris.errors import UserError
from auris.files import digest
from auris.text import tasks
from auris.text.answer_formats import Labels, Tag

END_OF_TEXT = "<|endoftext|>"  # ends an answer in both base models (Qwen-Audio FAQ.md; Qwen2-Audio evaluation)
IM_START, IM_END = "<|im_start|>", "<|im_end|>"  # ChatML: begin and end of a message

# Qwen-Audio tokenization_qwen.py, in its order; timestamps and notes are between them.
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
    """Qwen-Audio's 3,311 tags in the order of its vocabulary: tasks, languages, 10 ms timestamps, MIDI notes."""
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
    """Which strings of a text are control tokens."""

    NONE = "none"  # all of it is characters: labels of a row
    TAGS = "tags"  # Qwen-Audio's tags, as in its chat: what a dialogue says; neither ChatML nor the marks of audio
    ALL = "all"  # every control token of the vocabulary: what we wrote ourselves


@dataclass(frozen=True)
class Turn:
    """One stretch of a prompt: its text, whether its tokens are trained, and which of them may be control tokens.

    Each turn is tokenised by itself: no byte-pair merge crosses from one to the next.
    """

    role: str  # "prompt" or "answer"
    text: str
    supervise: bool
    control: Control = Control.ALL


def merge(turns: Iterable[Turn]) -> list[Turn]:
    """Join neighbouring turns of one kind, so that byte-pair merges see whole instructions."""
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last and (last.role, last.supervise, last.control) == (turn.role, turn.supervise, turn.control):
            merged[-1] = replace(last, text=last.text + turn.text)
        else:
            merged.append(turn)
    return merged


class Prompt(ABC):
    """Base of the two styles: a template of the task table, filled from a row, and the answer.

    Attributes:
        stop: Control tokens that end an answer.
        styles: The styles that rows are written in, one of them at a time.

    Args:
        supervise_tags: Train the tags after the first one too, as Qwen-Audio does (the language tag, for instance, is
            predicted). The natural style treats the language tag at the end of its instruction alike: the
            Qwen2-Audio paper shows it once as given and once as predicted.
    """

    audio_begin: str
    audio_pad: str  # occurs once per clip in a turn's text; the tokenizer expands it to the clip's audio tokens
    audio_end: str
    natural: bool  # answers are in natural language, without control tokens
    stop = (END_OF_TEXT,)
    wording: str | None = None  # the only wording of all tasks: see `asking`

    def __init__(self, *, supervise_tags: bool = True):
        self.supervise_tags = supervise_tags

    @abstractmethod
    def templates(self, task: tasks.Task) -> tuple[str, ...]:
        """Return the wordings of a task; the first is the canonical one, used in evaluation."""

    @property
    def styles(self) -> tuple[Prompt, ...]:
        return (self,)

    def asking(self, wording: str) -> Self:
        """Return this style with a benchmark's own wording, a template as in the task table, in place of all others."""
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
        """Return a digest of what decides how rows are written."""
        tables = [self.wording] if self.wording else [self.templates(task) for task in tasks.TASKS.values()]
        return digest([type(self).__name__, tables])

    def raw(self, prompt: str, n_clips: int) -> list[Turn]:
        """Put a prompt behind the audio as it is: how the scripts of both releases ask the base models.

        Strings of control tokens in it become control tokens, as there. For text of other people, use a chat.
        """
        return [Turn("prompt", self._audio(n_clips) + prompt, supervise=False)]

    def _audio(self, n_clips: int) -> str:
        return (self.audio_begin + self.audio_pad + self.audio_end) * n_clips

    def _write(self, wording: str, labels: Labels, n_clips: int) -> list[Turn]:
        if problem := tasks.check(labels):
            raise UserError(problem)
        return [*self.ask(wording, tasks.closed(labels), labels, n_clips), *self.answer(labels)]

    def ask(self, wording: str, known: Mapping[str, str], labels: Labels, n_clips: int) -> list[Turn]:
        """Write the prompt of a row.

        Args:
            known: Fields of the wording whose values may be part of a control token (`tasks.closed`). They are filled
                first, so that tags and instructions are tokenised whole. All others are the row's own text.
        """
        wording = FIELD.sub(lambda match: known.get(match[1], match[0]), wording)
        turns = [Turn("prompt", self._audio(n_clips), supervise=False)] if n_clips else []
        for number, piece in enumerate(filter(None, _TAG_OR_FIELD.split(wording))):
            if field := FIELD.fullmatch(piece):
                turns.append(Turn("prompt", labels[field[1]], supervise=False, control=Control.NONE))
            else:
                is_later_tag = number > 0 and _TAG_OR_FIELD.fullmatch(piece) is not None
                turns.append(Turn("prompt", piece, supervise=self.supervise_tags and is_later_tag))
        return merge(turns)

    def answer(self, labels: Labels) -> list[Turn]:
        """Write the answer of a row and its end."""
        pieces = tasks.find(labels["task"]).answer.render(labels, tags=not self.natural)
        controls = [Control.ALL if isinstance(piece, Tag) else Control.NONE for piece in pieces]
        turns = [Turn("answer", str(piece), True, control) for piece, control in zip(pieces, controls, strict=True)]
        return merge([*turns, Turn("answer", END_OF_TEXT, supervise=True)])


class TagPrompt(Prompt):
    """Hierarchical tags: transcription, language, task, text language, timestamps, output (Qwen-Audio section 3.2)."""

    audio_begin, audio_pad, audio_end = "<audio>", "[[[AUDIO:modality]]]", "</audio>"
    natural = False

    def templates(self, task: tasks.Task) -> tuple[str, ...]:
        return (task.tags,)


class NaturalPrompt(Prompt):
    """Natural-language instructions (Qwen2-Audio section 2): no space between the audio and the instruction.

    Args:
        wordings: of a task, in which it is asked: all of them; "seen", all but the last; "unseen", the last alone. A
            model trained on the seen ones is asked in unseen ones to find out whether it reads the instruction. What
            has one wording only, as text that is learnt as it is, has it in all three.
    """

    audio_begin, audio_pad, audio_end = "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"
    natural = True
    WORDINGS = {"all": slice(None), "seen": slice(-1), "unseen": slice(-1, None)}

    def __init__(self, *, supervise_tags: bool = True, wordings: str = "all"):
        if wordings not in self.WORDINGS:
            raise UserError(f"prompt.wordings={wordings}: expected {', '.join(self.WORDINGS)}")
        super().__init__(supervise_tags=supervise_tags)
        self.subset = wordings

    def templates(self, task: tasks.Task) -> tuple[str, ...]:
        return task.wordings[self.WORDINGS[self.subset]] if task.paraphrases else task.wordings


class BothPrompts:
    """Tags or natural language, drawn for each row: how the embedded stand-in for Qwen-7B learns both styles.

    The methods are those of `Prompt`.
    """

    stop = Prompt.stop

    def __init__(self, *, supervise_tags: bool = True, wordings: str = "all"):
        natural = NaturalPrompt(supervise_tags=supervise_tags, wordings=wordings)
        self.styles = (TagPrompt(supervise_tags=supervise_tags), natural)

    def turns(self, labels: Labels, n_clips: int, rng: np.random.Generator | None = None) -> list[Turn]:
        style = self.styles[0 if rng is None else int(rng.integers(len(self.styles)))]
        return style.turns(labels, n_clips, rng)

    def variants(self, labels: Labels, n_clips: int) -> list[list[Turn]]:
        return [turns for style in self.styles for turns in style.variants(labels, n_clips)]

    def fingerprint(self) -> str:
        return digest([style.fingerprint() for style in self.styles])


PromptStyle = Prompt | BothPrompts
"""A way to ask for tasks, as a config's `prompt` names it."""
