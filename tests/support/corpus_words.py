"""Every word of the synthetic corpus's grammar, as sentences and as a list by language."""

from __future__ import annotations

from auris.corpus import grammar
from auris.corpus.grammar import KEYWORDS, Meaning


def cover() -> list[Meaning]:
    """Return a few hundred meanings whose sentences together contain every word form of every language."""
    meanings = [Meaning(subject, action) for subject in grammar.SUBJECTS for action in grammar.INTRANSITIVE]
    meanings += [
        Meaning(subject, "works", adjective) for subject in grammar.SUBJECTS for adjective in grammar.SUBJECT_ADJECTIVES
    ]
    meanings += [Meaning("dog", action, object="apple") for action in grammar.TRANSITIVE]
    meanings += [Meaning("dog", "sees", object=object) for object in grammar.OBJECTS]
    meanings += [
        Meaning("dog", "sees", object=object, object_adjective=adjective)
        for object in grammar.OBJECTS
        for adjective in grammar.OBJECT_ADJECTIVES
    ]
    meanings += [Meaning("dog", "works", place=place) for place in grammar.PLACES]
    return meanings + [Meaning("dog", "works", adverb=adverb) for adverb in grammar.ADVERBS]


def vocabulary(language: str) -> set[str]:
    """Return every unit of speech in a language (see `grammar.split_words`). English includes keyword phrases."""
    units = {word for meaning in cover() for word in grammar.split_words(grammar.render(meaning, language), language)}
    return units | {"says", *KEYWORDS} if language == "en" else units
