"""Statistics of one pass over the training rows: steps, hours, each task's share, how evenly ranks share the work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from auris.data.plan import Plan
from auris.data.rows import Row
from auris.data.samples import Samples

STEPS = 2000  # evenly spread steps that are sampled: takes seconds; shares are exact to a few thousandths


class Share(NamedTuple):
    """Rows, tokens (of their longest wording) and seconds of audio."""

    rows: float
    tokens: float
    seconds: float

    def scale(self, factor: float) -> Share:
        return Share(*(value * factor for value in self))


@dataclass(frozen=True, kw_only=True)
class EpochStats:
    """One pass over the training rows on a number of ranks.

    Args:
        ranks: that share a step.
        rows, unusable: in the manifests; the unusable ones are in no step.
        steps: optimizer steps, the last one perhaps reaching into the next epoch.
        sampled_steps: steps that what follows was found from.
        tasks: each task's share of the epoch.
        packs: of a rank in a step.
        fill: tokens in the packs, over what the packs could hold. What is missing is no padding: packs have none.
        straggler: tokens of the busiest rank of each step, over those of the average rank: what waiting costs.
    """

    ranks: int
    rows: int
    unusable: int
    steps: int
    sampled_steps: int
    tasks: Mapping[str, Share]
    packs: float
    fill: float
    straggler: float

    @property
    def total(self) -> Share:
        return Share(*map(sum, zip(*self.tasks.values(), strict=True)))


def compute_epoch_stats(
    rows: Sequence[Row], plan: Plan, samples: Samples, *, ranks: int, most: int = STEPS
) -> EpochStats:
    """Go through an epoch's plan on `ranks` ranks, or through `most` of its steps. No audio is decoded."""
    steps = plan.steps_for(1)
    sampled_steps = np.unique(np.linspace(0, steps - 1, min(steps, most)).astype(int)).tolist()
    totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))
    n_packs = busiest = total = 0
    for step in sampled_steps:
        packs = plan.all_packs(step, world=ranks)
        tokens = [sum(int(plan.lengths[row]) for row, _ in pack) for pack in packs]
        n_packs += len(packs)
        total += sum(tokens)
        busiest += max(sum(tokens[rank::ranks]) for rank in range(ranks))
        for number in (number for pack in packs for number, _ in pack):
            row = rows[number]
            # One that was altered since it was measured cannot be read, and is named when it is built.
            seconds = 0.0 if row.problem else samples.seconds(row)
            totals["unreadable" if row.problem else row.labels["task"]] += (1, plan.lengths[number], seconds)
    in_steps = plan.epoch_rows / plan.rows_per_step if plan.rows_per_step else steps
    factor = in_steps / len(sampled_steps)
    return EpochStats(
        ranks=ranks,
        rows=len(rows),
        unusable=int(np.count_nonzero(plan.lengths == 0)),
        steps=steps,
        sampled_steps=len(sampled_steps),
        tasks={task: Share(*(total * factor).tolist()) for task, total in sorted(totals.items())},
        packs=n_packs / ranks / len(sampled_steps),
        fill=total / (n_packs * plan.token_budget),
        straggler=busiest * ranks / max(1, total),
    )
