"""Recipes of tasks on one speaker: transcripts, translations, languages, dialects, voices, keywords and requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from auris.corpus import grammar, requests
from auris.corpus.draws import Rng, pick
from auris.corpus.grammar import KEYWORDS
from auris.corpus.recording import Fields, Job, Script, cast, stage


@dataclass(frozen=True)
class Dialect:
    """A variety of a language as eSpeak knows it: it has other vowels and consonants there, not a speaker's habits."""

    name: str
    language: str
    accent: str | None = None


# Left out: varieties that eSpeak says like their standard (New York, Belgian and Swiss French), or nearly so in these
# sentences (Lancaster and West Midlands like Scotland, Latin American Spanish).
DIALECTS = {
    "american": Dialect("American English", "en"),
    "british": Dialect("British English", "en", "en-gb-x-rp"),
    "scottish": Dialect("Scottish English", "en", "en-gb-scotland"),
    "caribbean": Dialect("Caribbean English", "en", "en-029"),
    "mandarin": Dialect("Mandarin", "zh"),
    "cantonese": Dialect("Cantonese", "yue"),
}
STANDARDS = ("american", "mandarin")

# Grade D: nobody feels or is of an age here, these are the settings of a voice that the labels stand for.
EMOTIONS: dict[str, dict[str, float]] = {
    "neutral": {"pitch": 50, "rate": 180},
    "happy": {"pitch": 85, "rate": 210},
    "sad": {"pitch": 25, "rate": 130},
    "angry": {"pitch": 60, "rate": 260},
}
AGES: dict[str, dict[str, float]] = {
    "child": {"pitch": 80, "speed": 1.3, "rate": 150},
    "adult": {"pitch": 50, "speed": 1.0, "rate": 185},
    "senior": {"pitch": 35, "speed": 0.85, "rate": 140},
}


def write_asr(job: Job, rng: Rng) -> Script:
    # Every third English row is a keyword phrase: keywords are to be learnt as words too, not only spotted.
    if job.variant == "en" and job.index % 3 == 2:
        text = grammar.draw_keyword_phrase(rng, job.split, pick(rng, KEYWORDS))
    else:
        text = grammar.draw_sentence(rng, job.split, job.variant)
    return _read_out(job, rng, text, {"language": job.variant, "text": text})


def write_s2tt(job: Job, rng: Rng) -> Script:
    source, target = job.variant.split("-")
    meaning = grammar.draw_meaning(rng, job.split)
    transcript, text = grammar.render(meaning, source), grammar.render(meaning, target)
    labels = {"language": source, "target_language": target, "text": text, "transcript": transcript}
    return _read_out(job, rng, transcript, labels)


def write_lid(job: Job, rng: Rng) -> Script:
    """Speech in the language that the job names, with its transcript: for `lid`, and for times of words."""
    transcript = grammar.draw_sentence(rng, job.split, job.variant)
    return _read_out(job, rng, transcript, {"language": job.variant, "transcript": transcript})


def write_ks(job: Job, rng: Rng) -> Script:
    transcript = grammar.draw_keyword_phrase(rng, job.split, job.variant)
    return _read_out(job, rng, transcript, {"language": "en", "text": job.variant, "transcript": transcript})


def write_dialect_asr(job: Job, rng: Rng) -> Script:
    dialect = DIALECTS[job.variant]
    text = grammar.draw_sentence(rng, job.split, dialect.language)
    labels = {"language": dialect.language, "dialect": dialect.name, "text": text}
    return _read_out(job, rng, text, labels, accent=dialect.accent)


def write_request(job: Job, rng: Rng) -> Script:
    """A request to an assistant, with its intent, its slots and the entities in it."""
    request = requests.draw(rng, job.split, job.variant)
    labels = {"intent": request.intent, "slots": request.slots, "entities": request.entities}
    return _read_out(job, rng, request.text, {"language": "en", **labels, "transcript": request.text})


def write_sgc(job: Job, rng: Rng) -> Script:
    return _write_voice(job, rng, job.variant, gender=job.variant)


def write_did(job: Job, rng: Rng) -> Script:
    dialect = DIALECTS[job.variant]
    return _write_voice(job, rng, dialect.name, dialect.language, accent=dialect.accent)


def write_er(job: Job, rng: Rng) -> Script:
    return _write_voice(job, rng, job.variant, **EMOTIONS[job.variant])


def write_sap(job: Job, rng: Rng) -> Script:
    return _write_voice(job, rng, job.variant, **AGES[job.variant])


def _write_voice(job: Job, rng: Rng, label: str, language: str = "en", **voice: Any) -> Script:
    """A sentence by a voice whose settings are what the label stands for."""
    transcript = grammar.draw_sentence(rng, job.split, language)
    labels = {"language": language, "text": label, "transcript": transcript, "content": f"{label} {transcript}"}
    return _read_out(job, rng, transcript, labels, **voice)


def _read_out(job: Job, rng: Rng, text: str, labels: Fields, **voice: Any) -> Script:
    """The script of a single speaker; `voice` holds arguments of `cast`."""
    line = cast(rng, job, text, labels["language"], **voice)
    fields = {**labels, "content": labels.get("content", text)}
    return Script((line,), lambda spoken: stage(fields, line, spoken[0], rng))
