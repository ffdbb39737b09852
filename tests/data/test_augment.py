"""Noise and rooms: the ratio that was asked for, times that stay, seeds, and never in evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from auris import audio
from auris.data.augment import Noise, RecordedRooms, SyntheticRooms, reverberate
from auris.data.samples import TextSamples
from auris.training.objectives.dpo import DPO
from auris.training.references import check
from support.manifests import read_row, samples_of, write_manifest, write_wave

RATE = audio.SAMPLE_RATE
ROOMS = {"rt60": [0.3, 0.3], "direct": [3, 3], "p": 1.0}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tone(seconds: float, pitch: float = 300.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def manifest(folder: Path, *waves: np.ndarray, rate: int = RATE) -> Path:
    """Sound files, and rows that say no more than where they are."""
    for number, wave in enumerate(waves):
        soundfile.write(folder / f"n{number}.wav", wave, rate, subtype="FLOAT")
    return write_manifest(folder / "noise.jsonl", [{"audio": f"n{number}.wav"} for number in range(len(waves))])


def decibels(signal: np.ndarray, noise: np.ndarray) -> float:
    return 10 * np.log10(np.square(signal, dtype=float).sum() / np.square(noise, dtype=float).sum())


@pytest.mark.parametrize(("seconds", "rate"), [(0.4, RATE), (1.0, RATE), (7.0, RATE), (7.0, 44_100), (0.21, 22_050)])
def test_noise_of_any_length_is_added_at_the_requested_ratio(tmp_path, seconds, rate):
    noise = rng().normal(0, 0.05, round(seconds * rate)).astype(np.float32)
    distort, clip = Noise(manifest=manifest(tmp_path, noise, rate=rate), snr=[7, 7], p=1.0), tone(1.0)
    for seed in range(8):
        heard = distort(clip, rng(seed))
        assert heard.shape == clip.shape and heard.dtype == np.float32
        assert decibels(clip, heard - clip) == pytest.approx(7, abs=0.01)


def test_ratios_recordings_and_stretches_are_drawn(tmp_path):
    low, high = tone(3.0, 1_000) * np.linspace(0.1, 1, 3 * RATE, dtype=np.float32), tone(0.5, 4_000)
    distort, clip = Noise(manifest=manifest(tmp_path, low, high), snr=[0, 20], p=0.5), tone(1.0)
    heard = [distort(clip, rng(seed)) for seed in range(60)]
    noisy = [one - clip for one in heard if not np.array_equal(one, clip)]
    assert 20 < len(noisy) < 40
    ratios = [decibels(clip, one) for one in noisy]
    assert 0 <= min(ratios) < 4 and 16 < max(ratios) <= 20
    loudest = [int(np.abs(np.fft.rfft(one)).argmax()) for one in noisy]  # Hz: clips of one second
    assert set(loudest) == {1_000, 4_000}
    assert np.array_equal(distort(clip, rng(3)), heard[3])


def test_silence_is_neither_amplified_nor_given_noise(tmp_path):
    silent = Noise(manifest=manifest(tmp_path, np.zeros(RATE)), snr=[0, 0], p=1.0)
    assert np.array_equal(silent(tone(0.5), rng()), tone(0.5))
    loud = Noise(manifest=manifest(tmp_path, tone(1.0)), snr=[0, 0], p=1.0)
    assert not loud(np.zeros(800, np.float32), rng()).any()


def test_a_recorded_room_moves_no_sound(tmp_path):
    """The response's direct sound comes 50 ms after its start; a click stays where it is, with its echo behind it."""
    response = np.zeros(4_000, np.float32)
    response[800], response[1_300] = 0.5, 0.25
    click = np.zeros(6_000, np.float32)
    click[1_000] = 1.0
    heard = RecordedRooms(manifest=manifest(tmp_path, response), p=1.0)(click, rng())
    assert heard.shape == click.shape and heard.dtype == np.float32
    assert np.flatnonzero(np.abs(heard) > 1e-4).tolist() == [1_000, 1_500]
    assert heard[1_500] / heard[1_000] == pytest.approx(0.5, rel=1e-4)
    assert np.linalg.norm(heard) == pytest.approx(1.0, rel=1e-4)


def test_a_synthetic_room_decays_by_60_db_in_its_time():
    response = SyntheticRooms(**ROOMS).response(rng())
    assert response[0] == np.abs(response).max() == 1.0 and len(response) == 0.3 * RATE
    assert decibels(response[:1], response[1:]) == pytest.approx(3, abs=0.01)
    early, late = response[1:481], response[2_401:2_881]  # 150 ms apart: half the time, half the decibels
    assert decibels(early, late) == pytest.approx(30, abs=1.5)


def test_silence_in_a_room_is_silence():
    assert not reverberate(np.zeros(500, np.float32), np.ones(3, np.float32)).any()


def test_rows_are_distorted_by_seed_epoch_and_row_in_training_alone(tmp_path):
    write_wave(tmp_path / "clip.wav", 0.8)
    row = read_row(tmp_path, audio="clip.wav")
    noise = Noise(manifest=manifest(tmp_path, rng().normal(0, 0.1, RATE)), snr=[5, 5], p=1.0)
    masks = audio.SpecAugment(n_freq_masks=1, freq_mask_param=2, n_time_masks=1, time_mask_param=9, p=1.0, time_warp=0)
    plain, noisy = samples_of(augment=masks), samples_of(noise=noise, reverb=SyntheticRooms(**ROOMS), augment=masks)

    def mel(samples, epoch: int | None) -> torch.Tensor:
        return samples.build(row, 0, epoch).mels[0]

    assert torch.equal(mel(noisy, None), mel(plain, None))
    assert torch.equal(mel(noisy, 2), mel(noisy, 2))
    assert not torch.equal(mel(noisy, 2), mel(noisy, 3))
    assert not torch.equal(mel(noisy, 2), mel(samples_of(noise=noise, augment=masks), 2))
    for epoch in range(6):  # the same wording, and lengths as they were planned
        one, other = plain.build(row, 0, epoch), noisy.build(row, 0, epoch)
        assert np.array_equal(one.ids, other.ids) and one.frames == other.frames
        assert not torch.equal(one.mels[0], other.mels[0])


def test_impossible_settings_are_refused_at_the_start(tmp_path):
    good = manifest(tmp_path, tone(0.2))
    absent = write_manifest(tmp_path / "absent.jsonl", [{"audio": "gone.wav"}])
    text = write_manifest(tmp_path / "text.jsonl", [{"task": "text", "text": "no sound"}])
    for make, message in (
        (lambda: Noise(manifest=None, snr=[0, 9], p=1.0), "data.noise.manifest=FILE.jsonl"),
        (lambda: Noise(manifest=absent, snr=[0, 9], p=1.0), "data.noise.manifest: .*gone.wav: no such file"),
        (lambda: Noise(manifest=text, snr=[0, 9], p=1.0), "data.noise.manifest: row .* has no audio"),
        (lambda: Noise(manifest=good, snr=[9, 0], p=1.0), r"data.noise.snr=\[9, 0\]: expected \[minimum, maximum\]"),
        (lambda: Noise(manifest=good, snr=[0, 9], p=0), "data.noise.p=0: .*data.noise=null turns it off"),
        (lambda: SyntheticRooms(**ROOMS | {"rt60": [0, 1]}), "data.reverb.rt60"),
        (lambda: samples_of(TextSamples, reverb=SyntheticRooms(**ROOMS)), "no effect in a view without audio"),
        (
            lambda: check(DPO(), samples_of(reverb=SyntheticRooms(**ROOMS))),
            "data.reverb changes the audio .*data.reverb=null",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    check(DPO(reference="live"), samples_of(reverb=SyntheticRooms(**ROOMS)))
