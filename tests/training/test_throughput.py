"""The counters of a run: what they count, checked by hand and by torch's own counter, alone and over two ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from auris import config
from auris.data.batches import StepDataset
from auris.data.collate import collate
from auris.model import pooling, projector
from auris.model.pack import IGNORE
from auris.results import curves
from auris.training import cost, throughput
from auris.training import run as train
from auris.training.cost import LOAD_FIELDS, peak_flops
from auris.training.objectives.next_token import NextToken
from auris.training.provenance import WINDOW
from auris.training.throughput import Throughput
from support import nets
from support.packs import Clip, pack, text
from support.recipes import smallest_run
from support.runs import ROOT, fit, in_processes, read_logs

EVERYTHING = cost.Stage(name="", trainable=("encoder", "pooling", "projector", "boundary", "llm"))


def heard(batch: dict, seconds: float = 1.0) -> dict:
    return {**batch, "audio_seconds": seconds}


# --- what a pack asks for ---


def test_a_pack_is_counted_by_its_rows_and_clips():
    """Clips of 9 and 40 frames of 10 ms are 5 and 20 of the encoder's, 2 and 10 tokens; the text follows."""
    net = nets.build_meta()
    batch = heard(pack([[Clip(9, n_mels=nets.N_MELS), text(4)], [text(3), Clip(40, n_mels=nets.N_MELS)]], net.geometry))
    found = {name: int(value) for name, value in cost.pack_counts(batch).items()}
    scored = int((batch["labels"] != IGNORE).sum())
    pairs = (6 * 7 + 13 * 14) // 2  # each token sees itself and those before it
    expected = {"tokens": 6 + 13, "frames": 25, "scored": scored, "token_pairs": pairs, "frame_pairs": 5**2 + 20**2}
    assert found == expected | {"idle": 0}


def test_the_answers_of_a_tree_see_their_prompt():
    """A prompt of 3 tokens and a chosen answer of 2; then the prompt's last token again and a rejected one of 4."""
    ids = torch.arange(10)
    tree = {"cu_seqlens": torch.tensor([0, 5, 10]), "cu_keys": torch.tensor([0, 5, 12])}
    rest = {"labels": torch.full((10,), IGNORE), "rows": [0], "audio_seconds": 0.0}
    found = cost.pack_counts({"ids": ids, **tree, **rest})
    assert int(found["token_pairs"]) == (1 + 2 + 3 + 4 + 5) + (3 + 4 + 5 + 6 + 7)


def test_padding_tokens_count_as_idle():
    """An empty pack is a token, and a clip of 4 frames, 2 of the encoder's."""
    geometry = nets.build_meta().geometry
    empty, silent = collate([], geometry=geometry), pack([[text(7)]], geometry)
    found = {name: int(value) for name, value in cost.pack_counts(empty).items()}
    assert found == dict.fromkeys(LOAD_FIELDS, 0) | {"idle": 3}
    found = {name: int(value) for name, value in cost.pack_counts(silent).items()}
    assert (found["tokens"], found["frames"], found["idle"]) == (7, 0, 2)


def operations(net: nn.Module, stage: cost.Stage, batch: dict) -> int:
    return cost.training_flops(
        net, stage, cost.Load(**{name: int(cost.pack_counts(batch)[name]) for name in LOAD_FIELDS})
    )


@pytest.mark.parametrize(("trainable", "share"), [(("encoder", "projector", "llm"), 0.01), (("projector",), 0.02)])
def test_useful_operations_are_those_that_torch_counts(trainable: tuple[str, ...], share: float):
    """torch does not count norms and element-wise products, nor attention on a CPU."""
    net = nets.build(vocab=96, hidden_size=128, intermediate_size=256)
    net.requires_grad_(False)
    for part in trainable:
        getattr(net, part).requires_grad_(True)
    batch = heard(
        pack([[Clip(60, n_mels=nets.N_MELS), text(90)], [Clip(9, n_mels=nets.N_MELS), text(40)]], net.geometry)
    )
    with FlopCounterMode(display=False) as counter:
        NextToken()(net, batch)[0].backward()
    alone = {name: int(cost.pack_counts(batch)[name]) for name in ("tokens", "frames", "scored")}
    expected = cost.training_flops(net, cost.Stage(name="", trainable=trainable), cost.Load(**alone))
    counted = counter.get_flop_counts()["Global"]
    named = {str(op): n for op, n in counted.items() if "attention" not in str(op)}
    assert sum(named.values()) == pytest.approx(expected, rel=share)


@pytest.mark.parametrize("kind", [pooling.Mean, pooling.Conv, partial(pooling.Attention, n_heads=4), pooling.Stack])
def test_the_cost_of_each_pooling_and_projector_equals_torch_s_count(kind: Callable[..., nn.Module]):
    between = SimpleNamespace(pooling=kind(k=2, width=64), geometry=SimpleNamespace(pool=2))
    between.projector = projector.Linear(in_width=64 * between.pooling.groups, out_width=32)
    frames = torch.randn(60, 64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        pooled, _ = between.pooling(frames, torch.tensor([40, 20]))
        between.projector(pooled.flatten(1)).sum().backward()
    expected = 2 * cost._pooling_and_projector_products(between, EVERYTHING, 60)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)  # torch leaves out biases


def test_attention_costs_four_operations_per_pair_and_channel_and_twice_that_backward():
    net = nets.build_meta(layers=2)  # 24 channels in the encoder, 32 in the LLM
    load = {"tokens": 0, "frames": 0, "scored": 0}
    pairs, frozen = cost.Load(**load, token_pairs=10), cost.Stage(name="", trainable=("projector",))
    assert cost.training_flops(net, EVERYTHING, pairs) == cost.training_flops(net, frozen, pairs) == 3 * 4 * 10 * 2 * 32
    pairs = cost.Load(**load, frame_pairs=10)
    assert cost.training_flops(net, EVERYTHING, pairs) == 3 * 4 * 10 * 2 * 24
    assert cost.training_flops(net, frozen, pairs) == 4 * 10 * 2 * 24


# --- the peak of a device ---


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989.4e12),
        ("NVIDIA H100 PCIe", "bf16-mixed", 756e12),
        ("NVIDIA H200", "bf16-true", 989.4e12),
        ("NVIDIA H200 NVL", "bf16-mixed", 835.5e12),
        ("NVIDIA A100-SXM4-80GB", "16-mixed", 312e12),
        ("NVIDIA L4", "bf16-mixed", 121e12),
        ("NVIDIA L40", "bf16-mixed", 181e12),
        ("NVIDIA L40S", "bf16-mixed", None),  # another device than an L40
        ("NVIDIA H100 80GB HBM3", "32-true", None),  # not what its table's number is for
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16-mixed", None),  # a part of one
        ("NVIDIA H20", "bf16-mixed", None),
        ("x86_64", "32-true", None),
    ],
)
def test_the_peak_depends_on_device_and_precision_and_may_be_unknown(device: str, precision: str, peak: float | None):
    found, why = peak_flops(device, precision)
    assert found == peak and device in why


def test_the_peak_can_be_set():
    assert peak_flops("x86_64", "32-true", 5e10) == (5e10, "peak_flops")
    for wrong in (0, -1.0, "fast", True, float("nan")):
        with pytest.raises(ValueError, match="peak_flops=.*: expected the FLOP/s of one device"):
            Throughput(wrong)


# --- speeds ---


class Clock:
    """Stands in for the `time` module; moves only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 50.0
        monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Log(SimpleNamespace):
    """A module that keeps the last value of what is logged, and a logger that keeps every point."""

    def __init__(self) -> None:
        super().__init__(values={}, points={}, net=nets.build_meta(), objective=NextToken(), device=torch.device("cpu"))
        self.trainable = ["encoder", "projector", "llm"]

    def log(self, name: str, value: float, **_: Any) -> None:
        self.values[name] = value

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.points[step] = metrics


def trainer(log: Log, *, step: int = 1, world: int = 1) -> SimpleNamespace:
    known = {"precision": "32-true", "log_every_n_steps": 2, "loggers": [log]}
    return SimpleNamespace(global_step=step, world_size=world, **known)


def take(callback: Throughput, log: Log, clock: Clock, seconds: float, *, step: int = 1, **counted: Any) -> None:
    callback.on_train_batch_start(trainer(log), log, None, 0)
    clock.now += seconds
    sums = (
        dict.fromkeys((*LOAD_FIELDS, "idle", "audio_seconds"), 0.0) | {"waited": [0.0], "peak_bytes": [0.0]} | counted
    )
    sums = {name: torch.tensor(value) for name, value in sums.items()}
    callback.on_train_batch_end(trainer(log, step=step), log, sums)


def test_speeds_are_work_over_time_without_the_first_step(clock):
    callback, log = Throughput(peak_flops=1e6), Log()
    callback.on_train_start(trainer(log, world=2), log)
    take(callback, log, clock, 60, tokens=7.0)  # warm-up
    assert not log.points and "tokens/s" not in log.values
    first = {"tokens": 100.0, "frames": 50.0, "scored": 8.0, "token_pairs": 300.0, "frame_pairs": 900.0}
    of_ranks = {"waited": [0.1, 0.5], "peak_bytes": [2.0**30, 2.0**31]}
    take(callback, log, clock, 2, audio_seconds=30.0, idle=50.0, **first, **of_ranks)
    take(callback, log, clock, 3, step=4, tokens=400.0, audio_seconds=20.0, waited=[0.25, 0.0])
    found = log.points[3]
    stage = cost.Stage(name="", trainable=("encoder", "projector", "llm"))
    numbers = {name: int(value) for name, value in first.items()}
    useful = cost.training_flops(log.net, stage, cost.Load(**numbers | {"tokens": 500}))
    expected = {
        "tokens_per_s": 500 / 5,
        "audio_hours_per_hour": 50 / 5,
        "seconds_per_step": 5 / 2,
        "useful_tflops": useful / 5 / 1e12,
        "padding": 50 / (500 + 50 + 50),
        "data_wait": (0.5 + 0.25) / 5,  # of the rank that waited longest, in each step
        "peak_memory_gib": 2.0,
        "mfu": useful / 5 / 2 / 1e6,  # two devices
    }
    assert found == {f"speed/{name}": pytest.approx(value) for name, value in expected.items()}
    assert log.values["tokens/s"] == pytest.approx(100) and log.values["h/h"] == pytest.approx(10)
    assert log.values["wait"] == pytest.approx(0.15) and log.values["MFU"] == pytest.approx(expected["mfu"])
    assert callback.session() == {name: pytest.approx(value) for name, value in expected.items()}
    report = callback.report()
    for part in ("over 2 steps on 2 ranks", "100 tokens/s", "10.0 hours of audio per hour", "waiting for data 15.0 %"):
        assert part in report, part
    assert f"MFU {100 * expected['mfu']:.1f} % of 1e-06 TFLOP/s per device (peak_flops)" in report


def test_without_a_known_peak_there_is_no_mfu_and_the_report_says_why(clock):
    callback, log = Throughput(), Log()
    callback.on_train_start(trainer(log), log)
    assert callback.report() == "speed: unknown, it takes at least two steps to measure"
    for step in (1, 2):
        take(callback, log, clock, 1, step=step, tokens=10.0)
    assert "MFU" not in log.values and "speed/mfu" not in log.points[1]
    assert "no MFU because the peak of " in callback.report() and " is not known (set peak_flops" in callback.report()


def test_speed_is_that_of_the_last_steps_and_the_report_is_of_all(clock):
    callback, log = Throughput(), Log()
    for seconds, tokens, steps in ((1, 1.0, 1), (1, 1000.0, 5), (1, 50.0, WINDOW)):
        for _ in range(steps):
            take(callback, log, clock, seconds, tokens=tokens)
    assert log.values["tokens/s"] == pytest.approx(50)
    assert callback.session()["tokens_per_s"] == pytest.approx((5 * 1000 + WINDOW * 50) / (5 + WINDOW))


def test_the_time_of_validation_does_not_count(clock):
    callback, log = Throughput(), Log()
    for _ in range(3):
        take(callback, log, clock, 1, tokens=10.0)
    callback.on_validation_start(trainer(log), log)
    clock.now += 1000
    take(callback, log, clock, 1, tokens=10.0, waited=[900.0])  # the loader's clock ran on
    take(callback, log, clock, 1, tokens=10.0)
    assert log.values["tokens/s"] == pytest.approx(10) and log.values["wait"] == 0


def test_totals_continue_after_a_resume(clock):
    first, log = Throughput(), Log()
    first.on_train_start(trainer(log), log)
    take(first, log, clock, 1, tokens=5.0, audio_seconds=1800.0)
    before = log.values["train/flops"]
    again = Throughput()
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    again.on_train_start(trainer(log), log)
    take(again, log, clock, 1, tokens=5.0, audio_seconds=1800.0)
    assert log.values["train/audio_hours"] == pytest.approx(1.0)
    assert log.values["train/flops"] == pytest.approx(2 * before) and before > 0


# --- in a run ---


@pytest.fixture
def smallest(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    size = [*smallest_run(corpus, tmp_path), "max_steps=3", "peak_flops=1e12", "trainer.val_check_interval=1.0"]
    size += [f"data.valid=[{{path: '{corpus}/valid.jsonl', limit: 3}}]"]
    return lambda *overrides: config.resolve(config.compose([*size, *overrides]))


def counted(run_config: dict) -> dict[str, float]:
    """Tokens and operations of a run's rows, found from its plan, in one process."""
    module, data = train.build(run_config)
    data.setup("fit")
    steps = StepDataset(data.rows, data.plan, data.samples, 1, 0)
    packs = [cost.pack_counts(batch) for step in range(run_config["max_steps"]) for batch in steps[step]]
    load = cost.Load(**{name: sum(int(found[name]) for found in packs) for name in LOAD_FIELDS})
    stage = cost.Stage.of(module.objective, module.trainable)
    return {"tokens": load.tokens, "flops": cost.training_flops(module.net, stage, load)}


def rates(run_config: dict) -> dict[str, float]:
    kept = json.loads((Path(run_config["run_dir"]) / "finished.json").read_text())
    return {name.removeprefix("speed/"): value for name, value in kept.items() if name.startswith("speed/")}


def test_a_run_keeps_its_speed_in_tensorboard_and_in_its_report(smallest):
    run_config = smallest()
    train.train(run_config)
    logged = curves(Path(run_config["run_dir"]).parents[1])
    found = rates(run_config)
    names = {"tokens_per_s", "audio_hours_per_hour", "seconds_per_step", "useful_tflops", "mfu", "padding", "data_wait"}
    assert found.keys() == names | {"peak_memory_gib"}
    assert {tag for tag in logged["tag"] if tag.startswith("speed/")} == {f"speed/{name}" for name in found}
    assert found["padding"] == 0 and 0 <= found["data_wait"] < 1 and found["peak_memory_gib"] > 0.1
    assert found["mfu"] == pytest.approx(found["useful_tflops"])  # one device of 1e12
    flops = logged[logged["tag"] == "train/flops"]["value"].max()
    assert flops == pytest.approx(counted(run_config)["flops"], rel=1e-6)


@pytest.mark.slow
def test_the_counts_of_two_ranks_add_up_to_those_of_one(smallest, tmp_path: Path):
    run_config = smallest("strategy=ddp", "trainer.devices=2")
    states = [tmp_path / "0.json", tmp_path / "1.json"]

    def run() -> None:
        done = fit(run_config)
        [found] = [one for one in done.callbacks if isinstance(one, Throughput)]
        states[done.global_rank].write_text(json.dumps([found.state_dict(), found.session(), found.peak_bytes]))

    assert in_processes(run, 2, tmp_path) == [0, 0], read_logs(tmp_path)
    (first, session, peak), (second, _, other) = (json.loads(file.read_text()) for file in states)
    assert first == second and {name: first[name] for name in ("tokens", "flops")} == counted(run_config)
    assert session["mfu"] == pytest.approx(session["useful_tflops"] / 2)  # of two devices of 1e12
    assert 0 <= session["data_wait"] < 1 and peak == other > 0.1 * cost.GIB
