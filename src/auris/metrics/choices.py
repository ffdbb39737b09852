"""Which of the options of a question a reply means: by its letter or by its text, and never by chance.

AIR-Bench's script looks at one or two characters and leaves a reply without a letter there out of the score; other kits
draw a random letter for it. Here it is a wrong answer, counted as unparsed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from auris.errors import UserError

LETTERS = "ABCD"

# A letter that stands for an option: marked or alone at the beginning, after "answer is", or the last word. A letter
# before a word is none: an article, a key (C major), a name.
_LEADING = re.compile(r"[\s\"'*]*(?:[(\[]([A-D])[)\]]|([A-D])(?=\s*(?:[.):,\]\"*]|'(?!\w)|$)))", re.IGNORECASE)
_NAMED = re.compile(
    r"(?i:\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*)[\"'(\[*]*([A-D](?![\w'])|[a-d](?=\s*(?:[.):,\]\"*]|$)))"
)
_CLOSING = re.compile(r"(?<![\w'])([A-D])\W*$")


def official_letter(reply: str) -> str | None:
    """The letter that AIR-Bench's script takes: the first character, or else the last but one."""
    said = reply.strip().replace("\n", "")
    return next((character for character in said[:1] + said[-2:-1] if character in LETTERS), None)


def parse(reply: str | None, options: Sequence[str]) -> int | None:
    """Which option a reply means, by number; None where it names none, or several.

    An option word for word counts first, then a letter, then the text of an option that stands in it as whole words: of
    options within one another the longest (`dog barking` over `dog`), of equal ones the first.
    """
    said = (reply or "").strip()
    texts = [_plain(text) for text in options]
    if len(_plain(said)) > 1 and _plain(said) in texts:
        return texts.index(_plain(said))
    letters = _letters(said)
    if letters:
        number = LETTERS.index(letters.pop())
        return number if not letters and number < len(options) else None
    words = f" {_plain(said)} "
    within = {text: number for number, text in reversed([*enumerate(texts)]) if text and f" {text} " in words}
    longest = [text for text in within if not any(text != other and f" {text} " in f" {other} " for other in within)]
    return within[longest[0]] if len(longest) == 1 else None


def count(metric: str, reply: str, key: str, options: Sequence[str]) -> list[float]:
    """What a reply contributes to `choice`, `choice_unparsed`, and `choice_official`, which leaves out a reply without
    a letter. Raises ValueError for a key that is none of the options: that is the data's fault, not the reply's."""
    if key not in options:
        raise UserError(f"the key is {key!r}, expected one of {list(options)}")
    if metric == "choice_official":
        letter = official_letter(reply)
        return [0.0, 0.0] if letter is None else [float(letter == LETTERS[options.index(key)]), 1.0]
    number = parse(reply, options)
    if metric == "choice_unparsed":
        return [float(number is None), 1.0]
    return [float(number is not None and options[number] == key), 1.0]


def _letters(said: str) -> set[str]:
    """The letters that a reply names as its answer: more than one contradict each other."""
    if found := _LEADING.match(said):
        return {(found[1] or found[2]).upper()}
    if named := {letter.upper() for letter in _NAMED.findall(said)}:
        return named
    found = _CLOSING.search(said)
    return {found[1]} if found else set()


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
