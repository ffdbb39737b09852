"""Samples of one prompt with two answers, for preference rows and for yes-or-no questions.

The prompt and its clips are processed once; both answers attend to them (`model.pack.Pack`).
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
    """View (see `samples`) of a preference row: a dialogue with a chosen and a rejected answer.

    Only the answers are supervised.

    Attributes:
        references: Log-probabilities of both answers under the reference model, by row id; None if the reference model
            is run in every step.
    """

    styles = (Chat,)
    references: Mapping[str, tuple[float, float]] | None = None

    def build(self, row: Row, number: int, epoch: int | None, *, prompt_only: bool = False) -> Sample:
        """Build the sample of a row, with the rejected answer and the reference log-probabilities."""
        sample = super().build(row, number, epoch, prompt_only=prompt_only)
        if prompt_only:
            return sample
        return replace(sample, rejected=self._rejected_ids(row), reference=self._reference_scores(row))

    def max_length(self, row: Row, audio_lengths: Sequence[int]) -> int:
        """Return the number of tokens of the prompt and both answers."""
        if row.labels["task"] != "preference":
            raise RowError(
                f"a row of task {row.labels['task']!r} is not a preference, expected `messages`, `chosen` and "
                "`rejected` for data.view=pair"
            )
        chosen = self.tokenizer.encode(self._turns(row, None, prompt_only=False), [[0] * n for n in audio_lengths])
        # The prompt's last token is repeated before the rejected answer.
        return len(chosen.ids) + 1 + len(self._rejected_ids(row))

    def _turns(self, row: Row, rng: Rng, prompt_only: bool) -> list[Turn]:
        prompt = self._chat.turns(row.labels["messages"])
        return prompt if prompt_only else [*prompt, *self._answer(row, "chosen")]

    def _answer(self, row: Row, key: str) -> list[Turn]:
        """Return the turns of an answer and its end token, without the line break that follows in ChatML."""
        reply = {"role": "assistant", "content": row.labels[key]}
        turns = self._chat.turns([*row.labels["messages"], reply], supervise=True)
        return [turn for turn in turns if turn.role == "answer" and turn.supervise]

    def _rejected_ids(self, row: Row) -> np.ndarray:
        return self.tokenizer.encode(self._answer(row, "rejected"), []).ids

    def _reference_scores(self, row: Row) -> tuple[float, float] | None:
        if self.references is None:
            return None
        if row.id not in self.references:
            raise RowError("the row has no reference log-probabilities: it could not be read when they were computed")
        return self.references[row.id]


class VerdictSamples(AudioSamples):
    """View (see `samples`) of a yes-or-no task row as a pair, with yes as the chosen and no as the rejected answer.

    Only the two answers are supervised. Their log-probabilities give the log-odds of yes over no.
    """

    VERDICTS = ("yes", "no")

    def build(self, row: Row, number: int, epoch: int | None, *, prompt_only: bool = False) -> Sample:
        """Build the sample of a row with both answers."""
        assert not prompt_only, "a pair always contains its answers"
        _, no = self.VERDICTS
        rejected = self.tokenizer.encode(self._answer(row, no), []).ids
        return replace(super().build(row, number, epoch), rejected=rejected)

    def _turns(self, row: Row, rng: Rng, prompt_only: bool) -> list[Turn]:
        yes, _ = self.VERDICTS
        prompt = super()._turns(row, rng, prompt_only=True)
        return [*(replace(turn, supervise=False) for turn in prompt), *self._answer(row, yes)]

    def _answer(self, row: Row, text: str) -> list[Turn]:
        turns = self._style.turns({**row.labels, "text": text}, len(row.clips))
        return [turn for turn in turns if turn.role == "answer"]
