"""Cache of model responses, stored in the run directory while an evaluation is running.

An interrupted evaluation resumes from the cache, a repeated one does not call the model at all, and
`auris evaluate rescore=RUN` recomputes scores without loading a model.

Layout: `RUN/answers/<kind>-<digest>.jsonl`. There is one file for each combination of weights, prompt and decoding
settings. The first line holds these settings; every other line is one response, keyed by the row and its audio.
`RUN/answers/<benchmark>.json` records an evaluation: its settings, and the cache keys of its responses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from auris.data.rows import Clip, Row
from auris.evaluation.benchmarks import Benchmark
from auris.files import append_jsonl, digest, file_lock, read_json, read_jsonl, write_json

CACHE_DIR = "answers"


class Response(NamedTuple):
    """The model's response to one row.

    Attributes:
        row: The row as it was presented to the model.
        content: Generated text, or for a preference row the log-probabilities of the chosen and the rejected answer.
        yes_no_log_odds: log p(yes) - log p(no) for verification tasks, otherwise None.
        ended_by_length: Whether generation ended at the maximum length instead of at a stop token.
    """

    row: Row
    content: Any
    yes_no_log_odds: float | None = None
    ended_by_length: bool = False


class AnswerCache:
    """Append-only store of the responses obtained under one set of settings.

    Args:
        directory: `RUN/answers`.
        settings: Everything that determines a response: `kind`, `weights`, `prompt`, `decoding`.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any]):
        self.path = directory / f"{settings['kind']}-{digest(settings)}.jsonl"
        self.settings = settings
        lines = read_jsonl(self.path)[1:] if self.path.is_file() else []  # the first line holds the settings
        # Caches of earlier versions lack fields; their rows are answered again.
        self._lines = {line["key"]: line for line in lines if set(Response._fields) <= line.keys()}

    @classmethod
    def open(cls, path: Path) -> AnswerCache:
        """Open an existing cache file; the settings are read from its first line."""
        with path.open(encoding="utf-8") as file:
            return cls(path.parent, json.loads(file.readline()))

    def __contains__(self, key: str) -> bool:
        return key in self._lines

    def __getitem__(self, key: str) -> Response:
        line = self._lines[key]
        return Response(_row_from_json(line["row"]), *(line[field] for field in Response._fields[1:]))

    def add(self, responses: Mapping[str, Response]) -> None:
        """Append responses to the cache.

        Args:
            responses: The responses by cache key (`row_key`).
        """
        lines = {
            key: {"key": key, **response._asdict(), "row": _row_to_json(response.row)}
            for key, response in responses.items()
        }
        self._lines |= lines
        with evaluation_lock(self.path.parent):
            header = [] if self._has_settings() else [self.settings]
            append_jsonl(self.path, [*header, *lines.values()])

    def _has_settings(self) -> bool:
        """Return whether the file has a complete first line. A process may have been killed while writing the line."""
        if not self.path.is_file():
            return False
        with self.path.open("rb") as file:
            return file.readline().endswith(b"\n")


def evaluation_lock(directory: Path) -> AbstractContextManager[None]:
    """Hold the run's evaluation lock, without which two processes might write the same file at the same time.

    Several evaluations may use one run directory, and a killed one may leave child processes behind.
    """
    return file_lock(directory / "lock")


def row_key(row: Row) -> str:
    """Return the cache key of a row: a digest of the row and of the sizes and modification times of its files."""
    return digest([row.id, _row_to_json(row), [_file_stamp(clip) for clip in row.clips]])


def _file_stamp(clip: Clip) -> list[int]:
    """Return the size and the modification time of a clip's file; empty if it cannot be read.

    A sound that is not a file in the file system, such as audio in a Parquet shard, is described by its number of
    samples.
    """
    if not isinstance(clip.path, str | Path):
        return [clip.path.n_samples or 0]
    try:
        status = os.stat(clip.path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _row_to_json(row: Row) -> dict[str, object]:
    clips = [[str(clip.path), clip.offset, clip.duration] for clip in row.clips]
    return {"id": row.id, "clips": clips, "labels": dict(row.labels)}


def _row_from_json(content: Mapping[str, Any]) -> Row:
    clips = tuple(Clip(Path(path), offset, duration) for path, offset, duration in content["clips"])
    return Row(content["id"], clips, content["labels"])


# --- records of evaluations ---------------------------------------------------------------------------------------


class RunId(TypedDict):
    """Identity of a run: its study, its arm (one of the systems that the study compares) and its seed."""

    study: str
    arm: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """The part of an evaluation that consists of the responses to rows of one kind.

    Attributes:
        kind: One of `answering.KINDS`: task, chat, preference or text.
        file: Name of the cache file.
        keys: Cache keys of the responses, in the order of the rows.
        windows: Ids of the windows into which a long row was split, by id of the long row.
    """

    kind: str
    file: str
    keys: Sequence[str]
    windows: Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Record of an evaluation: everything that its scores are computed from.

    Attributes:
        benchmark: The benchmark's description.
        version: `v1` if the model is prompted like Qwen-Audio, `v2` if it is prompted like Qwen2-Audio.
        audio: as_is, silence or shuffled (`evaluation.audio_ablation`).
        changes: The user's deviations from the benchmark's prompt and decoding settings. They become part of the
            signature of each score, which is a text that states how the score was computed.
        judged: Whether a judge rated the responses to dialogues.
        run: Study, arm and seed of the run that trained the model.
        skipped: The reasons why rows have no response, by row id.
        parts: The responses, one part for each kind of row.
    """

    benchmark: Benchmark
    version: str
    audio: str
    changes: Sequence[str]
    judged: bool
    run: RunId
    skipped: Mapping[str, str]
    parts: Sequence[Part]


def save_evaluation(directory: Path, name: str, evaluation: Evaluation) -> None:
    """Write the record of an evaluation, so that `rescore` can find the cached responses."""
    write_json(directory / f"{name}.json", asdict(evaluation))


def load_evaluations(run_dir: Path) -> dict[str, Evaluation]:
    """Return the recorded evaluations of a run by name; empty if there are none."""
    files = sorted((run_dir / CACHE_DIR).glob("*.json"), key=lambda path: path.stem)
    return {file.stem: _evaluation_from_json(read_json(file)) for file in files}


def _evaluation_from_json(content: dict[str, Any]) -> Evaluation:
    content["benchmark"] = Benchmark(**content["benchmark"])
    content["parts"] = [Part(**part) for part in content["parts"]]
    return Evaluation(**content)


def load_responses(run_dir: Path, part: Part) -> list[Response]:
    """Return the cached responses of a part of an evaluation."""
    if not part.keys:  # without a response there may be no file
        return []
    cache = AnswerCache.open(run_dir / CACHE_DIR / part.file)
    return [cache[key] for key in part.keys]


def load_rows(run_dir: Path, name: str) -> dict[str, Row]:
    """Return the rows of an evaluation that have responses, by row id, with the audio that the model was given.

    Args:
        run_dir: The run directory.
        name: Name of the evaluation.
    """
    evaluation = load_evaluations(run_dir).get(name)
    parts = evaluation.parts if evaluation else ()
    cached_parts = [part for part in parts if (run_dir / CACHE_DIR / part.file).is_file()]
    return {response.row.id: response.row for part in cached_parts for response in load_responses(run_dir, part)}
