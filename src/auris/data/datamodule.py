"""The one LightningDataModule: manifests -> a plan of steps -> packs for this rank.

A Lightning batch is one optimizer step: the list of this rank's packs. Lightning sees one epoch of `max_steps` batches;
data epochs live in the plan, and the position in a run is the number of steps taken. So no rank or worker holds state,
and resuming is arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from auris import tasks
from auris.audio import AudioError
from auris.data.lengths import Lengths, measure
from auris.data.packing import Plan, Sample, Source, collate
from auris.data.rows import Manifest, Row, read_manifests
from auris.data.samples import RowError, Samples
from auris.scoring.metrics import for_language


class AudioDataModule(L.LightningDataModule):
    """Feeds every stage of both systems.

    Args:
        samples, valid_samples: how rows are seen in training and in validation.
        train, valid: manifests, each a path or `{path, weight, tasks, limit}`.
        max_steps: optimizer steps of the run.
        rows_per_step: rows of a step over all ranks; None fills packs for throughput instead.
        token_budget: most tokens in one pack.
        packs_per_step: with `rows_per_step=None`, packs of a step over all ranks.
        num_workers: loader processes per rank.
        cache_dir: where measured lengths are kept.
    """

    def __init__(
        self,
        *,
        samples: Samples,
        valid_samples: Samples,
        train: Sequence[str | Mapping[str, Any]],
        valid: Sequence[str | Mapping[str, Any]],
        max_steps: int,
        rows_per_step: int | None,
        token_budget: int,
        packs_per_step: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str = ".cache/auris",
    ):
        super().__init__()
        self.samples, self.valid_samples = samples, valid_samples
        self.train, self.valid = train, valid
        self.max_steps, self.rows_per_step = max_steps, rows_per_step
        self.token_budget, self.packs_per_step = token_budget, packs_per_step
        self.num_workers, self.seed, self.cache_dir = num_workers, seed, Path(cache_dir)
        self.plan: Plan | None = None

    def setup(self, stage: str) -> None:
        if self.plan is not None:
            return
        manifests = read_manifests(self.train, key="data.train")
        self.rows = [row for manifest in manifests for row in manifest.rows]
        self.lengths = measure(manifests, self.samples, self.cache_dir)
        if not self.lengths.tokens.any():
            reason = next(iter(self.lengths.problems.values()))
            raise ValueError(f"data.train: none of the {len(self.rows)} rows can be used (the first: {reason})")
        self.plan = Plan(
            sources=sources(manifests),
            lengths=self.lengths.tokens,
            seed=self.seed,
            rows_per_step=self.rows_per_step,
            token_budget=self.token_budget,
            packs_per_step=self.packs_per_step,
        )
        manifests = read_manifests(self.valid, key="data.valid")
        self.valid_rows = [row for manifest in manifests for row in manifest.rows]
        self.valid_lengths = measure(manifests, self.valid_samples, self.cache_dir)

    def train_dataloader(self) -> DataLoader:
        world, rank = self._place()
        dataset = Steps(self.rows, self.plan, self.samples, world, rank)
        return self._loader(dataset, From(self.trainer.global_step, self.max_steps))

    def first_step(self) -> list[dict]:
        """All packs of the first step, as a single process would have them."""
        return Steps(self.rows, self.plan, self.samples, 1, 0)[0]

    def val_dataloader(self) -> DataLoader:
        world, rank = self._place()
        packs = by_length(self.valid_lengths, self.token_budget, world)[rank::world]
        dataset = Questions(self.valid_rows, packs, self.valid_samples)
        return self._loader(dataset, From(0, len(packs)))

    def problems(self) -> list[tuple[str, str]]:
        """(row id, reason) of the rows that were known to be unusable before training."""
        pairs = ((self.rows, self.lengths), (self.valid_rows, self.valid_lengths))
        return [(rows[n].id, why) for rows, lengths in pairs for n, why in lengths.problems.items()]

    def groups(self) -> dict[str, str]:
        """Lines of the validation table, each with its metric."""
        usable = [number for number, n in enumerate(self.valid_lengths.tokens) if n]
        asked = [self.question(number) for number in usable]
        return {group(row): metric(row) for row in asked if is_asked(row)}

    def question(self, number: int) -> Row:
        """A validation row as it is asked."""
        return self.valid_samples.asked(self.valid_rows[number])

    def _loader(self, dataset: Dataset, order: From) -> DataLoader:
        workers = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        return DataLoader(dataset, sampler=order, batch_size=None, collate_fn=_as_is, **workers)

    def _place(self) -> tuple[int, int]:
        place = self.trainer.distributed_sampler_kwargs  # right for tensor parallelism too
        return (place["num_replicas"], place["rank"]) if place else (1, 0)


class From(Sampler):
    """Steps `start .. stop - 1`. Its length is `stop`: Lightning, resumed, counts from the beginning."""

    def __init__(self, start: int, stop: int):
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop


class Steps(Dataset):
    """Step number -> this rank's packs."""

    def __init__(self, rows: Sequence[Row], plan: Plan, samples: Samples, world: int, rank: int):
        self.rows, self.plan, self.samples = rows, plan, samples
        self.world, self.rank = world, rank

    def __getitem__(self, step: int) -> list[dict]:
        packs = self.plan.packs(step, world=self.world, rank=self.rank)
        return [pack(self.rows, numbers, self.samples) for numbers in packs]


class Questions(Dataset):
    """Evaluation packs: the rows with their answers (for the loss) and their prompts alone (for generation)."""

    def __init__(self, rows: Sequence[Row], packs: Sequence[Sequence[int]], samples: Samples):
        self.rows, self.packs, self.samples = rows, packs, samples

    def __getitem__(self, number: int) -> dict:
        numbers = [(row, None) for row in self.packs[number]]
        asked = [(row, None) for row in self.packs[number] if is_asked(self.rows[row])]
        return {
            "answered": pack(self.rows, numbers, self.samples),
            "prompts": pack(self.rows, asked, self.samples, prompt_only=True),
        }


def pack(
    rows: Sequence[Row],
    numbers: Sequence[tuple[int, int | None]],
    samples: Samples,
    *,
    prompt_only: bool = False,
) -> dict:
    """The pack of these (row number, data epoch): a row that cannot be read is left out, with its reason."""
    built: list[Sample] = []
    skipped: list[tuple[str, str]] = []
    for number, epoch in numbers:
        try:
            built.append(samples.build(rows[number], number, epoch, prompt_only=prompt_only))
        except (RowError, AudioError) as error:
            skipped.append((rows[number].id, str(error)))
    return collate(built, geometry=samples.geometry if samples.has_audio else None, skipped=skipped)


def by_length(lengths: Lengths, token_budget: int, world: int = 1) -> list[list[int]]:
    """Usable rows, longest first, in packs under the budget; their number a multiple of `world` (empty packs last)."""
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


def sources(manifests: Sequence[Manifest]) -> list[Source]:
    first, found = 0, []
    for manifest in manifests:
        ids = tuple(row.id for row in manifest.rows)
        found.append(Source(name=manifest.name, ids=ids, weight=manifest.weight, first=first))
        first += len(ids)
    return found


def group(row: Row) -> str:
    """The line of a results table that a row belongs to, as `asr en` or `s2tt de-en`."""
    return tasks.group(row.labels)


def is_asked(row: Row) -> bool:
    """Whether a row has an answer to be scored: plain text and preferences have none."""
    return bool(tasks.find(row.labels["task"]).metric)


def language(row: Row) -> str:
    """The language that a row's answer is written in."""
    return row.labels.get("target_language") or row.labels.get("language") or "en"


def metric(row: Row) -> str:
    return for_language(tasks.find(row.labels["task"]).metric, language(row))


def _as_is(packs: Any) -> Any:
    return packs
