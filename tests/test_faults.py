"""What goes wrong in a run: numbers that are not finite, workers that die, rows of a fault looked at again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from torch import nn

from auris import audio, recipe, reproduce, train
from auris.data import loader
from auris.faults import Fault, RunStopped, watch
from recipes import SMALLEST_MODEL
from runs import ROOT, KillAt, Killed, assert_equal, fit, train_in_a_process, weights


@pytest.fixture
def smallest(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compose a recipe small enough for a test: `smallest("max_steps=4", ...)`."""
    monkeypatch.chdir(ROOT)
    size = [
        "scale=tiny",
        "experiment=qwen2_audio_pretrain",
        f"runs_dir={tmp_path}/runs",
        f"data.root={corpus}",
        f"data.cache_dir={tmp_path}/cache",
        "data.rows_per_step=6",
        *SMALLEST_MODEL,
        "optim.warmup_steps=1",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
        "trainer.enable_progress_bar=false",
        "max_new_tokens=4",
    ]
    return lambda *overrides: recipe.resolve(recipe.compose([*size, *overrides]))


@pytest.fixture
def loud(corpus: Path, tmp_path: Path) -> Path:
    """Speech rows, one of them so loud that its power overflows."""
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    rows = [row | {"audio": str(corpus / row["audio"])} for row in rows if row["task"] == "asr"]
    wave = np.float32(1e30) * np.sin(np.arange(16000), dtype=np.float32)
    soundfile.write(tmp_path / "loud.wav", wave, 16000, subtype="FLOAT")
    rows[4] |= {"id": "loud", "audio": str(tmp_path / "loud.wav"), "duration": 1.0}
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
def test_a_step_that_is_not_finite_moves_nothing_and_the_others_keep_their_place(smallest, kind):
    made = smallest("max_steps=5", f"arm={kind}")
    module, data = train.build(made)
    data.setup("fit")
    row = data.plan.step(2)[0][0] if kind == "loss" else None
    seen = Weights()
    trainer = fit(made, Spoil(2, row), seen)
    before, at, after = seen.seen[1:4]
    assert torch.equal(before, at) and not torch.equal(at, after)
    assert trainer.global_step == 5 and trainer.callback_metrics["faults/skipped_steps"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in weights(made).values())
    [file] = Path(made["run_dir"]).glob("faults/*.json")
    assert [place.row for place in Fault.load(file).places()] == sorted_as(data, 2)


def sorted_as(data, step: int) -> list[int]:
    return [row for pack in data.plan.all_packs(step, world=1) for row, _ in pack]


def test_a_resume_after_a_skipped_step_ends_as_the_run_that_was_not_stopped(smallest):
    whole, broken = (smallest("max_steps=6", "checkpoint_every=2", f"arm={arm}") for arm in ("whole", "broken"))
    fit(whole, Spoil(1))
    train.claim(Path(broken["run_dir"]), broken)
    with pytest.raises(Killed):
        fit(broken, Spoil(1), KillAt(5))
    train.train(broken)
    assert_equal(weights(whole), weights(broken))
    finished = json.loads((Path(broken["run_dir"]) / "finished.json").read_text())
    assert finished["steps"] == 6 and finished["faults/skipped_steps"] == 1


def test_a_run_that_wants_it_stops_at_the_first_fault_and_goes_on_when_told_to_skip(smallest):
    made = smallest("max_steps=4", "checkpoint_every=1", "nonfinite=stop")
    train.claim(Path(made["run_dir"]), made)
    with pytest.raises(RunStopped, match=r"step 2: the loss is .*, the gradient's norm .*auris\.reproduce fault="):
        fit(made, Spoil(2))
    train.train(smallest("max_steps=4", "checkpoint_every=1", "nonfinite=skip"))
    assert json.loads((Path(made["run_dir"]) / "finished.json").read_text())["steps"] == 4


def test_all_ranks_skip_the_step_that_one_of_them_saw_fail(smallest, loud, tmp_path):
    """Two processes, of which only one has the row: the weights are those of one process that skipped the step."""
    options = ["max_steps=3", "data.rows_per_step=7", f"data.train=[{loud}]"]
    one = smallest(*options, "arm=one")
    train.train(one)
    two = smallest(*options, "arm=two", "strategy=ddp", "trainer.devices=2")
    train_in_a_process(two, tmp_path)
    assert_equal(weights(one), weights(two), tolerance=1e-6)
    faults = [Fault.load(file) for made in (one, two) for file in Path(made["run_dir"]).glob("faults/*.json")]
    assert len(faults) == 2 and [len(fault.ranks) for fault in faults] == [1, 2]
    assert faults[0].step == faults[1].step
    assert len({frozenset(place.id for place in fault.places()) for fault in faults}) == 1


# --- workers ---


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`deadly(path, times)`: so many times, reading the file ends the process that reads it, unless it is this one."""
    read, here = audio.read, os.getpid()

    def set_up(path: str, times: int) -> None:
        marks = tmp_path / "marks"
        marks.mkdir()

        def read_or_die(given: Path, **options: object) -> np.ndarray:
            if str(given) == path and os.getpid() != here and len(list(marks.iterdir())) < times:
                (marks / str(os.getpid())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return read(given, **options)

        monkeypatch.setattr(audio, "read", read_or_die)

    monkeypatch.setattr(loader, "LOOK", 0.2)
    return set_up


def first_clip_of(made: dict, step: int) -> str:
    _, data = train.build(made)
    data.setup("fit")
    return str(data.rows[data.plan.step(step)[0][0]].clips[0].path)


def test_a_worker_that_dies_costs_the_run_nothing_but_time(smallest, deadly):
    options = ["max_steps=5", "data.num_workers=2"]
    whole, broken = (smallest(*options, f"arm={arm}") for arm in ("whole", "broken"))
    train.train(whole)
    deadly(first_clip_of(broken, 3), times=1)
    train.train(broken)
    assert_equal(weights(whole), weights(broken))
    finished = json.loads((Path(broken["run_dir"]) / "finished.json").read_text())
    assert finished["faults/lost_workers"] == 1 and finished["steps"] == 5


def test_a_row_that_always_costs_its_worker_stops_the_run_and_its_step_is_kept(smallest, deadly):
    made = smallest("max_steps=5", "data.num_workers=2", "data.worker_restarts=1")
    path = first_clip_of(made, 3)
    deadly(path, times=99)
    with pytest.raises(RunStopped, match=r"workers were lost 2 times over step 3 .*Killed"):
        train.train(made)
    [file] = Path(made["run_dir"]).glob("faults/*.json")
    _, data = train.build(made)
    data.setup("fit")
    assert path in {str(data.rows[place.row].clips[0].path) for place in Fault.load(file).places()}
    wrong, said = look(file)  # in this process, which the file does not end
    assert wrong == [] and "as none of the step were kept" in said


# --- looked at again ---


def look(file: Path, **options) -> tuple[list[str], str]:
    console = Console(record=True, width=200, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    settings = {"checkpoint": None, "accelerator": "cpu"} | options
    wrong = reproduce.reproduce(file, **settings, console=console)
    return wrong, console.export_text()


def test_the_row_at_fault_is_found_with_the_weights_of_the_step(smallest, loud, monkeypatch):
    made = smallest("max_steps=3", f"data.train=[{loud}]")
    train.train(made)
    [file] = Path(made["run_dir"]).glob("faults/*.json")
    fault = Fault.load(file)
    wrong, said = look(file)
    assert wrong == ["loud"] and "weights: those of the step" in said
    assert all(f"reading {place.id}" in said for place in fault.places())
    monkeypatch.setattr(sys, "argv", ["auris.reproduce", f"fault={file}", "accelerator=cpu"])
    with pytest.raises(SystemExit) as done:
        reproduce.main()
    assert done.value.code == 1


def test_a_row_that_is_fine_by_itself_is_said_to_be(smallest):
    made = smallest("max_steps=3")
    train.claim(Path(made["run_dir"]), made)
    fit(made, Spoil(1))
    [file] = Path(made["run_dir"]).glob("faults/*.json")
    wrong, said = look(file)
    assert wrong == [] and "weights: those of the step" in said
    shutil.rmtree(file.with_suffix(""))
    _, said = look(file)
    assert "as none of the step were kept" in said


def test_rows_that_are_not_what_they_were_are_refused(smallest, tmp_path):
    made = smallest("max_steps=3")
    train.claim(Path(made["run_dir"]), made)
    fit(made, Spoil(1))
    [file] = Path(made["run_dir"]).glob("faults/*.json")
    content = json.loads(file.read_text())
    content["ranks"][0][0][0]["id"] = "another"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not 'another' any more: the manifests of the run have changed"):
        look(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match="is no file of a fault"):
        look(file)
    with pytest.raises(FileNotFoundError, match="expected RUN/faults/step=N.json"):
        look(tmp_path / "no.json")


def test_the_first_module_that_puts_out_what_is_not_finite_is_named():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with torch.no_grad():
        net[1][0].bias.fill_(float("inf"))
    with watch(net) as wrong:
        net(torch.ones(1, 2))
    assert wrong == ["1.0", "1.1", "1"]
    with watch(net) as wrong:
        net[0](torch.ones(1, 2))
    assert wrong == [] and not net[0]._forward_hooks
