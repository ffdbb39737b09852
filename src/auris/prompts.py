"""Prompting styles: a row's labels -> turns. Hierarchical tags (Qwen-Audio) or natural language (Qwen2-Audio).

A turn says whether it is supervised; masking is decided here, never by token arithmetic later. Text that comes from a
row is encoded as plain text (`special=False`), so that a transcript or question cannot smuggle in control tokens.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from auris import tasks

END_OF_TEXT = "<|endoftext|>"  # ends an answer in both base models (Qwen-Audio FAQ.md; Qwen2-Audio evaluation)

_PIECES = re.compile(r"(<\|[^|<>]*\|>)|\{(\w+)\}")


@dataclass(frozen=True)
class Turn:
    """One stretch of a prompt: its text, whether its tokens are trained, whether `<|...|>` in it are control tokens."""

    role: str  # "prompt" or "answer"
    text: str
    supervise: bool
    special: bool = True


class Prompt(ABC):
    """What both styles share: a template from the task table, filled from a row.

    Args:
        supervise_tags: train the tags after the first one too, as Qwen-Audio does (the language tag, for instance, is
            predicted). The natural style treats the language tag at the end of its instruction alike: the
            Qwen2-Audio paper shows it once as given and once as predicted.
    """

    audio_begin: str
    audio_pad: str  # stands once per clip in a turn's text; the tokenizer expands it to the clip's audio tokens
    audio_end: str

    def __init__(self, *, supervise_tags: bool = True):
        self.supervise_tags = supervise_tags

    @abstractmethod
    def templates(self, task: tasks.Task) -> tuple[str, ...]:
        """The wordings of a task; the first is the canonical one, used in evaluation."""

    def turns(self, labels: Mapping[str, Any], n_clips: int, rng: np.random.Generator | None = None) -> list[Turn]:
        """A row as turns: canonical wording without `rng`, a random one with it."""
        templates = self.templates(tasks.find(labels["task"]))
        template = templates[0] if rng is None else templates[int(rng.integers(len(templates)))]
        return self._fill(template, labels, n_clips)

    def variants(self, labels: Mapping[str, Any], n_clips: int) -> list[list[Turn]]:
        """Every way in which a row can be written (for its longest length)."""
        return [self._fill(template, labels, n_clips) for template in self.templates(tasks.find(labels["task"]))]

    def _fill(self, template: str, labels: Mapping[str, Any], n_clips: int) -> list[Turn]:
        values = tasks.fields(labels)
        audio = (self.audio_begin + self.audio_pad + self.audio_end) * n_clips
        turns = [Turn("prompt", audio, supervise=False)] if n_clips else []
        # Language codes and names come from our own table: filled first, so that a tag and an instruction are whole.
        template = re.sub(r"\{(\w*language\w*)\}", lambda m: values[m[1]], template)
        position = 0
        for match in _PIECES.finditer(template):
            if match.start() > position:
                turns.append(Turn("prompt", template[position : match.start()], supervise=False))
            if match[1]:
                predicted = self.supervise_tags and match.start() > 0
                turns.append(Turn("prompt", match[1], supervise=predicted))
            else:
                turns.append(Turn("prompt", values[match[2]], supervise=False, special=False))
            position = match.end()
        if position < len(template):
            turns.append(Turn("prompt", template[position:], supervise=False))
        answer = tasks.find(labels["task"]).render(labels)
        turns.append(Turn("answer", answer, supervise=True, special=False))
        turns.append(Turn("answer", END_OF_TEXT, supervise=True))
        return _merge(turns)


def _merge(turns: list[Turn]) -> list[Turn]:
    """Neighbouring prompt text of one kind as one turn, so that byte-pair merges see whole instructions."""
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        same = last and (last.role, last.supervise, last.special) == (turn.role, turn.supervise, turn.special)
        if same:
            merged[-1] = Turn(turn.role, last.text + turn.text, turn.supervise, turn.special)
        else:
            merged.append(turn)
    return merged


class TagPrompt(Prompt):
    """Hierarchical tags: transcription, language, task, text language, timestamps, output (Qwen-Audio section 3.2)."""

    audio_begin, audio_pad, audio_end = "<audio>", "[[[AUDIO:modality]]]", "</audio>"

    def templates(self, task: tasks.Task) -> tuple[str, ...]:
        return (task.tags,)


class NaturalPrompt(Prompt):
    """Natural-language instructions (Qwen2-Audio section 2): no space between the audio and the instruction."""

    audio_begin, audio_pad, audio_end = "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"

    def templates(self, task: tasks.Task) -> tuple[str, ...]:
        return (task.natural, *task.paraphrases)


class BothPrompts:
    """Tags or natural language, a coin per row: how the embedded stand-in for Qwen-7B meets both styles alike."""

    def __init__(self, *, supervise_tags: bool = True):
        self.styles = (TagPrompt(supervise_tags=supervise_tags), NaturalPrompt(supervise_tags=supervise_tags))

    def turns(self, labels: Mapping[str, Any], n_clips: int, rng: np.random.Generator | None = None) -> list[Turn]:
        style = self.styles[0 if rng is None else int(rng.integers(len(self.styles)))]
        return style.turns(labels, n_clips, rng)

    def variants(self, labels: Mapping[str, Any], n_clips: int) -> list[list[Turn]]:
        return [turns for style in self.styles for turns in style.variants(labels, n_clips)]
