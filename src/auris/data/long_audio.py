"""Transcription of clips over 30 s: one row per overlapping window, with the transcripts merged afterwards.

For all other tasks, the windows of a clip follow one another in one prompt (`Samples`): a transcript can be merged from
transcripts of windows, but an answer about the whole clip cannot.
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
OVERLAP = 5.0  # minimum overlap of neighbouring windows in seconds: about a sentence, enough words to align them


def split_row(row: Row, is_transcript: Callable[[Row], bool]) -> list[Row]:
    """Split a row into rows of overlapping windows; return the row itself if it is short or not a transcription.

    Raises:
        AudioError: The clip's length cannot be read.
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
    """Return (offset, duration) of the fewest evenly spaced 30 s windows that overlap by at least OVERLAP.

    The list is empty for a clip of at most 30 s.
    """
    if seconds <= WINDOW:
        return []
    n = math.ceil((seconds - OVERLAP) / (WINDOW - OVERLAP))
    stride = (seconds - WINDOW) / (n - 1)
    return [(round(k * stride, 3), WINDOW) for k in range(n - 1)] + [(seconds - WINDOW, WINDOW)]


def merge_transcripts(texts: Sequence[str], language: str) -> str:
    """Merge the transcripts of overlapping windows into one.

    Neighbours are joined in the middle of the longest run of units that the end of one and the start of the next have
    in common. Without a common run, nothing is dropped. Units are words, or characters in languages without spaces.
    """
    glue = " " if unit(language) == "word" else ""
    units = [text.split() if glue else list(text.strip()) for text in texts]
    merged = units[0] if units else []
    for following in units[1:]:
        # The overlap has about its share of the window's units; twice that number allows for uneven speech.
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
    """Return units without case and punctuation, which depend on where a window ends, for comparison."""
    return ["".join(c for c in piece.casefold() if c.isalnum()) or piece for piece in units]
