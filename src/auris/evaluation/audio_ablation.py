"""Rows without their sound, to see whether a model listens: with silence as long, or with another row's recording.

A benchmark whose score stays is answered from the text of its questions.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import soundfile

from auris import audio
from auris.data.manifests import Manifest
from auris.data.rows import Clip, Row
from auris.errors import AudioError, UserError

AS_IS, SILENCE, SHUFFLED = KINDS = ("as_is", "silence", "shuffled")


@dataclass(frozen=True)
class Silence:
    """A sound file (`audio.Sound`) of so many samples at 16 kHz, all zero."""

    samples: int

    def read(self) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, np.zeros(self.samples, np.int16), audio.SAMPLE_RATE, format="WAV")
        return file.getvalue()

    def __str__(self) -> str:
        return f"silence of {self.samples} samples"


def kinds(asked: str) -> tuple[str, ...]:
    """What is heard in turn: always the recordings themselves, beside which the others are a drop.

    Raises ValueError for an unknown name.
    """
    if asked not in (*KINDS, "all"):
        raise UserError(f"audio={asked}: expected {', '.join(KINDS)} or all")
    return KINDS if asked == "all" else tuple(dict.fromkeys((AS_IS, asked)))


def name(benchmark: str, kind: str) -> str:
    """What a benchmark is called with such audio: `meld@silence`."""
    return benchmark if kind == AS_IS else f"{benchmark}@{kind}"


def alter(manifests: Sequence[Manifest], kind: str, seed: int) -> list[Manifest]:
    """The same rows, heard otherwise. A row that there is no other recording for has a problem that says so."""
    if kind == AS_IS:
        return list(manifests)
    rows = [row for manifest in manifests for row in manifest.rows]
    heard = iter([silenced(row) for row in rows] if kind == SILENCE else shuffled(rows, seed))
    facts = kind if kind == SILENCE else f"{kind} {seed} {'+'.join(manifest.digest for manifest in manifests)}"
    return [replace(m, rows=tuple(next(heard) for _ in m.rows), digest=f"{m.digest} {facts}") for m in manifests]


def silenced(row: Row) -> Row:
    """The row with silence as long as each of its clips; one that cannot be read stays, and is named when it is."""
    try:
        return replace(row, clips=tuple(Clip(Silence(clip.n_samples())) for clip in row.clips))
    except AudioError:
        return row


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """Each row with the clips of another of its task that has as many, and never with its own recording: every row's
    clips are heard once."""
    pools: dict[tuple[str, int], list[int]] = {}
    for number, row in enumerate(rows):
        if row.clips and not row.problem:
            pools.setdefault((row.labels["task"], len(row.clips)), []).append(number)
    found = list(rows)
    rng = np.random.default_rng(seed)
    for numbers in pools.values():
        recordings = [tuple(str(clip.path) for clip in rows[number].clips) for number in numbers]
        counts = Counter(recordings)
        # Rows of one recording stand beside each other; as far on as the longest such stretch is another recording.
        places = {recording: place for place, recording in enumerate(rng.permutation(len(counts)))}
        order = {recording: places[place] for place, recording in enumerate(counts)}
        ranked = sorted(range(len(numbers)), key=lambda one: order[recordings[one]])
        step = max(counts.values())
        for place, one in enumerate(ranked):
            other = ranked[(place + step) % len(ranked)]
            row = rows[numbers[one]]
            if recordings[one] == recordings[other]:
                problem = f"audio={SHUFFLED}: too few other recordings of task {row.labels['task']!r}"
                found[numbers[one]] = replace(row, problem=problem)
            else:
                found[numbers[one]] = replace(row, clips=rows[numbers[other]].clips)
    return found
