"""Replies of dialogues: the label of a row, other facts that its labels tell, and small facts that need no audio."""

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
# What follows from the label of a sound: the family of questions, the answers with their labels, and the conclusion.
ORIGINS = {
    "sec": ("source", wordings.SOURCES, "it comes from {}"),
    "mic": ("family", wordings.FAMILIES, "it is a {} instrument"),
}
_FOREIGN = ("de", "es", "fr", "it")  # languages whose words are asked for as text


@dataclass(frozen=True)
class Reply:
    """A right answer: in one word or phrase, as a sentence, the `key` that both hold, and a sentence that is wrong."""

    terse: str
    sentence: str
    key: str
    wrong: str | None  # None: the corpus has no other label to be wrong with
    language: str = "en"  # language of the key

    def write(self, form: str, rng: Rng) -> str:
        """The answer in one of `wordings.FORMS`."""
        if form == "terse":
            return self.terse
        return self.sentence if form == "sentence" else f"{pick(rng, POLITE_OPENINGS)} {self.sentence}"


def fill(sentence: str, right: str, wrong: str | None, language: str = "en") -> Reply:
    """An answer that fills the braces of `sentence`."""
    return Reply(right, sentence.format(right), right, wrong and sentence.format(wrong), language)


def reply_to(rng: Rng, pool: Pool, row: Row) -> Reply:
    """The answer to a row's own task."""
    labels = row.labels
    task, target = labels["task"], labels.get("target_language")
    languages = {"asr": labels.get("language"), "s2tt": target}

    def sentence(label: str) -> str:
        filled = {"answer": label, "named": name(task, label), "target": LANGUAGES.get(target, "")}
        return wordings.SENTENCES[task].format(**filled)

    right, wrong = answer(row), pool.other(rng, row)
    return Reply(right, sentence(right), right, wrong and sentence(wrong), languages.get(task) or "en")


def slots(sentence: str) -> dict[str, str]:
    """Who, what and where of an English sentence of the grammar; nothing of what is none."""
    said = sentence.split()
    verbs = [place for place, word in enumerate(said) if word in TRANSITIVE or word in INTRANSITIVE]
    if len(verbs) != 1 or "says" in said:
        return {}
    rest = said[verbs[0] + 1 :]
    rest = " ".join(rest[:-1] if rest and rest[-1] in ADVERBS else rest)
    found = {"who": " ".join(said[: verbs[0]])}
    if rest:
        found["where" if rest in PLACES else "what"] = rest
    return found


_SLOT_SENTENCES = {"who": "It is {}.", "what": "The thing is {}.", "where": "It is {}."}


def _other_slot(rng: Rng, split: str, slot: str, right: str | None = None) -> tuple[str, str]:
    """A sentence of `split` with such a slot that is not `right`, and the slot."""
    while True:
        sentence = draw_sentence(rng, split, "en")
        found = slots(sentence).get(slot)
        if found and found != right:
            return sentence, found


def follow_ups(rng: Rng, pool: Pool, row: Row) -> dict[str, Reply]:
    """Other questions that a row's labels answer, by family of question."""
    labels, task = row.labels, row.labels["task"]
    if task in ORIGINS:
        family, table, conclusion = ORIGINS[task]
        right = next((heading for heading, items in table.items() if answer(row) in items), None)
        if right is None:
            return {}
        wrong = pick(rng, [heading for heading in table if heading != right])
        return {f"then {family}": fill(f"{conclusion.capitalize()}.", right, wrong)}
    replies = {}
    language = LANGUAGES.get(labels.get("language"))  # which not every task's rows need to say
    if language and task != "lid":
        other = pick(rng, [known for known in LANGUAGES.values() if known != language])
        replies["then language"] = fill("It is {}.", language, other)
    if task != "sgc" and (gender := _GENDERS.get(labels.get("speaker"))):
        replies["then gender"] = fill("It is a {} voice.", gender, {"male": "female", "female": "male"}[gender])
    said = labels.get("transcript", labels.get("text", ""))
    for slot, right in slots(said).items() if labels.get("language") == "en" else ():
        replies[f"then {slot}"] = fill(_SLOT_SENTENCES[slot], right, _other_slot(rng, pool.split, slot, right)[1])
    return replies


# --- small facts, asked without any other audio -------------------------------------------------------------------

Fact = tuple[dict[str, str], Reply]


def _opposite(rng: Rng, split: str) -> Fact:
    pair = pick(rng, wordings.OPPOSITES)
    word, right = pair if rng.random() < 0.5 else pair[::-1]
    wrong = pick(rng, [other for others in wordings.OPPOSITES for other in others if other not in pair])
    return {"word": word}, fill(f"The opposite of {word} is {{}}.", right, wrong)


def _category(rng: Rng, split: str) -> Fact:
    right = pick(rng, wordings.CATEGORIES)
    noun = f"the {pick(rng, wordings.CATEGORIES[right])}"
    wrong = pick(rng, [other for other in wordings.CATEGORIES if other != right])
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
    statement, right = _other_slot(rng, split, slot)
    _, wrong = _other_slot(rng, split, slot, right)
    return {"statement": statement}, fill(_SLOT_SENTENCES[slot], right, wrong)


FACTS: dict[str, Callable[[Rng, str], Fact]] = {
    "opposite": _opposite,
    "category": _category,
    "sum": _sum,
    "word": _word,
    **{f"recall {slot}": partial(_recall, slot=slot) for slot in _SLOT_SENTENCES},
}
