"""Checkpoints on disk: complete or ignored, readable by any number of processes, and never executed as code."""

from __future__ import annotations

import pickle
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
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
from support.runs import in_processes, read_logs
from support.sharded import learn, make, resume

pytestmark = pytest.mark.usefixtures("single_thread")

STATE = {"recipe": {"seed": 3, "names": ["a", "é"]}, "validating": False}


class Tied(nn.Module):
    """A module with tied, empty, scalar and frozen parameters, parameters of two dtypes, and a buffer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3).bfloat16())
        self.tied = self.net[0]
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.scale = nn.Parameter(torch.rand(()))
        self.frozen = nn.Parameter(torch.rand(7), requires_grad=False)
        self.register_buffer("positions", torch.arange(seed, seed + 4))

    def loss(self) -> torch.Tensor:
        return sum(p.float().square().sum() for p in self.parameters() if p.requires_grad) * self.scale


def build_trained(seed: int = 0, steps: int = 2, moments: str = "fp32") -> tuple[Tied, torch.optim.Optimizer]:
    module = Tied(seed)
    groups = [{"params": [p for p in module.parameters() if p.requires_grad], "lr": 0.1}]
    optimizer = optim.adamw(groups, betas=(0.8, 0.9), eps=1e-8, states=moments)
    for _ in range(steps):
        optimizer.zero_grad()
        module.loss().backward()
        optimizer.step()
    return module, optimizer


def save_checkpoint(folder: Path, step: int, seed: int = 0, best: int | None = None) -> Path:
    module, optimizer = build_trained(seed)
    state = STATE | {"best": best and {"step": best, "metric": "val/loss", "value": 0.5}}
    return checkpoint_io.save(folder, step, module=module, optimizer=optimizer, state=state)


def states_equal(left: nn.Module, right: nn.Module) -> bool:
    left_state, right_state = left.state_dict(), right.state_dict()
    return left_state.keys() == right_state.keys() and all(
        torch.equal(left_state[name], right_state[name]) for name in left_state
    )


@pytest.mark.parametrize("moments", ["fp32", "bf16"])
def test_a_module_and_its_optimizer_are_restored_exactly(tmp_path: Path, moments: str):
    module, optimizer = build_trained(seed=1, moments=moments)
    path = checkpoint_io.save(tmp_path, 2, module=module, optimizer=optimizer, state=STATE)
    restored, restored_optimizer = build_trained(seed=2, steps=0, moments=moments)
    checkpoint_io.restore(CheckpointDir(path), module=restored, optimizer=restored_optimizer)
    assert states_equal(module, restored)
    for net, its_optimizer in ((module, optimizer), (restored, restored_optimizer)):  # both continue in the same way
        its_optimizer.zero_grad()
        net.loss().backward()
        its_optimizer.step()
    assert states_equal(module, restored) and restored_optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    state = CheckpointDir(path).state
    assert state["recipe"] == STATE["recipe"] and state["step"] == 2


def test_weights_are_restored_without_an_optimizer(tmp_path: Path):
    module, _ = build_trained(seed=1)
    path = checkpoint_io.save(tmp_path, 2, module=module, state=STATE)
    restored, _ = build_trained(seed=2)
    checkpoint_io.restore(CheckpointDir(path), module=restored)
    assert states_equal(module, restored) and not list(path.glob("optimizer-*"))


def test_the_weights_file_is_readable_by_the_safetensors_library(tmp_path: Path):
    module, optimizer = build_trained()
    path = checkpoint_io.save(tmp_path, 2, module=module, optimizer=optimizer, state=STATE)
    stored = load_file(path / "weights-00000-of-00001.safetensors")
    expected = {n: t for n, t in module.state_dict().items() if n != "empty" and not n.startswith("tied.")}
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())


def test_slices_read_from_disk_equal_slices_of_the_tensor(tmp_path: Path):
    module, _ = build_trained()
    tensors = CheckpointDir(save_checkpoint(tmp_path, 2)).tensors(prefix="net.")
    weight = module.net[0].weight
    assert tensors.shape("0.weight") == (5, 3) and tensors.dtype("1.weight") == torch.bfloat16
    for index in ((slice(1, 4),), (slice(0, 5), slice(2, 3)), (slice(4, 5), slice(0, 1)), (slice(2, 2),)):
        assert torch.equal(tensors.read("0.weight", index), weight[index])


@pytest.mark.parametrize("mismatch", ["missing", "unexpected", "shape", "groups"])
def test_a_mismatch_with_the_model_is_reported_before_anything_is_copied(tmp_path: Path, mismatch: str):
    checkpoint = CheckpointDir(save_checkpoint(tmp_path, 2))
    module, optimizer = build_trained(seed=5)
    if mismatch == "missing":
        module.register_buffer("more", torch.zeros(1))
    elif mismatch == "unexpected":
        del module.positions
    elif mismatch == "shape":
        module.frozen = nn.Parameter(torch.rand(8), requires_grad=False)
    else:
        optimizer.param_groups[0]["params"].reverse()
    before = module.net[0].weight.clone()
    expected = {
        "missing": "more is missing",
        "unexpected": "positions is unexpected",
        "shape": r"frozen has shape \(7,\), expected \(8,\)",
        "groups": "other parameter groups",
    }
    with pytest.raises(ValueError, match=expected[mismatch]):
        checkpoint_io.restore(checkpoint, module=module, optimizer=optimizer)
    assert torch.equal(module.net[0].weight, before)


# --- damage -------------------------------------------------------------------------------------------------------


def files(path: Path) -> list[Path]:
    return sorted(path.iterdir())


def test_any_flipped_bit_is_detected(tmp_path: Path):
    path = save_checkpoint(tmp_path, 2)
    rng = random.Random(0)
    assert len(files(path)) == 4
    for file in files(path):
        content = file.read_bytes()
        for _ in range(40):
            position, bit = rng.randrange(len(content)), rng.randrange(8)
            file.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
            with pytest.raises(DamagedError):
                CheckpointDir(path).verify()
        file.write_bytes(content)
    CheckpointDir(path).verify()


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "gone"])
def test_a_changed_file_length_is_detected(tmp_path: Path, damage: str):
    path = save_checkpoint(tmp_path, 2)
    for file in files(path):
        content = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes({"cut": content[:-1], "longer": content + b"\0", "empty": b""}[damage])
        with pytest.raises(DamagedError, match=str(file.name) if damage != "gone" else None):
            CheckpointDir(path).verify()
        file.write_bytes(content)


def test_the_newest_intact_checkpoint_is_used_and_damaged_ones_are_named(tmp_path: Path):
    for step in (2, 4, 6):
        save_checkpoint(tmp_path / "checkpoints", step, seed=step)
    messages: list[str] = []
    assert checkpoint_dir.find_newest(tmp_path / "checkpoints", warn=messages.append).step == 6 and not messages
    file = tmp_path / "checkpoints/step_00000006/optimizer-00000-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\1\2\3\4")
    (tmp_path / "checkpoints/step_00000004/manifest.json").unlink()
    assert checkpoint_dir.find_newest(tmp_path / "checkpoints", warn=messages.append).step == 2
    assert "optimizer-00000" in messages[0] and "step 6" in messages[0] and "step_00000004" in messages[1]
    assert checkpoint_dir.find(tmp_path).step == 6  # `find` reads only the model, not the damaged file of the optimizer
    shutil.rmtree(tmp_path / "checkpoints/step_00000002")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged \(number: 2\)"):
        checkpoint_dir.find_newest(tmp_path / "checkpoints", warn=messages.append)


def test_the_best_checkpoint_is_the_one_named_by_the_newest_intact_checkpoint(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    for step in (2, 4):
        save_checkpoint(folder, step)
    with pytest.raises(FileNotFoundError, match="has no best checkpoint"):
        checkpoint_dir.find(tmp_path, "best")
    save_checkpoint(folder, 6, best=2)
    newest = save_checkpoint(folder, 8, best=4)
    assert checkpoint_dir.find(tmp_path, "best").step == 4 and checkpoint_dir.find(tmp_path).step == 8
    with pytest.raises(ValueError, match="which=first: expected last or best"):
        checkpoint_dir.find(tmp_path, "first")
    for damage in (lambda text: text.replace('"step": 4', '"step": 6'), lambda text: text[:-9]):
        text = (newest / "trainer.json").read_text()
        (newest / "trainer.json").write_text(damage(text))
        with pytest.warns(UserWarning, match="trainer.json is damaged.*trying the checkpoint before step 8"):
            assert checkpoint_dir.find(tmp_path, "best").step == 2  # the best when step 6 was saved
        (newest / "trainer.json").write_text(text)
    shutil.rmtree(folder / "step_00000004")
    with pytest.raises(DamagedError, match="step_00000004 is not a complete checkpoint"):
        checkpoint_dir.find(tmp_path, "best")


class Executed:
    def __reduce__(self):
        return (pytest.fail, ("a file was executed",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path):
    path = save_checkpoint(tmp_path, 2)
    contents = {file: file.read_bytes() for file in files(path)}
    for file in contents:
        file.write_bytes(pickle.dumps(Executed()))
        with pytest.raises(DamagedError):
            CheckpointDir(path).verify()
        module, optimizer = build_trained()
        with pytest.raises((DamagedError, ValueError)):
            checkpoint_io.restore(CheckpointDir(path), module=module, optimizer=optimizer)
        file.write_bytes(contents[file])


# --- saving -------------------------------------------------------------------------------------------------------


class ProcessKilled(BaseException):
    """The end of a killed process. As a BaseException, it passes every `except Exception`."""


@contextmanager
def killed_at_call(monkeypatch: pytest.MonkeyPatch, call_number: int, *removals: str) -> Iterator[None]:
    """Simulate a kill in the disk operation with this number.

    Operations are flushes to disk, renames, new directories and the functions of `shutil` named in `removals`.
    """
    calls = iter(range(100))

    def count(function):
        def counting(*arguments, **options):
            if next(calls) == call_number:
                raise ProcessKilled
            return function(*arguments, **options)

        return counting

    targets = [
        (checkpoint_io.os, "fsync"),
        (Path, "rename"),
        (Path, "mkdir"),
        *((checkpoint_io.shutil, name) for name in removals),
    ]
    with monkeypatch.context() as patch:
        for owner, name in targets:
            patch.setattr(owner, name, count(getattr(owner, name)))
        with pytest.raises(ProcessKilled):
            yield


@pytest.mark.parametrize("call_number", range(8))
def test_a_process_killed_while_saving_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch, call_number: int):
    """The kill hits each disk operation of the save in turn."""
    save_checkpoint(tmp_path, 2, seed=2)
    with killed_at_call(monkeypatch, call_number):
        save_checkpoint(tmp_path, 4, seed=4)
    newest = checkpoint_dir.find_newest(tmp_path)
    # The last operation only flushes the new name to disk: a kill during it comes after the save.
    assert newest.step == (4 if call_number == 7 else 2)
    save_checkpoint(tmp_path, 4, seed=4)  # leftover files do not disturb the next save
    assert checkpoint_dir.find_newest(tmp_path).step == 4
    assert [path.name for path in files(tmp_path)] == ["step_00000002", "step_00000004"]


@pytest.mark.parametrize("call_number", range(12))
def test_a_process_killed_while_replacing_a_checkpoint_loses_no_checkpoint(
    tmp_path: Path, monkeypatch, call_number: int
):
    """A checkpoint saved during a validation is replaced when the validation ends."""
    save_checkpoint(tmp_path, 2, seed=1)
    with killed_at_call(monkeypatch, call_number, "rmtree"):
        save_checkpoint(tmp_path, 2, seed=2)
    checkpoint_dir.recover(tmp_path)
    assert checkpoint_dir.find_newest(tmp_path).step == 2
    save_checkpoint(tmp_path, 4)
    checkpoint_dir.prune(tmp_path, 4, keep=2)
    assert [path.name for path in files(tmp_path)] == ["step_00000002", "step_00000004"]


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch):
    save_checkpoint(tmp_path, 2)

    def refuse_write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_io.os, "fsync", refuse_write)
        with pytest.raises(SaveError, match="No space left"):
            save_checkpoint(tmp_path, 4)
    assert [path.name for path in files(tmp_path)] == ["step_00000002"]  # the failed save leaves no files behind


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError(), SafetensorError("no header")])
@pytest.mark.parametrize("function", ["_collect_tensors", "_make_empty", "_write_own", "_seal"])
def test_every_failure_while_saving_is_a_save_error(tmp_path: Path, monkeypatch, function: str, error):
    def fail(*_: object) -> None:
        raise error

    save_checkpoint(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_io, function, fail)
        with pytest.raises(SaveError, match=type(error).__name__):
            save_checkpoint(tmp_path, 4)
    assert [path.name for path in files(tmp_path)] == ["step_00000002"]


def test_saving_a_step_again_replaces_its_checkpoint(tmp_path: Path):
    save_checkpoint(tmp_path, 2, seed=1)
    path = save_checkpoint(tmp_path, 2, seed=2)
    restored, optimizer = build_trained(seed=3, steps=0)
    checkpoint_io.restore(CheckpointDir(path), module=restored, optimizer=optimizer)
    assert states_equal(restored, build_trained(seed=2)[0]) and files(tmp_path) == [path]


def test_pruning_keeps_the_newest_and_the_best_checkpoints_and_sets_those_of_later_steps_aside(tmp_path: Path):
    for step in (2, 4, 6, 8, 12):
        save_checkpoint(tmp_path, step)
    checkpoint_dir.prune(tmp_path, 8, keep=2, best=2)  # step 12 is later than the newest saved step
    assert checkpoint_dir.list_steps(tmp_path) == [8, 6, 2]
    assert (tmp_path / "damaged-step_00000012").is_dir()


# --- several processes --------------------------------------------------------------------------------------------


def run_processes(folder: Path, world: int, *strategies: str) -> None:
    """Continue training from the newest checkpoint in `world` processes, once under each strategy."""
    logs = folder.with_name(f"logs_{world}")
    assert in_processes(partial(resume, world, folder, strategies), world, logs) == [0] * world, read_logs(logs)


def check_strategies(folder: Path, rounds: dict[int, list[str]]) -> CheckpointDir:
    """Save on one process, continue in every round, and compare with training on a single process.

    Args:
        folder: Folder of the checkpoints.
        rounds: {number of processes: the strategies under which they continue, one step each}.
    """
    net, optimizer = make(seed=9)
    learn(net, optimizer)
    checkpoint_io.save(folder, 1, module=net, optimizer=optimizer, state={})
    for world, strategies in rounds.items():
        run_processes(folder, world, *strategies)
    newest = checkpoint_dir.find_newest(folder)
    assert newest.step == 1 + sum(map(len, rounds.values()))
    for _ in range(newest.step - 1):
        learn(net, optimizer)
    restored, restored_optimizer = make(seed=1)
    checkpoint_io.restore(newest, module=restored, optimizer=restored_optimizer)
    expected, actual = net.state_dict(), restored.state_dict()
    expected |= {f"{n}.{key}": x for n, p in net.named_parameters() for key, x in optimizer.state[p].items()}
    actual |= {
        f"{n}.{key}": x for n, p in restored.named_parameters() for key, x in restored_optimizer.state[p].items()
    }
    assert expected.keys() == actual.keys()
    for name in expected:
        torch.testing.assert_close(expected[name], actual[name], atol=1e-6, rtol=1e-5, msg=name)
    return newest


def test_two_processes_resume_a_checkpoint_of_one_process_and_each_writes_a_part(tmp_path: Path):
    """Each process writes some replicated tensors and its own part of the sharded ones. Nothing is written twice.

    Under each strategy, the first save fails on one process. Both processes learn of it and save again.
    """
    newest = check_strategies(tmp_path, {2: ["replicated", "fsdp"]})
    n_bytes = sum(tensor.nbytes for tensor in make(seed=9)[0].state_dict().values())
    for step in (2, newest.step):
        stored = [load_file(file) for file in sorted((tmp_path / f"step_{step:08d}").glob("weights-*"))]
        sizes = [sum(tensor.nbytes for tensor in part.values()) for part in stored]
        assert len(sizes) == 2 and sum(sizes) == n_bytes and min(sizes) > n_bytes // 8, sizes


@pytest.mark.slow
def test_a_checkpoint_of_any_strategy_can_be_resumed_by_any_other_strategy(tmp_path: Path):
    """Replicated, sharded, hybrid, and sharded with tensor parallelism, on 4, 3 and 1 processes."""
    check_strategies(tmp_path, {4: ["replicated", "fsdp", "hsdp", "fsdp_tp"], 3: ["fsdp", "replicated"]})
