"""Statistics of one epoch: number of steps, amount of data of each task and load balance between ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from auris.data.plan import Plan
from auris.data.rows import Row
from auris.data.samples import Samples

# Maximum number of evenly spaced steps that are sampled. Sampling takes some seconds, and the estimated share of a task
# in the epoch has an error of a few thousandths.
MAX_SAMPLED_STEPS = 2000


class DataAmount(NamedTuple):
    """An amount of data: numbers of rows and tokens (in the longest of a row's wordings), and seconds of audio."""

    rows: float
    tokens: float
    seconds: float

    def scale(self, factor: float) -> DataAmount:
        """Return the amount multiplied by a factor."""
        return DataAmount(*(value * factor for value in self))


@dataclass(frozen=True, kw_only=True)
class EpochStats:
    """Statistics of one epoch on a given number of ranks.

    Attributes:
        ranks: Number of ranks that share a step.
        rows: Number of rows in the manifests.
        unusable: Number of rows that cannot be used; no step contains them.
        steps: Number of optimizer steps; the last step may reach into the next epoch.
        sampled_steps: Number of steps from which the following values were estimated.
        tasks: Amount of data of each task in the epoch.
        packs: Average number of packs per rank and step.
        fill: Number of tokens in the packs divided by their capacity. Packs have no padding, so free capacity costs no
            compute.
        straggler: Number of tokens of the busiest rank divided by the average number per rank. It tells how long ranks
            wait for one another.
    """

    ranks: int
    rows: int
    unusable: int
    steps: int
    sampled_steps: int
    tasks: Mapping[str, DataAmount]
    packs: float
    fill: float
    straggler: float

    @property
    def total(self) -> DataAmount:
        """Amount of data in the whole epoch: the sum over all tasks."""
        amounts = self.tasks.values()
        return DataAmount(
            sum(amount.rows for amount in amounts),
            sum(amount.tokens for amount in amounts),
            sum(amount.seconds for amount in amounts),
        )


def compute_epoch_stats(
    rows: Sequence[Row], plan: Plan, samples: Samples, *, ranks: int, max_steps: int = MAX_SAMPLED_STEPS
) -> EpochStats:
    """Compute the statistics of an epoch from at most `max_steps` evenly spaced steps, without decoding audio."""
    steps = plan.n_steps(epochs=1)
    sampled_steps = np.unique(np.linspace(0, steps - 1, min(steps, max_steps)).astype(int)).tolist()
    totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))
    n_packs = busiest_tokens = all_tokens = 0
    for step in sampled_steps:
        packs = plan.all_packs(step, world=ranks)
        pack_tokens = [sum(int(plan.lengths[number]) for number, _ in pack) for pack in packs]
        n_packs += len(packs)
        all_tokens += sum(pack_tokens)
        busiest_tokens += max(sum(pack_tokens[rank::ranks]) for rank in range(ranks))
        for number in (number for pack in packs for number, _ in pack):
            row = rows[number]
            # A row that has changed since it was measured may have a problem. It is reported when its sample is built.
            seconds = 0.0 if row.problem else samples.audio_seconds(row)
            totals["unreadable" if row.problem else row.labels["task"]] += (1, plan.lengths[number], seconds)
    epoch_steps = plan.epoch_rows / plan.rows_per_step if plan.rows_per_step else steps
    factor = epoch_steps / len(sampled_steps)
    return EpochStats(
        ranks=ranks,
        rows=len(rows),
        unusable=int(np.count_nonzero(plan.lengths == 0)),
        steps=steps,
        sampled_steps=len(sampled_steps),
        tasks={task: DataAmount(*(total * factor).tolist()) for task, total in sorted(totals.items())},
        packs=n_packs / ranks / len(sampled_steps),
        fill=all_tokens / (n_packs * plan.token_budget),
        straggler=busiest_tokens * ranks / max(1, all_tokens),
    )
