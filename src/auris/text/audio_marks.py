r"""Audio marks: placeholders in the text of a row or prompt that show where a clip belongs, such as `<audio>`.

A backslash before a mark makes it ordinary text: `\<audio>` is the text `<audio>`. Two backslashes before a mark are
one backslash and the mark. Any other backslash is an ordinary character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

# Tokens before, for and after the audio of a clip. The three count as one mark if they follow one another. A single one
# of them is a mark too.
QWEN_AUDIO_TOKENS = ("<audio>", "[[[AUDIO:modality]]]", "</audio>")
QWEN2_AUDIO_TOKENS = ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
MARK = "<audio>"  # audio mark in the texts of ms-swift and LLaMA-Factory

_TOKENS = (QWEN_AUDIO_TOKENS, QWEN2_AUDIO_TOKENS)
_MARKS = [*map("".join, _TOKENS), MARK, *(token for tokens in _TOKENS for token in tokens)]
_PATTERN = re.compile(rf"(\\*)({'|'.join(map(re.escape, _MARKS))})")

Kind = Literal["text", "mark", "escaped"]


def has_marks(text: str) -> bool:
    """Return whether a text has audio marks, escaped or not."""
    return _PATTERN.search(text) is not None


def split_at_marks(text: str) -> Iterator[tuple[Kind, str]]:
    """Yield the pieces of a text in order: ordinary text, audio marks, and escaped marks without their backslash."""
    start = 0
    for match in _PATTERN.finditer(text):
        backslashes, mark = match.groups()
        n_kept, is_escaped = divmod(len(backslashes), 2)
        if before := text[start : match.start()] + "\\" * n_kept:
            yield "text", before
        yield "escaped" if is_escaped else "mark", mark
        start = match.end()
    if start < len(text):
        yield "text", text[start:]


def escape_marks(text: str) -> str:
    """Return a text that `split_at_marks` reads as this text without marks."""
    return _PATTERN.sub(lambda match: rf"{match[1]}{match[1]}\{match[2]}", text)
