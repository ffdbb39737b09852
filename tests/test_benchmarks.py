"""The benchmarks' command: it times two sides that agree, and refuses to time two that do not."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from auris.model import weights
from benchmarks import Comparison, __main__, corpus, plan, train_step

COMMAND = ["train_step", "preset=tiny", "rounds=1"]


@pytest.fixture(autouse=True)
def short_clips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two clips of unequal length, of a number of samples that no frame divides; results go to tmp_path."""
    short = replace(train_step.PRESETS["tiny"], clips=2, shortest=0.3, longest=0.7123)
    monkeypatch.setitem(train_step.PRESETS, "tiny", short)
    monkeypatch.chdir(tmp_path)


def test_a_run_reports_parity_and_ratio_as_json(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert __main__.main(COMMAND) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    result = json.loads(last)
    expected = "benchmark preset peer ratio rounds cpu_seconds parity versions machine"
    assert list(result) == expected.split()
    assert (result["benchmark"], result["preset"], result["rounds"]) == ("train_step", "tiny", 1)
    assert result["ratio"].keys() == {"median", "min", "max"} and result["ratio"]["min"] > 0
    assert result["parity"]["loss"] <= 1e-5 and result["parity"]["gradient"] <= 1e-4
    assert (tmp_path / "runs/benchmarks/train_step-tiny.json").read_text(encoding="utf-8") == last + "\n"


@pytest.mark.parametrize("value", [1e-2, float("nan")])
def test_sides_that_differ_are_not_timed(
    value: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    load = weights.load

    def load_and_move_one(net: torch.nn.Module, source: weights.Source, where: str) -> None:
        load(net, source, where=where)
        with torch.no_grad():
            net.encoder.blocks[0].query.weight[0] += value

    monkeypatch.setattr(weights, "load", load_and_move_one)
    assert __main__.main(COMMAND) == 1
    captured = capsys.readouterr()
    assert "round" not in captured.out and "gradient" in captured.err
    assert not (tmp_path / "runs").exists()


def test_sides_take_turns_and_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []
    monkeypatch.setattr(time, "process_time", lambda: clock[0])

    def work(name: str, seconds: float) -> None:
        order.append(name)
        clock[0] += seconds

    sides = Comparison(peer="", ours=lambda: work("a", 2.0), theirs=lambda: work("b", 6.0), errors={}, limits={})
    assert __main__.race(sides, 3) == ([2.0] * 3, [6.0] * 3)
    assert "".join(order) == "abbaab"


@pytest.mark.parametrize(
    "argument, message",
    [
        ("train", "no benchmark 'train'; there are train_step, plan"),
        ("preset=huge", "preset=huge: expected one of tiny, prop, 1m, shards"),
        ("rounds=0", "rounds=0: expected 1 or more"),
        ("--fast", "no benchmark '--fast'"),
        ("clips=3", "accepted: .*preset=NAME rounds=N"),
    ],
)
def test_a_mistaken_argument_ends_it(argument: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        __main__.main([argument])


@pytest.mark.parametrize("name", ["1m", "shards"])
def test_a_plan_over_few_rows_is_reported_phase_by_phase(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """In this process, for speed: what a phase does, not what it costs."""
    monkeypatch.setitem(plan.PRESETS, name, replace(plan.PRESETS[name], rows=30))
    monkeypatch.setattr(plan, "_in_a_process", lambda folder, phase: plan.phase(folder, phase))
    assert __main__.main(["plan", f"preset={name}"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["benchmark"], result["preset"], result["rows"]) == ("plan", name, 30)
    expected = ["first start", "later start", "later start, full packs"] + ["random rows"] * (name == "shards")
    assert list(result["phases"]) == expected
    assert all(facts["seconds"] > 0 and facts["MB in all"] > 0 for facts in result["phases"].values())


def test_rows_of_the_corpus_are_counted_by_task() -> None:
    cost, seconds = corpus.measure("vsc", 40)
    assert 0 < cost < 1 and 0.5 < seconds < 1.5
