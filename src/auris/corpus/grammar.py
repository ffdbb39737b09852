"""Text of the corpus: sentences of a small grammar with translations in nine languages, and keyword phrases.

A `Meaning` is a choice of words for the slots of a sentence (subject, action, place, ...). It can be rendered in every
language, so every sentence has its translations. Meanings, not sentences, are assigned to train, valid and test, so a
test sentence is unseen in every language and task.

The grammar is restricted so that agreement is easy to get right. It has only definite articles, verbs in the third
person singular, nouns that need no elision in French and Italian, subjects in the nominative and objects in the
accusative. eSpeak pronounces its Chinese words in the same way whether it reads whole words or one character at a time.
Japanese is written in kana, with spaces between phrases and the topic particle as it is pronounced (わ). Korean
particles depend on the last sound of the noun.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from auris.corpus.draws import Rng, pick, pick_or_none

LANGUAGES = ("en", "zh", "de", "es", "fr", "it", "ja", "ko", "yue")
SPLITS = ("train", "valid", "test")
KEYWORDS = ("stop", "go", "up", "down", "left", "right", "yes", "no", "on", "off")

_PEOPLE_AND_ANIMALS_ONLY = ("happy", "hungry", "strong")
_THINGS_ONLY = ("new", "heavy")
# Maximum length of the English sentence. It keeps most clips under three seconds, so that a laptop can train on them.
MAX_WORDS = 7

SPLIT_PERCENTAGES = {"train": 82, "valid": 8, "test": 10}  # percentage of the meanings in each split


def _read_words() -> dict[str, dict[str, dict[str, str]]]:
    """Return the tables of `words.txt` as {section: {English: {language: form}}}."""
    tables: dict[str, dict[str, dict[str, str]]] = {}
    table: dict[str, dict[str, str]] = {}
    for line in Path(__file__).with_name("words.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            table = tables[line.strip("[]")] = {}
        elif line and not line.startswith("#"):
            forms = dict(zip(LANGUAGES, map(str.strip, line.split("|")), strict=True))
            table[forms["en"]] = forms
    return tables


SUBJECTS, OBJECTS, ADJECTIVES, TRANSITIVE, INTRANSITIVE, PLACES, ADVERBS = _read_words().values()
SUBJECT_ADJECTIVES = tuple(word for word in ADJECTIVES if word not in _THINGS_ONLY)
OBJECT_ADJECTIVES = tuple(word for word in ADJECTIVES if word not in _PEOPLE_AND_ANIMALS_ONLY)


@dataclass(frozen=True)
class Meaning:
    """Words in the slots of a sentence, in English; None for an empty slot.

    There is an `object` if and only if `action` is a transitive verb, and a `place` only with an intransitive verb.
    """

    subject: str
    action: str
    adjective: str | None = None
    object: str | None = None
    object_adjective: str | None = None
    place: str | None = None
    adverb: str | None = None


def assign_split(text: str) -> str:
    """Return the split of a text, such as an English sentence.

    The split depends only on the hash of the text, not on the seed or the size of the corpus.
    """
    percentile = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
    if percentile < SPLIT_PERCENTAGES["train"]:
        return "train"
    return "valid" if percentile < SPLIT_PERCENTAGES["train"] + SPLIT_PERCENTAGES["valid"] else "test"


def draw_meaning(rng: Rng, split: str) -> Meaning:
    """Draw a meaning that belongs to `split`; its English sentence has three to seven words."""
    while True:
        meaning = _draw_any_meaning(rng)
        english = render(meaning, "en")
        if assign_split(english) == split and len(english.split()) <= MAX_WORDS:
            return meaning


def draw_sentence(rng: Rng, split: str, language: str) -> str:
    """Draw a sentence of `language` whose meaning belongs to `split`."""
    return render(draw_meaning(rng, split), language)


def draw_keyword_phrase(rng: Rng, split: str, keyword: str) -> str:
    """Draw an English phrase of `split`, such as 'the small dog says stop now' or 'stop says the small dog'."""
    while True:
        subject = pick(rng, SUBJECTS)
        speaker = _join("the", pick_or_none(rng, 0.75, SUBJECT_ADJECTIVES), subject)
        adverb = pick_or_none(rng, 0.5, ADVERBS)
        first, last = (keyword, speaker) if rng.random() < 0.5 else (speaker, keyword)
        phrase = _join(first, "says", last, adverb)
        if assign_split(phrase) == split:
            return phrase


def _draw_any_meaning(rng: Rng) -> Meaning:
    """Draw a meaning of any split and any length."""
    subject = pick(rng, SUBJECTS)
    adjective = pick_or_none(rng, 0.5, SUBJECT_ADJECTIVES)
    adverb = pick_or_none(rng, 0.3, ADVERBS)
    if rng.random() < 0.55:
        action, thing = pick(rng, TRANSITIVE), pick(rng, OBJECTS)
        return Meaning(subject, action, adjective, thing, pick_or_none(rng, 0.5, OBJECT_ADJECTIVES), adverb=adverb)
    action = pick(rng, INTRANSITIVE)
    return Meaning(subject, action, adjective, place=pick_or_none(rng, 0.8, PLACES), adverb=adverb)


def render(meaning: Meaning, language: str) -> str:
    """Render a meaning as a sentence in lower case without punctuation. Chinese sentences have no spaces."""
    verbs = TRANSITIVE if meaning.object else INTRANSITIVE
    verb = verbs[meaning.action][language]
    subject = _noun_phrase(SUBJECTS[meaning.subject][language], meaning.adjective, language)
    thing = ""
    if meaning.object:
        thing = _noun_phrase(OBJECTS[meaning.object][language], meaning.object_adjective, language)
    place = PLACES[meaning.place][language] if meaning.place else ""
    adverb = ADVERBS[meaning.adverb][language] if meaning.adverb else ""
    if language in ("zh", "yue"):
        return "".join((subject, adverb, place, verb, thing))
    if language == "ja":
        return _join(subject + "わ", adverb, place, thing + verb)
    if language == "ko":
        return _join(
            _add_particle(subject, "은", "는"), adverb, place, thing and _add_particle(thing, "을", "를"), verb
        )
    if language == "de":
        return _join(subject, verb, adverb, thing, place)
    return _join(subject, verb, thing, place, adverb)


def split_words(text: str, language: str) -> list[str]:
    """Split a sentence into the units whose start and end times are known.

    They are characters in Chinese, phrases in Japanese and Korean, and words in the other languages.
    """
    return list(text) if language in ("zh", "yue") else text.split()


def _join(*parts: str | None) -> str:
    return " ".join(part for part in parts if part)


def _add_particle(noun: str, after_consonant: str, after_vowel: str) -> str:
    """Append a particle to a Korean noun; its form depends on whether the last syllable ends in a consonant."""
    # Unicode orders syllables with the same beginning by their 28 endings. The first ending is empty.
    ends_in_consonant = (ord(noun[-1]) - ord("가")) % 28
    return noun + (after_consonant if ends_in_consonant else after_vowel)


def _noun_phrase(noun: str, adjective: str | None, language: str) -> str:
    """Join a noun, its article and its adjective with the agreement and word order of the language."""
    if language == "en":
        return _join("the", adjective, noun)
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
