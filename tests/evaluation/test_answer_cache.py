"""The answer cache: a response is reused only if everything it depends on is the same."""

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
from support.manifests import make_sample_builder, write_wave

pytestmark = pytest.mark.usefixtures("single_thread")

SETTINGS = {"kind": "task", "weights": "w", "prompt": "p", "decoding": {"max_new_tokens": 3}}
ROW = Row("r", (Clip(Path("a.wav"), 0.5, 1.0),), {"task": "sec", "text": "Bär"})


def test_cached_responses_equal_the_original_ones(tmp_path: Path):
    answer_cache.AnswerCache(tmp_path, SETTINGS).add(
        {
            "k": answer_cache.Response(ROW, "a bear\u2028", -0.25, ended_by_length=True),
            "l": answer_cache.Response(ROW, [1.0, 2.0]),
        }
    )
    reloaded = answer_cache.AnswerCache(tmp_path, SETTINGS)
    assert (
        reloaded["k"] == answer_cache.Response(ROW, "a bear\u2028", -0.25, ended_by_length=True)
        and reloaded["l"].content == [1.0, 2.0]
        and "m" not in reloaded
    )
    assert answer_cache.AnswerCache.open(reloaded.path)["k"] == reloaded["k"]
    assert json.loads(reloaded.path.read_text().split("\n")[0]) == SETTINGS


@pytest.mark.parametrize("change", [{"weights": "v"}, {"prompt": "q"}, {"decoding": {"max_new_tokens": 4}}])
def test_the_weights_the_prompt_and_the_decoding_select_the_cache_file(tmp_path: Path, change: dict):
    answer_cache.AnswerCache(tmp_path, SETTINGS).add({"k": answer_cache.Response(ROW, "a bear")})
    assert "k" not in answer_cache.AnswerCache(tmp_path, SETTINGS | change)


def test_a_truncated_line_is_dropped_and_can_be_added_again(tmp_path: Path):
    cache = answer_cache.AnswerCache(tmp_path, SETTINGS)
    cache.add({"k": answer_cache.Response(ROW, "a bear")})
    cache.add({"l": answer_cache.Response(ROW, "a wolf")})
    os.truncate(cache.path, cache.path.stat().st_size - 4)
    reloaded = answer_cache.AnswerCache(tmp_path, SETTINGS)
    assert "k" in reloaded and "l" not in reloaded
    reloaded.add({"l": answer_cache.Response(ROW, "a fox")})
    assert answer_cache.AnswerCache(tmp_path, SETTINGS)["l"].content == "a fox"
    os.truncate(cache.path, 7)  # within the first line, which contains the settings
    empty = answer_cache.AnswerCache(tmp_path, SETTINGS)
    empty.add({"k": answer_cache.Response(ROW, "a bear")})
    assert answer_cache.AnswerCache.open(empty.path)["k"].content == "a bear"


def test_concurrent_evaluations_lose_no_responses(tmp_path: Path):
    first, second = answer_cache.AnswerCache(tmp_path, SETTINGS), answer_cache.AnswerCache(tmp_path, SETTINGS)
    first.add({"k": answer_cache.Response(ROW, "a bear")})
    with first.path.open("ab") as file:
        file.write(b'{"key": "half')  # a third evaluation was killed while writing
    second.add({"l": answer_cache.Response(ROW, "a wolf")})
    first.add({"l": answer_cache.Response(ROW, "a wolf"), "m": answer_cache.Response(ROW, "a fox")})
    reloaded = answer_cache.AnswerCache(tmp_path, SETTINGS)
    assert [reloaded[key].content for key in "klm"] == ["a bear", "a wolf", "a fox"]
    assert len(first.path.read_text().splitlines()) == 5, "the settings, three responses and one duplicate"


def test_the_evaluation_lock_excludes_other_processes(tmp_path: Path):
    count = tmp_path / "count"
    count.write_text("0")

    def increment_repeatedly() -> None:
        for _ in range(40):
            with answer_cache.evaluation_lock(tmp_path / answer_cache.CACHE_DIR):
                count.write_text(str(int(count.read_text()) + 1))

    processes = [multiprocessing.get_context("fork").Process(target=increment_repeatedly) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert count.read_text() == "120"


def test_responses_are_written_with_a_warning_if_files_cannot_be_locked(tmp_path: Path, monkeypatch):
    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.warns(UserWarning, match="lock cannot be locked .*do not start a second"):
        answer_cache.AnswerCache(tmp_path, SETTINGS).add({"k": answer_cache.Response(ROW, "a bear")})
    assert answer_cache.AnswerCache(tmp_path, SETTINGS)["k"].content == "a bear"


def test_the_key_of_a_row_depends_on_its_labels_and_its_audio(tmp_path: Path):
    write_wave(tmp_path / "a.wav", 1.0)
    row = Row("r", (Clip(tmp_path / "a.wav"),), {"task": "sec", "text": "bear"})
    key = answer_cache.row_key(row)
    assert answer_cache.row_key(row) == key
    different_rows = [
        replace(row, labels={"task": "sec", "text": "wolf"}),
        replace(row, clips=(replace(row.clips[0], offset=0.1),)),
    ]
    assert key not in map(answer_cache.row_key, different_rows)
    write_wave(tmp_path / "a.wav", 1.1)
    assert answer_cache.row_key(row) != key


def test_digests_change_with_the_weights_and_with_the_prompt():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2).bfloat16())
    net.register_buffer("scale", torch.tensor(1.0))
    before = weights_digest(net)
    assert weights_digest(net) == before
    with torch.no_grad():
        net[0].bias[1] += 1e-6
    assert weights_digest(net) != before
    all_samples = [
        make_sample_builder(),
        make_sample_builder(prompt=TagPrompt()),
        make_sample_builder(prompt=NaturalPrompt().with_wording("What?")),
        make_sample_builder(long_audio="first"),
    ]
    assert len({prompt_digest(samples) for samples in all_samples}) == 4


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


def test_the_error_for_a_run_without_responses_says_how_to_get_them(tmp_path: Path):
    config = {"accelerator": "cpu", "judge": None, "rescore": str(tmp_path)}
    with pytest.raises(ValueError, match="no cached responses; run auris evaluate"):
        runner.evaluate(config)


def test_scoring_cached_responses_again_fails_if_no_row_has_one(tmp_path: Path):
    evaluation = answer_cache.Evaluation(
        benchmark=Benchmark(name="b"),
        version="v2",
        audio="as_is",
        changes=[],
        judged=False,
        run={"study": "s", "arm": "a", "seed": 0},
        skipped={"r": "a.wav: no such file"},
        parts=[],
    )
    answer_cache.save_evaluation(tmp_path / answer_cache.CACHE_DIR, "b", evaluation)
    config = {"accelerator": "cpu", "judge": None, "rescore": str(tmp_path), "bootstrap": 10, "seed": 0}
    with pytest.raises(ValueError, match="no row could be scored"):
        runner.evaluate(config)
