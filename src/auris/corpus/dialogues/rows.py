"""Dialogues as chat rows and as preference pairs, every stretch of them with the kinds in proportion."""

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
from auris.corpus.dialogues.recordings import Spoken
from auris.corpus.draws import Rng, pick
from auris.corpus.output import LICENCE, derive_seed
from auris.corpus.recording import Fields, Job, cast
from auris.data.rows import Row
from auris.errors import UserError
from auris.metrics.judges.rating import POLITE_OPENINGS, rate
from auris.metrics.normalize import contains

ANNOTATOR = "a rule (auris.metrics.judges.rating.rate), not a person"
FAULTS = ("wrong", "terse", "plain")  # of a rejected answer: other content, no sentence, no polite introduction


@dataclass(frozen=True)
class Dialogue:
    """A finished row and, if somebody speaks in it, the recording that it needs."""

    row: Fields
    spoken: Spoken | None


Finish = Callable[[Job, Sequence[Exchange], Rng], Dialogue | None]  # None: the dialogue cannot be used


@dataclass(frozen=True)
class Writer:
    """Writes the dialogues of a split as rows, every stretch of them with the kinds in proportion.

    Attributes:
        pool: The material of the split.
        folder: The directory of the rows, from which they name clips.
        forms: Weights of the forms that answers take.
        faults: Weights of the faults of rejected answers.
        seed: Decides everything together with the place of a row.
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
            augmented = exchanges[0].written_by != TEMPLATES  # its answer stays as the language model wrote it
            form = "sentence" if augmented else draw(rng, self.forms)
            dialogue = self._write(job, exchanges, [exchange.reply.write(form, rng) for exchange in exchanges], rng)
            return Dialogue({**dialogue.row, "form": form}, dialogue.spoken)

        return self._write_kinds("chat", counts, finish)

    def write_preferences(self, counts: Mapping[str, int]) -> list[Dialogue]:
        """Write preference rows: the polite right answer, and one with a fault of `FAULTS`. Raises as above."""

        def finish(job: Job, exchanges: Sequence[Exchange], rng: Rng) -> Dialogue | None:
            reply, fault, form = exchanges[-1].reply, draw(rng, self.faults), draw(rng, self.forms)
            if fault == "wrong" and (reply.wrong is None or contains(reply.wrong, reply.key, reply.language)):
                return None  # another sentence may go on where the right one ends
            before = [exchange.reply.write(form, rng) for exchange in exchanges[:-1]]
            dialogue = self._write(job, exchanges, [*before, None], rng)
            wrong = f"{pick(rng, POLITE_OPENINGS)} {reply.wrong}"
            worse = {"wrong": wrong, "terse": reply.terse, "plain": reply.sentence}
            pair = {"chosen": reply.write("polite", rng), "rejected": worse[fault]}
            scores = [rate(answer, reply.key, reply.language) for answer in pair.values()]
            preference = {**pair, "fault": fault, "scores": scores, "annotator": ANNOTATOR}
            return Dialogue({**dialogue.row, **preference}, dialogue.spoken)

        return self._write_kinds("preference", counts, finish)

    def _write_kinds(self, variant: str, counts: Mapping[str, int], finish: Finish) -> list[Dialogue]:
        placed = [
            (index / count, kind, dialogue)
            for kind, count in counts.items()
            for index, dialogue in enumerate(self._write_kind(variant, kind, count, finish))
        ]
        return [dialogue for _, _, dialogue in sorted(placed, key=lambda entry: entry[:2])]

    def _write_kind(self, variant: str, kind: str, count: int, finish: Finish) -> Iterator[Dialogue]:
        """Yield `count` different dialogues. A spoken sentence may come again: its recording is another one."""
        seen: set[str] = set()
        for index in range(count):
            place = (self.pool.split, kind, variant, index)
            for attempt in range(ATTEMPTS):
                job = Job(*place, derive_seed(self.seed, "dialogue", *place, attempt))
                rng = np.random.default_rng(job.seed)
                dialogue = finish(job, KINDS[kind](rng, self.pool), rng)
                if dialogue and (content := json.dumps(dialogue.row["messages"])) not in seen:
                    seen.add(content)
                    yield dialogue
                    break
            else:
                raise UserError(
                    f"there are about {index} different dialogues of the kind {kind!r} in the {self.pool.split} "
                    f"split, and more are asked for: lower mix.{kind} or the number of rows"
                )

    def _write(self, job: Job, exchanges: Sequence[Exchange], replies: Sequence[str | None], rng: Rng) -> Dialogue:
        """Write the row of a dialogue; a reply of None is left out."""
        messages: list[Fields] = []
        spoken: Spoken | None = None
        for exchange, reply in zip(exchanges, replies, strict=True):
            paths = [row.clips[0].path for row in exchange.clips]
            heard = [os.path.relpath(path.resolve(), self.folder) for path in paths]
            if exchange.spoken:
                assert spoken is None, exchanges
                line = cast(rng, job, exchange.spoken, "en")
                spoken = Spoken(job.audio, job.place, line, job.seed, tuple(paths))
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
        return Dialogue(row, spoken)


def _mode(exchanges: Sequence[Exchange]) -> str:
    """A clip to be analysed anywhere makes it audio analysis, also where the command is spoken."""
    if any(exchange.clips for exchange in exchanges):
        return "audio_analysis"
    return "voice_chat" if any(exchange.spoken for exchange in exchanges) else "text"


def _provenance(sources: Sequence[Row], spoken: bool) -> str:
    """Kinds of sound, as `procedural+tts`; of a dialogue without any, that its words are templates."""
    kinds = {str(row.labels.get("provenance", "unknown")) for row in sources} | ({"tts"} if spoken else set())
    return "+".join(sorted(kinds)) or "templates"
