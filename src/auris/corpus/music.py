"""Synthesis of eight instruments and of short phrases on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    sum_gains,
)

_PENTATONIC = (0, 2, 4, 7, 9)  # semitones above the root; in any order they sound like a melody
_RING = 0.25  # seconds for which a note may continue after its duration, while the next note sounds


@dataclass(frozen=True)
class Note:
    """A MIDI note number (60 = middle C), and its start and duration in seconds."""

    pitch: int
    start: float
    seconds: float

    @property
    def frequency(self) -> float:
        """Frequency in Hz."""
        return 440 * 2 ** ((self.pitch - 69) / 12)


def play_notes(name: str, rng: Rng, notes: Sequence[Note], touch: float | None = None) -> Signal:
    """Play notes on an instrument.

    Args:
        name: Name of the instrument, a key of `INSTRUMENTS`.
        rng: Random generator.
        notes: Notes to play.
        touch: Brightness from 0 (dull) to 1 (bright); None to draw it.

    Returns:
        The signal, with a root mean square of 1.
    """
    # Labels follow from the pitch of these notes, so a guitar must be in tune. No label follows from the pitch of the
    # notes in `play_random_phrase`, so its guitar may be out of tune.
    play_note = play_guitar_in_tune if name == "guitar" else INSTRUMENTS[name][0]
    touch = rng.uniform(0, 1) if touch is None else touch
    signal = np.zeros(n_samples(max(note.start + note.seconds for note in notes) + _RING))
    cache: dict[tuple[int, float], Signal] = {}  # a repeated note is synthesised once, which halves the time
    for note in notes:
        key = note.pitch, note.seconds
        if key not in cache:
            cache[key] = play_note(rng, note.frequency, note.seconds, touch)
        add(signal, cache[key], note.start)
    signal = fade(signal, 0.002, 0.03)
    return signal / np.sqrt(np.mean(signal**2))


def play_random_phrase(name: str, rng: Rng, seconds: float) -> Signal:
    """Play a phrase of random notes that is `seconds` long on an instrument.

    Args:
        name: Name of the instrument, a key of `INSTRUMENTS`.
        rng: Random generator.
        seconds: Duration of the phrase.

    Returns:
        The signal, with a root mean square of 1.
    """
    play_note, (low, high) = INSTRUMENTS[name]
    touch = rng.uniform(0, 1)  # brightness, which is the same for all notes of the phrase
    signal = np.zeros(n_samples(seconds))
    root = rng.integers(low, high - 9)
    at, beat = 0.02, rng.uniform(0.18, 0.36)
    while at < seconds - 0.15:
        length = min(beat * rng.choice((1, 1, 2)), seconds - at)
        frequency = 440 * 2 ** ((root + rng.choice(_PENTATONIC) - 69) / 12)
        add(signal, rng.uniform(0.7, 1.0) * play_note(rng, frequency, length, touch), at)
        at += length
    signal = fade(signal, 0.002, 0.03)
    return signal / np.sqrt(np.mean(signal**2))


def play_piano(rng: Rng, frequency: float, seconds: float, touch: float) -> Signal:
    """Play struck strings: slightly sharp partials that decay faster the higher they are, and the knock of a hammer."""
    n = n_samples(seconds + _RING)
    # Stiffness B of the middle strings of an upright (Fletcher 1964); it sharpens partial k by sqrt(1 + B k^2).
    stiffness = 4e-4
    note = np.zeros(n)
    for k in range(1, min(int(7000 // frequency), 16) + 1):
        partial = k * frequency * np.sqrt(1 + stiffness * k * k)
        note += sine(partial, n) * decay(n, 0.7 / (1 + 0.35 * k)) / k ** (1.6 - 0.5 * touch)
    n_knock = n_samples(0.03)
    note[:n_knock] += 0.15 * noise(rng, n_knock, band_gain(100, 1200)) * decay(n_knock, 0.006)
    return fade(note, 0.003, 0.05)


def play_guitar(rng: Rng, frequency: float, seconds: float, touch: float) -> Signal:
    """Play a plucked string (Karplus and Strong 1983): a burst of noise in a loop that averages adjacent samples."""
    n = n_samples(seconds + _RING)
    period = round(SAMPLE_RATE / frequency)
    loop = filter_spectrum(rng.standard_normal(period), band_gain(20, 2500 + 3500 * touch))
    cycles = [loop]
    for _ in range(n // period):
        loop = 0.996 * 0.5 * (loop + np.roll(loop, 1))
        cycles.append(loop)
    return fade(np.concatenate(cycles)[:n], 0.001, 0.05)


def play_guitar_in_tune(rng: Rng, frequency: float, seconds: float, touch: float) -> Signal:
    """Play a plucked string in tune.

    The output of `play_guitar` is up to half a semitone flat: the period of its loop is rounded to a whole number of
    samples, and averaging lengthens it by half a sample. Here the output is sped up to compensate for both.
    """
    speed = frequency * (round(SAMPLE_RATE / frequency) + 0.5) / SAMPLE_RATE
    note = play_guitar(rng, frequency, seconds * speed, touch)
    return np.interp(np.arange(n_samples(seconds + _RING)) * speed, np.arange(len(note)), note, right=0.0)


def play_organ(rng: Rng, frequency: float, seconds: float, touch: float) -> Signal:
    """Play organ pipes, which do not decay, with stops of 8', 4', 2 2/3', 2' and 1'."""
    n = n_samples(seconds)
    amplitudes = {1: 1.0, 2: 0.8, 3: 0.3 + 0.4 * touch, 4: 0.6, 8: 0.2 + 0.3 * touch}
    return fade(harmonics(frequency, n, lambda k: amplitudes.get(k, 0.0)), 0.02, 0.03)


def play_flute(rng: Rng, frequency: float, seconds: float, touch: float) -> Signal:
    """Play a flute: nearly a sine, with breath noise and a slow vibrato."""
    n = n_samples(seconds)
    vibrato = 1 + 0.006 * sine(rng.uniform(4.5, 5.5), n)
    tone = harmonics(frequency * vibrato, n, lambda k: (1.0, 0.25 + 0.15 * touch, 0.06)[k - 1] if k <= 3 else 0.0)
    return fade(tone + 0.12 * noise(rng, n, peak_gain(1.5 * frequency, 2 * frequency)), 0.06, 0.05)


def play_violin(rng: Rng, frequency: float, seconds: float, touch: float) -> Signal:
    """Play a bowed string: a sawtooth with a deep vibrato, filtered by the resonances of the body."""
    n = n_samples(seconds)
    depth = 0.012 * np.minimum(sample_times(n) / 0.1, 1)  # the vibrato reaches its full depth after 0.1 s
    saw = harmonics(frequency * (1 + depth * sine(rng.uniform(5.5, 7.0), n)), n, lambda k: 1 / k)
    saw += 0.03 * noise(rng, n, band_gain(2000, 6000))
    resonances = (peak_gain(480, 150), peak_gain(1200, 500), peak_gain(2800, 900 + 600 * touch))
    return fade(filter_spectrum(saw, sum_gains(resonances, floor=0.15)), 0.07, 0.05)


def play_trumpet(rng: Rng, frequency: float, seconds: float, touch: float) -> Signal:
    """Play a trumpet. Louder brass is brighter, so the harmonics appear one after the other (Risset 1966)."""
    n = n_samples(seconds)
    swell = np.minimum(sample_times(n) / 0.05, 1) * (0.8 + 0.2 * decay(n, 0.1))
    note = harmonics(frequency, n, lambda k: swell ** (1 + 0.45 * k) * k**0.3 * np.exp(-k / (3.5 + 2 * touch)))
    return fade(filter_spectrum(note, peak_gain(1300, 1500, floor=0.3)), 0.01, 0.04)


def play_drum(rng: Rng, frequency: float, seconds: float, touch: float) -> Signal:
    """Play a bass drum or a snare drum; the frequency has no effect."""
    n = n_samples(max(seconds, 0.2))
    if rng.random() < 0.5:
        return 1.5 * sine(50 + 25 * touch + 120 * decay(n, 0.02), n) * decay(n, 0.09)
    skin = sine(170 + 50 * touch, n) * decay(n, 0.05)
    return skin + 0.8 * noise(rng, n, band_gain(1200, 7500)) * decay(n, 0.06)


def play_xylophone(rng: Rng, frequency: float, seconds: float, touch: float) -> Signal:
    """Play a xylophone bar: a short note with a second partial at three times the frequency."""
    n = n_samples(seconds + _RING)
    bar = sine(frequency, n) * decay(n, 0.12) + 0.5 * sine(3 * frequency, n) * decay(n, 0.05)
    n_click = n_samples(0.01)
    bar[:n_click] += (0.2 + 0.4 * touch) * noise(rng, n_click, band_gain(2500, 7000)) * decay(n_click, 0.002)
    return fade(bar, 0.0005, 0.02)


# Each instrument: the function that plays a note (random generator, frequency in Hz, seconds, touch), and the lowest
# and highest note as MIDI note numbers (60 = middle C).
INSTRUMENTS: dict[str, tuple[Callable[[Rng, float, float, float], Signal], tuple[int, int]]] = {
    "piano": (play_piano, (48, 76)),
    "guitar": (play_guitar, (45, 72)),
    "organ": (play_organ, (48, 76)),
    "flute": (play_flute, (67, 91)),
    "violin": (play_violin, (57, 86)),
    "trumpet": (play_trumpet, (55, 79)),
    "drum": (play_drum, (48, 76)),
    "xylophone": (play_xylophone, (77, 96)),
}
PERCUSSIVE = ("piano", "guitar", "xylophone")  # struck or plucked instruments, whose notes decay from the beginning
