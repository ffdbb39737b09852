"""Tests of the loader: dead or hanging workers are replaced, and every item comes once and in order."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from auris.data import loader
from auris.data.loader import Loader, LoaderError


class Items(Dataset):
    """Dataset whose item n is n. The first `times` attempts to load item `at` call `harm`.

    Attempts are counted by files in `folder`, because every worker is a separate process.
    """

    def __init__(self, folder: Path | None = None, at: int = -1, harm=None, times: int = 1):
        self.folder, self.at, self.harm, self.times = folder, at, harm, times

    def __getitem__(self, number: int) -> torch.Tensor:
        if number == self.at and len(list(self.folder.iterdir())) < self.times:
            (self.folder / str(time.monotonic_ns())).touch()
            self.harm()
        return torch.tensor(number)


def kill_worker() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang_worker() -> None:
    """Hang in a state that only SIGKILL ends."""
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.fixture(autouse=True)
def short_poll_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "POLL_INTERVAL", 0.2)


@pytest.fixture
def restarts() -> list[tuple[int, str]]:
    return []


def load(items: Items, restarts: list, /, start: int = 0, stop: int = 9, **settings) -> Loader:
    settings = {"num_workers": 2, "timeout": 20, "max_restarts": 2} | settings
    return Loader(items, start, stop, on_restart=lambda number, reason: restarts.append((number, reason)), **settings)


def numbers(loaded: Iterable[torch.Tensor]) -> list[int]:
    return [int(item) for item in loaded]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_items_come_in_order_from_the_start_position(num_workers, restarts):
    item_loader = load(Items(), restarts, 3, 7, num_workers=num_workers)
    assert numbers(item_loader) == [3, 4, 5, 6]
    assert len(item_loader) == 7  # Lightning counts from step 0
    assert numbers(load(Items(), restarts, 7, 7, num_workers=num_workers)) == [] and restarts == []


def test_a_worker_that_dies_is_replaced_and_no_item_is_lost(tmp_path, restarts):
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    assert numbers(load(Items(tmp_path, 4, kill_worker), restarts)) == list(range(9))
    [(number, reason)] = restarts
    assert number <= 4 and "Killed (the machine may be out of memory)" in reason
    assert signal.signal(signal.SIGCHLD, before) is signal.SIG_DFL
    assert active_children() == []


def test_the_signal_handler_of_torchs_loader_has_no_effect(tmp_path, restarts, monkeypatch):
    """The first loader of torch in a process installs a handler that raises when any worker dies."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    assert len(list(DataLoader(range(3), num_workers=1))) == 3
    assert signal.getsignal(signal.SIGCHLD).__module__ == signal_handling.__name__
    assert numbers(load(Items(tmp_path, 4, kill_worker), restarts)) == list(range(9)) and len(restarts) == 1


def test_a_worker_killed_between_two_items_is_replaced(restarts):
    """The death of a worker must not raise an error in the code that runs at that time."""
    items = iter(load(Items(), restarts, stop=60))
    first_items = [int(next(items)) for _ in range(3)]
    for worker in active_children():
        os.kill(worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while active_children() and time.monotonic() < deadline:
        sum(range(1000))
    assert first_items + numbers(items) == list(range(60)) and len(restarts) == 1


def test_a_worker_that_hangs_is_replaced_after_the_timeout(tmp_path, restarts):
    started = time.monotonic()
    assert numbers(load(Items(tmp_path, 4, hang_worker), restarts, timeout=1.0)) == list(range(9))
    assert 1.0 < time.monotonic() - started < 15
    [(number, reason)] = restarts
    assert number <= 4 and reason == "no item arrived within 1 s"
    assert active_children() == []


def test_the_error_for_an_item_that_always_kills_its_worker_gives_the_number_of_the_item(tmp_path, restarts):
    with pytest.raises(LoaderError, match=r"lost 3 times at step 4 .*Killed.*data\.num_workers=0") as error:
        numbers(load(Items(tmp_path, 4, kill_worker, times=99), restarts, num_workers=1))
    assert error.value.number == 4 and [number for number, _ in restarts if number == 4] == [4, 4]
    assert active_children() == []


def test_an_error_raised_by_an_item_is_not_a_worker_failure(tmp_path, restarts):
    def fail() -> None:
        raise RuntimeError("DataLoader in name only")  # torch's error for a dead worker starts with this word too

    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader worker"):
        numbers(load(Items(tmp_path, 4, fail), restarts))
    assert restarts == []


def test_the_loader_does_not_use_the_global_random_generator(restarts):
    state = torch.get_rng_state()
    numbers(load(Items(), restarts))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("setting", ["num_workers", "timeout", "max_restarts"])
def test_negative_settings_are_an_error(setting, restarts):
    with pytest.raises(ValueError, match=r"data\.(num_workers|worker_timeout|worker_restarts)=-1: expected 0 or more"):
        load(Items(), restarts, **{setting: -1})
