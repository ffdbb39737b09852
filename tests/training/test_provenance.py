"""The report at the start of a run: its environment, its expected cost, and its remaining time."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from auris import config
from auris.model.weights import checkpoint_dir
from auris.training import cost, provenance
from auris.training import run as train
from auris.training.provenance import WINDOW_STEPS, EnvironmentReport
from auris.training.strategy import Processes
from support import nets
from support.recipes import smallest_run
from support.runs import ROOT


@pytest.fixture
def announcements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(provenance, "rank_zero_info", texts.append)
    return texts


@pytest.fixture
def compose_run(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compose a config small enough for a test."""
    monkeypatch.chdir(ROOT)
    size = [*smallest_run(corpus, tmp_path), "experiment=qwen2_audio_pretrain"]
    size += [f"data.valid=[{{path: '{corpus}/valid.jsonl', limit: 3}}]"]
    return lambda *overrides: config.resolve(config.compose([*size, *overrides]))


def test_a_run_reports_its_environment_and_its_expected_cost(corpus: Path, tmp_path: Path, compose_run, announcements):
    steps = WINDOW_STEPS + 4
    train.train(compose_run(f"max_steps={steps}", "trainer.val_check_interval=1.0"))
    facts = json.loads((tmp_path / "runs/scratch/qwen2_audio_pretrain/seed_0/environment.json").read_text())
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    assert facts["audio_tokens_per_second"] == 25
    digest = hashlib.sha256((corpus / "train.jsonl").read_bytes()).hexdigest()
    assert facts["data"][str(corpus / "train.jsonl")] == digest
    assert facts["torch"] == version("torch") and facts["ranks"] == 1 and facts["steps"] == steps
    assert facts["rows"] == pytest.approx(6 * steps, rel=0.02)
    assert facts["hours"] == pytest.approx(
        6 * steps / len(rows) * sum(row["duration"] for row in rows) / 3600, rel=0.02
    )
    assert facts["epochs"] == pytest.approx(6 * steps / len(rows), rel=0.02)
    assert set(facts["tasks"]) == {row["task"] for row in rows}
    for unit in ("rows", "hours", "tokens"):
        assert sum(share[unit] for share in facts["tasks"].values()) == pytest.approx(facts[unit])
    assert 0 < facts["trained"] < facts["parameters"] and facts["least_seconds"] > 0
    start_message, speed_message = announcements
    largest = max(facts["tasks"], key=lambda task: facts["tasks"][task]["tokens"])
    share = 100 * facts["tasks"][largest]["tokens"] / facts["tokens"]
    assert f"by task: {largest} {facts['tasks'][largest]['hours']:.1f} h, {share:.1f} %; " in start_message
    for part in (
        f"steps 0 to {steps}",
        "ranks: 1; machines: 1",
        "TFLOP/s",
        f"torch {version('torch')}",
        "GiB",
    ):
        assert part in start_message, part
    assert "tokens/s: 4 steps left, about" in speed_message


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"devices": 1}, 1),
        ({"devices": 8, "num_nodes": 4}, 32),
        ({"devices": "8"}, 8),
        ({"devices": [0, 2, 3]}, 3),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({"devices": 8, "num_nodes": 4, "strategy": {"tensor_parallel": 2}}, 16),
        ({"devices": 8, "num_nodes": 4, "strategy": {"replicas": 4}}, 32),
    ],
)
def test_ranks_are_counted_from_the_trainers_settings(trainer, expected):
    settings = {"num_nodes": 1, "strategy": "auto", "accelerator": "auto"} | trainer
    assert Processes.from_config(settings).ranks == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=3"], "tensor_parallel=2 does not divide the 3 processes"),
        (["model.llm.config.num_attention_heads=3", "model.llm.config.hidden_size=48"], "num_attention_heads=3"),
        (["model.llm.config.num_key_value_heads=1"], "num_key_value_heads=1"),
        (["model.llm.config.intermediate_size=33"], "intermediate_size=33"),
        (["trainable=[projector,llm.new_tokens]"], "cannot divide adapters"),
    ],
)
def test_a_dry_run_names_what_cannot_be_divided_by_tensor_parallelism(compose_run, overrides, message):
    with pytest.raises(ValueError, match=message):
        train.train(compose_run("strategy=fsdp_tp", "trainer.devices=2", *overrides, "dry_run=true"))


def test_a_dry_run_names_what_cannot_be_divided_into_replicas(compose_run):
    with pytest.raises(ValueError, match="trainer.strategy.replicas=2 does not divide the 3 processes"):
        train.train(compose_run("strategy=hsdp", "trainer.devices=3", "dry_run=true"))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_estimated_memory_of_states_equals_the_allocated_memory(compose_run, precision):
    """Frozen weights are stored in float32 in any precision unless they are sharded. Buffers are not counted."""
    options = ["optim=adamw", "max_steps=2", "trainer.val_check_interval=1.0"]
    run_config = compose_run(*options, f"trainer.precision={precision}", f"arm={precision}")
    train.train(run_config)
    facts = json.loads((Path(run_config["run_dir"]) / "environment.json").read_text())
    checkpoint = checkpoint_dir.find(run_config["run_dir"], kinds=checkpoint_dir.KINDS)
    tensors_by_kind = [checkpoint.tensors(kind).read_all() for kind in checkpoint_dir.KINDS]
    sizes = {
        name: tensor.nbytes
        for tensors in tensors_by_kind
        for name, tensor in tensors.items()
        if not name.startswith("step.")
    }
    del sizes["net.encoder.positions"]
    gradient_bytes = sum(size for name, size in sizes.items() if name.startswith("exp_avg."))
    assert facts["states_bytes"] == sum(sizes.values()) + gradient_bytes


def test_ddp_needs_extra_memory_for_gradient_buckets():
    net, stage = nets.build_meta(), cost.Stage(name="", trainable=("projector",))
    workload = cost.Workload(tokens=1, frames=1, scored=1)
    without_buckets, with_buckets = (
        cost.estimate_memory(net, stage, workload, has_buckets=buckets).states for buckets in (False, True)
    )
    assert with_buckets - without_buckets == 4 * cost.count_trained_parameters(net, stage)


def test_the_remaining_time_is_estimated_from_the_speed_of_the_first_steps(announcements, tmp_path):
    callback, module = EnvironmentReport(tmp_path), SimpleNamespace(max_steps=1000, device=torch.device("cpu"))
    callback.environment = SimpleNamespace(step=100, tokens=2_000_000.0)
    for step in (100 + WINDOW_STEPS - 1, 100 + WINDOW_STEPS, 100 + WINDOW_STEPS + 1):
        speed = {"tokens/s": torch.tensor(500.0)}
        trainer = SimpleNamespace(is_global_zero=True, global_step=step, callback_metrics=speed)
        callback.on_train_batch_end(trainer, module)
    assert announcements == ["500 tokens/s: 880 steps left, about 59 min"]


def test_measuring_matmul_speed_does_not_advance_the_random_generator():
    state = torch.get_rng_state()
    assert 1e8 < provenance.measure_matmul_speed(torch.device("cpu")) < 1e14
    assert torch.equal(torch.get_rng_state(), state)
