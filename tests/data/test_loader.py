"""The loader goes on when its workers die or hang: every item comes once, in order, or the run is told why not."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from auris.data import loader
from auris.data.loader import Loader, LoaderError


class Items(Dataset):
    """Item n is n. Before it makes item `at`, a process does `harm` as often as `folder` has no mark of it."""

    def __init__(self, folder: Path | None = None, at: int = -1, harm=None, times: int = 1):
        self.folder, self.at, self.harm, self.times = folder, at, harm, times

    def __getitem__(self, number: int) -> torch.Tensor:
        if number == self.at and len(list(self.folder.iterdir())) < self.times:
            (self.folder / str(time.monotonic_ns())).touch()
            self.harm()
        return torch.tensor(number)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """Hangs so that only SIGKILL helps."""
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "POLL_INTERVAL", 0.2)


@pytest.fixture
def restarts() -> list[tuple[int, str]]:
    return []


def load(items: Items, calls: list, /, start: int = 0, stop: int = 9, **settings) -> Loader:
    settings = {"num_workers": 2, "timeout": 20, "restarts": 2} | settings
    return Loader(items, start, stop, on_restart=lambda number, reason: calls.append((number, reason)), **settings)


def numbers(items: Loader) -> list[int]:
    return [int(item) for item in items]


@pytest.mark.parametrize("workers", [0, 2])
def test_items_come_in_order_from_the_position_of_the_run(workers, restarts):
    items = load(Items(), restarts, 3, 7, num_workers=workers)
    assert numbers(items) == [3, 4, 5, 6] and len(items) == 7
    assert numbers(load(Items(), restarts, 7, 7, num_workers=workers)) == [] and restarts == []


def test_a_worker_that_dies_is_replaced_and_no_item_is_lost(tmp_path, restarts):
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    assert numbers(load(Items(tmp_path, 4, die), restarts)) == list(range(9))
    [(number, reason)] = restarts
    assert number <= 4 and "Killed (the machine may be out of memory)" in reason
    assert signal.signal(signal.SIGCHLD, before) is signal.SIG_DFL
    assert active_children() == []


def test_an_earlier_loader_of_another_library_has_no_effect(tmp_path, restarts, monkeypatch):
    """torch's loader leaves a handler behind, once in a process, that raises when any worker dies."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    assert len(list(DataLoader(range(3), num_workers=1))) == 3
    assert signal.getsignal(signal.SIGCHLD).__module__ == signal_handling.__name__
    assert numbers(load(Items(tmp_path, 4, die), restarts)) == list(range(9)) and len(restarts) == 1


def test_a_worker_killed_from_outside_while_the_run_computes_is_replaced(restarts):
    """Its death must not raise in whatever the run is doing then."""
    items = iter(load(Items(), restarts, stop=60))
    taken = [int(next(items)) for _ in range(3)]
    for worker in active_children():
        os.kill(worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while active_children() and time.monotonic() < deadline:
        sum(range(1000))
    assert taken + numbers(items) == list(range(60)) and len(restarts) == 1


def test_a_worker_that_hangs_is_replaced_after_the_timeout(tmp_path, restarts):
    started = time.monotonic()
    assert numbers(load(Items(tmp_path, 4, stop), restarts, timeout=1.0)) == list(range(9))
    assert 1.0 < time.monotonic() - started < 15
    [(number, reason)] = restarts
    assert number <= 4 and reason == "no item arrived within 1 s"
    assert active_children() == []


def test_an_item_that_always_costs_its_worker_ends_the_run_with_its_number(tmp_path, restarts):
    with pytest.raises(LoaderError, match=r"lost 3 times at step 4 .*Killed.*data\.num_workers=0") as error:
        numbers(load(Items(tmp_path, 4, die, times=99), restarts, num_workers=1))
    assert error.value.number == 4 and [number for number, _ in restarts if number == 4] == [4, 4]
    assert active_children() == []


def test_an_error_raised_by_an_item_is_not_a_worker_failure(tmp_path, restarts):
    def fail() -> None:
        raise RuntimeError("DataLoader in name only")

    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader worker"):
        numbers(load(Items(tmp_path, 4, fail), restarts))
    assert restarts == []


def test_the_runs_own_random_numbers_are_not_touched(restarts):
    state = torch.get_rng_state()
    numbers(load(Items(), restarts))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("setting", ["num_workers", "timeout", "restarts"])
def test_settings_below_zero_are_refused(setting, restarts):
    with pytest.raises(ValueError, match=r"data\.(num_workers|worker_timeout|worker_restarts)=-1: expected 0 or more"):
        load(Items(), restarts, **{setting: -1})
