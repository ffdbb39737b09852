"""Rough synthesis of vocal sounds and singing from noise and formants. Meant for tests of the format only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from auris.corpus.draws import Rng
from auris.corpus.signal import Signal, add, add_gains, band, decay, harmonics, noise, peak, ramp, samples, shape, sine

# First two formants of a, e, i, o and u in Hz (Peterson and Barney 1952, rounded).
_VOWELS = ((730, 1090), (530, 1840), (270, 2290), (570, 840), (300, 870))


def make(name: str, rng: Rng) -> Signal:
    """Return about a second of the vocal sound `name` (a key of `VOCAL_SOUNDS`)."""
    return ramp(VOCAL_SOUNDS[name](rng), 0.005, 0.05)


def _join(pieces: Sequence[Signal], period: float) -> Signal:
    """Mix pieces in sequence, one every `period` seconds."""
    signal = np.zeros(samples(period) * (len(pieces) - 1) + max(map(len, pieces)))
    for index, piece in enumerate(pieces):
        add(signal, piece, index * period)
    return signal


def make_laughter(rng: Rng) -> Signal:
    """Make laughter: a sequence of voiced syllables that begin with a breath."""
    n, pitch, first = samples(0.15), rng.uniform(180, 320), rng.uniform(600, 900)

    def ha(step: int) -> Signal:
        voice = shape(harmonics(pitch * 0.96**step, n, lambda k: 1 / k), peak(first, 300, floor=0.1))
        return ramp(voice + 0.3 * noise(rng, n, band(800, 4000)), 0.04, 0.06)

    return _join([ha(step) for step in range(int(rng.integers(4, 7)))], rng.uniform(0.17, 0.24))


def make_sigh(rng: Rng) -> Signal:
    """Make a sigh: a breath that swells quickly and fades slowly."""
    n = samples(rng.uniform(0.9, 1.4))
    return noise(rng, n, band(300, rng.uniform(1500, 2500))) * ramp(decay(n, 0.4), 0.15, 0.3)


def make_cough(rng: Rng) -> Signal:
    """Make a cough of one to three bursts."""
    n = samples(0.3)
    bursts = [noise(rng, n, band(400, 4000)) * decay(n, rng.uniform(0.04, 0.08)) for _ in range(rng.integers(1, 4))]
    return _join(bursts, rng.uniform(0.3, 0.4))


def make_throat_clearing(rng: Rng) -> Signal:
    """Make throat clearing: a low rattle."""
    n = samples(rng.uniform(0.5, 0.8))
    return noise(rng, n, band(150, 1200)) * (0.5 + 0.5 * sine(rng.uniform(25, 40), n)) ** 2


def make_sneeze(rng: Rng) -> Signal:
    """Make a sneeze: a rising breath and a sharp burst."""
    n_breath, n_burst = samples(rng.uniform(0.4, 0.6)), samples(0.35)
    breath = 0.3 * noise(rng, n_breath, band(1000, 4000)) * np.linspace(0, 1, n_breath) ** 2
    return np.concatenate((breath, 2 * noise(rng, n_burst, band(1500, 7500)) * decay(n_burst, 0.07)))


def make_sniff(rng: Rng) -> Signal:
    """Make a sniff: one or two short breaths of high-frequency noise."""
    n = samples(rng.uniform(0.2, 0.3))
    breaths = [noise(rng, n, band(2500, 7500)) * np.hanning(n) for _ in range(rng.integers(1, 3))]
    return _join(breaths, rng.uniform(0.4, 0.5))


# The classes of VocalSound (Gong et al. 2022).
VOCAL_SOUNDS: dict[str, Callable[[Rng], Signal]] = {
    "laughter": make_laughter,
    "sigh": make_sigh,
    "cough": make_cough,
    "throat clearing": make_throat_clearing,
    "sneeze": make_sneeze,
    "sniff": make_sniff,
}

# Singers: lowest note as a MIDI number, factor of the formants, depth of the vibrato.
SINGERS = {"anna": (60, 1.15, 0.012), "peter": (45, 0.95, 0.006), "maria": (55, 1.05, 0.02), "david": (48, 1.0, 0.0)}


def sing(singer: str, rng: Rng, steps: Sequence[int], beat: float) -> Signal:
    """Sing notes `steps` semitones above the singer's lowest one, each with one vowel and `beat` seconds long."""
    low, size, depth = SINGERS[singer]
    notes = []
    for step in steps:
        n = samples(beat)
        pitch = 440 * 2 ** ((low + step - 69) / 12) * (1 + depth * sine(5.5, n))
        first, second = _VOWELS[int(rng.integers(len(_VOWELS)))]
        formants = (peak(size * first, 120), peak(size * second, 180))
        tone = harmonics(pitch, n, lambda k: 1 / k)
        notes.append(ramp(shape(tone, add_gains(formants, floor=0.02)), 0.03, 0.04))
    return np.concatenate(notes)
