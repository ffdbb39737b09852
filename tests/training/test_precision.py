"""The choice of `trainer.precision=auto`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from auris.training import precision
from auris.training.precision import choose_precision

TRAINER = {"precision": "auto", "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(8, 16)).to("meta")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "environment.json"


@pytest.fixture
def cpu_with_bf16(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """Give the CPU bf16 instructions, with which a product takes half the time; return the products that are timed."""
    timed = []

    def time_linear(n_inputs: int, n_outputs: int, *, is_bf16: bool) -> float:
        timed.append((n_inputs, n_outputs, is_bf16))
        return n_inputs * n_outputs / (2 if is_bf16 else 1)

    monkeypatch.setattr(precision.compat, "has_bf16_instructions", lambda: True)
    monkeypatch.setattr(precision, "_time_linear", time_linear)
    return timed


def test_bf16_is_chosen_on_a_cpu_where_it_is_faster(net, file, cpu_with_bf16):
    choice = choose_precision(TRAINER, net, file)
    assert choice.precision == "bf16-mixed"
    assert "2.0 times as fast in bf16" in str(choice)
    assert cpu_with_bf16 == [(8, 16, False), (16, 4, False), (8, 16, True), (16, 4, True)]


def test_float32_is_chosen_on_a_cpu_where_bf16_is_not_faster(net, file, cpu_with_bf16, monkeypatch):
    monkeypatch.setattr(precision, "_time_linear", lambda *shape, is_bf16: 1.0)
    assert choose_precision(TRAINER, net, file).precision == "32-true"


def test_float32_is_chosen_without_a_measurement_on_a_cpu_without_bf16(net, file, cpu_with_bf16, monkeypatch):
    monkeypatch.setattr(precision.compat, "has_bf16_instructions", lambda: False)
    assert choose_precision(TRAINER, net, file).precision == "32-true" and cpu_with_bf16 == []


def test_a_resumed_run_keeps_the_precision_that_was_measured(net, file, cpu_with_bf16):
    file.write_text(json.dumps({"precision": "32-true"}))
    assert choose_precision(TRAINER, net, file).precision == "32-true" and cpu_with_bf16 == []


def test_processes_on_cpus_do_not_measure(net, file, cpu_with_bf16):
    assert choose_precision({**TRAINER, "devices": 2}, net, file).precision == "32-true" and cpu_with_bf16 == []


@pytest.mark.parametrize(
    ("accelerator", "expected"), [("auto", "bf16-mixed"), ("gpu", "bf16-mixed"), ("cpu", "32-true")]
)
def test_the_default_on_a_gpu_is_bf16(net, file, monkeypatch, accelerator, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(precision.compat, "has_bf16_instructions", lambda: False)
    assert choose_precision({**TRAINER, "accelerator": accelerator}, net, file).precision == expected


def test_a_precision_that_is_set_is_not_changed(net, file, cpu_with_bf16):
    choice = choose_precision({**TRAINER, "precision": "32-true"}, net, file)
    assert choice.precision == "32-true" and cpu_with_bf16 == []


def test_the_time_of_a_product_is_measured_in_both_precisions():
    state = torch.get_rng_state()
    speedup = precision.measure_speedup(nn.Linear(32, 32, device="meta"))
    assert 0 < speedup < 1000
    assert torch.equal(torch.get_rng_state(), state)  # a run draws the same random numbers as without a measurement
