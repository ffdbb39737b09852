"""Rows to batches, as map-style datasets of torch: an item follows from its number alone."""

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
    """Step number -> this rank's packs."""

    def __init__(self, rows: Sequence[Row], plan: Plan, samples: Samples, world: int, rank: int):
        self.rows, self.plan, self.samples = rows, plan, samples
        self.world, self.rank = world, rank

    def __getitem__(self, step: int) -> list[Pack]:
        packs = self.plan.packs(step, world=self.world, rank=self.rank)
        return [pack(self.rows, entries, self.samples) for entries in packs]


class RowDataset(Dataset):
    """Training rows, each as a pack of its own, with the random choices of the epoch that its entry names."""

    def __init__(self, rows: Sequence[Row], entries: Sequence[Entry], samples: Samples):
        self.rows, self.entries, self.samples = rows, entries, samples

    def __getitem__(self, number: int) -> Pack:
        return pack(self.rows, [self.entries[number]], self.samples)


class EvaluationBatch(TypedDict):
    """Evaluation rows with their answers (for the loss), and their prompts alone (for generation)."""

    answered: Pack
    prompts: Pack


class EvaluationDataset(Dataset):
    """Evaluation packs."""

    def __init__(self, rows: Sequence[Row], packs: Sequence[Sequence[int]], samples: Samples):
        self.rows, self.packs, self.samples = rows, packs, samples

    def __getitem__(self, number: int) -> EvaluationBatch:
        entries = [(row, None) for row in self.packs[number]]
        asked = [(row, None) for row in self.packs[number] if is_scored(self.rows[row])]
        return {
            "answered": pack(self.rows, entries, self.samples),
            "prompts": pack(self.rows, asked, self.samples, prompt_only=True),
        }


def pack(
    rows: Sequence[Row],
    entries: Sequence[tuple[int, int | None]],
    samples: Samples,
    *,
    prompt_only: bool = False,
) -> Pack:
    """Build the pack of some rows. A row that cannot be read is left out and listed with its reason.

    Args:
        entries: (row number, data epoch), None for evaluation: canonical wording, no augmentation.
        prompt_only: leave the answers out, as generation starts.
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
    """Count rows that are longer than the budget as unusable."""
    over = np.flatnonzero(lengths.tokens > token_budget)
    problems = {
        int(row): f"the row has {lengths.tokens[row]} tokens, data.token_budget={token_budget} is less" for row in over
    }
    tokens = np.where(lengths.tokens > token_budget, 0, lengths.tokens)
    return replace(lengths, tokens=tokens, problems=lengths.problems | problems)


def pack_by_length(lengths: Lengths, token_budget: int, world: int = 1) -> list[list[int]]:
    """Divide usable rows, longest first, into packs under the budget.

    The number of packs is a multiple of `world`; empty packs come last.
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
