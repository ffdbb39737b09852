"""Map-style torch datasets, whose items are packs. An item depends only on its number."""

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
    """Dataset whose item k is the list of the packs of one rank in step k."""

    def __init__(self, rows: Sequence[Row], plan: Plan, samples: Samples, world: int, rank: int):
        self.rows, self.plan, self.samples = rows, plan, samples
        self.world, self.rank = world, rank

    def __getitem__(self, index: int) -> list[Pack]:
        packs = self.plan.packs(index, world=self.world, rank=self.rank)
        return [build_pack(self.rows, entries, self.samples) for entries in packs]


class RowDataset(Dataset):
    """Dataset of training rows, one per pack. The epoch of an entry determines the random choices about its row."""

    def __init__(self, rows: Sequence[Row], entries: Sequence[Entry], samples: Samples):
        self.rows, self.entries, self.samples = rows, entries, samples

    def __getitem__(self, index: int) -> Pack:
        return build_pack(self.rows, [self.entries[index]], self.samples)


class EvaluationBatch(TypedDict):
    """Evaluation rows with answers, to compute the loss, and prompts of the scored rows, to generate answers."""

    answered: Pack
    prompts: Pack


class EvaluationDataset(Dataset):
    """Dataset whose item k holds the rows of the k-th evaluation pack. The packs are given as lists of row numbers."""

    def __init__(self, rows: Sequence[Row], packs: Sequence[Sequence[int]], samples: Samples):
        self.rows, self.packs, self.samples = rows, packs, samples

    def __getitem__(self, index: int) -> EvaluationBatch:
        entries = [(number, None) for number in self.packs[index]]
        scored_entries = [(number, None) for number in self.packs[index] if is_scored(self.rows[number])]
        return {
            "answered": build_pack(self.rows, entries, self.samples),
            "prompts": build_pack(self.rows, scored_entries, self.samples, prompt_only=True),
        }


def build_pack(
    rows: Sequence[Row],
    entries: Sequence[tuple[int, int | None]],
    samples: Samples,
    *,
    prompt_only: bool = False,
) -> Pack:
    """Build a pack of the given rows. A row that cannot be used is left out and listed in `skipped` with the reason.

    Args:
        rows: All rows, of which `entries` selects some.
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
    geometry = samples.geometry if samples.has_audio else None
    return collate(built, geometry=geometry, skipped=skipped, cached_width=samples.cached_width)


def exclude_over_budget(lengths: Lengths, token_budget: int) -> Lengths:
    """Mark rows that are longer than the budget as unusable."""
    too_long = np.flatnonzero(lengths.tokens > token_budget)
    problems = {
        int(number): f"the row has {lengths.tokens[number]} tokens, more than data.token_budget={token_budget}"
        for number in too_long
    }
    tokens = np.where(lengths.tokens > token_budget, 0, lengths.tokens)
    return replace(lengths, tokens=tokens, problems=lengths.problems | problems)


def pack_by_length(lengths: Lengths, token_budget: int, world: int = 1) -> list[list[int]]:
    """Divide usable rows, longest first, into packs within the budget.

    Empty packs are appended until the number of packs is a multiple of `world`.
    """
    packs: list[list[int]] = []
    n_tokens = token_budget + 1  # in the last pack; initially over budget, so that the first row starts a pack
    for number in np.argsort(-lengths.tokens, kind="stable"):
        length = int(lengths.tokens[number])
        if length == 0:
            break
        if n_tokens + length > token_budget:
            packs.append([])
            n_tokens = 0
        packs[-1].append(int(number))
        n_tokens += length
    return packs + [[] for _ in range(-len(packs) % world)]
