"""Predictions and result lines: all responses are scored with the right metric, name and signature."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from auris.data.collate import collate
from auris.data.manifests import Manifest
from auris.data.rows import Clip, Row
from auris.data.rows import metric_name as row_metric
from auris.evaluation.answer_cache import Response
from auris.evaluation.answering import build_samples, split_long, yes_no_log_odds
from auris.evaluation.benchmarks import Benchmark
from auris.evaluation.judging import rate_responses
from auris.evaluation.predictions import merge_windows, score_responses
from auris.evaluation.summary import credit_lines, print_results, summarise
from auris.metrics import edits, measures
from auris.metrics.judges.judge import UnratedError
from auris.metrics.judges.rating import PointsJudge
from auris.metrics.measures import signature
from auris.metrics.published import is_comparable
from auris.metrics.records import ResultRow
from auris.text import task_table, tasks
from auris.text.prompts import NaturalPrompt, TagPrompt
from auris.training.objectives import logps
from support import nets
from support.manifests import make_sample_builder, read_row, tokenizer, write_wave

RUN = {"study": "s", "arm": "a", "seed": 0, "benchmark": "bench"}


def row(name: str, **labels: object) -> Row:
    """Return a row of synthetic speech (provenance `tts`), unless the labels state another origin."""
    return Row(name, (Clip("x.wav", duration=2.0),), {"provenance": "tts", **labels})


def responses(answered: dict[str, tuple[Row, str]]) -> list[Response]:
    return [Response(*row_and_text) for row_and_text in answered.values()]


def results(answered: dict[str, tuple[Row, str]]) -> dict[tuple[str, str], ResultRow]:
    lines = summarise(score_responses(responses(answered)), RUN, samples=50, seed=0, signatures={})
    return {(line.task, line.metric): line for line in lines}


def test_word_errors_are_pooled_over_rows_not_averaged():
    english = {"task": "asr", "language": "en"}
    lines = results(
        {
            "1": (row("1", text="a b c d e f g h", **english), "a b c d e f g h"),
            "2": (row("2", text="dog house", **english), "dog mouse"),
        }
    )
    line = lines["asr en", "wer"]
    assert line.value == 1 / 10 and line.n == 2
    assert line.low <= line.value <= line.high


def test_hallucinations_of_speech_tasks_have_result_lines_after_the_error_rate():
    english = {"task": "asr", "language": "en"}
    answered = {
        "1": (row("1", text="a dog barks", **english), "a dog"),
        "2": (row("2", text="rain", **english), "..."),
        "3": (row("3", text="the end", **english), "the end " * 30),
        "4": (row("4", text="red green blue white", **english), "red green"),
    }
    cut = [response._replace(ended_by_length=response.row.id == "4") for response in responses(answered)]
    lines = summarise(score_responses(cut), RUN, samples=10, seed=0, signatures={})
    assert [(line.metric, line.value) for line in lines] == [
        ("wer", 62 / 10),
        ("insertions", 58 / 10),
        ("deletions", 4 / 10),
        ("substitutions", 0),
        ("empty", 1 / 4),
        ("runaway", 2 / 4),
    ]
    assert all(line.signature.startswith(f"{line.metric}|") for line in lines)
    console = Console(file=StringIO(), width=80)
    print_results(console, "bench", lines, {}, [])
    main_table, error_table = console.file.getvalue().split("speech tasks, in %")
    assert "wer %" in main_table and "insertions" not in main_table
    assert error_table.splitlines()[4].split() == ["asr", "en", "620.0", "580.0", "40.0", "0.0", "25.0", "50.0"]
    japanese = results({"1": (row("1", task="asr", language="ja", text="赤い"), "赤い狐")})
    assert japanese["asr ja", "cer"].value == japanese["asr ja", "insertions"].value == 1 / 2
    assert not {"insertions", "empty", "runaway"} & {
        metric for _, metric in results({"1": (row("1", task="sec", text="dog"), "dog")})
    }


def test_a_language_without_spaces_is_scored_by_characters_as_cer():
    lines = results({"1": (row("1", task="asr", language="zh", text="红狐狸"), "红狐")})
    assert lines["asr zh", "cer"].value == 1 / 3


def test_an_answer_outside_the_classes_counts_as_wrong_and_as_unparsed():
    lines = results(
        {
            "1": (row("1", task="sec", text="dog"), " Dog"),
            "2": (row("2", task="sec", text="rain"), "dog"),
            "3": (row("3", task="sec", text="rain"), "thunder"),
        }
    )
    assert lines["sec", "accuracy"].value == 1 / 3
    assert lines["sec", "unparsed"].value == 1 / 3


def test_translations_are_scored_in_the_target_language():
    labels = {"task": "s2tt", "language": "en", "target_language": "zh", "text": "红狐狸在花园里"}
    line = results({"1": (row("1", **labels), "红狐狸在花园里")})["s2tt en-zh", "bleu"]
    assert round(line.value) == 100 and "tok:zh" in line.signature


def test_slots_and_intent_are_scored_separately():
    labels = {"task": "sf", "intent": "order", "slots": {"size": "large", "drink": "tea"}}
    lines = results({"1": (row("1", **labels), "order; drink: tea; size: small")})
    assert lines["sf", "slot_f1"].value == 0.5
    assert lines["sf", "intent_accuracy"].value == 1.0


def test_a_result_line_lists_the_provenance_of_all_its_rows():
    mixed = {
        "1": (row("1", task="sec", text="dog"), "dog"),
        "2": (row("2", task="sec", text="dog", provenance="real"), "dog"),
    }
    assert results(mixed)["sec", "accuracy"].provenance == "real+tts"


def test_a_long_recording_is_transcribed_in_windows_that_are_joined(tmp_path: Path):
    write_wave(tmp_path / "long.wav", 40.0)
    write_wave(tmp_path / "short.wav", 1.0)
    long = read_row(tmp_path, id="long", audio="long.wav", task="asr", language="en", text="a b c d e")
    short = read_row(tmp_path, id="short", audio="short.wav", task="asr", language="en", text="x")
    question = read_row(tmp_path, id="question", audio="long.wav", task="aqa", question="What?", text="rain")
    manifest = Manifest(tmp_path / "rows.jsonl", (long, short, question))
    [split], windows = split_long([manifest], make_sample_builder(long_audio="window"))
    assert [row.id for row in split.rows] == ["long#0", "long#1", "short", "question"]
    answered = {row.id: (row, "x") for row in split.rows} | {
        "long#0": (split.rows[0], "a b c"),
        "long#1": (split.rows[1], "b c d e"),
    }
    cut = [r._replace(ended_by_length=r.row.id == "long#0") for r in responses(answered)]
    merged = {response.row.id: response for response in merge_windows(cut, windows)}
    assert {name: response.content for name, response in merged.items()} == {
        "long": "a b c d e",
        "short": "x",
        "question": "x",
    }
    assert merged["long"].row.labels["text"] == "a b c d e"
    assert [name for name, response in merged.items() if response.ended_by_length] == ["long"]
    del answered["long#1"]
    assert "long" not in {row.id for row, *_ in merge_windows(responses(answered), windows)}
    assert split_long([manifest], make_sample_builder(long_audio="first"))[0] == [manifest]


def test_the_credits_name_the_origin_of_texts_and_annotations():
    script = {"written_by": "a script", "annotator": "a rule, not a person"}
    rows = [row("1", task="chat", **script), row("2", task="chat", written_by="templates"), row("3", task="sec")]
    assert credit_lines(rows) == [
        "written by: a script (1 rows); templates (1 rows)",
        "annotated by: a rule, not a person (1 rows)",
    ]
    assert credit_lines(rows[2:]) == []


def test_the_points_of_a_judge_become_a_result_line():
    class LengthJudge(PointsJudge):
        signature = "judged|by length"

        def __call__(self, labels, answer: str) -> float:
            if not answer:
                raise UnratedError("no points")
            return float(len(answer))

    judge = LengthJudge()
    rows = {name: row(name, task="chat", mode="text", text="a dog", messages=[]) for name in ("q0", "q1", "q2")}
    answered = {"q0": (rows["q0"], "cat"), "q1": (rows["q1"], "a dog"), "q2": (rows["q2"], "")}
    predictions, unrated = rate_responses(responses(answered), judge, Console(quiet=True))
    assert unrated == {"q2": "no points"}
    [line] = summarise(predictions, RUN, samples=10, seed=0, signatures={"judged": judge.signature})
    assert (line.metric, line.value, line.n, line.signature) == ("judged", 4.0, 2, "judged|by length")


def test_the_skill_and_the_mode_of_a_dialogue_each_have_a_result_line():
    common = {"task": "chat", "messages": [], "key": "dog"}
    rows = [
        row("1", mode="audio_analysis", text="It is a dog.", skill="sec", **common),
        row("2", mode="audio_analysis", text="a dog", **common),
    ]
    lines = results({"1": (rows[0], "a dog"), "2": (rows[1], "a cat")})
    assert {group: (line.value, line.n) for (group, _), line in lines.items()} == {
        "chat audio_analysis": (0.5, 2),
        "chat sec": (1.0, 1),
    }


EXAMPLES = [(code, natural) for code, task in tasks.TASKS.items() if task.hours for natural in (False, True)]


@pytest.mark.parametrize(("code", "natural"), EXAMPLES)
def test_a_correct_answer_in_either_style_has_the_best_score(code, natural):
    task = tasks.TASKS[code]
    labels = {"task": code, **{name: task_table.EXAMPLE[name] for name in task.needs}}
    labels |= {"text": task.choices[0] if task.choices else "a right answer of six words"} if "text" in labels else {}
    other = labels | {"text": "another answer, with five words"}  # CIDEr needs several rows
    answered = {
        str(n): (row(str(n), **row_labels), task.render(row_labels, tags=not natural))
        for n, row_labels in enumerate([labels, other])
    }
    if task.choices:
        del answered["1"]
    lines = results(answered)
    metrics = {metric for _, metric in lines}
    details = edits.DETAILS if task.metric == "wer" else ()
    assert metrics == {row_metric(answered["0"][0]), *details, *list(task.metrics)[1:]} - {"eer"}
    for (_, metric), line in lines.items():
        if metric == "cider":
            assert line.value == pytest.approx(10)
        elif metric in ("aas_ms", "aas_official") or not measures.MEASURES[metric].higher_is_better:
            assert line.value == 0, metric
        else:
            assert line.value == pytest.approx(100 if metric == "bleu" else 1), metric


def test_a_table_fits_into_eighty_columns():
    common = {"study": "s", "arm": "a", "seed": 0, "benchmark": "b", "signature": "", "split": "test"}
    common |= {"provenance": "tts", "n": 1200, "units": "1200 rows", "detectable": 0.021}
    names = ["dialect_asr Caribbean English", "mna", "mna", "srwt zh"]
    metrics = ["wer", "instrument_accuracy", "chroma_accuracy", "aas_official"]
    interval = {"value": 1.125, "low": 1.0, "high": 1.25}
    rows = [
        ResultRow(**common, **interval, task=task, metric=metric) for task, metric in zip(names, metrics, strict=True)
    ]
    rows[0] = replace(rows[0], units="24 speakers")
    rows[3] = replace(rows[3], provenance="real")

    def printed(result_rows: list[ResultRow]) -> str:
        console = Console(file=StringIO(), width=80)
        print_results(console, "b@silence", result_rows, {}, [])
        return console.file.getvalue()

    table, _, footer = printed(rows).partition("audio:")
    assert max(map(len, table.splitlines())) <= 80 and "…" not in table
    assert "112.5 [100.0, 125.0]" in table and "1200/24" in table and table.count("mna") == 1
    assert "tts for dialect_asr Caribbean English, mna; real for srwt zh" in footer and "after the slash" in footer
    # Drops (what is lost without the row's own audio) replace the column of the MDD (minimum detectable difference).
    drops = [replace(row, split="drop", p=p) for row, p in zip(rows, (0.001, 0.9), strict=False)]
    table, _, footer = printed([*rows, *drops]).partition("audio:")
    assert (
        max(map(len, table.splitlines())) <= 80
        and "drop: how much worse the score is than" in footer
        and "MDD" not in table
    )
    assert "+112.5* [+100.0, +125.0]" in table and "+112.5 [+100.0, +125.0]" in table


def test_captions_are_scored_against_all_their_references():
    labels = {"task": "aac", "text": "a dog barks", "references": ["a dog barks", "a dog is barking loudly"]}
    answered = {
        "1": (row("1", **labels), "a dog is barking loudly"),
        "2": (row("2", task="aac", text="rain falls"), ""),
    }
    stats = {
        (prediction.id, prediction.metric): prediction.stats for prediction in score_responses(responses(answered))
    }
    assert stats["1", "cider"][1] == [["a", "dog", "barks"], ["a", "dog", "is", "barking", "loudly"]]
    assert stats["2", "cider"][1] == [["rain", "falls"]]
    assert 2.5 < results(answered)["aac", "cider"].value < 5, "the answer equals one of the references"


@pytest.mark.parametrize("view", ["audio", "chat"])
def test_a_model_can_be_prompted_in_another_style(view):
    net, style = nets.build(vocab=tokenizer().size), {"_target_": "auris.text.prompts.TagPrompt"}
    config = {"data": {"view": view, "augment": None}, "seed": 0, "prompt": style}
    model = SimpleNamespace(net=net, tokenizer=tokenizer(), config=config, prompt=TagPrompt(), dialogue=None)
    natural = {"_target_": "auris.text.prompts.NaturalPrompt", "wordings": "unseen"}
    assert isinstance(build_samples(model, "task", "error").prompt, TagPrompt)
    assert build_samples(model, "task", "error", natural).prompt.wordings_subset == "unseen"
    # The wording of a benchmark is used only if no style is given.
    assert build_samples(model, "task", "error", None, "<|startofanalysis|>").prompt.wording == "<|startofanalysis|>"
    assert getattr(build_samples(model, "task", "error", natural, "What?").prompt, "wording", None) is None


def test_results_with_a_changed_prompt_are_marked_and_not_comparable():
    """The key `v2` stands for the published settings of Qwen2-Audio."""
    with_settings = Benchmark(prompt={"v2": "What?"}, generation={"v2": {"max_new_tokens": 256}})
    unset = dict.fromkeys(("max_new_tokens", "top_k")) | {"do_sample": False}

    def changes(prompt: dict | None = None, benchmark: Benchmark = with_settings, **decoding: object) -> list[str]:
        return benchmark.deviations("v2", prompt, unset | decoding)

    assert changes() == changes(max_new_tokens=256) == []
    assert changes({"_target_": "auris.text.prompts.NaturalPrompt"}) == ["prompt:NaturalPrompt"]
    assert changes(max_new_tokens=3, do_sample=True) == ["max_new_tokens:3", "do_sample:True"]
    assert changes({"_target_": "auris.text.prompts.TagPrompt"}, Benchmark(), max_new_tokens=3) == [], (
        "a benchmark without published settings has no changes"
    )
    wer_signature = signature("wer", "en")
    assert is_comparable(wer_signature, "wer|whisper_en+basic|word")
    assert not is_comparable("|".join([wer_signature, *changes(max_new_tokens=3)]), "wer|whisper_en+basic|word")


def test_log_odds_compare_the_log_probabilities_of_the_complete_answers(tmp_path: Path):
    net = nets.build(vocab=tokenizer().size)
    model = SimpleNamespace(net=net, device=torch.device("cpu"))
    write_wave(tmp_path / "a.wav", 0.5)
    write_wave(tmp_path / "b.wav", 0.7)
    rows = [
        read_row(tmp_path, id=text, audio=["a.wav", "b.wav"], task="sv", text=text, language=None)
        for text in ("yes", "no")
    ]
    for prompt in (NaturalPrompt(), TagPrompt()):
        samples = make_sample_builder(prompt=prompt)
        odds = yes_no_log_odds(model, samples, rows, [0, 1])
        assert odds[0] == pytest.approx(odds[1], abs=1e-4), "the label is not part of the prompt"
        log_probs = []
        for number in (0, 1):
            sample = samples.build(rows[number], number, None)
            n_prompt = len(samples.build(rows[number], number, None, prompt_only=True).ids)
            answer = sample.supervise & (np.arange(len(sample.ids)) >= n_prompt)
            batch = collate([replace(sample, supervise=answer)], geometry=samples.geometry)
            with torch.no_grad():
                log_probs.append(logps.label_logps(net, batch)[0].sum().item())
        assert odds[0] == pytest.approx(log_probs[0] - log_probs[1], abs=1e-3)
    assert yes_no_log_odds(model, samples, rows, []) == {}
