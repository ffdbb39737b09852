"""Recipes of tasks on one speaker: transcripts, translations, languages, dialects, voices, keywords and requests."""

from __future__ import annotations

from dataclasses import dataclass, replace

from auris.corpus import grammar, requests
from auris.corpus.grammar import KEYWORDS
from auris.corpus.recording import Job, Rng, Script, cast, read_out


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
        text = grammar.draw_keyword_phrase(rng, job.split, str(rng.choice(KEYWORDS))).text
    else:
        text = grammar.render(grammar.draw_meaning(rng, job.split), job.variant)
    fields = {"language": job.variant, "text": text, "content": text}
    return read_out(fields, cast(rng, job, text, job.variant), rng)


def write_s2tt(job: Job, rng: Rng) -> Script:
    source, target = job.variant.split("-")
    meaning = grammar.draw_meaning(rng, job.split)
    transcript, text = grammar.render(meaning, source), grammar.render(meaning, target)
    labels = {"language": source, "target_language": target, "text": text, "transcript": transcript}
    return read_out({**labels, "content": transcript}, cast(rng, job, transcript, source), rng)


def write_lid(job: Job, rng: Rng) -> Script:
    """Speech in the language that the job names, with its transcript: for `lid`, and for times of words."""
    transcript = grammar.render(grammar.draw_meaning(rng, job.split), job.variant)
    fields = {"language": job.variant, "transcript": transcript, "content": transcript}
    return read_out(fields, cast(rng, job, transcript, job.variant), rng)


def write_sgc(job: Job, rng: Rng) -> Script:
    transcript = grammar.render(grammar.draw_meaning(rng, job.split), "en")
    labels = {"language": "en", "text": job.variant, "transcript": transcript}
    line = cast(rng, job, transcript, "en", gender=job.variant)
    return read_out({**labels, "content": f"{job.variant} {transcript}"}, line, rng)


def write_ks(job: Job, rng: Rng) -> Script:
    transcript = grammar.draw_keyword_phrase(rng, job.split, job.variant).text
    labels = {"language": "en", "text": job.variant, "transcript": transcript}
    return read_out({**labels, "content": transcript}, cast(rng, job, transcript, "en"), rng)


def write_dialect_asr(job: Job, rng: Rng) -> Script:
    dialect = DIALECTS[job.variant]
    text = grammar.render(grammar.draw_meaning(rng, job.split), dialect.language)
    fields = {"language": dialect.language, "dialect": dialect.name, "text": text, "content": text}
    return read_out(fields, cast(rng, job, text, dialect.language, accent=dialect.accent), rng)


def write_did(job: Job, rng: Rng) -> Script:
    dialect = DIALECTS[job.variant]
    transcript = grammar.render(grammar.draw_meaning(rng, job.split), dialect.language)
    labels = {"language": dialect.language, "text": dialect.name, "transcript": transcript}
    line = cast(rng, job, transcript, dialect.language, accent=dialect.accent)
    return read_out({**labels, "content": f"{dialect.name} {transcript}"}, line, rng)


def write_request(job: Job, rng: Rng) -> Script:
    """A request to an assistant, with its intent, its slots and the entities in it."""
    request = requests.draw(rng, job.split, job.variant)
    labels = {"intent": request.intent, "slots": request.slots, "entities": request.entities}
    fields = {"language": "en", **labels, "transcript": request.text, "content": request.text}
    return read_out(fields, cast(rng, job, request.text, "en"), rng)


def write_er(job: Job, rng: Rng) -> Script:
    return _write_voice(job, rng, EMOTIONS[job.variant])


def write_sap(job: Job, rng: Rng) -> Script:
    return _write_voice(job, rng, AGES[job.variant])


def _write_voice(job: Job, rng: Rng, settings: dict[str, float]) -> Script:
    """A sentence by a voice whose settings are what the label stands for."""
    transcript = grammar.render(grammar.draw_meaning(rng, job.split), "en")
    labels = {"language": "en", "text": job.variant, "transcript": transcript}
    line = replace(cast(rng, job, transcript, "en"), **settings)
    return read_out({**labels, "content": f"{job.variant} {transcript}"}, line, rng)
