"""Synthesis of ten everyday sounds. Each call draws new parameters, so that no two clips of a class are alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from auris.corpus.draws import Rng
from auris.corpus.signal import (
    SAMPLE_RATE,
    Signal,
    add,
    band_gain,
    decay,
    fade,
    filter_spectrum,
    harmonics,
    n_samples,
    noise,
    peak_gain,
    sample_times,
    sine,
)


def make_sound(name: str, rng: Rng, seconds: float) -> Signal:
    """Return `seconds` of the sound `name` (a key of `SOUNDS`) with a root mean square of 1."""
    signal = fade(SOUNDS[name](rng, n_samples(seconds)), 0.005, 0.02)
    return signal / np.sqrt(np.mean(signal**2))


def _repeat(rng: Rng, n: int, period: float, jitter: float, make_strike: Callable[[int], Signal]) -> Signal:
    """Mix `make_strike(0)`, `make_strike(1)`, ... into `n` samples of silence.

    The interval between two strikes varies around `period` seconds, by up to the fraction `jitter` of it.
    """
    signal = np.zeros(n)
    at, index = rng.uniform(0.02, 0.1), 0
    while n_samples(at) < n:
        add(signal, make_strike(index), at)
        at += period * (1 + rng.uniform(-jitter, jitter))
        index += 1
    return signal


def make_dog(rng: Rng, n: int) -> Signal:
    """Make barks: harmonic bursts whose pitch rises and falls, with noise, filtered by a throat."""
    pitch, throat = rng.uniform(250, 480), rng.uniform(700, 1300)
    length = rng.uniform(0.12, 0.22)

    def make_bark(_: int) -> Signal:
        m = n_samples(length * rng.uniform(0.85, 1.15))
        progress = np.linspace(0, 1, m)
        frequency = pitch * rng.uniform(0.92, 1.08) * (0.75 + 0.6 * np.sin(np.pi * progress**0.6))
        voice = harmonics(frequency, m, lambda k: 1 / k**0.7)
        voice = filter_spectrum(voice, peak_gain(throat, 700, floor=0.08)) + 0.25 * noise(rng, m, band_gain(500, 3500))
        return voice * np.sin(np.pi * progress**0.5) ** 2

    return _repeat(rng, n, length + rng.uniform(0.15, 0.4), 0.2, make_bark)


def make_rain(rng: Rng, n: int) -> Signal:
    """Make a steady hiss with drops."""
    signal = noise(rng, n, band_gain(rng.uniform(900, 2000), rng.uniform(6000, 7800)))
    for _ in range(int(rng.uniform(40, 150) * n / SAMPLE_RATE)):
        m = n_samples(rng.uniform(0.004, 0.012))
        drop = sine(rng.uniform(1500, 6000), m) * decay(m, 0.003)
        add(signal, rng.uniform(1, 5) * drop, rng.uniform(0, n / SAMPLE_RATE))
    return signal


def make_siren(rng: Rng, n: int) -> Signal:
    """Make a tone that moves up and down."""
    low = rng.uniform(450, 700)
    high = low * rng.uniform(1.7, 2.4)
    cycles = rng.uniform(1.0, 2.6) * sample_times(n) + rng.random()
    swing = 0.5 - 0.5 * np.cos(2 * np.pi * cycles) if rng.random() < 0.5 else np.abs(2 * (cycles % 1) - 1)
    return harmonics(low + (high - low) * swing, n, lambda k: (k % 2 + 0.3) / k**1.5)


def make_clock(rng: Rng, n: int) -> Signal:
    """Make ticks and tocks: two alternating short resonances."""
    tick, tock = rng.uniform(2800, 5000), rng.uniform(1600, 2600)

    def make_strike(index: int) -> Signal:
        m = n_samples(0.05)
        frequency = (tick, tock)[index % 2]
        ring = sine(frequency, m) + 0.6 * sine(frequency * 1.52, m)
        return ring * decay(m, rng.uniform(0.004, 0.007)) + 0.4 * noise(rng, m, band_gain(2000, 7000)) * decay(m, 0.002)

    return _repeat(rng, n, rng.uniform(0.16, 0.3), 0.01, make_strike) + 1e-3 * rng.standard_normal(n)


def make_bell(rng: Rng, n: int) -> Signal:
    """Make one or two strokes of a bell, with long partials at the frequency ratios of a church bell."""
    hum, ring = rng.uniform(250, 600), rng.uniform(0.5, 1.2)
    # Each partial: frequency ratio, level, relative decay time.
    partials = ((0.5, 0.5, 1.0), (1.0, 1.0, 0.8), (1.19, 0.8, 0.6), (1.5, 0.5, 0.5), (2.0, 0.9, 0.45), (2.74, 0.4, 0.3))
    partials += ((3.76, 0.3, 0.2), (5.1, 0.2, 0.12))
    detune = rng.normal(1, 0.004, len(partials))

    def make_strike(_: int) -> Signal:
        tones = (
            level * sine(2 * hum * ratio * factor, n) * decay(n, ring * decay_time)
            for (ratio, level, decay_time), factor in zip(partials, detune, strict=True)
        )
        return sum(tones, np.zeros(n))

    return _repeat(rng, n, rng.uniform(0.7, 1.5), 0.02, make_strike)


def make_engine(rng: Rng, n: int) -> Signal:
    """Make a motor: uneven low pulses whose speed drifts, and a rattle in phase with them."""
    idle = rng.uniform(28, 60)
    frequency = idle * (1 + rng.uniform(-0.3, 0.5) * np.linspace(0, 1, n) + 0.02 * sine(rng.uniform(3, 7), n))
    phase = np.cumsum(frequency) / SAMPLE_RATE
    pulses = sum((np.cos(2 * np.pi * k * phase + k * k) / k**0.8 for k in range(1, 25)), np.zeros(n))
    rattle = noise(rng, n, band_gain(200, 1500)) * (0.5 + 0.5 * np.cos(2 * np.pi * phase)) ** 3
    return filter_spectrum(pulses, band_gain(30, rng.uniform(350, 700))) + 0.5 * rattle


def make_bird(rng: Rng, n: int) -> Signal:
    """Make chirps: short whistles that glide between 2.5 and 6 kHz."""
    centre, glide = rng.uniform(3000, 5000), rng.choice((-1, 1)) * rng.uniform(400, 1200)
    length, trill = rng.uniform(0.05, 0.12), rng.uniform(0, 250)

    def make_chirp(_: int) -> Signal:
        m = n_samples(length * rng.uniform(0.8, 1.2))
        progress = np.linspace(0, 1, m)
        frequency = centre * rng.uniform(0.95, 1.05) + glide * (progress - 0.5) + trill * sine(40.0, m)
        return sine(frequency, m) * np.sin(np.pi * progress) ** 1.5

    return _repeat(rng, n, length + rng.uniform(0.04, 0.18), 0.25, make_chirp) + 1e-3 * rng.standard_normal(n)


def make_wind(rng: Rng, n: int) -> Signal:
    """Make gusts: low noise with a whistle whose level and pitch vary."""
    gust = 0.6 + 0.4 * sine(rng.uniform(0.5, 1.5), n)
    howl = rng.uniform(300, 700) * (1 + 0.25 * sine(rng.uniform(0.4, 1.2), n))
    breath = noise(rng, n, band_gain(60, rng.uniform(350, 800)))
    # Noise below 25 Hz is shifted to the frequency of the whistle by amplitude modulation.
    whistle = noise(rng, n, band_gain(1, 25)) * sine(howl, n)
    return gust * (breath + rng.uniform(0.4, 1.0) * gust * whistle)


def make_footsteps(rng: Rng, n: int) -> Signal:
    """Make steps: a thump of the heel, then a scrape of the sole."""
    floor, scuff = rng.uniform(70, 140), rng.uniform(700, 2200)

    def make_step(_: int) -> Signal:
        m = n_samples(0.16)
        thump = sine(floor * (1 + decay(m, 0.015)), m) * decay(m, rng.uniform(0.02, 0.04))
        sole = np.zeros(m)
        scrape = 0.5 * noise(rng, n_samples(0.08), peak_gain(scuff, 900)) * decay(n_samples(0.08), 0.02)
        add(sole, scrape, rng.uniform(0.03, 0.06))
        return thump * 1.5 + sole

    return _repeat(rng, n, rng.uniform(0.32, 0.55), 0.06, make_step) + 1e-3 * rng.standard_normal(n)


def make_alarm(rng: Rng, n: int) -> Signal:
    """Make electronic beeps: a square-like tone of one pitch, on and off."""
    tone = harmonics(rng.uniform(900, 2200), n, lambda k: (k % 2) / k)
    on = rng.uniform(0.45, 0.65)
    gate = ((rng.uniform(3.0, 6.0) * sample_times(n)) % 1 < on).astype(np.float64)
    smooth = np.hanning(n_samples(0.006))
    return tone * np.convolve(gate, smooth / smooth.sum(), mode="same")


SOUNDS: dict[str, Callable[[Rng, int], Signal]] = {
    "dog": make_dog,
    "rain": make_rain,
    "siren": make_siren,
    "clock": make_clock,
    "bell": make_bell,
    "engine": make_engine,
    "bird": make_bird,
    "wind": make_wind,
    "footsteps": make_footsteps,
    "alarm": make_alarm,
}
