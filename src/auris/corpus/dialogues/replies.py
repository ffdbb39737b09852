"""Replies of dialogues: the label of a row, other facts that follow from labels, and facts that need no audio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from auris.corpus import speech
from auris.corpus.dialogues import wordings
from auris.corpus.dialogues.pool import Pool, answer_text, noun_phrase
from auris.corpus.draws import Rng, pick
from auris.corpus.grammar import ADVERBS, INTRANSITIVE, OBJECTS, PLACES, SUBJECTS, TRANSITIVE, draw_sentence
from auris.data.rows import Row
from auris.metrics.judges.rating import POLITE_OPENINGS
from auris.text.tasks import LANGUAGES

_GENDER_BY_VOICE = {
    voice: gender for voices in speech.VOICES.values() for gender, names in voices.items() for voice in names
}
# Conclusions that can be drawn from the label of a sound. For each task: the topic of the question, the labels by
# answer, and the sentence of the conclusion. A topic is a key of the questions in `wordings.yaml`.
INFERENCES = {
    "sec": ("source", wordings.SOUND_SOURCES, "it comes from {}"),
    "mic": ("family", wordings.INSTRUMENT_FAMILIES, "it is a {} instrument"),
}
_FOREIGN_LANGUAGES = ("de", "es", "fr", "it")  # target languages of the questions about a foreign word


@dataclass(frozen=True)
class Reply:
    """A right answer in several forms, and a wrong answer.

    Attributes:
        terse: The right answer as a word or phrase.
        sentence: The right answer as a full sentence.
        key: Text that every right answer contains.
        wrong_sentence: A sentence with a wrong answer; None if no wrong answer is known.
        language: Language of the key.
    """

    terse: str
    sentence: str
    key: str
    wrong_sentence: str | None
    language: str = "en"

    def write(self, form: str, rng: Rng) -> str:
        """Return the right answer in the form `form`, one of `wordings.FORMS`."""
        if form == "terse":
            return self.terse
        return self.sentence if form == "sentence" else f"{pick(rng, POLITE_OPENINGS)} {self.sentence}"


def make_reply(template: str, right: str, wrong: str | None, language: str = "en") -> Reply:
    """Return a reply whose sentences are `template` with its braces filled by the right and the wrong answer."""
    return Reply(right, template.format(right), right, wrong and template.format(wrong), language)


def reply_to_row(rng: Rng, pool: Pool, row: Row) -> Reply:
    """Return the reply to the question that asks for a row's label."""
    labels = row.labels
    task, target = labels["task"], labels.get("target_language") or ""
    key_languages = {"asr": labels.get("language"), "s2tt": target}

    def write_sentence(label: str) -> str:
        fields = {"answer": label, "named": noun_phrase(task, label), "target": LANGUAGES.get(target, "")}
        return wordings.ANSWER_SENTENCES[task].format(**fields)

    right, wrong = answer_text(row), pool.draw_wrong_label(rng, row)
    return Reply(right, write_sentence(right), right, wrong and write_sentence(wrong), key_languages.get(task) or "en")


def parse_slots(sentence: str) -> dict[str, str]:
    """Return the slots `who`, `what` and `where` of an English sentence of the grammar; empty for other sentences."""
    words = sentence.split()
    verbs = [index for index, word in enumerate(words) if word in TRANSITIVE or word in INTRANSITIVE]
    if len(verbs) != 1 or "says" in words:
        return {}
    words_after_verb = words[verbs[0] + 1 :]
    if words_after_verb and words_after_verb[-1] in ADVERBS:
        words_after_verb = words_after_verb[:-1]
    slots = {"who": " ".join(words[: verbs[0]])}
    if phrase := " ".join(words_after_verb):
        slots["where" if phrase in PLACES else "what"] = phrase
    return slots


_SLOT_SENTENCES = {"who": "It is {}.", "what": "The thing is {}.", "where": "It is {}."}


def _draw_slot(rng: Rng, split: str, slot: str, *, excluded: str | None = None) -> tuple[str, str]:
    """Draw a sentence of `split` whose slot has a value other than `excluded`; return the sentence and the value."""
    while True:
        sentence = draw_sentence(rng, split, "en")
        value = parse_slots(sentence).get(slot)
        if value and value != excluded:
            return sentence, value


def make_follow_up_replies(rng: Rng, pool: Pool, row: Row) -> dict[str, Reply]:
    """Return replies to further questions that can be answered from a row's labels, by family of question."""
    labels, task = row.labels, row.labels["task"]
    if task in INFERENCES:
        topic, labels_by_answer, conclusion = INFERENCES[task]
        right = next((answer for answer, implying in labels_by_answer.items() if answer_text(row) in implying), None)
        if right is None:
            return {}
        wrong = pick(rng, [answer for answer in labels_by_answer if answer != right])
        return {f"follow-up {topic}": make_reply(f"{conclusion.capitalize()}.", right, wrong)}
    replies = {}
    language = LANGUAGES.get(labels.get("language") or "")  # rows of some tasks may lack this label
    if language and task != "lid":
        wrong = pick(rng, [name for name in LANGUAGES.values() if name != language])
        replies["follow-up language"] = make_reply("It is {}.", language, wrong)
    if task != "sgc" and (gender := _GENDER_BY_VOICE.get(labels.get("speaker") or "")):
        replies["follow-up gender"] = make_reply(
            "It is a {} voice.", gender, {"male": "female", "female": "male"}[gender]
        )
    transcript = labels.get("transcript", labels.get("text", ""))
    slots = parse_slots(transcript) if labels.get("language") == "en" else {}
    for slot, right in slots.items():
        _, wrong = _draw_slot(rng, pool.split, slot, excluded=right)
        replies[f"follow-up {slot}"] = make_reply(_SLOT_SENTENCES[slot], right, wrong)
    return replies


# --- facts that need no audio -------------------------------------------------------------------------------------

Fact = tuple[dict[str, str], Reply]
"""Values of the fields in the question's template, and the reply."""


def _draw_opposite(rng: Rng, split: str) -> Fact:
    pair = pick(rng, wordings.OPPOSITES)
    word, right = pair if rng.random() < 0.5 else pair[::-1]
    wrong = pick(rng, [word for words in wordings.OPPOSITES for word in words if word not in pair])
    return {"word": word}, make_reply(f"The opposite of {word} is {{}}.", right, wrong)


def _draw_category(rng: Rng, split: str) -> Fact:
    right = pick(rng, wordings.CATEGORIES)
    noun = f"the {pick(rng, wordings.CATEGORIES[right])}"
    wrong = pick(rng, [category for category in wordings.CATEGORIES if category != right])
    return {"noun": noun}, make_reply(f"{noun.capitalize()} is {{}}.", right, wrong)


def _draw_sum(rng: Rng, split: str) -> Fact:
    a, b = int(rng.integers(1, 6)), int(rng.integers(1, 6))
    numbers = wordings.NUMBERS
    right = numbers[a + b - 1]
    wrong = pick(rng, [number for number in numbers[max(a, b) :] if number != right])
    first, second = numbers[a - 1], numbers[b - 1]
    return {"a": first, "b": second}, make_reply(f"{first.capitalize()} plus {second} is {{}}.", right, wrong)


def _draw_foreign_word(rng: Rng, split: str) -> Fact:
    language, noun, wrong = pick(rng, _FOREIGN_LANGUAGES), pick(rng, SUBJECTS), pick(rng, OBJECTS)
    right, target = SUBJECTS[noun][language], LANGUAGES[language]
    reply = make_reply(f"In {target}: {{}}.", right, OBJECTS[wrong][language], language)
    return {"noun": f"the {noun}", "target": target}, reply


def _draw_recall(rng: Rng, split: str, slot: str) -> Fact:
    statement, right = _draw_slot(rng, split, slot)
    _, wrong = _draw_slot(rng, split, slot, excluded=right)
    return {"statement": statement}, make_reply(_SLOT_SENTENCES[slot], right, wrong)


FACTS: dict[str, Callable[[Rng, str], Fact]] = {
    "opposite": _draw_opposite,
    "category": _draw_category,
    "sum": _draw_sum,
    "word": _draw_foreign_word,
    **{f"recall {slot}": partial(_draw_recall, slot=slot) for slot in _SLOT_SENTENCES},
}
