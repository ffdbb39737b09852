"""The two kinds of lines that an evaluation writes into the run directory: predictions and result rows.

`predictions/<benchmark>.jsonl` has one line for each test row, metric and group of rows that the score is computed
over. `results.jsonl` has one line for each score. Both files are replaced as a whole, never appended to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from auris.errors import UserError
from auris.files import write_jsonl


class _Record:
    """A dataclass that is stored as one JSON object: its fields in their order, without the optional ones unset."""

    OMITTED_IF_NONE: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> dict[str, Any]:
        content = vars(self).items()
        return {name: value for name, value in content if value is not None or name not in self.OMITTED_IF_NONE}


@dataclass(frozen=True, kw_only=True)
class Prediction(_Record):
    """The response to one test row, and what it contributes to one score.

    A row that is scored by two metrics, or that counts in two groups, has a prediction for each: (group, metric, id)
    is unique in a file.

    Attributes:
        id: The row's id.
        task: The row's task code, such as `asr`.
        language: The language that the response is normalised in: the target language of a translation. Empty, like
            `audio_seconds` and `recording`, in files that keep only what scores are computed from.
        group: The rows that share a score, such as `asr en`; `ResultRow.task` has the same text.
        metric: A name in `metrics.measures.MEASURES`.
        provenance: Where the recording comes from, such as `real` or `tts`.
        audio_seconds: Duration of the row's clips together.
        speaker: Who speaks, if the row says so.
        recording: The source recordings of the row's clips, or their paths, joined by `+`.
        stats: What the row contributes to the score; the metric's measure names the entries.
        hypothesis: The response as text.
        reference: The correct answer as text.
        replies: AIR-Bench's judge: what it replied, once for each order of the two answers.
        failures: AIR-Bench's judge: why each of these replies gives no points, None where it does.
    """

    OMITTED_IF_NONE = ("replies", "failures")

    id: str
    task: str
    language: str = ""
    group: str
    metric: str
    provenance: str
    audio_seconds: float = math.nan
    speaker: str | None = None
    recording: str = ""
    stats: Sequence[Any]
    hypothesis: str
    reference: str
    replies: Sequence[str | None] | None = None
    failures: Sequence[str | None] | None = None


@dataclass(frozen=True, kw_only=True)
class ResultRow(_Record):
    """One score of a run, with its interval.

    Attributes:
        study: The run's study.
        arm: The run's arm in the study.
        seed: The training seed.
        benchmark: The benchmark, followed by `@silence` or `@shuffled` if the audio was replaced.
        task: The group of rows that the score is computed over, such as `asr en`, `s2tt de-en` or `sec`.
        split: `test`, or `drop` for the loss relative to the same rows with their own audio.
        metric: A name in `metrics.measures.MEASURES`.
        value: The score: a fraction for rates, otherwise in the metric's unit. NaN if nothing could be counted.
        low: Lower end of the 95 % bootstrap interval.
        high: Upper end of the 95 % bootstrap interval.
        n: Number of rows.
        units: What the bootstrap draws, with their number, such as `38 speakers`.
        detectable: Minimum detectable difference to a second, independent system; None if unknown.
        signature: How the number was computed: normaliser, unit, tokenizer, policy, library version.
        provenance: The provenances of the rows, joined by `+`.
        p: Drop rows: the p value of the loss.
    """

    OMITTED_IF_NONE = ("p",)

    study: str
    arm: str
    seed: int
    benchmark: str
    task: str
    split: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    units: str
    detectable: float | None = None
    signature: str
    provenance: str
    p: float | None = None


Record = TypeVar("Record", Prediction, ResultRow)


def read(path: Path, kind: type[Record]) -> list[Record]:
    """Read a file of predictions or of result rows.

    Raises:
        UserError: A line is not JSON, or not a record of this kind; the message names the line.
    """
    records = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                records.append(kind(**json.loads(line)))
            except (json.JSONDecodeError, TypeError) as error:  # TypeError: a field is missing or unknown
                message = f"{path}, line {number} is no {kind.__name__} ({error}); evaluate the run again"
                raise UserError(message) from None
    return records


def write(path: Path, records: Iterable[Prediction | ResultRow]) -> None:
    """Replace a file of predictions or of result rows."""
    write_jsonl(path, (record.to_json() for record in records))
