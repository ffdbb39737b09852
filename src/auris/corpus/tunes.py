"""Recipes of tasks on music: notes with exact pitch and loudness, melodies with known tempo and key, known tunes.

What could be learnt by heart is dealt to the splits by its hash, as sentences are: a note on its instrument, a melody,
a tune on an instrument from a root. So a test hears known tunes as they were never played in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from auris.corpus import music, vocal
from auris.corpus.draws import Rng, pick
from auris.corpus.grammar import split_of
from auris.corpus.music import Note
from auris.corpus.recording import Job, Recording, hear, record_class
from auris.corpus.signal import Signal, add, reverberate, to_pcm

PITCHED = tuple(name for name in music.INSTRUMENTS if name != "drum")
VELOCITIES = (25, 50, 75, 100, 127)  # those of NSynth (Engel et al. 2017)
_LOUDEST = -3.0  # decibels below full scale, of a note of velocity 127

# Beginnings of old songs that belong to everyone. A note is its name and, where they are not one, its beats.
TUNES = {
    "twinkle twinkle": "c c g g a a g:2 f f e e d d c:2",
    "ode to joy": "e e f g g f e d c c d e e:1.5 d:.5 d:2",
    "frere jacques": "c d e c c d e c e f g:2 e f g:2",
    "little lamb": "e d c d e e e:2 d d d:2 e g g:2",
    "london bridge": "g:1.5 a:.5 g f e f g:2 d e f:2 e f g:2",
    "row your boat": "c:1.5 c:1.5 c d:.5 e:1.5 e d:.5 e f:.5 g:3",
    "jingle bells": "e e e:2 e e e:2 e g c:1.5 d:.5 e:4",
    "au clair de la lune": "c c c d e:2 d:2 c e d d c:4",
}
_STEPS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}

MODES = {"major": (0, 4, 7, 12), "minor": (0, 3, 7, 12)}  # the chord that tells them apart, and an octave
_BEATS = {"fast": (0.13, 0.17), "slow": (0.32, 0.4)}  # seconds
_LENGTHS = {"fast": 10, "slow": 6}  # notes, so that both last about as long
DIRECTIONS = ("rising", "falling")

_CAPTIONS = (
    "a {tempo} {instrument} melody in a {mode} key",
    "{tempo} {instrument} music in a {mode} key",
    "a {instrument} plays a {tempo} melody in a {mode} key",
    "a {tempo} melody in a {mode} key, played on the {instrument}",
)
QUESTIONS = {
    "instrument": "Which instrument is playing?",
    "tempo": "Is the music fast or slow?",
    "mode": "Is the key major or minor?",
    "direction": "Is the melody rising or falling?",
}

# Grade D: settings of the synthesis, not what a listener feels and not what musicians play.
MOODS = {"happy": ("major", "fast"), "calm": ("major", "slow"), "tense": ("minor", "fast"), "sad": ("minor", "slow")}
GENRES = {  # eighths of a bar with a drum and with a note, the instrument, seconds of an eighth
    "rock": ("0246", "036", "guitar", 0.16),
    "techno": ("0246", "01234567", "organ", 0.11),
    "waltz": ("", "035", "piano", 0.2),
    "march": ("04", "0246", "trumpet", 0.18),
}


@dataclass(frozen=True)
class Melody:
    """Notes on an instrument, and what is true of them."""

    instrument: str
    tempo: str
    mode: str
    direction: str
    root: int
    steps: tuple[int, ...]

    @property
    def facts(self) -> dict[str, str]:
        """What can be said of it, by the keys of QUESTIONS."""
        return {name: getattr(self, name) for name in QUESTIONS}

    @property
    def content(self) -> str:
        return " ".join(self.facts.values())

    def play(self, rng: Rng) -> Signal:
        beat = rng.uniform(*_BEATS[self.tempo])
        return music.perform(self.instrument, rng, lay_out(self.root, [(step, 1.0) for step in self.steps], beat))


def draw_melody(rng: Rng, split: str, **wanted: str) -> Melody:
    """A random melody in C that belongs to `split`; `wanted` settles some of its facts."""
    options = {"instrument": PITCHED, "tempo": tuple(_BEATS), "mode": tuple(MODES), "direction": DIRECTIONS}
    while True:
        facts = {name: wanted.get(name) or pick(rng, values) for name, values in options.items()}
        chord, length = MODES[facts["mode"]], _LENGTHS[facts["tempo"]]
        # All of the chord is heard, whatever else is; then it goes one way.
        steps = sorted([*chord, *(int(step) for step in rng.choice(chord, length - len(chord)))])
        if facts["direction"] == "falling":
            steps.reverse()
        low, high = music.INSTRUMENTS[facts["instrument"]][1]
        # Of any key a small model would have to hear intervals; of C, major and minor differ by a note.
        roots = [root for root in range(low, high - chord[-1] + 1) if root % 12 == 0]
        melody = Melody(**facts, root=pick(rng, roots), steps=tuple(steps))
        if split_of(repr(melody)) == split:
            return melody


def lay_out(root: int, steps: Sequence[tuple[int, float]], beat: float) -> list[Note]:
    """Notes of (semitones above the root, beats) one after the other."""
    starts = 0.02 + beat * np.cumsum([0.0, *(beats for _, beats in steps)])
    started = zip(steps, starts[:-1], strict=True)
    return [Note(root + step, float(start), beat * beats) for (step, beats), start in started]


def read_tune(text: str) -> list[tuple[int, float]]:
    """Steps and beats of a tune as `TUNES` writes it."""
    notes = (note.partition(":") for note in text.split())
    return [(_STEPS[name], float(beats or 1)) for name, _, beats in notes]


def record_mic(job: Job, rng: Rng) -> Recording:
    return record_class(job, music.play(job.variant, rng, rng.uniform(1.2, 2.4)), rng)


def record_mna(job: Job, rng: Rng) -> Recording:
    """One note. Its level is its velocity's, on any instrument: a clip's peak is never brought to another."""
    low, high = music.INSTRUMENTS[job.variant][1]
    while True:
        pitch, velocity = int(rng.integers(low, high + 1)), pick(rng, VELOCITIES)
        if split_of(f"{job.variant} {pitch} {velocity}") == job.split:
            break
    bright = bool(rng.random() < 0.5)
    touch = rng.uniform(0.75, 1.0) if bright else rng.uniform(0.0, 0.25)
    signal = music.perform(job.variant, rng, [Note(pitch, 0.05, 0.7)], touch)
    sonic = ["bright" if bright else "dark"]
    if job.variant in music.STRUCK:
        sonic.append("percussive")
    if rng.random() < 0.4:
        signal = reverberate(rng, signal, seconds=0.5, ratio=0.5)
        sonic.append("reverb")
    labels = {"pitch": pitch, "velocity": velocity, "instrument": job.variant, "sonic": sonic}
    clip = to_pcm(signal, _LOUDEST + 20 * np.log10(velocity / 127))
    return Recording({"language": "en", "notes": labels}, (clip,))


def record_mr(job: Job, rng: Rng) -> Recording:
    """The beginning of a known tune."""
    while True:
        instrument = pick(rng, PITCHED)
        low, high = music.INSTRUMENTS[instrument][1]
        root = int(rng.integers(low, high - max(_STEPS.values()) + 1))
        if split_of(f"{job.variant} {instrument} {root}") == job.split:
            break
    notes = lay_out(root, read_tune(TUNES[job.variant]), rng.uniform(0.14, 0.22))
    return record_class(job, music.perform(instrument, rng, notes), rng)


def record_mc(job: Job, rng: Rng) -> Recording:
    melody = draw_melody(rng, job.split, mode=job.variant)
    captions = [caption.format(**melody.facts).replace("a organ", "an organ") for caption in _CAPTIONS]
    labels = {"language": "en", "text": captions[0], "references": captions}
    return Recording({**labels, "content": melody.content}, (hear(melody.play(rng), rng),))


def record_mqa(job: Job, rng: Rng) -> Recording:
    melody = draw_melody(rng, job.split)
    labels = {"language": "en", "question": QUESTIONS[job.variant], "text": melody.facts[job.variant]}
    return Recording({**labels, "content": melody.content}, (hear(melody.play(rng), rng),))


def record_smer(job: Job, rng: Rng) -> Recording:
    mode, tempo = MOODS[job.variant]
    melody = draw_melody(rng, job.split, mode=mode, tempo=tempo)
    return record_class(job, melody.play(rng), rng)


def record_mgr(job: Job, rng: Rng) -> Recording:
    drums, beats, instrument, eighth = GENRES[job.variant]
    low, high = music.INSTRUMENTS[instrument][1]
    root, chord = int(rng.integers(low, high - 12)), MODES["major"]

    def bars(pattern: str, draw: Callable[[], int]) -> list[Note]:
        places = [8 * bar + int(place) for bar in range(2) for place in pattern]
        return [Note(draw(), 0.02 + place * eighth, eighth) for place in places]

    parts = [music.perform(instrument, rng, bars(beats, lambda: root + pick(rng, chord)))]
    if drums:
        parts.append(music.perform("drum", rng, bars(drums, lambda: 60)))
    signal = np.zeros(max(map(len, parts)))
    for part in parts:
        add(signal, part, 0.0)
    return record_class(job, signal, rng)


def record_sid(job: Job, rng: Rng) -> Recording:
    melody = draw_melody(rng, job.split, tempo="slow")
    return record_class(job, vocal.sing(job.variant, rng, melody.steps, rng.uniform(0.3, 0.4)), rng)
