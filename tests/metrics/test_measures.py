"""Scores equal those of jiwer, sacrebleu, torchmetrics and the stored outputs of the official scripts."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import jiwer
import numpy as np
import pytest
import sacrebleu
import torch
from torchmetrics.text import CharErrorRate, SacreBLEUScore, WordErrorRate

from auris.metrics import captions, measures
from auris.metrics.judges import air_bench
from auris.metrics.measures import MEASURES, check_packages, row_stats, score_from_sums, signature
from auris.metrics.normalize import normalize
from auris.training.task_score import TaskScore

REFERENCES = ["It costs $3.50, Mr. Brown!", "The colour of the harbour was grey.", "I can't believe it.", "Turn left"]
HYPOTHESES = ["it costs three dollars and fifty cents", "the color of a harbor was gray", "", "turn turn left now"]
GERMAN = ["Der alte Fischer repariert sein Netz am Hafen.", "Das Museum ist geschlossen."]
GERMAN_HYPOTHESES = ["Der alte Fischer flickt sein Netz am Hafen.", "das Museum ist montags geschlossen."]


@pytest.fixture(scope="module")
def golden(shared_data):
    """Return a function that reads stored outputs of the official scripts (v1: Qwen-Audio, v2: Qwen2-Audio)."""

    def read(name: str) -> list[dict]:
        path = shared_data / f"golden/official_scoring/{name}.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    return read


def score(metric: str, hypotheses, references, language: str, **kwargs) -> float:
    rows = [row_stats(metric, *pair, language, **kwargs) for pair in zip(hypotheses, references, strict=True)]
    return score_from_sums(metric, np.sum(rows, axis=0))


def task_score(metric: str, hypotheses, references, language: str) -> float:
    metric = TaskScore(metric)
    for pair in zip(hypotheses, references, strict=True):
        metric.update(*([text] for text in pair), [language])
    return metric.compute().item()


# --- the official scripts ---


@pytest.mark.parametrize("language", ["en", "fr", "de", "es", "it", "ko"])
def test_word_errors_equal_the_official_distance_and_length(golden, language):
    pairs = [row for row in golden("wer") if row["kind"] == "pair" and row["language"] == language]
    actual = [row_stats("wer", row["hyp"], row["ref"], language) for row in pairs]
    assert len(pairs) == 25
    assert actual == [[row["v2"]["distance"], row["v2"]["ref_length"]] for row in pairs]
    (corpus,) = (row for row in golden("wer") if row["kind"] == "corpus" and row["language"] == language)
    assert score_from_sums("wer", np.sum(actual, axis=0)) == corpus["v2"]["wer"]


def test_chinese_errors_without_numbers_or_brackets_equal_the_official_ones(golden):
    pairs = [row for row in golden("wer") if row["kind"] == "pair" and row["language"] == "zh"]
    plain = [r for r in pairs if not any(c.isdigit() or c in "[(" for c in r["ref"] + r["hyp"])]
    assert len(plain) >= 8
    for row in plain:
        assert row_stats("cer", row["hyp"], row["ref"], "zh") == [row["v2"]["distance"], row["v2"]["ref_length"]]


def test_an_empty_reference_adds_only_insertions(golden):
    for row in golden("wer"):
        if row["kind"] == "edge" and row["name"] in ("later_reference_empty", "first_hypothesis_empty"):
            references, hypotheses = zip(*row["pairs"], strict=True)
            if row["language"] != "zh":
                assert score("wer", hypotheses, references, row["language"]) == row["v2"]["wer"]
    assert row_stats("wer", "two words", "<|nospeech|> ...", "en") == [2, 0]
    assert row_stats("wer", "", "", "en") == [0, 0]


def test_bleu_of_corpora_equals_the_official_bleu(golden):
    rows = golden("bleu")
    corpora = [row for row in rows if row["kind"] == "corpus"]
    assert len(corpora) == 8
    for corpus in corpora:
        pairs = [row for row in rows if row["kind"] == "pair" and row["source"] == corpus["source"]]
        target = corpus["source"].split("_")[-2]
        stats = np.sum([row_stats("bleu", row["hyp"], row["ref"], target) for row in pairs], axis=0)
        expected = [*corpus["counts"], *corpus["totals"], corpus["sys_len"], corpus["ref_len"]]
        assert stats.tolist() == expected
        assert score_from_sums("bleu", stats) == pytest.approx(corpus["score"], abs=1e-9)


def test_bleu_of_edge_cases_equals_the_official_one_if_any_ngram_matches(golden):
    edges = {row["name"]: row for row in golden("bleu") if row["kind"] == "edge"}
    for name in ("all_hypotheses_empty", "hypothesis_with_final_newline", "lower_cased_hypotheses"):
        row = edges[name]
        target = row["source"].split("_")[-2]
        assert score("bleu", row["hyps"], row["refs"], target) == pytest.approx(row["score"], abs=1e-9), name
    row = edges["no_matching_ngram"]
    assert (row["score"], score("bleu", row["hyps"], row["refs"], "en")) == (pytest.approx(0.70, abs=0.01), 0)


def test_raw_accuracy_equals_the_official_string_equality(golden):
    rows = [row for row in golden("accuracy") if row["kind"] == "classification" and row["version"] == "v2"]
    items = [item for row in rows for item in row["items"]]
    assert len(items) > 20
    for item in items:
        assert row_stats("accuracy_raw", item["response"], item["gt"], "en") == [item["correct"], 1], item


# --- the libraries ---


def test_error_rates_equal_jiwer_and_torchmetrics():
    predicted, reference = ([normalize(text, "en") for text in texts] for texts in (HYPOTHESES, REFERENCES))
    wer, cer = (score(metric, HYPOTHESES, REFERENCES, "en") for metric in ("wer", "cer"))
    assert wer == pytest.approx(jiwer.wer(reference, predicted), abs=1e-12)
    assert cer == pytest.approx(jiwer.cer(reference, predicted), abs=1e-12)
    assert wer == pytest.approx(WordErrorRate()(predicted, reference).item(), abs=1e-6)
    assert cer == pytest.approx(CharErrorRate()(predicted, reference).item(), abs=1e-6)
    assert task_score("wer", HYPOTHESES, REFERENCES, "en") == pytest.approx(wer, abs=1e-6)


@pytest.mark.parametrize(
    ("language", "tokenizer", "hypotheses", "references"),
    [
        ("de", "13a", GERMAN_HYPOTHESES, GERMAN),
        ("zh", "zh", ["那座旧桥在去年夏天被漆成绿色。"], ["那座老桥去年夏天被漆成了绿色。"]),
        ("ja", "ja-mecab", ["祖母はバルコニーでトマトを育てています。"], ["祖母はベランダでトマトを育てている。"]),
    ],
)
def test_bleu_equals_sacrebleu_and_torchmetrics(language, tokenizer, hypotheses, references):
    expected = sacrebleu.corpus_bleu(hypotheses, [references], tokenize=tokenizer).score
    assert expected > 5
    assert score("bleu", hypotheses, references, language) == pytest.approx(expected, abs=1e-9)
    assert task_score("bleu", hypotheses, references, language) == pytest.approx(expected, abs=1e-4)
    if tokenizer != "ja-mecab":  # torchmetrics has no Japanese tokenizer that works offline
        # torchmetrics does not smooth: it returns 0 if no 4-gram matches, as in a short corpus.
        torchmetrics_bleu = SacreBLEUScore(tokenize=tokenizer)(hypotheses, [[r] for r in references])
        assert 100 * torchmetrics_bleu.item() == pytest.approx(expected, abs=1e-3)


# --- accuracy and slots ---


def test_accuracy_ignores_case_and_surrounding_space_only():
    answers = ["Dog", " dog\n", "dog.", "a dog", ""]
    assert [row_stats("accuracy", answer, "dog", "en")[0] for answer in answers] == [1, 1, 0, 0, 0]


def test_unparsed_as_a_metric_is_the_rate_of_answers_outside_the_classes():
    answers = ["Dog", "cat", "a dog", ""]
    assert score("unparsed", answers, ["dog"] * 4, "en", classes=["dog", "cat"]) == 0.5
    with pytest.raises(ValueError, match="classes"):
        row_stats("unparsed", "dog", "dog", "en")


def test_slots_are_counted_as_name_and_value_pairs():
    reference = {"intent": "orderDrink", "slots": {"size": "large", "drink": "latte", "sugar": "none"}}
    hypothesis = {"intent": "orderDrink", "slots": {"size": "Large", "drink": "mocha"}}
    assert row_stats("slot_f1", hypothesis, reference, "en") == [1, 1, 2]
    assert row_stats("slot_f1", None, reference, "en") == [0, 0, 3]
    assert row_stats("intent_accuracy", hypothesis, reference, "en") == [1, 1]
    assert row_stats("intent_accuracy", None, reference, "en") == [0, 1]


def test_several_entities_of_one_type_are_counted_separately():
    reference = [{"type": "person", "value": value} for value in ("Ada", "Grace", "Ada")]
    hypothesis = [{"type": "person", "value": "ada"}, {"type": "place", "value": "Grace"}]
    assert row_stats("slot_f1", hypothesis, reference, "en") == [1, 1, 2]
    assert row_stats("slot_f1", 2 * reference, reference, "en") == [3, 3, 0]


def test_note_scores_equal_the_released_script_except_for_chroma(golden):
    """The script uses 128 for a number that cannot be parsed.

    For chroma, it takes the position of a pitch among the pitches that occur modulo 12, not the MIDI number modulo 12.
    """
    corpora = [row for row in golden("accuracy") if row["kind"] == "note"]
    assert len(corpora) == 5
    for corpus in corpora:

        def rate(metric: str, field: str, corpus: dict = corpus) -> float:
            pairs = ([item[side][field] for side in ("response_info", "gt_info")] for item in corpus["items"])
            return score(metric, *zip(*([None if x == 128 else x for x in pair] for pair in pairs), strict=True), "en")

        assert rate("velocity_accuracy", "velocity") == corpus["velocity_acc"]
        assert rate("chroma_accuracy", "pitch") == corpus["chroma_by_midi_number"]
        if corpus["pitch_top1"] is not None:
            assert rate("pitch_accuracy", "pitch") == corpus["pitch_top1"]
        if corpus["name"] != "mixed":  # auris ignores case and spaces, in which the instruments of `mixed` differ
            assert rate("instrument_accuracy", "instrument") == corpus["instrument_acc"]


def test_captions_are_split_like_the_ptb_tokenizer():
    """The expected output is from Stanford CoreNLP 3.4.1, as used in pycocoevalcap 1.2."""
    for caption, expected in {
        "A woman's voice says \"hello\", then there's a beep!": "a woman 's voice says hello then there 's a beep",
        "The children can't stop; they're having fun.": "the children ca n't stop they 're having fun",
        "A car (possibly a truck) accelerates, brakes & honks.": (
            "a car -lrb- possibly a truck -rrb- accelerates brakes & honks"
        ),
        "Someone types -- clack, clack -- and sighs...": "someone types clack clack and sighs",
        "An F-16 jet flies over; a 2-stroke engine idles.": "an f-16 jet flies over a 2-stroke engine idles",
        "I cannot hear the man's dogs' barking.": "i can not hear the man 's dogs barking",
        "It's 5 o'clock, the T.V. is on at 3:30.": "it 's 5 o'clock the t.v. is on at 3:30",
        "$5 coins, 1,000 of them; 50% clink": "$ 5 coins 1,000 of them 50 % clink",
    }.items():
        assert captions.split_caption(caption, "en") == expected.split()
    assert captions.split_caption("狗在叫。", "zh") == list("狗在叫")


def test_a_caption_can_have_one_or_several_references():
    assert row_stats("cider", "A dog.", "The dog!", "en") == [["a", "dog"], [["the", "dog"]]]
    assert row_stats("cider", "", ["The dog!", "Dogs"], "en") == [[], [["the", "dog"], ["dogs"]]]


EXAMPLE_ANSWERS = {
    "slot_f1": {"intent": "a", "slots": {"b": "c"}},
    "intent_accuracy": {"intent": "a", "slots": {"b": "c"}},
    "map": ["dark"],
    "event_f1": [{"label": "dog", "start": 0.0, "end": 1.0}],
    "der": [{"speaker": "1", "start": 0.0, "end": 1.0}],
    "jer": [{"speaker": "1", "start": 0.0, "end": 1.0}],
    "cpwer": ["dog"],
    "runaway": ("dog", False),
    "aas_ms": [{"word": "dog", "start": 0.0, "end": 1.0}],
    "word_coverage": [{"word": "dog", "start": 0.0, "end": 1.0}],
    "aas_official": "dog<|1.00|>",
    "pitch_accuracy": 60,
    "chroma_accuracy": 60,
    "velocity_accuracy": 60,
    "prefers": -1.0,
    "text_loss": -3.0,
    "eer": 1.0,
    "judged": 7.0,
}


@pytest.mark.parametrize("metric", MEASURES)
def test_every_measure_has_statistics_and_a_signature(metric):
    if metric in ("der", "jer"):
        pytest.importorskip("pyannote.metrics")
    if metric == "cpwer":
        pytest.importorskip("scipy")
    answer = EXAMPLE_ANSWERS.get(metric, "dog")
    predicted, reference = (("7 8", "6 5"), "speech_QA") if metric in air_bench.METRICS else (answer, answer)
    stats = row_stats(metric, predicted, reference, "en", classes=["dog"])
    assert len(stats) == len(MEASURES[metric].stats)
    assert json.loads(json.dumps(stats)) == stats, "statistics are stored as JSON in the predictions"
    if metric not in ("judged", *air_bench.METRICS):  # the signature of these comes from the judge
        assert signature(metric, "en").startswith(f"{metric}|")


@pytest.mark.parametrize(
    "metric",
    ["cpwer", "slot_f1", "intent_accuracy", "event_f1", "der", "jer", "aas_ms", "word_coverage"]
    + [f"{field}_accuracy" for field in ("pitch", "chroma", "velocity")],
)
def test_an_answer_that_cannot_be_parsed_gets_the_worst_score(metric):
    if metric in ("der", "jer"):
        pytest.importorskip("pyannote.metrics")
    if metric == "cpwer":
        pytest.importorskip("scipy")
    reference = EXAMPLE_ANSWERS.get(metric, "dog")
    measure = MEASURES[metric]
    stats = row_stats(metric, None, reference, "en")
    if metric == "aas_ms":
        assert stats == [0, 0], "no word can be compared, and word_coverage reports that"
        return
    worst = 0.0 if measure.higher_is_better else 1.0
    assert measures.score(metric, [stats]) == worst


def test_a_signature_lists_the_settings_of_a_metric():
    assert signature("wer", "en") == f"wer|whisper_en+basic|word|jiwer{version('jiwer')}"
    assert signature("cer", "fr") == f"cer|whisper_basic|char|jiwer{version('jiwer')}"
    assert "tok:ja-mecab" in signature("bleu", "ja")
    assert signature("cider", "en").endswith("tok:ptb-like(approximate)")
    assert signature("event_f1", "en") == "event_f1|event-based|micro|collar:0.2s|end:max(collar,20%)"


def test_the_error_for_a_missing_package_names_the_extra_to_install(monkeypatch):
    for package in ("scipy.optimize", "pyannote.metrics", "zhconv"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"'cpwer' needs scipy.optimize.*pip install 'auris\[speakers\]'"):
        check_packages("cpwer", "en")
    with pytest.raises(ValueError, match=r"'der' needs pyannote.metrics.*auris\[speakers\]"):
        check_packages("der", "en")
    with pytest.raises(ValueError, match=r"'yue' needs zhconv.*auris\[chinese\]"):
        check_packages("cer", "yue")
    check_packages("wer", "en")
    check_packages("cer", "zh")


def test_an_unknown_metric_raises_an_error():
    with pytest.raises(ValueError, match="'rouge'.*wer"):
        row_stats("rouge", "a", "a", "en")
    with pytest.raises(ValueError, match="'rouge'"):
        TaskScore("rouge")


# --- scores during training ---


def test_the_summed_statistics_of_ranks_equal_those_of_one_process():
    single, ranks = TaskScore("bleu"), [TaskScore("bleu"), TaskScore("bleu")]
    single.update(GERMAN_HYPOTHESES, GERMAN, ["de", "de"])
    for rank, predicted, reference in zip(ranks, GERMAN_HYPOTHESES, GERMAN, strict=True):
        rank.update([predicted], [reference], ["de"])
    summed = torch.stack([rank.metric_state["sums"] for rank in ranks]).sum(0)
    assert torch.equal(summed, single.sums)
    ranks[0].merge_state(ranks[1])
    assert ranks[0].compute() == single.compute() > 0


def test_corpus_metrics_gather_the_rows_of_all_ranks():
    predicted, reference = ["dog", "cat", "café", "dog"], ["dog", "dog", "café", "cat"]
    single, ranks = TaskScore("macro_f1"), [TaskScore("macro_f1"), TaskScore("macro_f1")]
    single.update(predicted, reference, 4 * ["en"])
    for rank, rows in zip(ranks, (slice(0, 1), slice(1, 4)), strict=True):
        rank.update(predicted[rows], reference[rows], len(predicted[rows]) * ["en"])
    ranks[0].merge_state(ranks[1])
    expected = measures.score("macro_f1", [list(pair) for pair in zip(predicted, reference, strict=True)])
    assert ranks[0].compute() == single.compute() == pytest.approx(expected)


def test_a_rank_without_rows_computes_the_same_score():
    """`gather` mimics torchmetrics: each rank sends one tensor, which may be empty, and receives all of them."""
    sent = {}

    def gather(local: torch.Tensor, group: object) -> list[torch.Tensor]:
        sent[len(local) > 0] = local
        return [sent[True], local] if len(local) == 0 else [local, torch.tensor([], dtype=local.dtype)]

    sync = {"dist_sync_fn": gather, "distributed_available_fn": lambda: True}
    full, empty = TaskScore("macro_f1", **sync), TaskScore("macro_f1", **sync)
    full.update(["dog", "cat"], ["dog", "dog"], ["en", "en"])
    empty.update([], [], [])
    expected = measures.score("macro_f1", [["dog", "dog"], ["cat", "dog"]])
    assert full.compute() == empty.compute() == pytest.approx(expected)
    assert sent[True].dtype == sent[False].dtype, "torch.distributed needs equal dtypes"


def test_resetting_a_metric_clears_the_score():
    metric = TaskScore("wer")
    metric.update(["a b"], ["a c"], ["de"])
    assert metric.compute() == 0.5
    metric.reset()
    metric.update(["a c"], ["a c"], ["de"])
    assert metric.compute() == 0
    assert not metric.higher_is_better and TaskScore("bleu").higher_is_better


def test_lists_of_unequal_length_raise_an_error():
    with pytest.raises(ValueError, match="shorter|longer"):
        TaskScore("wer").update(["a", "b"], ["a"], ["en"])


def test_contains_as_a_metric_matches_a_key_only_as_whole_words():
    assert row_stats("contains", "It is a Dog.", "dog", "en") == [1, 1]
    assert row_stats("contains", "It is a hotdog.", "dog", "en") == [0, 1]
    assert row_stats("contains", "The dog sleeps in the garden", "dog sleeps", "en") == [1, 1]
    assert row_stats("contains", "我听到狗叫", "狗", "zh") == [1, 1]


def test_contains_as_a_metric_skips_rows_whose_key_is_empty_after_normalization():
    for predicted, key in (("", "..."), ("it is a dog", "(dog)"), ("", "")):
        assert row_stats("contains", predicted, key, "en") == [0, 0]
