"""The one LightningDataModule: manifests -> a plan of steps -> packs for this rank.

A Lightning batch is one optimizer step: the list of this rank's packs. Lightning sees one epoch of `max_steps` batches;
data epochs live in the plan, and the position in a run is the number of steps taken. So no rank or worker holds state,
and resuming is arithmetic.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
from torch.utils.data import Dataset

from auris.data.batches import EvaluationDataset, RowDataset, StepDataset, drop_over_budget, pack_by_length
from auris.data.lengths import Lengths, measure
from auris.data.loader import Loader
from auris.data.manifests import EntryConfig, JoinedRows, Manifest, read_manifests
from auris.data.plan import Entry, Plan
from auris.data.rows import Row, group, is_scored, metric
from auris.data.samples import Samples
from auris.errors import UserError


class AudioDataModule(L.LightningDataModule):
    """Feeds every stage of both systems.

    Args:
        samples, valid_samples: how rows are seen in training and in validation.
        train, valid: manifests, each a path or a mapping (`manifests.read_manifests`).
        max_steps: optimizer steps of the run.
        rows_per_step: rows of a step over all ranks; None fills packs for throughput instead.
        token_budget: most tokens in one pack.
        packs_per_step: with `rows_per_step=None`, packs of a step over all ranks.
        temperature: of the mix of training manifests (`plan.Plan`).
        num_workers: loader processes per rank.
        worker_timeout, worker_restarts: when they count as hung, and how often they are replaced (`loader.Loader`).
        max_unusable: share of the training rows that may be known as unusable before the first step.
        cache_dir: where measured lengths are kept.
    """

    def __init__(
        self,
        *,
        samples: Samples,
        valid_samples: Samples,
        train: Sequence[EntryConfig],
        valid: Sequence[EntryConfig],
        max_steps: int,
        rows_per_step: int | None,
        token_budget: int,
        packs_per_step: int = 1,
        temperature: float | None = None,
        num_workers: int = 0,
        worker_timeout: float = 0,
        worker_restarts: int = 0,
        max_unusable: float = 1.0,
        seed: int = 0,
        cache_dir: str = ".cache/auris",
    ):
        super().__init__()
        self.samples, self.valid_samples = samples, valid_samples
        self.train, self.valid = train, valid
        self.max_steps, self.rows_per_step = max_steps, rows_per_step
        self.token_budget, self.packs_per_step, self.temperature = token_budget, packs_per_step, temperature
        self.num_workers, self.worker_timeout, self.worker_restarts = num_workers, worker_timeout, worker_restarts
        self.max_unusable, self.seed, self.cache_dir = max_unusable, seed, Path(cache_dir)
        self.plan: Plan | None = None
        self.predict_entries: Sequence[Entry] = ()  # rows of `predict_dataloader`
        self.digests: dict[str, str] = {}  # of what the rows are read from, by path
        self._lost_workers = 0
        self._steps: Loader | None = None
        self._waited = 0.0

    def prepare_data(self) -> None:
        """On one process of each machine, before the others: they find rows indexed and measured."""
        self.setup("fit")

    def setup(self, stage: str) -> None:
        if self.plan is not None:
            return
        manifests, self.rows, self.lengths = self._read("data.train", self.train, self.samples)
        if self.samples.long_audio == "skip":
            self.lengths = drop_over_budget(self.lengths, self.token_budget)
        self._check_usable()
        self.plan = Plan(
            sources=manifests,
            lengths=self.lengths.tokens,
            seed=self.seed,
            rows_per_step=self.rows_per_step,
            token_budget=self.token_budget,
            packs_per_step=self.packs_per_step,
            temperature=self.temperature,
        )
        _, self.valid_rows, self.valid_lengths = self._read("data.valid", self.valid, self.valid_samples)

    def _read(
        self, key: str, entries: Sequence[EntryConfig], samples: Samples
    ) -> tuple[list[Manifest], JoinedRows, Lengths]:
        manifests = read_manifests(entries, key=key, cache_dir=self.cache_dir)
        self.digests |= {str(manifest.path): manifest.digest for manifest in manifests}
        return manifests, JoinedRows([one.rows for one in manifests]), measure(manifests, samples, self.cache_dir)

    def train_dataloader(self) -> Loader:
        world, rank = self._place()
        dataset = StepDataset(self.rows, self.plan, self.samples, world, rank)
        self.plan.step(self.trainer.global_step)  # its order is found once: workers, forked from here, share it
        self._steps = self._loader(dataset, self.trainer.global_step, self.max_steps)
        return self._steps

    def val_dataloader(self) -> Loader:
        world, rank = self._place()
        packs = pack_by_length(self.valid_lengths, self.token_budget, world)[rank::world]
        dataset = EvaluationDataset(self.valid_rows, packs, self.valid_samples)
        return self._loader(dataset, 0, len(packs))

    def predict_dataloader(self) -> Loader:
        """The training rows that `predict_entries` names, each a pack by itself."""
        return self._loader(RowDataset(self.rows, self.predict_entries, self.samples), 0, len(self.predict_entries))

    @property
    def world(self) -> int:
        """Processes that share the rows of a step."""
        return self._place()[0]

    def packs_by_rank(self, step: int) -> list[list[list[Entry]]]:
        """The packs of every rank in a step."""
        packs = self.plan.all_packs(step, world=self.world)
        return [packs[rank :: self.world] for rank in range(self.world)]

    def pop_lost_workers(self) -> int:
        """Loader processes of this rank that were replaced since this was last asked."""
        taken, self._lost_workers = self._lost_workers, 0
        return taken

    def pop_wait_seconds(self) -> float:
        """Seconds that this rank has waited for steps since this was last asked."""
        waited = 0.0 if self._steps is None else self._steps.waited
        taken, self._waited = waited - self._waited, waited
        return taken

    def problems(self) -> list[tuple[str, str]]:
        """(row id, reason) of the rows that were known to be unusable before training."""
        pairs = ((self.rows, self.lengths), (self.valid_rows, self.valid_lengths))
        return [(rows[n].id, why) for rows, lengths in pairs for n, why in lengths.problems.items()]

    def groups(self) -> dict[str, str]:
        """Lines of the validation table, each with its metric."""
        usable = [number for number, n in enumerate(self.valid_lengths.tokens) if n]
        # One that was altered since it was measured has no labels: it is named when it is built.
        asked = [self.target_row(number) for number in usable if not self.valid_rows[number].problem]
        return {group(row): metric(row) for row in asked if is_scored(row)}

    def target_row(self, number: int) -> Row:
        """A validation row as it is asked."""
        return self.valid_samples.target_row(self.valid_rows[number])

    def _check_usable(self) -> None:
        unusable, of = int(np.count_nonzero(self.lengths.tokens == 0)), len(self.rows)
        if unusable < of and unusable <= self.max_unusable * of:
            return
        number, reason = next(iter(self.lengths.problems.items()))
        raise UserError(
            f"data.train: {unusable} of the {of} rows cannot be used, expected a share of at most "
            f"data.max_unusable={self.max_unusable}, and less than all (the first, {self.rows[number].id}: {reason})"
        )

    def _loader(self, dataset: Dataset, start: int, stop: int) -> Loader:
        return Loader(
            dataset,
            start,
            stop,
            num_workers=self.num_workers,
            timeout=self.worker_timeout,
            restarts=self.worker_restarts,
            on_restart=self._lose_workers,
        )

    def _lose_workers(self, number: int, reason: str) -> None:
        self._lost_workers += 1
        warnings.warn(f"loader workers are replaced, reading goes on at {number}: {reason}", stacklevel=2)

    def _place(self) -> tuple[int, int]:
        place = self.trainer.distributed_sampler_kwargs  # right for tensor parallelism too
        return (place["num_replicas"], place["rank"]) if place else (1, 0)
