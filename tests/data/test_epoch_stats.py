"""What an epoch comes to: exact where all of it is looked at, near where only some of its steps are."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from auris.data.epoch_stats import compute_epoch_stats
from auris.data.manifests import Manifest
from auris.data.plan import Plan
from auris.data.rows import Row

N = 60
TOKENS = np.array([10 + 7 * (n % 5) for n in range(N)])
TOKENS[[3, 17]] = 0  # unusable
ROWS = [Row(f"r{n}", labels={"task": "asr" if n % 3 else "sec"}) for n in range(N)]
SAMPLES = SimpleNamespace(seconds=lambda row: 2.0 if row.labels["task"] == "asr" else 0.5)


def plan(**changed) -> Plan:
    settings = {"rows_per_step": 6, "token_budget": 64, "seed": 0, **changed}
    return Plan(sources=[Manifest("all", ROWS)], lengths=TOKENS, **settings)


@pytest.mark.parametrize("settings", [{}, {"rows_per_step": 7}, {"rows_per_step": None, "packs_per_step": 4}])
def test_an_epoch_holds_every_usable_row_once(settings):
    epoch = compute_epoch_stats(ROWS, plan(**settings), SAMPLES, ranks=2)
    asr = [n for n in range(N) if n % 3 and TOKENS[n]]
    assert (epoch.rows, epoch.unusable, epoch.sampled_steps) == (N, 2, epoch.steps)
    near = pytest.approx if settings else lambda value, rel: value  # the last step reaches into the next epoch
    assert epoch.tasks["asr"].rows == near(len(asr), rel=0.1)
    assert epoch.tasks["asr"].seconds == near(2.0 * len(asr), rel=0.1)
    assert epoch.total.tokens == near(TOKENS.sum(), rel=0.1)


def test_the_straggler_and_the_fill_are_those_of_the_packs():
    current_plan = plan()
    epoch = compute_epoch_stats(ROWS, current_plan, SAMPLES, ranks=2)
    loads = [
        [
            sum(TOKENS[row] for pack in current_plan.packs(step, world=2, rank=rank) for row, _ in pack)
            for rank in range(2)
        ]
        for step in range(10)
    ]
    packs = sum(len(current_plan.packs(step, world=2, rank=rank)) for step in range(10) for rank in range(2))
    assert epoch.straggler == pytest.approx(sum(map(max, loads)) / (TOKENS.sum() / 2)) and epoch.straggler > 1
    assert epoch.fill == pytest.approx(TOKENS.sum() / (packs * 64))
    assert epoch.packs == packs / 20
    assert compute_epoch_stats(ROWS, current_plan, SAMPLES, ranks=1).straggler == 1.0


def test_a_row_that_was_altered_since_it_was_measured_is_counted_apart():
    altered = Row(ROWS[0].id, problem="its checksum is another")
    epoch = compute_epoch_stats([altered, *ROWS[1:]], plan(), SAMPLES, ranks=1)
    assert epoch.tasks["unreadable"].rows == 1


def test_a_sample_of_the_steps_gives_nearly_the_same_statistics():
    whole, part = (compute_epoch_stats(ROWS, plan(), SAMPLES, ranks=1, max_steps=max_steps) for max_steps in (99, 4))
    assert part.sampled_steps == 4 and part.steps == whole.steps == 10
    assert part.total.tokens == pytest.approx(whole.total.tokens, rel=0.25)
