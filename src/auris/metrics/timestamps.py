"""Average alignment shift (AAS): the average distance between predicted and true word times.

The released script (Qwen-Audio, eval_audio/evaluate_srwt.py) drops malformed responses and malformed references before
it pairs the remaining ones by position. It therefore crashes or compares responses with references of other rows. Here
each response is compared with the reference of the same row. Words of a response without valid times match no reference
word, and `coverage` states for how many words the shift was measured.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import TypedDict

from auris.metrics.normalize import normalize

Span = tuple[float, float]  # start and end of a word in seconds
TimedText = tuple[list[str], list[Span]]  # words, and the span of each word


class TimedWord(TypedDict):
    """A word with its times in seconds; `end` is None if the response does not state it."""

    word: str
    start: float
    end: float | None


_TIME = re.compile(r"<\|(\d{1,2}\.\d+)\|>")  # the pattern of the script; it does not match `<|100.20|>`
_OTHER_TAGS = re.compile(r"<\|(?!sil\|>).*?\|>")  # the tags of the prompt; `<|sil|>` is a word
BEGIN = "<|0.00|>"


def shift(hypothesis: Sequence[TimedWord], reference: Sequence[TimedWord], language: str) -> tuple[float, float]:
    """Return the sum of the shifts of matched words in milliseconds, and the number of matched words.

    The shift of a word is the mean of two distances: between the predicted and the true start, and between the
    predicted and the true end. Normalised words are matched by the alignment with the fewest edits. Pauses and words
    without an end are left out.
    """
    (predicted, spans), (true, true_spans) = (_split_times(words, language) for words in (hypothesis, reference))
    pairs = match_items(true, predicted)
    return 1000 * sum(span_distance(true_spans[i], spans[j]) / 2 for i, j in pairs), len(pairs)


def coverage(hypothesis: Sequence[TimedWord], reference: Sequence[TimedWord], language: str) -> tuple[float, float]:
    """Return the number of reference words that `shift` compares, and the number of all reference words."""
    (predicted, _), (true, _) = (_split_times(words, language) for words in (hypothesis, reference))
    return float(len(match_items(true, predicted))), float(len(true))


def official_shift(hypothesis: str, reference: str) -> tuple[float, float]:
    """Return the sum of the shifts of matched words in seconds and their number, as the released script computes them.

    The shift of a word is the distance of the starts plus the distance of the ends. Words are not normalised, and the
    pause `<|sil|>` counts as a word.

    The script expects references that begin with `<|0.00|>`, so `<|0.00|>` is added if it is missing. Responses do not
    begin with it, because it is the end of the prompt. The script ignores text before the first time, so the first word
    of a response does not count.

    Args:
        hypothesis: The response in the published form, `the<|0.11|>doctor<|0.45|>`.
        reference: The reference in the published form.
    """
    if _OTHER_TAGS.sub("", _TIME.split(reference)[0]):
        reference = BEGIN + reference
    predicted, true = parse_timed_text(hypothesis), parse_timed_text(reference)
    if predicted is None or true is None:
        return 0.0, 0.0
    pairs = matched_spans(true, predicted)
    return sum(span_distance(a, b) for a, b in pairs), float(len(pairs))


def matched_spans(true: TimedText, predicted: TimedText) -> list[tuple[Span, Span]]:
    """Return the pairs (true span, predicted span) of the words that match.

    If a word contains a tab, `parse_timed_text` splits it, and there are more words than spans. The last matched words
    then have no span. If the numbers of the remaining true and predicted spans differ, there are no pairs; the script
    reports a "length mismatch".
    """
    indices = match_items(true[0], predicted[0])
    true_spans = [true[1][i] for i, _ in indices if i < len(true[1])]
    predicted_spans = [predicted[1][j] for _, j in indices if j < len(predicted[1])]
    return list(zip(true_spans, predicted_spans, strict=True)) if len(true_spans) == len(predicted_spans) else []


def match_items(true: Sequence[Hashable], predicted: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Return the pairs of positions (in `true`, in `predicted`) of equal items in the alignment with the fewest edits.

    If several alignments have the fewest edits, the choice is that of the package edit-distance 1.0.9, which the
    released script uses. It goes backwards from the end and prefers a step in both sequences, then a step in
    `predicted`, then a step in `true`.
    """
    best = [list(range(len(predicted) + 1))]  # best[i][j]: edits from the first i true to the first j predicted items
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
    """Return the normalised words and their spans. Words that have no end or become empty are left out."""
    timed = ((normalize(w["word"], language), (w["start"], end)) for w in words if (end := w["end"]) is not None)
    pairs = [(word, span) for word, span in timed if word]
    return [word for word, _ in pairs], [span for _, span in pairs]


def parse_timed_text(text: str) -> TimedText | None:
    """Return the words and spans that the released script parses; None if the text is malformed.

    Tags of the prompt are removed. The script splits words at tabs, so there may be more words than spans.
    """
    for tag in ("<|startoftranscript|>", "<|transcribe|>", "<|en|>" if "<|en|>" in text else "<|zh|>"):
        text = text.replace(tag, "")
    _, *pieces = _TIME.split(text)
    times, words = [float(time) for time in pieces[0::2]], pieces[1::2][:-1]
    if len(words) != len(times) - 1:
        return None
    words = "\t".join(words).split("\t") if words else []  # the script joins and splits the words at tabs
    return words, list(pairwise(times))


def span_distance(a: Span, b: Span) -> float:
    """Return the distance of the starts plus the distance of the ends of two spans, in seconds."""
    return abs(a[0] - b[0]) + abs(a[1] - b[1])
