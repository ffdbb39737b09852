"""Answers are kept under what they depend on, and found again only by the same."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from auris.data.rows import Clip, Row
from auris.data.samples import prompt_digest
from auris.evaluation import answer_cache, runner
from auris.evaluation.benchmarks import Benchmark
from auris.model.weights.tensors import weights_digest
from auris.text.prompts import NaturalPrompt, TagPrompt
from support.manifests import samples_of, write_wave

SETTINGS = {"kind": "task", "weights": "w", "prompt": "p", "decoding": {"max_new_tokens": 3}}
ROW = Row("r", (Clip(Path("a.wav"), 0.5, 1.0),), {"task": "sec", "text": "Bär"})


def test_cached_responses_equal_the_original_ones(tmp_path: Path):
    answer_cache.AnswerCache(tmp_path, SETTINGS).add(
        {"k": answer_cache.Response(ROW, "a bear\u2028", -0.25), "l": answer_cache.Response(ROW, [1.0, 2.0])}
    )
    again = answer_cache.AnswerCache(tmp_path, SETTINGS)
    assert (
        again["k"] == answer_cache.Response(ROW, "a bear\u2028", -0.25)
        and again["l"].content == [1.0, 2.0]
        and "m" not in again
    )
    assert answer_cache.AnswerCache.open(again.path)["k"] == again["k"]
    assert json.loads(again.path.read_text().split("\n")[0]) == SETTINGS


@pytest.mark.parametrize("changed", [{"weights": "v"}, {"prompt": "q"}, {"decoding": {"max_new_tokens": 4}}])
def test_weights_prompts_and_decoding_select_the_cache_file(tmp_path: Path, changed: dict):
    answer_cache.AnswerCache(tmp_path, SETTINGS).add({"k": answer_cache.Response(ROW, "a bear")})
    assert "k" not in answer_cache.AnswerCache(tmp_path, SETTINGS | changed)


def test_a_truncated_line_is_answered_again(tmp_path: Path):
    file = answer_cache.AnswerCache(tmp_path, SETTINGS)
    file.add({"k": answer_cache.Response(ROW, "a bear")})
    file.add({"l": answer_cache.Response(ROW, "a wolf")})
    os.truncate(file.path, file.path.stat().st_size - 4)
    again = answer_cache.AnswerCache(tmp_path, SETTINGS)
    assert "k" in again and "l" not in again
    again.add({"l": answer_cache.Response(ROW, "a fox")})
    assert answer_cache.AnswerCache(tmp_path, SETTINGS)["l"].content == "a fox"
    os.truncate(file.path, 7)  # within the first line
    empty = answer_cache.AnswerCache(tmp_path, SETTINGS)
    empty.add({"k": answer_cache.Response(ROW, "a bear")})
    assert answer_cache.AnswerCache.open(empty.path)["k"].content == "a bear"


def test_concurrent_evaluations_lose_no_responses(tmp_path: Path):
    one, other = answer_cache.AnswerCache(tmp_path, SETTINGS), answer_cache.AnswerCache(tmp_path, SETTINGS)
    one.add({"k": answer_cache.Response(ROW, "a bear")})
    with one.path.open("ab") as file:
        file.write(b'{"key": "half')  # of a third that was killed
    other.add({"l": answer_cache.Response(ROW, "a wolf")})
    one.add({"l": answer_cache.Response(ROW, "a wolf"), "m": answer_cache.Response(ROW, "a fox")})
    again = answer_cache.AnswerCache(tmp_path, SETTINGS)
    assert [again[key].content for key in "klm"] == ["a bear", "a wolf", "a fox"]
    assert len(one.path.read_text().splitlines()) == 5, "its first line, and an answer twice"


def test_reading_and_rewriting_are_serialised(tmp_path: Path):
    count = tmp_path / "count"
    count.write_text("0")

    def work() -> None:
        for _ in range(40):
            with answer_cache.evaluation_lock(tmp_path / answer_cache.CACHE_DIR):
                count.write_text(str(int(count.read_text()) + 1))

    processes = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert count.read_text() == "120"


def test_without_file_locks_a_warning_is_given_and_answers_are_written(tmp_path: Path, monkeypatch):
    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.warns(UserWarning, match="lock cannot be locked .*do not start a second"):
        answer_cache.AnswerCache(tmp_path, SETTINGS).add({"k": answer_cache.Response(ROW, "a bear")})
    assert answer_cache.AnswerCache(tmp_path, SETTINGS)["k"].content == "a bear"


def test_a_row_is_identified_by_its_labels_and_its_audio(tmp_path: Path):
    write_wave(tmp_path / "a.wav", 1.0)
    row = Row("r", (Clip(tmp_path / "a.wav"),), {"task": "sec", "text": "bear"})
    key = answer_cache.row_key(row)
    assert answer_cache.row_key(row) == key
    others = [
        replace(row, labels={"task": "sec", "text": "wolf"}),
        replace(row, clips=(replace(row.clips[0], offset=0.1),)),
    ]
    assert key not in map(answer_cache.row_key, others)
    write_wave(tmp_path / "a.wav", 1.1)
    assert answer_cache.row_key(row) != key


def test_weights_and_prompts_have_checksums_of_their_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2).bfloat16())
    net.register_buffer("scale", torch.tensor(1.0))
    before = weights_digest(net)
    assert weights_digest(net) == before
    with torch.no_grad():
        net[0].bias[1] += 1e-6
    assert weights_digest(net) != before
    views = [samples_of(), samples_of(prompt=TagPrompt()), samples_of(prompt=NaturalPrompt().asking("What?"))]
    views.append(samples_of(long_audio="first"))
    assert len({prompt_digest(view) for view in views}) == 4


def test_an_evaluation_can_be_loaded_with_its_responses_and_rows(tmp_path: Path):
    cache = answer_cache.AnswerCache(tmp_path / answer_cache.CACHE_DIR, SETTINGS)
    cache.add({"k": answer_cache.Response(ROW, "a bear"), "l": answer_cache.Response(replace(ROW, id="s"), "a wolf")})
    part = answer_cache.Part(kind="task", file=cache.path.name, keys=["k"], windows={"long": ["long#0", "long#1"]})
    benchmark = Benchmark(name="b", test=["rows.jsonl"], generation={"v2": {"max_new_tokens": 3}})
    evaluation = answer_cache.Evaluation(
        benchmark=benchmark,
        version="v2",
        audio="as_is",
        changes=["do_sample:True"],
        judged=False,
        run={"study": "s", "arm": "a", "seed": 0},
        skipped={"gone": "no such file"},
        parts=[part],
    )
    answer_cache.save_evaluation(tmp_path / answer_cache.CACHE_DIR, "b", evaluation)
    assert json.loads(json.dumps(asdict(evaluation))) == asdict(answer_cache.load_evaluations(tmp_path)["b"])
    assert answer_cache.load_responses(tmp_path, part) == [answer_cache.Response(ROW, "a bear")]
    assert answer_cache.load_rows(tmp_path, "b") == {"r": ROW} and answer_cache.load_rows(tmp_path, "c") == {}


def test_a_run_without_answers_says_how_to_get_some(tmp_path: Path):
    config = {"accelerator": "cpu", "judge": None, "rescore": str(tmp_path)}
    with pytest.raises(ValueError, match="no cached responses; run auris evaluate"):
        runner.evaluate(config)
