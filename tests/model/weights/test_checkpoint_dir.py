"""Checkpoints on disk: whole or not used, read by any number of processes, and nothing in them is ever executed."""

from __future__ import annotations

import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from auris.model.weights import checkpoint_dir, checkpoint_io
from auris.model.weights.checkpoint_dir import CheckpointDir, DamagedError
from auris.model.weights.checkpoint_io import SaveError
from auris.training import optim
from support.runs import ROOT, environment
from support.sharded import learn, make

STATE = {"recipe": {"seed": 3, "names": ["a", "é"]}, "validating": False}


class Tied(nn.Module):
    """Parameters of several types and ranks, a tied one, one without elements, a frozen one, and a buffer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3).bfloat16())
        self.tied = self.net[0]
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.scale = nn.Parameter(torch.rand(()))
        self.frozen = nn.Parameter(torch.rand(7), requires_grad=False)
        self.register_buffer("places", torch.arange(seed, seed + 4))

    def loss(self) -> torch.Tensor:
        return sum(p.float().square().sum() for p in self.parameters() if p.requires_grad) * self.scale


def trained(seed: int = 0, steps: int = 2, states: str = "fp32") -> tuple[Tied, torch.optim.Optimizer]:
    module = Tied(seed)
    groups = [{"params": [p for p in module.parameters() if p.requires_grad], "lr": 0.1}]
    optimizer = optim.adamw(groups, betas=(0.8, 0.9), eps=1e-8, states=states)
    for _ in range(steps):
        optimizer.zero_grad()
        module.loss().backward()
        optimizer.step()
    return module, optimizer


def write(folder: Path, step: int, seed: int = 0, best: int | None = None) -> Path:
    module, optimizer = trained(seed)
    state = STATE | {"best": best and {"step": best, "metric": "val/loss", "value": 0.5}}
    return checkpoint_io.save(folder, step, module=module, optimizer=optimizer, state=state)


def same(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("states", ["fp32", "bf16"])
def test_a_module_and_its_optimizer_come_back_bit_by_bit(tmp_path: Path, states: str):
    module, optimizer = trained(seed=1, states=states)
    path = checkpoint_io.save(tmp_path, 2, module=module, optimizer=optimizer, state=STATE)
    other, its_optimizer = trained(seed=2, steps=0, states=states)
    checkpoint_io.restore(CheckpointDir(path), module=other, optimizer=its_optimizer)
    assert same(module, other)
    for one, two in ((module, optimizer), (other, its_optimizer)):  # and they go on alike
        two.zero_grad()
        one.loss().backward()
        two.step()
    assert same(module, other) and its_optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    state = CheckpointDir(path).state
    assert state["recipe"] == STATE["recipe"] and state["step"] == 2


def test_weights_alone_come_back_too(tmp_path: Path):
    module, _ = trained(seed=1)
    path = checkpoint_io.save(tmp_path, 2, module=module, state=STATE)
    other, _ = trained(seed=2)
    checkpoint_io.restore(CheckpointDir(path), module=other)
    assert same(module, other) and not list(path.glob("optimizer-*"))


def test_its_files_are_safetensors_as_the_library_reads_them(tmp_path: Path):
    module, optimizer = trained()
    path = checkpoint_io.save(tmp_path, 2, module=module, optimizer=optimizer, state=STATE)
    stored = load_file(path / "weights-00000-of-00001.safetensors")
    expected = {n: t for n, t in module.state_dict().items() if n != "empty" and not n.startswith("tied.")}
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())


def test_slices_are_those_of_the_whole(tmp_path: Path):
    module, _ = trained()
    tensors = CheckpointDir(write(tmp_path, 2)).tensors(prefix="net.")
    whole = module.net[0].weight
    assert tensors.shape("0.weight") == (5, 3) and tensors.dtype("1.weight") == torch.bfloat16
    for index in ((slice(1, 4),), (slice(0, 5), slice(2, 3)), (slice(4, 5), slice(0, 1)), (slice(2, 2),)):
        assert torch.equal(tensors.read("0.weight", index), whole[index])


@pytest.mark.parametrize("wrong", ["missing", "unexpected", "shape", "groups"])
def test_another_model_is_named_before_anything_is_copied(tmp_path: Path, wrong: str):
    snapshot = CheckpointDir(write(tmp_path, 2))
    module, optimizer = trained(seed=5)
    if wrong == "missing":
        module.register_buffer("more", torch.zeros(1))
    elif wrong == "unexpected":
        del module.places
    elif wrong == "shape":
        module.frozen = nn.Parameter(torch.rand(8), requires_grad=False)
    else:
        optimizer.param_groups[0]["params"].reverse()
    before = module.net[0].weight.clone()
    expected = {
        "missing": "more is missing",
        "unexpected": "places is unexpected",
        "shape": r"frozen has shape \(7,\), expected \(8,\)",
        "groups": "other parameter groups",
    }
    with pytest.raises(ValueError, match=expected[wrong]):
        checkpoint_io.restore(snapshot, module=module, optimizer=optimizer)
    assert torch.equal(module.net[0].weight, before)


# --- damage -------------------------------------------------------------------------------------------------------


def files(path: Path) -> list[Path]:
    return sorted(path.iterdir())


def test_any_flipped_bit_is_noticed(tmp_path: Path):
    path = write(tmp_path, 2)
    dice = random.Random(0)
    assert len(files(path)) == 4
    for file in files(path):
        content = file.read_bytes()
        for _ in range(40):
            at, bit = dice.randrange(len(content)), dice.randrange(8)
            file.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            with pytest.raises(DamagedError):
                CheckpointDir(path).verify()
        file.write_bytes(content)
    CheckpointDir(path).verify()


@pytest.mark.parametrize("how", ["cut", "longer", "empty", "gone"])
def test_a_file_of_another_length_is_noticed(tmp_path: Path, how: str):
    path = write(tmp_path, 2)
    for file in files(path):
        content = file.read_bytes()
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes({"cut": content[:-1], "longer": content + b"\0", "empty": b""}[how])
        with pytest.raises(DamagedError, match=str(file.name) if how != "gone" else None):
            CheckpointDir(path).verify()
        file.write_bytes(content)


def test_the_newest_intact_checkpoint_is_used_and_damaged_ones_are_named(tmp_path: Path):
    for step in (2, 4, 6):
        write(tmp_path / "checkpoints", step, seed=step)
    messages: list[str] = []
    assert checkpoint_dir.find_newest(tmp_path / "checkpoints", warn=messages.append).step == 6 and not messages
    file = tmp_path / "checkpoints/step_00000006/optimizer-00000-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\1\2\3\4")
    (tmp_path / "checkpoints/step_00000004/manifest.json").unlink()
    assert checkpoint_dir.find_newest(tmp_path / "checkpoints", warn=messages.append).step == 2
    assert "optimizer-00000" in messages[0] and "step 6" in messages[0] and "step_00000004" in messages[1]
    assert checkpoint_dir.find(tmp_path).step == 6  # who asks for the model does not read the optimizer
    shutil.rmtree(tmp_path / "checkpoints/step_00000002")
    with pytest.raises(ValueError, match="all 2 checkpoints .* are damaged"):
        checkpoint_dir.find_newest(tmp_path / "checkpoints", warn=messages.append)


def test_the_best_one_is_the_one_that_the_newest_whole_one_names(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    for step in (2, 4):
        write(folder, step)
    with pytest.raises(FileNotFoundError, match="has no best checkpoint"):
        checkpoint_dir.find(tmp_path, "best")
    write(folder, 6, best=2)
    newest = write(folder, 8, best=4)
    assert checkpoint_dir.find(tmp_path, "best").step == 4 and checkpoint_dir.find(tmp_path).step == 8
    with pytest.raises(ValueError, match="which=first: expected last or best"):
        checkpoint_dir.find(tmp_path, "first")
    for altered in (lambda text: text.replace('"step": 4', '"step": 6'), lambda text: text[:-9]):
        text = (newest / "trainer.json").read_text()
        (newest / "trainer.json").write_text(altered(text))
        with pytest.warns(UserWarning, match="trainer.json is damaged.*trying the checkpoint before step 8"):
            assert checkpoint_dir.find(tmp_path, "best").step == 2  # what was the best when step 6 was saved
        (newest / "trainer.json").write_text(text)
    shutil.rmtree(folder / "step_00000004")
    with pytest.raises(DamagedError, match="step_00000004 is not a complete checkpoint"):
        checkpoint_dir.find(tmp_path, "best")


class Executed:
    def __reduce__(self):
        return (pytest.fail, ("a file was executed",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path):
    path = write(tmp_path, 2)
    whole = {file: file.read_bytes() for file in files(path)}
    for file in whole:
        file.write_bytes(pickle.dumps(Executed()))
        with pytest.raises(DamagedError):
            CheckpointDir(path).verify()
        module, optimizer = trained()
        with pytest.raises((DamagedError, ValueError)):
            checkpoint_io.restore(CheckpointDir(path), module=module, optimizer=optimizer)
        file.write_bytes(whole[file])


# --- saving -------------------------------------------------------------------------------------------------------


class Dead(BaseException):
    """What a killed process does not live to catch."""


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, at: int, *removing: str) -> Iterator[None]:
    """A process that is killed in its call number `at` that puts something on the disk or gives it its name."""
    calls = iter(range(100))

    def count(function):
        def counted(*arguments, **options):
            if next(calls) == at:
                raise Dead
            return function(*arguments, **options)

        return counted

    places = [
        (checkpoint_io.os, "fsync"),
        (Path, "rename"),
        (Path, "mkdir"),
        *((checkpoint_io.shutil, one) for one in removing),
    ]
    with monkeypatch.context() as patch:
        for owner, name in places:
            patch.setattr(owner, name, count(getattr(owner, name)))
        with pytest.raises(Dead):
            yield


@pytest.mark.parametrize("at", range(8))
def test_a_process_killed_while_saving_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch, at: int):
    """Each time something is to be on the disk or to get its name, in turn."""
    write(tmp_path, 2, seed=2)
    with dying(monkeypatch, at):
        write(tmp_path, 4, seed=4)
    found = checkpoint_dir.find_newest(tmp_path)
    assert found.step == (4 if at == 7 else 2)  # the last thing is that the new name is on the disk
    write(tmp_path, 4, seed=4)  # what lies around is in nobody's way
    assert checkpoint_dir.find_newest(tmp_path).step == 4
    assert [path.name for path in files(tmp_path)] == ["step_00000002", "step_00000004"]


@pytest.mark.parametrize("at", range(12))
def test_a_process_killed_while_replacing_a_checkpoint_loses_none(tmp_path: Path, monkeypatch, at: int):
    """As one taken in the middle of a validation is, when that is over."""
    write(tmp_path, 2, seed=1)
    with dying(monkeypatch, at, "rmtree"):
        write(tmp_path, 2, seed=2)
    checkpoint_dir.recover(tmp_path)
    assert checkpoint_dir.find_newest(tmp_path).step == 2
    write(tmp_path, 4)
    checkpoint_dir.prune(tmp_path, 4, keep=2)
    assert [path.name for path in files(tmp_path)] == ["step_00000002", "step_00000004"]


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch):
    write(tmp_path, 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_io.os, "fsync", full)
        with pytest.raises(SaveError, match="No space left"):
            write(tmp_path, 4)
    assert [path.name for path in files(tmp_path)] == ["step_00000002"]  # no room is taken for nothing


@pytest.mark.parametrize("wrong", [RuntimeError("out of memory"), MemoryError(), SafetensorError("no header")])
@pytest.mark.parametrize("place", ["_tables", "_make", "_write_own", "_seal"])
def test_every_failure_while_saving_is_a_save_error(tmp_path: Path, monkeypatch, place: str, wrong):
    def fail(*_: object) -> None:
        raise wrong

    write(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_io, place, fail)
        with pytest.raises(SaveError, match=type(wrong).__name__):
            write(tmp_path, 4)
    assert [path.name for path in files(tmp_path)] == ["step_00000002"]


def test_a_step_that_is_taken_again_replaces_its_checkpoint(tmp_path: Path):
    write(tmp_path, 2, seed=1)
    path = write(tmp_path, 2, seed=2)
    other, optimizer = trained(seed=3, steps=0)
    checkpoint_io.restore(CheckpointDir(path), module=other, optimizer=optimizer)
    assert same(other, trained(seed=2)[0]) and files(tmp_path) == [path]


def test_the_newest_and_the_best_are_kept_and_later_ones_are_set_aside(tmp_path: Path):
    for step in (2, 4, 6, 8, 12):
        write(tmp_path, step)
    checkpoint_dir.prune(tmp_path, 8, keep=2, best=2)
    assert checkpoint_dir.list_steps(tmp_path) == [8, 6, 2]
    assert (tmp_path / "damaged-step_00000012").is_dir()


# --- several processes --------------------------------------------------------------------------------------------


def sharded(folder: Path, world: int, *layouts: str) -> None:
    """Go on from the newest checkpoint in so many processes, laid out so."""
    commands = [
        [sys.executable, str(ROOT / "tests/support/sharded.py"), str(rank), str(world), str(folder), *layouts]
        for rank in range(world)
    ]
    processes = [
        subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) for command in commands
    ]
    outputs = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * world, "\n".join(outputs)[-4000:]


def check_strategies(folder: Path, rounds: dict[int, list[str]]) -> CheckpointDir:
    """That the last checkpoint is what one process alone would have come to."""
    net, optimizer = make(seed=9)
    learn(net, optimizer)
    checkpoint_io.save(folder, 1, module=net, optimizer=optimizer, state={})
    for world, layouts in rounds.items():
        sharded(folder, world, *layouts)
    found = checkpoint_dir.find_newest(folder)
    assert found.step == 1 + sum(map(len, rounds.values()))
    for _ in range(found.step - 1):
        learn(net, optimizer)
    other, its_optimizer = make(seed=1)
    checkpoint_io.restore(found, module=other, optimizer=its_optimizer)
    ours, theirs = net.state_dict(), other.state_dict()
    ours |= {f"{n}.{key}": x for n, p in net.named_parameters() for key, x in optimizer.state[p].items()}
    theirs |= {f"{n}.{key}": x for n, p in other.named_parameters() for key, x in its_optimizer.state[p].items()}
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-5, msg=name)
    return found


def test_two_processes_resume_from_one_and_share_the_writing(tmp_path: Path):
    """Of what both have, each writes some; of what is sharded, its own; and nothing twice. Where one fails to save
    at first, both learn of it and go on."""
    found = check_strategies(tmp_path, {2: ["replicated", "fsdp"]})
    n_bytes = sum(tensor.nbytes for tensor in make(seed=9)[0].state_dict().values())
    for number in (2, found.step):
        stored = [load_file(file) for file in sorted((tmp_path / f"step_{number:08d}").glob("weights-*"))]
        sizes = [sum(tensor.nbytes for tensor in part.values()) for part in stored]
        assert len(sizes) == 2 and sum(sizes) == n_bytes and min(sizes) > n_bytes // 8, sizes


@pytest.mark.slow
def test_a_checkpoint_of_any_strategy_can_be_resumed_by_any_other(tmp_path: Path):
    """Replicated, sharded, both, and sharded over tensor parallelism, on 4 and on 3 processes and on one."""
    check_strategies(tmp_path, {4: ["replicated", "fsdp", "hsdp", "fsdp_tp"], 3: ["fsdp", "replicated"]})
