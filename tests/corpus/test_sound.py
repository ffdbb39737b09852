"""Tests of synthetic sounds and instruments: clips vary, and a nearest-neighbour classifier separates the classes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from auris.corpus import music, sound
from auris.corpus.signal import SAMPLE_RATE, add_background, n_samples, power, reverberate, to_pcm

Maker = Callable[[str, np.random.Generator, float], np.ndarray]


def describe(clip: np.ndarray) -> np.ndarray:
    """Return mean, standard deviation and mean absolute change of the log energy in 32 bands."""
    frames = np.lib.stride_tricks.sliding_window_view(clip, 512)[::160] * np.hanning(512)
    spectrum = np.abs(np.fft.rfft(frames)) ** 2
    edges = np.geomspace(2, 257, 33).astype(int)
    bands = np.stack([spectrum[:, a : max(b, a + 1)].mean(1) for a, b in itertools.pairwise(edges)], 1)
    log = np.log10(bands + 1e-7 * bands.max())
    return np.concatenate((log.mean(0) - log.mean(), log.std(0), np.abs(np.diff(log, axis=0)).mean(0)))


@pytest.mark.parametrize(
    ("make", "names"), [(sound.make_sound, sound.SOUNDS), (music.play_random_phrase, music.INSTRUMENTS)]
)
def test_a_nearest_neighbour_classifier_separates_the_classes(make: Maker, names: Iterable[str]) -> None:
    def clips(seeds: range) -> list[tuple[str, np.ndarray]]:
        return [(name, describe(make(name, np.random.default_rng(seed), 1.2))) for name in names for seed in seeds]

    references, unseen = clips(range(8)), clips(range(100, 103))
    scale = np.std([features for _, features in references], axis=0)
    nearest = [min(references, key=lambda k: np.sum(((k[1] - features) / scale) ** 2))[0] for _, features in unseen]
    accuracy = np.mean([guess == name for guess, (name, _) in zip(nearest, unseen, strict=True)])
    assert accuracy >= 0.8


@pytest.mark.parametrize(
    ("make", "names"), [(sound.make_sound, sound.SOUNDS), (music.play_random_phrase, music.INSTRUMENTS)]
)
def test_clips_have_the_requested_length_unit_power_and_vary_with_the_seed(make: Maker, names: Iterable[str]) -> None:
    for name in names:
        clip, repeated, other_seed = (make(name, np.random.default_rng(seed), 0.8) for seed in (1, 1, 2))
        assert len(clip) == n_samples(0.8)
        assert np.isfinite(clip).all()
        assert power(clip) == pytest.approx(1.0)
        np.testing.assert_array_equal(clip, repeated)
        assert np.corrcoef(clip, other_seed)[0, 1] < 0.5, name


def test_background_noise_has_the_requested_ratio() -> None:
    clean = np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    noisy = add_background(np.random.default_rng(0), clean, snr=20)
    assert 10 * np.log10(power(clean) / power(noisy - clean)) == pytest.approx(20)


def test_a_room_does_not_move_the_direct_sound_and_adds_reverberation() -> None:
    click = np.zeros(SAMPLE_RATE)
    click[1000] = 1.0
    output = reverberate(np.random.default_rng(0), click, seconds=0.3, ratio=0.2)
    assert output[1000] == pytest.approx(1.0)
    assert np.abs(output[:1000]).max() < 1e-9
    assert power(output[1001:]) * (SAMPLE_RATE - 1001) == pytest.approx(0.2, rel=0.05)


def test_pcm_has_the_requested_peak_level() -> None:
    pcm = to_pcm(np.array([0.1, -0.4, 0.2]), level=-6.0)
    assert np.abs(pcm.astype(int)).max() == round(32767 * 10 ** (-6 / 20))
