"""`python -m benchmarks`: auris and its peer (another implementation) are timed only if their results are equal."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from auris import audio
from auris.model.weights import loading
from auris.model.weights.tensors import TensorSource
from benchmarks import (
    Comparison,
    Report,
    __main__,
    corpus,
    fit_overhead,
    loader,
    mel,
    memory,
    packing,
    plan,
    train_step,
)
from benchmarks import compile as compiling
from benchmarks.goals import TARGETS, Target

# Clips of different lengths, which are not multiples of a frame.
SHORT = ["preset=tiny", "lengths=0.3-0.7123", "rounds=1"]
COMMAND = ["train_step", *SHORT, "clips=2"]

SMALLEST = {
    "train_step, encoder frozen": [*COMMAND, "trained=sft"],
    "open_mix, LLM frozen": [*COMMAND, "peer=open_mix", "trained=pretrain"],
    "dpo_step": ["dpo_step", *SHORT, "pairs=1"],
    "dpo_step, precomputed, encoder frozen": ["dpo_step", *SHORT, "peer=precomputed", "trained=sft", "pairs=1"],
    "mel": ["mel", "preset=128", "lengths=0.3-0.7123", "clips=2", "rounds=1"],
    "mel, numpy": ["mel", "preset=80", "lengths=0.3-0.7123", "clips=2", "peer=numpy", "rounds=1"],
    "generate": ["generate", *SHORT, "clips=2", "tokens=4"],
    "packing": ["packing", "preset=mixed"],
    "loader": ["loader", "rounds=1", "lengths=0.3-0.7123", "batch=2", "preset=flac"],
}
COMPILE = ["compile", "batches=3", "lengths=0.3-0.7123", "clips=2", "preset=tiny"]


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Reduce the presets that take long; results are written to tmp_path."""
    monkeypatch.setitem(loader.PRESETS, "flac", loader.Preset(5))
    monkeypatch.setitem(packing.PRESETS, "mixed", replace(packing.PRESETS["mixed"], rows=3000))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("arguments", SMALLEST.values(), ids=SMALLEST)
def test_both_sides_agree_and_are_measured(arguments: list[str], capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert __main__.main(arguments) == 0
    last_line = capsys.readouterr().out.splitlines()[-1]
    result = json.loads(last_line)
    assert result["benchmark"] == arguments[0] and result["parity"]
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0] and result["machine"]["threads"] == 1
    [path] = (tmp_path / "runs/benchmarks").iterdir()
    assert path.read_text(encoding="utf-8") == last_line + "\n"


@pytest.mark.slow
def test_memory_of_each_side_is_measured_in_its_own_process(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(Path(__main__.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", f"{root}:{root}/src")
    assert __main__.main(["memory", "preset=tiny", "clips=2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < result["ratio"] < 1 and result["ratio"] == result["MB"]["ours"] / result["MB"]["peer"]


@pytest.mark.slow
def test_training_with_lightning_is_compared_with_plain_torch(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After every `stretch` steps of `fit`, plain torch repeats them; this happens `stretches` times.
    sizes = {"rows": 2, "stretch": 1, "stretches": 3, "lengths": "0.3-0.7123"}
    arguments = ["fit_overhead", "preset=tiny", *(f"{name}={value}" for name, value in sizes.items())]
    assert __main__.main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["rounds"] == 2 and result["overhead"]["min"] <= result["overhead"]["median"]
    assert all(seconds > 0 for seconds in result["cpu_seconds_of_a_step"].values())
    step = fit_overhead.Racer._step

    def step_with_other_learning_rate(self: fit_overhead.Racer, packs: list[dict]) -> float:
        self.adamw.param_groups[0]["lr"] *= 1.1
        return step(self, packs)

    monkeypatch.setattr(fit_overhead.Racer, "_step", step_with_other_learning_rate)
    assert __main__.main(arguments) == 1
    assert "differ in" in capsys.readouterr().err


def test_a_benchmark_reports_parity_and_ratio_as_json(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert __main__.main(COMMAND) == 0
    last_line = capsys.readouterr().out.splitlines()[-1]
    result = json.loads(last_line)
    expected = "benchmark preset settings peer ratio rounds floor cpu_seconds parity targets versions machine"
    assert list(result) == expected.split()
    assert (result["benchmark"], result["preset"], result["rounds"]) == ("train_step", "tiny", 1)
    assert result["ratio"].keys() == {"median", "min", "max"} and result["ratio"]["min"] > 0
    assert result["parity"]["loss"] <= 1e-5 and result["parity"]["gradient"] <= 1e-4
    assert 0 < result["floor"]["median"] < 2
    assert result["targets"] == {}  # no target has clips of this length
    assert result["settings"]["clips"] == 2 and result["settings"]["trained"] == "all"


@pytest.mark.parametrize("value", [1e-2, float("nan")])
def test_sides_that_differ_are_not_timed(
    value: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    load = loading.load

    def load_and_change_weights(net: torch.nn.Module, source: TensorSource, **options: str) -> None:
        load(net, source, **options)
        with torch.no_grad():
            net.encoder.blocks[0].query.weight[0] += value

    monkeypatch.setattr(loading, "load", load_and_change_weights)
    assert __main__.main(COMMAND) == 1
    captured = capsys.readouterr()
    assert "round" not in captured.out and "gradient" in captured.err
    assert not (tmp_path / "runs").exists()


def test_responses_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    load = loading.load

    def load_and_negate_head(net: torch.nn.Module, source: TensorSource, **options: str) -> None:
        load(net, source, **options)
        with torch.no_grad():
            net.llm.lm_head.weight.neg_()

    monkeypatch.setattr(loading, "load", load_and_negate_head)
    assert __main__.main(SMALLEST["generate"]) == 1
    assert "differ in tokens, not timed" in capsys.readouterr().err


@pytest.mark.parametrize("module", [mel, audio])
def test_features_that_differ_are_not_timed(
    module: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    log_mel = audio.log_mel
    monkeypatch.setattr(module, "log_mel", lambda *args: log_mel(*args) + 1e-4)
    assert __main__.main(SMALLEST["mel" if module is mel else "loader"]) == 1
    assert "differ in features, not timed" in capsys.readouterr().err


def test_a_plan_that_loses_a_row_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    all_packs = packing.Plan.all_packs

    def drop_first_row(self: packing.Plan, step: int, *, world: int) -> list:
        first, *rest = all_packs(self, step, world=world)
        return [first[1:] if step == 0 else first, *rest]

    monkeypatch.setattr(packing.Plan, "all_packs", drop_first_row)
    assert __main__.main(SMALLEST["packing"]) == 1
    assert "rows not in exactly one pack" in capsys.readouterr().err


@pytest.mark.slow
def test_graphs_of_compiled_blocks_are_counted(capsys: pytest.CaptureFixture) -> None:
    assert __main__.main(COMPILE) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["graphs_encoder"] > 0 and result["graphs_llm"] > 0 and result["batches"] == 3


def test_compilation_that_changes_losses_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    losses = iter(range(6))
    monkeypatch.setattr(compiling, "step", lambda net, compute_loss: float(next(losses)))
    assert __main__.main(COMPILE) == 1
    assert "differ in loss" in capsys.readouterr().err


@pytest.mark.parametrize("norm", [1.001, float("nan")])
def test_memory_of_sides_that_differ_is_not_reported(
    norm: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    sides = {"auris": {"MB": 1.0, "loss": 9.0, "norm": norm}, "peer": {"MB": 4.0, "loss": 9.0, "norm": 1.0}}
    monkeypatch.setattr(memory, "_measure_in_process", lambda settings: sides[settings["side"]])
    assert __main__.main(["memory", "preset=small"]) == 1
    assert "gradient's norm" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_figure_is_compared_with_gate_and_goal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The gate is the worst accepted value. The goal is the value that is aimed for."""
    sides = {"auris": {"MB": 27.0, "loss": 9.0, "norm": 1.0}, "peer": {"MB": 100.0, "loss": 9.0, "norm": 1.0}}
    monkeypatch.setattr(memory, "_measure_in_process", lambda settings: sides[settings["side"]])
    assert __main__.main(["memory", "preset=small", "seed=3"]) == 0
    verdict = json.loads(capsys.readouterr().out.splitlines()[-1])["targets"]["ratio"]
    assert verdict == {
        "prototype": 0.27,
        "gate": pytest.approx(0.2835),
        "meets_gate": True,
        "goal": 0.25,
        "meets_goal": False,
    }


def test_the_gate_allows_results_5_percent_worse_than_the_prototype() -> None:
    lower_bound = Target(benchmark="", preset="", prototype=4.0, goal=5.0)
    assert lower_bound.judge(3.8)["meets_gate"] and not lower_bound.judge(3.79)["meets_gate"]
    assert not lower_bound.judge(float("nan"))["meets_gate"]
    upper_bound = replace(lower_bound, smaller_is_better=True)
    assert upper_bound.judge(4.2)["meets_gate"] and not upper_bound.judge(4.21)["meets_gate"]
    assert Target(benchmark="", preset="", goal=1.0).judge(2.0)["meets_gate"] is None


def test_every_target_has_valid_settings_and_is_run_by_default() -> None:
    cases, _ = __main__._parse([])
    targets = [target for case in cases for target in case.targets()]
    assert set(map(id, targets)) == set(map(id, TARGETS))
    assert len(set(map(str, cases))) == len(cases), "two cases write the same file"
    for case in cases:
        for name, choices in __main__._choices(case.benchmark).items():
            assert case.settings[name] in choices


def test_missing_settings_are_those_of_the_first_matching_target_of_the_preset() -> None:
    [case], rounds = __main__._parse(["train_step", "preset=prop", "trained=sft", "seed=7", "rounds=2"])
    assert rounds == 2 and case.settings == {
        "peer": "transformers",
        "lengths": "2-8",
        "trained": "sft",
        "clips": 4,
        "precision": "float32",
        "seed": 7,
    }
    assert [target.goal for target in case.targets()] == [2.2]
    [without_target], _ = __main__._parse(["train_step", "preset=prop", "lengths=3-9"])
    assert without_target.settings["clips"] == 8 and without_target.targets() == []


def test_each_of_several_cases_runs_in_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=int("peer=open_mix" in command))

    monkeypatch.setattr(__main__.subprocess, "run", run)
    assert __main__.main(["train_step", "rounds=3", "seed=2"]) == 1
    cases, _ = __main__._parse(["train_step", "seed=2"])
    assert [__main__._parse(command[3:]) for command in commands] == [([case], 3) for case in cases]
    assert all(command[1:4] == ["-m", "benchmarks", "train_step"] for command in commands)
    assert 0 < sum("peer=open_mix" in command for command in commands) < len(commands)


def test_sides_take_turns_and_are_timed_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []
    monkeypatch.setattr(time, "process_time", lambda: clock[0])

    def work(name: str, seconds: float) -> None:
        order.append(name)
        clock[0] += seconds

    sides = Comparison(
        peer="",
        run_auris=lambda: work("a", 2.0),
        run_peer=lambda: work("b", 6.0),
        run_floor=lambda: work("c", 1.0),
        errors={},
        limits={},
    )
    assert __main__.race(sides, 3) == {"ours": [2.0] * 3, "peer": [6.0] * 3, "floor": [1.0] * 3}
    assert "".join(order) == "abccbaabc"


def test_a_failure_deletes_an_earlier_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reports = [
        Report(figures={"ratio": 1.0, "floor": 0.9}),
        Report(figures={}, errors={"loss": 1.0}, limits={"loss": 0.0}),
    ]
    module = SimpleNamespace(PRESETS={"tiny": None}, report=lambda preset: reports.pop(0))
    monkeypatch.setitem(__main__.BENCHMARKS, "train_step", module)
    path = tmp_path / "runs/benchmarks/train_step-tiny.json"
    assert __main__.main(["train_step", "preset=tiny"]) == 0 and path.is_file()
    assert __main__.main(["train_step", "preset=tiny"]) == 1 and not path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "no benchmark 'train'; there are train_step, dpo_step"),
        (["preset=huge"], "preset=huge: expected one of tiny, small, prop"),
        (["mel", "preset=tiny"], "preset=tiny: expected one of 128, 80"),
        (["rounds=0"], "rounds=0: expected 1 or more"),
        (["--fast"], "no benchmark '--fast'"),
        (["clips=3"], "accepted: .*preset=NAME rounds=N"),
        (["train_step", "pairs=3"], "accepted: .*clips=... lengths=... peer=... precision=... seed=... trained=..."),
        (["train_step", "trained=half"], "trained=half: expected one of all, sft, pretrain"),
        (["train_step", "clips=two"], "clips=two: expected a whole number"),
        (["train_step", "lengths=8-2"], "lengths=8-2: expected seconds"),
        (["train_step", "clips=0"], "clips=0: expected 1 or more"),
    ],
)
def test_an_invalid_argument_ends_the_command(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        __main__.main(arguments)


def test_help_names_every_benchmark_and_its_settings(capsys: pytest.CaptureFixture) -> None:
    assert __main__.main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"\n  {name} " in output for name in __main__.BENCHMARKS)
    assert "preset=tiny|small|prop" in output and "trained=all|sft|pretrain" in output and "lengths=2-8" in output
    assert train_step.PRESETS["small"].vocab_size == 156_032


@pytest.mark.parametrize("name", ["1m", "shards"])
def test_a_plan_over_few_rows_is_reported_phase_by_phase(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """All phases run in this process, because that is faster; their cost is not tested."""
    monkeypatch.setitem(plan.PRESETS, name, replace(plan.PRESETS[name], rows=30))
    monkeypatch.setattr(plan, "_run_in_process", lambda folder, phase: plan.phase(folder, phase))
    assert __main__.main(["plan", f"preset={name}"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["benchmark"], result["preset"], result["rows"]) == ("plan", name, 30)
    expected = ["first start", "later start", "later start, full packs"] + ["random rows"] * (name == "shards")
    assert list(result["phases"]) == expected
    assert all(phase["seconds"] > 0 and phase["MB in all"] > 0 for phase in result["phases"].values())


def test_the_cost_of_corpus_rows_is_measured_for_each_task() -> None:
    cost, seconds = corpus.measure("vsc", 40)
    assert 0 < cost < 1 and 0.5 < seconds < 1.5
