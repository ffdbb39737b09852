"""A closed grammar whose sentences mean the same in nine languages, and the keyword phrases: what the corpus says.

A sentence is a choice of slots (`Meaning`); rendering it in a language is a function, so a translation is too.
Sentences are dealt to train, valid and test by their meaning, hence an unseen one is unseen in every language and task.

The slots were chosen to make agreement easy to get right: definite articles throughout, verbs in the third person
singular, nouns that need no elision in French and Italian, subjects in the nominative only and objects in the
accusative only. Chinese words are those that eSpeak reads alike one character at a time. Japanese is written in kana,
spaced by phrase, with the topic particle as it is pronounced (わ). Korean particles follow their noun's last sound.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from auris.errors import UserError

LANGUAGES = ("en", "zh", "de", "es", "fr", "it", "ja", "ko", "yue")
SPLITS = ("train", "valid", "test")
KEYWORDS = ("stop", "go", "up", "down", "left", "right", "yes", "no", "on", "off")

_PEOPLE_AND_ANIMALS_ONLY = ("happy", "hungry", "strong")
_THINGS_ONLY = ("new", "heavy")
MAX_WORDS = 7  # of the English sentence: most clips stay under three seconds, so that a laptop can train on them

SHARES = {"train": 82, "valid": 8, "test": 10}  # of a hundred meanings


def _read_words() -> dict[str, dict[str, dict[str, str]]]:
    """Return the tables of `words.txt` as {section: {English: {language: form}}}."""
    tables: dict[str, dict[str, dict[str, str]]] = {}
    for line in Path(__file__).with_name("words.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            table = tables[line.strip("[]")] = {}
        elif line and not line.startswith("#"):
            forms = dict(zip(LANGUAGES, map(str.strip, line.split("|")), strict=True))
            table[forms["en"]] = forms
    return tables


SUBJECTS, OBJECTS, ADJECTIVES, TRANSITIVE, INTRANSITIVE, PLACES, ADVERBS = _read_words().values()
_SUBJECT_ADJECTIVES = tuple(word for word in ADJECTIVES if word not in _THINGS_ONLY)
_OBJECT_ADJECTIVES = tuple(word for word in ADJECTIVES if word not in _PEOPLE_AND_ANIMALS_ONLY)


@dataclass(frozen=True)
class Meaning:
    """One sentence's choice of slots, each named by its English word; None where the slot is empty.

    `object` is there exactly when `action` is a transitive verb; a `place` only with an intransitive one.
    """

    subject: str
    action: str
    adjective: str | None = None
    object: str | None = None
    object_adjective: str | None = None
    place: str | None = None
    adverb: str | None = None

    @property
    def split(self) -> str:
        """The split that owns this meaning, in every language and every task."""
        return split_of(render(self, "en"))


@dataclass(frozen=True)
class KeywordPhrase:
    """An English phrase with one keyword in it: 'the small dog says stop now' or 'stop says the small dog'."""

    keyword: str
    subject: str
    adjective: str | None
    adverb: str | None
    keyword_first: bool

    @property
    def text(self) -> str:
        speaker = " ".join(filter(None, ("the", self.adjective, self.subject)))
        words = (self.keyword, "says", speaker) if self.keyword_first else (speaker, "says", self.keyword)
        return " ".join((*words, self.adverb)) if self.adverb else " ".join(words)

    @property
    def split(self) -> str:
        """The split that owns this phrase."""
        return split_of(self.text)


def split_of(sentence: str) -> str:
    """The split of an English sentence, by its hash: the same in every corpus, whatever its seed and size."""
    share = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:8], "big") % 100
    return "train" if share < SHARES["train"] else "valid" if share < SHARES["train"] + SHARES["valid"] else "test"


def draw_meaning(rng: np.random.Generator, split: str) -> Meaning:
    """A random meaning that belongs to `split`, of three to seven English words."""
    while True:
        meaning = _draw(rng)
        if meaning.split == split and len(render(meaning, "en").split()) <= MAX_WORDS:
            return meaning


def draw_keyword_phrase(rng: np.random.Generator, split: str, keyword: str) -> KeywordPhrase:
    """A random phrase around `keyword` that belongs to `split`."""
    while True:
        phrase = KeywordPhrase(
            keyword=keyword,
            subject=_pick(rng, tuple(SUBJECTS)),
            adjective=_pick(rng, _SUBJECT_ADJECTIVES) if rng.random() < 0.75 else None,
            adverb=_pick(rng, tuple(ADVERBS)) if rng.random() < 0.5 else None,
            keyword_first=bool(rng.random() < 0.5),
        )
        if phrase.split == split:
            return phrase


def _draw(rng: np.random.Generator) -> Meaning:
    subject = _pick(rng, tuple(SUBJECTS))
    adjective = _pick(rng, _SUBJECT_ADJECTIVES) if rng.random() < 0.5 else None
    adverb = _pick(rng, tuple(ADVERBS)) if rng.random() < 0.3 else None
    if rng.random() < 0.55:
        return Meaning(
            subject=subject,
            adjective=adjective,
            action=_pick(rng, tuple(TRANSITIVE)),
            object=_pick(rng, tuple(OBJECTS)),
            object_adjective=_pick(rng, _OBJECT_ADJECTIVES) if rng.random() < 0.5 else None,
            adverb=adverb,
        )
    return Meaning(
        subject=subject,
        adjective=adjective,
        action=_pick(rng, tuple(INTRANSITIVE)),
        place=_pick(rng, tuple(PLACES)) if rng.random() < 0.8 else None,
        adverb=adverb,
    )


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def render(meaning: Meaning, language: str) -> str:
    """`meaning` as a sentence of `language`: lower case, no punctuation, words apart (in Chinese: no spaces).

    Raises:
        ValueError: for a language outside `LANGUAGES`.
    """
    if language not in LANGUAGES:
        raise UserError(f"language {language!r} is not one of the grammar's: {', '.join(LANGUAGES)}")
    verbs = TRANSITIVE if meaning.object else INTRANSITIVE
    verb = verbs[meaning.action][language]
    subject = _noun_phrase(SUBJECTS[meaning.subject][language], meaning.adjective, language)
    thing = (
        _noun_phrase(OBJECTS[meaning.object][language], meaning.object_adjective, language) if meaning.object else ""
    )
    place = PLACES[meaning.place][language] if meaning.place else ""
    adverb = ADVERBS[meaning.adverb][language] if meaning.adverb else ""
    if language in ("zh", "yue"):
        return "".join((subject, adverb, place, verb, thing))
    if language == "ja":
        return _join(subject + "わ", adverb, place, thing + verb)
    if language == "ko":
        return _join(_particle(subject, "은", "는"), adverb, place, thing and _particle(thing, "을", "를"), verb)
    if language == "de":
        return _join(subject, verb, adverb, thing, place)
    return _join(subject, verb, thing, place, adverb)


def words(text: str, language: str) -> list[str]:
    """The units that carry times: characters in Chinese, phrases in Japanese and Korean, words elsewhere."""
    return list(text) if language in ("zh", "yue") else text.split()


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _particle(noun: str, after_consonant: str, after_vowel: str) -> str:
    """A Korean noun with a particle, whose form depends on whether the last syllable ends in a consonant."""
    ends_in_consonant = (ord(noun[-1]) - ord("가")) % 28  # Unicode orders the syllables of each beginning by their end
    return noun + (after_consonant if ends_in_consonant else after_vowel)


def _noun_phrase(noun: str, adjective: str | None, language: str) -> str:
    """A noun with its article and its adjective in agreement and in the language's order."""
    if language == "en":
        return _join("the", adjective or "", noun)
    if adjective is None:
        return noun
    form = ADJECTIVES[adjective][language]
    if language in ("zh", "yue"):
        return form + noun
    if language in ("ja", "ko"):
        return _join(form, noun)
    article, noun = noun.split()
    if language == "de":  # weak declension after a definite article: -en in the masculine accusative, else -e
        return _join(article, form + ("en" if article == "den" else "e"), noun)
    masculine, feminine = form.lstrip("+").split("/")
    form_in_gender = feminine if article == "la" else masculine
    return _join(article, form_in_gender, noun) if form.startswith("+") else _join(article, noun, form_in_gender)


def cover() -> list[Meaning]:
    """A few hundred meanings whose sentences together hold every word form of every language."""
    meanings = [Meaning(subject, action) for subject in SUBJECTS for action in INTRANSITIVE]
    meanings += [Meaning(subject, "works", adjective) for subject in SUBJECTS for adjective in _SUBJECT_ADJECTIVES]
    meanings += [Meaning("dog", action, object="apple") for action in TRANSITIVE]
    meanings += [Meaning("dog", "sees", object=object) for object in OBJECTS]
    meanings += [
        Meaning("dog", "sees", object=object, object_adjective=adjective)
        for object in OBJECTS
        for adjective in _OBJECT_ADJECTIVES
    ]
    meanings += [Meaning("dog", "works", place=place) for place in PLACES]
    return meanings + [Meaning("dog", "works", adverb=adverb) for adverb in ADVERBS]


def vocabulary(language: str) -> list[str]:
    """Every unit that speech in `language` can hold (see `words`), sorted; in English with the keyword phrases."""
    heard = {word for meaning in cover() for word in words(render(meaning, language), language)}
    return sorted(heard | {"says", *KEYWORDS} if language == "en" else heard)
