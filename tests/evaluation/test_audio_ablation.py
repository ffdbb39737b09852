"""Audio ablation: replace a row's audio by silence of equal length or by another row's recording."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from auris import audio
from auris.data.manifests import Manifest
from auris.data.rows import Clip, Row
from auris.evaluation import audio_ablation
from auris.metrics.records import AUDIO_KINDS
from support.manifests import write_wave


def make_row(number: int, recording: str, task: str = "sec", n_clips: int = 1) -> Row:
    return Row(f"r{number}", tuple(Clip(Path(f"{recording}{k}.wav")) for k in range(n_clips)), {"task": task})


def test_silence_has_the_length_of_the_clip_or_its_segment(tmp_path: Path):
    write_wave(tmp_path / "a.wav", 1.5)
    full_clip, segment = Clip(tmp_path / "a.wav", duration=1.5), Clip(tmp_path / "a.wav", offset=0.5, duration=0.25)
    silent = audio_ablation.with_silence(Row("r", (full_clip, segment), {"task": "sv"}))
    waves = [audio.read(clip.path) for clip in silent.clips]
    assert [len(wave) for wave in waves] == [24_000, 4_000] and not any(wave.any() for wave in waves)
    assert audio.n_samples(silent.clips[0].path) == 24_000
    missing = Row("r", (Clip(tmp_path / "none.wav"),), {"task": "sec"})
    assert audio_ablation.with_silence(missing) == missing  # the missing file is reported later


@pytest.mark.parametrize("seed", range(5))
def test_no_row_gets_its_own_recording_and_each_clip_is_used_once(seed: int):
    rows = [make_row(number, f"clip{number // 3}-") for number in range(12)]  # three rows for each of four clips
    rows += [make_row(number, f"speech{number}-", "asr") for number in range(12, 17)]
    rows += [make_row(number, f"pair{number}-", "sv", 2) for number in range(17, 20)]
    rows.append(Row("text", (), {"task": "text"}))
    shuffled = audio_ablation.with_shuffled_audio(rows, seed)
    for before, after in zip(rows, shuffled, strict=True):
        assert after.id == before.id and after.labels == before.labels and after.problem is None
        assert len(after.clips) == len(before.clips)
        assert not before.clips or after.clips != before.clips
    assert Counter(clip.path for row in shuffled for clip in row.clips) == Counter(
        c.path for row in rows for c in row.clips
    )
    assert all("speech" in str(row.clips[0].path) for row in shuffled[12:17])
    assert shuffled == audio_ablation.with_shuffled_audio(rows, seed)


def test_different_seeds_shuffle_the_audio_differently():
    rows = [make_row(number, f"clip{number}-") for number in range(30)]
    orders = [[str(row.clips[0].path) for row in audio_ablation.with_shuffled_audio(rows, seed)] for seed in (0, 1)]
    assert np.mean([a == b for a, b in zip(*orders, strict=True)]) < 0.5


def test_the_problem_of_a_row_names_the_task_that_has_too_few_other_recordings():
    single, same_recording = make_row(0, "a"), [make_row(number, "b", "er") for number in (1, 2, 3)]
    shuffled = audio_ablation.with_shuffled_audio([single, *same_recording, make_row(4, "c", "er")], 0)
    assert "too few other recordings of task 'sec'" in shuffled[0].problem
    assert [row.problem is None for row in shuffled[1:]].count(True) == 2  # one row of b gets c, and c gets b


def test_each_kind_of_ablation_has_its_own_digest():
    manifest = Manifest("rows.jsonl", (make_row(0, "a"), make_row(1, "b")), digest="d")
    assert audio_ablation.replace_audio([manifest], "as_is", 0) == [manifest]
    digests = {
        audio_ablation.replace_audio([manifest], kind, seed)[0].digest for kind in AUDIO_KINDS for seed in (0, 1)
    }
    assert len(digests) == 4  # unchanged, silence, and one shuffle for each seed
    assert (
        audio_ablation.audio_kinds("silence") == ("as_is", "silence")
        and audio_ablation.audio_kinds("all") == AUDIO_KINDS
    )
    with pytest.raises(ValueError, match="audio=loud: expected as_is, silence, shuffled or all"):
        audio_ablation.audio_kinds("loud")


def test_at_most_the_given_number_of_rows_is_drawn_evenly_from_the_manifests():
    """The manifests have 2, 30 and 10 rows: of 15 rows, the short one gives its 2, the others 6 and 7."""
    rows = [make_row(number, f"clip{number}-") for number in range(42)]
    manifests = [Manifest(f"{n}.jsonl", tuple(rows[start : start + n])) for start, n in ((0, 2), (2, 30), (32, 10))]
    drawn = audio_ablation.replace_audio(manifests, "shuffled", 0, n_rows=15)
    assert [len(manifest.rows) for manifest in drawn] == [2, 7, 6]
    ids = [row.id for manifest in drawn for row in manifest.rows]
    assert ids == sorted(set(ids), key=lambda row_id: int(row_id[1:]))
    assert ids != [row.id for row in rows[:2] + rows[2:9] + rows[32:38]], "expected a random choice"
    [again, *_] = audio_ablation.replace_audio(manifests[1:], "shuffled", 0, n_rows=15)
    assert len(again.rows) == 8
    assert audio_ablation.replace_audio(manifests, "as_is", 0, n_rows=15) == manifests
    # The sets of a manifest are drawn from evenly too.
    in_sets = [replace(row, labels={**row.labels, "set": "small" if n < 5 else "large"}) for n, row in enumerate(rows)]
    [drawn_from_sets] = audio_ablation.replace_audio([Manifest("all.jsonl", tuple(in_sets))], "silence", 0, n_rows=12)
    assert Counter(row.labels["set"] for row in drawn_from_sets.rows) == {"small": 5, "large": 7}
