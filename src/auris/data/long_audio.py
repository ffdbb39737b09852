"""Transcription of clips over 30 s: each overlapping window becomes a row, and the transcripts are merged afterwards.

For all other tasks, one prompt contains all windows of a clip (`Samples`), because an answer about the whole clip
cannot be merged from answers about its windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

from auris import audio
from auris.data.rows import Clip, Row
from auris.metrics.normalize import counted_unit

WINDOW = audio.MAX_SAMPLES / audio.SAMPLE_RATE  # length of a window in seconds
OVERLAP = 5.0  # minimum overlap of neighbouring windows in seconds: about one sentence, enough to align transcripts


def split_row(row: Row, is_transcript: Callable[[Row], bool]) -> list[Row]:
    """Split a row whose answer is a transcript (`is_transcript`) into rows of overlapping windows.

    All other rows, and rows with a clip of at most 30 s or with several clips, are returned unchanged.

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
        for number, (offset, duration) in enumerate(overlapping_windows(seconds))
    ] or [row]


def overlapping_windows(seconds: float) -> list[tuple[float, float]]:
    """Return (offset, duration) of the fewest evenly spaced 30 s windows that overlap by at least OVERLAP.

    The list is empty for a clip of at most 30 s.
    """
    if seconds <= WINDOW:
        return []
    n_windows = math.ceil((seconds - OVERLAP) / (WINDOW - OVERLAP))
    stride = (seconds - WINDOW) / (n_windows - 1)
    return [(round(k * stride, 3), WINDOW) for k in range(n_windows - 1)] + [(seconds - WINDOW, WINDOW)]


def merge_transcripts(texts: Sequence[str], language: str) -> str:
    """Merge the transcripts of overlapping windows into one.

    Units are words, or characters in languages without spaces. Two neighbouring transcripts are joined in the middle of
    the longest run of units that the end of the first and the start of the second have in common. If there is none,
    they are concatenated.
    """
    separator = " " if counted_unit(language) == "word" else ""
    units = [text.split() if separator else list(text.strip()) for text in texts]
    merged = units[0] if units else []
    for following in units[1:]:
        # Speech of constant rate would have len(following) * OVERLAP / WINDOW units in the overlap. About twice as many
        # are searched.
        n_searched = 2 * math.ceil(len(following) * OVERLAP / WINDOW) + 2
        end, start = merged[-n_searched:], following[:n_searched]
        match = SequenceMatcher(None, _fold(end), _fold(start), autojunk=False).find_longest_match()
        if match.size:
            n_kept = len(merged) - len(end) + match.a + match.size // 2
            merged = merged[:n_kept] + following[match.b + match.size // 2 :]
        else:
            merged = merged + following
    return separator.join(merged)


def _fold(units: Sequence[str]) -> list[str]:
    """Return units without case and punctuation, which may differ between the transcripts of two windows."""
    return ["".join(c for c in unit_text.casefold() if c.isalnum()) or unit_text for unit_text in units]
