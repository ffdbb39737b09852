"""Several speakers: who speaks when (DER, JER by pyannote.metrics, an extra) and what each says (cpWER).

MeetEval has cpWER too, but no wheels: it is a minute and a half of C++ at every installation. The numbers are the same.
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
    """Seconds missed, falsely found or given to another speaker, and seconds of speech. No collar; overlapping speech
    counts once for each of its speakers."""
    found = _compare("DiarizationErrorRate", hypothesis, reference)
    return [found["missed detection"] + found["false alarm"] + found["confusion"], found["total"]]


def jaccard_error(hypothesis: Turns, reference: Turns) -> list[float]:
    """Jaccard error rates of the reference's speakers, summed, and the number of speakers (Ryant et al. 2019)."""
    found = _compare("JaccardErrorRate", hypothesis, reference)
    return [found["speaker error"], found["speaker count"]]


def permuted_word_errors(hypothesis: Sequence[str], reference: Sequence[str], language: str) -> list[float]:
    """Word errors in the best pairing of speakers, and words of the reference (cpWER, Watanabe et al. 2020). Of each
    speaker all that they say; one without a partner is all insertions or deletions. Characters where words are not
    spaced."""
    assign = optional_packages.require("scipy.optimize", "metric 'cpwer'").linear_sum_assignment
    n = max(len(hypothesis), len(reference))
    said, true = ([*side, *[""] * (n - len(side))] for side in (hypothesis, reference))
    pairs = [[edits.count(h, r, language, unit=norm.unit(language)) for h in said] for r in true]
    best = zip(*assign([[errors for errors, _ in row] for row in pairs]), strict=True)
    return [float(sum(pairs[i][j][0] for i, j in best)), float(sum(row[0][1] for row in pairs))]


def _compare(metric: str, hypothesis: Turns, reference: Turns) -> Mapping[str, float]:
    """Components of a metric of pyannote.metrics; speakers are paired as is best."""
    optional_packages.require("pyannote.metrics", "a diarization error rate")
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics import diarization

    said, true = Annotation(), Annotation()
    for annotation, turns in ((said, hypothesis), (true, reference)):
        for number, turn in enumerate(turns):
            annotation[Segment(turn["start"], turn["end"]), number] = turn["speaker"]
    whole = Segment(0.0, max(turn["end"] for turn in [*hypothesis, *reference]))  # unsaid, it is guessed with a warning
    count = getattr(diarization, metric)(collar=0.0, skip_overlap=False)
    return count(true, said, uem=Timeline([whole]), detailed=True)
