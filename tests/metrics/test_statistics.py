"""Statistics: units of dependent rows, intervals, permutation tests, Holm's correction, detectable differences."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from auris.metrics.measures import score, scorer
from auris.metrics.statistics import (
    bootstrap_interval,
    correct_by_holm,
    detectable_difference,
    detectable_difference_from_one_system,
    difference_scorer,
    find_units,
    percentile_interval,
    permutation_test,
    resample_scores,
)


def rows(n: int, per_speaker: int, per_recording: int = 1) -> list[dict]:
    return [{"speaker": f"s{i // per_speaker}", "recording": f"r{i // per_recording}"} for i in range(n)]


@pytest.mark.parametrize(
    ("labels", "expected"),
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
def test_rows_are_resampled_in_the_largest_known_units_of_which_there_are_at_least_ten(
    labels: list[dict], expected: str
):
    assert str(find_units(labels)) == expected


def test_ten_equal_rows_of_a_speaker_count_as_one_row_in_the_interval():
    correct = np.repeat(np.random.default_rng(0).permutation([1.0] * 35 + [0.0] * 15), 10)
    stats = np.stack([correct, np.ones(500)], axis=1)
    units = find_units(rows(500, 10)).indices
    low, high = bootstrap_interval(stats, "accuracy", 4000, units=units)
    half_width = 1.96 * np.sqrt(0.7 * 0.3 / 50)  # 50 speakers, not 500 rows
    # Accuracies are multiples of 1/50.
    assert (low, high) == pytest.approx((0.7 - half_width, 0.7 + half_width), abs=0.021)
    row_interval = bootstrap_interval(stats, "accuracy", 4000)
    assert (high - low) / (row_interval[1] - row_interval[0]) == pytest.approx(np.sqrt(10), rel=0.05)


def test_units_of_one_row_give_the_interval_over_rows():
    stats = [[float(i % 3), 5.0] for i in range(60)]
    assert bootstrap_interval(stats, "wer", units=np.arange(60)) == bootstrap_interval(stats, "wer")


def test_resampled_error_rates_are_corpus_error_rates():
    stats = np.array([[1.0, 2.0], [0.0, 10.0], [3.0, 4.0]])
    resampled = resample_scores(scorer("wer", [dict(enumerate(stats))]), 3, 3000)
    possible = {sum(c[0] for c in chosen) / sum(c[1] for c in chosen) for chosen in product(stats, repeat=3)}
    assert {round(x, 9) for x in resampled} == {round(x, 9) for x in possible}


def one_seed_system(values: list[float]) -> list[dict[int, list[float]]]:
    """Return the statistics of a system with one seed, whose rows have these values."""
    return [{i: [value, 1.0] for i, value in enumerate(values)}]


def test_all_exchanges_are_enumerated_for_few_units():
    # The differences are 1, 2, 3 and 4. Only no exchange and a full exchange reach the mean of 10 / 4.
    assert permutation_test("judged", one_seed_system([0, 0, 0, 0]), one_seed_system([1, 2, 3, 4])) == 2 / 16
    # The differences of the three units are 3, 7 and 0: of 8 sign combinations, 4 give an absolute sum of 10.
    assert (
        permutation_test(
            "judged", one_seed_system([0] * 6), one_seed_system([1, 2, 3, 4, 0, 0]), np.array([0, 0, 1, 1, 2, 2])
        )
        == 4 / 8
    )
    assert permutation_test("judged", one_seed_system([1, 2, 3]), one_seed_system([1, 2, 3])) == 1


def test_the_p_value_equals_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=9), rng.normal(0.8, size=9)

    def mean(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.mean(y, axis=axis) - np.mean(x, axis=axis)

    # All 2^9 = 512 exchanges are tried if n_samples allows it. With 511, random exchanges are tried.
    expected = stats.permutation_test((a, b), mean, permutation_type="samples", vectorized=True, n_resamples=np.inf)
    assert permutation_test("judged", one_seed_system(a), one_seed_system(b), n_samples=512) == pytest.approx(
        expected.pvalue
    )
    assert permutation_test("judged", one_seed_system(a), one_seed_system(b), n_samples=511) == pytest.approx(
        expected.pvalue, abs=0.07
    )


def test_p_values_of_equal_systems_are_uniform():
    rng = np.random.default_rng(2)
    p_values = []
    for trial in range(200):
        difficulty = rng.normal(size=30)
        systems = [one_seed_system(difficulty + rng.normal(size=30)) for _ in "ab"]
        p_values.append(permutation_test("judged", *systems, n_samples=200, seed=trial))
    assert np.mean(np.array(p_values) <= 0.05) <= 0.08 and 0.35 < np.mean(p_values) < 0.65


def test_rows_of_one_speaker_are_not_independent_evidence():
    a, b = [0.0] * 100, [1.0] * 90 + [0.0] * 10
    by_row = permutation_test("accuracy", one_seed_system(a), one_seed_system(b))
    by_speaker = permutation_test("accuracy", one_seed_system(a), one_seed_system(b), np.arange(100) // 25)
    assert by_row == 1 / 2001 and by_speaker == 2 / 16


@pytest.mark.parametrize("metric", ["wer", "macro_f1"])
def test_permutation_tests_support_seeds_and_corpus_metrics(metric: str):
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


def test_holm_correction_of_examples():
    assert correct_by_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert correct_by_holm([0.5, 0.6]) == [1, 1]
    corrected = correct_by_holm([0.02, float("nan"), 0.01])
    assert corrected[0] == 0.02 and np.isnan(corrected[1]) and corrected[2] == 0.02
    assert correct_by_holm([]) == []


def test_the_detectable_difference_equals_the_closed_form():
    stats = [[1.0, 1.0]] * 700 + [[0.0, 1.0]] * 300
    resampled = resample_scores(scorer("accuracy", [dict(enumerate(stats))]), 1000, 4000)
    error = np.sqrt(0.7 * 0.3 / 1000)
    assert detectable_difference(resampled) == pytest.approx((1.96 + 0.8416) * error, rel=0.04)
    assert detectable_difference_from_one_system(resampled) == pytest.approx(
        np.sqrt(2) * (1.96 + 0.8416) * error, rel=0.04
    )
    assert np.isnan(detectable_difference(np.array([np.nan]))) and np.isnan(detectable_difference(np.zeros(9)))


def test_a_detectable_difference_is_significant_in_80_percent_of_cases():
    rng, n, gap = np.random.default_rng(3), 200, 0.1
    standard_error = detectable_difference(rng.normal(scale=1, size=4000)) / (1.96 + 0.8416)
    assert standard_error == pytest.approx(1, abs=0.05)
    scale = gap * np.sqrt(n) / (1.96 + 0.8416)  # standard deviation at which `gap` is the detectable difference
    n_significant = 0
    for trial in range(100):
        a, b = one_seed_system(np.zeros(n)), one_seed_system(rng.normal(gap, scale, n))
        scorer_a, scorer_b = (scorer("judged", system) for system in (a, b))
        low, high = percentile_interval(resample_scores(difference_scorer(scorer_a, scorer_b), n, 400, seed=trial))
        n_significant += low > 0 or high < 0
    assert 0.65 <= n_significant / 100 <= 0.92 and score("judged", list(a[0].values())) == 0
