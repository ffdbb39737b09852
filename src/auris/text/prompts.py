"""Prompting styles: a row's labels or a dialogue -> turns. Hierarchical tags (Qwen-Audio), natural language
(Qwen2-Audio), and ChatML as each of the two systems writes it.

A turn says whether it is supervised and which control tokens its text may hold; masking and safety are decided here,
never by token arithmetic later. What a row or a user wrote cannot open a turn, end an answer or stand for audio.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Self

import numpy as np

from auris.errors import UserError
from auris.text import tasks
from auris.text.answer_formats import Tag

END_OF_TEXT = "<|endoftext|>"  # ends an answer in both base models (Qwen-Audio FAQ.md; Qwen2-Audio evaluation)
IM_START, IM_END = "<|im_start|>", "<|im_end|>"  # ChatML: begin and end of a message

# Qwen-Audio tokenization_qwen.py, in its order; timestamps and notes stand between them.
_TAGS = (
    "startoftranscript startofanalysis translate transcribe caption keyword unknown "
    "en zh de es ko fr ja it zh_tr notimestamps sil timestamps",
    "caption_audiocaps caption_clotho audioset_ontology caption_plain itn wo_itn startofentityvalue endofentityvalue "
    "startofentitytype endofentitytype named_entity_recognition audio_grounding startofword endofword delim "
    "emotion_recognition music_description note_analysis pitch",
    "sonic instrument speaker_meta song_meta question answer choice scene event vocal_classification "
    "speech_understanding scenario action entities speech_edit",
)

_PIECES = re.compile(r"(<\|[^|<>]*\|>)|\{(\w+)\}")


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


def merge(turns: Sequence[Turn]) -> list[Turn]:
    """Neighbouring text of one kind as one turn, so that byte-pair merges see whole instructions."""
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last and (last.role, last.supervise, last.control) == (turn.role, turn.supervise, turn.control):
            merged[-1] = Turn(turn.role, last.text + turn.text, turn.supervise, turn.control)
        else:
            merged.append(turn)
    return merged


class Prompt(ABC):
    """What both styles of the base models share: a template from the task table, filled from a row.

    Args:
        supervise_tags: train the tags after the first one too, as Qwen-Audio does (the language tag, for instance, is
            predicted). The natural style treats the language tag at the end of its instruction alike: the
            Qwen2-Audio paper shows it once as given and once as predicted.
    """

    audio_begin: str
    audio_pad: str  # stands once per clip in a turn's text; the tokenizer expands it to the clip's audio tokens
    audio_end: str
    natural: bool  # answers are written in natural language, without control tokens
    stop = (END_OF_TEXT,)  # what ends an answer
    wording: str | None = None  # the only one of all tasks: see `asking`

    def __init__(self, *, supervise_tags: bool = True):
        self.supervise_tags = supervise_tags
        self._outlined = lru_cache(maxsize=1000)(self._make_outline)

    @abstractmethod
    def templates(self, task: tasks.Task) -> tuple[str, ...]:
        """The wordings of a task; the first is the canonical one, used in evaluation."""

    def asking(self, wording: str) -> Self:
        """This style with a benchmark's own wording, a template as those of the task table, in place of all others."""
        asked = copy(self)
        asked.wording = wording
        return asked

    def wordings(self, labels: Mapping[str, Any]) -> tuple[str, ...]:
        """The wordings of a row's task; the first is the canonical one."""
        return (self.wording,) if self.wording else self.templates(tasks.find(labels["task"]))

    def turns(self, labels: Mapping[str, Any], n_clips: int, rng: np.random.Generator | None = None) -> list[Turn]:
        """A row as turns: canonical wording without `rng`, a random one with it."""
        templates = self.wordings(labels)
        template = templates[0] if rng is None else templates[int(rng.integers(len(templates)))]
        return self._fill([template], labels, n_clips)[0]

    def variants(self, labels: Mapping[str, Any], n_clips: int) -> list[list[Turn]]:
        """Every way in which a row can be written (for its longest length)."""
        return self._fill(self.wordings(labels), labels, n_clips)

    def raw(self, prompt: str, n_clips: int) -> list[Turn]:
        """A prompt as its writer gives it, behind the audio: how the scripts of both releases ask the base models.

        Control tokens in it are control tokens, as there: for text of others, use a chat.
        """
        return [Turn("prompt", self._audio(n_clips) + prompt, supervise=False)]

    def _audio(self, n_clips: int) -> str:
        return (self.audio_begin + self.audio_pad + self.audio_end) * n_clips

    def outline(self, labels: Mapping[str, Any], n_clips: int) -> tuple[Outline, dict[str, str]]:
        """All wordings of a row as very many rows share them, and its own text by name. The row was checked before."""
        return self._outline(self.wordings(labels), labels, n_clips)

    def _fill(self, templates: Sequence[str], labels: Mapping[str, Any], n_clips: int) -> list[list[Turn]]:
        """A row as turns, once by each template."""
        if problem := tasks.check(labels):
            raise UserError(problem)
        outline, values = self._outline(tuple(templates), labels, n_clips)
        return [[_filled(turn, values) for turn in turns] for turns in outline.variants]

    def _outline(
        self, templates: tuple[str, ...], labels: Mapping[str, Any], n_clips: int
    ) -> tuple[Outline, dict[str, str]]:
        own = tasks.closed(labels)
        pieces = tasks.find(labels["task"]).answer.render(labels, tags=not self.natural)
        tags = [str(piece) if isinstance(piece, Tag) else None for piece in pieces]
        values = {**labels, **{self._piece(number): str(piece) for number, piece in enumerate(pieces)}}
        return self._outlined(templates, tuple(own.items()), n_clips, tuple(tags)), values

    def _piece(self, number: int) -> str:
        """The name of a piece of the answer among a row's texts; no label has such a one."""
        return f"{'said' if self.natural else 'written'} {number}"

    def _make_outline(
        self, templates: tuple[str, ...], own: tuple[tuple[str, str], ...], n_clips: int, tags: tuple[str | None, ...]
    ) -> Outline:
        """`tags`: of each piece of the answer what it is where it is ours, and None where it is the row's."""
        end = [
            _slot("answer", self._piece(number), supervise=True) if tag is None else Turn("answer", tag, supervise=True)
            for number, tag in enumerate(tags)
        ]
        end.append(Turn("answer", END_OF_TEXT, supervise=True))
        return Outline(tuple(tuple(merge([*self._ask(one, own, n_clips), *end])) for one in templates))

    def _ask(self, template: str, own: tuple[tuple[str, str], ...], n_clips: int) -> list[Turn]:
        """A template with our own words in it. They are filled first, so that a tag and an instruction are whole."""
        template = re.sub(r"\{(\w+)\}", lambda m: dict(own).get(m[1], m[0]), template)
        turns = [Turn("prompt", self._audio(n_clips), supervise=False)] if n_clips else []
        position = 0
        for match in _PIECES.finditer(template):
            if match.start() > position:
                turns.append(Turn("prompt", template[position : match.start()], supervise=False))
            if match[1]:
                predicted = self.supervise_tags and match.start() > 0
                turns.append(Turn("prompt", match[1], supervise=predicted))
            else:
                turns.append(_slot("prompt", match[2], supervise=False))
            position = match.end()
        if position < len(template):
            turns.append(Turn("prompt", template[position:], supervise=False))
        return turns


@dataclass(frozen=True, eq=False)  # compared by identity: facts about one are kept
class Outline:
    """Every wording of a row as turns. One without control tokens holds `names` in place of the row's own text."""

    variants: tuple[tuple[Turn, ...], ...]


def names(turn: Turn) -> list[str]:
    """What stands in a turn of an outline that is a row's own text: labels, and pieces of the answer by number."""
    return turn.text.split("\0")[:-1]


def _slot(role: str, name: str, *, supervise: bool) -> Turn:
    return Turn(role, f"{name}\0", supervise, Control.NONE)


def _filled(turn: Turn, values: Mapping[str, str]) -> Turn:
    if turn.control is Control.ALL:
        return turn
    return Turn(turn.role, "".join(values[name] for name in names(turn)), turn.supervise, turn.control)


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
    """Tags or natural language, a coin per row: how the embedded stand-in for Qwen-7B meets both styles alike."""

    stop = Prompt.stop

    def __init__(self, *, supervise_tags: bool = True, wordings: str = "all"):
        natural = NaturalPrompt(supervise_tags=supervise_tags, wordings=wordings)
        self.styles = (TagPrompt(supervise_tags=supervise_tags), natural)
        self.subset = wordings
        self._joined = lru_cache(maxsize=1000)(lambda *ways: Outline(sum((way.variants for way in ways), ())))

    def turns(self, labels: Mapping[str, Any], n_clips: int, rng: np.random.Generator | None = None) -> list[Turn]:
        style = self.styles[0 if rng is None else int(rng.integers(len(self.styles)))]
        return style.turns(labels, n_clips, rng)

    def variants(self, labels: Mapping[str, Any], n_clips: int) -> list[list[Turn]]:
        return [turns for style in self.styles for turns in style.variants(labels, n_clips)]

    def outline(self, labels: Mapping[str, Any], n_clips: int) -> tuple[Outline, dict[str, str]]:
        (first, written), (second, said) = (style.outline(labels, n_clips) for style in self.styles)
        return self._joined(first, second), written | said
