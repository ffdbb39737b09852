"""Clips over 30 s at inference: a row to be transcribed becomes rows of overlapping windows, whose answers are merged.

Whatever else a row asks, its windows are heard one after the other in one prompt (`Samples`): an answer about a clip is
not a concatenation of answers about its windows, but a transcript is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

from auris import audio
from auris.data.rows import Clip, Row
from auris.metrics.normalize import unit

WINDOW = audio.MAX_SAMPLES / audio.SAMPLE_RATE  # seconds
OVERLAP = 5.0  # seconds that neighbouring windows share at least: a sentence's worth of words to join them by


def split_row(row: Row, is_transcript: Callable[[Row], bool]) -> list[Row]:
    """The rows of a row's overlapping windows, or the row itself if it is short or no transcript.

    Raises AudioError if the clip's length cannot be read.
    """
    if row.problem or len(row.clips) != 1 or not is_transcript(row):
        return [row]
    [clip] = row.clips
    start, _ = clip.segment
    seconds = clip.n_samples() / audio.SAMPLE_RATE
    return [
        replace(row, id=f"{row.id}#{number}", clips=(Clip(clip.path, start + offset, duration),))
        for number, (offset, duration) in enumerate(windows(seconds))
    ] or [row]


def windows(seconds: float) -> list[tuple[float, float]]:
    """(offset, duration) of the fewest windows of 30 s that overlap by OVERLAP or more, evenly laid; none if short."""
    if seconds <= WINDOW:
        return []
    n = math.ceil((seconds - OVERLAP) / (WINDOW - OVERLAP))
    stride = (seconds - WINDOW) / (n - 1)
    return [(round(k * stride, 3), WINDOW) for k in range(n - 1)] + [(seconds - WINDOW, WINDOW)]


def merge_transcripts(texts: Sequence[str], language: str) -> str:
    """One transcript of the transcripts of overlapping windows.

    Neighbours are joined in the middle of the longest run of units (words, or characters where words are not spaced)
    that the end of one and the beginning of the next have in common; where they have none, nothing is dropped.
    """
    glue = " " if unit(language) == "word" else ""
    units = [text.split() if glue else list(text.strip()) for text in texts]
    merged = units[0] if units else []
    for following in units[1:]:
        # An overlap holds about its share of a window's units; twice that leaves room for uneven speech.
        reach = 2 * math.ceil(len(following) * OVERLAP / WINDOW) + 2
        tail, head = merged[-reach:], following[:reach]
        match = SequenceMatcher(None, _keys(tail), _keys(head), autojunk=False).find_longest_match()
        if match.size:
            keep = len(merged) - len(tail) + match.a + match.size // 2
            merged = merged[:keep] + following[match.b + match.size // 2 :]
        else:
            merged = merged + following
    return glue.join(merged)


def _keys(units: Sequence[str]) -> list[str]:
    """Units as they are compared: without case and punctuation, which depend on where a window ends."""
    return ["".join(c for c in piece.casefold() if c.isalnum()) or piece for piece in units]
