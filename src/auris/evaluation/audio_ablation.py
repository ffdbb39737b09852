"""Test rows whose audio is replaced by silence or by another row's recording, to see whether a model listens.

If a score does not drop, the model answers from the text of the questions.
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
    """A sound file (`audio.Sound`) of zeros at 16 kHz."""

    samples: int

    def read(self) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, np.zeros(self.samples, np.int16), audio.SAMPLE_RATE, format="WAV")
        return file.getvalue()

    def __str__(self) -> str:
        return f"silence of {self.samples} samples"


def variants(audio: str) -> tuple[str, ...]:
    """Return the variants to evaluate; the rows' own audio comes first, because drops are relative to it."""
    if audio not in (*KINDS, "all"):
        raise UserError(f"audio={audio}: expected {', '.join(KINDS)} or all")
    return KINDS if audio == "all" else tuple(dict.fromkeys((AS_IS, audio)))


def name(benchmark: str, kind: str) -> str:
    """Return the name of a benchmark with such audio, as `meld@silence`."""
    return benchmark if kind == AS_IS else f"{benchmark}@{kind}"


def alter(manifests: Sequence[Manifest], kind: str, seed: int) -> list[Manifest]:
    """Return the same rows with other audio. A row for which there is no other recording gets a problem."""
    if kind == AS_IS:
        return list(manifests)
    rows = [row for manifest in manifests for row in manifest.rows]
    altered = iter([silenced(row) for row in rows] if kind == SILENCE else shuffled(rows, seed))
    digest = kind if kind == SILENCE else f"{kind} {seed} {'+'.join(manifest.digest for manifest in manifests)}"
    return [replace(m, rows=tuple(next(altered) for _ in m.rows), digest=f"{m.digest} {digest}") for m in manifests]


def silenced(row: Row) -> Row:
    """Return the row with silence as long as each of its clips. If one cannot be read, the row stays as it is."""
    try:
        return replace(row, clips=tuple(Clip(Silence(clip.n_samples())) for clip in row.clips))
    except AudioError:
        return row


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return each row with the clips of another row of its task that has as many, never with its own recording.

    All rows' clips are used once.
    """
    pools: dict[tuple[str, int], list[int]] = {}
    for number, row in enumerate(rows):
        if row.clips and not row.problem:
            pools.setdefault((row.labels["task"], len(row.clips)), []).append(number)
    result = list(rows)
    rng = np.random.default_rng(seed)
    for numbers in pools.values():
        recordings = [tuple(str(clip.path) for clip in rows[number].clips) for number in numbers]
        counts = Counter(recordings)
        # Rows of one recording are neighbours in this order; a shift by the longest such run gives another recording.
        order = dict(zip(counts, np.argsort(rng.permutation(len(counts))), strict=True))
        ranked = sorted(range(len(numbers)), key=lambda one: order[recordings[one]])
        step = max(counts.values())
        for place, one in enumerate(ranked):
            other = ranked[(place + step) % len(ranked)]
            row = rows[numbers[one]]
            if recordings[one] == recordings[other]:
                problem = f"audio={SHUFFLED}: too few other recordings of task {row.labels['task']!r}"
                result[numbers[one]] = replace(row, problem=problem)
            else:
                result[numbers[one]] = replace(row, clips=rows[numbers[other]].clips)
    return result
