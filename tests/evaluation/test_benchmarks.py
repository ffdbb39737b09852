"""Benchmarks on small test folders: rows, prompts, parts, scores and comparison with published tables."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from functools import cache
from io import StringIO
from itertools import chain
from pathlib import Path

import pytest
from rich.console import Console

from auris import config as auris_config
from auris import results
from auris.data.manifests import read_manifests
from auris.data.rows import Row
from auris.evaluation import benchmarks, runner, summary
from auris.evaluation.answer_cache import Response
from auris.evaluation.benchmarks import Benchmark
from auris.evaluation.predictions import find_subsets, score_responses, split_by_subset
from auris.metrics import published
from auris.metrics.measures import signature
from auris.metrics.published import table_lines
from auris.metrics.records import Prediction, ResultRow
from auris.text import tasks
from auris.text.prompts import NaturalPrompt, TagPrompt
from auris.training import run as train
from auris.training.objectives.next_token import NextToken
from auris.training.preemption import Preempted
from support.manifests import write_manifest, write_wave
from support.recipes import smallest_run
from support.runs import ROOT

TASKS = {
    **dict.fromkeys(("librispeech", "aishell1", "aishell2", "commonvoice15", "fleurs"), "asr"),
    **dict.fromkeys(("cochlscene", "tut2017"), "asc"),
    **{"covost2": "s2tt", "meld": "er", "vocalsound": "vsc", "clotho": "aac", "clothoaqa": "aqa", "nsynth": "mna"},
    **{"srwt": "srwt", "airbench_chat": "chat", "airbench_foundation": "chat"},
}


@cache
def benchmark_config(name: str) -> dict:
    return auris_config.resolve(auris_config.compose(["checkpoint=x", f"benchmark={name}"], "evaluate"))["benchmark"]


def config(name: str, **changes: object) -> dict:
    return {**benchmark_config(name), **changes}


def benchmark(name: str, **changes: object) -> Benchmark:
    return Benchmark.from_config(config(name, **changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with small files in the format of the official evaluation files."""
    path = tmp_path_factory.mktemp("official")
    (path / "audio").mkdir()
    write_wave(path / "audio/a.wav", 1.0)
    speech = {"audio": "audio/a.wav", "prompt": "Detect the language and recognize the speech: <|en|>"}
    files = {
        "librispeech_eval.jsonl": [
            {**speech, "gt": "the red fox", "source": "librispeech_test_clean"},
            {**speech, "gt": "a garden", "source": "librispeech_test_other"},
        ],
        "meld_eval.jsonl": [{**speech, "gt": "joy", "source": "meld_test"}],
    }
    for name, rows in files.items():
        write_manifest(path / name, rows)
    return path


def test_every_benchmark_prompts_like_its_official_script():
    """The key `v1` stands for Qwen-Audio, and `v2` for Qwen2-Audio."""
    for name, code in TASKS.items():
        run_config, task = config(name), tasks.get_task(code)
        tags = task.tags.replace("{caption_style}", "clotho")
        assert run_config["prompt"]["v1"] in (None, tags), name
        assert run_config["prompt"]["v2"] in (None, task.natural), name
        assert (run_config["prompt"]["v1"] is None) == (code == "chat"), name
        assert (
            run_config["name"] == name
            and run_config["origin"]
            and run_config["generation"]["v2"]["max_new_tokens"] == 256
        )
    lengths = {name: config(name)["generation"]["v1"]["max_new_tokens"] for name in TASKS}
    assert lengths["librispeech"] == lengths["covost2"] == 256
    assert lengths["clotho"] == lengths["nsynth"] == 30 and lengths["tut2017"] == 10 and lengths["meld"] == 4


def test_each_group_contains_the_benchmarks_of_its_tables():
    for name in ("qwen_audio_table3", "qwen2_audio_table2"):
        group = config(name, root="data")
        members = benchmarks.list_members(group)
        assert {member.name for member in members} <= TASKS.keys() and {member.root for member in members} == {"data"}
        for table in group["tables"]:
            table_benchmarks = {line.benchmark for line in table_lines([], table)}
            assert table_benchmarks == (
                {"airbench_chat"} if table == "airbench_leaderboard" else {member.name for member in members}
            )
    with pytest.raises(ValueError, match="benchmark=libri: there is no such option; expected .*librispeech"):
        benchmarks.list_members({**group, "members": ["libri"]})


def test_rows_are_read_from_a_folder_or_a_path(folder: Path):
    [manifest] = read_manifests(benchmark("librispeech", root=str(folder)).manifests())
    assert [row.labels["text"] for row in manifest.rows] == ["the red fox", "a garden"]
    assert not any(row.problem for row in manifest.rows)
    entry = {"path": "mine.jsonl", "columns": {"text": "sentence"}}
    assert benchmark("librispeech", test=entry).manifests() == [entry]
    assert benchmark("librispeech", test=[entry, entry]).manifests() == [entry, entry]
    with pytest.raises(ValueError, match=r"benchmark.file: unknown key, expected one of name, test, root, files,"):
        benchmark("librispeech", file="mine.jsonl")


def test_one_error_lists_all_missing_files_and_their_origin(folder: Path):
    with pytest.raises(
        FileNotFoundError, match=r"benchmark=meld needs the directory .*Qwen2-Audio/evaluation.*root=DIR"
    ):
        benchmark("meld").manifests()
    members = benchmarks.list_members(config("qwen2_audio_table2", root=str(folder)))
    with pytest.raises(FileNotFoundError) as caught:
        benchmarks.check_files(members)
    message = str(caught.value)
    assert "benchmark=commonvoice15: no cv15_asr_en_eval.jsonl and no cv15_asr_zh_eval.jsonl" in message
    assert "benchmark=covost2" in message and "Chat_meta.json" in message and "librispeech" not in message


def test_the_parts_of_a_benchmark_are_distinguished_by_source_split_languages_and_answers():
    def parts(name: str, **labels: str) -> list[str]:
        return find_subsets(Row("1", (), labels), config(name)["parts"])

    assert parts("librispeech", source="librispeech_dev_clean") == ["dev-clean"]
    assert parts("librispeech", split="test.other") == ["test-other"]
    assert parts("librispeech", source="somewhere") == []
    assert parts("covost2", source="covost2_en_de_test") == ["en-de"]
    assert parts("covost2", language="de", target_language="en") == ["de-en"]
    assert parts("aishell2", source="aishell2_iOS_test") == ["ios"]
    assert parts("clothoaqa", source="clothoaqa_val", text="Yes") == ["all", "binary"]
    assert parts("clothoaqa", source="clothoaqa_val", text="road") == ["all"]
    assert parts("meld", source="whatever") == ["test"]


def rows_of(folder: Path, *rows: dict) -> list[Row]:
    path = write_manifest(folder / "rows.jsonl", [{"id": str(n), **fields} for n, fields in enumerate(rows, start=1)])
    return list(read_manifests([path])[0].rows)


def predict(folder: Path, *rows: tuple[dict, str]) -> tuple[list[Prediction], list[Row]]:
    """Return predictions and rows, given the fields and the model's response of each row."""
    loaded = rows_of(folder, *({"audio": "audio/a.wav", **fields} for fields, _ in rows))
    assert not any(row.problem for row in loaded), [row.problem for row in loaded]
    return score_responses([Response(row, reply) for row, (_, reply) in zip(loaded, rows, strict=True)]), loaded


def result_rows(predictions: list[Prediction], name: str) -> list[ResultRow]:
    identity = {"study": "s", "arm": "a", "seed": 0, "benchmark": name}
    return summary.summarise(predictions, identity, samples=10, seed=0, signatures={})


def test_predictions_are_grouped_by_part_and_rows_without_a_part_are_kept(folder: Path):
    sources = ("librispeech_dev_clean", "librispeech_dev_clean", "elsewhere")
    predictions, rows = predict(
        folder, *(({"source": f"librispeech {source}", "gt": "a b"}, "a b") for source in sources)
    )
    by_subset = split_by_subset(predictions, rows, config("librispeech")["parts"])
    groups = [prediction.group for prediction in by_subset if prediction.metric == "wer"]
    assert groups == ["asr en dev-clean", "asr en dev-clean", "asr en"]


def test_the_strict_score_of_word_times_includes_rows_on_which_the_official_script_fails(folder: Path):
    predictions, rows = predict(
        folder,
        ({"source": "srwt_zh", "gt": "<|zh|><|0.00|>我<|0.20|>们<|0.40|>"}, "我<|0.20|>们<|0.44|>"),
        ({"source": "srwt_zh", "gt": "<|zh|><|0.00|>走<|0.20|>吧<|0.40|>"}, "走吧"),
    )
    [line] = summary.official_scores("evaluate_srwt", "v1", predictions, rows)
    assert line.stopped == "AssertionError: 2, 1" and line.value is None
    assert summary.format_official_score(line) == "evaluate_srwt.py of v1, srwt_zh: stops (AssertionError: 2, 1) (n=2)"
    words = {row.metric: row.value for row in result_rows(predictions, "srwt")}
    assert words["word_coverage"] == 0.5 and words["aas_ms"] == pytest.approx(10.0)


def test_a_wrong_octave_has_the_right_chroma_only_in_the_strict_score(folder: Path):
    gt = "<|pitch|><|midi_pitch_{}|><|velocity|><|midi_velocity_75|><|instrument|>bass<|sonic|>dark, reverb"
    rows = [
        ({"source": "nsynth", "gt": gt.format(pitch)}, gt.format(predicted))
        for pitch, predicted in ((60, 72), (61, 61))
    ]
    predictions, loaded = predict(folder, *rows)
    lines = summary.official_scores("evaluate_note_analysis", "v1", predictions, loaded)
    official = {line.metric: line.value for line in lines}
    strict = {row.metric: row.value for row in result_rows(predictions, "nsynth")}
    assert official == {"instrument": 1.0, "velocity": 1.0, "qualities": 1.0, "pitch": 0.5, "chroma": 0.5}
    assert strict["chroma_accuracy"] == 1.0 and strict["pitch_accuracy"] == 0.5  # C4 and C5 have the same chroma


def test_multiple_choice_has_a_strict_score_an_official_score_and_a_rate_of_unparsed_answers(folder: Path):
    fields = {"path": "a.wav", "question": "How does it sound?", "task_name": "mood", "dataset_name": "x"}
    options = {"choice_a": "happy", "choice_b": "sad", "answer_gt": "sad"}
    wrong_answer = {**fields, **options, "answer_gt": "bored"}
    row, other, incomplete, unknown = rows_of(folder, *[{**fields, **options}] * 2, {"answer_gt": "sad"}, wrong_answer)
    assert unknown.problem == "`answer_gt` is 'bored', expected one of the choices"
    assert incomplete.problem == "a row of AIR-Bench (with `answer_gt`) has no dataset_name, path, question, task_name"
    assert row.clips[0].path == folder / "mood_x/a.wav"
    question = row.labels["messages"][0]["content"][1]["text"]
    assert question.endswith("\nHow does it sound?\nA. happy\nB. sad\nC. None\nD. None")
    lines = result_rows(score_responses([Response(row, "sad"), Response(other, "A.")]), "airbench_foundation")
    values = {(line.task, line.metric): line.value for line in lines}
    assert values["chat mood_x", "choice"] == 0.5 and values["chat mood_x", "choice_unparsed"] == 0.0
    assert values["chat mood_x", "choice_official"] == 0.0  # `sad` has no letter, so the script drops it


def test_an_option_keeps_its_letter_if_another_one_is_missing(folder: Path):
    fields = {"path": "a.wav", "question": "How does it sound?", "task_name": "mood", "dataset_name": "x"}
    options = {"choice_a": "happy", "choice_b": None, "choice_c": "sad", "choice_d": "angry", "answer_gt": "angry"}
    [row] = rows_of(folder, {**fields, **options})
    values = {p.metric: p.stats[0] for p in score_responses([Response(row, "D")]) if p.metric.startswith("choice")}
    assert values == {"choice": 1.0, "choice_official": 1.0, "choice_unparsed": 0.0}
    values = {p.metric: p.stats[0] for p in score_responses([Response(row, "B")]) if p.metric.startswith("choice")}
    assert values["choice"] == 0.0


def test_the_wording_of_a_benchmark_replaces_all_other_wordings():
    labels = {"task": "er", "text": "joy"}
    style = NaturalPrompt().with_wording("Which emotion?")
    assert style.turns(labels, 0)[0].text == "Which emotion?"
    assert len(style.variants(labels, 1)) == 1 < len(NaturalPrompt().variants(labels, 1))
    tags = TagPrompt().with_wording("<|startofanalysis|>{text}").turns(labels, 0)
    assert [turn.text for turn in tags][:2] == ["<|startofanalysis|>", "joy"]


def test_published_numbers_are_shown_next_to_results_and_marked_if_not_comparable():
    row = {"benchmark": "librispeech", "task": "asr en test-clean", "metric": "wer", "value": 0.0179}
    row |= {"study": "s", "arm": "a", "seed": 0, "split": "test", "low": 0.01, "high": 0.02, "n": 9, "units": "9 rows"}
    own_results = [ResultRow(**row, provenance="unknown", signature=signature("wer", "en"))]

    def printed_lines(name: str, width: int) -> list[str]:
        console = Console(file=StringIO(), width=width)
        console.print(summary.make_published_table(name, table_lines(own_results, name)))
        return console.file.getvalue().splitlines()

    [qwen_audio_line], [qwen2_audio_line] = (
        [line for line in printed_lines(name, 200) if "test-clean" in line]
        for name in ("qwen_audio_table3", "qwen2_audio_table2")
    )
    assert re.search(r"1\.8 +1\.6 +SpeechVerse 2\.1", qwen2_audio_line) and "≠" not in qwen2_audio_line
    assert re.search(r"1\.8 ≠ +2\.0", qwen_audio_line)
    assert re.search("ours +Qwen2-Audio +others", "".join(printed_lines("qwen2_audio_table2", 200)))
    own_results[0] = replace(own_results[0], provenance="tts")
    assert any("1.8 †" in line for line in printed_lines("qwen2_audio_table2", 80))
    for name in published.table_names():  # no word is broken or truncated
        words = " ".join(printed_lines(name, 80)).split()
        assert {cell.system.split()[-1] for cell in published.published_scores() if cell.table == name} <= set(words)
        assert all(len(line) <= 80 for line in printed_lines(name, 80)) and not any("…" in word for word in words)
    source, difference = published.table_notes("qwen_audio_table3", own_results)
    assert source.startswith("Qwen-Audio, arXiv:2311.07919")
    assert "ours wer|whisper_en+basic|word" in difference and "published wer|lower|punctuation kept|word" in difference


def test_a_group_is_evaluated_and_shown_next_to_its_published_table(
    corpus: Path, folder: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(ROOT)
    run_config = auris_config.resolve(
        auris_config.compose([*smallest_run(corpus, tmp_path), "experiment=qwen2_audio_pretrain", "max_steps=2"])
    )
    train.train(run_config)
    options = ["benchmark=qwen2_audio_table2", f"benchmark.root={folder}", "benchmark.members=[librispeech,meld]"]
    options += [f"checkpoint={run_config['run_dir']}", "generation.max_new_tokens=3", "accelerator=cpu", "bootstrap=10"]
    capsys.readouterr()
    rows = runner.evaluate(auris_config.resolve(auris_config.compose(options, "evaluate")))
    output = capsys.readouterr().out
    lines = {(row.benchmark, row.task, row.metric): row for row in rows}
    assert {key[1] for key in lines if key[0] == "librispeech"} == {"asr en test-clean", "asr en test-other"}
    assert lines["meld", "er test", "accuracy_raw"].n == 1
    assert "max_new_tokens=3" in output  # set by the user
    assert "min_new_tokens=1" in output  # set by the benchmark
    assert lines["meld", "er test", "accuracy_raw"].signature.endswith("|max_new_tokens:3")
    assert (
        "qwen2_audio_table2: published and ours" in output and "qwen2_audio_transformers: published and ours" in output
    )
    run = Path(run_config["run_dir"])
    official = [json.loads(line) for line in (run / "official/librispeech.jsonl").read_text().splitlines()]
    assert [line["source"] for line in official] == ["librispeech_test_clean", "librispeech_test_other"]
    strict = lines["librispeech", "asr en test-clean", "wer"].value
    assert official[0]["value"] == strict and official[0]["version"] == "v2"
    # A hardly trained model does not stop within three tokens.
    answers = [path.read_text().splitlines()[1:] for path in (run / "answers").glob("task-*.jsonl")]
    assert all(json.loads(line)["ended_by_length"] for line in chain(*answers))
    assert lines["librispeech", "asr en test-clean", "runaway"].value == 1
    assert set(results.table(run.parents[1])["benchmark"]) == {"librispeech", "meld"}

    # A repeated evaluation uses cached responses, and rescoring does not load a model.
    files = ("results.jsonl", "predictions/meld.jsonl", "predictions/librispeech.jsonl", "official/librispeech.jsonl")
    before = [(run / file).read_text() for file in files]
    generated, answer = [], NextToken.answer

    def counting_answer(self, net, batch, *args, **kwargs):
        generated.extend(batch["rows"])
        return answer(self, net, batch, *args, **kwargs)

    def interrupted_answer(*args, **kwargs):
        if generated:  # the first benchmark has been answered
            os.kill(os.getpid(), signal.SIGINT)
        return counting_answer(*args, **kwargs)

    for answers_path in (run / "answers").glob("*.jsonl"):
        answers_path.unlink()
    monkeypatch.setattr(NextToken, "answer", interrupted_answer)
    with pytest.raises(Preempted, match="evaluation stopped by SIGINT: the same command continues it"):
        runner.evaluate(auris_config.resolve(auris_config.compose(options, "evaluate")))
    assert len(generated) == 2
    monkeypatch.setattr(NextToken, "answer", counting_answer)
    runner.evaluate(auris_config.resolve(auris_config.compose(options, "evaluate")))
    assert len(generated) == 3 and [(run / file).read_text() for file in files] == before
    generated.clear()
    answers_file = json.loads((run / "answers/librispeech.json").read_text())["parts"][0]["file"]
    answers_path = run / "answers" / answers_file
    os.truncate(answers_path, answers_path.stat().st_size - 9)  # as if killed while writing
    runner.evaluate(auris_config.resolve(auris_config.compose(options, "evaluate")))
    assert len(generated) == 1 and [(run / file).read_text() for file in files] == before
    monkeypatch.setattr(NextToken, "answer", None)
    runner.evaluate(auris_config.resolve(auris_config.compose(options, "evaluate")))
    assert [(run / file).read_text() for file in files] == before
    monkeypatch.setattr("auris.inference.load.load", None)
    for file in files:
        (run / file).unlink()
    runner.evaluate(auris_config.resolve(auris_config.compose([f"rescore={run}", "bootstrap=10"], "evaluate")))
    assert [(run / file).read_text() for file in files] == before
