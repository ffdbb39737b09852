"""`max_minutes`: the number of steps follows from the speed of a trial, and a resumed run keeps it."""

import pytest

from auris import config
from auris.errors import UserError
from auris.files import read_json
from auris.training import run as train
from auris.training import time_limit
from support.recipes import smallest_run
from support.runs import ROOT, KillAt, Killed, assert_equal, weights

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.mark.parametrize(("minutes", "steps"), [(10, 100), (1, 30), (0.7, 21)])
def test_there_are_as_many_steps_as_the_time_allows(tmp_path, minutes, steps):
    chosen = time_limit.choose_steps(tmp_path, 2.0, max_steps=100, warmup_steps=5, minutes=minutes)
    assert chosen == time_limit.read_steps(tmp_path) == steps


@pytest.mark.parametrize(("seconds", "enough"), [(1.9, 0.2), (2.1, 0.3), (1e-6, 0.1)])
def test_less_time_than_the_warm_up_takes_is_an_error(tmp_path, seconds, enough):
    settings = {"max_steps": 100, "warmup_steps": 5}
    expected = rf"is enough for 5 steps of {seconds:g} s, .*warmup_steps=5: set max_minutes={enough} or more"
    with pytest.raises(UserError, match=expected):
        time_limit.choose_steps(tmp_path, seconds, **settings, minutes=5.5 * seconds / 60)
    assert time_limit.read_steps(tmp_path) is None
    assert time_limit.choose_steps(tmp_path, seconds, **settings, minutes=enough) > 5


@pytest.fixture
def compose_run(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    size = smallest_run(corpus, tmp_path)
    return lambda *overrides: config.resolve(config.compose([*size, *overrides]))


def test_a_limited_run_equals_a_run_with_that_number_of_steps(compose_run, tmp_path, monkeypatch):
    """The trial leaves no trace in the weights, and the schedule ends with the last step."""
    monkeypatch.setattr(time_limit, "median", lambda durations: 10.0)  # seconds a step
    intervals = ["checkpoint_every=2", "trainer.val_check_interval=8"]  # one validation, after the last step
    limited = compose_run("max_steps=9", "max_minutes=0.5", *intervals, f"run_dir={tmp_path}/limited")
    train.train(limited)
    assert read_json(tmp_path / "limited/finished.json")["steps"] == 3
    intervals = ["checkpoint_every=2", "trainer.val_check_interval=3"]
    short = compose_run("max_steps=3", *intervals, f"run_dir={tmp_path}/short")
    train.train(short)
    assert_equal(weights(limited), weights(short))


def test_a_run_without_a_checkpoint_is_measured_again(compose_run, tmp_path, monkeypatch):
    folder = tmp_path / "limited"
    time_limit.choose_steps(folder, 10.0, max_steps=9, warmup_steps=1, minutes=0.5)
    monkeypatch.setattr(time_limit, "median", lambda durations: 10.0)
    train.train(compose_run("max_steps=9", "max_minutes=0.7", f"run_dir={folder}"))
    assert read_json(folder / "finished.json")["steps"] == 4


def test_a_resumed_run_keeps_the_number_of_steps(compose_run, tmp_path, monkeypatch):
    monkeypatch.setattr(time_limit, "median", lambda durations: 10.0)
    limited = compose_run("max_steps=9", "max_minutes=0.5", "checkpoint_every=2", f"run_dir={tmp_path}/limited")
    build_callbacks = train.build_callbacks

    def stop_at_2(settings, preemption):
        built = build_callbacks(settings, preemption)
        return built if settings["max_steps"] == time_limit.TRIAL_STEPS else [*built, KillAt(2)]

    monkeypatch.setattr(train, "build_callbacks", stop_at_2)
    with pytest.raises(Killed):
        train.train(limited)
    monkeypatch.setattr(train, "build_callbacks", build_callbacks)
    monkeypatch.setattr(time_limit, "median", lambda durations: 1.0)  # a second trial would allow 9 steps
    train.train(limited)
    assert read_json(tmp_path / "limited/finished.json")["steps"] == 3
