"""Cache of token counts, with which the lengths of a million rows are computed in seconds.

A row consists of its audio, its own texts, and instruction and control tokens that other rows have too. The shared
tokens are counted once for all rows, and texts word by word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import normalizers

from auris.text import tasks
from auris.text.answer_formats import Labels
from auris.text.byte_level import PATTERN
from auris.text.prompts import FIELD, Control, Prompt, PromptStyle
from auris.text.tokenizer import Tokenizer

# `PATTERN` for ASCII, where Python's character classes are those of the pattern.
_ASCII_WORD = re.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\na-zA-Z0-9]?[a-zA-Z]+|[0-9]| ?[^\sa-zA-Z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    re.ASCII,
)


class LengthCache:
    """Counter of the tokens of rows for one tokenizer, with cached counts of words and shared parts."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._has_words = splits_into_words(tokenizer.text_encoder)
        self._shared = lru_cache(maxsize=1000)(self._count_shared)
        self._count_word = lru_cache(maxsize=100_000)(self._count_text)
        self._count_after_space = lru_cache(maxsize=100_000)(lambda words: self._count_words(f" {words}"))

    def longest(self, prompt: PromptStyle, labels: Labels, spans: Sequence[int]) -> int:
        """Return the tokens of a row in its longest wording, where clip k has `spans[k]` audio tokens."""
        prompt_and_answer = (
            max(shared + sum(self.count(labels[name]) for name in names) for names, shared in wordings)
            + sum(self._count_turn(turn.text, turn.control) for turn in style.answer(labels))
            for style, wordings in self._wordings(prompt, labels, len(spans))
        )
        return sum(spans) + max(prompt_and_answer)

    def without_text(self, prompt: PromptStyle, labels: Labels, n_clips: int) -> int | None:
        """Return the tokens of the longest wording, without audio and without `text`, which is the answer.

        None if a wording contains labels of the row, because then rows of a task differ in more than their text.
        """
        if any(names for _, wordings in self._wordings(prompt, labels, n_clips) for names, _ in wordings):
            return None
        return self.longest(prompt, labels, [0] * n_clips) - self.count(labels["text"])

    def count(self, text: str) -> int:
        """Return the tokens of a text without control tokens.

        ASCII text is counted word by word, which is 20 times as fast as the tokenizer.
        """
        if not (self._has_words and text.isascii()):
            return self._count_text(text)
        # A single space between two words always belongs to the second. With more spaces, the pattern decides.
        first, *following = text.split(" ")
        if not first or "" in following:
            return self._count_words(text)
        return self._count_words(first) + sum(map(self._count_after_space, following))

    def _count_words(self, text: str) -> int:
        return sum(map(self._count_word, _ASCII_WORD.findall(text)))

    def _count_text(self, text: str) -> int:
        return len(self._tokenizer.text_encoder.encode(text, add_special_tokens=False))

    def _count_turn(self, text: str, control: Control) -> int:
        return self.count(text) if control is Control.NONE else len(self._tokenizer.ids(text, control))

    def _wordings(
        self, prompt: PromptStyle, labels: Labels, n_clips: int
    ) -> list[tuple[Prompt, list[tuple[tuple[str, ...], int]]]]:
        closed = tuple(tasks.closed(labels).items())
        return [(style, self._shared(style, style.wordings(labels), closed, n_clips)) for style in prompt.styles]

    def _count_shared(
        self, style: Prompt, wordings: Sequence[str], closed: Sequence[tuple[str, str]], n_clips: int
    ) -> list[tuple[tuple[str, ...], int]]:
        """Return [(open labels in a wording, tokens of the longest such wording without these labels)]."""
        longest: dict[tuple[str, ...], int] = {}
        for wording in wordings:
            names = tuple(name for name in FIELD.findall(wording) if name not in dict(closed))
            turns = style.ask(wording, dict(closed), dict.fromkeys(names, ""), n_clips)
            shared = [turn for turn in turns if turn.control is Control.ALL]
            size = len(self._tokenizer.encode(shared, [()] * n_clips).ids)
            longest[names] = max(size, longest.get(names, 0))
        return list(longest.items())


def splits_into_words(encoder: FastTokenizer) -> bool:
    """Return whether the tokenizer splits ASCII text by Qwen's pattern and encodes each word by itself."""
    if encoder.pre_tokenizer is None or not isinstance(encoder.normalizer, normalizers.NFC | None):
        return False
    steps = json.loads(encoder.pre_tokenizer.__getstate__()).get("pretokenizers", [])
    for step in steps:
        step.pop("trim_offsets", None)  # affects the offsets of tokens, not the tokens
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    return steps == [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
