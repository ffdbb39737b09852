"""Published scores as data, and their comparison with our scores."""

from __future__ import annotations

import pytest

from auris.metrics import published
from auris.metrics.measures import MEASURES, signature
from auris.metrics.published import Line, PublishedScore, is_comparable, published_scores, table_lines, table_names
from auris.metrics.records import ResultRow


def cells(table: str, system: str, benchmark: str) -> dict[str, float]:
    return {
        cell.part: cell.printed
        for cell in published_scores()
        if (cell.table, cell.system, cell.benchmark) == (table, system, benchmark)
    }


def result(**fields) -> ResultRow:
    row = {"benchmark": "librispeech", "task": "asr en test-clean", "metric": "wer", "value": 0.5, "n": 3}
    row |= {"study": "s", "arm": "a", "seed": 0, "split": "test", "low": 0.4, "high": 0.6, "units": "3 rows"}
    return ResultRow(**{**row, "provenance": "real", "signature": signature("wer", "en"), **fields})


def test_all_tables_exist_and_state_their_sources():
    assert table_names() == [
        "qwen_audio_table3",
        "qwen_audio_tables4_5",
        "qwen2_audio_table2",
        "qwen2_audio_transformers",
        "airbench_leaderboard",
    ]
    assert all(isinstance(cell, PublishedScore) and cell.source for cell in published_scores())
    names = [(cell.table, cell.system, cell.benchmark, cell.part, cell.metric) for cell in published_scores()]
    assert len(set(names)) == len(names)


def test_cells_equal_the_printed_numbers():
    wer = {"dev-clean": 1.8, "dev-other": 4.0, "test-clean": 2.0, "test-other": 4.2}
    assert cells("qwen_audio_table3", "Qwen-Audio", "librispeech") == wer
    assert cells("qwen_audio_table3", "Qwen-Audio", "aishell2") == {"mic": 3.3, "ios": 3.1, "android": 3.3}
    directions = ("en-de", "de-en", "en-zh", "zh-en", "es-en", "fr-en", "it-en")
    for table, system, expected in (
        ("qwen_audio_table3", "Qwen-Audio", (25.1, 33.9, 41.5, 15.7, 39.7, 38.5, 36.0)),
        ("qwen2_audio_table2", "Qwen2-Audio", (29.9, 35.2, 45.2, 24.4, 40.0, 38.5, 36.3)),
        ("qwen2_audio_transformers", "Qwen2-Audio", (29.6, 33.6, 45.6, 24.0, 38.7, 37.2, 35.2)),
    ):
        assert cells(table, system, "covost2") == dict(zip(directions, expected, strict=True))
    assert cells("qwen_audio_table3", "SpeechT5", "clotho") == {}


def test_tables_include_other_systems_and_the_number_of_printed_decimals():
    assert cells("qwen2_audio_table2", "SALMONN", "librispeech") == {"test-clean": 2.1, "test-other": 4.9}
    assert cells("qwen2_audio_table2", "SALMONN", "covost2") == {"en-zh": 33.1, "en-de": 18.6}
    assert cells("qwen2_audio_table2", "Gemini-1.5-pro", "airbench_chat")["speech"] == 6.97
    assert not cells("qwen2_audio_table2", "Pengi", "nsynth") and cells("qwen_audio_table3", "Pengi", "nsynth")
    [gemini] = (c for c in published_scores() if c.system == "Gemini-1.5-pro" and c.part == "average")
    assert (gemini.printed, gemini.decimals) == (5.7, 2)
    copied = [c for c in published_scores() if c.table == "qwen2_audio_table2" and c.system != "Qwen2-Audio"]
    assert all(cell.signature is None for cell in copied), "no source states how they were computed"


def test_the_leaderboard_corrects_the_misprinted_mixed_column_of_the_paper():
    groups = ("speech", "sound", "music", "mixed")
    for system, misprint, expected in (("Qwen-Audio", 6.08, 5.38), ("BLSP", 5.33, 4.52), ("Pandagpt", 4.25, 2.93)):
        assert cells("qwen2_audio_table2", system, "airbench_chat")["mixed"] == misprint
        leaderboard = cells("airbench_leaderboard", system, "airbench_chat")
        assert leaderboard["mixed"] == expected
        assert sum(leaderboard[group] for group in groups) / 4 == pytest.approx(leaderboard["average"], abs=0.01)


def test_values_are_converted_to_the_units_of_the_metrics():
    (wer,) = (c for c in published_scores() if c.table == "qwen_audio_table3" and c.printed == 1.8)
    assert wer.value == pytest.approx(0.018)
    (shift,) = (c for c in published_scores() if c.metric == "aas_official" and c.system == "Qwen-Audio")
    assert shift.value == pytest.approx(0.0515)
    # auris computes neither of these, because SPICE needs a download.
    assert {cell.metric for cell in published_scores()} - set(MEASURES) == {"spice", "spider"}


def librispeech_lines(results: list[ResultRow], table: str) -> dict[str, Line]:
    return {line.part: line for line in table_lines(results, table) if line.benchmark == "librispeech"}


def test_results_are_matched_to_cells_by_benchmark_part_and_metric():
    by_part = librispeech_lines([result(), result(task="asr en dev-clean", metric="cer")], "qwen2_audio_table2")
    assert set(by_part) == {"dev-clean", "dev-other", "test-clean", "test-other"}
    assert by_part["test-clean"].ours.value == 0.5 and not by_part["test-clean"].differs
    assert by_part["test-other"].ours is None and not by_part["test-other"].differs
    # The paper copied this number, and no source states how it was computed, so it is not comparable.
    [copied] = [cell for cell in by_part["test-clean"].cells if cell.system == "SpeechVerse"]
    assert not is_comparable(signature("wer", "en"), copied.signature)


def test_numbers_with_different_signatures_are_not_comparable():
    line = librispeech_lines([result()], "qwen_audio_table3")["test-clean"]
    assert line.ours and line.differs  # Qwen-Audio keeps punctuation and does not convert numbers
    assert is_comparable(signature("bleu", "en"), "bleu|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:1.5.1")
    assert is_comparable(signature("accuracy_raw", "en"), "accuracy_raw|lstrip|exact")
    assert is_comparable(signature("wer", "zh"), "wer|cn_tn|char")
    assert not is_comparable(signature("accuracy_raw", "en"), "accuracy_raw|exact")
    assert not is_comparable(signature("bleu", "en"), None)


def test_cantonese_scores_are_comparable_with_published_ones():
    pytest.importorskip("zhconv")
    assert is_comparable(signature("cer", "yue"), "wer|zhconv+whisper_basic|char")


def test_errors_name_an_unknown_table_and_a_system_with_missing_cells():
    with pytest.raises(ValueError, match="no published table 'table9'; choose from qwen_audio_table3"):
        table_lines([], "table9")
    benchmarks = {"librispeech": {"parts": ["a"], "metric": "wer", "scale": 1, "signatures": {}}}
    invalid_tables = {"t": {"source": "s", "systems": {"x": {"cells": {"librispeech": [1, 2]}}}}}
    with pytest.raises(
        ValueError, match=r"t, x, librispeech: there are 2 cells, expected one for each of the parts \['a'\]"
    ):
        list(published._parse_scores({"benchmarks": benchmarks, "tables": invalid_tables}))
