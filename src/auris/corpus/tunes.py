"""Recipes of tasks about music: notes with exact pitch and loudness, melodies with known tempo and key, known tunes.

What a model could memorise is assigned to a split by its hash, as the sentences of `grammar` are: the combination of
instrument, pitch and velocity of a note, a whole melody, or the combination of tune, instrument and root. The tunes of
test rows therefore occur in training, but on another instrument or with another root.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from auris.corpus import music, vocal
from auris.corpus.draws import Rng, pick
from auris.corpus.grammar import assign_split
from auris.corpus.music import Note
from auris.corpus.recording import Recording, RowSpec, record_class, record_sound
from auris.corpus.signal import Signal, add, reverberate, to_pcm

PITCHED = tuple(name for name in music.INSTRUMENTS if name != "drum")
VELOCITIES = (25, 50, 75, 100, 127)  # as in NSynth (Engel et al. 2017)
_MAX_LEVEL = -3.0  # peak of a note of velocity 127 in decibels relative to full scale

# Beginnings of songs in the public domain. `g` is a note of one beat, `g:2` a note of two beats.
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
# Semitones of each note above C.
_STEPS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}

MODES = {"major": (0, 4, 7, 12), "minor": (0, 3, 7, 12)}  # semitones of the chord's notes above the root
_BEATS = {"fast": (0.13, 0.17), "slow": (0.32, 0.4)}  # range of the duration of a beat in seconds
_N_NOTES = {"fast": 10, "slow": 6}  # numbers of notes that give melodies of similar duration
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

# These labels have grade D (`tasks.GRADES`): they are settings of the synthesis, and represent neither the feelings of
# listeners nor real music.
MOODS = {"happy": ("major", "fast"), "calm": ("major", "slow"), "tense": ("minor", "fast"), "sad": ("minor", "slow")}
# Each genre: the positions of the drum in a bar (0 to 7, in eighths), the positions of the notes, the instrument of the
# notes, and the duration of an eighth in seconds.
GENRES = {
    "rock": ("0246", "036", "guitar", 0.16),
    "techno": ("0246", "01234567", "organ", 0.11),
    "waltz": ("", "035", "piano", 0.2),
    "march": ("04", "0246", "trumpet", 0.18),
}


@dataclass(frozen=True)
class Melody:
    """Notes on an instrument, and their properties.

    The split of a melody follows from the hash of its `repr`, so the names of the class and its fields must not change.

    Attributes:
        instrument: Name of the instrument.
        tempo: "fast" or "slow".
        mode: "major" or "minor".
        direction: "rising" or "falling".
        root: MIDI note number of the root.
        steps: Semitones of each note above the root.
    """

    instrument: str
    tempo: str
    mode: str
    direction: str
    root: int
    steps: tuple[int, ...]

    @property
    def answers(self) -> dict[str, str]:
        """Answers to `QUESTIONS`, by the name of the question."""
        return {name: getattr(self, name) for name in QUESTIONS}

    @property
    def content(self) -> str:
        """The row's field `content`: the properties of the melody, as a text that can replace the audio."""
        return " ".join(self.answers.values())

    def play(self, rng: Rng) -> Signal:
        """Play the melody at a tempo drawn from its range."""
        beat = rng.uniform(*_BEATS[self.tempo])
        return music.play_notes(self.instrument, rng, lay_out(self.root, [(step, 1.0) for step in self.steps], beat))


def draw_melody(rng: Rng, split: str, **fixed_properties: str) -> Melody:
    """Draw a melody in C that belongs to `split`. Properties that are not fixed (tempo, mode, ...) are drawn too."""
    options = {"instrument": PITCHED, "tempo": tuple(_BEATS), "mode": tuple(MODES), "direction": DIRECTIONS}
    while True:
        properties = {name: fixed_properties.get(name) or pick(rng, values) for name, values in options.items()}
        chord, n_notes = MODES[properties["mode"]], _N_NOTES[properties["tempo"]]
        # A melody contains all notes of the chord, and some of them again, in rising or falling order.
        steps = sorted([*chord, *(int(step) for step in rng.choice(chord, n_notes - len(chord)))])
        if properties["direction"] == "falling":
            steps.reverse()
        low, high = music.INSTRUMENTS[properties["instrument"]][1]
        # Only C is drawn as root, so that major and minor differ in one note. If other roots were drawn as well, a
        # small model would have to learn intervals.
        roots = [root for root in range(low, high - chord[-1] + 1) if root % 12 == 0]
        melody = Melody(**properties, root=pick(rng, roots), steps=tuple(steps))
        if assign_split(repr(melody)) == split:
            return melody


def lay_out(root: int, steps: Sequence[tuple[int, float]], beat: float) -> list[Note]:
    """Return notes in sequence.

    Args:
        root: MIDI note number of the root.
        steps: For each note, its semitones above the root and its number of beats.
        beat: Duration of a beat in seconds.
    """
    starts = 0.02 + beat * np.cumsum([0.0, *(beats for _, beats in steps)])
    timed_steps = zip(steps, starts[:-1], strict=True)
    return [Note(root + step, float(start), beat * beats) for (step, beats), start in timed_steps]


def read_tune(text: str) -> list[tuple[int, float]]:
    """Parse a tune of `TUNES`; return the semitones above C and the number of beats of each note."""
    notes = (note.partition(":") for note in text.split())
    return [(_STEPS[name], float(beats or 1)) for name, _, beats in notes]


def record_mic(spec: RowSpec, rng: Rng) -> Recording:
    """Record a row of `mic`: a phrase on one instrument."""
    return record_class(spec, music.play_random_phrase(spec.variant, rng, rng.uniform(1.2, 2.4)), rng)


def record_mna(spec: RowSpec, rng: Rng) -> Recording:
    """Record a row of `mna`: one note. The peak level of the clip depends only on the velocity."""
    low, high = music.INSTRUMENTS[spec.variant][1]
    while True:
        pitch, velocity = int(rng.integers(low, high + 1)), pick(rng, VELOCITIES)
        if assign_split(f"{spec.variant} {pitch} {velocity}") == spec.split:
            break
    is_bright = rng.random() < 0.5
    touch = rng.uniform(0.75, 1.0) if is_bright else rng.uniform(0.0, 0.25)
    signal = music.play_notes(spec.variant, rng, [Note(pitch, 0.05, 0.7)], touch)
    sonic = ["bright" if is_bright else "dark"]
    if spec.variant in music.PERCUSSIVE:
        sonic.append("percussive")
    if rng.random() < 0.4:
        signal = reverberate(rng, signal, seconds=0.5, ratio=0.5)
        sonic.append("reverb")
    labels = {"pitch": pitch, "velocity": velocity, "instrument": spec.variant, "sonic": sonic}
    clip = to_pcm(signal, _MAX_LEVEL + 20 * np.log10(velocity / 127))
    return Recording({"language": "en", "notes": labels}, (clip,))


def record_mr(spec: RowSpec, rng: Rng) -> Recording:
    """Record a row of `mr`: the beginning of a known tune."""
    while True:
        instrument = pick(rng, PITCHED)
        low, high = music.INSTRUMENTS[instrument][1]
        root = int(rng.integers(low, high - max(_STEPS.values()) + 1))
        if assign_split(f"{spec.variant} {instrument} {root}") == spec.split:
            break
    notes = lay_out(root, read_tune(TUNES[spec.variant]), rng.uniform(0.14, 0.22))
    return record_class(spec, music.play_notes(instrument, rng, notes), rng)


def record_mc(spec: RowSpec, rng: Rng) -> Recording:
    """Record a row of `mc`: a melody with captions."""
    melody = draw_melody(rng, spec.split, mode=spec.variant)
    captions = [caption.format(**melody.answers).replace("a organ", "an organ") for caption in _CAPTIONS]
    labels = {"language": "en", "text": captions[0], "references": captions}
    return Recording({**labels, "content": melody.content}, (record_sound(melody.play(rng), rng),))


def record_mqa(spec: RowSpec, rng: Rng) -> Recording:
    """Record a row of `mqa`: a melody with a question."""
    melody = draw_melody(rng, spec.split)
    labels = {"language": "en", "question": QUESTIONS[spec.variant], "text": melody.answers[spec.variant]}
    return Recording({**labels, "content": melody.content}, (record_sound(melody.play(rng), rng),))


def record_smer(spec: RowSpec, rng: Rng) -> Recording:
    """Record a row of `smer`: a melody with the mode and tempo of a mood."""
    mode, tempo = MOODS[spec.variant]
    melody = draw_melody(rng, spec.split, mode=mode, tempo=tempo)
    return record_class(spec, melody.play(rng), rng)


def record_mgr(spec: RowSpec, rng: Rng) -> Recording:
    """Record a row of `mgr`: two bars with the rhythm of a genre."""
    drum_positions, note_positions, instrument, eighth = GENRES[spec.variant]
    low, high = music.INSTRUMENTS[instrument][1]
    root, chord = int(rng.integers(low, high - 12)), MODES["major"]

    def write_bars(positions: str, draw_pitch: Callable[[], int]) -> list[Note]:
        starts = [8 * bar + int(position) for bar in range(2) for position in positions]  # in eighths
        return [Note(draw_pitch(), 0.02 + start * eighth, eighth) for start in starts]

    parts = [music.play_notes(instrument, rng, write_bars(note_positions, lambda: root + pick(rng, chord)))]
    if drum_positions:
        parts.append(music.play_notes("drum", rng, write_bars(drum_positions, lambda: 60)))
    signal = np.zeros(max(map(len, parts)))
    for part in parts:
        add(signal, part, 0.0)
    return record_class(spec, signal, rng)


def record_sid(spec: RowSpec, rng: Rng) -> Recording:
    """Record a row of `sid`: a melody sung by one singer."""
    melody = draw_melody(rng, spec.split, tempo="slow")
    return record_class(spec, vocal.sing(spec.variant, rng, melody.steps, rng.uniform(0.3, 0.4)), rng)
