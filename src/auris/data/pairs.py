"""One prompt, its clips read once, and two answers to it: preference rows as samples, and yes or no to a question.

What `collate` makes of them is a tree: see there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from auris.data.collate import Sample
from auris.data.rows import Row
from auris.data.samples import AudioSamples, Rng
from auris.errors import RowError
from auris.text.chat import Chat
from auris.text.prompts import Turn


class PairSamples(AudioSamples):
    """A dialogue and its chosen answer, with the rejected one beside them. Only the two answers are supervised.

    `references`: log-probabilities of both answers of a row, by its id; None where the reference model is asked in
    every step.
    """

    styles = (Chat,)
    references: Mapping[str, tuple[float, float]] | None = None

    def build(self, row: Row, number: int, epoch: int | None, *, prompt_only: bool = False) -> Sample:
        sample = super().build(row, number, epoch, prompt_only=prompt_only)
        if prompt_only:
            return sample
        return replace(sample, rejected=self._rejected(row), reference=self._reference(row))

    def length(self, row: Row, spans: Sequence[int]) -> int:
        if row.labels["task"] != "preference":
            raise RowError(
                f"a row of task {row.labels['task']!r} is no preference: data.view=pair needs `messages`, `chosen` "
                "and `rejected`"
            )
        chosen = self.tokenizer.encode(self._turns(row, None, prompt_only=False), [[0] * n for n in spans])
        return len(chosen.ids) + 1 + len(self._rejected(row))  # the prompt's last token begins both answers

    def _turns(self, row: Row, rng: Rng, prompt_only: bool) -> list[Turn]:
        prompt = self.prompt.turns(row.labels["messages"])
        return prompt if prompt_only else [*prompt, *self._answer(row, "chosen")]

    def _answer(self, row: Row, which: str) -> list[Turn]:
        """What the assistant says and the end of it; the line end of ChatML behind that is nobody's choice."""
        reply = {"role": "assistant", "content": row.labels[which]}
        turns = self.prompt.turns([*row.labels["messages"], reply], supervise=True)
        return [turn for turn in turns if turn.role == "answer" and turn.supervise]

    def _rejected(self, row: Row) -> np.ndarray:
        return self.tokenizer.encode(self._answer(row, "rejected"), []).ids

    def _reference(self, row: Row) -> tuple[float, float] | None:
        if self.references is None:
            return None
        if row.id not in self.references:
            raise RowError("no reference log-probabilities: the row could not be read when they were computed")
        return self.references[row.id]


class VerdictSamples(AudioSamples):
    """A task row that is answered yes or no, with the yes as the chosen and the no as the rejected answer: which of the
    two is the likelier, and by how much. Only they are supervised."""

    VERDICTS = ("yes", "no")

    def build(self, row: Row, number: int, epoch: int | None, *, prompt_only: bool = False) -> Sample:
        assert not prompt_only, "of two answers"
        _, no = self.VERDICTS
        rejected = self.tokenizer.encode(self._answer(row, no), []).ids
        return replace(super().build(row, number, epoch), rejected=rejected)

    def _turns(self, row: Row, rng: Rng, prompt_only: bool) -> list[Turn]:
        yes, _ = self.VERDICTS
        asked = super()._turns(row, rng, prompt_only=True)
        return [*(replace(turn, supervise=False) for turn in asked), *self._answer(row, yes)]

    def _answer(self, row: Row, text: str) -> list[Turn]:
        turns = self.prompt.turns({**row.labels, "text": text}, len(row.clips))
        return [turn for turn in turns if turn.role == "answer"]
