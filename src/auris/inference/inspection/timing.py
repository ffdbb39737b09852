"""When words are said: as the row knows it, as a forced alignment finds it, and as the model itself answers it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from auris.audio import SAMPLE_RATE
from auris.data.batches import pack
from auris.data.rows import Row, language
from auris.inference import load as pretrained
from auris.inference.align import Aligner, Times, WordTime
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
    """Words with their times in seconds, by where they come from; what there is none of is left out.

    `true` is the row's own label, `forced alignment` what the subject's aligner finds of the known transcript (its
    priors are taken of the first `prior_rows` rows that have one), `answer with times` what the model says when it is
    asked for times (`srwt`), where its answer has any.

    Raises ValueError for a transcript that cannot be said in its clip.
    """
    found: dict[str, Times] = {}
    if row.labels.get("words"):
        found[TRUE] = list(row.labels["words"])
    if subject.aligner is not None and (row.labels["task"] in tasks.TRANSCRIPTS or row.labels.get("transcript")):
        found[ALIGNED] = _aligned(subject, row, prior_rows)
    if row.labels.get("words") and row.labels.get("language"):
        asked = replace(row, labels={**row.labels, "task": "srwt"})
        words = Words().parse(trace_row(subject.model, asked).answer)["words"]
        if timed := [word for word in words if word["end"] is not None]:
            found[ANSWERED] = timed
    return found


def _aligned(subject: Subject, row: Row, prior_rows: int) -> Times:
    aligner = Aligner(pretrained.load(subject.aligner), prior_scale=1.0)
    spoken = (other for other in subject.rows if other.labels.get("task") in tasks.TRANSCRIPTS and not other.problem)
    rows = [row, *(other for other, _ in zip(spoken, range(prior_rows), strict=False))]
    batch = pack(rows, [(number, None) for number in range(1, len(rows))], aligner.view)
    if batch["rows"]:
        aligner.estimate_priors([batch])
    [(_, words)] = aligner.align(rows, pack(rows, [(0, None)], aligner.view))
    if isinstance(words, ValueError):
        raise words
    return words


def time_shifts(row: Row, found: Mapping[str, Times]) -> pd.DataFrame:
    """By how many milliseconds each word starts and ends after the true one: columns source, word, start, end, `start
    shift`, `end shift`. Words are matched by the fewest edits, as the score of times does; one that is not matched has
    no line."""
    import pandas as pd

    spoken = language(row)
    true = found.get(TRUE, [])
    lines = []
    for source, words in found.items():
        keys = [[normalize(word["word"], spoken) for word in side] for side in (true, words)]
        for i, j in matches(*keys) if source != TRUE else ():
            far = [round(1000 * (words[j][end] - true[i][end])) for end in ("start", "end")]
            lines.append((source, true[i]["word"], true[i]["start"], true[i]["end"], *far))
    return pd.DataFrame(lines, columns=["source", "word", "start", "end", "start shift", "end shift"])


def audio_players(trace: Trace, found: Mapping[str, Times]) -> HTML:
    """An audio player for each word and each source of its times, in a table: what would be cut out by them."""
    from IPython.display import HTML

    lines = ""
    for source, words in found.items():
        cells = "".join(f"<td>{html.escape(word['word'])}<br>{_player(trace, word)}</td>" for word in words)
        lines += f"<tr><th>{html.escape(source)}</th>{cells}</tr>"
    return HTML(f"<table>{lines}</table>")


def _player(trace: Trace, word: WordTime) -> str:
    from IPython.display import Audio

    first, last = (round(word[end] * SAMPLE_RATE) for end in ("start", "end"))
    stretch = trace.wave[max(0, first) : max(last, first + 1)]
    if not len(stretch):
        return "-"
    sound = Audio(stretch, rate=SAMPLE_RATE)
    return sound._repr_html_().replace("<audio ", '<audio style="width: 7em" ')
