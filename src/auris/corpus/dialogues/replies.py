"""Replies of dialogues: the label of a row, other facts that follow from its labels, and facts that need no audio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from auris.corpus import speech
from auris.corpus.dialogues import wordings
from auris.corpus.dialogues.pool import Pool, answer, name
from auris.corpus.draws import Rng, pick
from auris.corpus.grammar import ADVERBS, INTRANSITIVE, OBJECTS, PLACES, SUBJECTS, TRANSITIVE, draw_sentence
from auris.data.rows import Row
from auris.metrics.judges.rating import POLITE_OPENINGS
from auris.text.tasks import LANGUAGES

_GENDERS = {
    variant: gender for voices in speech.VOICES.values() for gender, names in voices.items() for variant in names
}
# Inferences from the label of a sound, by task: family of the question, labels by answer, sentence of the conclusion.
ORIGINS = {
    "sec": ("source", wordings.SOURCES, "it comes from {}"),
    "mic": ("family", wordings.FAMILIES, "it is a {} instrument"),
}
_FOREIGN = ("de", "es", "fr", "it")  # languages of the questions about a foreign word


@dataclass(frozen=True)
class Reply:
    """A right answer in its forms.

    Attributes:
        terse: A word or phrase.
        sentence: A full sentence.
        key: Text that every right answer contains.
        wrong: A sentence with a wrong answer; None if the corpus has no other label.
        language: Language of the key.
    """

    terse: str
    sentence: str
    key: str
    wrong: str | None
    language: str = "en"

    def write(self, form: str, rng: Rng) -> str:
        """Return the answer in one of `wordings.FORMS`."""
        if form == "terse":
            return self.terse
        return self.sentence if form == "sentence" else f"{pick(rng, POLITE_OPENINGS)} {self.sentence}"


def fill(sentence: str, right: str, wrong: str | None, language: str = "en") -> Reply:
    """Return a reply whose sentences are `sentence` with its braces filled."""
    return Reply(right, sentence.format(right), right, wrong and sentence.format(wrong), language)


def reply_to(rng: Rng, pool: Pool, row: Row) -> Reply:
    """Return the answer to a row's own task."""
    labels = row.labels
    task, target = labels["task"], labels.get("target_language") or ""
    languages = {"asr": labels.get("language"), "s2tt": target}

    def sentence(label: str) -> str:
        fields = {"answer": label, "named": name(task, label), "target": LANGUAGES.get(target, "")}
        return wordings.SENTENCES[task].format(**fields)

    right, wrong = answer(row), pool.draw_wrong_label(rng, row)
    return Reply(right, sentence(right), right, wrong and sentence(wrong), languages.get(task) or "en")


def parse_slots(sentence: str) -> dict[str, str]:
    """Return the slots `who`, `what` and `where` of an English sentence of the grammar; empty for other sentences."""
    words = sentence.split()
    verbs = [index for index, word in enumerate(words) if word in TRANSITIVE or word in INTRANSITIVE]
    if len(verbs) != 1 or "says" in words:
        return {}
    rest = words[verbs[0] + 1 :]
    rest = " ".join(rest[:-1] if rest and rest[-1] in ADVERBS else rest)
    slots = {"who": " ".join(words[: verbs[0]])}
    if rest:
        slots["where" if rest in PLACES else "what"] = rest
    return slots


_SLOT_SENTENCES = {"who": "It is {}.", "what": "The thing is {}.", "where": "It is {}."}


def _draw_slot(rng: Rng, split: str, slot: str, *, excluded: str | None = None) -> tuple[str, str]:
    """Draw a sentence of `split` that has the slot, with a value other than `excluded`; return it and the value."""
    while True:
        sentence = draw_sentence(rng, split, "en")
        value = parse_slots(sentence).get(slot)
        if value and value != excluded:
            return sentence, value


def follow_ups(rng: Rng, pool: Pool, row: Row) -> dict[str, Reply]:
    """Return replies to further questions that a row's labels answer, by family of question."""
    labels, task = row.labels, row.labels["task"]
    if task in ORIGINS:
        family, table, conclusion = ORIGINS[task]
        right = next((heading for heading, items in table.items() if answer(row) in items), None)
        if right is None:
            return {}
        wrong = pick(rng, [heading for heading in table if heading != right])
        return {f"then {family}": fill(f"{conclusion.capitalize()}.", right, wrong)}
    replies = {}
    language = LANGUAGES.get(labels.get("language") or "")  # not every task needs this label
    if language and task != "lid":
        wrong = pick(rng, [name for name in LANGUAGES.values() if name != language])
        replies["then language"] = fill("It is {}.", language, wrong)
    if task != "sgc" and (gender := _GENDERS.get(labels.get("speaker") or "")):
        replies["then gender"] = fill("It is a {} voice.", gender, {"male": "female", "female": "male"}[gender])
    transcript = labels.get("transcript", labels.get("text", ""))
    for slot, right in parse_slots(transcript).items() if labels.get("language") == "en" else ():
        _, wrong = _draw_slot(rng, pool.split, slot, excluded=right)
        replies[f"then {slot}"] = fill(_SLOT_SENTENCES[slot], right, wrong)
    return replies


# --- facts that need no audio -------------------------------------------------------------------------------------

Fact = tuple[dict[str, str], Reply]


def _opposite(rng: Rng, split: str) -> Fact:
    pair = pick(rng, wordings.OPPOSITES)
    word, right = pair if rng.random() < 0.5 else pair[::-1]
    wrong = pick(rng, [word for words in wordings.OPPOSITES for word in words if word not in pair])
    return {"word": word}, fill(f"The opposite of {word} is {{}}.", right, wrong)


def _category(rng: Rng, split: str) -> Fact:
    right = pick(rng, wordings.CATEGORIES)
    noun = f"the {pick(rng, wordings.CATEGORIES[right])}"
    wrong = pick(rng, [category for category in wordings.CATEGORIES if category != right])
    return {"noun": noun}, fill(f"{noun.capitalize()} is {{}}.", right, wrong)


def _sum(rng: Rng, split: str) -> Fact:
    a, b = int(rng.integers(1, 6)), int(rng.integers(1, 6))
    numbers = wordings.NUMBERS
    right = numbers[a + b - 1]
    wrong = pick(rng, [number for number in numbers[max(a, b) :] if number != right])
    first, second = numbers[a - 1], numbers[b - 1]
    return {"a": first, "b": second}, fill(f"{first.capitalize()} plus {second} is {{}}.", right, wrong)


def _word(rng: Rng, split: str) -> Fact:
    language, noun, wrong = pick(rng, _FOREIGN), pick(rng, SUBJECTS), pick(rng, OBJECTS)
    right, target = SUBJECTS[noun][language], LANGUAGES[language]
    reply = fill(f"In {target}: {{}}.", right, OBJECTS[wrong][language], language)
    return {"noun": f"the {noun}", "target": target}, reply


def _recall(rng: Rng, split: str, slot: str) -> Fact:
    statement, right = _draw_slot(rng, split, slot)
    _, wrong = _draw_slot(rng, split, slot, excluded=right)
    return {"statement": statement}, fill(_SLOT_SENTENCES[slot], right, wrong)


FACTS: dict[str, Callable[[Rng, str], Fact]] = {
    "opposite": _opposite,
    "category": _category,
    "sum": _sum,
    "word": _word,
    **{f"recall {slot}": partial(_recall, slot=slot) for slot in _SLOT_SENTENCES},
}
