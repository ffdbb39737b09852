"""Rows without their sound: as long a silence, or another row's recording, and never a row's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from auris import audio
from auris.data.manifests import Manifest
from auris.data.rows import Clip, Row
from auris.evaluation import audio_ablation
from support.manifests import write_wave


def row(number: int, recording: str, task: str = "sec", clips: int = 1) -> Row:
    return Row(f"r{number}", tuple(Clip(Path(f"{recording}{k}.wav")) for k in range(clips)), {"task": task})


def test_silence_is_as_long_as_the_clip_or_its_stretch(tmp_path: Path):
    write_wave(tmp_path / "a.wav", 1.5)
    whole, stretch = Clip(tmp_path / "a.wav", duration=1.5), Clip(tmp_path / "a.wav", offset=0.5, duration=0.25)
    heard = audio_ablation.silenced(Row("r", (whole, stretch), {"task": "sv"}))
    waves = [audio.read(clip.path) for clip in heard.clips]
    assert [len(wave) for wave in waves] == [24_000, 4_000] and not any(wave.any() for wave in waves)
    assert audio.n_samples(heard.clips[0].path) == 24_000
    missing = Row("r", (Clip(tmp_path / "none.wav"),), {"task": "sec"})
    assert audio_ablation.silenced(missing) == missing  # named when it is measured


@pytest.mark.parametrize("seed", range(5))
def test_no_row_gets_its_own_recording_and_each_clip_is_used_once(seed: int):
    rows = [row(number, f"clip{number // 3}-") for number in range(12)]  # three questions about each of four clips
    rows += [row(number, f"speech{number}-", "asr") for number in range(12, 17)]
    rows += [row(number, f"pair{number}-", "sv", 2) for number in range(17, 20)]
    rows.append(Row("text", (), {"task": "text"}))
    heard = audio_ablation.shuffled(rows, seed)
    for before, after in zip(rows, heard, strict=True):
        assert after.id == before.id and after.labels == before.labels and after.problem is None
        assert len(after.clips) == len(before.clips)
        assert not before.clips or after.clips != before.clips
    assert Counter(clip.path for one in heard for clip in one.clips) == Counter(
        c.path for one in rows for c in one.clips
    )
    assert all("speech" in str(one.clips[0].path) for one in heard[12:17])
    assert heard == audio_ablation.shuffled(rows, seed)


def test_the_seed_decides_who_hears_what():
    rows = [row(number, f"clip{number}-") for number in range(30)]
    orders = [[str(one.clips[0].path) for one in audio_ablation.shuffled(rows, seed)] for seed in (0, 1)]
    assert np.mean([a == b for a, b in zip(*orders, strict=True)]) < 0.5


def test_a_row_without_another_recording_is_named():
    alone, common = row(0, "a"), [row(number, "b", "er") for number in (1, 2, 3)]
    heard = audio_ablation.shuffled([alone, *common, row(4, "c", "er")], 0)
    assert "too few other recordings of task 'sec'" in heard[0].problem
    assert [one.problem is None for one in heard[1:]].count(True) == 2  # b hears c once, and c hears b


def test_names_and_lengths_are_those_of_the_altered_audio():
    manifest = Manifest("rows.jsonl", (row(0, "a"), row(1, "b")), digest="d")
    assert audio_ablation.alter([manifest], "as_is", 0) == [manifest]
    digests = {
        audio_ablation.alter([manifest], kind, seed)[0].digest for kind in audio_ablation.KINDS for seed in (0, 1)
    }
    assert len(digests) == 4  # as it is, silence, and two orders
    assert audio_ablation.name("meld", "silence") == "meld@silence" and audio_ablation.name("meld", "as_is") == "meld"
    assert (
        audio_ablation.variants("silence") == ("as_is", "silence")
        and audio_ablation.variants("all") == audio_ablation.KINDS
    )
    with pytest.raises(ValueError, match="audio=loud: expected as_is, silence, shuffled or all"):
        audio_ablation.variants("loud")
