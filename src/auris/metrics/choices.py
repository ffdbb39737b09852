"""Parsing of responses to multiple-choice questions, which name an option by its letter or by its text.

AIR-Bench's script looks for a letter at two positions of a response, and ignores the response if there is none. Other
evaluation kits choose a random letter instead. Here a response that names no option is wrong, and is also counted as
unparsed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from auris.errors import UserError, shorten

LETTERS = "ABCD"

# A letter names an option if it is at the beginning and followed by punctuation or nothing, if it follows words such as
# "answer is", or if it is the last word. A letter before another word does not count: it may be an article, a musical
# key (C major) or part of a name.
_LEADING = re.compile(r"[\s\"'*]*(?:[(\[]([A-D])[)\]]|([A-D])(?=\s*(?:[.):,\]\"*]|'(?!\w)|$)))", re.IGNORECASE)
_NAMED = re.compile(
    r"(?i:\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*)[\"'(\[*]*([A-D](?![\w'])|[a-d](?=\s*(?:[.):,\]\"*]|$)))"
)
_CLOSING = re.compile(r"(?<![\w'])([A-D])\W*$")


def official_letter(reply: str) -> str | None:
    """Return the letter that AIR-Bench's script reads: the first character, otherwise the second-last one."""
    text = reply.strip().replace("\n", "")
    return next((character for character in text[:1] + text[-2:-1] if character in LETTERS), None)


def parse_option(reply: str | None, options: Sequence[str]) -> int | None:
    """Return the index of the option that a response names; None if it names no option or several options.

    Three rules are tried in this order: the whole response is the text of an option; the response names a letter; the
    text of an option occurs in the response as whole words. If one matching option contains another one, the longer
    one counts (`dog barking`, not `dog`). If two options have the same text, the first one counts.
    """
    response = (reply or "").strip()
    texts = [_words_only(text) for text in options]
    if len(_words_only(response)) > 1 and _words_only(response) in texts:
        return texts.index(_words_only(response))
    letters = _letters(response)
    if letters:
        index = LETTERS.index(letters.pop())
        return index if not letters and index < len(options) else None
    words = f" {_words_only(response)} "
    contained = {text: index for index, text in reversed([*enumerate(texts)]) if text and f" {text} " in words}
    longest = [
        text for text in contained if not any(text != other and f" {text} " in f" {other} " for other in contained)
    ]
    return contained[longest[0]] if len(longest) == 1 else None


def count_choice(metric: str, reply: str, key: str, options: Sequence[str]) -> list[float]:
    """Return the statistics that a response contributes to the metric `choice`, `choice_unparsed` or `choice_official`.

    `choice_official` leaves out a response without a letter.

    Args:
        metric: The name of the metric.
        reply: The response.
        key: The text of the correct option.
        options: The texts of all options.

    Raises:
        UserError: The key is not one of the options, which is an error in the data.
    """
    if key not in options:
        raise UserError(f"the key is {shorten(key)}, expected one of {shorten(list(options))}")
    if metric == "choice_official":
        letter = official_letter(reply)
        return [0.0, 0.0] if letter is None else [float(letter == LETTERS[options.index(key)]), 1.0]
    index = parse_option(reply, options)
    if metric == "choice_unparsed":
        return [float(index is None), 1.0]
    return [float(index is not None and options[index] == key), 1.0]


def _letters(response: str) -> set[str]:
    """Return the letters that a response names as its answer. A valid response names only one."""
    if match := _LEADING.match(response):
        return {(match[1] or match[2]).upper()}
    if named := {letter.upper() for letter in _NAMED.findall(response)}:
        return named
    match = _CLOSING.search(response)
    return {match[1]} if match else set()


def _words_only(text: str) -> str:
    """Return the lower-cased words of a text, joined by single spaces and without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))
