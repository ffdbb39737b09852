"""Tests of noise and room augmentation: signal-to-noise ratio, unchanged timing, seeds, and none in evaluation."""

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
from auris.training.references import check_augmentation
from support.manifests import make_sample_builder, read_row, write_manifest, write_wave

RATE = audio.SAMPLE_RATE
ROOMS = {"rt60": [0.3, 0.3], "direct": [3, 3], "p": 1.0}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tone(seconds: float, pitch: float = 300.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def manifest(folder: Path, *waves: np.ndarray, rate: int = RATE) -> Path:
    """Write audio files and a manifest whose rows have no field but `audio`."""
    for number, wave in enumerate(waves):
        soundfile.write(folder / f"n{number}.wav", wave, rate, subtype="FLOAT")
    return write_manifest(folder / "noise.jsonl", [{"audio": f"n{number}.wav"} for number in range(len(waves))])


def decibels(signal: np.ndarray, noise: np.ndarray) -> float:
    return 10 * np.log10(np.square(signal, dtype=float).sum() / np.square(noise, dtype=float).sum())


@pytest.mark.parametrize(("seconds", "rate"), [(0.4, RATE), (1.0, RATE), (7.0, RATE), (7.0, 44_100), (0.21, 22_050)])
def test_noise_of_any_length_is_added_at_the_requested_ratio(tmp_path, seconds, rate):
    noise = rng().normal(0, 0.05, round(seconds * rate)).astype(np.float32)
    add_noise, clip = Noise(manifest=manifest(tmp_path, noise, rate=rate), snr=[7, 7], p=1.0), tone(1.0)
    for seed in range(8):
        noisy = add_noise(clip, rng(seed))
        assert noisy.shape == clip.shape and noisy.dtype == np.float32
        assert decibels(clip, noisy - clip) == pytest.approx(7, abs=0.01)


def test_the_ratio_the_recording_and_the_segment_of_the_noise_are_random(tmp_path):
    low_noise, high_noise = tone(3.0, 1_000) * np.linspace(0.1, 1, 3 * RATE, dtype=np.float32), tone(0.5, 4_000)
    add_noise, clip = Noise(manifest=manifest(tmp_path, low_noise, high_noise), snr=[0, 20], p=0.5), tone(1.0)
    outputs = [add_noise(clip, rng(seed)) for seed in range(60)]
    noises = [output - clip for output in outputs if not np.array_equal(output, clip)]
    assert 20 < len(noises) < 40
    ratios = [decibels(clip, noise) for noise in noises]
    assert 0 <= min(ratios) < 4 and 16 < max(ratios) <= 20
    loudest = [int(np.abs(np.fft.rfft(noise)).argmax()) for noise in noises]  # in Hz, because the clip lasts one second
    assert set(loudest) == {1_000, 4_000}
    assert np.array_equal(add_noise(clip, rng(3)), outputs[3])


def test_silent_noise_is_not_amplified_and_a_silent_clip_gets_no_noise(tmp_path):
    silent_noise = Noise(manifest=manifest(tmp_path, np.zeros(RATE)), snr=[0, 0], p=1.0)
    assert np.array_equal(silent_noise(tone(0.5), rng()), tone(0.5))
    loud_noise = Noise(manifest=manifest(tmp_path, tone(1.0)), snr=[0, 0], p=1.0)
    assert not loud_noise(np.zeros(800, np.float32), rng()).any()


def test_a_recorded_room_does_not_delay_the_clip(tmp_path):
    """The direct sound of the response is at 50 ms. A click keeps its position and is followed by its echo."""
    response = np.zeros(4_000, np.float32)
    response[800], response[1_300] = 0.5, 0.25
    click = np.zeros(6_000, np.float32)
    click[1_000] = 1.0
    output = RecordedRooms(manifest=manifest(tmp_path, response), p=1.0)(click, rng())
    assert output.shape == click.shape and output.dtype == np.float32
    assert np.flatnonzero(np.abs(output) > 1e-4).tolist() == [1_000, 1_500]
    assert output[1_500] / output[1_000] == pytest.approx(0.5, rel=1e-4)
    assert np.linalg.norm(output) == pytest.approx(1.0, rel=1e-4)


def test_a_synthetic_room_decays_by_60_db_in_its_reverberation_time():
    response = SyntheticRooms(**ROOMS).response(rng())
    assert response[0] == np.abs(response).max() == 1.0 and len(response) == 0.3 * RATE
    assert decibels(response[:1], response[1:]) == pytest.approx(3, abs=0.01)
    # Two parts of the response that are 150 ms apart. This is half of rt60, the time of a decay by 60 dB.
    early, late = response[1:481], response[2_401:2_881]
    assert decibels(early, late) == pytest.approx(30, abs=1.5)


def test_a_room_leaves_silence_silent():
    assert not reverberate(np.zeros(500, np.float32), np.ones(3, np.float32)).any()


def test_augmentation_depends_on_seed_epoch_and_row_and_is_off_in_evaluation(tmp_path):
    write_wave(tmp_path / "clip.wav", 0.8)
    row = read_row(tmp_path, audio="clip.wav")
    noise = Noise(manifest=manifest(tmp_path, rng().normal(0, 0.1, RATE)), snr=[5, 5], p=1.0)
    masks = audio.SpecAugment(n_freq_masks=1, freq_mask_param=2, n_time_masks=1, time_mask_param=9, p=1.0, time_warp=0)
    plain, noisy = (
        make_sample_builder(augment=masks),
        make_sample_builder(noise=noise, reverb=SyntheticRooms(**ROOMS), augment=masks),
    )

    def mel(samples, epoch: int | None) -> torch.Tensor:
        return samples.build(row, 0, epoch).mels[0]

    assert torch.equal(mel(noisy, None), mel(plain, None))
    assert torch.equal(mel(noisy, 2), mel(noisy, 2))
    assert not torch.equal(mel(noisy, 2), mel(noisy, 3))
    assert not torch.equal(mel(noisy, 2), mel(make_sample_builder(noise=noise, augment=masks), 2))
    for epoch in range(6):  # the wording and the planned lengths do not change
        without, augmented = plain.build(row, 0, epoch), noisy.build(row, 0, epoch)
        assert np.array_equal(without.ids, augmented.ids) and without.frames == augmented.frames
        assert not torch.equal(without.mels[0], augmented.mels[0])


def test_invalid_settings_are_an_error_at_construction(tmp_path):
    valid = manifest(tmp_path, tone(0.2))
    absent = write_manifest(tmp_path / "absent.jsonl", [{"audio": "gone.wav"}])
    text = write_manifest(tmp_path / "text.jsonl", [{"task": "text", "text": "no sound"}])
    for build, message in (
        (lambda: Noise(manifest=None, snr=[0, 9], p=1.0), "data.noise.manifest=FILE.jsonl"),
        (lambda: Noise(manifest=absent, snr=[0, 9], p=1.0), "data.noise.manifest: .*gone.wav: no such file"),
        (lambda: Noise(manifest=text, snr=[0, 9], p=1.0), "data.noise.manifest: row .* has no audio"),
        (lambda: Noise(manifest=valid, snr=[9, 0], p=1.0), r"data.noise.snr=\[9, 0\]: expected \[minimum, maximum\]"),
        (lambda: Noise(manifest=valid, snr=[0, 9], p=0), "data.noise.p=0: .*data.noise=null turns it off"),
        (lambda: SyntheticRooms(**ROOMS | {"rt60": [0, 1]}), "data.reverb.rt60"),
        (lambda: make_sample_builder(TextSamples, reverb=SyntheticRooms(**ROOMS)), "no effect in a view without audio"),
        (
            lambda: check_augmentation(DPO(), make_sample_builder(reverb=SyntheticRooms(**ROOMS))),
            "data.reverb changes the audio .*data.reverb=null",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            build()
    check_augmentation(DPO(reference="live"), make_sample_builder(reverb=SyntheticRooms(**ROOMS)))
