"""Tests of epoch statistics: exact if every step is counted, and approximate if a sample of the steps is."""

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
SAMPLES = SimpleNamespace(audio_seconds=lambda row: 2.0 if row.labels["task"] == "asr" else 0.5)


def plan(**changes) -> Plan:
    settings = {"rows_per_step": 6, "token_budget": 64, "seed": 0, **changes}
    return Plan(sources=[Manifest("all", ROWS)], lengths=TOKENS, **settings)


@pytest.mark.parametrize("settings", [{}, {"rows_per_step": 7}, {"rows_per_step": None, "packs_per_step": 4}])
def test_epoch_statistics_count_every_usable_row_once(settings):
    epoch = compute_epoch_stats(ROWS, plan(**settings), SAMPLES, ranks=2)
    asr = [n for n in range(N) if n % 3 and TOKENS[n]]
    assert (epoch.rows, epoch.unusable, epoch.sampled_steps) == (N, 2, epoch.steps)
    # With the default settings steps and epochs end together, so the counts are exact.
    about = pytest.approx if settings else lambda value, rel: value
    assert epoch.tasks["asr"].rows == about(len(asr), rel=0.1)
    assert epoch.tasks["asr"].seconds == about(2.0 * len(asr), rel=0.1)
    assert epoch.total.tokens == about(TOKENS.sum(), rel=0.1)


def test_straggler_and_fill_equal_the_values_computed_from_the_packs():
    """Straggler: tokens of the busiest rank relative to the mean. Fill: used share of the token budget."""
    current_plan = plan()
    epoch = compute_epoch_stats(ROWS, current_plan, SAMPLES, ranks=2)
    tokens_of_ranks = [
        [
            sum(TOKENS[row] for pack in current_plan.packs(step, world=2, rank=rank) for row, _ in pack)
            for rank in range(2)
        ]
        for step in range(10)
    ]
    n_packs = sum(len(current_plan.packs(step, world=2, rank=rank)) for step in range(10) for rank in range(2))
    assert epoch.straggler == pytest.approx(sum(map(max, tokens_of_ranks)) / (TOKENS.sum() / 2)) and epoch.straggler > 1
    assert epoch.fill == pytest.approx(TOKENS.sum() / (n_packs * 64))
    assert epoch.packs == n_packs / 20
    assert compute_epoch_stats(ROWS, current_plan, SAMPLES, ranks=1).straggler == 1.0


def test_a_row_that_changed_after_planning_is_counted_as_unreadable():
    changed = Row(ROWS[0].id, problem="its checksum is another")
    epoch = compute_epoch_stats([changed, *ROWS[1:]], plan(), SAMPLES, ranks=1)
    assert epoch.tasks["unreadable"].rows == 1


def test_a_sample_of_the_steps_gives_nearly_the_same_statistics():
    full, sampled = (compute_epoch_stats(ROWS, plan(), SAMPLES, ranks=1, max_steps=max_steps) for max_steps in (99, 4))
    assert sampled.sampled_steps == 4 and sampled.steps == full.steps == 10
    assert sampled.total.tokens == pytest.approx(full.total.tokens, rel=0.25)
