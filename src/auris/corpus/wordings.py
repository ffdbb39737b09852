"""What instruction dialogues say: the wordings of every question, the forms of an answer, and small facts to ask about.

Data, as `auris.text.tasks` is; a new wording is a new line. Every wording belongs to one split (`deal`), so that no
instruction of a test was read or heard in training. What is spoken has no capitals and no punctuation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import numpy as np

from auris.corpus.grammar import SHARES

Rng = np.random.Generator
T = TypeVar("T")

# Of an answer: the bare content, a sentence, or a sentence that is introduced politely.
FORMS = ("terse", "sentence", "polite")
POLITE = ("Sure.", "Of course.")

# What varies a question: something behind what is typed (there the question keeps its tokens), something before what is
# spoken (a clip of a command ends with the command).
_CLOSINGS = ("", " Please.", " Tell me.", " I want to know.", " Thank you.")
_SPOKEN_OPENINGS = ("", "please ", "now ")

# Questions as they are typed, by what they ask for. Those named after a task ask for a row's label; `then ...` follow
# an earlier question on the same clip; the last ones need no audio. Braces are filled by `dialogues`.
_TYPED = {
    "asr": (
        "what is said in this recording?",
        "what does the speaker say?",
        "write down the speech.",
        "transcribe the audio into text.",
    ),
    "s2tt": (
        "translate what is said into {target}.",
        "write the speech in {target}.",
        "what does the speaker say, in {target}?",
    ),
    "lid": (
        "which language is spoken?",
        "what language does the speaker use?",
        "name the language of this recording.",
    ),
    "sgc": (
        "is the speaker male or female?",
        "what is the gender of the speaker?",
        "classify the voice as male or female.",
    ),
    "ks": ("which command word is spoken?", "what is the keyword?", "find the keyword in this recording."),
    "sec": ("what is the sound in this recording?", "name the sound event.", "which sound can be heard?"),
    "mic": ("which instrument is playing?", "name the instrument in the music.", "what instrument can be heard?"),
    "aqa": ("{question}",),
    "then language": ("what language was that?", "in which language is it?", "name that language."),
    "then gender": (
        "was that a male or a female voice?",
        "who spoke, male or female?",
        "was the speaker female or male?",
    ),
    "then who": ("who is it about?", "who is that?", "name the one in the speech."),
    "then what": ("which thing is named?", "what thing is it about?", "name the thing in the speech."),
    "then where": ("where is that?", "where was it?", "name the place in the speech."),
    "then source": ("what makes that sound?", "what does that sound come from?", "name what makes that sound."),
    "then family": ("what kind of instrument is that?", "name that kind of instrument.", "what kind is that?"),
    "source": (
        "is this sound made by an animal, a person, a machine or the weather?",
        "does it come from an animal, a person, a machine or the weather?",
        "what makes this sound, and why?",
    ),
    "family": (
        "is it a keyboard, string, wind or percussion instrument?",
        "is this instrument keyboard, string, wind or percussion?",
        "what kind of instrument is it, and why?",
    ),
    "story": (
        "write a story of {person} {place} and this sound.",
        "what does {person} hear {place}? tell a story.",
        "tell a story: {person} is {place}, and then this sound.",
    ),
    "same": (
        "is the {thing} the same in all recordings?",
        "do all recordings have the same {thing}?",
        "is it the same {thing} in each?",
    ),
    "which": ("which audio is {named}?", "in which audio is {named}?", "find the audio that is {named}."),
    "order": (
        "name the {thing} of each recording.",
        "which {thing} is in each audio?",
        "what {thing} is first, and then?",
    ),
    "opposite": (
        "what is the opposite of {word}?",
        "name the opposite of {word}.",
        "which word is the opposite of {word}?",
    ),
    "category": ("what is {noun}?", "what kind of thing is {noun}?", "is {noun} an animal, a person, food or a thing?"),
    "sum": ("what is {a} plus {b}?", "how many are {a} plus {b}?", "name the sum of {a} and {b}."),
    "word": ("what is {noun} in {target}?", "translate {noun} into {target}.", "write {noun} in {target}."),
    "recall who": ("{statement}. who is it?", "{statement}. who does that?", "{statement}. who is that about?"),
    "recall what": (
        "{statement}. what thing is it?",
        "{statement}. which thing is that?",
        "{statement}. name the thing.",
    ),
    "recall where": ("{statement}. where is it?", "{statement}. where does it happen?", "{statement}. name the place."),
}

# Questions that are spoken: commands before the sound that they are about, and what needs no other audio.
_SPOKEN = {
    "sec": ("what sound is this", "which sound is it", "name the sound"),
    "mic": ("what instrument is this", "which instrument is it", "name the instrument"),
    "ks": ("what is the keyword here", "which keyword is it", "name the keyword"),
    "lid": ("what language is this", "which language is it", "name the language"),
    "opposite": ("what is the opposite of {word}", "name the opposite of {word}", "which is the opposite of {word}"),
    "category": ("what is {noun}", "what kind of thing is {noun}", "name the kind of {noun}"),
    "recall who": ("{statement} who is it", "{statement} who does that", "{statement} who is that"),
    "recall what": ("{statement} what thing is it", "{statement} which thing is that", "{statement} name the thing"),
    "recall where": ("{statement} where is it", "{statement} where is that", "{statement} name the place"),
}

# An answer as a sentence. `{answer}` is the label, `{named}` the label as one speaks of it (`NAMED`).
SENTENCES = {
    "asr": "The speaker says: {answer}.",
    "s2tt": "In {target}: {answer}.",
    "lid": "The language is {answer}.",
    "sgc": "The speaker is {answer}.",
    "ks": "The keyword is {answer}.",
    "sec": "I hear {named}.",
    "mic": "The instrument is {named}.",
    "aqa": "The answer is {answer}.",
}
NAMED = {"lid": "{}", "sgc": "a {} voice", "ks": "the keyword {}", "mic": "the {}"}
THINGS = {"lid": "language", "sgc": "gender", "ks": "keyword", "sec": "sound", "mic": "instrument"}

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
OPPOSITES = (
    ("up", "down"),
    ("left", "right"),
    ("on", "off"),
    ("yes", "no"),
    ("stop", "go"),
    ("small", "big"),
    ("black", "white"),
)
CATEGORIES = {
    "an animal": ("dog", "cat", "mouse", "horse", "cow", "wolf", "fox", "frog"),
    "a person": ("boy", "girl", "king", "queen"),
    "food": ("apple", "bread"),
    "a thing": ("book", "ball", "hat", "car", "flower", "table", "box", "letter"),
}
# Of the embedded corpus's sounds and instruments.
SOURCES = {
    "an animal": ("dog", "bird"),
    "a person": ("footsteps",),
    "a machine": ("siren", "clock", "bell", "engine", "alarm"),
    "the weather": ("rain", "wind"),
}
FAMILIES = {
    "keyboard": ("piano", "organ"),
    "string": ("guitar", "violin"),
    "wind": ("flute", "trumpet"),
    "percussion": ("drum", "xylophone"),
}


def deal(wordings: Sequence[str], split: str) -> tuple[str, ...]:
    """The wordings that belong to `split`, in the shares of the corpus's sentences; valid and test get one at least."""
    assert len(wordings) > 2, wordings
    ranked = sorted(set(wordings), key=lambda wording: hashlib.sha256(wording.encode()).digest())
    valid, test = (max(1, round(SHARES[name] / 100 * len(ranked))) for name in ("valid", "test"))
    dealt = {"test": ranked[:test], "valid": ranked[test : test + valid], "train": ranked[test + valid :]}
    return tuple(dealt[split])


@cache
def questions(family: str, split: str, *, spoken: bool = False) -> tuple[str, ...]:
    """The wordings of `split` for what `family` asks, with the braces still in them."""
    if spoken:
        return deal([opening + body for opening in _SPOKEN_OPENINGS for body in _SPOKEN[family]], split)
    return deal([body + closing for closing in _CLOSINGS for body in _TYPED[family]], split)


def families(*, spoken: bool = False) -> tuple[str, ...]:
    """What can be asked."""
    return tuple(_SPOKEN if spoken else _TYPED)


def ask(rng: Rng, family: str, split: str, *, spoken: bool = False, **fields: str) -> str:
    """A question of `family` in a random wording of `split`, its braces filled from `fields`."""
    question = pick(rng, questions(family, split, spoken=spoken)).format(**fields)
    return question if spoken else _capitalise(question)


def _capitalise(text: str) -> str:
    """`text` with a capital at the beginning of each sentence."""
    return ". ".join(sentence[:1].upper() + sentence[1:] for sentence in text.split(". "))


@cache
def typed() -> frozenset[str]:
    """Every typed question that needs no filling, as it is asked."""
    bodies = (_capitalise(body) for several in _TYPED.values() for body in several if "{" not in body)
    return frozenset(body + closing for body in bodies for closing in _CLOSINGS)


def contains(text: str, key: str) -> bool:
    """Whether the words of `key` stand in `text` one after the other, whatever their case and what is between them."""
    said, wanted = (" ".join(["", *re.findall(r"\w+", part.lower()), ""]) for part in (text, key))
    return wanted in said


def pick(rng: Rng, options: Sequence[T]) -> T:
    """One of `options`, each with equal chance."""
    return options[int(rng.integers(len(options)))]
