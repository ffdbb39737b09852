"""Replacement of the audio of test rows by silence or by other rows' recordings, to test whether a model listens.

If a score does not drop, the model answers from the text of the questions alone.
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
    """Sound file (`audio.Sound`) of zeros at 16 kHz.

    Attributes:
        n_samples: Length.
    """

    n_samples: int

    def read(self) -> bytes:
        """Return the file as WAV."""
        file = io.BytesIO()
        soundfile.write(file, np.zeros(self.n_samples, np.int16), audio.SAMPLE_RATE, format="WAV")
        return file.getvalue()

    def __str__(self) -> str:
        return f"silence of {self.n_samples} samples"


def variants(audio: str) -> tuple[str, ...]:
    """Return the kinds of audio to evaluate. The rows' own audio comes first, because drops are relative to it."""
    if audio not in (*KINDS, "all"):
        raise UserError(f"audio={audio}: expected {', '.join(KINDS)} or all")
    return KINDS if audio == "all" else tuple(dict.fromkeys((AS_IS, audio)))


def name(benchmark: str, kind: str) -> str:
    """Return the name of a benchmark with a kind of audio, such as `meld@silence`."""
    return benchmark if kind == AS_IS else f"{benchmark}@{kind}"


def replace_audio(manifests: Sequence[Manifest], kind: str, seed: int) -> list[Manifest]:
    """Return the rows with a kind of audio. A row without a suitable other recording gets a `problem`."""
    if kind == AS_IS:
        return list(manifests)
    rows = [row for manifest in manifests for row in manifest.rows]
    altered = iter([with_silence(row) for row in rows] if kind == SILENCE else with_shuffled_audio(rows, seed))
    digest = kind if kind == SILENCE else f"{kind} {seed} {'+'.join(manifest.digest for manifest in manifests)}"
    return [replace(m, rows=tuple(next(altered) for _ in m.rows), digest=f"{m.digest} {digest}") for m in manifests]


def with_silence(row: Row) -> Row:
    """Return a row with silence of the length of each clip; unchanged if a clip cannot be read."""
    try:
        return replace(row, clips=tuple(Clip(Silence(clip.n_samples())) for clip in row.clips))
    except AudioError:
        return row


def with_shuffled_audio(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return the rows with their clips exchanged, each clip being used once.

    A row gets the clips of a row of the same task with the same number of clips, but of another recording.
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
        # Rows of one recording are adjacent in this order, so a shift by the largest number of rows of one recording
        # leads to another recording.
        order = dict(zip(counts, np.argsort(rng.permutation(len(counts))), strict=True))
        ranked = sorted(range(len(numbers)), key=lambda index: order[recordings[index]])
        step = max(counts.values())
        for position, target in enumerate(ranked):
            source = ranked[(position + step) % len(ranked)]
            row = rows[numbers[target]]
            if recordings[target] == recordings[source]:
                problem = f"audio={SHUFFLED}: too few other recordings of task {row.labels['task']!r}"
                result[numbers[target]] = replace(row, problem=problem)
            else:
                result[numbers[target]] = replace(row, clips=rows[numbers[source]].clips)
    return result
