"""How long every row is, in tokens: measured once from durations and text, cached, never by computing features."""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
from rich.progress import track

from auris import audio
from auris.data import array_cache
from auris.data.manifests import Manifest, Selection, Undecoded, undecoded
from auris.data.parallel_map import parallel_map
from auris.data.parquet.reader import ShardError
from auris.data.rows import Clip, Record, Row, TransientProblem, is_task_row
from auris.data.samples import ClipTooLongError, Samples, prompt_digest
from auris.errors import AudioError, RowError, UserError
from auris.files import digest
from auris.text import tasks

_VERSION = 4  # of the arrays on disk
_CHUNK = 10_000  # rows that a process measures at a time; with fewer there is no progress bar
_MAX_FAMILIES = 10_000  # with labels that differ in each row there would be as many families as rows
_HASHED_LABELS = {str, type(None)}  # types whose values are equal only where they are the same label


@dataclass(frozen=True)
class Lengths:
    """Tokens of each row, 0 for one that cannot be used, and why it cannot.

    `dropped`: seconds of a row that `long_audio=first` leaves unheard, where there are any.
    """

    tokens: np.ndarray
    problems: dict[int, str]
    dropped_seconds: dict[int, float]


def measure(manifests: Sequence[Manifest], samples: Samples, cache_dir: Path) -> Lengths:
    """Measure all rows, numbered consecutively over the manifests.

    Raises ValueError when a clip is over 30 s and `data.long_audio=error`, naming the row.
    """
    starts = [0, *accumulate(len(manifest.rows) for manifest in manifests)]
    parts = [_cached(manifest, samples, cache_dir) for manifest in manifests]
    lengths = _join(starts.pop(), zip(starts, parts, strict=True))
    if seconds := lengths.dropped_seconds.values():
        warnings.warn(
            f"long_audio=first: of {len(seconds)} rows only the first 30 s are heard; {sum(seconds):.1f} s are "
            f"dropped, {max(seconds):.1f} s of the longest (long_audio=window hears them)",
            stacklevel=2,
        )
    return lengths


def _join(total: int, parts: Iterable[tuple[int, Lengths]]) -> Lengths:
    """Lengths of all rows from those of parts, each given with the number of its first row."""
    tokens = np.zeros(total, dtype=np.int64)
    problems: dict[int, str] = {}
    dropped: dict[int, float] = {}
    for first, part in parts:
        tokens[first : first + len(part.tokens)] = part.tokens
        problems |= {first + number: reason for number, reason in part.problems.items()}
        dropped |= {first + number: seconds for number, seconds in part.dropped_seconds.items()}
    return Lengths(tokens, dict(sorted(problems.items())), dict(sorted(dropped.items())))


def _cached(manifest: Manifest, samples: Samples, cache_dir: Path) -> Lengths:
    key = digest([_VERSION, manifest.rows_digest, prompt_digest(samples), *_unstated(manifest)])
    path = cache_dir / f"lengths-{key}.npz"
    if stored := array_cache.load(path):
        return Lengths(stored["tokens"], *(dict(json.loads(str(stored[name]))) for name in ("problems", "dropped")))
    measured = _measure(manifest.rows, samples)
    # A row whose file could not be read is measured again at the next start.
    if not any(isinstance(problem, TransientProblem) for problem in measured.problems.values()):
        tables = {"problems": measured.problems, "dropped": measured.dropped_seconds}
        texts = {name: json.dumps(list(table.items())) for name, table in tables.items()}
        array_cache.save(path, tokens=measured.tokens, **texts)
    return measured


def _measure(rows: Sequence[Row], samples: Samples) -> Lengths:
    """Rows in chunks, on all cores that this process may use."""
    starts = range(0, len(rows), _CHUNK)

    def chunk(start: int) -> Lengths:
        return _measure_chunk(undecoded(rows, start, start + _CHUNK), samples)

    if len(starts) <= 1:
        return chunk(0)
    chunks = track(parallel_map(chunk, starts), description="measuring rows", total=len(starts))
    return _join(len(rows), ((starts[number], lengths) for number, lengths in chunks))


def _measure_chunk(rows: Iterable[Undecoded], samples: Samples) -> Lengths:
    tokens: list[int] = []
    problems: dict[int, str] = {}
    dropped: dict[int, float] = {}
    families = RowFamilies(samples)
    for number, found in enumerate(rows):
        family = found.record and families.family(found.record)
        tokens.append(families.length(found.record, family) if family else 0)
        if tokens[number]:
            continue
        row = found.decode()
        if row.problem:
            problems[number] = row.problem
            continue
        try:
            spans = samples.spans(row)
            samples.check_spans(spans)
            tokens[number] = samples.length(row, spans)
            if family:
                families.learn(family, row)
            if seconds := samples.dropped_seconds(row):
                dropped[number] = seconds
        except ClipTooLongError as error:
            if samples.long_audio == "error":
                raise UserError(f"row {row.id}: {error}") from error
            problems[number] = str(error)
        except ShardError as error:
            problems[number] = TransientProblem(error)
        except (RowError, AudioError) as error:
            problems[number] = str(error)
    return Lengths(np.array(tokens, dtype=np.int64), problems, dropped)


def _unstated(manifest: Manifest) -> Iterator[str]:
    """Yield the sizes and times of files whose duration the manifest does not state."""
    rows = manifest.rows
    for row in rows.without_duration() if isinstance(rows, Selection) else rows:
        for clip in row.clips:
            if clip.duration is None and isinstance(clip.path, Path):  # a shard's are in the manifest's digest
                try:
                    status = clip.path.stat()
                except (OSError, ValueError):  # measuring the row names the reason
                    continue
                yield f"{clip.path}:{status.st_size}:{status.st_mtime_ns}"


class RowFamilies:
    """Lengths of rows from rows that differ in the length of their clip and in their text only.

    Nearly all rows of a large corpus are such rows: they are not even decoded.
    """

    def __init__(self, samples: Samples):
        self._samples = samples
        self._labels = {task.code: tasks.own_labels(task) for task in tasks.TASKS.values() if task.is_text}
        self._without_text: dict[Hashable, int] = {}
        self._span = lru_cache(maxsize=100_000)(lambda seconds: samples.spans(_row_of(seconds))[0])

    def family(self, record: Record) -> Hashable | None:
        """Return what a row has in common with its family.

        None for a row that has to be looked at by itself: its task needs more than a text, the length of its clip is
        not stated, or anything about it is unusual.
        """
        fields = record.fields
        if fields is None or record.problem is not None or len(record.sounds) > 1 or not is_task_row(fields):
            return None
        get = fields.get
        path, seconds, text, task = get("audio"), get("duration"), get("text"), get("task")
        if type(path) is not str or type(text) is not str or type(task) is not str or type(seconds) not in (float, int):
            return None
        labels = self._labels.get(task)
        if labels is None or not path or not text.strip() or "offset" in fields:
            return None
        if not 0 < seconds <= audio.MAX_SAMPLES / audio.SAMPLE_RATE:
            return None
        family = (task, *map(get, labels))
        return family if _HASHED_LABELS.issuperset(map(type, family)) else None

    def length(self, record: Record, family: Hashable) -> int:
        """Return the tokens of a row; 0 if its family is not known yet or its clip is too short for any."""
        without_text = self._without_text.get(family)
        span = 0 if without_text is None else self._span(record.fields["duration"])
        return span and span + without_text + self._samples.length_cache.count(record.fields["text"])

    def learn(self, family: Hashable, row: Row) -> None:
        """Remember what a usable row tells of its family."""
        without_text = self._samples.length_without_text(row)
        if without_text is not None and len(self._without_text) < _MAX_FAMILIES:
            self._without_text[family] = without_text


def _row_of(seconds: float) -> Row:
    return Row("", (Clip(Path(), duration=seconds),))
