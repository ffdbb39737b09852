"""The records that an evaluation writes to the run directory as JSON lines: predictions and result rows.

`predictions/<benchmark>.jsonl` contains one line for each combination of test row, metric and group, where a group is a
set of rows over which a score is computed. `results.jsonl` contains one line for each score. An evaluation replaces
these files as a whole and never appends to them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from auris.errors import UserError
from auris.files import write_jsonl

AS_IS, SILENCE, SHUFFLED = AUDIO_KINDS = ("as_is", "silence", "shuffled")
CTC, ALIGNER, TEXT, DECODER, START = READINGS = ("ctc", "aligner", "text", "decoder", "start")


class EvaluationName(NamedTuple):
    """Name of an evaluation, such as `librispeech`, `librispeech@ctc` or `librispeech@silence`.

    Attributes:
        benchmark: The benchmark.
        reading: Who answered the rows instead of the model. `ctc`: the best path of CTC through its audio tokens.
            `aligner`: the same of the aligner that it started from. `text`: the model, given the transcript in place of
            the sound. `decoder`: another system, whose transcripts are in a file. `start`: the model with the published
            language model that its training started from. None: the model itself.
        audio: Which audio the rows have: their own (`as_is`), silence, or that of other rows (`shuffled`).
    """

    benchmark: str
    reading: str | None = None
    audio: str = AS_IS

    @classmethod
    def parse(cls, text: str) -> EvaluationName:
        """Return the parts of a name."""
        reading, audio = None, AS_IS
        benchmark, at, suffix = text.rpartition("@")
        if at and suffix in AUDIO_KINDS:
            text, audio = benchmark, suffix
            benchmark, at, suffix = text.rpartition("@")
        if at and suffix in READINGS:
            text, reading = benchmark, suffix
        return cls(text, reading, audio)

    def __str__(self) -> str:
        suffixes = [self.reading, None if self.audio == AS_IS else self.audio]
        return "@".join([self.benchmark, *filter(None, suffixes)])


class _Record:
    """A dataclass that is stored as one JSON object, without the fields in OMITTED_IF_NONE that are None."""

    OMITTED_IF_NONE: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> dict[str, Any]:
        items = vars(self).items()
        return {name: value for name, value in items if value is not None or name not in self.OMITTED_IF_NONE}


@dataclass(frozen=True, kw_only=True)
class Prediction(_Record):
    """The response to one test row, and the statistics that it contributes to one score.

    If a row is scored by two metrics or counts in two groups, there is a prediction for each of them. The combination
    of group, metric and id is unique in a file.

    Attributes:
        id: The row's id.
        task: The row's task code, such as `asr`.
        language: The language whose normaliser is applied to the response; for a translation, the target language. In
            files that contain only what is needed for scores, `language`, `audio_seconds` and `recording` are unset.
        group: Name of the group of rows over which the score is computed, such as `asr en`. `ResultRow.task` has the
            same text.
        metric: A name in `metrics.measures.MEASURES`.
        provenance: Where the recording comes from, such as `real` or `tts`.
        audio_seconds: Total duration of the row's clips.
        speaker: The speaker, if the row states one.
        recording: The row's `sources`, from which it was made, or if the row states none, the paths of its clips. They
            are joined by `+`.
        stats: The statistics that the row contributes to the score; `Measure.stats` names them.
        hypothesis: The response as text.
        reference: The correct answer as text.
        replies: Only with AIR-Bench's judge: the judge's reply for each order of response and reference.
        failures: Only with AIR-Bench's judge: for each reply, the reason why it contains no valid points, or None.
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
        study: The study that the run belongs to.
        arm: The arm of the study, which is one of the systems that the study compares.
        seed: The training seed.
        benchmark: The name of the evaluation (`EvaluationName`) as text.
        task: The group of rows that the score is computed over, such as `asr en`, `s2tt de-en` or `sec`.
        split: `test`, or `drop` if the value states how much worse the score is than on the same rows with their
            original audio.
        metric: A name in `metrics.measures.MEASURES`.
        value: The score: a fraction for rates, otherwise a number in the metric's unit. NaN if it is undefined.
        low: Lower end of the 95 % bootstrap interval.
        high: Upper end of the 95 % bootstrap interval.
        n: Number of rows.
        units: Number and kind of the clusters of rows that the bootstrap resamples, such as `38 speakers`.
        detectable: Minimum detectable difference to a second, independent system; None if unknown.
        signature: How the score was computed: normaliser, words or characters, tokenizer, treatment of failures,
            library version.
        provenance: The provenances of the rows, joined by `+`.
        p: Only if `split` is `drop`: the p value of the drop.
        reason: Only if `value` is NaN (null in the file): why the score is undefined.
    """

    OMITTED_IF_NONE = ("p", "reason")

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
    reason: str | None = None


Record = TypeVar("Record", Prediction, ResultRow)


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Read a file of predictions or result rows.

    Raises:
        UserError: A line is not JSON or not a record of this kind; the message states the line number.
    """
    records = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                records.append(kind(**_restore_nan(json.loads(line))))
            except (json.JSONDecodeError, TypeError) as error:  # TypeError: a field is missing or unknown
                message = f"{path}, line {number} is not a valid {kind.__name__} ({error}); evaluate the run again"
                raise UserError(message) from None
    return records


def _restore_nan(fields: dict[str, Any]) -> dict[str, Any]:
    """Replace null by NaN in the fields whose numbers may be undefined."""
    restored: dict[str, Any] = {
        name: math.nan for name in ("value", "low", "high", "audio_seconds") if fields.get(name, 0) is None
    }
    if None in fields.get("stats", ()):
        restored["stats"] = [math.nan if stat is None else stat for stat in fields["stats"]]
    return fields | restored


def write_records(path: Path, records: Iterable[Prediction | ResultRow]) -> None:
    """Write a file of predictions or result rows; an existing file is replaced."""
    write_jsonl(path, (record.to_json() for record in records))
