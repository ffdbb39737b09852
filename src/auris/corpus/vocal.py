"""Rough synthesis of vocal sounds and singing from noise and formants.

It is meant for checking that the tasks of such sounds work, not for training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from auris.corpus.draws import Rng
from auris.corpus.signal import (
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
    sine,
    sum_gains,
)

# First two formants of a, e, i, o and u in Hz (Peterson and Barney 1952, rounded).
_VOWELS = ((730, 1090), (530, 1840), (270, 2290), (570, 840), (300, 870))


def make_vocal_sound(name: str, rng: Rng) -> Signal:
    """Return about a second of the vocal sound `name` (a key of `VOCAL_SOUNDS`)."""
    return fade(VOCAL_SOUNDS[name](rng), 0.005, 0.05)


def _mix_in_sequence(pieces: Sequence[Signal], period: float) -> Signal:
    """Mix `pieces` into one signal. A piece begins every `period` seconds."""
    signal = np.zeros(n_samples(period) * (len(pieces) - 1) + max(map(len, pieces)))
    for index, piece in enumerate(pieces):
        add(signal, piece, index * period)
    return signal


def make_laughter(rng: Rng) -> Signal:
    """Make laughter: a sequence of voiced syllables that begin with a breath."""
    n, pitch, formant = n_samples(0.15), rng.uniform(180, 320), rng.uniform(600, 900)

    def make_syllable(index: int) -> Signal:
        voice = filter_spectrum(harmonics(pitch * 0.96**index, n, lambda k: 1 / k), peak_gain(formant, 300, floor=0.1))
        return fade(voice + 0.3 * noise(rng, n, band_gain(800, 4000)), 0.04, 0.06)

    return _mix_in_sequence([make_syllable(index) for index in range(int(rng.integers(4, 7)))], rng.uniform(0.17, 0.24))


def make_sigh(rng: Rng) -> Signal:
    """Make a sigh: a breath that swells quickly and fades slowly."""
    n = n_samples(rng.uniform(0.9, 1.4))
    return noise(rng, n, band_gain(300, rng.uniform(1500, 2500))) * fade(decay(n, 0.4), 0.15, 0.3)


def make_cough(rng: Rng) -> Signal:
    """Make a cough of one to three bursts."""
    n = n_samples(0.3)
    bursts = [
        noise(rng, n, band_gain(400, 4000)) * decay(n, rng.uniform(0.04, 0.08)) for _ in range(rng.integers(1, 4))
    ]
    return _mix_in_sequence(bursts, rng.uniform(0.3, 0.4))


def make_throat_clearing(rng: Rng) -> Signal:
    """Make throat clearing: a low rattle."""
    n = n_samples(rng.uniform(0.5, 0.8))
    return noise(rng, n, band_gain(150, 1200)) * (0.5 + 0.5 * sine(rng.uniform(25, 40), n)) ** 2


def make_sneeze(rng: Rng) -> Signal:
    """Make a sneeze: a rising breath and a sharp burst."""
    n_breath, n_burst = n_samples(rng.uniform(0.4, 0.6)), n_samples(0.35)
    breath = 0.3 * noise(rng, n_breath, band_gain(1000, 4000)) * np.linspace(0, 1, n_breath) ** 2
    return np.concatenate((breath, 2 * noise(rng, n_burst, band_gain(1500, 7500)) * decay(n_burst, 0.07)))


def make_sniff(rng: Rng) -> Signal:
    """Make a sniff: one or two short breaths of high-frequency noise."""
    n = n_samples(rng.uniform(0.2, 0.3))
    breaths = [noise(rng, n, band_gain(2500, 7500)) * np.hanning(n) for _ in range(rng.integers(1, 3))]
    return _mix_in_sequence(breaths, rng.uniform(0.4, 0.5))


# The classes of VocalSound (Gong et al. 2022).
VOCAL_SOUNDS: dict[str, Callable[[Rng], Signal]] = {
    "laughter": make_laughter,
    "sigh": make_sigh,
    "cough": make_cough,
    "throat clearing": make_throat_clearing,
    "sneeze": make_sneeze,
    "sniff": make_sniff,
}

# Each singer: the lowest note as a MIDI note number, a factor by which the formants are multiplied, and the depth of
# the vibrato.
SINGERS = {"anna": (60, 1.15, 0.012), "peter": (45, 0.95, 0.006), "maria": (55, 1.05, 0.02), "david": (48, 1.0, 0.0)}


def sing(singer: str, rng: Rng, steps: Sequence[int], beat: float) -> Signal:
    """Sing notes with random vowels.

    Args:
        singer: Name of the singer, a key of `SINGERS`.
        rng: Random generator.
        steps: Semitones of each note above the singer's lowest note.
        beat: Duration of each note in seconds.
    """
    low, formant_factor, depth = SINGERS[singer]
    notes = []
    for step in steps:
        n = n_samples(beat)
        frequency = 440 * 2 ** ((low + step - 69) / 12) * (1 + depth * sine(5.5, n))
        first, second = _VOWELS[int(rng.integers(len(_VOWELS)))]
        formants = (peak_gain(formant_factor * first, 120), peak_gain(formant_factor * second, 180))
        tone = harmonics(frequency, n, lambda k: 1 / k)
        notes.append(fade(filter_spectrum(tone, sum_gains(formants, floor=0.02)), 0.03, 0.04))
    return np.concatenate(notes)
