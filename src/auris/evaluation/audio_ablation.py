"""Replacement of the audio of test rows by silence or by the recordings of other rows.

This tests whether a model listens. If a score does not become worse, the model answers from the text of the questions
alone.
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
from auris.metrics.records import AS_IS, AUDIO_KINDS, SHUFFLED, SILENCE


@dataclass(frozen=True)
class Silence:
    """Sound file (`audio.Sound`) of zeros at 16 kHz.

    Attributes:
        n_samples: Number of samples.
    """

    n_samples: int

    def read(self) -> bytes:
        """Return the file as WAV."""
        file = io.BytesIO()
        soundfile.write(file, np.zeros(self.n_samples, np.int16), audio.SAMPLE_RATE, format="WAV")
        return file.getvalue()

    def __str__(self) -> str:
        return f"silence of {self.n_samples} samples"


def audio_kinds(audio: str) -> tuple[str, ...]:
    """Return the kinds of audio to evaluate.

    The unchanged audio (`as_is`) comes first, because scores with replaced audio are compared with it.

    Args:
        audio: The config key `audio`: a kind of audio, or `all`.

    Raises:
        UserError: `audio` has another value.
    """
    if audio not in (*AUDIO_KINDS, "all"):
        raise UserError(f"audio={audio}: expected {', '.join(AUDIO_KINDS)} or all")
    return AUDIO_KINDS if audio == "all" else tuple(dict.fromkeys((AS_IS, audio)))


def replace_audio(manifests: Sequence[Manifest], kind: str, seed: int, n_rows: int | None = None) -> list[Manifest]:
    """Return the manifests with the given kind of audio.

    If there is no suitable other recording for a row, the row gets a `problem`.

    Args:
        manifests: The manifests.
        kind: One of `AUDIO_KINDS`.
        seed: Seed with which rows are drawn and recordings are shuffled.
        n_rows: Maximum number of rows whose audio is replaced (`draw_rows`); None: all rows. Without a replacement, no
            rows are left out.
    """
    if kind == AS_IS:
        return list(manifests)
    manifests = draw_rows(manifests, n_rows, seed)
    rows = [row for manifest in manifests for row in manifest.rows]
    new_rows = iter([with_silence(row) for row in rows] if kind == SILENCE else with_shuffled_audio(rows, seed))
    digest_suffix = kind if kind == SILENCE else f"{kind} {seed} {'+'.join(manifest.digest for manifest in manifests)}"
    return [
        replace(m, rows=tuple(next(new_rows) for _ in m.rows), digest=f"{m.digest} {digest_suffix}") for m in manifests
    ]


def draw_rows(manifests: Sequence[Manifest], n_rows: int | None, seed: int) -> list[Manifest]:
    """Return manifests with at most `n_rows` rows in total, drawn at random; None returns all rows.

    All test sets have the same number of rows, except for those that are too small for it. A test set is a manifest, or
    its rows with the same label `set`.
    """
    if n_rows is None:
        return list(manifests)
    test_sets: dict[tuple[int, object], list[Row]] = {}
    for number, manifest in enumerate(manifests):
        for row in manifest.rows:
            test_sets.setdefault((number, row.labels.get("set")), []).append(row)
    rng = np.random.default_rng(seed)
    drawn: set[tuple[int, str]] = set()
    for n_done, ((number, _), rows) in enumerate(sorted(test_sets.items(), key=lambda item: len(item[1]))):
        n = (n_rows - len(drawn)) // (len(test_sets) - n_done)
        drawn |= {(number, rows[position].id) for position in rng.permutation(len(rows))[:n]}
    chosen = [
        replace(manifest, rows=tuple(row for row in manifest.rows if (number, row.id) in drawn))
        for number, manifest in enumerate(manifests)
    ]
    return [manifest for manifest in chosen if manifest.rows]


def with_silence(row: Row) -> Row:
    """Return a row with each clip replaced by silence of the same length, or the row itself if a clip is unreadable."""
    try:
        return replace(row, clips=tuple(Clip(Silence(clip.n_samples())) for clip in row.clips))
    except AudioError:
        return row


def with_shuffled_audio(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return the rows with their clips exchanged; the clips of each row are used once.

    A row gets the clips of another row that has the same task and the same number of clips. These clips are not from
    the same recording as the row's own clips. If the task has too few recordings for that, the row gets a `problem`.
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
        # The order of the recordings is random, and rows with the same recording form a group of neighbours. A shift by
        # the size of the largest group therefore leads to another recording.
        order = dict(zip(counts, np.argsort(rng.permutation(len(counts))), strict=True))
        sorted_indices = sorted(range(len(numbers)), key=lambda index: order[recordings[index]])
        shift = max(counts.values())
        for position, target in enumerate(sorted_indices):
            source = sorted_indices[(position + shift) % len(sorted_indices)]
            row = rows[numbers[target]]
            if recordings[target] == recordings[source]:
                problem = f"audio={SHUFFLED}: too few other recordings of task {row.labels['task']!r}"
                result[numbers[target]] = replace(row, problem=problem)
            else:
                result[numbers[target]] = replace(row, clips=rows[numbers[source]].clips)
    return result
