"""Faults in a run: non-finite losses and gradients, workers that die, and the replay of a faulty step."""

from __future__ import annotations

import json
import os
import shutil
import signal
from functools import cache
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from torch import nn

from auris import audio, cli, config
from auris.data import loader
from auris.errors import RunStopped
from auris.model.weights import checkpoint_dir
from auris.training import replay
from auris.training import run as train
from auris.training.faults import Fault, watch_nonfinite
from support.recipes import smallest_run, with_run_dir
from support.runs import ROOT, KillAt, Killed, assert_equal, fit, in_processes, read_logs, weights

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture(scope="module")
def compose(corpus: Path, tmp_path_factory: pytest.TempPathFactory):
    """Compose a config small enough for a test."""
    base = [
        *smallest_run(corpus, tmp_path_factory.mktemp("faults")),
        "experiment=qwen2_audio_pretrain",
        f"data.valid=[{{path: '{corpus}/valid.jsonl', limit: 3}}]",
        "trainer.val_check_interval=1.0",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield cache(lambda *overrides: config.resolve(config.compose([*base, *overrides])))


@pytest.fixture
def compose_run(compose, tmp_path: Path):
    """Compose the config of a run: `compose_run("max_steps=4", ..., arm="undisturbed")`."""

    def compose_named(*overrides: str, arm: str = "run") -> dict:
        return with_run_dir(compose(*overrides), arm, f"{tmp_path}/runs/{arm}/seed_0")

    return compose_named


@pytest.fixture
def faulty_rows(corpus: Path, tmp_path: Path) -> Path:
    """Return speech rows. One row is so loud that its power overflows, and another row has an invalid audio file."""
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    rows = [row | {"audio": str(corpus / row["audio"])} for row in rows if row["task"] == "asr"]
    wave = np.float32(1e30) * np.sin(np.arange(16000), dtype=np.float32)
    soundfile.write(tmp_path / "loud.wav", wave, 16000, subtype="FLOAT")
    rows[4] |= {"id": "loud", "audio": str(tmp_path / "loud.wav"), "duration": 1.0}
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    rows[7] |= {"id": "broken", "audio": str(tmp_path / "broken.wav"), "duration": 1.0}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class MakeNonFinite(L.Callback):
    """Before a step, make the features of the pack with `row` NaN, or some gradients infinite if `row` is None."""

    def __init__(self, step: int, row: int | None = None):
        self.step, self.row = step, row

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, packs: list, number: int) -> None:
        if number == self.step and self.row is None:
            for parameter in module.net.projector.parameters():
                parameter.grad = torch.full_like(parameter, float("inf"))
        elif number == self.step:
            for pack in packs:
                if self.row in pack["rows"]:
                    pack["mel"].fill_(float("nan"))


class BreakWeights(L.Callback):
    """Set a weight to infinity after a step, as an optimizer of a user's own may do."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        if trainer.global_step == self.step:
            torch.nn.init.constant_(module.net.projector.bias, float("inf"))


class BreakLearningRate(L.Callback):
    """Set the learning rate to NaN before a step."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, packs: list, number: int) -> None:
        if number == self.step:
            trainer.optimizers[0].param_groups[0]["lr"] = float("nan")


class ProjectorWeights(L.Callback):
    """Record the projector's weights after each step."""

    def __init__(self) -> None:
        self.by_step: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        self.by_step.append(module.net.projector.weight.detach().clone())


@pytest.mark.parametrize("kind", ["loss", "gradient", "rate"])
def test_a_non_finite_step_counts_as_a_step_but_changes_no_weights(compose_run, kind):
    run_config = compose_run("max_steps=5", arm=kind)
    _module, data = train.build(run_config)
    data.setup("fit")
    row = data.plan.step(2)[0][0] if kind == "loss" else None
    projector = ProjectorWeights()
    trainer = fit(run_config, BreakLearningRate(2) if kind == "rate" else MakeNonFinite(2, row), projector)
    before, skipped, after = projector.by_step[1:4]
    assert torch.equal(before, skipped) and not torch.equal(skipped, after)
    assert trainer.global_step == 5 and trainer.callback_metrics["faults/skipped_steps"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in weights(run_config).values())
    [file] = Path(run_config["run_dir"]).glob("faults/*.json")
    assert [position.row for position in Fault.load(file).rows()] == rows_of_step(data, 2)


def test_a_checkpoint_with_a_non_finite_weight_is_not_written(compose_run):
    run_config = compose_run("max_steps=5", "checkpoint_every=2")
    train.claim_run_dir(Path(run_config["run_dir"]), run_config)
    with pytest.raises(RunStopped, match=r"not finite after step 4, for example net.projector.bias, .* from step 2"):
        fit(run_config, BreakWeights(3))
    assert checkpoint_dir.list_steps(Path(run_config["run_dir"]) / "checkpoints") == [2]
    train.train(run_config)
    assert all(torch.isfinite(tensor).all() for tensor in weights(run_config).values())


def rows_of_step(data, step: int) -> list[int]:
    return [row for pack in data.plan.all_packs(step, world=1) for row, _ in pack]


def test_a_run_resumed_after_a_skipped_step_ends_like_an_uninterrupted_run(compose_run):
    uninterrupted, killed = (
        compose_run("max_steps=6", "checkpoint_every=2", arm=arm) for arm in ("reference", "disturbed")
    )
    fit(uninterrupted, MakeNonFinite(1))
    train.claim_run_dir(Path(killed["run_dir"]), killed)
    with pytest.raises(Killed):
        fit(killed, MakeNonFinite(1), KillAt(5))
    train.train(killed)
    assert_equal(weights(uninterrupted), weights(killed))
    finished = json.loads((Path(killed["run_dir"]) / "finished.json").read_text())
    assert finished["steps"] == 6 and finished["faults/skipped_steps"] == 1


def test_nonfinite_set_to_stop_stops_at_the_first_fault_and_set_to_skip_continues(compose_run):
    run_config = compose_run("max_steps=4", "checkpoint_every=1", "nonfinite=stop")
    train.claim_run_dir(Path(run_config["run_dir"]), run_config)
    with pytest.raises(
        RunStopped,
        match=r"step 2: the loss is .*, the gradient norm is .*auris replay fault=",
    ):
        fit(run_config, MakeNonFinite(2))
    train.train(compose_run("max_steps=4", "checkpoint_every=1", "nonfinite=skip"))
    assert json.loads((Path(run_config["run_dir"]) / "finished.json").read_text())["steps"] == 4


def assert_same_fault(single: dict, pair: dict) -> None:
    """Check that one process and two processes skipped the same step, named the same rows and have equal weights."""
    assert_equal(weights(single), weights(pair), tolerance=1e-6)
    [first_fault], [second_fault] = (
        list(Path(run_config["run_dir"]).glob("faults/*.json")) for run_config in (single, pair)
    )
    first_fault, second_fault = Fault.load(first_fault), Fault.load(second_fault)
    assert first_fault.step == second_fault.step and (len(first_fault.ranks), len(second_fault.ranks)) == (1, 2)
    assert {position.id for position in first_fault.rows()} == {position.id for position in second_fault.rows()}
    finished = [
        json.loads((Path(run_config["run_dir"]) / "finished.json").read_text()) for run_config in (single, pair)
    ]
    assert all(content["faults/skipped_steps"] == content["faults/unusable_rows"] == 1 for content in finished)
    lines = [(Path(run_config["run_dir"]) / "unusable_rows.jsonl").read_text() for run_config in (single, pair)]
    assert lines[0] == lines[1] and [json.loads(line)["id"] for line in lines[0].splitlines()] == ["broken"]


def test_all_sharded_processes_skip_a_step_that_fails_on_one_of_them(compose_run, faulty_rows, tmp_path):
    """Only one of two processes has the faulty row. The weights equal those of a single process that skips the step.

    Replaying on one process finds the row.
    """
    options = ["max_steps=3", "data.rows_per_step=7", f"data.train=[{faulty_rows}]"]
    single, pair = (
        compose_run(*options, arm="one"),
        compose_run(*options, "strategy=fsdp", "trainer.devices=2", arm="two"),
    )
    train.train(single)
    assert in_processes(lambda: train.train(pair), 2, tmp_path / "two") == [0, 0], read_logs(tmp_path / "two")
    assert_same_fault(single, pair)
    [file] = Path(pair["run_dir"]).glob("faults/*.json")
    faulty, report = replay_fault(file)
    assert faulty == ["loud"] and "weights before the step: " in report


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_processes_agree_to_skip_or_stop_under_every_strategy(compose_run, faulty_rows, tmp_path, strategy):
    """Only one process has the non-finite loss or gradient."""
    options = ["max_steps=3", "data.rows_per_step=7", f"data.train=[{faulty_rows}]"]
    pair_options = [*options, f"strategy={strategy}", "trainer.devices=2"]
    single, pair, gradient = (
        compose_run(*options, arm="one"),
        compose_run(*pair_options, arm="two"),
        compose_run(*pair_options, arm="gradient"),
    )
    stopped = compose_run(*pair_options, "nonfinite=stop", arm="stopped")
    train.train(single)
    [faulty_step] = [Fault.load(file).step for file in Path(single["run_dir"]).glob("faults/*.json")]

    def work() -> None:
        rank = int(os.environ["LOCAL_RANK"])
        train.train(pair)
        trainer = fit(gradient, *[MakeNonFinite((faulty_step + 1) % 3)] * rank)  # only on the second process
        assert trainer.callback_metrics["faults/skipped_steps"] == 2 and trainer.global_step == 3
        with pytest.raises(RunStopped) as error:
            train.train(stopped)
        (tmp_path / f"stopped-{rank}").write_text(str(error.value))

    assert in_processes(work, 2, tmp_path / "log") == [0, 0], read_logs(tmp_path / "log")
    assert_same_fault(single, pair)
    assert all(torch.isfinite(tensor).all() for tensor in weights(gradient).values())
    first, second = ((tmp_path / f"stopped-{rank}").read_text() for rank in (0, 1))
    assert (
        f"step {faulty_step}: the loss is" in first
        and "auris replay" in first
        and f"step {faulty_step}: the loss is" in second
    )


# --- workers ---


@pytest.fixture
def kill_workers_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function `set_up(path, times)`. After it, each of the first `times` reads of `path` kills its worker."""
    read, main_process = audio.read, os.getpid()

    def set_up(path: str, times: int) -> None:
        killed_workers = tmp_path / "killed_workers"  # contains an empty file for each killed worker
        killed_workers.mkdir()

        def read_or_kill(file: Path, *segment: float | None) -> np.ndarray:
            if str(file) == path and os.getpid() != main_process and len(list(killed_workers.iterdir())) < times:
                (killed_workers / str(os.getpid())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return read(file, *segment)

        monkeypatch.setattr(audio, "read", read_or_kill)

    monkeypatch.setattr(loader, "POLL_INTERVAL", 0.2)
    return set_up


def first_clip_path(run_config: dict, step: int) -> str:
    _, data = train.build(run_config)
    data.setup("fit")
    return str(data.rows[data.plan.step(step)[0][0]].clips[0].path)


def test_a_lost_worker_does_not_change_the_trained_weights(compose_run, kill_workers_at):
    options = ["max_steps=5", "data.num_workers=2"]
    undisturbed, disturbed = (compose_run(*options, arm=arm) for arm in ("reference", "disturbed"))
    train.train(undisturbed)
    kill_workers_at(first_clip_path(disturbed, 3), times=1)
    train.train(disturbed)
    assert_equal(weights(undisturbed), weights(disturbed))
    finished = json.loads((Path(disturbed["run_dir"]) / "finished.json").read_text())
    assert finished["faults/lost_workers"] == 1 and finished["steps"] == 5


def test_a_row_that_kills_every_worker_stops_the_run_and_its_step_is_saved(compose_run, kill_workers_at):
    run_config = compose_run("max_steps=5", "data.num_workers=2", "data.worker_restarts=1")
    path = first_clip_path(run_config, 3)
    kill_workers_at(path, times=99)
    with pytest.raises(RunStopped, match=r"workers were lost 2 times at step 3 .*Killed"):
        train.train(run_config)
    [file] = Path(run_config["run_dir"]).glob("faults/*.json")
    _, data = train.build(run_config)
    data.setup("fit")
    assert path in {str(data.rows[position.row].clips[0].path) for position in Fault.load(file).rows()}
    faulty, report = replay_fault(file)  # replay reads the file in this process, which is not killed
    assert faulty == [] and "the weights before the step were not saved" in report


# --- replay ---


def replay_fault(file: Path, **options) -> tuple[list[str], str]:
    console = Console(record=True, width=200, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    settings = {"checkpoint": None, "accelerator": "cpu"} | options
    faulty = replay.replay(file, **settings, console=console)
    return faulty, console.export_text()


def test_replay_finds_the_faulty_row_with_the_weights_of_the_step(compose_run, faulty_rows):
    run_config = compose_run("max_steps=3", f"data.train=[{faulty_rows}]")
    train.train(run_config)
    [file] = Path(run_config["run_dir"]).glob("faults/*.json")
    fault = Fault.load(file)
    faulty, report = replay_fault(file)
    assert faulty == ["loud"] and "weights before the step: " in report
    assert all(f"reading {position.id}" in report for position in fault.rows())
    assert cli.main(["replay", f"fault={file}", "accelerator=cpu"]) == 1


def test_replay_reports_that_no_row_is_faulty(compose_run):
    run_config = compose_run("max_steps=3")
    train.claim_run_dir(Path(run_config["run_dir"]), run_config)
    fit(run_config, MakeNonFinite(1))
    [file] = Path(run_config["run_dir"]).glob("faults/*.json")
    faulty, report = replay_fault(file)
    assert faulty == [] and "weights before the step: " in report
    shutil.rmtree(file.with_suffix(""))
    _, report = replay_fault(file)
    assert "the weights before the step were not saved" in report


def test_rows_that_have_changed_are_refused(compose_run, tmp_path):
    run_config = compose_run("max_steps=3")
    train.claim_run_dir(Path(run_config["run_dir"]), run_config)
    fit(run_config, MakeNonFinite(1))
    [file] = Path(run_config["run_dir"]).glob("faults/*.json")
    content = json.loads(file.read_text())
    content["ranks"][0][0][0]["id"] = "another"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is no longer 'another': the manifests of the run have changed"):
        replay_fault(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match="is not a record of a fault"):
        replay_fault(file)
    with pytest.raises(FileNotFoundError, match="expected RUN/faults/step_N.json"):
        replay_fault(tmp_path / "no.json")


def test_modules_with_a_non_finite_output_are_named_in_order():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with torch.no_grad():
        net[1][0].bias.fill_(float("inf"))
    with watch_nonfinite(net) as modules:
        net(torch.ones(1, 2))
    assert modules == ["1.0", "1.1", "1"]
    with watch_nonfinite(net) as modules:
        net[0](torch.ones(1, 2))
    assert modules == [] and not net[0]._forward_hooks
