"""Times of words from three sources: the labels of a row, forced alignment, and a response of the model."""

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
from auris.inference.align import TIME_KEYS, Aligner, Times, WordTime
from auris.inference.inspection.trace import Subject, Trace, trace_row
from auris.metrics.normalize import normalize
from auris.metrics.timestamps import match_items
from auris.text import tasks
from auris.text.answer_formats import Words

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import HTML

LABELLED, ALIGNED, ANSWERED = "true", "forced alignment", "answer with times"  # names of the sources


def word_times(subject: Subject, row: Row, *, prior_rows: int = 64) -> dict[str, Times]:
    """Return words with their times in seconds by source, without sources that are not available.

    The source `true` is the label `words` of the row. `forced alignment` aligns the transcript of the row with the
    aligner of `subject`. `answer with times` is the response of the model to a prompt for speech recognition with word
    times (the task `srwt`).

    Args:
        subject: the model, the aligner and the rows.
        row: the row.
        prior_rows: maximum number of transcribed rows from which the aligner estimates its priors.

    Raises:
        UserError: the clip is too short for the transcript.
    """
    sources: dict[str, Times] = {}
    if row.labels.get("words"):
        sources[LABELLED] = list(row.labels["words"])
    if subject.aligner is not None and (row.labels["task"] in tasks.TRANSCRIPT_TASKS or row.labels.get("transcript")):
        sources[ALIGNED] = _align(subject.aligner, subject.rows, row, prior_rows)
    if row.labels.get("words") and row.labels.get("language"):
        srwt_row = replace(row, labels={**row.labels, "task": "srwt"})
        words = Words().parse(trace_row(subject.model, srwt_row).answer)["words"]
        if words_with_times := [word for word in words if word["end"] is not None]:
            sources[ANSWERED] = words_with_times
    return sources


def _align(run: Path, candidates: Sequence[Row], row: Row, prior_rows: int) -> Times:
    """Align a row with the model of a run. Priors are estimated from the first transcribed rows of `candidates`."""
    aligner = Aligner(pretrained.load(run), prior_scale=1.0)
    transcribed = (
        other for other in candidates if other.labels.get("task") in tasks.TRANSCRIPT_TASKS and not other.problem
    )
    rows = [row, *islice(transcribed, prior_rows)]
    batch = build_pack(rows, [(number, None) for number in range(1, len(rows))], aligner.samples)
    if batch["rows"]:
        aligner.estimate_priors([batch])
    [(_, words)] = aligner.align(rows, build_pack(rows, [(0, None)], aligner.samples))
    if isinstance(words, ValueError):
        raise words
    return words


def time_shifts(row: Row, times: Mapping[str, Times]) -> pd.DataFrame:
    """Return the milliseconds by which each word starts and ends later than in the labels.

    Words are matched with the labels by minimum edit distance, as in the timestamp metric. The table does not contain
    words without a match.

    Args:
        row: the row.
        times: the result of `word_times`.

    Returns:
        A table with the columns `source`, `word`, `start` and `end` (in seconds, from the label), `start shift` and
        `end shift` (in milliseconds).
    """
    import pandas as pd

    language_code = answer_language(row)
    true_words = times.get(LABELLED, [])
    records = []
    for source, words in times.items():
        normalized = [[normalize(word["word"], language_code) for word in side] for side in (true_words, words)]
        for i, j in match_items(*normalized) if source != LABELLED else ():
            true_word = true_words[i]
            shifts = [round(1000 * (words[j][key] - true_word[key])) for key in TIME_KEYS]
            records.append((source, true_word["word"], true_word["start"], true_word["end"], *shifts))
    return pd.DataFrame(records, columns=["source", "word", "start", "end", "start shift", "end shift"])


def audio_players(trace: Trace, times: Mapping[str, Times]) -> HTML:
    """Return an HTML table with a row for each source, and an audio player for each word in the row."""
    from IPython.display import HTML

    table_rows = ""
    for source, words in times.items():
        cells = "".join(f"<td>{html.escape(word['word'])}<br>{_render_player(trace, word)}</td>" for word in words)
        table_rows += f"<tr><th>{html.escape(source)}</th>{cells}</tr>"
    return HTML(f"<table>{table_rows}</table>")


def _render_player(trace: Trace, word: WordTime) -> str:
    from IPython.display import Audio

    first, last = (round(word[key] * SAMPLE_RATE) for key in TIME_KEYS)
    segment = trace.wave[max(0, first) : max(last, first + 1)]
    if not len(segment):
        return "-"
    player = Audio(segment, rate=SAMPLE_RATE)
    return player._repr_html_().replace("<audio ", '<audio style="width: 7em" ')
