"""Scores from row statistics equal those of libraries, released scripts and examples; intervals of scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sacrebleu
import torch
from sacrebleu.metrics import BLEU
from torchmetrics.functional.classification import (
    binary_eer,
    multiclass_f1_score,
    multilabel_average_precision,
)

from auris.metrics.measures import MEASURES, format_value, score, score_from_sums, scorer
from auris.metrics.statistics import bootstrap_interval, difference_scorer, percentile_interval, resample_scores

CORPUS_METRICS = [name for name, measure in MEASURES.items() if measure.over]

# Example rows for each corpus metric, whose score is not a function of summed statistics.
ROWS = {
    "eer": [[2.0, 1.0], [0.5, 0.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]],
    "macro_f1": [["dog", "dog"], ["cat", "dog"], ["rain", "rain"], ["", "cat"], ["cat", "cat"], ["dog", "rain"]],
    "map": [[["dark"], ["dark", "bright"]], [["bright"], ["bright"]], [[], ["dark"]], [["bright"], []]],
    **{
        key: [["speech/speech", 6, 8], ["speech/speech", 7, 3], ["speech/speech", 5, 5], ["speech/speech", 2, 9]]
        for key in ("judged_official", "judged_strict")
    },
    "cider": [
        [["a", "dog", "barks"], [["a", "dog", "barks"], ["the", "dog", "is", "barking"]]],
        [["rain", "falls"], [["rain", "falls", "on", "a", "roof"]]],
        [["a", "bird", "sings"], [["birds", "sing"]]],
    ],
}


def sentence_stats(hypothesis: str, reference: str) -> list[float]:
    score = BLEU(effective_order=True).sentence_score(hypothesis, [reference])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


# --- metrics of summed statistics ---


def test_the_vectorized_bleu_formula_equals_sacrebleu():
    rng = np.random.default_rng(0)
    totals = np.sort(rng.integers(0, 12, (500, 4)), axis=1)[:, ::-1]
    matches = rng.integers(0, totals + 1)
    lengths = rng.integers(0, 20, (500, 2))
    lengths[:, 0] = totals[:, 0]
    stats = np.concatenate([matches, totals, lengths], axis=1)
    actual = MEASURES["bleu"].formula(stats.astype(float))
    expected = [
        BLEU.compute_bleu(list(row[:4]), list(row[4:8]), int(row[8]), int(row[9]), smooth_method="exp").score
        for row in stats
    ]
    assert sum(score > 0 for score in expected) > 100
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def test_summed_sentence_statistics_give_corpus_bleu():
    hypotheses = ["the old bridge was painted green", "he likes apples", "nobody knew the answer ."]
    references = ["the old bridge was painted green last summer", "he does not like apples", "nobody knew the answer ."]
    rows = [sentence_stats(*pair) for pair in zip(hypotheses, references, strict=True)]
    expected = sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert score_from_sums("bleu", np.sum(rows, axis=0)) == score("bleu", rows) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("metric", "sums", "expected"),
    [
        ("wer", [3, 12], 0.25),
        ("cer", [5, 4], 1.25),
        ("accuracy", [3, 4], 0.75),
        ("unparsed", [1, 4], 0.25),
        ("slot_f1", [6, 2, 4], 12 / 18),
        ("event_f1", [6, 2, 4], 12 / 18),
        ("aas_ms", [120.0, 3], 40.0),
    ],
)
def test_the_score_from_summed_statistics_equals_the_expected_value(metric, sums, expected):
    assert score_from_sums(metric, sums) == pytest.approx(expected)


@pytest.mark.parametrize("metric", MEASURES)
def test_the_score_of_no_rows_is_nan(metric):
    assert np.isnan(score(metric, [])) or metric == "bleu"
    if not MEASURES[metric].over and metric != "bleu":
        assert np.isnan(score_from_sums(metric, [0] * len(MEASURES[metric].stats)))


def test_the_error_for_an_unknown_metric_lists_the_valid_ones():
    with pytest.raises(ValueError, match="'word_error'.*wer, cer, cpwer"):
        score_from_sums("word_error", [1, 2])


# --- corpus metrics ---


@pytest.mark.parametrize("seed", range(5))
def test_equal_error_rate_with_ties_equals_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, 60)
    scores = np.round(rng.normal(targets, 1.0), 1)
    expected = binary_eer(torch.sigmoid(torch.tensor(scores)), torch.tensor(targets)).item()
    assert score("eer", list(zip(scores.tolist(), targets.tolist(), strict=True))) == pytest.approx(expected, abs=1e-6)


def test_equal_error_rate_of_examples():
    # Threshold 0.5 rejects one of three targets. Threshold 0.0 accepts one of three non-targets and all targets.
    assert score("eer", ROWS["eer"]) == pytest.approx(1 / 3)
    assert score("eer", [[1.0, 1.0], [0.0, 0.0]]) == 0.0
    assert score("eer", [[0.0, 1.0], [1.0, 0.0]]) == 1.0
    assert np.isnan(score("eer", [[1.0, 1.0], [0.5, 1.0]])), "no non-target"


@pytest.mark.parametrize("seed", range(3))
def test_macro_f1_equals_torchmetrics_over_the_classes_of_the_references(seed):
    rng = np.random.default_rng(seed)
    predicted, reference = rng.integers(0, 5, 80), rng.integers(0, 4, 80)  # no reference has class 4
    class_f1 = multiclass_f1_score(torch.tensor(predicted), torch.tensor(reference), num_classes=5, average="none")
    rows = [[str(a), str(b)] for a, b in zip(predicted, reference, strict=True)]
    assert score("macro_f1", rows) == pytest.approx(class_f1[:4].mean().item(), abs=1e-6)


def test_macro_f1_of_examples():
    # Correct, predicted and reference rows: dog 1, 2, 2; rain 1, 1, 2; cat 1, 2, 2.
    assert score("macro_f1", ROWS["macro_f1"]) == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 3)


@pytest.mark.parametrize("seed", range(3))
def test_mean_average_precision_equals_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    predicted, reference = rng.random((2, 40, 6)) < 0.3
    expected = multilabel_average_precision(
        torch.tensor(predicted).float(), torch.tensor(reference).long(), num_labels=6
    ).item()
    rows = [
        [np.flatnonzero(row).astype(str).tolist() for row in pair] for pair in zip(predicted, reference, strict=True)
    ]
    assert score("map", rows) == pytest.approx(expected, abs=1e-6)


def test_mean_average_precision_equals_the_released_note_script(shared_data):
    path = shared_data / "golden/official_scoring/accuracy.jsonl"
    corpora = {row["name"]: row for row in map(json.loads, path.read_text().splitlines()) if row["kind"] == "note"}

    def rows(name: str) -> list:
        """Return the rows as the script splits them. It ignores text that is not one of NSynth's qualities."""
        sides = ("response_info", "gt_info")
        qualities = [[item[side]["sonic"].split(", ") for side in sides] for item in corpora[name]["items"]]
        return [
            [[q for q in side if q not in ("", "shiny", "multiphonic,tempo-synced")] for side in row]
            for row in qualities
        ]

    for name in ("mixed", "chroma_columns", "chroma_wraps_by_columns"):
        assert score("map", rows(name)) == pytest.approx(corpora[name]["quality_map"])
    # The script scores a class without references as 0. Here it is excluded, as in torchmetrics.
    assert (corpora["quality_only_predicted"]["quality_map"], score("map", rows("quality_only_predicted"))) == (
        0.5,
        0.75,
    )


def test_cider_equals_coco_caption_evaluation():
    """The expected scores are from pycocoevalcap 1.2 with its PTB tokenizer (Java)."""
    references = [
        [
            "a dog barks while rain falls on a tin roof",
            "rain falls and a dog is barking loudly",
            "it 's raining a dog barks",
        ],
        ["somebody 's walking on gravel then stops", "footsteps crunch over gravel and stop"],
        ["birds sing in the trees and a car drives by", "a car passes while birds are chirping"],
        ["a man does n't speak for 2.5 seconds then laughs", "the man is silent then he laughs -lrb- loudly -rrb-"],
        ["an old-fashioned clock ticks at 10:30 o'clock", "a clock is ticking tick tock"],
    ]
    predicted = [
        "a dog barks and rain falls on a roof",
        "someone walks on gravel then stops",
        "birds sing",
        "a man laughs laughs laughs laughs",
        "the clock ticks",
    ]
    rows = [[hyp.split(), [ref.split() for ref in refs]] for hyp, refs in zip(predicted, references, strict=True)]
    assert score("cider", rows) == pytest.approx(1.583339757052079, abs=1e-12)
    # Scores of single rows, with the document frequencies of all rows.
    row_scores = scorer("cider", [dict(enumerate(rows))])(np.eye(5))
    np.testing.assert_allclose(row_scores, [3.0894562, 2.5181608, 0.7146855, 0.4526581, 1.1417382], atol=1e-7)


def test_cider_of_empty_answers_or_of_a_single_row_is_zero():
    assert score("cider", [[[], [["a", "dog"]]], [[], [["rain"]]]]) == 0
    assert score("cider", ROWS["cider"][:1]) == 0  # every word occurs in all references


# --- intervals and seeds ---


def test_the_bootstrap_interval_of_a_proportion_is_the_binomial_interval():
    stats = [[1.0, 1.0]] * 700 + [[0.0, 1.0]] * 300
    low, high = bootstrap_interval(stats, "accuracy", n_samples=4000)
    half_width = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert (low, high) == pytest.approx((0.7 - half_width, 0.7 + half_width), abs=0.003)
    assert bootstrap_interval(stats, "accuracy") == bootstrap_interval(stats, "accuracy")


def test_pairing_narrows_the_interval_if_the_same_rows_are_hard_for_both_systems():
    rng = np.random.default_rng(0)
    is_hard = rng.random(400) < 0.5
    a = np.stack([10.0 * is_hard + rng.binomial(2, 0.5, 400), np.full(400, 20.0)], axis=1)
    b = a - np.array([1.0, 0.0]) * rng.binomial(1, 0.3, 400)[:, None]
    scorer_a, scorer_b = (scorer("wer", [dict(enumerate(rows))]) for rows in (a, b))
    low, high = percentile_interval(resample_scores(difference_scorer(scorer_a, scorer_b), 400))
    assert -0.02 < low < score("wer", b) - score("wer", a) < high < 0
    low_a, high_a = bootstrap_interval(a, "wer")
    assert high - low < 0.2 * (high_a - low_a)


@pytest.mark.parametrize("metric", CORPUS_METRICS)
def test_a_row_with_weight_two_counts_like_two_rows(metric):
    rows = ROWS[metric]
    weights = np.ones((1, len(rows)))
    weights[0, 1] = 2
    weighted = scorer(metric, [dict(enumerate(rows))])(weights)[0]
    if metric == "cider":  # document frequencies do not depend on the weights
        row_scores = scorer(metric, [dict(enumerate(rows))])(np.eye(len(rows)))
        assert weighted == pytest.approx((row_scores.sum() + row_scores[1]) / (len(rows) + 1))
    else:
        assert weighted == pytest.approx(score(metric, [*rows, rows[1]]))


@pytest.mark.parametrize("metric", CORPUS_METRICS)
def test_an_interval_contains_the_score_and_has_a_positive_width(metric):
    rows = 5 * ROWS[metric]
    low, high = bootstrap_interval(rows, metric, n_samples=200)
    assert low <= score(metric, rows) <= high and low < high


def test_seeds_are_pooled_for_summed_statistics_and_averaged_for_corpus_metrics():
    seed_0, seed_1 = {"a": [1, 1], "b": [0, 1]}, {"a": [1, 3]}
    assert scorer("accuracy", [seed_0, seed_1])(np.ones((1, 2)))[0] == pytest.approx(2 / 5)
    # All scores of the second seed are higher, so a common threshold would accept all of its rows.
    low_seed, high_seed = ({str(i): [x + shift, t] for i, (x, t) in enumerate(ROWS["eer"])} for shift in (0, 100))
    assert scorer("eer", [low_seed, high_seed])(np.ones((1, 6)))[0] == pytest.approx(score("eer", ROWS["eer"]))


@pytest.mark.parametrize(
    ("metric", "number", "text"),
    [("wer", 0.0894, "8.9"), ("bleu", 25.06, "25.1"), ("aas_ms", 63.04, "63.0"), ("cider", 0.4412, "0.441")],
)
def test_a_value_is_displayed_in_its_unit(metric, number, text):
    assert format_value(metric, number) == text
    assert format_value(metric, number, "+") == f"+{text}"


def test_a_measure_has_either_a_formula_or_a_corpus_function():
    for name, measure in MEASURES.items():
        assert (measure.formula is None) != (measure.over is None), name
        assert len(set(measure.stats)) == len(measure.stats) > 1, name
