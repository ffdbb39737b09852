"""Writer of dialogues as chat rows and as preference pairs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from auris.corpus.dialogues.kinds import ATTEMPTS, KINDS, TEMPLATES, Exchange
from auris.corpus.dialogues.pool import Pool, Weights, draw
from auris.corpus.dialogues.recordings import RecordingSpec
from auris.corpus.draws import Rng, pick
from auris.corpus.output import LICENCE, derive_seed
from auris.corpus.recording import Fields, Job, cast
from auris.data.rows import Row
from auris.errors import UserError
from auris.metrics.judges.rating import POLITE_OPENINGS, rate
from auris.metrics.normalize import contains

ANNOTATOR = "a rule (auris.metrics.judges.rating.rate), not a person"
# Faults of a rejected answer: wrong content, no full sentence, no polite opening.
FAULTS = ("wrong", "terse", "plain")


@dataclass(frozen=True)
class Dialogue:
    """A finished row and, if it contains speech of the user, the recording to make for it."""

    row: Fields
    recording: RecordingSpec | None


Finish = Callable[[Job, Sequence[Exchange], Rng], Dialogue | None]
"""Turns exchanges into a row; None if they cannot be used."""


@dataclass(frozen=True)
class Writer:
    """Writer of the dialogues of a split. Kinds are interleaved, so that every part of a file has the same mix.

    Attributes:
        pool: Material of the split.
        folder: Directory of the manifests; paths of clips are relative to it.
        forms: Weights of the forms of answers.
        faults: Weights of the faults of rejected answers.
        seed: Random seed.
    """

    pool: Pool
    folder: Path
    forms: Weights
    faults: Weights
    seed: int

    def write_chats(self, counts: Mapping[str, int]) -> list[Dialogue]:
        """Write chat rows, `counts` by kind.

        Raises:
            UserError: The corpus lacks what a kind needs, or a kind has no more different dialogues.
        """

        def finish(job: Job, exchanges: Sequence[Exchange], rng: Rng) -> Dialogue:
            is_augmented = exchanges[0].written_by != TEMPLATES  # answers of a language model are not changed
            form = "sentence" if is_augmented else draw(rng, self.forms)
            dialogue = self._write(job, exchanges, [exchange.reply.write(form, rng) for exchange in exchanges], rng)
            return Dialogue({**dialogue.row, "form": form}, dialogue.recording)

        return self._write_kinds("chat", counts, finish)

    def write_preferences(self, counts: Mapping[str, int]) -> list[Dialogue]:
        """Write preference rows, `counts` by kind: a polite right answer, and one with a fault of `FAULTS`.

        Raises:
            UserError: The corpus lacks what a kind needs, or a kind has no more different dialogues.
        """

        def finish(job: Job, exchanges: Sequence[Exchange], rng: Rng) -> Dialogue | None:
            reply, fault, form = exchanges[-1].reply, draw(rng, self.faults), draw(rng, self.forms)
            if fault == "wrong" and (reply.wrong is None or contains(reply.wrong, reply.key, reply.language)):
                return None  # there is no wrong answer, or it contains the right one
            earlier_replies = [exchange.reply.write(form, rng) for exchange in exchanges[:-1]]
            dialogue = self._write(job, exchanges, [*earlier_replies, None], rng)
            wrong = f"{pick(rng, POLITE_OPENINGS)} {reply.wrong}"
            faulty = {"wrong": wrong, "terse": reply.terse, "plain": reply.sentence}
            pair = {"chosen": reply.write("polite", rng), "rejected": faulty[fault]}
            scores = [rate(answer, reply.key, reply.language) for answer in pair.values()]
            preference = {**pair, "fault": fault, "scores": scores, "annotator": ANNOTATOR}
            return Dialogue({**dialogue.row, **preference}, dialogue.recording)

        return self._write_kinds("preference", counts, finish)

    def _write_kinds(self, variant: str, counts: Mapping[str, int], finish: Finish) -> list[Dialogue]:
        entries = [
            (index / count, kind, dialogue)
            for kind, count in counts.items()
            for index, dialogue in enumerate(self._write_kind(variant, kind, count, finish))
        ]
        return [dialogue for _, _, dialogue in sorted(entries, key=lambda entry: entry[:2])]

    def _write_kind(self, variant: str, kind: str, count: int, finish: Finish) -> Iterator[Dialogue]:
        """Yield `count` different dialogues. A spoken sentence may be repeated, because each has its own recording."""
        contents: set[str] = set()
        for index in range(count):
            place = (self.pool.split, kind, variant, index)
            for attempt in range(ATTEMPTS):
                job = Job(*place, derive_seed(self.seed, "dialogue", *place, attempt))
                rng = np.random.default_rng(job.seed)
                dialogue = finish(job, KINDS[kind](rng, self.pool), rng)
                if dialogue and (content := json.dumps(dialogue.row["messages"])) not in contents:
                    contents.add(content)
                    yield dialogue
                    break
            else:
                raise UserError(
                    f"the {self.pool.split} split has only about {index} different dialogues of the kind {kind!r}, "
                    f"but {count} are requested: lower dialogues.mix.{kind} or the number of rows"
                )

    def _write(self, job: Job, exchanges: Sequence[Exchange], replies: Sequence[str | None], rng: Rng) -> Dialogue:
        """Write the row of a dialogue; a reply of None is left out."""
        messages: list[Fields] = []
        recording: RecordingSpec | None = None
        for exchange, reply in zip(exchanges, replies, strict=True):
            paths = [Path(str(row.clips[0].path)) for row in exchange.clips]
            audios = [os.path.relpath(path.resolve(), self.folder) for path in paths]
            if exchange.spoken:
                assert recording is None, exchanges
                line = cast(rng, job, exchange.spoken, "en")
                recording = RecordingSpec(job.audio, job.place, line, job.seed, tuple(paths))
                audios = [job.audio]
            content: Any = [{"type": "audio", "audio": path} for path in audios]
            if exchange.text:
                content = [*content, {"type": "text", "text": exchange.text}] if audios else exchange.text
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
            "provenance": _provenance(sources, has_speech=recording is not None),
            "written_by": exchanges[0].written_by,
            "seed": job.seed,
            "licence": " and ".join(sorted({str(row.labels.get("licence", "unknown")) for row in sources})) or LICENCE,
        }
        if job.task in ("demonstration", "turns"):  # the last question is the question of a task
            row["skill"] = sources[-1].labels["task"]
        if recording:
            row |= {"spoken": " ".join(recording.line.words), "speaker": recording.line.variant}
        return Dialogue(row, recording)


def _mode(exchanges: Sequence[Exchange]) -> str:
    """Return the mode of a dialogue. Any clip makes it audio analysis, even if the command is spoken."""
    if any(exchange.clips for exchange in exchanges):
        return "audio_analysis"
    return "voice_chat" if any(exchange.spoken for exchange in exchanges) else "text"


def _provenance(sources: Sequence[Row], *, has_speech: bool) -> str:
    """Return the kinds of sound in a dialogue, as `procedural+tts`; `templates` for one without audio."""
    kinds = {str(row.labels.get("provenance", "unknown")) for row in sources} | ({"tts"} if has_speech else set())
    return "+".join(sorted(kinds)) or "templates"
