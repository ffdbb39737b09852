"""Times of words from three sources: the labels of a row, forced alignment, and the response of the model."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from auris.audio import SAMPLE_RATE
from auris.data.batches import build_pack
from auris.data.rows import Row, answer_language
from auris.inference import load as pretrained
from auris.inference.align import ENDS, Aligner, Times, WordTime
from auris.inference.inspection.trace import Subject, Trace, trace_row
from auris.metrics.normalize import normalize
from auris.metrics.timestamps import matches
from auris.text import tasks
from auris.text.answer_formats import Words

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import HTML

TRUE, ALIGNED, ANSWERED = "true", "forced alignment", "answer with times"


def word_times(subject: Subject, row: Row, *, prior_rows: int = 64) -> dict[str, Times]:
    """Return words with their times in seconds by source, without sources that are not available.

    `true` is the label of the row. `forced alignment` aligns the transcript of the row with the aligner of `subject`.
    `answer with times` is the response of the model to a prompt for times (`srwt`).

    Args:
        subject: the model, the aligner and the rows.
        row: the row.
        prior_rows: maximum number of transcribed rows from which the aligner estimates its priors.

    Raises:
        UserError: the clip is too short for the transcript.
    """
    sources: dict[str, Times] = {}
    if row.labels.get("words"):
        sources[TRUE] = list(row.labels["words"])
    if subject.aligner is not None and (row.labels["task"] in tasks.TRANSCRIPTS or row.labels.get("transcript")):
        sources[ALIGNED] = _align(subject.aligner, subject.rows, row, prior_rows)
    if row.labels.get("words") and row.labels.get("language"):
        prompt = replace(row, labels={**row.labels, "task": "srwt"})
        words = Words().parse(trace_row(subject.model, prompt).answer)["words"]
        if timed := [word for word in words if word["end"] is not None]:
            sources[ANSWERED] = timed
    return sources


def _align(run: Path, candidates: Sequence[Row], row: Row, prior_rows: int) -> Times:
    """Align a row with the aligner of a run; its priors come from the first transcribed rows of `candidates`."""
    aligner = Aligner(pretrained.load(run), prior_scale=1.0)
    transcribed = (entry for entry in candidates if entry.labels.get("task") in tasks.TRANSCRIPTS and not entry.problem)
    rows = [row, *islice(transcribed, prior_rows)]
    batch = build_pack(rows, [(number, None) for number in range(1, len(rows))], aligner.view)
    if batch["rows"]:
        aligner.estimate_priors([batch])
    [(_, words)] = aligner.align(rows, build_pack(rows, [(0, None)], aligner.view))
    if isinstance(words, ValueError):
        raise words
    return words


def time_shifts(row: Row, times: Mapping[str, Times]) -> pd.DataFrame:
    """Return the milliseconds by which each word starts and ends after the true one.

    Words are matched by minimum edit distance, as in the timestamp metric. Unmatched words are missing.

    Args:
        row: the row.
        times: the result of `word_times`.

    Returns:
        A table with the columns source, word, start, end (of the label), `start shift` and `end shift`.
    """
    import pandas as pd

    spoken = answer_language(row)
    true = times.get(TRUE, [])
    lines = []
    for source, words in times.items():
        keys = [[normalize(word["word"], spoken) for word in side] for side in (true, words)]
        for i, j in matches(*keys) if source != TRUE else ():
            shifts = [round(1000 * (words[j][end] - true[i][end])) for end in ENDS]
            lines.append((source, true[i]["word"], true[i]["start"], true[i]["end"], *shifts))
    return pd.DataFrame(lines, columns=["source", "word", "start", "end", "start shift", "end shift"])


def audio_players(trace: Trace, times: Mapping[str, Times]) -> HTML:
    """Return a table with an audio player for each word and each source of its times."""
    from IPython.display import HTML

    lines = ""
    for source, words in times.items():
        cells = "".join(f"<td>{html.escape(word['word'])}<br>{_player(trace, word)}</td>" for word in words)
        lines += f"<tr><th>{html.escape(source)}</th>{cells}</tr>"
    return HTML(f"<table>{lines}</table>")


def _player(trace: Trace, word: WordTime) -> str:
    from IPython.display import Audio

    first, last = (round(word[end] * SAMPLE_RATE) for end in ENDS)
    segment = trace.wave[max(0, first) : max(last, first + 1)]
    if not len(segment):
        return "-"
    player = Audio(segment, rate=SAMPLE_RATE)
    return player._repr_html_().replace("<audio ", '<audio style="width: 7em" ')
