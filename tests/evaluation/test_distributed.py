"""Evaluation by several processes is that of one: the same files and the same end, whatever goes wrong on which."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from auris import cli, config
from auris.evaluation import distributed
from auris.evaluation.distributed import Ranks, joined
from auris.training import run as train
from support.manifests import write_wave
from support.recipes import smallest_run
from support.runs import ROOT, environment, in_processes, read_logs, start


class Threads(Ranks):
    """Threads that meet as processes do."""

    def __init__(self, rank: int, table: list, barrier: threading.Barrier):
        super().__init__(rank, len(table))
        object.__setattr__(self, "meeting", (table, barrier))

    def exchange(self, value: object) -> list:
        table, barrier = self.meeting
        table[self.rank] = value
        barrier.wait(10)
        met = list(table)
        barrier.wait(10)
        return met


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("n_shares", [0, 1, 4, 6])
def test_shares_are_answered_once_and_merged_in_order(world: int, n_shares: int):
    shares = [[10 * number, 10 * number + 1] for number in range(n_shares)]
    table, barrier, asked = [None] * world, threading.Barrier(world), []

    def work(rank: int) -> list:
        def ask(share: Sequence[int]) -> tuple:
            asked.append(share[0])
            return ({number: (f"said {number}", None) for number in share}, {})

        return list(Threads(rank, table, barrier).map(ask, shares))

    with ThreadPoolExecutor(world) as pool:
        found = list(pool.map(work, range(world)))
    expected = [({number: (f"said {number}", None) for number in share}, {}) for share in shares]
    assert all(given == expected for given in found) and sorted(asked) == [share[0] for share in shares]


def processes(work: Callable[[Ranks], object]) -> Callable[[], None]:
    """What a process of a job does with an entry point's way of ending."""

    def entry() -> None:
        os.environ["RANK"] = os.environ.get("LOCAL_RANK", "0")
        try:
            with joined("cpu") as job:
                work(job)
        except ValueError as error:
            print(f"error: {error}")
            sys.exit(1)

    return entry


def test_an_error_in_any_process_ends_all_and_is_reported_once(tmp_path: Path):
    def run(name: str, work: Callable[[Ranks], object]) -> tuple[list, str]:
        return in_processes(processes(work), 2, tmp_path / name), read_logs(tmp_path / name).strip()

    def helper_fails(job: Ranks) -> None:
        assert job.exchange(job.rank) == [0, 1]
        if not job.is_first:
            raise ValueError("an unreadable file")
        job.exchange(None)
        raise AssertionError("it went on")

    def first_fails(job: Ranks) -> None:  # the other one is done
        if job.is_first:
            raise ValueError("no judge")

    def both_fail(job: Ranks) -> None:
        raise ValueError("no such checkpoint")

    assert run("helper", helper_fails) == ([0, 1], "error: an unreadable file")
    assert run("first", first_fails) == ([1, 0], "error: no judge")
    assert run("both", both_fail) == ([1, 0], "error: no such checkpoint")
    assert run("none", lambda job: job.exchange(1)) == ([0, 0], "")


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch):
    taken = []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    distributed._take_gpu(1)
    with pytest.raises(ValueError, match="--nproc-per-node=3, but only 2 GPUs are visible"):
        distributed._take_gpu(2)
    assert taken == [1]


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        options = ["experiment=qwen2_audio_pretrain", "max_steps=2", "seed=1"]
        run_config = config.resolve(config.compose([*smallest_run(corpus, folder), *options]))
        train.train(run_config)
    return Path(run_config["run_dir"])


@pytest.fixture(scope="module")
def rows(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of every kind, with a long clip, a verdict, a preference, a file that is gone and one that breaks off."""
    folder = tmp_path_factory.mktemp("rows")
    given = [json.loads(line) for line in (corpus / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    run_config = [
        {**row, "audio": str(corpus / row["audio"])} for row in given if row["task"] in ("asr", "sec", "s2tt")
    ]
    clips = [{"type": "audio", "audio": row["audio"]} for row in run_config[:6]]
    write_wave(folder / "long.wav", 40.0)
    write_wave(folder / "broken.wav", 1.0)
    os.truncate(folder / "broken.wav", 2000)  # shorter than its header says
    asr = {"task": "asr", "language": "en", "text": "the red fox"}
    run_config += [{"id": "long", "audio": "long.wav", **asr}, {"id": "gone", "audio": "gone.wav", **asr}]
    run_config += [{"id": "broken", "audio": "broken.wav", "duration": 1.0, **asr}]
    for number, (one, other) in enumerate(itertools.pairwise(clips)):
        pair = {"audio": [one["audio"], other["audio"]], "task": "sv", "text": ("yes", "no")[number % 2]}
        user = [{"role": "user", "content": [one, {"type": "text", "text": "what is it?"}]}]
        answer = {"role": "assistant", "content": f"it is {number}"}
        run_config += [
            {"id": f"v{number}", **pair},
            {"id": f"d{number}", "messages": [*user, answer], "key": str(number)},
        ]
        run_config += [{"id": f"p{number}", "messages": user, "chosen": "a dog barks", "rejected": "no" * (number + 1)}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run_config), encoding="utf-8")
    return folder / "rows.jsonl"


SAMPLED = ["generation.do_sample=true", "generation.temperature=1.5", "seed=3"]


def asked(run: Path, *options: str) -> list[str]:
    given = [f"checkpoint={run}", "benchmark.name=mixed", "token_budget=200", "bootstrap=20", "accelerator=cpu"]
    return [*given, "generation.max_new_tokens=8", *options]


def work_of(*options: str) -> Callable[[], None]:
    """`auris evaluate ...` in a process that has its imports."""

    def work() -> None:
        os.chdir(ROOT)
        os.environ["RANK"] = os.environ.get("LOCAL_RANK", "0")
        sys.exit(cli.main(["evaluate", *options]))

    return work


def files(run: Path) -> dict[str, bytes]:
    """All that evaluations have written, but how they were called."""
    kept = [path for folder in ("answers", "predictions") for path in sorted((run / folder).glob("*.json*"))]
    return {str(path.relative_to(run)): path.read_bytes() for path in [*kept, run / "results.jsonl"]}


@pytest.mark.slow
@pytest.mark.parametrize("options", [["audio=all", "judge=rule"], SAMPLED], ids=["greedy", "sampled"])
def test_any_number_of_processes_writes_the_same_files_as_one(
    trained: Path, rows: Path, tmp_path: Path, options: list[str]
):
    found = {}
    for world in (1, 2, 3):
        run = shutil.copytree(trained, tmp_path / f"{world}/{trained.name}")
        given = asked(run, f"benchmark.test=[{rows}]", *options)
        assert in_processes(work_of(*given), world, tmp_path / f"log{world}") == [0] * world, read_logs(tmp_path)
        found[world] = files(run)
        others = [(tmp_path / f"log{world}/{rank}.log").read_text() for rank in range(1, world)]
        assert not any(others), others
        again = tmp_path / f"again{world}"
        judged = [option for option in options if option.startswith("judge")]
        rescored = work_of(f"rescore={run}", "bootstrap=20", *judged, *options[2:])
        assert in_processes(rescored, world, again) == [0] * world, read_logs(again)
        lines = found[world]["results.jsonl"].splitlines()  # which stand in the order of the evaluations' names now
        assert sorted((run / "results.jsonl").read_bytes().splitlines()) == sorted(lines)
        assert files(run) | {"results.jsonl": None} == found[world] | {"results.jsonl": None}
    assert found[1] == found[2] == found[3]
    kinds = {name.split("/")[1].split("-")[0] for name in found[1] if name.startswith("answers")}
    assert {"task", "chat", "preference"} <= kinds
    lines = [json.loads(line) for line in found[1]["results.jsonl"].decode().splitlines()]
    assert {"wer", "eer", "prefers", "contains", "accuracy", "bleu"} <= {line["metric"] for line in lines}
    said_by_one = (tmp_path / "log1/0.log").read_text()
    assert "gone" in said_by_one and "broken" in said_by_one and "long#0" in found[1][_tasks(found[1])].decode()


def _tasks(found: dict[str, bytes]) -> str:
    return next(name for name in found if name.startswith("answers/task-"))


@pytest.mark.slow
def test_a_killed_evaluation_resumes_on_another_number_of_processes(trained: Path, rows: Path, tmp_path: Path):
    whole, halves = (shutil.copytree(trained, tmp_path / f"{name}/{trained.name}") for name in ("whole", "halves"))
    options = [f"benchmark.test=[{rows}]", *SAMPLED]
    assert in_processes(work_of(*asked(whole, *options)), 1, tmp_path / "one") == [0], read_logs(tmp_path / "one")
    jobs = start(work_of(*asked(halves, *options)), 3, tmp_path / "three")
    while not list(halves.glob("answers/task-*.jsonl")):  # some rows are answered
        assert all(job.is_alive() for job in jobs), read_logs(tmp_path / "three")
    for job in jobs:
        job.kill()
        job.join()
    n_kept = len(next(halves.glob("answers/task-*.jsonl")).read_text(encoding="utf-8").splitlines()) - 1
    assert 0 < n_kept < 20 and not (halves / "predictions").exists()
    assert in_processes(work_of(*asked(halves, *options)), 2, tmp_path / "two") == [0, 0], read_logs(tmp_path / "two")
    assert f"{n_kept} are kept" in " ".join((tmp_path / "two/0.log").read_text().split())
    for name, content in files(whole).items():
        if name.endswith(".jsonl") and name.startswith("answers"):  # in the order in which they were given
            assert sorted((halves / name).read_bytes().splitlines()) == sorted(content.splitlines())
        else:
            assert (halves / name).read_bytes() == content, name


@pytest.mark.slow
def test_torchrun_starts_them(trained: Path, rows: Path, tmp_path: Path):
    def torchrun(*options: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "auris", "evaluate"]
        return subprocess.run(
            [*command, *options], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=240
        )

    one, two = (shutil.copytree(trained, tmp_path / f"{name}/{trained.name}") for name in ("one", "two"))
    options = [f"benchmark.test=[{rows}]", *SAMPLED]
    assert in_processes(work_of(*asked(one, *options)), 1, tmp_path / "log") == [0], read_logs(tmp_path / "log")
    done = torchrun(*asked(two, *options))
    assert done.returncode == 0, done.stderr[-3000:]
    assert files(two) == files(one)
    failed = torchrun(*asked(two, f"benchmark.test=[{rows.parent / 'absent.jsonl'}]"))
    assert failed.returncode == 1 and (failed.stdout + failed.stderr).count("error: ") == 1, failed.stderr[-3000:]
