"""Dialogues as chat rows and as preference pairs, every stretch of them with the kinds in proportion."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from auris.corpus.dialogues.kinds import ATTEMPTS, KINDS, TEMPLATES, Exchange
from auris.corpus.dialogues.pool import Pool, Rng, Weights, draw
from auris.corpus.dialogues.recordings import Spoken
from auris.corpus.dialogues.wordings import pick
from auris.corpus.output import LICENCE, derive_seed
from auris.corpus.recording import Fields, Job, cast
from auris.data.rows import Row
from auris.errors import UserError
from auris.metrics.judges.rating import POLITE_OPENINGS, rate
from auris.metrics.normalize import contains

ANNOTATOR = "a rule (auris.metrics.judges.rating.rate), not a person"
FAULTS = ("wrong", "terse", "plain")  # of a rejected answer: other content, no sentence, no polite introduction


@dataclass(frozen=True)
class Made:
    """A finished row and, if somebody speaks in it, the recording that it needs."""

    row: Fields
    spoken: Spoken | None


def plan_chat(
    pool: Pool, counts: Mapping[str, int], *, forms: Weights, locate: Callable[[Path], str], seed: int
) -> list[Made]:
    """Chat rows of a split: `counts` by kind, every stretch of them with the kinds in proportion.

    Args:
        forms: weights of the forms that answers take.
        locate: from a clip's path to the one that the row names.

    Raises ValueError if the corpus lacks what a kind needs, or a kind has no more different dialogues.
    """

    def finish(job: Job, exchanges: Sequence[Exchange], rng: Rng) -> Made:
        augmented = exchanges[0].written_by != TEMPLATES  # its answer stays as the language model wrote it
        form = "sentence" if augmented else draw(rng, forms)
        made = _write(job, exchanges, [exchange.reply.write(form, rng) for exchange in exchanges], locate, rng)
        return Made({**made.row, "form": form}, made.spoken)

    return _plan(pool, "chat", counts, seed, finish)


def plan_preferences(
    pool: Pool,
    counts: Mapping[str, int],
    *,
    forms: Weights,
    faults: Weights,
    locate: Callable[[Path], str],
    seed: int,
) -> list[Made]:
    """Preference rows: the polite right answer, and one with a fault of `FAULTS`. Otherwise as `plan_chat`."""

    def finish(job: Job, exchanges: Sequence[Exchange], rng: Rng) -> Made | None:
        reply, fault, form = exchanges[-1].reply, draw(rng, faults), draw(rng, forms)
        if fault == "wrong" and (reply.wrong is None or contains(reply.wrong, reply.key, reply.language)):
            return None  # another sentence may go on where the right one ends
        before = [exchange.reply.write(form, rng) for exchange in exchanges[:-1]]
        made = _write(job, exchanges, [*before, None], locate, rng)
        worse = {"wrong": f"{pick(rng, POLITE_OPENINGS)} {reply.wrong}", "terse": reply.terse, "plain": reply.sentence}
        pair = {"chosen": reply.write("polite", rng), "rejected": worse[fault]}
        scores = [rate(answer, reply.key, reply.language) for answer in pair.values()]
        return Made({**made.row, **pair, "fault": fault, "scores": scores, "annotator": ANNOTATOR}, made.spoken)

    return _plan(pool, "preference", counts, seed, finish)


def _plan(
    pool: Pool,
    variant: str,
    counts: Mapping[str, int],
    seed: int,
    finish: Callable[[Job, Sequence[Exchange], Rng], Made | None],
) -> list[Made]:
    placed: list[tuple[float, str, Made]] = []
    for kind, count in counts.items():
        seen: set[str] = set()
        for index in range(count):
            made = _draw_new(pool, kind, variant, index, seed, finish, seen)
            placed.append((index / count, kind, made))
    return [made for _, _, made in sorted(placed, key=lambda entry: entry[:2])]


def _draw_new(
    pool: Pool,
    kind: str,
    variant: str,
    index: int,
    seed: int,
    finish: Callable[[Job, Sequence[Exchange], Rng], Made | None],
    seen: set[str],
) -> Made:
    """A dialogue that is not in `seen`, to which it is added; what is spoken is another each time it is said."""
    for attempt in range(ATTEMPTS):
        place = (pool.split, kind, variant, index)
        job = Job(*place, derive_seed(seed, "dialogue", *place, attempt))
        rng = np.random.default_rng(job.seed)
        made = finish(job, KINDS[kind](rng, pool), rng)
        if made is None:
            continue
        content = json.dumps(made.row["messages"])
        if content not in seen:
            seen.add(content)
            return made
    raise UserError(
        f"there are about {index} different dialogues of the kind {kind!r} in the {pool.split} split, and more are "
        f"asked for: lower mix.{kind} or the number of rows"
    )


def _write(
    job: Job,
    exchanges: Sequence[Exchange],
    replies: Sequence[str | None],
    locate: Callable[[Path], str],
    rng: Rng,
) -> Made:
    """The row of a dialogue; a reply of None is left out."""
    messages: list[Fields] = []
    spoken: Spoken | None = None
    for exchange, reply in zip(exchanges, replies, strict=True):
        paths = [row.clips[0].path for row in exchange.clips]
        heard = list(map(locate, paths))
        if exchange.spoken:
            assert spoken is None, exchanges
            line = cast(rng, job, exchange.spoken, "en")
            place = (f"{job.split} {job.task} {job.variant}", job.index)
            spoken = Spoken(job.audio, place, line, job.seed, tuple(paths))
            heard = [job.audio]
        content: Any = [{"type": "audio", "audio": path} for path in heard]
        if exchange.text:
            content = [*content, {"type": "text", "text": exchange.text}] if heard else exchange.text
        messages.append({"role": "user", "content": content})
        if reply is not None:
            messages.append({"role": "assistant", "content": reply})
    last = exchanges[-1]
    sources = [row for exchange in exchanges for row in exchange.clips]
    row = {
        "id": job.id,
        "messages": messages,
        "mode": _mode(exchanges),
        "kind": job.task,
        "key": last.reply.key,
        "language": last.reply.language,
        "split": job.split,
        "sources": [row.id for row in sources],
        "provenance": _provenance(sources, spoken is not None),
        "written_by": exchanges[0].written_by,
        "seed": job.seed,
        "licence": " and ".join(sorted({str(row.labels.get("licence", "unknown")) for row in sources})) or LICENCE,
    }
    if job.task in ("demonstration", "turns"):  # whose last question is that of a task
        row["skill"] = sources[-1].labels["task"]
    if spoken:
        row |= {"spoken": " ".join(spoken.line.words), "speaker": spoken.line.variant}
    return Made(row, spoken)


def _mode(exchanges: Sequence[Exchange]) -> str:
    """A clip to be analysed anywhere makes it audio analysis, also where the command is spoken."""
    if any(exchange.clips for exchange in exchanges):
        return "audio_analysis"
    return "voice_chat" if any(exchange.spoken for exchange in exchanges) else "text"


def _provenance(sources: Sequence[Row], spoken: bool) -> str:
    """Kinds of sound, as `procedural+tts`; of a dialogue without any, that its words are templates."""
    kinds = {str(row.labels.get("provenance", "unknown")) for row in sources} | ({"tts"} if spoken else set())
    return "+".join(sorted(kinds)) or "templates"
