"""Published tables next to results of a study: pooled seeds, marks of incomparable numbers, and the figure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from auris.metrics import published
from auris.metrics.measures import signature
from auris.results import papers
from auris.text.figure_style import COLOURS

RESULT = {
    "study": "s",
    "benchmark": "librispeech",
    "task": "asr en test-clean",
    "split": "test",
    "metric": "wer",
    "value": 0.03,
    "low": 0.02,
    "high": 0.04,
    "n": 50,
    "units": "50 rows",
    "signature": signature("wer", "en"),
    "provenance": "real",
}


def write_results(study: Path, arm: str, seed: int, *rows: dict) -> None:
    run = study / arm / f"seed_{seed}"
    run.mkdir(parents=True)
    lines = [json.dumps({**RESULT, "arm": arm, "seed": seed, **row}) for row in rows]
    (run / "results.jsonl").write_text("\n".join(lines))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "s"
    write_results(
        path, "a", 0, {}, {"benchmark": "srwt", "task": "srwt en test", "metric": "aas_official", "value": 0.05}
    )
    write_results(path, "a", 1, {"value": 0.05, "low": 0.03, "high": 0.08})
    write_results(path, "b", 0, {"provenance": "tts"}, {"benchmark": "elsewhere"})
    return path


def find_row(frame, system: str, **line: str) -> dict:
    rows = frame[frame["system"] == system]
    for column, value in line.items():
        rows = rows[rows[column] == value]
    [row] = rows.to_dict("records")
    return row


def test_results_use_the_scale_of_the_table_and_pool_all_seeds(study: Path):
    frame = papers.table("qwen2_audio_table2", [study])
    study_row = find_row(frame, "s/a", benchmark="librispeech", part="test-clean")
    assert (study_row["value"], study_row["low"], study_row["high"]) == pytest.approx((4.0, 2.0, 8.0)) and study_row[
        "seeds"
    ] == 2
    published_row = find_row(frame, "Qwen2-Audio", benchmark="librispeech", part="test-clean")
    assert published_row["value"] == 1.6 and np.isnan(published_row["low"]) and not published_row["ours"]
    assert len(frame[~frame["ours"]]) == len(
        [c for c in published.published_scores() if c.table == "qwen2_audio_table2"]
    )
    assert len(frame[frame["ours"]]) == 2  # results of other benchmarks are excluded
    shift = find_row(papers.table("qwen_audio_table3", [study]), "s/a", benchmark="srwt")
    assert shift["value"] == pytest.approx(50)  # seconds in results, ms in the paper


def test_incomparable_numbers_are_marked(study: Path):
    v1, v2 = (papers.table(name, [study]) for name in papers.TABLES)
    index = ("librispeech", "test-clean", "WER")
    table = papers.format_table(v2)
    assert table.loc[index, "s/a"] == "4.0 [2.0, 8.0]"
    assert table.loc[index, "s/b"] == "3.0 [2.0, 4.0] †"
    assert table.loc[index, "Qwen2-Audio"] == "1.6" and table.loc[index, "others"].startswith(
        "SpeechVerse 2.1, SpeechT5 2.4"
    )
    assert papers.format_table(v1).loc[index, "s/b"] == "3.0 [2.0, 4.0] ≠†"  # Qwen-Audio's script keeps punctuation
    legend = papers.legend(v1)
    assert (
        "† synthetic" in legend
        and "published wer|lower|punctuation kept|word" in legend
        and "seeds: the mean" in legend
    )
    assert "≠" not in papers.legend(v2)


def test_a_study_without_results_shows_only_the_published_numbers(tmp_path: Path):
    (tmp_path / "s/a/seed_0").mkdir(parents=True)
    frame = papers.table("airbench_leaderboard", [tmp_path / "s"])
    assert not frame["ours"].any() and "None of our results" in papers.legend(frame)
    assert papers.format_table(frame).columns.tolist() == ["Qwen2-Audio", "others"]
    papers.plot(frame)
    ablated = papers.format_table(papers.table("qwen_audio_tables4_5", []))
    assert ablated.columns.tolist() == ["with SRWT", "others"] and ablated.iloc[0].tolist() == [
        "1.79",
        "without SRWT 1.93",
    ]
    with pytest.raises(FileNotFoundError, match="no study at"):
        papers.table("airbench_leaderboard", [tmp_path / "t"])
    with pytest.raises(ValueError, match="no published table 'table9'"):
        papers.table("table9", [])


def test_the_figure_shows_every_number_and_hollow_markers_for_synthetic_data(study: Path):
    frame = papers.table("qwen_audio_table3", [study])
    figure = papers.plot(frame)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[0] == "Error rate (%), lower is better" and "Accuracy and mAP, higher is better" in titles
    points = [line for axis in figure.axes for line in axis.lines if line.get_marker() != "None"]
    assert len(points) == len(frame)
    face_colours = {line.get_markerfacecolor() for line in points if line.get_marker() == "o"}
    assert face_colours == {"white", COLOURS[0]}
    assert [text.get_text() for axis in figure.axes for text in axis.texts].count("≠") == frame["different"].sum() == 3
