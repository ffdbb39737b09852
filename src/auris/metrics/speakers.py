"""Metrics for recordings of several speakers: who speaks when (DER and JER), and what each speaker says (cpWER).

DER and JER are computed by the optional package pyannote.metrics. cpWER is implemented here, with the same results as
MeetEval, because MeetEval has no wheels and every installation compiles C++ for a minute and a half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from auris.metrics import edits, optional_packages
from auris.metrics import normalize as norm


class Turn(TypedDict):
    """A section of speech by one speaker; times are in seconds."""

    speaker: str
    start: float
    end: float


Turns = Sequence[Turn]


def diarization_error(hypothesis: Turns, reference: Turns) -> list[float]:
    """Return the seconds of errors and of speech; errors are missed speech, false alarms and confused speakers.

    There is no collar, so errors close to the boundaries of turns count. Overlapping speech counts once per speaker.
    """
    components = _compare("DiarizationErrorRate", hypothesis, reference)
    return [components["missed detection"] + components["false alarm"] + components["confusion"], components["total"]]


def jaccard_error(hypothesis: Turns, reference: Turns) -> list[float]:
    """Return the sum of the Jaccard error rates of all true speakers, and their number (Ryant et al. 2019)."""
    components = _compare("JaccardErrorRate", hypothesis, reference)
    return [components["speaker error"], components["speaker count"]]


def permuted_word_errors(hypothesis: Sequence[str], reference: Sequence[str], language: str) -> list[float]:
    """Return the number of word errors for the best pairing of speakers, and the number of reference words.

    These are the counts of cpWER (Watanabe et al. 2020). In languages that are written without spaces, characters are
    counted instead of words.

    Args:
        hypothesis: For each speaker of the response, all words as one text. If a speaker is not paired, all words are
            insertions.
        reference: For each true speaker, all words as one text. If a speaker is not paired, all words are deletions.
        language: The language of the hypothesis and the reference.
    """
    assign = optional_packages.import_package("scipy.optimize", "metric 'cpwer'").linear_sum_assignment
    n = max(len(hypothesis), len(reference))
    predicted, true = ([*texts, *[""] * (n - len(texts))] for texts in (hypothesis, reference))
    pairs = [[edits.count_edits(h, r, language, unit=norm.counted_unit(language)) for h in predicted] for r in true]
    best = zip(*assign([[errors for errors, _ in row] for row in pairs]), strict=True)
    return [float(sum(pairs[i][j][0] for i, j in best)), float(sum(row[0][1] for row in pairs))]


def _compare(metric: str, hypothesis: Turns, reference: Turns) -> Mapping[str, float]:
    """Return the components of a metric for the best pairing of speakers; `metric` is a class of pyannote.metrics."""
    optional_packages.import_package("pyannote.metrics", "a diarization error rate")
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics import diarization

    predicted, true = Annotation(), Annotation()
    for annotation, turns in ((predicted, hypothesis), (true, reference)):
        for number, turn in enumerate(turns):
            annotation[Segment(turn["start"], turn["end"]), number] = turn["speaker"]
    whole = Segment(0.0, max(turn["end"] for turn in [*hypothesis, *reference]))  # pyannote warns if uem is not given
    count = getattr(diarization, metric)(collar=0.0, skip_overlap=False)
    return count(true, predicted, uem=Timeline([whole]), detailed=True)
