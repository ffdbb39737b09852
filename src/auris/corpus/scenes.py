"""Recipes of tasks about sounds: classification, detection, captions, questions and scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from auris.corpus import sound, vocal
from auris.corpus.draws import Rng, pick
from auris.corpus.recording import Fields, Recording, RowSpec, record_class, record_sound
from auris.corpus.signal import SAMPLE_RATE, Signal, add

NUMBERS = ("one", "two", "three")
# The noun phrase for each sound.
SOUND_PHRASES = {name: f"a {name}" for name in sound.SOUNDS} | {
    "rain": "rain",
    "engine": "an engine",
    "wind": "wind",
    "footsteps": "footsteps",
    "alarm": "an alarm",
}
# Templates of captions; the first one is the target in training.
_CAPTIONS = ("{} can be heard", "there is {}", "a recording of {}", "the sound of {}")

# The sounds of each scene. These labels have grade D (`tasks.GRADES`): a few typical sounds are not a recording of a
# place.
SCENES = {
    "park": ("bird", "dog", "wind"),
    "street": ("engine", "siren", "footsteps"),
    "house": ("clock", "bell", "footsteps"),
    "harbour": ("rain", "alarm", "wind"),
}


def record_sec(spec: RowSpec, rng: Rng) -> Recording:
    """Record a row of `sec`: one sound."""
    return record_class(spec, sound.make_sound(spec.variant, rng, rng.uniform(1.2, 2.2)), rng)


def record_vsc(spec: RowSpec, rng: Rng) -> Recording:
    """Record a row of `vsc`: one vocal sound."""
    return record_class(spec, vocal.make_vocal_sound(spec.variant, rng), rng)


def record_aqa(spec: RowSpec, rng: Rng) -> Recording:
    """Record a row of `aqa`: one to three different sounds and a question about them.

    As answers, yes and no are equally frequent, and so are the numbers. Questions about the first and the last sound
    are equally frequent too.
    """
    if spec.variant == "count":
        n_sounds = 1 + spec.index % len(NUMBERS)
    else:
        n_sounds = int(rng.integers(2 if spec.variant == "order" else 1, len(NUMBERS) + 1))
    names = _draw_names(rng, n_sounds)
    events, signal = _mix_sounds(rng, names)
    if spec.variant == "count":
        question, answer = "How many sounds are there?", NUMBERS[n_sounds - 1]
    elif spec.variant == "order":
        is_first = spec.index % 2 == 0
        question, answer = f"What sound comes {'first' if is_first else 'last'}?", names[0 if is_first else -1]
    else:
        is_present = spec.index % 2 == 0
        name = pick(rng, names if is_present else [name for name in sound.SOUNDS if name not in names])
        question, answer = f"Can you hear {SOUND_PHRASES[name]} in the audio?", "yes" if is_present else "no"
    labels = {"language": "en", "question": question, "text": answer, "events": events}
    return Recording({**labels, "content": ", ".join(names)}, (record_sound(signal, rng),))


def record_sed(spec: RowSpec, rng: Rng) -> Recording:
    """Record a row of `sed`: one to three different sounds, with pauses or overlapping."""
    names = _draw_names(rng, 1 + spec.index % len(NUMBERS))
    events, signal = _mix_sounds(rng, names, gaps=(-0.5, 0.8), lead=rng.uniform(0.0, 0.6))
    return Recording({"language": "en", "events": events}, (record_sound(signal, rng),))


def record_aac(spec: RowSpec, rng: Rng) -> Recording:
    """Record a row of `aac`: one or two sounds and captions."""
    names = _draw_names(rng, 1 + spec.index % 2)
    events, signal = _mix_sounds(rng, names)
    phrases = ", then ".join(SOUND_PHRASES[name] for name in names)
    captions = [caption.format(phrases) for caption in _CAPTIONS]
    labels = {"language": "en", "text": captions[0], "references": captions, "events": events}
    return Recording({**labels, "content": ", ".join(names)}, (record_sound(signal, rng),))


def record_asc(spec: RowSpec, rng: Rng) -> Recording:
    """Record a row of `asc`: the overlapping sounds of a scene."""
    names = [str(name) for name in rng.permutation(SCENES[spec.variant])]
    _, signal = _mix_sounds(rng, names, gaps=(-0.6, -0.2))
    return record_class(spec, signal, rng)


def _draw_names(rng: Rng, count: int) -> list[str]:
    return [str(name) for name in rng.choice(list(sound.SOUNDS), count, replace=False)]


def _mix_sounds(
    rng: Rng, names: Sequence[str], gaps: tuple[float, float] = (-0.3, 0.15), lead: float = 0.0
) -> tuple[list[Fields], Signal]:
    """Mix sounds in sequence; return their events (label, start, end) and the signal.

    Args:
        rng: Random generator.
        names: Names of the sounds.
        gaps: Range of the pause between two sounds in seconds; negative for an overlap.
        lead: Start of the first sound in seconds.
    """
    lengths = rng.uniform(0.8, 1.2, len(names))
    pauses = rng.uniform(*gaps, len(names) - 1)
    starts = lead + np.concatenate(([0.0], np.cumsum(lengths[:-1] + pauses)))
    signal = np.zeros(math.ceil(np.max(starts + lengths) * SAMPLE_RATE))
    events = []
    for name, start, length in zip(names, starts, lengths, strict=True):
        add(signal, 10 ** (rng.uniform(-3, 3) / 20) * sound.make_sound(name, rng, length), start)
        events.append({"label": name, "start": round(float(start), 4), "end": round(float(start + length), 4)})
    return events, signal
