"""Average alignment shift (AAS): how far the word times of a response are from the true ones.

The released script (Qwen-Audio, eval_audio/evaluate_srwt.py) drops malformed lines of responses and references before
it pairs them by position, so it crashes or compares wrong rows. Here each response is compared with its own reference.
A response without valid times matches no word, and the coverage tells for how many words the shift was measured.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import TypedDict

from auris.metrics.normalize import normalize

Span = tuple[float, float]  # start and end in seconds
TimedText = tuple[list[str], list[Span]]  # words and their spans


class TimedWord(TypedDict):
    """A word with its times in seconds; `end` is None if the response does not give it."""

    word: str
    start: float
    end: float | None


_TIME = re.compile(r"<\|(\d{1,2}\.\d+)\|>")  # the script's pattern, for which `<|100.20|>` is not a time
_OTHER_TAGS = re.compile(r"<\|(?!sil\|>).*?\|>")  # the tags of the prompt; `<|sil|>` is a word
BEGIN = "<|0.00|>"


def shift(hypothesis: Sequence[TimedWord], reference: Sequence[TimedWord], language: str) -> tuple[float, float]:
    """Return the shift of matched words in milliseconds, and the number of matched words.

    The shift of a word is the mean of start and end, summed over the words. Normalised words are matched by the
    alignment with the fewest edits. Pauses and words without an end are left out.
    """
    (predicted, spans), (true, true_spans) = (_split_times(words, language) for words in (hypothesis, reference))
    pairs = matches(true, predicted)
    return 1000 * sum(distance(true_spans[i], spans[j]) / 2 for i, j in pairs), len(pairs)


def coverage(hypothesis: Sequence[TimedWord], reference: Sequence[TimedWord], language: str) -> tuple[float, float]:
    """Return the number of reference words that `shift` compares, and of all reference words."""
    (predicted, _), (true, _) = (_split_times(words, language) for words in (hypothesis, reference))
    return float(len(matches(true, predicted))), float(len(true))


def official_shift(hypothesis: str, reference: str) -> tuple[float, float]:
    """Return the shift of matched words in seconds, and their number, as the released script computes them.

    The shift of a word is that of its start plus that of its end. Words match as written, `<|sil|>` included.

    The script's references begin with `<|0.00|>`, which is added if it is missing. Its responses do not, because the
    prompt ends with it, and the script ignores what precedes the first time. So the first word of a response does not
    count.

    Args:
        hypothesis: The response in the published form, `the<|0.11|>doctor<|0.45|>`.
        reference: The reference in the same form.
    """
    if _OTHER_TAGS.sub("", _TIME.split(reference)[0]):
        reference = BEGIN + reference
    predicted, true = parse(hypothesis), parse(reference)
    if predicted is None or true is None:
        return 0.0, 0.0
    pairs = matched_spans(true, predicted)
    return sum(distance(a, b) for a, b in pairs), float(len(pairs))


def matched_spans(true: TimedText, predicted: TimedText) -> list[tuple[Span, Span]]:
    """Return the pairs of spans of equal words.

    If a tab divides a word, there are more words than spans. Spans are then counted from the front, and if one side
    lacks more spans than the other, there are no pairs (the script's "length mismatch").
    """
    indices = matches(true[0], predicted[0])
    left = [true[1][i] for i, _ in indices if i < len(true[1])]
    right = [predicted[1][j] for _, j in indices if j < len(predicted[1])]
    return list(zip(left, right, strict=True)) if len(left) == len(right) else []


def matches(true: Sequence[Hashable], predicted: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Return the positions of equal items in the alignment with the fewest edits.

    Ties are resolved as in the package edit-distance 1.0.9, which the released script uses: from the end backwards,
    along both sides, otherwise along `predicted`, otherwise along `true`.
    """
    best = [list(range(len(predicted) + 1))]  # edits between the first i and the first j items
    for i, item in enumerate(true):
        row = [i + 1]
        for j, other in enumerate(predicted):
            row.append(min(best[i][j] + (item != other), row[j] + 1, best[i][j + 1] + 1))
        best.append(row)
    i, j, pairs = len(true), len(predicted), []
    while i and j:
        if best[i][j] == best[i - 1][j - 1] + (true[i - 1] != predicted[j - 1]):
            i, j = i - 1, j - 1
            if true[i] == predicted[j]:
                pairs.append((i, j))
        elif best[i][j] == best[i][j - 1] + 1:
            j -= 1
        else:
            i -= 1
    return pairs[::-1]


def _split_times(words: Sequence[TimedWord], language: str) -> TimedText:
    """Return normalised words and their spans, without empty words and words without an end."""
    timed = ((normalize(w["word"], language), (w["start"], end)) for w in words if (end := w["end"]) is not None)
    pairs = [(word, span) for word, span in timed if word]
    return [word for word, _ in pairs], [span for _, span in pairs]


def parse(text: str) -> TimedText | None:
    """Return the words and spans that the script parses, without the prompt's tags; None for a malformed line.

    A tab divides a word, so there may be more words than spans.
    """
    for tag in ("<|startoftranscript|>", "<|transcribe|>", "<|en|>" if "<|en|>" in text else "<|zh|>"):
        text = text.replace(tag, "")
    _, *pieces = _TIME.split(text)
    times, words = [float(time) for time in pieces[0::2]], pieces[1::2][:-1]
    if len(words) != len(times) - 1:
        return None
    words = "\t".join(words).split("\t") if words else []  # the script joins and splits the words at tabs
    return words, list(pairwise(times))


def distance(a: Span, b: Span) -> float:
    """Return the distance of the starts plus that of the ends, in seconds."""
    return abs(a[0] - b[0]) + abs(a[1] - b[1])
