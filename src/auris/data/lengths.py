"""Length of every row in tokens, computed without decoding audio, and cached on disk."""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
from rich.console import Console

from auris import audio
from auris.data import array_cache
from auris.data.importers import is_task_row
from auris.data.manifests import Manifest, Selection, UndecodedRow, iterate_undecoded
from auris.data.parallel_map import parallel_map
from auris.data.parquet.reader import ShardError
from auris.data.rows import Clip, Record, Row, TransientProblem
from auris.data.samples import ClipTooLongError, Samples, prompt_digest
from auris.errors import AudioError, RowError, UserError, count
from auris.files import digest
from auris.text import tasks
from auris.text.console import track

_VERSION = 5  # of cached arrays; changes with their format and with the rules that make a row unusable
_CHUNK_ROWS = 10_000  # rows that a process measures at a time; fewer rows are measured without a progress bar
_MAX_FAMILIES = 10_000  # families that are remembered; limits the memory if every row has different labels
_LABEL_TYPES = {str, type(None)}  # types whose equal values are the same label, unlike numbers (1 == 1.0 == True)


@dataclass(frozen=True)
class Lengths:
    """Lengths of rows, which are numbered consecutively.

    Attributes:
        tokens: (rows,) int64, number of tokens of each row; 0 for a row that cannot be used.
        problems: {row number: why the row cannot be used}.
        dropped_seconds: {row number: seconds of audio that `long_audio=first` drops}, only for rows that lose
            audio.
    """

    tokens: np.ndarray
    problems: dict[int, str]
    dropped_seconds: dict[int, float]


def measure_lengths(manifests: Sequence[Manifest], samples: Samples, cache_dir: Path) -> Lengths:
    """Measure all rows of the manifests, numbered consecutively.

    Raises:
        UserError: A clip is longer than 30 s and `long_audio` is `error`.
    """
    *starts, n_rows = accumulate((len(manifest.rows) for manifest in manifests), initial=0)
    parts = [_load_or_measure(manifest, samples, cache_dir) for manifest in manifests]
    lengths = _join(n_rows, zip(starts, parts, strict=True))
    if seconds := lengths.dropped_seconds.values():
        warnings.warn(
            f"long_audio=first drops {sum(seconds):.1f} s of audio after the first 30 s, in "
            f"{count(len(seconds), 'row')} and at most {max(seconds):.1f} s in one of them; long_audio=window keeps it",
            stacklevel=2,
        )
    return lengths


def _join(n_rows: int, parts: Iterable[tuple[int, Lengths]]) -> Lengths:
    """Join the lengths of parts, given as (number of the first row, lengths)."""
    tokens = np.zeros(n_rows, dtype=np.int64)
    problems: dict[int, str] = {}
    dropped: dict[int, float] = {}
    for first, part in parts:
        tokens[first : first + len(part.tokens)] = part.tokens
        problems |= {first + number: reason for number, reason in part.problems.items()}
        dropped |= {first + number: seconds for number, seconds in part.dropped_seconds.items()}
    return Lengths(tokens, dict(sorted(problems.items())), dict(sorted(dropped.items())))


def _load_or_measure(manifest: Manifest, samples: Samples, cache_dir: Path) -> Lengths:
    key = digest([_VERSION, manifest.rows_digest, prompt_digest(samples), *_file_versions(manifest)])
    path = cache_dir / f"lengths-{key}.npz"
    if arrays := array_cache.load(path):
        return Lengths(arrays["tokens"], *(dict(json.loads(str(arrays[name]))) for name in ("problems", "dropped")))
    lengths = _measure(manifest.rows, samples)
    # Nothing is cached if a file could not be read, so that its rows are measured again in the next run.
    if not any(isinstance(problem, TransientProblem) for problem in lengths.problems.values()):
        by_row = {"problems": lengths.problems, "dropped": lengths.dropped_seconds}
        texts = {name: json.dumps(list(values.items())) for name, values in by_row.items()}
        array_cache.save(path, tokens=lengths.tokens, **texts)
    return lengths


def _measure(rows: Sequence[Row], samples: Samples) -> Lengths:
    """Measure rows in chunks, on all cores that this process may use."""
    starts = range(0, len(rows), _CHUNK_ROWS)

    def measure_from(start: int) -> Lengths:
        return _measure_chunk(iterate_undecoded(rows, start, start + _CHUNK_ROWS), samples)

    if len(starts) <= 1:
        return measure_from(0)
    chunks = track(parallel_map(measure_from, starts), "measuring rows", console=Console(), total=len(starts))
    return _join(len(rows), ((starts[number], lengths) for number, lengths in chunks))


def _measure_chunk(rows: Iterable[UndecodedRow], samples: Samples) -> Lengths:
    tokens: list[int] = []
    problems: dict[int, str] = {}
    dropped: dict[int, float] = {}
    families = RowFamilies(samples)
    for number, undecoded_row in enumerate(rows):
        record = undecoded_row.record
        family = None if record is None else families.family(record)
        tokens.append(0 if record is None or family is None else families.length(record, family))
        if tokens[number]:
            continue
        row = undecoded_row.decode()
        if row.problem:
            problems[number] = row.problem
            continue
        try:
            audio_lengths = samples.audio_lengths(row)
            samples.check_audio_lengths(audio_lengths)
            tokens[number] = samples.max_length(row, audio_lengths)
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


def _file_versions(manifest: Manifest) -> Iterator[str]:
    """Yield path, size and modification time of the audio files whose duration the manifest does not state."""
    rows = manifest.rows
    for row in rows.without_duration() if isinstance(rows, Selection) else rows:
        for clip in row.clips:
            # Audio stored in Parquet files is left out, because the manifest's digest covers it.
            if clip.duration is None and isinstance(clip.path, Path):
                try:
                    status = clip.path.stat()
                except (OSError, ValueError):  # the error is reported when the row is measured
                    continue
                yield f"{clip.path}:{status.st_size}:{status.st_mtime_ns}"


class RowFamilies:
    """Computes the length of a row from the length of a similar row.

    Rows that differ only in clip duration and text form a family: they have the same number of tokens apart from audio
    and text. Nearly all rows of a large corpus belong to a few families and are measured without being decoded.
    """

    def __init__(self, samples: Samples):
        self._samples = samples
        self._labels = {task.code: tasks.relevant_labels(task) for task in tasks.TASKS.values() if task.is_text}
        self._lengths_without_text: dict[Hashable, int] = {}
        self._n_audio_tokens = lru_cache(maxsize=100_000)(lambda seconds: samples.audio_lengths(_row_of(seconds))[0])

    def family(self, record: Record) -> Hashable | None:
        """Return the labels that define a row's family.

        Return None for a row that must be measured separately: its task needs more labels than a text, the duration of
        its clip is not stated, or it differs from a plain task row in another way.
        """
        fields = record.fields
        if fields is None or record.problem is not None or len(record.sounds) > 1 or not is_task_row(fields):
            return None
        get = fields.get
        path, seconds, text, task = get("audio"), get("duration"), get("text"), get("task")
        if type(path) is not str or type(text) is not str or type(task) is not str:
            return None
        if type(seconds) is not float and type(seconds) is not int:  # not isinstance: True is an int
            return None
        labels = self._labels.get(task)
        if labels is None or not path or not text.strip() or "offset" in fields:
            return None
        if not 0 < seconds <= audio.MAX_SAMPLES / audio.SAMPLE_RATE:
            return None
        family = (task, *map(get, labels))
        return family if _LABEL_TYPES.issuperset(map(type, family)) else None

    def length(self, record: Record, family: Hashable) -> int:
        """Return the number of tokens of a row; 0 if its family is not known or its clip is shorter than a token."""
        without_text = self._lengths_without_text.get(family)
        if without_text is None:
            return 0
        assert record.fields is not None  # `family` returns None for such records
        n_audio = self._n_audio_tokens(record.fields["duration"])
        return n_audio and n_audio + without_text + self._samples.length_cache.count_tokens(record.fields["text"])

    def learn(self, family: Hashable, row: Row) -> None:
        """Store the number of tokens that a usable row has in common with its family."""
        without_text = self._samples.max_length_without_text(row)
        if without_text is not None and len(self._lengths_without_text) < _MAX_FAMILIES:
            self._lengths_without_text[family] = without_text


def _row_of(seconds: float) -> Row:
    return Row("", (Clip(Path(), duration=seconds),))
