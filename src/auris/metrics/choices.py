"""Which option of a multiple-choice question a response means, recognised by its letter or by its text.

AIR-Bench's script looks at one or two characters and leaves a response without a letter there out of the score. Other
evaluation kits draw a random letter instead. Here such a response is wrong and is counted as unparsed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from auris.errors import UserError

LETTERS = "ABCD"

# A letter names an option if it is marked or alone at the beginning, follows "answer is", or is the last word. A letter
# before a word does not count: it may be an article, a musical key (C major) or a part of a name.
_LEADING = re.compile(r"[\s\"'*]*(?:[(\[]([A-D])[)\]]|([A-D])(?=\s*(?:[.):,\]\"*]|'(?!\w)|$)))", re.IGNORECASE)
_NAMED = re.compile(
    r"(?i:\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*)[\"'(\[*]*([A-D](?![\w'])|[a-d](?=\s*(?:[.):,\]\"*]|$)))"
)
_CLOSING = re.compile(r"(?<![\w'])([A-D])\W*$")


def official_letter(reply: str) -> str | None:
    """Return the letter that AIR-Bench's script reads: the first character, otherwise the last but one."""
    text = reply.strip().replace("\n", "")
    return next((character for character in text[:1] + text[-2:-1] if character in LETTERS), None)


def parse(reply: str | None, options: Sequence[str]) -> int | None:
    """Return the index of the option that a response means; None if it names no option or several.

    The text of an option as the whole response counts first, then a letter, then the text of an option that occurs in
    the response as whole words. Of options contained in one another the longest counts (`dog barking` over `dog`), of
    equal options the first.
    """
    response = (reply or "").strip()
    texts = [_plain(text) for text in options]
    if len(_plain(response)) > 1 and _plain(response) in texts:
        return texts.index(_plain(response))
    letters = _letters(response)
    if letters:
        index = LETTERS.index(letters.pop())
        return index if not letters and index < len(options) else None
    words = f" {_plain(response)} "
    contained = {text: index for index, text in reversed([*enumerate(texts)]) if text and f" {text} " in words}
    longest = [text for text in contained if not any(text != t and f" {text} " in f" {t} " for t in contained)]
    return contained[longest[0]] if len(longest) == 1 else None


def count(metric: str, reply: str, key: str, options: Sequence[str]) -> list[float]:
    """Return what a response contributes to `choice`, `choice_unparsed` or `choice_official`.

    `choice_official` leaves out a response without a letter.

    Raises:
        UserError: The key is not among the options, a fault of the data.
    """
    if key not in options:
        raise UserError(f"the key is {key!r}, expected one of {list(options)}")
    if metric == "choice_official":
        letter = official_letter(reply)
        return [0.0, 0.0] if letter is None else [float(letter == LETTERS[options.index(key)]), 1.0]
    index = parse(reply, options)
    if metric == "choice_unparsed":
        return [float(index is None), 1.0]
    return [float(index is not None and options[index] == key), 1.0]


def _letters(response: str) -> set[str]:
    """Return the letters that a response names as its answer; several contradict each other."""
    if match := _LEADING.match(response):
        return {(match[1] or match[2]).upper()}
    if named := {letter.upper() for letter in _NAMED.findall(response)}:
        return named
    match = _CLOSING.search(response)
    return {match[1]} if match else set()


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
