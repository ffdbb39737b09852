"""Dialogues as rows of a manifest: chat rows for fine-tuning, and preference rows for DPO."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from auris.corpus.dialogues.kinds import ATTEMPTS, KINDS, TEMPLATES, Exchange
from auris.corpus.dialogues.pool import Pool, Weights, draw_key
from auris.corpus.dialogues.recordings import RecordingSpec
from auris.corpus.draws import Rng, pick
from auris.corpus.output import LICENCE, derive_seed
from auris.corpus.recording import Fields, RowSpec, draw_line
from auris.data.rows import Row
from auris.errors import UserError
from auris.metrics.judges.rating import POLITE_OPENINGS, rate
from auris.metrics.normalize import contains

ANNOTATOR = "a rule (auris.metrics.judges.rating.rate), not a person"
# Faults of a rejected answer. wrong: its content is wrong; terse: it is right, but only a word or phrase; plain: it is
# a right sentence, but has no polite opening.
FAULTS = ("wrong", "terse", "plain")


@dataclass(frozen=True)
class Dialogue:
    """The row of a dialogue and, if the user speaks in it, the recording that has to be made for it."""

    row: Fields
    recording: RecordingSpec | None


MakeDialogue = Callable[[RowSpec, Sequence[Exchange], Rng], Dialogue | None]
"""Function that turns exchanges into a dialogue; it returns None if they cannot be used."""


@dataclass(frozen=True)
class Writer:
    """Writer of the dialogues of a split. The kinds are interleaved, so that every part of a file has the same mix.

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
        """Return chat rows; `counts` is the number of rows of each kind.

        Raises:
            UserError: The corpus lacks the rows for a kind, or a kind has too few different dialogues.
        """

        def make_chat(spec: RowSpec, exchanges: Sequence[Exchange], rng: Rng) -> Dialogue:
            is_augmented = exchanges[0].written_by != TEMPLATES  # answers of a language model are not changed
            form = "sentence" if is_augmented else draw_key(rng, self.forms)
            dialogue = self._write(spec, exchanges, [exchange.reply.write(form, rng) for exchange in exchanges], rng)
            return Dialogue({**dialogue.row, "form": form}, dialogue.recording)

        return self._write_kinds("chat", counts, make_chat)

    def write_preferences(self, counts: Mapping[str, int]) -> list[Dialogue]:
        """Return preference rows; `counts` is the number of rows of each kind.

        The chosen answer is right and polite, the rejected answer has a fault of `FAULTS`.

        Raises:
            UserError: The corpus lacks the rows for a kind, or a kind has too few different dialogues.
        """

        def make_preference(spec: RowSpec, exchanges: Sequence[Exchange], rng: Rng) -> Dialogue | None:
            reply, fault, form = exchanges[-1].reply, draw_key(rng, self.faults), draw_key(rng, self.forms)
            if fault == "wrong" and (
                reply.wrong_sentence is None or contains(reply.wrong_sentence, reply.key, reply.language)
            ):
                return None  # there is no wrong answer, or it contains the right answer
            earlier_replies = [exchange.reply.write(form, rng) for exchange in exchanges[:-1]]
            dialogue = self._write(spec, exchanges, [*earlier_replies, None], rng)
            wrong_answer = f"{pick(rng, POLITE_OPENINGS)} {reply.wrong_sentence}"
            rejected_by_fault = {"wrong": wrong_answer, "terse": reply.terse, "plain": reply.sentence}
            pair = {"chosen": reply.write("polite", rng), "rejected": rejected_by_fault[fault]}
            scores = [rate(answer, reply.key, reply.language) for answer in pair.values()]
            preference = {**pair, "fault": fault, "scores": scores, "annotator": ANNOTATOR}
            return Dialogue({**dialogue.row, **preference}, dialogue.recording)

        return self._write_kinds("preference", counts, make_preference)

    def _write_kinds(self, variant: str, counts: Mapping[str, int], make_dialogue: MakeDialogue) -> list[Dialogue]:
        """Return the dialogues of all kinds, interleaved. `variant`, chat or preference, is a part of the row ids."""
        entries = [
            (index / count, kind, dialogue)
            for kind, count in counts.items()
            for index, dialogue in enumerate(self._write_kind(variant, kind, count, make_dialogue))
        ]
        return [dialogue for _, _, dialogue in sorted(entries, key=lambda entry: entry[:2])]

    def _write_kind(self, variant: str, kind: str, count: int, make_dialogue: MakeDialogue) -> Iterator[Dialogue]:
        """Yield `count` dialogues of one kind with different messages.

        A spoken sentence may occur in several dialogues, because it is recorded anew for each.
        """
        contents: set[str] = set()
        for index in range(count):
            identity = (self.pool.split, kind, variant, index)
            for attempt in range(ATTEMPTS):
                spec = RowSpec(*identity, derive_seed(self.seed, "dialogue", *identity, attempt))
                rng = np.random.default_rng(spec.seed)
                dialogue = make_dialogue(spec, KINDS[kind](rng, self.pool), rng)
                if dialogue and (content := json.dumps(dialogue.row["messages"])) not in contents:
                    contents.add(content)
                    yield dialogue
                    break
            else:
                raise UserError(
                    f"the {self.pool.split} split has only about {index} different dialogues of the kind {kind!r}, "
                    f"but {count} are requested; to request fewer, lower dialogues.mix.{kind} or the number of rows"
                )

    def _write(self, spec: RowSpec, exchanges: Sequence[Exchange], replies: Sequence[str | None], rng: Rng) -> Dialogue:
        """Return the dialogue of the exchanges with these replies. A reply of None is left out of the messages."""
        messages: list[Fields] = []
        recording: RecordingSpec | None = None
        for exchange, reply in zip(exchanges, replies, strict=True):
            paths = [Path(str(row.clips[0].path)) for row in exchange.clip_rows]
            audios = [os.path.relpath(path.resolve(), self.folder) for path in paths]
            if exchange.spoken:
                assert recording is None, exchanges
                line = draw_line(rng, spec, exchange.spoken, "en")
                recording = RecordingSpec(spec.audio_path, spec.position, line, spec.seed, tuple(paths))
                audios = [spec.audio_path]
            content: Any = [{"type": "audio", "audio": path} for path in audios]
            if exchange.text:
                content = [*content, {"type": "text", "text": exchange.text}] if audios else exchange.text
            messages.append({"role": "user", "content": content})
            if reply is not None:
                messages.append({"role": "assistant", "content": reply})
        last = exchanges[-1]
        sources = [row for exchange in exchanges for row in exchange.clip_rows]
        row = {
            "id": spec.id,
            "messages": messages,
            "mode": _find_mode(exchanges),
            "kind": spec.task,
            "key": last.reply.key,
            "language": last.reply.language,
            "split": spec.split,
            "sources": [row.id for row in sources],
            "provenance": _join_provenances(sources, has_speech=recording is not None),
            "written_by": exchanges[0].written_by,
            "seed": spec.seed,
            "licence": " and ".join(sorted({str(row.labels.get("licence", "unknown")) for row in sources})) or LICENCE,
        }
        if spec.task in ("demonstration", "turns"):  # the last question asks for a row's label
            row["skill"] = sources[-1].labels["task"]
        if recording:
            row |= {"spoken": " ".join(recording.line.words), "speaker": recording.line.voice}
        return Dialogue(row, recording)


def _find_mode(exchanges: Sequence[Exchange]) -> str:
    """Return the mode of a dialogue. With a clip to analyse it is audio analysis, even if the command is spoken."""
    if any(exchange.clip_rows for exchange in exchanges):
        return "audio_analysis"
    return "voice_chat" if any(exchange.spoken for exchange in exchanges) else "text"


def _join_provenances(sources: Sequence[Row], *, has_speech: bool) -> str:
    """Return the provenances of a dialogue's audio, such as `procedural+tts`; `templates` if it has no audio."""
    provenances = {str(row.labels.get("provenance", "unknown")) for row in sources} | ({"tts"} if has_speech else set())
    return "+".join(sorted(provenances)) or "templates"
