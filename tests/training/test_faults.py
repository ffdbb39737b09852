"""What goes wrong in a run: numbers that are not finite, workers that die, rows of a fault looked at again."""

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
from auris.training import replay
from auris.training import run as train
from auris.training.faults import Fault, watch_nonfinite
from support.recipes import smallest_run, with_run_dir
from support.runs import ROOT, KillAt, Killed, assert_equal, fit, in_processes, read_logs, weights


@pytest.fixture(scope="module")
def compose(corpus: Path, tmp_path_factory: pytest.TempPathFactory):
    """Compose a recipe small enough for a test."""
    given = [
        *smallest_run(corpus, tmp_path_factory.mktemp("faults")),
        "experiment=qwen2_audio_pretrain",
        f"data.valid=[{{path: '{corpus}/valid.jsonl', limit: 3}}]",
        "trainer.val_check_interval=1.0",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield cache(lambda *overrides: config.resolve(config.compose([*given, *overrides])))


@pytest.fixture
def smallest(compose, tmp_path: Path):
    """A recipe of a run: `smallest("max_steps=4", ..., arm="whole")`."""

    def make(*overrides: str, arm: str = "run") -> dict:
        return with_run_dir(compose(*overrides), arm, f"{tmp_path}/runs/{arm}/seed_0")

    return make


@pytest.fixture
def loud(corpus: Path, tmp_path: Path) -> Path:
    """Speech rows, one of them so loud that its power overflows, and one whose file is no sound."""
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


class Spoil(L.Callback):
    """Before a step, makes the features that a row is packed with not finite, or without a row some gradients."""

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


class Weights(L.Callback):
    """The projector's weights after each step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        self.seen.append(module.net.projector.weight.detach().clone())


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_shifts_no_other_step(smallest, kind):
    run_config = smallest("max_steps=5", arm=kind)
    _module, data = train.build(run_config)
    data.setup("fit")
    row = data.plan.step(2)[0][0] if kind == "loss" else None
    seen = Weights()
    trainer = fit(run_config, Spoil(2, row), seen)
    before, at, after = seen.seen[1:4]
    assert torch.equal(before, at) and not torch.equal(at, after)
    assert trainer.global_step == 5 and trainer.callback_metrics["faults/skipped_steps"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in weights(run_config).values())
    [file] = Path(run_config["run_dir"]).glob("faults/*.json")
    assert [place.row for place in Fault.load(file).rows()] == sorted_as(data, 2)


def sorted_as(data, step: int) -> list[int]:
    return [row for pack in data.plan.all_packs(step, world=1) for row, _ in pack]


def test_a_resume_after_a_skipped_step_ends_as_the_run_that_was_not_stopped(smallest):
    whole, broken = (smallest("max_steps=6", "checkpoint_every=2", arm=arm) for arm in ("whole", "broken"))
    fit(whole, Spoil(1))
    train.claim(Path(broken["run_dir"]), broken)
    with pytest.raises(Killed):
        fit(broken, Spoil(1), KillAt(5))
    train.train(broken)
    assert_equal(weights(whole), weights(broken))
    finished = json.loads((Path(broken["run_dir"]) / "finished.json").read_text())
    assert finished["steps"] == 6 and finished["faults/skipped_steps"] == 1


def test_a_run_that_wants_it_stops_at_the_first_fault_and_goes_on_when_told_to_skip(smallest):
    run_config = smallest("max_steps=4", "checkpoint_every=1", "nonfinite=stop")
    train.claim(Path(run_config["run_dir"]), run_config)
    with pytest.raises(RunStopped, match=r"step 2: the loss is .*, the gradient norm .*auris replay fault="):
        fit(run_config, Spoil(2))
    train.train(smallest("max_steps=4", "checkpoint_every=1", "nonfinite=skip"))
    assert json.loads((Path(run_config["run_dir"]) / "finished.json").read_text())["steps"] == 4


def check_alike(one: dict, two: dict) -> None:
    """That two processes skipped the step that one process skipped, named its rows, and learned the same elsewhere."""
    assert_equal(weights(one), weights(two), tolerance=1e-6)
    [ours], [theirs] = (list(Path(run_config["run_dir"]).glob("faults/*.json")) for run_config in (one, two))
    ours, theirs = Fault.load(ours), Fault.load(theirs)
    assert ours.step == theirs.step and (len(ours.ranks), len(theirs.ranks)) == (1, 2)
    assert {place.id for place in ours.rows()} == {place.id for place in theirs.rows()}
    finished = [json.loads((Path(made["run_dir"]) / "finished.json").read_text()) for made in (one, two)]
    assert all(content["faults/skipped_steps"] == content["faults/unusable_rows"] == 1 for content in finished)
    lines = [(Path(run_config["run_dir"]) / "unusable_rows.jsonl").read_text() for run_config in (one, two)]
    assert lines[0] == lines[1] and [json.loads(line)["id"] for line in lines[0].splitlines()] == ["broken"]


def test_sharded_processes_skip_the_step_that_one_of_them_saw_fail(smallest, loud, tmp_path):
    """Two processes, of which only one has the row: the weights are those of one process that skipped the step. One
    command, on one process, finds it."""
    options = ["max_steps=3", "data.rows_per_step=7", f"data.train=[{loud}]"]
    one, two = smallest(*options, arm="one"), smallest(*options, "strategy=fsdp", "trainer.devices=2", arm="two")
    train.train(one)
    assert in_processes(lambda: train.train(two), 2, tmp_path / "two") == [0, 0], read_logs(tmp_path / "two")
    check_alike(one, two)
    [file] = Path(two["run_dir"]).glob("faults/*.json")
    wrong, words = look(file)
    assert wrong == ["loud"] and "weights before the step: " in words


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_processes_agree_under_every_sharding_strategy(smallest, loud, tmp_path, strategy):
    """Of a loss or a gradient that only one of them has, to skip the step or to stop."""
    options = ["max_steps=3", "data.rows_per_step=7", f"data.train=[{loud}]"]
    pair = [*options, f"strategy={strategy}", "trainer.devices=2"]
    one, two, gradient = smallest(*options, arm="one"), smallest(*pair, arm="two"), smallest(*pair, arm="gradient")
    stopped = smallest(*pair, "nonfinite=stop", arm="stopped")
    train.train(one)
    [at] = [Fault.load(file).step for file in Path(one["run_dir"]).glob("faults/*.json")]

    def work() -> None:
        rank = int(os.environ["LOCAL_RANK"])
        train.train(two)
        seen = fit(gradient, *[Spoil((at + 1) % 3)] * rank)  # on the second process alone
        assert seen.callback_metrics["faults/skipped_steps"] == 2 and seen.global_step == 3
        with pytest.raises(RunStopped) as stop:
            train.train(stopped)
        (tmp_path / f"stopped-{rank}").write_text(str(stop.value))

    assert in_processes(work, 2, tmp_path / "log") == [0, 0], read_logs(tmp_path / "log")
    check_alike(one, two)
    assert all(torch.isfinite(tensor).all() for tensor in weights(gradient).values())
    first, second = ((tmp_path / f"stopped-{rank}").read_text() for rank in (0, 1))
    assert f"step {at}: the loss is" in first and "auris replay" in first and f"step {at}: the loss is" in second


# --- workers ---


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`deadly(path, times)`: so many times, reading the file ends the process that reads it, unless it is this one."""
    read, here = audio.read, os.getpid()

    def set_up(path: str, times: int) -> None:
        marks = tmp_path / "marks"
        marks.mkdir()

        def read_or_die(given: Path, *segment: float | None) -> np.ndarray:
            if str(given) == path and os.getpid() != here and len(list(marks.iterdir())) < times:
                (marks / str(os.getpid())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return read(given, *segment)

        monkeypatch.setattr(audio, "read", read_or_die)

    monkeypatch.setattr(loader, "POLL_INTERVAL", 0.2)
    return set_up


def first_clip_of(run_config: dict, step: int) -> str:
    _, data = train.build(run_config)
    data.setup("fit")
    return str(data.rows[data.plan.step(step)[0][0]].clips[0].path)


def test_a_worker_that_dies_costs_the_run_nothing_but_time(smallest, deadly):
    options = ["max_steps=5", "data.num_workers=2"]
    whole, broken = (smallest(*options, arm=arm) for arm in ("whole", "broken"))
    train.train(whole)
    deadly(first_clip_of(broken, 3), times=1)
    train.train(broken)
    assert_equal(weights(whole), weights(broken))
    finished = json.loads((Path(broken["run_dir"]) / "finished.json").read_text())
    assert finished["faults/lost_workers"] == 1 and finished["steps"] == 5


def test_a_row_that_always_costs_its_worker_stops_the_run_and_its_step_is_kept(smallest, deadly):
    run_config = smallest("max_steps=5", "data.num_workers=2", "data.worker_restarts=1")
    path = first_clip_of(run_config, 3)
    deadly(path, times=99)
    with pytest.raises(RunStopped, match=r"workers were lost 2 times at step 3 .*Killed"):
        train.train(run_config)
    [file] = Path(run_config["run_dir"]).glob("faults/*.json")
    _, data = train.build(run_config)
    data.setup("fit")
    assert path in {str(data.rows[place.row].clips[0].path) for place in Fault.load(file).rows()}
    wrong, words = look(file)  # in this process, which the file does not end
    assert wrong == [] and "the weights before the step were not saved" in words


# --- looked at again ---


def look(file: Path, **options) -> tuple[list[str], str]:
    console = Console(record=True, width=200, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    settings = {"checkpoint": None, "accelerator": "cpu"} | options
    wrong = replay.replay(file, **settings, console=console)
    return wrong, console.export_text()


def test_replay_finds_the_faulty_row_with_the_weights_of_the_step(smallest, loud):
    run_config = smallest("max_steps=3", f"data.train=[{loud}]")
    train.train(run_config)
    [file] = Path(run_config["run_dir"]).glob("faults/*.json")
    fault = Fault.load(file)
    wrong, words = look(file)
    assert wrong == ["loud"] and "weights before the step: " in words
    assert all(f"reading {place.id}" in words for place in fault.rows())
    assert cli.main(["replay", f"fault={file}", "accelerator=cpu"]) == 1


def test_a_row_without_a_fault_of_its_own_is_reported_as_such(smallest):
    run_config = smallest("max_steps=3")
    train.claim(Path(run_config["run_dir"]), run_config)
    fit(run_config, Spoil(1))
    [file] = Path(run_config["run_dir"]).glob("faults/*.json")
    wrong, words = look(file)
    assert wrong == [] and "weights before the step: " in words
    shutil.rmtree(file.with_suffix(""))
    _, words = look(file)
    assert "the weights before the step were not saved" in words


def test_rows_that_have_changed_are_refused(smallest, tmp_path):
    run_config = smallest("max_steps=3")
    train.claim(Path(run_config["run_dir"]), run_config)
    fit(run_config, Spoil(1))
    [file] = Path(run_config["run_dir"]).glob("faults/*.json")
    content = json.loads(file.read_text())
    content["ranks"][0][0][0]["id"] = "another"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is no longer 'another': the manifests of the run have changed"):
        look(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match="is not a record of a fault"):
        look(file)
    with pytest.raises(FileNotFoundError, match="expected RUN/faults/step_N.json"):
        look(tmp_path / "no.json")


def test_the_first_module_with_a_non_finite_output_is_named():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with torch.no_grad():
        net[1][0].bias.fill_(float("inf"))
    with watch_nonfinite(net) as wrong:
        net(torch.ones(1, 2))
    assert wrong == ["1.0", "1.1", "1"]
    with watch_nonfinite(net) as wrong:
        net[0](torch.ones(1, 2))
    assert wrong == [] and not net[0]._forward_hooks
