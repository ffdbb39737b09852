"""Vocal sounds and singing, roughly: shapes of noise and of formants that nobody made, for tests of the format only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from auris.corpus.draws import Rng
from auris.corpus.signal import Signal, add, band, decay, harmonics, noise, peak, ramp, samples, shape, sine

# First two formants of a, e, i, o, u in Hz (Peterson and Barney 1952, rounded).
_VOWELS = ((730, 1090), (530, 1840), (270, 2290), (570, 840), (300, 870))


def make(name: str, rng: Rng) -> Signal:
    """About a second of the vocal sound `name` (a key of `VOCAL_SOUNDS`)."""
    return ramp(VOCAL_SOUNDS[name](rng), 0.005, 0.05)


def _string(pieces: Sequence[Signal], period: float) -> Signal:
    """Pieces one after the other, every `period` seconds."""
    signal = np.zeros(samples(period) * (len(pieces) - 1) + max(map(len, pieces)))
    for place, piece in enumerate(pieces):
        add(signal, piece, place * period)
    return signal


def make_laughter(rng: Rng) -> Signal:
    """A string of syllables, voiced after a breath."""
    n, pitch, first = samples(0.15), rng.uniform(180, 320), rng.uniform(600, 900)

    def ha(step: int) -> Signal:
        voice = shape(harmonics(pitch * 0.96**step, n, lambda k: 1 / k), peak(first, 300, floor=0.1))
        return ramp(voice + 0.3 * noise(rng, n, band(800, 4000)), 0.04, 0.06)

    return _string([ha(step) for step in range(int(rng.integers(4, 7)))], rng.uniform(0.17, 0.24))


def make_sigh(rng: Rng) -> Signal:
    """A breath that swells quickly and dies slowly."""
    n = samples(rng.uniform(0.9, 1.4))
    return noise(rng, n, band(300, rng.uniform(1500, 2500))) * ramp(decay(n, 0.4), 0.15, 0.3)


def make_cough(rng: Rng) -> Signal:
    """One to three explosions."""
    n = samples(0.3)
    bursts = [noise(rng, n, band(400, 4000)) * decay(n, rng.uniform(0.04, 0.08)) for _ in range(rng.integers(1, 4))]
    return _string(bursts, rng.uniform(0.3, 0.4))


def make_throat_clearing(rng: Rng) -> Signal:
    """A low rattle."""
    n = samples(rng.uniform(0.5, 0.8))
    return noise(rng, n, band(150, 1200)) * (0.5 + 0.5 * sine(rng.uniform(25, 40), n)) ** 2


def make_sneeze(rng: Rng) -> Signal:
    """A breath that rises, and a sharp burst."""
    breath, burst = samples(rng.uniform(0.4, 0.6)), samples(0.35)
    drawn = 0.3 * noise(rng, breath, band(1000, 4000)) * np.linspace(0, 1, breath) ** 2
    return np.concatenate((drawn, 2 * noise(rng, burst, band(1500, 7500)) * decay(burst, 0.07)))


def make_sniff(rng: Rng) -> Signal:
    """One or two short drafts of high noise."""
    n = samples(rng.uniform(0.2, 0.3))
    drafts = [noise(rng, n, band(2500, 7500)) * np.hanning(n) for _ in range(rng.integers(1, 3))]
    return _string(drafts, rng.uniform(0.4, 0.5))


# The classes of VocalSound (Gong et al. 2022).
VOCAL_SOUNDS: dict[str, Callable[[Rng], Signal]] = {
    "laughter": make_laughter,
    "sigh": make_sigh,
    "cough": make_cough,
    "throat clearing": make_throat_clearing,
    "sneeze": make_sneeze,
    "sniff": make_sniff,
}

# Who sings: lowest note as a MIDI number, formants relative to the table's, depth of the vibrato.
SINGERS = {"anna": (60, 1.15, 0.012), "peter": (45, 0.95, 0.006), "maria": (55, 1.05, 0.02), "david": (48, 1.0, 0.0)}


def sing(singer: str, rng: Rng, steps: Sequence[int], beat: float) -> Signal:
    """Notes `steps` semitones above the singer's lowest one, a vowel and `beat` seconds each."""
    low, size, depth = SINGERS[singer]
    sung = []
    for step in steps:
        n = samples(beat)
        pitch = 440 * 2 ** ((low + step - 69) / 12) * (1 + depth * sine(5.5, n))
        first, second = _VOWELS[int(rng.integers(len(_VOWELS)))]
        formants = (peak(size * first, 120), peak(size * second, 180))
        tone = harmonics(pitch, n, lambda k: 1 / k)
        sung.append(ramp(shape(tone, lambda f, formants=formants: 0.02 + sum(g(f) for g in formants)), 0.03, 0.04))
    return np.concatenate(sung)
