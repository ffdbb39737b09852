"""How long every row is, in tokens: measured once from durations and text, cached, never by computing features."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from auris.audio import AudioError
from auris.data.rows import Manifest, Row
from auris.data.samples import RowError, Samples, TooLong
from auris.prompts import SYSTEM, Chat
from auris.tasks import TASKS

_QUICK = 2_000  # rows measured in about a second: no progress bar below


@dataclass(frozen=True)
class Lengths:
    """Tokens of each row, 0 for one that cannot be used, and why it cannot.

    `dropped`: seconds of a row that `long_audio=first` leaves unheard, where there are any.
    """

    tokens: np.ndarray
    problems: dict[int, str]
    dropped: dict[int, float]


def measure(manifests: Sequence[Manifest], samples: Samples, cache_dir: Path) -> Lengths:
    """Measure all rows, numbered consecutively over the manifests.

    Raises ValueError when a clip is over 30 s and `data.long_audio=error`, naming the row.
    """
    tokens: list[np.ndarray] = []
    problems: dict[int, str] = {}
    dropped: dict[int, float] = {}
    first = 0
    for manifest in manifests:
        one = _cached(manifest, samples, cache_dir)
        tokens.append(one.tokens)
        problems |= {first + number: reason for number, reason in one.problems.items()}
        dropped |= {first + number: seconds for number, seconds in one.dropped.items()}
        first += len(manifest.rows)
    if dropped:
        seconds, longest = sum(dropped.values()), max(dropped.values())
        warnings.warn(
            f"long_audio=first: of {len(dropped)} rows only the first 30 s are heard; {seconds:.1f} s are dropped, "
            f"{longest:.1f} s of the longest (long_audio=window hears them)",
            stacklevel=2,
        )
    return Lengths(np.concatenate(tokens), problems, dropped)


def _cached(manifest: Manifest, samples: Samples, cache_dir: Path) -> Lengths:
    path = cache_dir / f"lengths-{_key(manifest, samples)}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            tables = (json.loads(str(stored[name])) for name in ("problems", "dropped"))
            return Lengths(stored["tokens"], *({int(k): v for k, v in table.items()} for table in tables))
    measured = _measure(manifest.rows, samples)
    cache_dir.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp.npz")  # several arms of a study may measure at once
    np.savez(
        partial,
        tokens=measured.tokens,
        problems=json.dumps(measured.problems),
        dropped=json.dumps(measured.dropped),
    )
    partial.replace(path)
    return measured


def _measure(rows: Sequence[Row], samples: Samples) -> Lengths:
    tokens = np.zeros(len(rows), dtype=np.int64)
    problems: dict[int, str] = {}
    dropped: dict[int, float] = {}
    bar = track(enumerate(rows), description="measuring rows", total=len(rows), disable=len(rows) < _QUICK)
    for number, row in bar:
        try:
            if row.problem:
                raise RowError(row.problem)
            spans = samples.spans(row)
            samples.check_spans(spans)
            tokens[number] = samples.length(row, spans)
            if seconds := samples.dropped(row):
                dropped[number] = seconds
        except TooLong as error:
            if samples.long_audio == "error":
                raise ValueError(f"row {row.id}: {error}") from error
            problems[number] = str(error)
        except (RowError, AudioError) as error:
            problems[number] = str(error)
    return Lengths(tokens, problems, dropped)


def _key(manifest: Manifest, samples: Samples) -> str:
    """What the lengths depend on: rows, vocabulary, wording, geometry, policy, and unstated files' sizes and times."""
    facts = [
        manifest.digest(),
        *(row.id for row in manifest.rows),
        type(samples).__name__,
        samples.long_audio,
        repr(samples.geometry),
        samples.tokenizer.fast.backend_tokenizer.to_str(),
        *_wordings(samples),
        *_unstated(manifest),
    ]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:24]


def _wordings(samples: Samples) -> Iterator[str]:
    if isinstance(samples.prompt, Chat):
        yield " ".join([type(samples.prompt).__name__, samples.prompt.label, SYSTEM])
        return
    for task in TASKS.values():
        yield " ".join([type(samples.prompt).__name__, task.tags, *task.wordings])


def _unstated(manifest: Manifest) -> Iterator[str]:
    for row in manifest.rows:
        for clip in row.clips:
            if clip.duration is None and clip.path.is_file():
                status = clip.path.stat()
                yield f"{clip.path}:{status.st_size}:{status.st_mtime_ns}"
