"""Table and figure of readings, and learning curves by stage, from synthetic runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from auris import cli, results
from auris.files import write_json, write_yaml
from auris.metrics.measures import score
from auris.metrics.records import Prediction, ResultRow, write_records
from auris.results import readings, stages, terminal
from support.studies import write_events

N = 20  # rows of a group
GROUPS = ("asr en librispeech", "asr en speechocean762", "asr en speechocean762 adults")
# Errors of ten words in each row of each evaluation, by arm.
ERRORS = {
    "tags": {"real": 4, "real@aligner": 5, "real@text": 1, "real@decoder": 2, "real@silence": 9, "real@shuffled": 10},
    "natural": {"real": 3, "real@aligner": 5, "real@text": 1, "real@decoder": 2},
}


def write_evaluation(run: Path, name: str, errors: int, n_rows: dict[str, int]) -> list[ResultRow]:
    """Write predictions with about `errors` errors in the ten words of each row: two insertions, and deletions."""
    lines, rows = [], []
    for group in GROUPS:
        details = {"wer": errors, "insertions": 2, "deletions": errors - 2, "substitutions": 0}
        for metric, number in details.items():
            common = {"task": "asr", "group": group, "metric": metric, "provenance": "real"}
            varied = metric in ("wer", "deletions")
            stats = [[number + varied * (i % 3 - 1), 10.0] for i in range(n_rows.get(group, N))]
            lines += [
                Prediction(
                    **common, id=f"{group[:12]}-{i}", stats=row, hypothesis="h", reference=f"r{i}", speaker=f"s{i}"
                )
                for i, row in enumerate(stats)
            ]
            place = {
                "study": run.parents[1].name,
                "arm": run.parent.name,
                "seed": 0,
                "benchmark": name,
                "split": "test",
            }
            value = {"value": score(metric, stats), "low": 0.0, "high": 1.0, "n": len(stats), "units": "20 rows"}
            rows.append(ResultRow(**place, **value, task=group, metric=metric, signature="made up", provenance="real"))
    write_records(run / f"predictions/{name}.jsonl", lines)
    return rows


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Write a study whose decoder has only 8/20 rows of a group, and whose two arms share the stage `align`."""
    root = tmp_path / "runs/real"
    stage_runs = {
        "align": ("align-0a1b", "align"),
        "tags": ("llm_text-1", "llm_text"),
        "natural": ("llm_text-2", "llm_text"),
    }
    for key, (name, stage) in stage_runs.items():
        run = tmp_path / f"runs/shared/{name}/seed_0"
        weights = {} if key == "align" else {"projector": "elsewhere/runs/shared/align-0a1b/seed_0"}
        run.mkdir(parents=True)
        write_yaml(run / "recipe.yaml", {"stage": stage, "checkpoint": None, "weights": weights})
        wer = [(step, float(np.exp(-step / 90))) for step in range(0, 300, 50)]
        write_events(run, {"train/loss": [(s, 5 - s / 100) for s, _ in wer], "val/loss": wer, "val/asr en/wer": wer})
    for arm, evaluations in ERRORS.items():
        run = root / f"{arm}/seed_0"
        (run / "predictions").mkdir(parents=True)
        runs = [f"runs/shared/{stage_runs[key][0]}/seed_0" for key in ("align", arm)]
        write_yaml(
            run / "recipe.yaml",
            {
                "stage": "pretrain",
                "weights": dict(zip(("projector", "llm"), runs, strict=True)) | {"encoder": "models/whisper"},
            },
        )
        write_json(run / "finished.json", {"steps": 300, "seconds": 60.0})
        write_events(run, {"train/loss": [(step, 3 - step / 100) for step in range(300)], "val/asr en/wer": wer})
        rows = []
        for name, errors in evaluations.items():
            few = {"real@decoder": {GROUPS[1]: 8, GROUPS[2]: 4}, "real@silence": dict.fromkeys(GROUPS, 6)}
            rows += write_evaluation(run, name, errors, few.get(name, {}))
        write_records(run / "results.jsonl", rows)
    write_yaml(root / "study.yaml", {"question": "?", "arms": list(ERRORS)})
    return root


def test_all_readings_of_a_line_are_scored_on_the_same_rows(study: Path):
    frame = results.compare_readings(study).set_index(["arm", "group"])
    assert list(frame.index) == [(arm, group) for arm in ERRORS for group in GROUPS]
    assert frame["n"].tolist() == [20, 8, 4] * 2 and frame["rows"].tolist() == [20] * 6
    for arm, evaluations in ERRORS.items():
        for group, n in zip(GROUPS, (20, 8, 4), strict=True):
            line = frame.loc[arm, group]
            excess = sum(i % 3 - 1 for i in range(n)) / n
            for column, name in (
                ("model", "real"),
                *((name, f"real@{name}") for name in ("aligner", "text", "decoder")),
            ):
                assert line[column] == pytest.approx((evaluations[name] + excess) / 10)
                assert line[f"{column} low"] <= line[column] <= line[f"{column} high"]
            assert line["insertions"] == pytest.approx(0.2) and line["substitutions"] == 0
            assert line["deletions"] == pytest.approx((evaluations["real"] - 2 + excess) / 10)
            assert np.isnan(line["runaway"])  # the evaluation was made without it


def test_readings_are_compared_on_the_same_rows_of_the_same_seeds(study: Path):
    """The aligner has a second seed, which the model lacks."""
    before = results.compare_readings(study, ["natural"])
    other = study / "natural/seed_1"
    (other / "predictions").mkdir(parents=True)
    write_evaluation(other, "real@aligner", 9, {})
    frame = results.compare_readings(study, ["natural"])
    assert frame["aligner"].tolist() == before["aligner"].tolist()


def test_controls_are_compared_with_the_model_on_their_rows(study: Path):
    frame = results.compare_readings(study).set_index(["arm", "group"])
    line = frame.loc["tags", GROUPS[0]]
    excess = sum(i % 3 - 1 for i in range(6)) / 6
    assert line["control n"] == 6
    values = line[["control model", "silence", "shuffled"]].tolist()
    assert values == pytest.approx([(errors + excess) / 10 for errors in (4, 9, 10)])
    assert frame.loc["natural", "control n"].tolist() == [0] * 3 and frame.loc["natural", "silence"].isna().all()


def test_a_study_with_readings_has_tables_and_figures_of_them(study: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(terminal, "save_figure", lambda figure, path: [path.with_suffix(".png")])
    assert cli.main(["results", "study=real", f"runs={study.parent}"]) == 0
    output = capsys.readouterr().out
    for name in ("readings.csv", "readings.md", "readings.png", "stages.png"):
        assert f"wrote {study}/{name}\n" in output
    of_arm = output.partition("natural: readings of the same rows, WER in %")[2]
    lines = [line.split() for line in of_arm.splitlines()]
    assert [*GROUPS[1].split(), "8/20", "28.7", "48.8", "18.8", "8.8"] in lines
    head, _, first, second, *_ = (study / "readings.md").read_text().splitlines()[2:]
    assert head.startswith(
        "| arm | task | n | this model | CTC reading of its aligner | encoder's own decoder | text ceiling | ins. |"
    )
    assert first.startswith("| tags | asr en librispeech | 20 | 39.5 [")
    assert second.startswith("| tags | asr en speechocean762 | 8/20 | 38.8 [")
    controls = (study / "readings.md").read_text().partition("with the audio of other rows")[2]
    assert "| tags | asr en librispeech | 6 | 40.0 [" in controls and "natural" not in controls


def test_scores_without_audio_stand_next_to_those_at_the_start(study: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(terminal, "save_figure", lambda figure, path: [path.with_suffix(".png")])
    run = study / "tags/seed_0"
    for name, nats in (("language", 36.0), ("language@start", 30.0)):
        lines = [
            Prediction(
                id=f"{metric}-{i}",
                task=group.split()[0],
                group=group,
                metric=metric,
                provenance="unknown",
                stats=stats,
                hypothesis="h",
                reference="r",
            )
            for metric, group, stats in (("text_loss", "text", [nats, 10.0]), ("contains", "chat text", [1.0, 1.0]))
            for i in range(5)
        ]
        write_records(run / f"predictions/{name}.jsonl", lines)
    assert cli.main(["results", "study=real", f"runs={study.parent}"]) == 0
    assert "tags: without audio" in capsys.readouterr().out
    heading, table = (study / "readings.md").read_text().split("The language model without audio")
    assert "| tags | text, loss on text | 5 | 3.000 [3.000, 3.000] | 3.600 [3.600, 3.600] |" in table
    assert "| tags | chat text, holds the answer | 5 | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] |" in table
    assert "language" not in heading.partition("CTC reading: ")[0]


def test_the_figure_of_readings_has_an_axis_for_each_arm_and_a_bar_for_each_reading(study: Path):
    figure = results.plot_readings(study, results.compare_readings(study))
    assert [len(axis.patches) for axis in figure.axes] == [len(GROUPS) * 4] * 2


def test_readings_are_not_in_the_table_of_the_models_responses(study: Path):
    """A drop states what replaced audio costs; a reading has the same audio."""
    table = results.table(study).set_index(["benchmark", "group", "metric"])
    assert set(table.index.get_level_values("benchmark")) == {"real", "real@silence", "real@shuffled"}
    assert table.loc[("real@silence", GROUPS[0], "wer"), "tags drop"] == pytest.approx(0.5)
    for file in study.glob("*/seed_0/predictions/real.jsonl"):
        file.unlink()
    table = results.table(study)
    assert {"real@aligner", "real@text", "real@decoder"} < set(table["benchmark"])
    assert table.loc[table["benchmark"] == "real@aligner", "n"].gt(0).all() and "tags drop" not in table


def test_a_study_without_readings_has_no_table_of_them(study: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(terminal, "save_figure", lambda figure, path: [])
    for file in study.glob("*/seed_0/predictions/*@[atd]*.jsonl"):
        file.unlink()
    assert results.compare_readings(study).empty
    assert cli.main(["results", "study=real", f"runs={study.parent}"]) == 0
    assert not (study / "readings.md").exists()


def test_the_stages_of_a_study_are_the_runs_that_weights_come_from(study: Path):
    found = stages.find_stages(study)
    assert [(run.stage, run.path.parent.name, run.arms) for run in found] == [
        ("align", "align-0a1b", ("tags", "natural")),
        ("llm_text", "llm_text-1", ("tags",)),
        ("pretrain", "tags", ("tags",)),
        ("llm_text", "llm_text-2", ("natural",)),
        ("pretrain", "natural", ("natural",)),
    ]
    figure = results.plot_stages(study)
    by_label = {axis.get_ylabel(): len(axis.lines) for axis in figure.axes if axis.get_ylabel()}
    assert by_label == {"align": 1, "llm_text": 2, "pretrain": 2}


def test_arms_of_the_table_can_be_chosen(study: Path):
    frame = results.compare_readings(study, ["natural"])
    assert set(frame["arm"]) == {"natural"}
    head, rows = readings.tabulate(frame, brief=True)
    assert len(head) == len(rows[0]) and rows[0][:4] == ["natural", GROUPS[0], "20", "29.5"]
