"""Times of words: how far an answer's are from the true ones, and of how many words (AAS, average alignment shift).

The released script (Qwen-Audio, eval_audio/evaluate_srwt.py) drops malformed lines of answers and of references before
it pairs the two by position, and so stops, or compares wrong rows. Here a row is paired with its own: one without
readable times matches no word, and the coverage says how many words the shift is of.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import TypedDict

from auris.metrics.normalize import normalize

Span = tuple[float, float]  # start and end in seconds
Timed = tuple[list[str], list[Span]]  # words and their spans


class TimedWord(TypedDict):
    """A word with its times in seconds; `end` is None if the response does not give it."""

    word: str
    start: float
    end: float | None


_TIME = re.compile(r"<\|(\d{1,2}\.\d+)\|>")  # as the script has it: `<|100.20|>` is no time
_OTHER_TAGS = re.compile(r"<\|(?!sil\|>).*?\|>")  # the prompt's; `<|sil|>` is a word
BEGIN = "<|0.00|>"


def shift(hypothesis: Sequence[TimedWord], reference: Sequence[TimedWord], language: str) -> Span:
    """Milliseconds by which matched words are shifted, start and end averaged and summed over words, and their number.

    Words match in an alignment by fewest edits, compared as `normalize` writes
    them; pauses are no words, nor is what has no end.
    """
    (said, spans), (true, true_spans) = (_timed(words, language) for words in (hypothesis, reference))
    pairs = matches(true, said)
    return 1000 * sum(distance(true_spans[i], spans[j]) / 2 for i, j in pairs), len(pairs)


def coverage(hypothesis: Sequence[TimedWord], reference: Sequence[TimedWord], language: str) -> Span:
    """Words of the reference that `shift` compares, and all of them."""
    (said, _), (true, _) = (_timed(words, language) for words in (hypothesis, reference))
    return float(len(matches(true, said))), float(len(true))


def official_shift(hypothesis: str, reference: str) -> Span:
    """Seconds by which matched words are shifted, start plus end, and their number, as the released script counts.

    Both in the published form, `the<|0.11|>doctor<|0.45|>`. Words match as written, `<|sil|>` too. The script's
    references begin with `<|0.00|>`, which is put there if missing; its answers do not, since the prompt ends with it,
    and what stands before the first time is no word: so the first word of an answer is left out, as it is there.
    """
    if _OTHER_TAGS.sub("", _TIME.split(reference)[0]):
        reference = BEGIN + reference
    said, true = read(hypothesis), read(reference)
    if said is None or true is None:
        return 0.0, 0.0
    pairs = matched_spans(true, said)
    return sum(distance(a, b) for a, b in pairs), float(len(pairs))


def matched_spans(true: Timed, said: Timed) -> list[tuple[Span, Span]]:
    """Spans of equal words. Where a tab has divided a word there are more words than spans: spans are counted from the
    front then, and where one side has lost more of them than the other, none match (the script's "length mismatch")."""
    found = matches(true[0], said[0])
    left = [true[1][i] for i, _ in found if i < len(true[1])]
    right = [said[1][j] for _, j in found if j < len(said[1])]
    return list(zip(left, right, strict=True)) if len(left) == len(right) else []


def matches(true: Sequence[Hashable], said: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Positions of equal items in the alignment with the fewest edits. Ties fall as in the package edit-distance 1.0.9,
    which the released script uses: from the end backwards, along both, then along `said`, then along `true`."""
    best = [list(range(len(said) + 1))]  # edits between the first i and the first j
    for i, item in enumerate(true):
        row = [i + 1]
        for j, other in enumerate(said):
            row.append(min(best[i][j] + (item != other), row[j] + 1, best[i][j + 1] + 1))
        best.append(row)
    i, j, found = len(true), len(said), []
    while i and j:
        if best[i][j] == best[i - 1][j - 1] + (true[i - 1] != said[j - 1]):
            i, j = i - 1, j - 1
            if true[i] == said[j]:
                found.append((i, j))
        elif best[i][j] == best[i][j - 1] + 1:
            j -= 1
        else:
            i -= 1
    return found[::-1]


def _timed(words: Sequence[TimedWord], language: str) -> tuple[list[str], list[Span]]:
    known = ((normalize(w["word"], language), (w["start"], w["end"])) for w in words if w["end"] is not None)
    kept = [(word, span) for word, span in known if word]
    return [word for word, _ in kept], [span for _, span in kept]


def read(text: str) -> Timed | None:
    """Words and their spans as the script reads them, without the prompt's tags; None for a malformed line. A tab
    divides a word, so that there may be more words than spans."""
    for tag in ("<|startoftranscript|>", "<|transcribe|>", "<|en|>" if "<|en|>" in text else "<|zh|>"):
        text = text.replace(tag, "")
    _, *pieces = _TIME.split(text)
    times, words = [float(time) for time in pieces[0::2]], pieces[1::2][:-1]
    if len(words) != len(times) - 1:
        return None
    words = "\t".join(words).split("\t") if words else []  # the script joins and splits them so
    return words, list(zip(times, times[1:], strict=False))


def distance(a: Span, b: Span) -> float:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])
