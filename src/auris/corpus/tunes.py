"""Recipes of tasks on music: notes with exact pitch and loudness, melodies with known tempo and key, known tunes.

Everything that a model could memorise is assigned to a split by its hash, as sentences are: a note of an instrument, a
melody, a tune on an instrument from a root. Test rows therefore have known tunes in versions that training never has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from auris.corpus import music, vocal
from auris.corpus.draws import Rng, pick
from auris.corpus.grammar import split_of
from auris.corpus.music import Note
from auris.corpus.recording import Job, Recording, record_class, record_sound
from auris.corpus.signal import Signal, add, reverberate, to_pcm

PITCHED = tuple(name for name in music.INSTRUMENTS if name != "drum")
VELOCITIES = (25, 50, 75, 100, 127)  # as in NSynth (Engel et al. 2017)
_LOUDEST = -3.0  # peak of a note of velocity 127 in decibels relative to full scale

# Beginnings of songs in the public domain. A note is its name and, if it is longer or shorter than one beat, its beats.
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

MODES = {"major": (0, 4, 7, 12), "minor": (0, 3, 7, 12)}  # semitones of the chord and the octave
_BEATS = {"fast": (0.13, 0.17), "slow": (0.32, 0.4)}  # range in seconds
_LENGTHS = {"fast": 10, "slow": 6}  # number of notes; both give melodies of similar duration
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

# Grade D: these are settings of the synthesis. They represent neither the feelings of listeners nor real music.
MOODS = {"happy": ("major", "fast"), "calm": ("major", "slow"), "tense": ("minor", "fast"), "sad": ("minor", "slow")}
# Each genre: the eighths of a bar with a drum, the eighths with a note, the instrument, the seconds of an eighth.
GENRES = {
    "rock": ("0246", "036", "guitar", 0.16),
    "techno": ("0246", "01234567", "organ", 0.11),
    "waltz": ("", "035", "piano", 0.2),
    "march": ("04", "0246", "trumpet", 0.18),
}


@dataclass(frozen=True)
class Melody:
    """Notes on an instrument, and their properties.

    The split of a melody is the hash of its `repr`, so the names of class and fields must not change.
    """

    instrument: str
    tempo: str
    mode: str
    direction: str
    root: int
    steps: tuple[int, ...]

    @property
    def facts(self) -> dict[str, str]:
        """Answers to the questions of `QUESTIONS`."""
        return {name: getattr(self, name) for name in QUESTIONS}

    @property
    def content(self) -> str:
        """Description of the melody for the row."""
        return " ".join(self.facts.values())

    def play(self, rng: Rng) -> Signal:
        """Play the melody at a tempo drawn from its range."""
        beat = rng.uniform(*_BEATS[self.tempo])
        return music.perform(self.instrument, rng, lay_out(self.root, [(step, 1.0) for step in self.steps], beat))


def draw_melody(rng: Rng, split: str, **fixed: str) -> Melody:
    """Draw a melody in C that belongs to `split`; `fixed` sets some of its facts."""
    options = {"instrument": PITCHED, "tempo": tuple(_BEATS), "mode": tuple(MODES), "direction": DIRECTIONS}
    while True:
        facts = {name: fixed.get(name) or pick(rng, values) for name, values in options.items()}
        chord, length = MODES[facts["mode"]], _LENGTHS[facts["tempo"]]
        # A melody contains all notes of the chord and further ones, in rising or falling order.
        steps = sorted([*chord, *(int(step) for step in rng.choice(chord, length - len(chord)))])
        if facts["direction"] == "falling":
            steps.reverse()
        low, high = music.INSTRUMENTS[facts["instrument"]][1]
        # With the root C, major and minor differ by one note. A free root would force a small model to learn intervals.
        roots = [root for root in range(low, high - chord[-1] + 1) if root % 12 == 0]
        melody = Melody(**facts, root=pick(rng, roots), steps=tuple(steps))
        if split_of(repr(melody)) == split:
            return melody


def lay_out(root: int, steps: Sequence[tuple[int, float]], beat: float) -> list[Note]:
    """Place notes, given as (semitones above the root, beats), one after the other."""
    starts = 0.02 + beat * np.cumsum([0.0, *(beats for _, beats in steps)])
    timed_steps = zip(steps, starts[:-1], strict=True)
    return [Note(root + step, float(start), beat * beats) for (step, beats), start in timed_steps]


def read_tune(text: str) -> list[tuple[int, float]]:
    """Parse a tune of `TUNES` into semitones and beats."""
    notes = (note.partition(":") for note in text.split())
    return [(_STEPS[name], float(beats or 1)) for name, _, beats in notes]


def record_mic(job: Job, rng: Rng) -> Recording:
    """Record a row of `mic`: a phrase on one instrument."""
    return record_class(job, music.play(job.variant, rng, rng.uniform(1.2, 2.4)), rng)


def record_mna(job: Job, rng: Rng) -> Recording:
    """Record a row of `mna`: one note. The level of the clip depends only on the velocity."""
    low, high = music.INSTRUMENTS[job.variant][1]
    while True:
        pitch, velocity = int(rng.integers(low, high + 1)), pick(rng, VELOCITIES)
        if split_of(f"{job.variant} {pitch} {velocity}") == job.split:
            break
    is_bright = rng.random() < 0.5
    touch = rng.uniform(0.75, 1.0) if is_bright else rng.uniform(0.0, 0.25)
    signal = music.perform(job.variant, rng, [Note(pitch, 0.05, 0.7)], touch)
    sonic = ["bright" if is_bright else "dark"]
    if job.variant in music.STRUCK:
        sonic.append("percussive")
    if rng.random() < 0.4:
        signal = reverberate(rng, signal, seconds=0.5, ratio=0.5)
        sonic.append("reverb")
    labels = {"pitch": pitch, "velocity": velocity, "instrument": job.variant, "sonic": sonic}
    clip = to_pcm(signal, _LOUDEST + 20 * np.log10(velocity / 127))
    return Recording({"language": "en", "notes": labels}, (clip,))


def record_mr(job: Job, rng: Rng) -> Recording:
    """Record a row of `mr`: the beginning of a known tune."""
    while True:
        instrument = pick(rng, PITCHED)
        low, high = music.INSTRUMENTS[instrument][1]
        root = int(rng.integers(low, high - max(_STEPS.values()) + 1))
        if split_of(f"{job.variant} {instrument} {root}") == job.split:
            break
    notes = lay_out(root, read_tune(TUNES[job.variant]), rng.uniform(0.14, 0.22))
    return record_class(job, music.perform(instrument, rng, notes), rng)


def record_mc(job: Job, rng: Rng) -> Recording:
    """Record a row of `mc`: a melody with captions."""
    melody = draw_melody(rng, job.split, mode=job.variant)
    captions = [caption.format(**melody.facts).replace("a organ", "an organ") for caption in _CAPTIONS]
    labels = {"language": "en", "text": captions[0], "references": captions}
    return Recording({**labels, "content": melody.content}, (record_sound(melody.play(rng), rng),))


def record_mqa(job: Job, rng: Rng) -> Recording:
    """Record a row of `mqa`: a melody with a question."""
    melody = draw_melody(rng, job.split)
    labels = {"language": "en", "question": QUESTIONS[job.variant], "text": melody.facts[job.variant]}
    return Recording({**labels, "content": melody.content}, (record_sound(melody.play(rng), rng),))


def record_smer(job: Job, rng: Rng) -> Recording:
    """Record a row of `smer`: a melody with the mode and tempo of a mood."""
    mode, tempo = MOODS[job.variant]
    melody = draw_melody(rng, job.split, mode=mode, tempo=tempo)
    return record_class(job, melody.play(rng), rng)


def record_mgr(job: Job, rng: Rng) -> Recording:
    """Record a row of `mgr`: two bars with the rhythm of a genre."""
    drums, beats, instrument, eighth = GENRES[job.variant]
    low, high = music.INSTRUMENTS[instrument][1]
    root, chord = int(rng.integers(low, high - 12)), MODES["major"]

    def write_bars(pattern: str, draw_pitch: Callable[[], int]) -> list[Note]:
        positions = [8 * bar + int(position) for bar in range(2) for position in pattern]
        return [Note(draw_pitch(), 0.02 + position * eighth, eighth) for position in positions]

    parts = [music.perform(instrument, rng, write_bars(beats, lambda: root + pick(rng, chord)))]
    if drums:
        parts.append(music.perform("drum", rng, write_bars(drums, lambda: 60)))
    signal = np.zeros(max(map(len, parts)))
    for part in parts:
        add(signal, part, 0.0)
    return record_class(job, signal, rng)


def record_sid(job: Job, rng: Rng) -> Recording:
    """Record a row of `sid`: a melody sung by one singer."""
    melody = draw_melody(rng, job.split, tempo="slow")
    return record_class(job, vocal.sing(job.variant, rng, melody.steps, rng.uniform(0.3, 0.4)), rng)
