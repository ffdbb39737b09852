"""Metrics for several speakers: who speaks when (DER and JER) and what each speaker says (cpWER).

DER and JER are computed by pyannote.metrics, which is an extra. cpWER is implemented here because MeetEval has no
wheels and compiles C++ for a minute and a half at every installation; the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from auris.metrics import edits, optional_packages
from auris.metrics import normalize as norm


class Turn(TypedDict):
    """A stretch of speech; times in seconds."""

    speaker: str
    start: float
    end: float


Turns = Sequence[Turn]


def diarization_error(hypothesis: Turns, reference: Turns) -> list[float]:
    """Return seconds in error (missed, false alarm or confused) and seconds of speech.

    There is no collar. Overlapping speech counts once for each of its speakers.
    """
    components = _compare("DiarizationErrorRate", hypothesis, reference)
    return [components["missed detection"] + components["false alarm"] + components["confusion"], components["total"]]


def jaccard_error(hypothesis: Turns, reference: Turns) -> list[float]:
    """Return the sum of the Jaccard error rates of the reference's speakers, and their number (Ryant et al. 2019)."""
    components = _compare("JaccardErrorRate", hypothesis, reference)
    return [components["speaker error"], components["speaker count"]]


def permuted_word_errors(hypothesis: Sequence[str], reference: Sequence[str], language: str) -> list[float]:
    """Return the word errors of the best pairing of speakers, and the number of reference words.

    cpWER, Watanabe et al. 2020. Languages written without spaces are counted by characters.

    Args:
        hypothesis: All words of each speaker of the response. A speaker without a partner is all insertions.
        reference: All words of each true speaker. A speaker without a partner is all deletions.
        language: The language of both.
    """
    assign = optional_packages.require("scipy.optimize", "metric 'cpwer'").linear_sum_assignment
    n = max(len(hypothesis), len(reference))
    predicted, true = ([*side, *[""] * (n - len(side))] for side in (hypothesis, reference))
    pairs = [[edits.count(h, r, language, unit=norm.unit(language)) for h in predicted] for r in true]
    best = zip(*assign([[errors for errors, _ in row] for row in pairs]), strict=True)
    return [float(sum(pairs[i][j][0] for i, j in best)), float(sum(row[0][1] for row in pairs))]


def _compare(metric: str, hypothesis: Turns, reference: Turns) -> Mapping[str, float]:
    """Return the components of a metric of pyannote.metrics, for the best pairing of speakers."""
    optional_packages.require("pyannote.metrics", "a diarization error rate")
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics import diarization

    predicted, true = Annotation(), Annotation()
    for annotation, turns in ((predicted, hypothesis), (true, reference)):
        for number, turn in enumerate(turns):
            annotation[Segment(turn["start"], turn["end"]), number] = turn["speaker"]
    whole = Segment(0.0, max(turn["end"] for turn in [*hypothesis, *reference]))  # without it, pyannote warns
    count = getattr(diarization, metric)(collar=0.0, skip_overlap=False)
    return count(true, predicted, uem=Timeline([whole]), detailed=True)
