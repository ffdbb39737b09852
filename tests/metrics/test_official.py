"""The official scores against what the released scripts returned, and their strict neighbours by hand."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from auris.metrics import choices, official
from auris.metrics.measures import row_stats
from auris.metrics.normalize import normalize
from auris.metrics.official import Stopped
from support import air_bench_scripts

BY_CN_TN = {"门票￥88，学生票￥45元。"}  # the official script's cn_tn leaves the sign of money


@pytest.fixture(scope="module")
def golden(shared_data):
    def read(name: str, kind: str) -> list[dict]:
        path = shared_data / f"golden/official_scoring/{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if row["kind"] == kind]

    return read


def stops(call: Callable, error: str) -> None:
    with pytest.raises(Stopped) as stopped:
        call()
    assert str(stopped.value).split(":")[0] == error.split(":")[0]


# --- error rates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("language", ["en", "zh", "yue", "fr", "ja", "de", "es", "it", "ko"])
def test_compared_items_and_rates_equal_the_scripts(golden, language, version):
    if version == "v2" and language in ("zh", "yue"):
        pytest.importorskip({"zh": "cn2an", "yue": "zhconv"}[language])
    pairs = [row for row in golden("wer", "pair") if row["language"] == language]
    differing = set()
    for row in pairs:
        for side in ("ref", "hyp"):
            if official.items(row[side], language, version) != row[version][f"{side}_items"]:
                differing.add(row[side].strip())
    assert len(pairs) == 25
    assert differing == (BY_CN_TN if (language, version) == ("zh", "v2") else set())
    if not differing:
        (corpus,) = (row for row in golden("wer", "corpus") if row["language"] == language)
        rate = official.word_error_rate([(row["ref"], row["hyp"]) for row in pairs], language, version)
        assert rate == corpus[version]["wer"]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_error_rates_stop_where_the_scripts_do(golden, version):
    pytest.importorskip("cn2an")
    edges = golden("wer", "edge")
    assert len(edges) == 18
    for row in edges:

        def rate(row=row) -> float:
            return official.word_error_rate(row["pairs"], row["language"], version)

        if row[version]["error"]:
            stops(rate, row[version]["error"])
        else:
            assert rate() == row[version]["wer"], row["name"]


# --- BLEU ---------------------------------------------------------------------------------------------------------


def test_bleu_equals_the_scripts_also_where_nothing_matches(golden):
    corpora, pairs = golden("bleu", "corpus"), golden("bleu", "pair")
    assert len(corpora) == 8
    for row in corpora:
        of_source = [(pair["ref"], pair["hyp"]) for pair in pairs if pair["source"] == row["source"]]
        assert official.bleu(of_source, row["source"]) == pytest.approx(row["score"], abs=1e-9)
    for row in golden("bleu", "edge"):
        found = official.bleu([*zip(row["refs"], row["hyps"], strict=True)], row["source"])
        assert official.bleu_tokenizer(row["source"]) == row["tokenize"]
        assert found == pytest.approx(row["score"], abs=1e-9), row["name"]


def test_bleu_of_a_source_without_languages_stops():
    stops(lambda: official.bleu([("a", "a")], "covost2"), "IndexError")


# --- word times ---------------------------------------------------------------------------------------------------


def test_alignment_shift_equals_the_script_where_it_pairs_rows_wrongly_too(golden):
    pairs = {row["name"]: row for row in golden("aas", "pair")}
    corpora = [*golden("aas", "corpus"), *({**row, "members": [name]} for name, row in pairs.items())]
    assert len(corpora) == 46
    for row in corpora:
        texts = [(pairs[name]["ref"], pairs[name]["hyp"]) for name in row["members"]]
        if row["error"]:
            stops(lambda texts=texts: official.alignment_shift(texts), row["error"])
        else:
            assert official.alignment_shift(texts) == pytest.approx(row["aas"], abs=1e-9), row["name"]
            found = official.timed_words(texts)
            assert row["script_result"].endswith(f"WER: {found['wer']:.4f} AAS: {found['aas']:.4f}")


def test_a_tab_in_a_word_and_a_tag_among_words_are_read_as_the_script_reads_them():
    # What evaluate_srwt.py returned of these (edit-distance 1.0.9).
    tabbed = "<|0.00|><|en|>a b<|0.2|>\t<|0.25|>red<|0.3|>fox<|0.51|>"
    assert official.alignment_shift([(tabbed, tabbed)]) == 0.0
    tabbed = "<|0.00|><|0.00|>the<|0.37|>\t<|0.41|>fox<|9.46|>"
    stops(lambda: official.alignment_shift([(tabbed, "<|0.00|><|en|>the<|0.30|>fox<|9.00|>")]), "ZeroDivisionError")
    plain, tagged = "<|0.00|>the<|0.37|>fox<|9.46|>", "<|0.00|><|en|>the<|0.30|>fox<|9.00|>"
    assert official.alignment_shift([(plain, tagged)]) == pytest.approx((0.07 + 0.07 + 0.46) / 2)


def test_an_empty_reference_stops_the_script_of_translations():
    stops(lambda: official.bleu([("a b", "a b"), ("", "c")], "covost2_en_de_test"), "EOFError")
    assert official.bleu([("a b c d e", "a b c d e"), ("f g", "")], "covost2_en_de_test") > 0


# --- classes, answers, notes --------------------------------------------------------------------------------------


def test_accuracy_equals_the_scripts(golden):
    found = golden("accuracy", "classification")
    assert len(found) == 4
    for row in found:
        for item in row["items"]:
            assert official.accuracy([(item["gt"], item["response"])], row["version"]) == item["correct"]
        assert row["printed"] == [
            f"{source} ACC_score: {official.accuracy(pairs, row['version'])} {len(pairs)}"
            for source, pairs in by_source(row["items"]).items()
        ]


def test_answers_to_questions_equal_the_script(golden):
    for row in golden("accuracy", "aqa"):
        printed = []
        for source, pairs in by_source(row["items"]).items():
            if row["error"]:
                stops(lambda source=source, pairs=pairs: official.question_accuracy(pairs, source), row["error"])
                continue
            found = official.question_accuracy(pairs, source)
            printed.append(f"{source} ACC_score: {found['accuracy']} {len(pairs)}")
            if "binary" in found:
                n = sum(true.lower() in ("yes", "no") for true, _ in pairs)
                printed.append(f"{source} bi_ACC_score: {found['binary']} {n}")
        assert row["error"] or printed == row["printed"]


def test_notes_equal_the_script_chroma_by_column_included(golden):
    keys = {"instrument": "instrument_acc", "velocity": "velocity_acc", "qualities": "quality_map"}
    keys |= {"pitch": "pitch_top1", "chroma": "chroma_official"}
    rows = golden("accuracy", "note")
    assert len(rows) == 5
    for row in rows:
        pairs = [(item["gt"], item["response"]) for item in row["items"]]
        for item in row["items"]:
            assert official.note(item["gt"])._asdict() == item["gt_info"]
            assert official.note(item["response"])._asdict() == item["response_info"]
        if row["error"]:
            stops(lambda pairs=pairs: official.notes(pairs), row["error"])
        else:
            expected = {ours: row[theirs] for ours, theirs in keys.items()}
            assert official.notes(pairs) == pytest.approx(expected, abs=1e-12), row["name"]


def test_mean_average_precision_equals_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    names = sorted(official.QUALITIES)[:4]
    true, predicted = rng.random((2, 12, len(names))) < 0.4
    text = "<|pitch|><|midi_pitch_60|><|velocity|><|midi_velocity_1|><|instrument|>a<|sonic|>{}"
    sides = [[text.format(", ".join(np.array(names)[row])) for row in side] for side in (true, predicted)]
    expected = sklearn.average_precision_score(true, predicted.astype(float), average="macro")
    assert official.notes([*zip(*sides, strict=True)])["qualities"] == pytest.approx(expected)


def by_source(items: list[dict]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for item in items:
        found.setdefault(item["source"], []).append((item["gt"], item["response"]))
    return found


# --- AIR-Bench foundation -----------------------------------------------------------------------------------------


def test_letters_equal_the_script(golden):
    replies = golden("airbench_foundation", "reply")
    assert len(replies) == 36
    for row in replies:
        assert choices.official_letter(row["record"]["response"]) == row["letter"], row["record"]["response"]
    for row in golden("airbench_foundation", "corpus"):
        records = row.get("records") or [replies[number]["record"] for number in row["members"]]
        if row["error"]:
            stops(lambda records=records: air_bench_scripts.foundation(records), row["error"])
            continue
        found = air_bench_scripts.foundation(records)
        assert (found.total, found.correct, found.dropped) == (row["total"], row["correct"], row["fail_num"])


def test_the_strict_score_keeps_replies_on_which_the_script_fails(golden):
    replies = golden("airbench_foundation", "reply")

    def total(metric: str) -> list[float]:
        return np.sum([counted(metric, row["record"]) for row in replies], axis=0).tolist()

    assert total("choice_official") == [19, 25]
    assert total("choice")[1] == total("choice_unparsed")[1] == 36
    # What the script drops, and a reader would not.
    lost = [row["record"] for row in replies if row["dropped"]]
    read = {record["response"] for record in lost if counted("choice_unparsed", record)[0] == 0}
    assert read == {"b", "(B) sad", "The answer is B", "happy"}


def counted(metric: str, record: dict) -> list[float]:
    options = [record[f"choice_{name}"] for name in "abcd" if f"choice_{name}" in record]
    return row_stats(metric, record["response"], record["answer_gt"], "en", options)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("B", 1),
        (" b.", 1),
        ("(C)", 2),
        ("[D] calm", 3),
        ("Option D", 3),
        ("The answer is: B, I think", 1),
        ("The correct choice is (C).", 2),
        ("It sounds like A", 0),
        ("A sad voice can be heard", 1),  # an article
        ("The answer is a sad voice", 1),
        ("the answer is b.", 1),
        ("C) angry because of D.", 2),
        ("Definitely CALM!", 3),
        ("happy or sad", None),
        ("The answer is A. Or the answer is B.", None),
        ("Cannot tell", None),
        ("unhappy", None),
        ("", None),
        (None, None),
        ("E", None),
    ],
)
def test_a_reply_is_mapped_to_an_option_or_to_none(reply, expected):
    assert choices.parse(reply, ["happy", "sad", "angry", "calm"]) == expected


def test_the_longest_option_counts_and_a_letter_beyond_them_does_not():
    assert choices.parse("I hear a dog barking", ["dog", "dog barking", "cat"]) == 1
    assert choices.parse("It is (D)", ["jazz", "rock", "folk"]) is None
    assert choices.parse("Symphony in D", ["Symphony in D", "a waltz"]) == 0
    assert choices.parse("", ["?", "!"]) is None
    assert choices.parse("D major", ["C major", "D major"]) == 1


def test_equal_options_are_one_answer_but_to_the_script():
    assert row_stats("choice", "B", "one", "en", ["one", "one", "two"]) == [1, 1]
    assert row_stats("choice_official", "B", "one", "en", ["one", "one", "two"]) == [0, 1]
    with pytest.raises(ValueError, match="'three', expected one of"):
        row_stats("choice", "B", "three", "en", ["one", "two"])


def test_a_report_has_a_line_per_source_and_says_where_the_script_died():
    facts = {"language": "en", "reply": "yes"}
    answers = [
        official.Answer(source="clothoaqa_val", reference="yes", **facts),
        official.Answer(source="clothoaqa_open", reference="rain", **facts),
    ]
    lines = official.report("evaluate_aqa", "v1", answers)
    assert [(line.source, line.metric, line.value) for line in lines] == [
        ("clothoaqa_val", "accuracy", 1.0),
        ("clothoaqa_val", "binary", 1.0),
        ("clothoaqa_open", None, None),
    ]
    assert lines[-1].stopped.startswith("ValueError") and lines[0].n == 1
    with pytest.raises(ValueError, match="benchmark.script=evaluate_caption: expected evaluate_asr"):
        official.report("evaluate_caption", "v1", answers)


def test_normalisation_keeps_words_apart_where_the_scripts_do():
    assert normalize("おはよう 彼は", "ja") == "おはよう彼は"
    assert official.items("おはよう 彼は", "ja", "v2") == ["おはよう", "彼は"]
