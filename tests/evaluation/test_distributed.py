"""Evaluation with several processes: it writes the files of one process, and an error on any rank ends all ranks."""

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
from auris.evaluation.distributed import Ranks, join_ranks
from auris.training import run as train
from support.manifests import write_wave
from support.recipes import smallest_run
from support.runs import ROOT, environment, in_processes, read_logs, start

pytestmark = pytest.mark.usefixtures("single_thread")


class Threads(Ranks):
    """Ranks that are threads and exchange values through a shared table."""

    def __init__(self, rank: int, table: list, barrier: threading.Barrier):
        super().__init__(rank, len(table))
        object.__setattr__(self, "shared", (table, barrier))

    def exchange(self, value: object) -> list:
        table, barrier = self.shared
        table[self.rank] = value
        barrier.wait(10)
        values = list(table)
        barrier.wait(10)
        return values


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("n_shares", [0, 1, 4, 6])
def test_each_share_is_answered_once_and_results_are_in_order(world: int, n_shares: int):
    """A share is a list of row numbers that one rank answers together."""
    shares = [[10 * number, 10 * number + 1] for number in range(n_shares)]
    table, barrier, answered = [None] * world, threading.Barrier(world), []

    def work(rank: int) -> list:
        def answer(share: Sequence[int]) -> tuple:
            answered.append(share[0])
            return ({number: (f"answer {number}", None) for number in share}, {})

        return list(Threads(rank, table, barrier).map(answer, shares))

    with ThreadPoolExecutor(world) as pool:
        results = list(pool.map(work, range(world)))
    expected = [({number: (f"answer {number}", None) for number in share}, {}) for share in shares]
    assert all(result == expected for result in results) and sorted(answered) == [share[0] for share in shares]


def entry_point(work: Callable[[Ranks], object]) -> Callable[[], None]:
    """Return a function that runs `work` on one rank and exits like the `auris` command."""

    def entry() -> None:
        os.environ["RANK"] = os.environ.get("LOCAL_RANK", "0")
        try:
            with join_ranks("cpu") as ranks:
                work(ranks)
        except ValueError as error:
            print(f"error: {error}")
            sys.exit(1)

    return entry


def test_an_error_on_any_rank_ends_all_ranks_and_is_reported_once(tmp_path: Path):
    def run(name: str, work: Callable[[Ranks], object]) -> tuple[list, str]:
        return in_processes(entry_point(work), 2, tmp_path / name), read_logs(tmp_path / name).strip()

    def second_fails(ranks: Ranks) -> None:
        assert ranks.exchange(ranks.rank) == [0, 1]
        if not ranks.is_first:
            raise ValueError("an unreadable file")
        ranks.exchange(None)
        raise AssertionError("the first rank continued")

    def first_fails(ranks: Ranks) -> None:  # the other rank finishes without an error
        if ranks.is_first:
            raise ValueError("no judge")

    def both_fail(ranks: Ranks) -> None:
        raise ValueError("no such checkpoint")

    assert run("second", second_fails) == ([0, 1], "error: an unreadable file")
    assert run("first", first_fails) == ([1, 0], "error: no judge")
    assert run("both", both_fail) == ([1, 0], "error: no such checkpoint")
    assert run("none", lambda ranks: ranks.exchange(1)) == ([0, 0], "")


def test_each_process_uses_a_separate_gpu(monkeypatch: pytest.MonkeyPatch):
    devices = []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    distributed._select_gpu(1)
    with pytest.raises(ValueError, match="--nproc-per-node=3, but only 2 GPUs are visible"):
        distributed._select_gpu(2)
    assert devices == [1]


@pytest.fixture(scope="module")
def trained_run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        options = ["experiment=qwen2_audio_pretrain", "max_steps=2", "seed=1"]
        run_config = config.resolve(config.compose([*smallest_run(corpus, folder), *options]))
        train.train(run_config)
    return Path(run_config["run_dir"])


@pytest.fixture(scope="module")
def rows(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write rows of every kind, including a long clip, a missing file and a truncated file."""
    folder = tmp_path_factory.mktemp("rows")
    corpus_rows = [json.loads(line) for line in (corpus / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [
        {**row, "audio": str(corpus / row["audio"])} for row in corpus_rows if row["task"] in ("asr", "sec", "s2tt")
    ]
    clips = [{"type": "audio", "audio": row["audio"]} for row in rows[:6]]
    write_wave(folder / "long.wav", 40.0)
    write_wave(folder / "broken.wav", 1.0)
    os.truncate(folder / "broken.wav", 2000)  # shorter than its header says
    asr = {"task": "asr", "language": "en", "text": "the red fox"}
    rows += [{"id": "long", "audio": "long.wav", **asr}, {"id": "gone", "audio": "gone.wav", **asr}]
    rows += [{"id": "broken", "audio": "broken.wav", "duration": 1.0, **asr}]
    for number, (clip, next_clip) in enumerate(itertools.pairwise(clips)):
        pair = {"audio": [clip["audio"], next_clip["audio"]], "task": "sv", "text": ("yes", "no")[number % 2]}
        user = [{"role": "user", "content": [clip, {"type": "text", "text": "what is it?"}]}]
        answer = {"role": "assistant", "content": f"it is {number}"}
        rows += [
            {"id": f"v{number}", **pair},
            {"id": f"d{number}", "messages": [*user, answer], "key": str(number)},
        ]
        rows += [{"id": f"p{number}", "messages": user, "chosen": "a dog barks", "rejected": "no" * (number + 1)}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "rows.jsonl"


SAMPLED = ["generation.do_sample=true", "generation.temperature=1.5", "seed=3"]


def evaluate_options(run: Path, *options: str) -> list[str]:
    base = [f"checkpoint={run}", "benchmark.name=mixed", "token_budget=200", "bootstrap=20", "accelerator=cpu"]
    return [*base, "generation.max_new_tokens=8", *options]


def evaluation(*options: str) -> Callable[[], None]:
    """Return a function that runs `auris evaluate` with these options in a forked process."""

    def work() -> None:
        os.chdir(ROOT)
        os.environ["RANK"] = os.environ.get("LOCAL_RANK", "0")
        sys.exit(cli.main(["evaluate", *options]))

    return work


def read_outputs(run: Path) -> dict[str, bytes]:
    """Return the contents of the answers, predictions and results that evaluations have written."""
    paths = [path for folder in ("answers", "predictions") for path in sorted((run / folder).glob("*.json*"))]
    return {str(path.relative_to(run)): path.read_bytes() for path in [*paths, run / "results.jsonl"]}


@pytest.mark.slow
@pytest.mark.parametrize("options", [["audio=all", "judge=rule"], SAMPLED], ids=["greedy", "sampled"])
def test_any_number_of_processes_writes_the_same_files_as_one(
    trained_run: Path, rows: Path, tmp_path: Path, options: list[str]
):
    outputs = {}
    for world in (1, 2, 3):
        run = shutil.copytree(trained_run, tmp_path / f"{world}/{trained_run.name}")
        arguments = evaluate_options(run, f"benchmark.test=[{rows}]", *options)
        assert in_processes(evaluation(*arguments), world, tmp_path / f"log{world}") == [0] * world, read_logs(tmp_path)
        outputs[world] = read_outputs(run)
        other_logs = [(tmp_path / f"log{world}/{rank}.log").read_text() for rank in range(1, world)]
        assert not any(other_logs), other_logs
        rescore_logs = tmp_path / f"again{world}"
        judge_option = [option for option in options if option.startswith("judge")]
        rescored = evaluation(f"rescore={run}", "bootstrap=20", *judge_option, *options[2:])
        assert in_processes(rescored, world, rescore_logs) == [0] * world, read_logs(rescore_logs)
        lines = outputs[world]["results.jsonl"].splitlines()  # rescoring sorts them by the names of the evaluations
        assert sorted((run / "results.jsonl").read_bytes().splitlines()) == sorted(lines)
        assert read_outputs(run) | {"results.jsonl": None} == outputs[world] | {"results.jsonl": None}
    assert outputs[1] == outputs[2] == outputs[3]
    kinds = {name.split("/")[1].split("-")[0] for name in outputs[1] if name.startswith("answers")}
    assert {"task", "chat", "preference"} <= kinds
    lines = [json.loads(line) for line in outputs[1]["results.jsonl"].decode().splitlines()]
    assert {"wer", "eer", "prefers", "contains", "accuracy", "bleu"} <= {line["metric"] for line in lines}
    log = (tmp_path / "log1/0.log").read_text()
    assert "gone" in log and "broken" in log and "long#0" in outputs[1][task_cache(outputs[1])].decode()


def task_cache(outputs: dict[str, bytes]) -> str:
    """Return the name of the cache file of task rows."""
    return next(name for name in outputs if name.startswith("answers/task-"))


@pytest.mark.slow
def test_a_killed_evaluation_resumes_on_another_number_of_processes(trained_run: Path, rows: Path, tmp_path: Path):
    complete, resumed = (
        shutil.copytree(trained_run, tmp_path / f"{name}/{trained_run.name}") for name in ("whole", "halves")
    )
    options = [f"benchmark.test=[{rows}]", *SAMPLED]
    assert in_processes(evaluation(*evaluate_options(complete, *options)), 1, tmp_path / "one") == [0], read_logs(
        tmp_path / "one"
    )
    processes = start(evaluation(*evaluate_options(resumed, *options)), 3, tmp_path / "three")
    # Wait until some rows are answered. The first line holds the settings.
    while not any(path.read_bytes().count(b"\n") > 1 for path in resumed.glob("answers/task-*.jsonl")):
        assert all(process.is_alive() for process in processes), read_logs(tmp_path / "three")
    for process in processes:
        process.kill()
        process.join()
    n_cached = len(next(resumed.glob("answers/task-*.jsonl")).read_text(encoding="utf-8").splitlines()) - 1
    assert 0 < n_cached < 20 and not (resumed / "predictions").exists()
    assert in_processes(evaluation(*evaluate_options(resumed, *options)), 2, tmp_path / "two") == [0, 0], read_logs(
        tmp_path / "two"
    )
    assert f"{n_cached} cached" in " ".join((tmp_path / "two/0.log").read_text().split())
    for name, content in read_outputs(complete).items():
        if name.endswith(".jsonl") and name.startswith("answers"):  # lines are in the order of computation
            assert sorted((resumed / name).read_bytes().splitlines()) == sorted(content.splitlines())
        else:
            assert (resumed / name).read_bytes() == content, name


@pytest.mark.slow
def test_torchrun_starts_an_evaluation(trained_run: Path, rows: Path, tmp_path: Path):
    def torchrun(*options: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "auris", "evaluate"]
        return subprocess.run(
            [*command, *options], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=240
        )

    one, two = (shutil.copytree(trained_run, tmp_path / f"{name}/{trained_run.name}") for name in ("one", "two"))
    options = [f"benchmark.test=[{rows}]", *SAMPLED]
    assert in_processes(evaluation(*evaluate_options(one, *options)), 1, tmp_path / "log") == [0], read_logs(
        tmp_path / "log"
    )
    completed = torchrun(*evaluate_options(two, *options))
    assert completed.returncode == 0, completed.stderr[-3000:]
    assert read_outputs(two) == read_outputs(one)
    failed = torchrun(*evaluate_options(two, f"benchmark.test=[{rows.parent / 'absent.jsonl'}]"))
    assert failed.returncode == 1 and (failed.stdout + failed.stderr).count("error: ") == 1, failed.stderr[-3000:]
