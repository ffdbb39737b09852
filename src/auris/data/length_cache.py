"""Cache of token counts, with which the lengths of a million rows are computed in seconds.

A row consists of audio tokens, texts that only this row has, and instruction and control tokens that it shares with
other rows. The shared tokens are counted once for all rows. Texts are counted word by word.
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
from auris.text.prompts import FIELD, Control, Prompt, RowPromptStyle
from auris.text.tokenizer import Tokenizer

# `PATTERN` rewritten for Python's `re`. It is used for ASCII text only, where both have the same character classes.
_ASCII_WORD = re.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\na-zA-Z0-9]?[a-zA-Z]+|[0-9]| ?[^\sa-zA-Z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    re.ASCII,
)


class LengthCache:
    """Counter of the tokens of rows for one tokenizer. It caches the counts of words and of shared tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._splits_into_words = splits_into_words(tokenizer.text_encoder)
        self._cached_shared_counts = lru_cache(maxsize=1000)(self._shared_counts)
        self._count_word = lru_cache(maxsize=100_000)(self._encode_and_count)
        self._count_after_space = lru_cache(maxsize=100_000)(lambda words: self._count_words(f" {words}"))

    def max_length(self, prompt: RowPromptStyle, labels: Labels, audio_lengths: Sequence[int]) -> int:
        """Return the number of tokens of a row in its longest wording, given the number of tokens of each clip."""
        n_text_tokens = (
            max(n_shared + sum(self.count_tokens(labels[name]) for name in names) for names, n_shared in counts)
            + sum(self._count_turn(turn.text, turn.control) for turn in style.answer(labels))
            for style, counts in self._counts_by_style(prompt, labels, len(audio_lengths))
        )
        return sum(audio_lengths) + max(n_text_tokens)

    def max_length_without_text(self, prompt: RowPromptStyle, labels: Labels, n_clips: int) -> int | None:
        """Return the number of tokens that a row shares with all rows that differ only in audio and the answer `text`.

        Return None if a wording contains free-text labels of the row, because the number then depends on them.
        """
        if any(names for _, counts in self._counts_by_style(prompt, labels, n_clips) for names, _ in counts):
            return None
        return self.max_length(prompt, labels, [0] * n_clips) - self.count_tokens(labels["text"])

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text; control tokens in it count as plain text.

        ASCII text is counted word by word, which is 20 times as fast as the tokenizer.
        """
        if not (self._splits_into_words and text.isascii()):
            return self._encode_and_count(text)
        # A single space between two words always belongs to the second word. If there are several spaces between two
        # words, the pattern must be applied to the whole text.
        first_word, *other_words = text.split(" ")
        if not first_word or "" in other_words:
            return self._count_words(text)
        return self._count_words(first_word) + sum(map(self._count_after_space, other_words))

    def _count_words(self, text: str) -> int:
        return sum(map(self._count_word, _ASCII_WORD.findall(text)))

    def _encode_and_count(self, text: str) -> int:
        return len(self._tokenizer.text_encoder.encode(text, add_special_tokens=False))

    def _count_turn(self, text: str, control: Control) -> int:
        return self.count_tokens(text) if control is Control.NONE else len(self._tokenizer.ids(text, control))

    def _counts_by_style(
        self, prompt: RowPromptStyle, labels: Labels, n_clips: int
    ) -> list[tuple[Prompt, list[tuple[tuple[str, ...], int]]]]:
        """Return [(prompt style, its `_shared_counts`)]."""
        closed_labels = tuple(tasks.closed_fields(labels).items())  # labels whose values are from a finite set
        return [
            (style, self._cached_shared_counts(style, style.wordings(labels), closed_labels, n_clips))
            for style in prompt.prompts
        ]

    def _shared_counts(
        self, style: Prompt, wordings: Sequence[str], closed_labels: Sequence[tuple[str, str]], n_clips: int
    ) -> list[tuple[tuple[str, ...], int]]:
        """Return [(names of the free-text labels in a wording, maximum number of tokens if these labels are empty)]."""
        max_counts: dict[tuple[str, ...], int] = {}
        for wording in wordings:
            names = tuple(name for name in FIELD.findall(wording) if name not in dict(closed_labels))
            turns = style.ask(wording, dict(closed_labels), dict.fromkeys(names, ""), n_clips)
            shared_turns = [turn for turn in turns if turn.control is Control.ALL]
            n_tokens = len(self._tokenizer.encode(shared_turns, [()] * n_clips).ids)
            max_counts[names] = max(n_tokens, max_counts.get(names, 0))
        return list(max_counts.items())


def splits_into_words(encoder: FastTokenizer) -> bool:
    """Return whether the tokenizer splits ASCII text by Qwen's pattern and encodes each word by itself."""
    if encoder.pre_tokenizer is None or not isinstance(encoder.normalizer, normalizers.NFC | None):
        return False
    steps = json.loads(encoder.pre_tokenizer.__getstate__()).get("pretokenizers", [])
    for step in steps:
        step.pop("trim_offsets", None)  # it affects the offsets of tokens, not the tokens
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    return steps == [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
