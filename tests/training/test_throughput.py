"""Throughput counters: hand-computed counts, comparison with torch's FLOP counter, and sums over two ranks."""

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
from auris.training.cost import WORKLOAD_FIELDS, find_peak_flops
from auris.training.objectives.next_token import NextToken
from auris.training.provenance import WINDOW_STEPS
from auris.training.throughput import Throughput
from support import nets
from support.packs import Clip, pack, text
from support.recipes import smallest_run
from support.runs import ROOT, fit, in_processes, read_logs

pytestmark = pytest.mark.usefixtures("single_thread")

EVERYTHING = cost.Stage(name="", trainable=("encoder", "pooling", "projector", "boundary", "llm"))


def with_audio_seconds(batch: dict, seconds: float = 1.0) -> dict:
    return {**batch, "audio_seconds": seconds}


# --- counts of a pack ---


def test_counts_of_a_pack_equal_the_hand_computed_ones():
    """Clips of 9 and 40 mel frames have 5 and 20 encoder frames, and 2 and 10 audio tokens."""
    net = nets.build_meta()
    batch = with_audio_seconds(
        pack([[Clip(9, n_mels=nets.N_MELS), text(4)], [text(3), Clip(40, n_mels=nets.N_MELS)]], net.geometry)
    )
    counts = {name: int(value) for name, value in cost.count_workload(batch).items()}
    scored = int((batch["labels"] != IGNORE).sum())
    pairs = (6 * 7 + 13 * 14) // 2  # each token sees itself and the tokens before it
    expected = {"tokens": 6 + 13, "frames": 25, "scored": scored, "token_pairs": pairs, "frame_pairs": 5**2 + 20**2}
    assert counts == expected | {"idle": 0}


def test_token_pairs_of_a_tree_include_the_prompt_for_both_answers():
    """A preference pair is packed as a tree: both answers share the prompt.

    The ids are 3 prompt tokens, 2 chosen tokens, the last prompt token again, and 4 rejected tokens.
    """
    ids = torch.arange(10)
    tree = {"cu_seqlens": torch.tensor([0, 5, 10]), "cu_keys": torch.tensor([0, 5, 12])}
    fields = {"labels": torch.full((10,), IGNORE), "rows": [0], "audio_seconds": 0.0}
    counts = cost.count_workload({"ids": ids, **tree, **fields})
    assert int(counts["token_pairs"]) == (1 + 2 + 3 + 4 + 5) + (3 + 4 + 5 + 6 + 7)


def test_dummy_tokens_and_dummy_frames_count_as_idle():
    """An empty pack has one token and a clip of 4 mel frames (2 encoder frames). A pack of text has the same clip."""
    geometry = nets.build_meta().geometry
    empty, text_only = collate([], geometry=geometry), pack([[text(7)]], geometry)
    counts = {name: int(value) for name, value in cost.count_workload(empty).items()}
    assert counts == dict.fromkeys(WORKLOAD_FIELDS, 0) | {"idle": 3}
    counts = {name: int(value) for name, value in cost.count_workload(text_only).items()}
    assert (counts["tokens"], counts["frames"], counts["idle"]) == (7, 0, 2)


@pytest.mark.parametrize(("trainable", "tolerance"), [(("encoder", "projector", "llm"), 0.01), (("projector",), 0.02)])
def test_useful_flops_equal_the_count_of_torch(trainable: tuple[str, ...], tolerance: float):
    """torch does not count norms, element-wise products, or attention on a CPU."""
    net = nets.build(vocab=96, hidden_size=128, intermediate_size=256)
    net.requires_grad_(False)
    for part in trainable:
        getattr(net, part).requires_grad_(True)
    batch = with_audio_seconds(
        pack([[Clip(60, n_mels=nets.N_MELS), text(90)], [Clip(9, n_mels=nets.N_MELS), text(40)]], net.geometry)
    )
    with FlopCounterMode(display=False) as counter:
        NextToken()(net, batch)[0].backward()
    workload = {name: int(cost.count_workload(batch)[name]) for name in ("tokens", "frames", "scored")}
    expected = cost.count_training_flops(net, cost.Stage(name="", trainable=trainable), cost.Workload(**workload))
    flops = counter.get_flop_counts()["Global"]
    flops_by_op = {str(op): n for op, n in flops.items() if "attention" not in str(op)}
    assert sum(flops_by_op.values()) == pytest.approx(expected, rel=tolerance)


def test_cached_frames_leave_out_the_cost_of_what_is_below_them():
    net, workload = nets.build_meta(), cost.Workload(frames=10, frame_pairs=100)  # two blocks

    def flops(*trainable: str, has_cached_frames: bool) -> int:
        stage = cost.Stage(name="", trainable=(*trainable, "projector"), has_cached_frames=has_cached_frames)
        return cost.count_training_flops(net, stage, workload)

    encoder = net.encoder
    convolutions, block = (
        sum(map(cost.count_parameters, x)) for x in ([encoder.conv1, encoder.conv2], encoder.blocks[:1])
    )
    attention = 4 * 100 * encoder.width
    frozen = flops(has_cached_frames=False) - flops(has_cached_frames=True)
    assert frozen == 2 * 10 * (convolutions + 2 * block) + 2 * attention
    upper = ["encoder.blocks.1", "encoder.norm"]
    saved = flops(*upper, has_cached_frames=False) - flops(*upper, has_cached_frames=True)
    assert saved == 2 * 2 * 10 * (convolutions + block) + 3 * attention


def test_the_projector_of_an_aligner_is_counted_without_the_language_model():
    net, workload = nets.build_meta(), cost.Workload(frames=10)
    stage = cost.Stage(name="", trainable=("projector",), runs_llm=False, has_cached_frames=True)
    products = 2 * cost.count_parameters(net.projector) * 10 // net.geometry.pool  # forward, gradient of the weights
    norm = cost.count_parameters(net.encoder.norm) * 10
    assert cost.count_training_flops(net, stage, workload) == 2 * (products + norm)


@pytest.mark.parametrize("kind", [pooling.Mean, pooling.Conv, partial(pooling.Attention, n_heads=4), pooling.Stack])
def test_the_cost_of_each_pooling_and_projector_equals_the_count_of_torch(kind: Callable[..., nn.Module]):
    net = SimpleNamespace(pooling=kind(k=2, width=64), geometry=SimpleNamespace(pool=2))
    net.projector = projector.Linear(in_width=64 * net.pooling.vectors_per_token, out_width=32)
    frames = torch.randn(60, 64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        pooled, _ = net.pooling(frames, torch.tensor([40, 20]))
        net.projector(pooled.flatten(1)).sum().backward()
    expected = 2 * cost._pooling_and_projector_products(net, EVERYTHING, 60)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)  # torch does not count biases


def test_attention_costs_four_flops_per_pair_and_channel_in_the_forward_pass_and_eight_in_the_backward_pass():
    net = nets.build_meta(layers=2)  # 24 channels in the encoder, 32 in the LLM
    workload = {"tokens": 0, "frames": 0, "scored": 0}
    pairs, frozen = cost.Workload(**workload, token_pairs=10), cost.Stage(name="", trainable=("projector",))
    assert (
        cost.count_training_flops(net, EVERYTHING, pairs)
        == cost.count_training_flops(net, frozen, pairs)
        == 3 * 4 * 10 * 2 * 32
    )
    pairs = cost.Workload(**workload, frame_pairs=10)
    assert cost.count_training_flops(net, EVERYTHING, pairs) == 3 * 4 * 10 * 2 * 24
    assert cost.count_training_flops(net, frozen, pairs) == 4 * 10 * 2 * 24


# --- the peak FLOP/s of a device ---


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
        ("NVIDIA L40S", "bf16-mixed", None),  # not an L40
        ("NVIDIA H100 80GB HBM3", "32-true", None),  # the listed peak is for bfloat16
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16-mixed", None),  # only a part of a device
        ("NVIDIA H20", "bf16-mixed", None),
        ("x86_64", "32-true", None),
    ],
)
def test_the_peak_flops_depend_on_device_and_precision_and_may_be_unknown(
    device: str, precision: str, peak: float | None
):
    actual, reason = find_peak_flops(device, precision)
    assert actual == peak and device in reason


def test_the_peak_flops_can_be_set():
    assert find_peak_flops("x86_64", "32-true", 5e10) == (5e10, "peak_flops")


# --- speeds ---


class Clock:
    """A stand-in for the `time` module. Tests advance it explicitly."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 50.0
        monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class LoggingModule(SimpleNamespace):
    """A module that records the last value of each logged name, and a logger that records every point."""

    def __init__(self) -> None:
        super().__init__(values={}, points={}, net=nets.build_meta(), objective=NextToken(), device=torch.device("cpu"))
        self.trainable, self.has_cached_frames = ["encoder", "projector", "llm"], False

    def log(self, name: str, value: float, **_: Any) -> None:
        self.values[name] = value

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.points[step] = metrics


def trainer(log: LoggingModule, *, step: int = 1, world: int = 1) -> SimpleNamespace:
    settings = {"precision": "32-true", "log_every_n_steps": 2, "loggers": [log]}
    return SimpleNamespace(global_step=step, world_size=world, **settings)


def run_step(
    callback: Throughput, log: LoggingModule, clock: Clock, seconds: float, *, step: int = 1, **counts: Any
) -> None:
    callback.on_train_batch_start(trainer(log), log, None, 0)
    clock.now += seconds
    sums = (
        dict.fromkeys((*WORKLOAD_FIELDS, "idle", "audio_seconds"), 0.0)
        | {"waited": [0.0], "peak_bytes": [0.0]}
        | counts
    )
    sums = {name: torch.tensor(value) for name, value in sums.items()}
    callback.on_train_batch_end(trainer(log, step=step), log, sums)


def test_speeds_exclude_the_first_step(clock):
    callback, log = Throughput(peak_flops=1e6), LoggingModule()
    callback.on_train_start(trainer(log, world=2), log)
    run_step(callback, log, clock, 60, tokens=7.0)  # warm-up
    assert not log.points and "tokens/s" not in log.values
    counts = {"tokens": 100.0, "frames": 50.0, "scored": 8.0, "token_pairs": 300.0, "frame_pairs": 900.0}
    rank_values = {"waited": [0.1, 0.5], "peak_bytes": [2.0**30, 2.0**31]}
    run_step(callback, log, clock, 2, audio_seconds=30.0, idle=50.0, **counts, **rank_values)
    run_step(callback, log, clock, 3, step=4, tokens=400.0, audio_seconds=20.0, waited=[0.25, 0.0])
    logged = log.points[3]
    stage = cost.Stage(name="", trainable=("encoder", "projector", "llm"))
    numbers = {name: int(value) for name, value in counts.items()}
    useful = cost.count_training_flops(log.net, stage, cost.Workload(**numbers | {"tokens": 500}))
    expected = {
        "tokens_per_s": 500 / 5,
        "audio_hours_per_hour": 50 / 5,
        "seconds_per_step": 5 / 2,
        "useful_tflops": useful / 5 / 1e12,
        "padding": 50 / (500 + 50 + 50),
        "data_wait": (0.5 + 0.25) / 5,  # of the rank that waited longest in each step
        "peak_memory_gib": 2.0,
        "mfu": useful / 5 / 2 / 1e6,  # two devices
    }
    assert logged == {f"speed/{name}": pytest.approx(value) for name, value in expected.items()}
    assert log.values["tokens/s"] == pytest.approx(100) and log.values["h/h"] == pytest.approx(10)
    assert log.values["wait"] == pytest.approx(0.15) and log.values["MFU"] == pytest.approx(expected["mfu"])
    assert callback.session_rates() == {name: pytest.approx(value) for name, value in expected.items()}
    report = callback.format_report()
    for part in ("over 2 steps on 2 ranks", "100 tokens/s", "10.0 hours of audio per hour", "waiting for data 15.0 %"):
        assert part in report, part
    assert f"MFU {100 * expected['mfu']:.1f} % of 1e-06 TFLOP/s per device (peak_flops)" in report


def test_without_a_known_peak_the_report_explains_the_missing_mfu(clock):
    callback, log = Throughput(), LoggingModule()
    callback.on_train_start(trainer(log), log)
    assert callback.format_report() == "speed: unknown, because measuring it takes at least two steps"
    for step in (1, 2):
        run_step(callback, log, clock, 1, step=step, tokens=10.0)
    assert "MFU" not in log.values and "speed/mfu" not in log.points[1]
    assert (
        "no MFU because the peak FLOP/s of " in callback.format_report()
        and " is not known (set peak_flops" in callback.format_report()
    )


def test_logged_speed_covers_the_last_steps_and_the_report_covers_all(clock):
    callback, log = Throughput(), LoggingModule()
    for seconds, tokens, steps in ((1, 1.0, 1), (1, 1000.0, 5), (1, 50.0, WINDOW_STEPS)):
        for _ in range(steps):
            run_step(callback, log, clock, seconds, tokens=tokens)
    assert log.values["tokens/s"] == pytest.approx(50)
    assert callback.session_rates()["tokens_per_s"] == pytest.approx(
        (5 * 1000 + WINDOW_STEPS * 50) / (5 + WINDOW_STEPS)
    )


def test_validation_time_is_excluded(clock):
    callback, log = Throughput(), LoggingModule()
    for _ in range(3):
        run_step(callback, log, clock, 1, tokens=10.0)
    callback.on_validation_start(trainer(log), log)
    clock.now += 1000
    run_step(callback, log, clock, 1, tokens=10.0, waited=[900.0])  # the loader also counted the validation time
    run_step(callback, log, clock, 1, tokens=10.0)
    assert log.values["tokens/s"] == pytest.approx(10) and log.values["wait"] == 0


def test_totals_continue_after_a_resume(clock):
    first, log = Throughput(), LoggingModule()
    first.on_train_start(trainer(log), log)
    run_step(first, log, clock, 1, tokens=5.0, audio_seconds=1800.0)
    before = log.values["train/flops"]
    resumed = Throughput()
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    resumed.on_train_start(trainer(log), log)
    run_step(resumed, log, clock, 1, tokens=5.0, audio_seconds=1800.0)
    assert log.values["train/audio_hours"] == pytest.approx(1.0)
    assert log.values["train/flops"] == pytest.approx(2 * before) and before > 0


# --- runs ---


@pytest.fixture
def compose_run(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    size = [*smallest_run(corpus, tmp_path), "max_steps=3", "peak_flops=1e12", "trainer.val_check_interval=1.0"]
    size += [f"data.valid=[{{path: '{corpus}/valid.jsonl', limit: 3}}]"]
    return lambda *overrides: config.resolve(config.compose([*size, *overrides]))


def planned_counts(run_config: dict) -> dict[str, float]:
    """Return tokens and FLOPs of a run's rows, computed from its plan in one process."""
    module, data = train.build(run_config)
    data.setup("fit")
    steps = StepDataset(data.rows, data.plan, data.samples, 1, 0)
    packs = [cost.count_workload(batch) for step in range(run_config["max_steps"]) for batch in steps[step]]
    workload = cost.Workload(**{name: sum(int(counts[name]) for counts in packs) for name in WORKLOAD_FIELDS})
    stage = cost.Stage.of(module.objective, module.trainable)
    return {"tokens": workload.tokens, "flops": cost.count_training_flops(module.net, stage, workload)}


def read_speeds(run_config: dict) -> dict[str, float]:
    finished = json.loads((Path(run_config["run_dir"]) / "finished.json").read_text())
    return {name.removeprefix("speed/"): value for name, value in finished.items() if name.startswith("speed/")}


def test_a_run_logs_its_speed_and_saves_it_in_finished_json(compose_run):
    run_config = compose_run()
    train.train(run_config)
    logged = curves(Path(run_config["run_dir"]).parents[1])
    speeds = read_speeds(run_config)
    names = {"tokens_per_s", "audio_hours_per_hour", "seconds_per_step", "useful_tflops", "mfu", "padding", "data_wait"}
    assert speeds.keys() == names | {"peak_memory_gib"}
    assert {tag for tag in logged["tag"] if tag.startswith("speed/")} == {f"speed/{name}" for name in speeds}
    assert speeds["padding"] == 0 and 0 <= speeds["data_wait"] < 1 and speeds["peak_memory_gib"] > 0.1
    assert speeds["mfu"] == pytest.approx(speeds["useful_tflops"])  # one device with a peak of 1e12
    flops = logged[logged["tag"] == "train/flops"]["value"].max()
    assert flops == pytest.approx(planned_counts(run_config)["flops"], rel=1e-6)


@pytest.mark.slow
def test_the_counts_of_two_ranks_add_up_to_those_of_one(compose_run, tmp_path: Path):
    run_config = compose_run("strategy=ddp", "trainer.devices=2")
    states = [tmp_path / "0.json", tmp_path / "1.json"]

    def run() -> None:
        trainer = fit(run_config)
        [callback] = [entry for entry in trainer.callbacks if isinstance(entry, Throughput)]
        states[trainer.global_rank].write_text(
            json.dumps([callback.state_dict(), callback.session_rates(), callback.peak_bytes])
        )

    assert in_processes(run, 2, tmp_path) == [0, 0], read_logs(tmp_path)
    (first, session, peak), (second, _, other_peak) = (json.loads(file.read_text()) for file in states)
    assert first == second and {name: first[name] for name in ("tokens", "flops")} == planned_counts(run_config)
    assert session["mfu"] == pytest.approx(session["useful_tflops"] / 2)  # two devices with a peak of 1e12
    assert 0 <= session["data_wait"] < 1 and peak == other_peak > 0.1 * cost.GIB
