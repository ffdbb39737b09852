"""Published numbers as data, and what stands beside ours."""

from __future__ import annotations

import pytest

from auris.metrics import published as module
from auris.metrics.measures import MEASURES, signature
from auris.metrics.published import Line, Published, comparable, lines, published, tables
from auris.metrics.records import ResultRow


def cells(table: str, system: str, benchmark: str) -> dict[str, float]:
    return {
        cell.part: cell.printed
        for cell in published()
        if (cell.table, cell.system, cell.benchmark) == (table, system, benchmark)
    }


def result(**changed) -> ResultRow:
    row = {"benchmark": "librispeech", "task": "asr en test-clean", "metric": "wer", "value": 0.5, "n": 3}
    row |= {"study": "s", "arm": "a", "seed": 0, "split": "test", "low": 0.4, "high": 0.6, "units": "3 rows"}
    return ResultRow(**{**row, "provenance": "real", "signature": signature("wer", "en"), **changed})


def test_all_tables_are_there_with_their_sources():
    assert tables() == [
        "qwen_audio_table3",
        "qwen_audio_tables4_5",
        "qwen2_audio_table2",
        "qwen2_audio_transformers",
        "airbench_leaderboard",
    ]
    assert all(isinstance(cell, Published) and cell.source for cell in published())
    names = [(cell.table, cell.system, cell.benchmark, cell.part, cell.metric) for cell in published()]
    assert len(set(names)) == len(names)


def test_cells_are_as_printed():
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


def test_a_table_has_its_other_systems_and_zeros_at_the_end():
    assert cells("qwen2_audio_table2", "SALMONN", "librispeech") == {"test-clean": 2.1, "test-other": 4.9}
    assert cells("qwen2_audio_table2", "SALMONN", "covost2") == {"en-zh": 33.1, "en-de": 18.6}
    assert cells("qwen2_audio_table2", "Gemini-1.5-pro", "airbench_chat")["speech"] == 6.97
    assert not cells("qwen2_audio_table2", "Pengi", "nsynth") and cells("qwen_audio_table3", "Pengi", "nsynth")
    [gemini] = (c for c in published() if c.system == "Gemini-1.5-pro" and c.part == "average")
    assert (gemini.printed, gemini.decimals) == (5.7, 2)
    copied = [c for c in published() if c.table == "qwen2_audio_table2" and c.system != "Qwen2-Audio"]
    assert all(cell.signature is None for cell in copied), "nobody says how they were made"


def test_the_mixed_column_is_the_leaderboard_s_and_not_the_paper_s_misprint():
    groups = ("speech", "sound", "music", "mixed")
    for system, wrong, right in (("Qwen-Audio", 6.08, 5.38), ("BLSP", 5.33, 4.52), ("Pandagpt", 4.25, 2.93)):
        assert cells("qwen2_audio_table2", system, "airbench_chat")["mixed"] == wrong
        found = cells("airbench_leaderboard", system, "airbench_chat")
        assert found["mixed"] == right
        assert sum(found[group] for group in groups) / 4 == pytest.approx(found["average"], abs=0.01)


def test_published_values_use_our_units():
    (wer,) = (c for c in published() if c.table == "qwen_audio_table3" and c.printed == 1.8)
    assert wer.value == pytest.approx(0.018)
    (shift,) = (c for c in published() if c.metric == "aas_official" and c.system == "Qwen-Audio")
    assert shift.value == pytest.approx(0.0515)
    # Neither is computed here: SPICE needs a download.
    assert {cell.metric for cell in published()} - set(MEASURES) == {"spice", "spider"}


def of_librispeech(results: list[ResultRow], table: str) -> dict[str, Line]:
    return {line.part: line for line in lines(results, table) if line.benchmark == "librispeech"}


def test_our_score_is_matched_by_benchmark_part_and_metric():
    found = of_librispeech([result(), result(task="asr en dev-clean", metric="cer")], "qwen2_audio_table2")
    assert set(found) == {"dev-clean", "dev-other", "test-clean", "test-other"}
    assert found["test-clean"].ours.value == 0.5 and not found["test-clean"].differs
    assert found["test-other"].ours is None and not found["test-other"].differs
    # Numbers that the table copies: nobody says how they were made.
    [copied] = [cell for cell in found["test-clean"].cells if cell.system == "SpeechVerse"]
    assert not comparable(signature("wer", "en"), copied.signature)


def test_numbers_with_different_signatures_are_not_comparable():
    line = of_librispeech([result()], "qwen_audio_table3")["test-clean"]
    assert line.ours and line.differs  # v1 keeps punctuation and spells no number
    assert comparable(signature("bleu", "en"), "bleu|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:1.5.1")
    assert comparable(signature("accuracy_raw", "en"), "accuracy_raw|lstrip|exact")
    assert not comparable(signature("wer", "zh"), "wer|cn_tn|char")  # numbers of zh are approximate
    assert not comparable(signature("accuracy_raw", "en"), "accuracy_raw|exact")
    assert not comparable(signature("bleu", "en"), None)


def test_cantonese_is_normalised_as_published():
    pytest.importorskip("zhconv")
    assert comparable(signature("cer", "yue"), "wer|zhconv+whisper_basic|char")


def test_an_unknown_table_and_a_row_of_wrong_length_are_named():
    with pytest.raises(ValueError, match="no published table 'table9'; choose from qwen_audio_table3"):
        lines([], "table9")
    bench = {"librispeech": {"parts": ["a"], "metric": "wer", "scale": 1, "signatures": {}}}
    tables_of = {"t": {"source": "s", "systems": {"x": {"cells": {"librispeech": [1, 2]}}}}}
    with pytest.raises(ValueError, match=r"t, x, librispeech: 2 cells for parts \['a'\]"):
        list(module._cells({"benchmarks": bench, "tables": tables_of}))
