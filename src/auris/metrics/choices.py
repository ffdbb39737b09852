"""Parsing of responses to multiple-choice questions, which name an option by its letter or by its text.

AIR-Bench's script looks for a letter at two positions of a response, and ignores the response if there is none. Other
evaluation kits choose a random letter instead. Here a response that does not name exactly one option is wrong, and is
also counted as unparsed.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable, Sequence

from auris.errors import UserError, shorten

LETTERS = "ABCD"  # the letters that AIR-Bench's script reads
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"  # Japanese and Chinese characters, which are written without spaces

# --- patterns of letters in English and Chinese responses ---
#
# All patterns are compiled with re.ASCII, because a Chinese character may stand next to a letter without a space.
# Repetitions are limited, so that the time for a runaway response is proportional to its length.


def _any(words: str) -> str:
    """Return a pattern for any of some words, in upper or lower case. `_` stands for a space within a word."""
    return rf"(?i:\b(?:{'|'.join(words.split()).replace('_', ' ')})\b)"


# An "A" or "I" before one of these words is a letter. Before another word, it is an article or a pronoun.
_FOLLOWER = _any(
    "because since as due so and or nor but not is isn't are was seems sounds fits matches for with which the"
)
_BOUND = r"(?![A-Za-z0-9#]|['-][A-Za-z0-9]|\.[A-Za-z]\b)"  # not the letter of C#, A-flat, D's or U.S.
_UPPER = rf"(?:[B-HJ-Z]{_BOUND}|[AI]{_BOUND}(?! +(?!{_FOLLOWER})[a-z]{{2}}))"
_LOWER = rf"[a-z]{_BOUND}(?=\s*(?:[.):,;\]\"*}}]|$))"  # only before punctuation, because "a" is an article
_LETTER = rf"(?<![A-Za-z0-9])(?<![A-Za-z0-9]['.-])(?:{_UPPER}|{_LOWER})"
_ITEM = rf"[\"'(\[{{*_]{{0,4}}{_LETTER}[\"')\]}}*_]{{0,4}}"
_AND = (
    rf"\s*\(?(?:或者|以及|还是|[,;/&|+、和或与及]|{_any('and or nor as_well_as')})"
    rf"(?:[\s,;/&|+、]|选项|{_any('and or nor maybe perhaps possibly probably option choice a an the')}){{0,12}}"
)
_ITEMS = rf"(?>{_ITEM}(?:{_AND}{_ITEM}){{0,25}})"
# Words that may stand between a keyword and a letter, as in "the answer *is probably option* B".
_FILL = (
    r"(?:[\s:=>{\"'*-]|应该|可能|正确|选项|[是为的]|"
    + _any(
        "is are was be would should could might may must can will it its it's a an the to this that these question "
        "most likely probably definitely clearly correct right final best answers? options? choices? letter either "
        "both between of any i think believe hear sounds? like"
    )
    + "){0,24}"
)
_FILL_OF_DENIAL = _FILL.replace(r"\s", " ")  # on the same line
_END = rf"(?= *\n|\s*(?:[.,:;!?)\]}}\"'*/|、。]|[-–—]\s|$|{_FOLLOWER}))"  # not before another word, as in "C major"


def _compile(*patterns: str) -> list[re.Pattern[str]]:
    return [re.compile(pattern, re.ASCII) for pattern in patterns]


_DENIALS = _compile(
    _any("not no neither nor never cannot none without except excluding rather_than over instead_of rule_out eliminate")
    + _FILL_OF_DENIAL
    + _ITEMS,
    rf"n't\b{_FILL_OF_DENIAL}{_ITEMS}",
    rf"(?:不[是选像太很]?|没有|并非|而非|排除){_FILL_OF_DENIAL}{_ITEMS}",
    # "A isn't right", "A and B do not fit", but not "A (the text of option A) is not barking"
    rf"(?:{_ITEMS}\s*(?i:are|were|would|could|can|do)|{_ITEM}\s*(?i:is|was|does))\s*(?i:not|n't)\b\s*"
    rf"(?:[.,;!]|$|{_any('be a an the fit match sound seem make mentioned correct right true likely possible')})",
    rf"(?:{_ITEMS}\s*{_any('are were can_be could_be must_be')}|{_ITEM}\s*{_any('is was seems looks sounds')})\s+"
    rf"(?:{_any('clearly both all')}\s+)*"
    + _any("wrong incorrect false unlikely impossible ruled_out eliminated excluded"),
    rf"{_ITEMS}都?(?:是错|不是|不对|不正确|错)",
)
# The groups of the patterns below are the letters that a response names.
_STATEMENTS = _compile(
    rf"{_any('answers? choose chose pick select')}{_FILL}({_ITEMS})",
    rf"{_any('option choice')}\s*(?:[:=]|{_any('is would should must')}){_FILL}({_ITEMS})",
    rf"(?:\\boxed|答案|选择?(?!项)|选项(?=[是为:])){_FILL}({_ITEMS})",
    rf"({_ITEMS})\s*{_any('is are was seems? would_be')}\s+(?:{_any('also clearly probably the most only')}\s+)*"
    + _any("correct right true best likely answer appropriate accurate"),
    rf"({_ITEMS})\s*是?(?:正确|对的)",
)
# "B", "(B) sad", "B because", "A, B", or a list of all options, in which punctuation or a space follows each letter. In
# a list of options with comments ("A: no. B: yes. C: no."), the first letter is not the answer.
_LABELS = [rf"[\"'(\[*]{{0,4}}{letter}[.:)\]*]{{1,4}}" for letter in "ABC"]
_LEADING = _compile(
    r"(?s)\A(" + r".{0,200}?[\n.;,]\s*".join(_LABELS) + ")",
    rf"\A((?>{_ITEMS}(?:[.):?\s]*{_ITEM}(?=\W*$|\s*[.):,(\n]| +[A-Z]\b))*))(?:(?<=[)\]}}*])|{_END})",
)
_MENTIONS = _compile(
    rf"(?<![A-Za-z0-9])([(\[{{*]{{1,4}}{_LETTER}[)\]}}*]+)",
    rf"({_ITEM}(?:{_AND}{_ITEM}){{1,25}})",
    rf"(?:{_any('option choice letter')}|选项){_FILL}({_ITEMS})",
    rf"({_ITEM})\s*选项",
    rf"(?:{_any('it.s is was be think say guess believe like with')}|[是为]){_FILL}({_ITEMS}){_END}",
    rf"((?![a-z]){_LETTER})\W*$",
)


def official_letter(reply: str) -> str | None:
    """Return the letter that AIR-Bench's script reads: the first character, otherwise the second-last one."""
    text = reply.strip().replace("\n", "")
    return next((character for character in text[:1] + text[-2:-1] if character in LETTERS), None)


def parse_option(reply: str | None, options: Sequence[str]) -> int | None:
    """Return the index of the option that a response names; None if it names no option or several options.

    These rules are tried in this order, and the first one that finds an option decides:

    1. The whole response is the text of an option.
    2. The response states a letter as its answer ("The answer is B", "答案是B", "B is correct").
    3. It begins with a letter and punctuation, or with a list of letters.
    4. It mentions a letter in another way ("(B)", "option B", "I think B").
    5. It states the text of an option as its answer.
    6. It contains the text of an option as whole words.

    Thoughts (`<think>...</think>`) are left out. A letter or a text that is denied ("not A", "neither A nor B", "A is
    wrong") does not count. A letter before another word is no letter in rules 3 and 4, because it may be an article, a
    musical key (C major) or part of a name. A letter that no option has (E of four) names no option. If the text of one
    option contains another one, the longer one counts (`dog barking`, not `dog`). If two options have the same text,
    the first one counts.
    """
    without_thoughts = re.sub(r"<think>.*?</think>", " ", reply or "", flags=re.DOTALL)
    response = unicodedata.normalize("NFKC", without_thoughts).replace("’", "'").strip()
    texts = [_words_only(text) for text in options]
    if len(_words_only(response)) > 1 and _words_only(response) in texts:
        return texts.index(_words_only(response))
    with_letter = [text if re.search(r" [b-hj-z]\b|\b[b-hj-z] ", text) else "" for text in texts]  # such as `C major`
    response = _replace_texts(_shorten_labels(response, texts), with_letter)
    named = _read_letters(response, (_STATEMENTS, _LEADING, _MENTIONS))
    if not named:
        named = _read_letters(_replace_texts(response, texts), (_STATEMENTS, _MENTIONS))
        words = {letter: f" {text} " for letter, text in zip(string.ascii_uppercase, texts, strict=False)}
        named = {a for a in named if not any(a != b and words[a] in words[b] for b in named)}
    index = string.ascii_uppercase.index(named.pop()) if len(named) == 1 else len(options)
    return index if index < len(options) else None


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
        return [0.0, 0.0] if letter is None else [float(LETTERS.index(letter) == options.index(key)), 1.0]
    index = parse_option(reply, options)
    if metric == "choice_unparsed":
        return [float(index is None), 1.0]
    return [float(index is not None and options[index] == key), 1.0]


def _read_letters(text: str, ranks: Iterable[Sequence[re.Pattern[str]]]) -> set[str]:
    """Return the letters found by the first rank of patterns that finds any, without letters that are denied."""
    for pattern in _DENIALS:
        text = pattern.sub(" ~ ", text)
    for patterns in ranks:
        found = [letters for pattern in patterns for letters in pattern.findall(text)]
        if found:
            return {letter.upper() for letters in found for letter in re.findall(_LETTER, letters, re.ASCII)}
    return set()


def _shorten_labels(response: str, texts: Sequence[str]) -> str:
    """Replace a letter and the text of its option, such as `B. sad`, by the letter in brackets."""
    for letter, text in zip(string.ascii_uppercase, texts, strict=False):
        if text:
            label = rf"(?<!\w)[(\[*\"']*{letter}\s*[.:,)\](*-][\s.:,)\]([*\"'-]*"
            response = re.sub(rf"{label}{_text_pattern(text)}", f"({letter})", response, flags=re.IGNORECASE)
    return response


def _replace_texts(response: str, texts: Sequence[str]) -> str:
    """Replace the texts of options by their letters in brackets, the longest texts first."""
    labels = [(text, letter) for text, letter in zip(texts, string.ascii_uppercase, strict=False) if text]
    labels.sort(key=lambda label: len(label[0]), reverse=True)  # keeps the order of equal texts
    if not labels:
        return response
    pattern = "|".join(f"({_text_pattern(text)})" for text, _ in labels)

    def letter_of(match: re.Match[str]) -> str:
        assert match.lastindex is not None, "each alternative is a group"
        return f"({labels[match.lastindex - 1][1]})"

    return re.sub(pattern, letter_of, response, flags=re.IGNORECASE)


def _text_pattern(text: str) -> str:
    """Return a pattern for the words of a text with any characters between them.

    The text must not be a part of a longer word or number (2 of 2.5). Chinese words stand next to each other without
    spaces, but a single character must stand alone, because it may be a part of another word (是 of 是否).
    """
    in_word = r"\w" if re.fullmatch(f"[{_UNSPACED}]", text) else rf"[^\W{_UNSPACED}]"
    words = r"\W+".join(map(re.escape, text.split()))
    return rf"(?<!{in_word})(?!(?<=\d[.,])\d){words}(?!{in_word})(?!(?<=\d)[.,]\d)"


def _words_only(text: str) -> str:
    """Return the lower-cased words of a text, joined by single spaces and without punctuation."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower()))
