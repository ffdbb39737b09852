"""Map-style torch datasets of packs. An item depends only on its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np
from torch.utils.data import Dataset

from auris.data.collate import Sample, collate
from auris.data.lengths import Lengths
from auris.data.plan import Entry, Plan
from auris.data.rows import Row, is_scored
from auris.data.samples import Samples
from auris.errors import AudioError, RowError
from auris.model.pack import Pack


class StepDataset(Dataset):
    """Dataset of the packs of one rank, by step number."""

    def __init__(self, rows: Sequence[Row], plan: Plan, samples: Samples, world: int, rank: int):
        self.rows, self.plan, self.samples = rows, plan, samples
        self.world, self.rank = world, rank

    def __getitem__(self, index: int) -> list[Pack]:
        packs = self.plan.packs(index, world=self.world, rank=self.rank)
        return [pack(self.rows, entries, self.samples) for entries in packs]


class RowDataset(Dataset):
    """Dataset of training rows, one per pack, with the random choices of the epoch in their entry."""

    def __init__(self, rows: Sequence[Row], entries: Sequence[Entry], samples: Samples):
        self.rows, self.entries, self.samples = rows, entries, samples

    def __getitem__(self, index: int) -> Pack:
        return pack(self.rows, [self.entries[index]], self.samples)


class EvaluationBatch(TypedDict):
    """Evaluation rows with their answers, for the loss, and prompts of the scored ones, for generation."""

    answered: Pack
    prompts: Pack


class EvaluationDataset(Dataset):
    """Dataset of evaluation packs."""

    def __init__(self, rows: Sequence[Row], packs: Sequence[Sequence[int]], samples: Samples):
        self.rows, self.packs, self.samples = rows, packs, samples

    def __getitem__(self, index: int) -> EvaluationBatch:
        entries = [(row, None) for row in self.packs[index]]
        scored = [(row, None) for row in self.packs[index] if is_scored(self.rows[row])]
        return {
            "answered": pack(self.rows, entries, self.samples),
            "prompts": pack(self.rows, scored, self.samples, prompt_only=True),
        }


def pack(
    rows: Sequence[Row],
    entries: Sequence[tuple[int, int | None]],
    samples: Samples,
    *,
    prompt_only: bool = False,
) -> Pack:
    """Build the pack of some rows. A row that cannot be read is left out and listed in `skipped` with the reason.

    Args:
        rows: All rows.
        entries: (row number, data epoch). The epoch is None for evaluation: canonical wording, no augmentation.
        samples: Builds the samples of the rows.
        prompt_only: Leave out the answers, for generation.
    """
    built: list[Sample] = []
    skipped: list[tuple[str, str]] = []
    for number, epoch in entries:
        row = rows[number]
        try:
            built.append(samples.build(row, number, epoch, prompt_only=prompt_only))
        except (RowError, AudioError) as error:
            skipped.append((row.id, str(error)))
    return collate(built, geometry=samples.geometry if samples.has_audio else None, skipped=skipped)


def drop_over_budget(lengths: Lengths, token_budget: int) -> Lengths:
    """Mark rows that are longer than the budget as unusable."""
    over = np.flatnonzero(lengths.tokens > token_budget)
    problems = {
        int(row): f"the row has {lengths.tokens[row]} tokens, more than data.token_budget={token_budget}"
        for row in over
    }
    tokens = np.where(lengths.tokens > token_budget, 0, lengths.tokens)
    return replace(lengths, tokens=tokens, problems=lengths.problems | problems)


def pack_by_length(lengths: Lengths, token_budget: int, world: int = 1) -> list[list[int]]:
    """Divide usable rows, longest first, into packs within the budget.

    The number of packs is a multiple of `world`; the packs that make it one are empty and come last.
    """
    packs: list[list[int]] = []
    filled = token_budget + 1
    for number in np.argsort(-lengths.tokens, kind="stable"):
        length = int(lengths.tokens[number])
        if length == 0:
            break
        if filled + length > token_budget:
            packs.append([])
            filled = 0
        packs[-1].append(int(number))
        filled += length
    return packs + [[] for _ in range(-len(packs) % world)]
