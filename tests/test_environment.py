"""What a run says when it starts: the facts, and how long it takes."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from auris import environment, recipe, train
from auris.callbacks import WINDOW
from auris.environment import Announcement, planned_ranks
from recipes import SMALLEST_MODEL
from runs import ROOT


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(environment, "rank_zero_info", texts.append)
    return texts


def test_a_run_says_what_it_runs_on_and_what_it_will_take(corpus: Path, tmp_path: Path, monkeypatch, said):
    monkeypatch.chdir(ROOT)
    size = ["scale=tiny", "experiment=qwen2_audio_pretrain", f"runs_dir={tmp_path}/runs", f"data.root={corpus}"]
    size += [*SMALLEST_MODEL, "optim.warmup_steps=1", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    size += [f"data.cache_dir={tmp_path}/cache", "max_new_tokens=4", "data.rows_per_step=6"]
    steps = WINDOW + 4
    train.train(recipe.resolve(recipe.compose([*size, f"max_steps={steps}", "trainer.val_check_interval=1.0"])))
    facts = json.loads((tmp_path / "runs/scratch/qwen2_audio_pretrain/seed=0/environment.json").read_text())
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    assert facts["torch"] == version("torch") and facts["ranks"] == 1 and facts["steps"] == steps
    assert facts["rows"] == pytest.approx(6 * steps, rel=0.02)
    assert facts["hours"] == pytest.approx(
        6 * steps / len(rows) * sum(row["duration"] for row in rows) / 3600, rel=0.02
    )
    assert facts["epochs"] == pytest.approx(6 * steps / len(rows), rel=0.02)
    assert 0 < facts["trained"] < facts["parameters"] and facts["least_seconds"] > 0
    start, later = said
    for part in (f"steps 0 to {steps}", "1 ranks on 1 machines", "TFLOP/s", f"torch {version('torch')}", "GiB"):
        assert part in start, part
    assert "tokens/s: the other 4 steps take" in later


@pytest.mark.parametrize(
    "trainer, expected",
    [
        ({"devices": 1}, 1),
        ({"devices": 8, "num_nodes": 4}, 32),
        ({"devices": "8"}, 8),
        ({"devices": [0, 2, 3]}, 3),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({"devices": 8, "num_nodes": 4, "strategy": {"tensor_parallel": 2}}, 16),
    ],
)
def test_ranks_are_counted_from_the_trainers_settings(trainer, expected):
    assert planned_ranks({"num_nodes": 1, "strategy": "auto", "accelerator": "auto"} | trainer) == expected


def test_the_time_left_follows_from_the_speed_of_the_first_steps(said, tmp_path):
    callback, module = Announcement(tmp_path), SimpleNamespace(max_steps=1000, device=torch.device("cpu"))
    callback.facts = {"step": 100, "tokens": 2_000_000.0}
    for step in (100 + WINDOW - 1, 100 + WINDOW, 100 + WINDOW + 1):
        speed = {"tokens/s": torch.tensor(500.0)}
        trainer = SimpleNamespace(is_global_zero=True, global_step=step, callback_metrics=speed)
        callback.on_train_batch_end(trainer, module)
    assert said == ["500 tokens/s: the other 880 steps take 59 min"]


def test_the_speed_of_a_matrix_product_is_that_of_this_machine_and_draws_nothing():
    state = torch.get_rng_state()
    assert 1e8 < environment.matmul_speed(torch.device("cpu")) < 1e14
    assert torch.equal(torch.get_rng_state(), state)
