"""LightningDataModule that turns manifests into a training plan and the packs of this rank.

A Lightning batch is the list of this rank's packs in one optimizer step. Lightning sees a single epoch of `max_steps`
batches; data epochs exist only in the plan. The number of steps taken is the position in a run, so ranks and workers
keep no state that a resumed run would have to restore.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
from torch.utils.data import Dataset

from auris.data.batches import EvaluationDataset, RowDataset, StepDataset, exclude_over_budget, pack_by_length
from auris.data.lengths import Lengths, measure_lengths
from auris.data.loader import Loader
from auris.data.manifests import EntryConfig, JoinedRows, Manifest, read_manifests
from auris.data.plan import Entry, Plan
from auris.data.rows import Row, group, is_scored, metric_name
from auris.data.samples import Samples
from auris.errors import UserError


class AudioDataModule(L.LightningDataModule):
    """DataModule for all training stages.

    Args:
        samples: Builds samples of training rows.
        valid_samples: Builds samples of validation rows.
        train: Training manifests, each a path or a mapping (`manifests.ManifestEntry`).
        valid: Validation manifests.
        max_steps: Number of optimizer steps of the run.
        rows_per_step: Number of rows per step over all ranks; None: a step is `packs_per_step` full packs instead.
        token_budget: Maximum number of tokens in a pack.
        packs_per_step: Number of packs per step over all ranks, used if `rows_per_step` is None.
        temperature: Temperature at which training manifests are mixed (`plan.Plan`).
        num_workers: Number of loader processes per rank.
        worker_timeout: Seconds until a worker counts as hung (`loader.Loader`).
        worker_restarts: How often workers are replaced for one step before the run stops.
        max_unusable: Maximum share of unusable rows among the training rows, as far as known before the first step.
        seed: Seed of the plan.
        cache_dir: Directory for cached row indexes and lengths.

    Attributes:
        plan: The training plan; None before `setup`.
        predict_entries: Training rows that `predict_dataloader` loads.
        digests: {path of a manifest: digest of its files}.
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
        self.predict_entries: Sequence[Entry] = ()
        self.digests: dict[str, str] = {}
        self._n_restarts = 0
        self._train_loader: Loader | None = None
        self._reported_wait = 0.0

    def prepare_data(self) -> None:
        """Index and measure the rows in one process per machine, so that the others find the results in the cache."""
        self.setup("fit")

    def setup(self, stage: str) -> None:
        """Read the manifests, measure the rows and make the plan. Only the first call has an effect."""
        if self.plan is not None:
            return
        manifests, self.rows, self.lengths = self._read("data.train", self.train, self.samples)
        if self.samples.long_audio == "skip":
            self.lengths = exclude_over_budget(self.lengths, self.token_budget)
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
        rows = JoinedRows([manifest.rows for manifest in manifests])
        return manifests, rows, measure_lengths(manifests, samples, self.cache_dir)

    def train_dataloader(self) -> Loader:
        """Return a loader of this rank's packs for the remaining steps."""
        assert self.plan is not None and self.trainer is not None  # Lightning calls `setup` first
        world, rank = self._world_and_rank()
        dataset = StepDataset(self.rows, self.plan, self.samples, world, rank)
        self.plan.step(self.trainer.global_step)  # computes the row order here, so that forked workers share it
        self._train_loader = self._loader(dataset, self.trainer.global_step, self.max_steps)
        return self._train_loader

    def val_dataloader(self) -> Loader:
        """Return a loader of this rank's validation packs."""
        world, rank = self._world_and_rank()
        packs = pack_by_length(self.valid_lengths, self.token_budget, world)[rank::world]
        dataset = EvaluationDataset(self.valid_rows, packs, self.valid_samples)
        return self._loader(dataset, 0, len(packs))

    def predict_dataloader(self) -> Loader:
        """Return a loader of the training rows in `predict_entries`, one row per pack."""
        return self._loader(RowDataset(self.rows, self.predict_entries, self.samples), 0, len(self.predict_entries))

    @property
    def world(self) -> int:
        """Number of ranks that share the rows of a step."""
        return self._world_and_rank()[0]

    def packs_by_rank(self, step: int) -> list[list[list[Entry]]]:
        """Return the packs of each rank in a step."""
        assert self.plan is not None  # `setup` has been called
        packs = self.plan.all_packs(step, world=self.world)
        return [packs[rank :: self.world] for rank in range(self.world)]

    def pop_replacements(self) -> int:
        """Return how often workers of this rank were replaced since the last call."""
        n_restarts, self._n_restarts = self._n_restarts, 0
        return n_restarts

    def pop_wait_seconds(self) -> float:
        """Return how many seconds this rank has waited for training packs since the last call."""
        total = 0.0 if self._train_loader is None else self._train_loader.wait_seconds
        seconds, self._reported_wait = total - self._reported_wait, total
        return seconds

    def unusable_rows(self) -> list[tuple[str, str]]:
        """Return (row id, reason) of the rows that are known to be unusable before training."""
        sets = ((self.rows, self.lengths), (self.valid_rows, self.valid_lengths))
        return [(rows[n].id, reason) for rows, lengths in sets for n, reason in lengths.problems.items()]

    def scored_groups(self) -> dict[str, str]:
        """Return {group of scored validation rows (`rows.group`): name of its metric}."""
        usable = [number for number, n_tokens in enumerate(self.valid_lengths.tokens) if n_tokens]
        # A row that has changed since it was measured has no valid labels. It is reported when its sample is built.
        rows_to_score = [self.scored_row(number) for number in usable if not self.valid_rows[number].problem]
        return {group(row): metric_name(row) for row in rows_to_score if is_scored(row)}

    def scored_row(self, number: int) -> Row:
        """Return a validation row with the labels that its answer is scored against (`Samples.scored_row`)."""
        return self.valid_samples.scored_row(self.valid_rows[number])

    def _check_usable(self) -> None:
        n_unusable, n_rows = int(np.count_nonzero(self.lengths.tokens == 0)), len(self.rows)
        if n_unusable < n_rows and n_unusable <= self.max_unusable * n_rows:
            return
        number, reason = next(iter(self.lengths.problems.items()))
        raise UserError(
            f"data.train: {n_unusable} of {n_rows} rows cannot be used, expected fewer than all, and at most the "
            f"share data.max_unusable={self.max_unusable} (the first is {self.rows[number].id}: {reason})"
        )

    def _loader(self, dataset: Dataset, start: int, stop: int) -> Loader:
        return Loader(
            dataset,
            start,
            stop,
            num_workers=self.num_workers,
            timeout=self.worker_timeout,
            max_restarts=self.worker_restarts,
            on_restart=self._count_restart,
        )

    def _count_restart(self, number: int, reason: str) -> None:
        self._n_restarts += 1
        warnings.warn(f"loader workers were replaced, reading continues at item {number}: {reason}", stacklevel=2)

    def _world_and_rank(self) -> tuple[int, int]:
        assert self.trainer is not None
        placement = self.trainer.distributed_sampler_kwargs  # it is also correct for tensor parallelism
        return (placement["num_replicas"], placement["rank"]) if placement else (1, 0)
