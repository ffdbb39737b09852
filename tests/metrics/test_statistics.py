"""Chance: units of rows that depend on each other, a test between two systems, many comparisons, small differences."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from auris.metrics.measures import score, scorer
from auris.metrics.statistics import (
    bootstrap,
    detectable,
    detectable_alone,
    difference,
    holm,
    percentiles,
    permutation_test,
    samples,
    units,
)


def rows(n: int, per_speaker: int, per_recording: int = 1) -> list[dict]:
    return [{"speaker": f"s{i // per_speaker}", "recording": f"r{i // per_recording}"} for i in range(n)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (rows(40, 4), "10 speakers"),
        (rows(36, 4), "36 rows"),  # nine speakers are too few
        (rows(36, 4, 2), "18 recordings"),
        (rows(40, 1), "40 rows"),
        ([*rows(40, 4, 2), {"speaker": None, "recording": "r99"}], "21 recordings"),
        ([*rows(40, 4), {"speaker": float("nan")}], "41 rows"),
        ([], "0 rows"),
    ],
)
def test_rows_are_resampled_in_the_widest_units_of_which_there_are_enough(given: list[dict], expected: str):
    assert str(units(given)) == expected


def test_ten_equal_rows_of_a_speaker_are_one():
    right = np.repeat(np.random.default_rng(0).permutation([1.0] * 35 + [0.0] * 15), 10)
    stats = np.stack([right, np.ones(500)], axis=1)
    of_row = units(rows(500, 10)).of_row
    low, high = bootstrap(stats, "accuracy", 4000, units=of_row)
    half = 1.96 * np.sqrt(0.7 * 0.3 / 50)  # fifty speakers, not five hundred rows
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.021)  # shares of fifty
    narrow = bootstrap(stats, "accuracy", 4000)
    assert (high - low) / (narrow[1] - narrow[0]) == pytest.approx(np.sqrt(10), rel=0.05)


def test_units_of_one_row_are_rows():
    stats = [[float(i % 3), 5.0] for i in range(60)]
    assert bootstrap(stats, "wer", units=np.arange(60)) == bootstrap(stats, "wer")


def test_error_rates_are_resampled_as_corpus_scores():
    stats = np.array([[1.0, 2.0], [0.0, 10.0], [3.0, 4.0]])
    drawn = samples(scorer("wer", [dict(enumerate(stats))]), 3, 3000)
    possible = {sum(c[0] for c in chosen) / sum(c[1] for c in chosen) for chosen in product(stats, repeat=3)}
    assert {round(x, 9) for x in drawn} == {round(x, 9) for x in possible}


def of(values: list[float]) -> list[dict[int, list[float]]]:
    return [{i: [value, 1.0] for i, value in enumerate(values)}]


def test_few_units_are_exchanged_in_all_ways():
    # Differences 1, 2, 3 and 4 of a mean: only all as they are, and all exchanged, reach 10 / 4.
    assert permutation_test("judged", of([0, 0, 0, 0]), of([1, 2, 3, 4])) == 2 / 16
    # In pairs: three differences of one sign among the eight signs of (3, 7, 0): |10| twice, each with 0 both ways.
    assert permutation_test("judged", of([0] * 6), of([1, 2, 3, 4, 0, 0]), np.array([0, 0, 1, 1, 2, 2])) == 4 / 8
    assert permutation_test("judged", of([1, 2, 3]), of([1, 2, 3])) == 1


def test_p_equals_scipy_s():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=9), rng.normal(0.8, size=9)

    def mean(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.mean(y, axis=axis) - np.mean(x, axis=axis)

    theirs = stats.permutation_test((a, b), mean, permutation_type="samples", vectorized=True, n_resamples=np.inf)
    assert permutation_test("judged", of(a), of(b), n_samples=512) == pytest.approx(theirs.pvalue)
    assert permutation_test("judged", of(a), of(b), n_samples=511) == pytest.approx(theirs.pvalue, abs=0.07)


def test_p_of_systems_that_do_not_differ_is_uniform():
    rng = np.random.default_rng(2)
    found = []
    for trial in range(200):
        hard = rng.normal(size=30)
        sides = [of(hard + rng.normal(size=30)) for _ in "ab"]
        found.append(permutation_test("judged", *sides, n_samples=200, seed=trial))
    assert np.mean(np.array(found) <= 0.05) <= 0.08 and 0.35 < np.mean(found) < 0.65


def test_rows_of_one_speaker_are_no_evidence_of_their_own():
    a, b = [0.0] * 100, [1.0] * 90 + [0.0] * 10
    by_row = permutation_test("accuracy", of(a), of(b))
    by_speaker = permutation_test("accuracy", of(a), of(b), np.arange(100) // 25)
    assert by_row == 1 / 2001 and by_speaker == 2 / 16


@pytest.mark.parametrize("metric", ["wer", "macro_f1"])
def test_seeds_and_measures_of_all_rows_at_once_are_tested_too(metric: str):
    words = ("dog", "cat", "rain")
    better = [{i: [words[i % 3], words[i % 3]] if metric == "macro_f1" else [0.0, 4.0] for i in range(30)}] * 2
    worse = [
        {
            i: [words[(i + (i < 12)) % 3], words[i % 3]] if metric == "macro_f1" else [float(i < 12), 4.0]
            for i in range(30)
        }
    ] * 2
    assert permutation_test(metric, worse, better, n_samples=500) < 0.01
    assert permutation_test(metric, better, better, n_samples=100) == 1


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1, 1]
    corrected = holm([0.02, float("nan"), 0.01])
    assert corrected[0] == 0.02 and np.isnan(corrected[1]) and corrected[2] == 0.02
    assert holm([]) == []


def test_the_detectable_difference_equals_the_closed_form():
    stats = [[1.0, 1.0]] * 700 + [[0.0, 1.0]] * 300
    drawn = samples(scorer("accuracy", [dict(enumerate(stats))]), 1000, 4000)
    error = np.sqrt(0.7 * 0.3 / 1000)
    assert detectable(drawn) == pytest.approx((1.96 + 0.8416) * error, rel=0.04)
    assert detectable_alone(drawn) == pytest.approx(np.sqrt(2) * (1.96 + 0.8416) * error, rel=0.04)
    assert np.isnan(detectable(np.array([np.nan]))) and np.isnan(detectable(np.zeros(9)))


def test_a_detectable_difference_is_found_in_80_percent_of_cases():
    rng, n, gap = np.random.default_rng(3), 200, 0.1
    spread = detectable(rng.normal(scale=1, size=4000)) / (1.96 + 0.8416)
    assert spread == pytest.approx(1, abs=0.05)
    scale = gap * np.sqrt(n) / (1.96 + 0.8416)  # of a row's difference, so that `gap` is just what can be seen
    found = 0
    for trial in range(100):
        a, b = of(np.zeros(n)), of(rng.normal(gap, scale, n))
        of_a, of_b = (scorer("judged", side) for side in (a, b))
        low, high = percentiles(samples(difference(of_a, of_b), n, 400, seed=trial))
        found += low > 0 or high < 0
    assert 0.65 <= found / 100 <= 0.92 and score("judged", list(a[0].values())) == 0
