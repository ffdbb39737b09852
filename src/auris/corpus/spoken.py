"""Recipes of tasks with one speaker: transcripts, translations, languages, dialects, voices, keywords and requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from auris.corpus import grammar, requests
from auris.corpus.draws import Rng, pick
from auris.corpus.grammar import KEYWORDS
from auris.corpus.recording import Fields, LineSettings, RowSpec, Script, VoiceSettings, draw_line, record_utterance


@dataclass(frozen=True)
class Dialect:
    """A variety of a language in eSpeak. Varieties differ only in their vowels and consonants.

    Attributes:
        name: The label.
        language: Language of the sentences.
        accent: eSpeak's name of the variety; None for the default of the language.
    """

    name: str
    language: str
    accent: str | None = None


# Two kinds of varieties are excluded: those that eSpeak pronounces like the standard of the language (New York, Belgian
# French, Swiss French), and those that it pronounces nearly like another variety in the sentences of the corpus
# (Lancaster and West Midlands like Scotland; Latin American Spanish).
DIALECTS = {
    "american": Dialect("American English", "en"),
    "british": Dialect("British English", "en", "en-gb-x-rp"),
    "scottish": Dialect("Scottish English", "en", "en-gb-scotland"),
    "caribbean": Dialect("Caribbean English", "en", "en-029"),
    "mandarin": Dialect("Mandarin", "zh"),
    "cantonese": Dialect("Cantonese", "yue"),
}
STANDARDS = ("american", "mandarin")  # standard varieties, which `dialect_asr` leaves out

# These labels have grade D (`tasks.GRADES`): they stand for settings of a voice, not for real emotions or ages.
EMOTIONS: dict[str, VoiceSettings] = {
    "neutral": {"pitch": 50, "rate": 180},
    "happy": {"pitch": 85, "rate": 210},
    "sad": {"pitch": 25, "rate": 130},
    "angry": {"pitch": 60, "rate": 260},
}
AGES: dict[str, VoiceSettings] = {
    "child": {"pitch": 80, "speed": 1.3, "rate": 150},
    "adult": {"pitch": 50, "speed": 1.0, "rate": 185},
    "senior": {"pitch": 35, "speed": 0.85, "rate": 140},
}


def write_asr(spec: RowSpec, rng: Rng) -> Script:
    """Write a row of `asr`: the text of the spec, else a sentence, or a keyword phrase in every third English row.

    Keyword phrases let the model learn keywords as words too, not only as classes of `ks`.
    """
    if spec.text is not None:
        text = spec.text
    elif spec.variant == "en" and spec.index % 3 == 2:
        text = grammar.draw_keyword_phrase(rng, spec.split, pick(rng, KEYWORDS))
    else:
        text = grammar.draw_sentence(rng, spec.split, spec.variant)
    return _write_script(spec, rng, text, {"language": spec.variant, "text": text})


def write_s2tt(spec: RowSpec, rng: Rng) -> Script:
    """Write a row of `s2tt`: a sentence with its translation."""
    source, target = spec.variant.split("-")
    meaning = grammar.draw_meaning(rng, spec.split)
    transcript, text = grammar.render(meaning, source), grammar.render(meaning, target)
    labels = {"language": source, "target_language": target, "text": text, "transcript": transcript}
    return _write_script(spec, rng, transcript, labels)


def write_lid(spec: RowSpec, rng: Rng) -> Script:
    """Write a row of `lid` or `srwt`: a sentence in the row's language, with its transcript."""
    transcript = grammar.draw_sentence(rng, spec.split, spec.variant)
    return _write_script(spec, rng, transcript, {"language": spec.variant, "transcript": transcript})


def write_ks(spec: RowSpec, rng: Rng) -> Script:
    """Write a row of `ks`: a phrase with a keyword."""
    transcript = grammar.draw_keyword_phrase(rng, spec.split, spec.variant)
    return _write_script(spec, rng, transcript, {"language": "en", "text": spec.variant, "transcript": transcript})


def write_dialect_asr(spec: RowSpec, rng: Rng) -> Script:
    """Write a row of `dialect_asr`: a sentence in a dialect."""
    dialect = DIALECTS[spec.variant]
    text = grammar.draw_sentence(rng, spec.split, dialect.language)
    labels = {"language": dialect.language, "dialect": dialect.name, "text": text}
    return _write_script(spec, rng, text, labels, accent=dialect.accent)


def write_request(spec: RowSpec, rng: Rng) -> Script:
    """Write a row of `ser`, `ic` or `sf`: a request to an assistant with its intent, slots and entities."""
    request = requests.draw_request(rng, spec.split, spec.variant)
    labels = {"intent": request.intent, "slots": request.slots, "entities": request.entities}
    return _write_script(spec, rng, request.text, {"language": "en", **labels, "transcript": request.text})


def write_sgc(spec: RowSpec, rng: Rng) -> Script:
    """Write a row of `sgc`: a sentence by a voice of the row's gender."""
    return _write_voice(spec, rng, spec.variant, gender=spec.variant)


def write_did(spec: RowSpec, rng: Rng) -> Script:
    """Write a row of `did`: a sentence with the accent of a dialect."""
    dialect = DIALECTS[spec.variant]
    return _write_voice(spec, rng, dialect.name, dialect.language, accent=dialect.accent)


def write_er(spec: RowSpec, rng: Rng) -> Script:
    """Write a row of `er`: a sentence with the voice settings of an emotion."""
    return _write_voice(spec, rng, spec.variant, **EMOTIONS[spec.variant])


def write_sap(spec: RowSpec, rng: Rng) -> Script:
    """Write a row of `sap`: a sentence with the voice settings of an age."""
    return _write_voice(spec, rng, spec.variant, **AGES[spec.variant])


def _write_voice(spec: RowSpec, rng: Rng, label: str, language: str = "en", **settings: Unpack[LineSettings]) -> Script:
    """Write a sentence for a voice; `label` describes `settings`."""
    transcript = grammar.draw_sentence(rng, spec.split, language)
    labels = {"language": language, "text": label, "transcript": transcript, "content": f"{label} {transcript}"}
    return _write_script(spec, rng, transcript, labels, **settings)


def _write_script(spec: RowSpec, rng: Rng, text: str, labels: Fields, **settings: Unpack[LineSettings]) -> Script:
    """Return a script in which one speaker says `text`."""
    line = draw_line(rng, spec, text, labels["language"], **settings)
    fields = {**labels, "content": labels.get("content", text)}
    return Script((line,), lambda utterances: record_utterance(fields, line, utterances[0], rng))
