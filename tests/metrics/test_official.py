"""The official scores equal those of the released scripts; scores that include every reply equal manual ones."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from auris.metrics import choices, official
from auris.metrics.measures import row_stats
from auris.metrics.normalize import normalize
from auris.metrics.official import ScriptError
from support import air_bench_scripts


@pytest.fixture(scope="module")
def golden(shared_data):
    """Return a function that reads stored outputs of the official scripts (v1: Qwen-Audio, v2: Qwen2-Audio)."""

    def read(name: str, kind: str) -> list[dict]:
        path = shared_data / f"golden/official_scoring/{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if row["kind"] == kind]

    return read


def assert_script_error(call: Callable, error: str) -> None:
    """Assert that `call` raises the error with which the released script fails."""
    with pytest.raises(ScriptError) as caught:
        call()
    assert str(caught.value).split(":")[0] == error.split(":")[0]


# --- error rates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("language", ["en", "zh", "yue", "fr", "ja", "de", "es", "it", "ko"])
def test_error_rates_and_compared_items_equal_the_scripts(golden, language, version):
    if (version, language) == ("v2", "yue"):
        pytest.importorskip("zhconv")
    pairs = [row for row in golden("wer", "pair") if row["language"] == language]
    assert len(pairs) == 25
    for row in pairs:
        for side in ("ref", "hyp"):
            assert official.split_text(row[side], language, version) == row[version][f"{side}_items"], row[side]
    (corpus,) = (row for row in golden("wer", "corpus") if row["language"] == language)
    rate = official.word_error_rate([(row["ref"], row["hyp"]) for row in pairs], language, version)
    assert rate == corpus[version]["wer"]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_error_rates_fail_on_the_same_rows_as_the_scripts(golden, version):
    pytest.importorskip("zhconv")
    edges = golden("wer", "edge")
    assert len(edges) == 18
    for row in edges:

        def rate(row=row) -> float:
            return official.word_error_rate(row["pairs"], row["language"], version)

        if row[version]["error"]:
            assert_script_error(rate, row[version]["error"])
        else:
            assert rate() == row[version]["wer"], row["name"]


# --- BLEU ---------------------------------------------------------------------------------------------------------


def test_bleu_equals_the_scripts_even_without_a_matching_ngram(golden):
    corpora, pairs = golden("bleu", "corpus"), golden("bleu", "pair")
    assert len(corpora) == 8
    for row in corpora:
        texts = [(pair["ref"], pair["hyp"]) for pair in pairs if pair["source"] == row["source"]]
        assert official.bleu(texts, row["source"]) == pytest.approx(row["score"], abs=1e-9)
    for row in golden("bleu", "edge"):
        actual = official.bleu([*zip(row["refs"], row["hyps"], strict=True)], row["source"])
        assert official.bleu_tokenizer(row["source"]) == row["tokenize"]
        assert actual == pytest.approx(row["score"], abs=1e-9), row["name"]


def test_bleu_for_a_dataset_name_without_language_codes_raises_an_error():
    assert_script_error(lambda: official.bleu([("a", "a")], "covost2"), "IndexError")


# --- word times ---------------------------------------------------------------------------------------------------


def test_alignment_shift_equals_the_script_including_its_wrong_pairing_of_rows(golden):
    pairs = {row["name"]: row for row in golden("aas", "pair")}
    corpora = [*golden("aas", "corpus"), *({**row, "members": [name]} for name, row in pairs.items())]
    assert len(corpora) == 46
    for row in corpora:
        texts = [(pairs[name]["ref"], pairs[name]["hyp"]) for name in row["members"]]
        if row["error"]:
            assert_script_error(lambda texts=texts: official.alignment_shift(texts), row["error"])
        else:
            assert official.alignment_shift(texts) == pytest.approx(row["aas"], abs=1e-9), row["name"]
            scores = official.timed_word_scores(texts)
            assert row["script_result"].endswith(f"WER: {scores['wer']:.4f} AAS: {scores['aas']:.4f}")


def test_tabs_and_tags_between_timed_words_are_parsed_like_the_script():
    # The expected values are from evaluate_srwt.py with edit-distance 1.0.9.
    tabbed = "<|0.00|><|en|>a b<|0.2|>\t<|0.25|>red<|0.3|>fox<|0.51|>"
    assert official.alignment_shift([(tabbed, tabbed)]) == 0.0
    tabbed = "<|0.00|><|0.00|>the<|0.37|>\t<|0.41|>fox<|9.46|>"
    assert_script_error(
        lambda: official.alignment_shift([(tabbed, "<|0.00|><|en|>the<|0.30|>fox<|9.00|>")]), "ZeroDivisionError"
    )
    plain, tagged = "<|0.00|>the<|0.37|>fox<|9.46|>", "<|0.00|><|en|>the<|0.30|>fox<|9.00|>"
    assert official.alignment_shift([(plain, tagged)]) == pytest.approx((0.07 + 0.07 + 0.46) / 2)


def test_bleu_with_an_empty_reference_raises_an_error():
    assert_script_error(lambda: official.bleu([("a b", "a b"), ("", "c")], "covost2_en_de_test"), "EOFError")
    assert official.bleu([("a b c d e", "a b c d e"), ("f g", "")], "covost2_en_de_test") > 0


# --- classes, answers, notes --------------------------------------------------------------------------------------


def test_accuracy_equals_the_scripts(golden):
    rows = golden("accuracy", "classification")
    assert len(rows) == 4
    for row in rows:
        for item in row["items"]:
            assert official.accuracy([(item["gt"], item["response"])], row["version"]) == item["correct"]
        assert row["printed"] == [
            f"{source} ACC_score: {official.accuracy(pairs, row['version'])} {len(pairs)}"
            for source, pairs in pairs_by_source(row["items"]).items()
        ]


def test_question_accuracy_equals_the_script(golden):
    for row in golden("accuracy", "aqa"):
        lines = []
        for source, pairs in pairs_by_source(row["items"]).items():
            if row["error"]:
                assert_script_error(
                    lambda source=source, pairs=pairs: official.question_accuracy(pairs, source), row["error"]
                )
                continue
            scores = official.question_accuracy(pairs, source)
            lines.append(f"{source} ACC_score: {scores['accuracy']} {len(pairs)}")
            if "binary" in scores:
                n = sum(true.lower() in ("yes", "no") for true, _ in pairs)
                lines.append(f"{source} bi_ACC_score: {scores['binary']} {n}")
        assert row["error"] or lines == row["printed"]


def test_note_scores_equal_the_script_including_its_chroma(golden):
    keys = {"instrument": "instrument_acc", "velocity": "velocity_acc", "qualities": "quality_map"}
    keys |= {"pitch": "pitch_top1", "chroma": "chroma_official"}
    rows = golden("accuracy", "note")
    assert len(rows) == 5
    for row in rows:
        pairs = [(item["gt"], item["response"]) for item in row["items"]]
        for item in row["items"]:
            assert official.parse_note(item["gt"])._asdict() == item["gt_info"]
            assert official.parse_note(item["response"])._asdict() == item["response_info"]
        if row["error"]:
            assert_script_error(lambda pairs=pairs: official.note_scores(pairs), row["error"])
        else:
            expected = {name: row[script_name] for name, script_name in keys.items()}
            assert official.note_scores(pairs) == pytest.approx(expected, abs=1e-12), row["name"]


def test_mean_average_precision_equals_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    names = sorted(official.QUALITIES)[:4]
    reference, predicted = rng.random((2, 12, len(names))) < 0.4
    text = "<|pitch|><|midi_pitch_60|><|velocity|><|midi_velocity_1|><|instrument|>a<|sonic|>{}"
    answers = [
        [text.format(", ".join(np.array(names)[row])) for row in qualities] for qualities in (reference, predicted)
    ]
    expected = sklearn.average_precision_score(reference, predicted.astype(float), average="macro")
    assert official.note_scores([*zip(*answers, strict=True)])["qualities"] == pytest.approx(expected)


def pairs_by_source(items: list[dict]) -> dict[str, list[tuple[str, str]]]:
    pairs: dict[str, list[tuple[str, str]]] = {}
    for item in items:
        pairs.setdefault(item["source"], []).append((item["gt"], item["response"]))
    return pairs


# --- AIR-Bench foundation -----------------------------------------------------------------------------------------


def test_parsed_letters_equal_the_script(golden):
    replies = golden("airbench_foundation", "reply")
    assert len(replies) == 36
    for row in replies:
        assert choices.official_letter(row["record"]["response"]) == row["letter"], row["record"]["response"]
    for row in golden("airbench_foundation", "corpus"):
        records = row.get("records") or [replies[index]["record"] for index in row["members"]]
        if row["error"]:
            assert_script_error(lambda records=records: air_bench_scripts.foundation(records), row["error"])
            continue
        result = air_bench_scripts.foundation(records)
        assert (result.total, result.correct, result.dropped) == (row["total"], row["correct"], row["fail_num"])


def test_the_strict_score_includes_replies_that_the_script_drops(golden):
    replies = golden("airbench_foundation", "reply")

    def total(metric: str) -> list[float]:
        return np.sum([reply_stats(metric, row["record"]) for row in replies], axis=0).tolist()

    assert total("choice_official") == [19, 25]
    assert total("choice")[1] == total("choice_unparsed")[1] == 36
    # The script drops these replies although they are clear.
    dropped = [row["record"] for row in replies if row["dropped"]]
    parsed = {record["response"] for record in dropped if reply_stats("choice_unparsed", record)[0] == 0}
    assert parsed == {"b", "(B) sad", "The answer is B", "happy", "Ｄ"}


def reply_stats(metric: str, record: dict) -> list[float]:
    options = [record[f"choice_{name}"] for name in "abcd" if f"choice_{name}" in record]
    return row_stats(metric, record["response"], record["answer_gt"], "en", options)


def test_options_with_equal_text_are_the_same_answer_except_in_the_script():
    assert row_stats("choice", "B", "one", "en", ["one", "one", "two"]) == [1, 1]
    assert row_stats("choice_official", "B", "one", "en", ["one", "one", "two"]) == [0, 1]
    with pytest.raises(ValueError, match="'three', expected one of"):
        row_stats("choice", "B", "three", "en", ["one", "two"])


def test_each_source_has_its_scores_or_the_error_with_which_the_script_fails():
    common = {"language": "en", "reply": "yes"}
    answers = [
        official.Answer(source="clothoaqa_val", reference="yes", **common),
        official.Answer(source="clothoaqa_open", reference="rain", **common),
    ]
    scores = official.script_scores("evaluate_aqa", "v1", answers)
    assert [(score.source, score.metric, score.value) for score in scores] == [
        ("clothoaqa_val", "accuracy", 1.0),
        ("clothoaqa_val", "binary", 1.0),
        ("clothoaqa_open", None, None),
    ]
    assert scores[-1].stopped.startswith("ValueError") and scores[0].n == 1
    with pytest.raises(ValueError, match="benchmark.script=evaluate_caption: expected one of evaluate_asr"):
        official.script_scores("evaluate_caption", "v1", answers)


def test_only_the_official_normalisation_keeps_spaces_between_japanese_words():
    assert normalize("おはよう 彼は", "ja") == "おはよう彼は"
    assert official.split_text("おはよう 彼は", "ja", "v2") == ["おはよう", "彼は"]
