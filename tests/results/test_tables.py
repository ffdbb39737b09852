"""Result tables and figures of synthetic runs: two arms, two seeds, predictions and TensorBoard events."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from auris import cli, results
from auris.results import figures, runs, terminal
from support.studies import ARMS, write_events, write_run, write_study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "runs" / "demo")


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not draw figures, which takes seconds, in tests of tables and printed text."""
    monkeypatch.setattr(terminal, "save_figure", lambda figure, path: [])


def test_the_table_pools_seeds_and_shows_each_arm_and_the_difference(study):
    frame = results.table(study, ARMS).set_index("group")
    row = frame.loc["asr en"]
    sums = np.zeros(2)
    for seed in (0, 1):
        for line in (study / ARMS[1] / f"seed_{seed}/predictions/embedded.jsonl").read_text().splitlines():
            line = json.loads(line)
            if line["group"] == "asr en":
                sums += line["stats"]
    assert row["qwen2_audio"] == pytest.approx(sums[0] / sums[1])
    assert row["qwen2_audio low"] < row["qwen2_audio"] < row["qwen2_audio high"]
    assert row["n"] == 80
    assert row["qwen2_audio seeds"] == 2
    assert row["signature"] == "wer|made up"
    assert row["provenance"] == "tts"
    assert row["qwen2_audio - qwen_audio"] == pytest.approx(row["qwen2_audio"] - row["qwen_audio"])
    assert row["qwen2_audio - qwen_audio high"] < 0, "the interval of the difference excludes zero"
    equal_group = frame.loc["lid"]
    assert equal_group["qwen2_audio - qwen_audio low"] <= 0 <= equal_group["qwen2_audio - qwen_audio high"]
    assert not results.table(study, ARMS).attrs["notes"]


def test_the_difference_changes_sign_if_the_arms_are_swapped(study):
    a, b = ARMS
    ab, ba = (results.table(study, arms).set_index("group") for arms in (ARMS, (b, a)))
    np.testing.assert_allclose(ab[f"{b} - {a}"], -ba[f"{a} - {b}"])
    np.testing.assert_allclose(ab[f"{b} - {a} low"], -ba[f"{a} - {b} high"])


@pytest.mark.usefixtures("no_figures")
def test_win_rates_compare_row_scores_and_count_ties_as_half(tmp_path, capsys):
    errors = {"a": [[0, 4], [2, 4], [1, 4], [0, 0]], "b": [[1, 4], [1, 4], [1, 4], [0, 0]]}  # winners: a, b, tie, tie
    points = {"a": [[3, 1], [9, 1], [5, 1], [1, 1]], "b": [[9, 1], [7, 1], [9, 1], [5, 1]]}
    for arm in "ab":
        for seed in (0, 1):
            groups = {"asr en": ("wer", errors[arm]), "chat text": ("judged", points[arm])}
            write_run(tmp_path / "s", arm, seed, groups)
    table = results.table(tmp_path / "s").set_index("metric")
    assert table.loc["wer", "b wins"] == 0.5
    assert table.loc["judged", "b wins"] == 0.75
    assert table.loc["judged", "b wins low"] < 0.75 < table.loc["judged", "b wins high"]
    assert results.table(tmp_path / "s", ["b", "a"]).set_index("metric").loc["judged", "a wins"] == 0.25
    terminal.show_table(Console(), results.table(tmp_path / "s"), "s")
    output = " ".join(capsys.readouterr().out.split())
    assert "Win rate of b over a, chat text, ties count half: 75.0 % [" in output and "(judged|made up)" in output


@pytest.mark.usefixtures("no_figures")
def test_details_of_error_rates_are_columns_next_to_the_error_rate(tmp_path, capsys):
    """The files have one prediction per metric; `asr en` has details, `asr ja` was evaluated without them."""
    details = {"insertions": [2, 4], "deletions": [1, 4], "substitutions": [0, 4], "empty": [1, 1], "runaway": [0, 1]}
    for arm, n_errors in (("a", 3), ("b", 2)):
        run = write_run(
            tmp_path / "s", arm, 0, {"asr en": ("wer", [[n_errors, 4]] * 2), "asr ja": ("cer", [[1, 4]] * 2)}
        )
        path = run / "predictions/embedded.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        english = [line for line in lines if line["group"] == "asr en"]
        lines += [{**line, "metric": metric, "stats": stats} for metric, stats in details.items() for line in english]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    frame = results.table(tmp_path / "s")
    assert (
        frame.set_index("metric").loc["insertions", "b"] == 0.5
    )  # details have intervals and comparisons in table.csv
    assert cli.main(["results", "study=s", f"runs={tmp_path}"]) == 0
    output = capsys.readouterr().out
    assert "asr en, insertions" not in output and "asr ja, cer" in output
    head, *_, row_a, row_b = [line.split() for line in output[output.index("Speech tasks of") :].splitlines()[2:7]]
    assert head == ["task", "WER,", "CER", "ins.", "del.", "sub.", "empty", "runaway"]
    assert row_a == ["a", "75.0", "50.0", "25.0", "0.0", "100.0", "0.0"] and row_b[:2] == ["b", "50.0"]
    markdown = (tmp_path / "s/table.md").read_text()
    assert "insertions (%)" not in markdown
    assert "| embedded | asr en | b | 50.0 | 50.0 | 25.0 | 0.0 | 100.0 | 0.0 |" in markdown


def test_the_order_of_prediction_lines_does_not_change_the_table(study):
    column = f"{ARMS[1]} - {ARMS[0]} high"
    original = results.table(study, ARMS).set_index("group")
    path = study / ARMS[0] / "seed_0/predictions/embedded.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(sorted(lines, key=lambda line: json.loads(line)["group"] + line[::-1])) + "\n")
    reordered = results.table(study, ARMS).set_index("group").loc[original.index]
    np.testing.assert_allclose(original[column], reordered[column])


def test_rows_of_only_one_arm_are_excluded_and_reported(tmp_path):
    root = tmp_path / "s"
    write_run(root, "a", 0, {"asr en": ("wer", [[1, 4], [0, 4], [4, 4]])})
    write_run(root, "b", 0, {"asr en": ("wer", [[2, 4], [0, 4]])})
    frame = results.table(root)
    assert frame.loc[0, "n"] == 2
    assert frame.loc[0, "b - a"] == pytest.approx(2 / 8 - 1 / 8)
    assert "ignores 1 rows that only a has and 0 rows that only b has" in frame.attrs["notes"][0]


def test_different_references_and_seeds_are_reported(tmp_path):
    root = tmp_path / "s"
    run = write_run(root, "a", 0, {"sec": ("accuracy", [[1, 1], [0, 1]])})
    write_run(root, "b", 0, {"sec": ("accuracy", [[1, 1], [1, 1]])})
    write_run(root, "b", 1, {"sec": ("accuracy", [[1, 1], [1, 1]])})
    path = run / "predictions/embedded.jsonl"
    path.write_text(path.read_text().replace('"r1"', '"other"'))
    notes = " ".join(results.table(root).attrs["notes"])
    assert "ignores seeds that only one arm has: 1" in notes
    assert "1 rows have different references" in notes


def test_arms_with_nothing_in_common_cannot_be_compared(tmp_path):
    write_run(tmp_path / "s", "a", 0, {"sec": ("accuracy", [[1, 1]])})
    write_run(tmp_path / "s", "b", 1, {"sec": ("accuracy", [[1, 1]])})
    table = results.table(tmp_path / "s")
    assert np.isnan(table["b - a"][0])
    assert "no seed in common" in table.attrs["notes"][0]


def test_arms_without_an_evaluation_are_reported(tmp_path):
    root = tmp_path / "s"
    write_run(root, "a", 0, {"sec": ("accuracy", [[1, 1]]), "lid": ("accuracy", [[1, 1]])})
    write_run(root, "b", 0, {"sec": ("accuracy", [[1, 1]])})
    (root / "encoder_ctc/seed_0").mkdir(parents=True)
    frame = results.table(root)
    assert frame.attrs["arms"] == ["a", "b"]
    assert np.isnan(frame.set_index("group").loc["lid", "b"])
    notes = " ".join(frame.attrs["notes"])
    assert "they have no predictions: encoder_ctc" in notes
    assert "lid, accuracy: a was scored, b was not" in notes
    predictions = root / "a/seed_0/predictions/embedded.jsonl"
    predictions.with_name("spoken.jsonl").write_text(predictions.read_text())
    notes = results.table(root).attrs["notes"]
    assert "spoken: a was scored, b was not" in notes  # reported once instead of once for each group
    assert not [note for note in notes if note.startswith("spoken, ")]


def test_duplicate_rows_and_invalid_statistics_raise_an_error(tmp_path):
    run = write_run(tmp_path / "s", "a", 0, {"sec": ("accuracy", [[1, 1]])})
    path = run / "predictions/embedded.jsonl"
    content = path.read_text()
    path.write_text(content + content)
    with pytest.raises(ValueError, match="'sec-0'.*more than once"):
        results.table(tmp_path / "s")
    path.write_text(content.replace("[1, 1]", "[1, 1, 1]"))
    with pytest.raises(ValueError, match="correct.*rows"):
        results.table(tmp_path / "s")
    path.write_text(content[:-20])
    with pytest.raises(ValueError, match="line 1 is not a valid Prediction .Unterminated string"):
        results.table(tmp_path / "s")


def test_collect_returns_every_result_row(study):
    frame = results.collect(study)
    assert len(frame) == 2 * 2 * 5
    assert {"study", "arm", "seed", "benchmark", "task", "metric", "value", "low", "high", "n", "signature"} <= set(
        frame
    )


def test_curves_keep_every_step_and_the_last_value_of_a_repeated_step(tmp_path):
    run = write_run(tmp_path / "s", "a", 0, {"sec": ("accuracy", [[1, 1]])})
    write_events(run, {"train/loss": [(step, 2.0) for step in range(12_000)]})
    frame = results.curves(tmp_path / "s")
    assert len(frame) == 12_000
    write_events(run, {"train/loss": [(11_999, 1.0), (12_000, 0.5)]})
    frame = results.curves(tmp_path / "s").set_index("step")["value"]
    assert (len(frame), frame[11_999], frame[12_000]) == (12_001, 1.0, 0.5)


def test_bars_have_a_panel_per_kind_of_score_and_a_note_about_the_data(study):
    figure = results.plot_bars(study, ARMS)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == [
        "Error rate (%), lower is better",
        "BLEU, higher is better",
        "Accuracy and F1 (%), higher is better",
    ]
    assert [len(axis.patches) for axis in figure.axes] == [4, 2, 4]  # groups x arms
    assert "Synthetic data (tts)" in figure.get_supxlabel()
    widths = sorted(patch.get_width() for patch in figure.axes[0].patches)
    frame = results.table(study, ARMS)
    errors = frame[frame["metric"].isin(["wer", "cer"])][list(ARMS)].to_numpy().ravel()
    np.testing.assert_allclose(widths, sorted(100 * errors))


def test_many_scores_are_drawn_as_points_in_columns(study, monkeypatch):
    monkeypatch.setattr(figures, "MAX_BARS", 9)
    figure = results.plot_bars(study, ARMS)
    points = [[line for line in axis.lines if line.get_marker() in ("o", "s")] for axis in figure.axes]
    assert [len(axis_points) for axis_points in points] == [4, 2, 4]
    assert [handle.get_marker() for handle in figure.legends[0].legend_handles] == ["o", "s"]


@pytest.mark.parametrize("sizes", [[19, 2, 12, 2, 26], [22], [1, 1, 1], [40, 40], [2, 90, 1]])
@pytest.mark.parametrize("row_height", [0.2, 0.6])
def test_columns_contain_every_row_in_order_and_have_similar_heights(sizes, row_height):
    panels = {f"panel {i}": [{"row": (i, j)} for j in range(n)] for i, n in enumerate(sizes)}
    columns = figures._distribute_panels(panels, row_height, max_height=8.0)
    rows = [row for column in columns for _, panel in column for row in panel]
    assert rows == [row for panel in panels.values() for row in panel]
    assert all(sum(figures.TITLE_HEIGHT + row_height * len(panel) for _, panel in column) < 10 for column in columns)
    assert figures._distribute_panels(panels, row_height, max_height=float("inf")) == [list(panels.items())]


def test_the_caption_lists_real_and_synthetic_benchmarks_separately(tmp_path):
    run = write_run(tmp_path / "s", "a", 0, {"sec": ("accuracy", [[1, 1]])}, provenance="procedural")
    line = (run / "predictions/embedded.jsonl").read_text()
    (run / "predictions/esc50.jsonl").write_text(line.replace("procedural", "real"))
    caption = results.plot_bars(tmp_path / "s").get_supxlabel()
    assert "embedded: synthetic, procedural; esc50: real" in caption


def test_curves_have_one_line_per_arm(study):
    figure = results.plot_curves(study, ARMS)
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "Training loss, smoothed",
        "Validation loss",
        "asr en: WER (%)",
    ]
    assert all(len(axis.lines) == len(ARMS) for axis in figure.axes)
    wer = figure.axes[2].lines[0].get_ydata()
    assert wer[0] == pytest.approx(100 * np.mean([1 + 0.05 * seed * 0.05 for seed in (0, 1)]), rel=1e-5)


def test_the_command_prints_the_table_and_writes_csv_and_figures(study, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["results", "study=demo", f"runs={study.parent}", f"arms=[{','.join(ARMS)}]"]) == 0
    output = capsys.readouterr().out
    assert "- qwen_audio" in output and "  difference" not in output  # side by side
    assert "asr en" in output
    for name in ("table.csv", "table.md", "bars.png", "bars.pdf", "curves.png", "curves.pdf"):
        assert (study / name).stat().st_size > 200
        assert name in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study=nothing"], "no study at .*nothing; studies in .*: demo"),
        ([], "study=NAME; studies in .*: demo"),
        (["study=demo", "arm=a"], "there is no arm; did you mean arms?"),
        (["study=demo", "against=last"], "against=last: expected first, previous"),
        (["study=demo", "arms=[qwen_audio,salmonn]"], "no predictions of salmonn.*qwen_audio, qwen2_audio"),
    ],
)
def test_user_errors_are_reported_in_one_sentence(study, arguments, message, capsys):
    assert cli.main(["results", f"runs={study.parent}", *arguments]) != 0
    assert re.search(message, capsys.readouterr().err)


def test_the_error_for_a_study_without_evaluation_says_what_to_run(tmp_path):
    (tmp_path / "s/a/seed_0").mkdir(parents=True)
    with pytest.raises(ValueError, match="auris evaluate checkpoint=RUN"):
        results.table(tmp_path / "s")


# --- unfinished studies ---


@pytest.mark.usefixtures("no_figures")
def test_an_unfinished_study_reports_the_progress_of_each_run(tmp_path, capsys):
    root = tmp_path / "runs" / "s"
    write_run(root, "a", 0, {"sec": ("accuracy", [[1, 1], [0, 1]])})
    for arm, files in {
        "b": {"progress": {"step": 3, "max_steps": 9}},
        "c": {"finished": {"steps": 9, "seconds": 60}},
        "d": {},
    }.items():
        (root / arm / "seed_0").mkdir(parents=True)
        for name, content in files.items():
            (root / arm / f"seed_0/{name}.json").write_text(json.dumps(content))
    (root / "e/seed_0").mkdir(parents=True)
    (root / "e/seed_0/progress.json").write_text('{"step": 3, "ma')  # interrupted while writing
    status = results.status(root).set_index("arm")
    assert " ".join(status["state"]) == "evaluated training trained waiting waiting"
    assert status.loc["b", ["step", "of"]].tolist() == [3, 9] and status.loc["a", "benchmarks"] == "embedded"
    assert cli.main(["results", "study=s", f"runs={root.parent}"]) == 0
    output = capsys.readouterr().out
    assert "4 of 5 runs are not evaluated yet" in output and "b, seed 0: training, step 3 of 9" in output
    (root / "study.yaml").write_text("question: Which?\narms: [e, d, c, b, a]\n")
    assert results.status(root)["arm"].tolist() == ["e", "d", "c", "b", "a"]


def test_a_study_without_evaluations_has_a_status_and_curves(tmp_path, capsys):
    run = tmp_path / "runs/s/a/seed_0"
    write_events(run, {"train/loss": [(0, 2.0), (9, 1.0)]})
    assert cli.main(["results", "study=s", f"runs={tmp_path}/runs"]) == 0
    output = capsys.readouterr().out
    assert "1 of 1 runs are not evaluated yet" in output and f"wrote {tmp_path}/runs/s/curves.png" in output


def test_arms_are_compared_with_the_first_one_of_the_study(study):
    assert results.table(study).attrs["arms"] == ["qwen_audio", "qwen2_audio"]
    (study / "study.yaml").write_text(f"question: Which?\narms: [{', '.join(reversed(ARMS))}]\n")
    assert results.table(study).attrs["arms"] == ["qwen2_audio", "qwen_audio"]


# --- seeds ---


def test_a_difference_counts_only_if_it_exceeds_the_noise_of_paired_seeds(tmp_path):
    """The differences to base are 0.5 in each seed of steady, and 1.0, 0.5 and 0.0 in the seeds of shaky."""
    n_correct = {"steady": (10, 10, 10), "shaky": (20, 10, 0), "base": (0, 0, 0)}
    for arm, counts in n_correct.items():
        for seed, count in enumerate(counts):
            write_run(tmp_path / "s", arm, seed, {"sec": ("accuracy", [[float(i < count), 1.0] for i in range(20)])})
    verdicts = results.verdicts(tmp_path / "s", ["base", "steady", "shaky"]).set_index("arm")
    assert verdicts.loc["steady", "verdict"] == "better"
    assert verdicts.loc["steady", ["seeds low", "seeds high"]].tolist() == [0.5, 0.5]
    half_width = 4.303 * 0.5 / 3**0.5  # Student's t for 2 degrees of freedom times the standard error
    np.testing.assert_allclose(
        verdicts.loc["shaky", ["seeds low", "seeds high"]].astype(float), [0.5 - half_width, 0.5 + half_width]
    )
    assert verdicts.loc["shaky", "verdict"] == "rows only" and verdicts.loc["shaky", "seeds"] == 3
    worse = results.verdicts(tmp_path / "s", ["steady", "base"])
    assert worse["verdict"].tolist() == ["worse"]
    frame = results.table(tmp_path / "s", ["base", "steady", "shaky"])
    head, _, line, *_, legend = results.format_markdown(frame, results.verdicts_in(frame)).splitlines()
    assert head == "| task | metric | n | base | steady | shaky |"
    assert line.startswith("| sec | accuracy (%) ↑ | 20 | 0.0 [0.0, 0.0] ±0.0 | 50.0 [")
    _base, steady, shaky = line.strip("| ").split(" | ")[3:]
    assert steady.endswith("±0.0 ▲") and shaky.endswith("±50.0") and "worse than base" in legend


@pytest.mark.usefixtures("no_figures")
def test_each_arm_can_be_compared_with_the_previous_one(tmp_path, capsys):
    for arm, n_correct in {"a": 0, "b": 10, "c": 10, "d": 4}.items():
        for seed in range(3):
            write_run(
                tmp_path / "s", arm, seed, {"sec": ("accuracy", [[float(i < n_correct), 1.0] for i in range(20)])}
            )
    verdicts = results.verdicts(tmp_path / "s", against="previous")
    assert verdicts[["arm", "against"]].to_numpy().tolist() == [["b", "a"], ["c", "b"], ["d", "c"]]
    assert verdicts["verdict"].tolist() == ["better", "no difference shown", "worse"]
    assert verdicts["difference"].tolist() == pytest.approx([0.5, 0.0, -0.3])
    assert results.verdicts(tmp_path / "s")["against"].tolist() == ["a", "a", "a"]
    significant = results.verdicts(tmp_path / "s", against="previous", beyond_noise=True)
    assert significant["arm"].tolist() == ["b", "d"]
    assert cli.main(["results", "study=s", f"runs={tmp_path}", "against=previous"]) == 0
    assert "worse: d - c, embedded sec accuracy: -30.0" in capsys.readouterr().out
    assert (tmp_path / "s/differences.csv").read_text().count(",c,b,") == 1


def test_the_verdict_about_arms_with_a_single_seed_says_so(tmp_path):
    for arm in "ab":
        write_run(tmp_path / "s", arm, 0, {"sec": ("accuracy", [[float(arm == "b"), 1.0]] * 20)})
    assert results.verdicts(tmp_path / "s")["verdict"].tolist() == ["one seed"]


# --- curves over hours of audio and FLOPs ---


@pytest.mark.parametrize(("x", "tag"), [("hours", "train/audio_hours"), ("flops", "train/flops")])
def test_curves_can_be_plotted_over_counters_of_the_run(study, x, tag):
    with pytest.raises(ValueError, match=f"x={x}: the TensorBoard events of .* have no {tag}"):
        results.plot_curves(study, ARMS, x=x)
    for arm, rate in zip(ARMS, (1.0, 3.0), strict=True):
        for seed in (0, 1):
            write_events(study / arm / f"seed_{seed}", {tag: [(0, 0.0), (298, 298 * rate)]})
    lines = results.plot_curves(study, ARMS, x=x).axes[1].lines
    np.testing.assert_allclose(lines[1].get_xdata(), 3 * lines[0].get_xdata(), rtol=1e-5)
    np.testing.assert_allclose(lines[0].get_xdata()[:2], [0, 50], rtol=1e-5)


def test_the_error_for_an_unknown_axis_lists_the_valid_ones(study):
    with pytest.raises(ValueError, match="x=days: expected steps, hours, flops"):
        results.plot_curves(study, x="days")


# --- descriptions of runs ---


def write_recipe(run: Path, **settings: object) -> None:
    (run / "recipe.yaml").write_text(yaml.safe_dump({"study": "demo", "seed": 0, "checkpoint": None, **settings}))


def test_settings_that_differ_between_arms_become_tensorboard_hparams(study):
    for arm in ARMS:
        for seed in (0, 1):
            settings = {"optim": {"lr": 0.1 if arm == ARMS[0] else 0.2, "clip": 1.0}, "run_dir": f"runs/{arm}/{seed}"}
            write_recipe(study / arm / f"seed_{seed}", arm=arm, **settings)
    assert results.hparams(study).columns.tolist() == ["arm", "seed", "optim.lr"]
    for _ in range(2):  # a repeated call replaces the file of each run
        runs.write_hparams(study)
        files = list(study.glob("*/*/events.out.tfevents*.hparams"))
        assert len(files) == 4 and all(len(list(file.parent.glob("*.hparams"))) == 1 for file in files)
    [run] = [file.parent for file in files if file.parent == study / ARMS[1] / "seed_1"]
    events = EventAccumulator(str(run)).Reload()
    content = events.PluginTagToContent("hparams")
    session = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info
    assert session.hparams["optim.lr"].number_value == 0.2 and session.hparams["arm"].string_value == ARMS[1]
    config = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    assert "test/embedded/asr en/wer" in {info.name.tag for info in config.metric_infos}
    assert "test/embedded/asr en/wer" in results.curves(study)["tag"].tolist()


def test_a_run_can_be_reproduced_from_its_recorded_command(tmp_path, capsys):
    run = write_run(tmp_path / "s", "a", 0, {"sec": ("accuracy", [[1, 1]])})
    write_recipe(run, weights={"llm": "runs/shared/llm/seed_0", "encoder": None})
    environment = {
        "commit": "abc1234-dirty",
        "torch": "2.11",
        "ranks": 1,
        "threads": 1,
        "device": "x86",
        "precision": "32-true",
    }
    environment |= {"command": "auris train arm=a", "data": {"rows.jsonl": "00ff", "shards": "11ee"}}
    (run / "environment.json").write_text(json.dumps(environment))
    evaluation = {"command": "auris evaluate checkpoint=a", "commit": "def", "data": {"test.jsonl": "22dd"}}
    (run / "evaluations.json").write_text(json.dumps({"embedded": evaluation}))
    assert cli.main(["results", f"reproduce={run}"]) == 0
    output = capsys.readouterr().out
    for part in (
        "git checkout abc1234  # the working tree had uncommitted",
        "00ff  rows.jsonl",
        "# shards: 11ee",
        "OMP_NUM_THREADS=1 auris train arm=a",
        "reproduce=runs/shared/llm/seed_0",
        "22dd  test.jsonl",
        "auris evaluate checkpoint=a",
    ):
        assert part in output, part
    assert cli.main(["results", f"reproduce={tmp_path}"]) == 1
    assert "is not a run directory" in capsys.readouterr().err


def test_costs_are_means_over_the_seeds_of_an_arm(tmp_path):
    for seed, minutes in ((0, 2), (1, 4)):
        run = write_run(tmp_path / "s", "a", seed, {"sec": ("accuracy", [[1, 1]])})
        (run / "finished.json").write_text(json.dumps({"steps": 9, "seconds": 60 * minutes}))
        (run / "environment.json").write_text(json.dumps({"audio_tokens_per_second": 25.0, "operations": 1e12}))
    [row] = results.costs(tmp_path / "s").to_dict("records")
    assert (row["arm"], row["minutes"], row["audio tokens per second"], row["FLOP"]) == ("a", 3.0, 25.0, 1e12)


@pytest.mark.usefixtures("no_figures")
def test_many_arms_are_printed_as_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    arms = [f"arm_of_{letter}" for letter in "abcdefgh"]
    for number, arm in enumerate(arms):
        for seed in (0, 1):
            stats = [[float(i < number), 1.0] for i in range(8)]
            write_run(tmp_path / "s", arm, seed, {"sec": ("accuracy", stats)})
    assert cli.main(["results", "study=s", f"runs={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    last = next(line for line in lines if "arm_of_h" in line)
    assert "87.5 [62.5, 100.0] ±0.0" in last and "+87.5 [+62.5, +100.0]" in last
    assert any("sec, accuracy ↑, n=8" in line for line in lines)
    assert any(line.rstrip().endswith("to arm_of_a") for line in lines) and "…" not in "".join(lines)


@pytest.mark.usefixtures("no_figures")
def test_speakers_as_units_widen_the_interval_and_increase_the_p_value(tmp_path: Path, capsys):
    root = tmp_path / "study"
    correct = np.repeat(np.arange(20) % 4 > 0, 10)  # ten equal rows of each speaker
    for arm, answers in (("a", correct), ("b", correct | (np.arange(200) < 60))):
        run = write_run(root, arm, 0, {"er": ("accuracy", [[float(value), 1.0] for value in answers])})
        lines = [json.loads(line) for line in (run / "predictions/embedded.jsonl").read_text().splitlines()]
        lines = [line | {"speaker": f"s{int(line['id'].split('-')[1]) // 10}"} for line in lines]
        (run / "with_speakers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    by_row = results.table(root).iloc[0]
    for arm in "ab":
        (root / arm / "seed_0/with_speakers.jsonl").replace(root / arm / "seed_0/predictions/embedded.jsonl")
    by_speaker = results.table(root).iloc[0]
    assert by_row["b - a"] == by_speaker["b - a"] == pytest.approx(0.1)
    assert by_row["b - a p"] == 1 / 2001 and by_speaker["b - a p"] > 0.4  # only two speakers differ
    assert by_speaker["b - a detectable"] > 2 * by_row["b - a detectable"]
    assert by_speaker["b - a p holm"] == by_speaker["b - a p"]
    assert results.table(root, ["a"])["n"].item() == 200
    assert cli.main(["results", f"runs={tmp_path}", "study=study", "arms=a"]) == 0
    assert "permutation" not in capsys.readouterr().out


@pytest.mark.usefixtures("no_figures")
def test_a_column_states_how_much_worse_the_score_is_without_audio(tmp_path: Path, capsys):
    root = tmp_path / "study"
    for seed in (0, 1):
        run = write_run(root, "a", seed, {"er": ("accuracy", [[1.0, 1.0]] * 40), "asr en": ("wer", [[1.0, 9.0]] * 40)})
        lines = [json.loads(line) for line in (run / "predictions/embedded.jsonl").read_text().splitlines()]
        stats = {"accuracy": [0.0, 1.0], "wer": [5.0, 9.0]}  # scores of guessing
        lines = [line | {"stats": stats[line["metric"]]} for line in lines if line["id"][-1] != "7"]
        (run / "predictions/embedded@silence.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = results.table(root).set_index(["benchmark", "metric"])
    assert table.loc[("embedded@silence", "accuracy"), ["a drop", "a drop low"]].tolist() == [1, 1]
    # A positive drop means a worse score for every metric.
    assert table.loc[("embedded@silence", "wer"), "a drop"] == pytest.approx(4 / 9)
    assert table.loc[("embedded@silence", "wer"), "a drop p"] == 1 / 2001
    assert table.loc["embedded", "a drop"].isna().all()
    assert cli.main(["results", f"runs={tmp_path}", "study=study"]) == 0
    assert "a drop" in capsys.readouterr().out
