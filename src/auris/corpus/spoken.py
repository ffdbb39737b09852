"""Recipes of tasks with one speaker: transcripts, translations, languages, dialects, voices, keywords and requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from auris.corpus import grammar, requests
from auris.corpus.draws import Rng, pick
from auris.corpus.grammar import KEYWORDS
from auris.corpus.recording import CastSettings, Fields, Job, Script, VoiceSettings, cast, record_utterance


@dataclass(frozen=True)
class Dialect:
    """A variety of a language in eSpeak. Varieties differ in their vowels and consonants only."""

    name: str
    language: str
    accent: str | None = None


# Varieties that eSpeak pronounces like their standard (New York, Belgian and Swiss French), or nearly like another one
# in these sentences (Lancaster and West Midlands like Scotland, Latin American Spanish), are excluded.
DIALECTS = {
    "american": Dialect("American English", "en"),
    "british": Dialect("British English", "en", "en-gb-x-rp"),
    "scottish": Dialect("Scottish English", "en", "en-gb-scotland"),
    "caribbean": Dialect("Caribbean English", "en", "en-029"),
    "mandarin": Dialect("Mandarin", "zh"),
    "cantonese": Dialect("Cantonese", "yue"),
}
STANDARDS = ("american", "mandarin")

# Grade D: the labels stand for settings of a voice, not for real emotions or ages.
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


def write_asr(job: Job, rng: Rng) -> Script:
    """Write a row of `asr`: a sentence, or a keyword phrase in every third English row.

    Keyword phrases let the model learn keywords as words too, not only as classes of `ks`.
    """
    if job.variant == "en" and job.index % 3 == 2:
        text = grammar.draw_keyword_phrase(rng, job.split, pick(rng, KEYWORDS))
    else:
        text = grammar.draw_sentence(rng, job.split, job.variant)
    return _write_script(job, rng, text, {"language": job.variant, "text": text})


def write_s2tt(job: Job, rng: Rng) -> Script:
    """Write a row of `s2tt`: a sentence with its translation."""
    source, target = job.variant.split("-")
    meaning = grammar.draw_meaning(rng, job.split)
    transcript, text = grammar.render(meaning, source), grammar.render(meaning, target)
    labels = {"language": source, "target_language": target, "text": text, "transcript": transcript}
    return _write_script(job, rng, transcript, labels)


def write_lid(job: Job, rng: Rng) -> Script:
    """Write a row of `lid` or `srwt`: a sentence in the job's language, with its transcript."""
    transcript = grammar.draw_sentence(rng, job.split, job.variant)
    return _write_script(job, rng, transcript, {"language": job.variant, "transcript": transcript})


def write_ks(job: Job, rng: Rng) -> Script:
    """Write a row of `ks`: a phrase with a keyword."""
    transcript = grammar.draw_keyword_phrase(rng, job.split, job.variant)
    return _write_script(job, rng, transcript, {"language": "en", "text": job.variant, "transcript": transcript})


def write_dialect_asr(job: Job, rng: Rng) -> Script:
    """Write a row of `dialect_asr`: a sentence in a dialect."""
    dialect = DIALECTS[job.variant]
    text = grammar.draw_sentence(rng, job.split, dialect.language)
    labels = {"language": dialect.language, "dialect": dialect.name, "text": text}
    return _write_script(job, rng, text, labels, accent=dialect.accent)


def write_request(job: Job, rng: Rng) -> Script:
    """Write a row of `ser`, `ic` or `sf`: a request to an assistant with its intent, slots and entities."""
    request = requests.draw(rng, job.split, job.variant)
    labels = {"intent": request.intent, "slots": request.slots, "entities": request.entities}
    return _write_script(job, rng, request.text, {"language": "en", **labels, "transcript": request.text})


def write_sgc(job: Job, rng: Rng) -> Script:
    """Write a row of `sgc`: a sentence by a voice of the job's gender."""
    return _write_voice(job, rng, job.variant, gender=job.variant)


def write_did(job: Job, rng: Rng) -> Script:
    """Write a row of `did`: a sentence with the accent of a dialect."""
    dialect = DIALECTS[job.variant]
    return _write_voice(job, rng, dialect.name, dialect.language, accent=dialect.accent)


def write_er(job: Job, rng: Rng) -> Script:
    """Write a row of `er`: a sentence with the voice settings of an emotion."""
    return _write_voice(job, rng, job.variant, **EMOTIONS[job.variant])


def write_sap(job: Job, rng: Rng) -> Script:
    """Write a row of `sap`: a sentence with the voice settings of an age."""
    return _write_voice(job, rng, job.variant, **AGES[job.variant])


def _write_voice(job: Job, rng: Rng, label: str, language: str = "en", **settings: Unpack[CastSettings]) -> Script:
    """Write a sentence for a voice whose settings the label describes."""
    transcript = grammar.draw_sentence(rng, job.split, language)
    labels = {"language": language, "text": label, "transcript": transcript, "content": f"{label} {transcript}"}
    return _write_script(job, rng, transcript, labels, **settings)


def _write_script(job: Job, rng: Rng, text: str, labels: Fields, **settings: Unpack[CastSettings]) -> Script:
    """Return the script of a text with a single speaker."""
    line = cast(rng, job, text, labels["language"], **settings)
    fields = {**labels, "content": labels.get("content", text)}
    return Script((line,), lambda utterances: record_utterance(fields, line, utterances[0], rng))
