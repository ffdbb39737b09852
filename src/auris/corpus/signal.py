"""Signal processing for speech, sounds and music: coloured noise, sweeps, envelopes, reverberation, background noise.

Signals are float64 arrays of samples at 16 kHz. With float64, the final rounding to 16 bits gives the same result on
every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.floating]
Gain = Callable[[Signal], Signal]
"""A filter's gain at frequencies in Hz."""

SAMPLE_RATE = 16_000  # Hz; auris.audio defines it too, but importing auris.audio would load torch in every worker


def n_samples(seconds: float) -> int:
    """Return the number of samples in `seconds`."""
    return round(seconds * SAMPLE_RATE)


def sample_times(n: int) -> Signal:
    """Return the times of `n` samples in seconds."""
    return np.arange(n) / SAMPLE_RATE


def filter_spectrum(signal: Signal, gain: Gain) -> Signal:
    """Filter a signal: multiply its spectrum by `gain`. The signal is not shifted in time."""
    size = _fast_size(len(signal))
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    return np.fft.irfft(np.fft.rfft(signal, size) * gain(frequencies), size)[: len(signal)]


def _fast_size(n: int) -> int:
    """Return the smallest power of two that is at least `n`.

    Fourier transforms of other lengths can be ten times slower.
    """
    return 1 << (n - 1).bit_length()


def band_gain(low: float, high: float) -> Gain:
    """Return a gain that passes `low` to `high` Hz and falls off smoothly over about a third of an octave."""

    def gain(frequencies: Signal) -> Signal:
        octaves = np.log2(np.maximum(frequencies, 1.0))
        return 1 / (1 + np.exp(-12 * (octaves - np.log2(low)))) / (1 + np.exp(12 * (octaves - np.log2(high))))

    return gain


def peak_gain(centre: float, width: float, floor: float = 0.0) -> Gain:
    """Return a gain with a resonance at `centre` Hz, `width` Hz wide at half its power, above a constant `floor`."""
    return lambda frequencies: floor + 1 / np.sqrt(1 + ((frequencies - centre) / (width / 2)) ** 2)


def sum_gains(gains: Sequence[Gain], floor: float) -> Gain:
    """Return the sum of gains and of a constant `floor`."""
    return lambda frequencies: sum((gain(frequencies) for gain in gains[1:]), gains[0](frequencies)) + floor


def noise(rng: np.random.Generator, n: int, gain: Gain) -> Signal:
    """Return `n` samples of noise with the spectrum `gain` and a root mean square of 1."""
    signal = filter_spectrum(rng.standard_normal(n), gain)
    return signal / np.sqrt(np.mean(signal**2))


def sine(frequency: Signal | float, n: int) -> Signal:
    """Return a sine of `n` samples whose frequency in Hz may change from sample to sample."""
    return np.sin(2 * np.pi * np.cumsum(np.broadcast_to(frequency, n)) / SAMPLE_RATE)


def harmonics(frequency: Signal | float, n: int, amplitudes: Callable[[int], Signal | float]) -> Signal:
    """Return a tone of `n` samples: the harmonics 1, 2, ... of `frequency` (in Hz) up to 7 kHz.

    `frequency` and the amplitude `amplitudes(k)` of harmonic k may change over time.
    """
    max_frequency = float(np.max(frequency))
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(frequency, n)) / SAMPLE_RATE
    return sum((amplitudes(k) * np.sin(k * phase) for k in range(1, int(7000 // max_frequency) + 1)), np.zeros(n))


def decay(n: int, seconds: float) -> Signal:
    """Return an envelope of `n` samples that falls to 1/e in `seconds`."""
    return np.exp(-sample_times(n) / seconds)


def fade(signal: Signal, attack: float, release: float) -> Signal:
    """Fade a signal in over `attack` and out over `release` seconds (each at most half of the signal)."""
    signal = signal.copy()
    for seconds, side in ((attack, signal), (release, signal[::-1])):
        n = min(n_samples(seconds), len(signal) // 2)
        side[:n] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(n) / max(n, 1))
    return signal


def add(target: Signal, signal: Signal, at: float) -> None:
    """Mix `signal` into `target` in place, from `at` seconds on. Samples beyond the end of `target` are dropped."""
    start = n_samples(at)
    end = min(start + len(signal), len(target))
    target[start:end] += signal[: end - start]


def power(signal: Signal) -> float:
    """Return the mean square of a signal."""
    return float(np.mean(signal**2))


def reverberate(rng: np.random.Generator, signal: Signal, seconds: float, ratio: float) -> Signal:
    """Simulate a room: add a tail of noise that decays by 60 dB in `seconds` to the direct sound.

    `ratio` is the energy of the tail divided by the energy of the direct sound. The length of the signal and the times
    of its events do not change.
    """
    n = n_samples(seconds)
    tail = rng.standard_normal(n) * 10 ** (-3 * sample_times(n) / seconds)
    tail[: n_samples(0.003)] = 0.0  # the first reflection travels about a metre
    impulse = tail * np.sqrt(ratio / np.sum(tail**2))
    impulse[0] = 1.0
    size = _fast_size(len(signal) + n)
    return np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(impulse, size), size)[: len(signal)]


def add_background(rng: np.random.Generator, signal: Signal, snr: float) -> Signal:
    """Add noise of a random colour (white to brown) at a signal-to-noise ratio of `snr` dB."""
    slope = rng.uniform(0.0, 1.0)
    background = noise(rng, len(signal), lambda frequencies: np.maximum(frequencies, 50.0) ** -slope)
    return signal + background * np.sqrt(power(signal) / 10 ** (snr / 10))


def to_pcm(signal: Signal, level: float) -> NDArray[np.int16]:
    """Convert a signal to 16-bit samples. Its peak is at `level` dB relative to full scale, which must be negative."""
    assert level < 0, level
    scale = 10 ** (level / 20) / max(float(np.max(np.abs(signal))), 1e-9)
    return np.round(signal * scale * 32767).astype(np.int16)
