"""The commands of the README in a user's directory: training a study, evaluation, tables and figures."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from auris import cli
from auris.model.weights import checkpoint_dir
from auris.training import studies
from support.recipes import SMALLEST_MODEL

pytestmark = pytest.mark.usefixtures("single_thread")  # the study runner forks

ROOT = Path(__file__).resolve().parents[2]

EVALUATION = """\
evaluate:
  - ["benchmark.test=[{corpus}/test.jsonl]", benchmark.name=tiny, generation.max_new_tokens=4, bootstrap=50]
"""
# Templates of `str.format`, in which `*small` stands for the overrides of SMALL_RUN and for the data of the test.
SHORT_STUDY = """\
# @package _global_
study: smoke
arm: null
seed: null
seeds: [0]
arms:
  tags:
    overrides: [experiment=qwen_audio_pretrain, *small]
"""
FULL_STUDY = """\
# @package _global_
study: smoke
arm: null
seed: null
seeds: [0]
stages:
  llm_text: {{overrides: [experiment=llm_text, *small]}}
  encoder: {{overrides: [experiment=encoder_ctc, model/encoder=whisper_v2, *small]}}
arms:
  tags:
    overrides: [experiment=qwen_audio_pretrain, *small]
    after: {{llm: llm_text, encoder: encoder}}
  natural_conv:
    overrides: [experiment=qwen_audio_pretrain, prompt=natural, model/pooling=conv, *small]
    after: {{llm: llm_text, encoder: encoder}}
"""

SMALL_RUN = [
    "max_steps=3",
    "optim.warmup_steps=1",
    "data.rows_per_step=8",
    *SMALLEST_MODEL,
    "trainer.accelerator=cpu",
    "trainer.val_check_interval=1.0",
    "max_new_tokens=4",
]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "auris", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)


def write_study(folder: Path, corpus: Path, study: str = FULL_STUDY) -> Path:
    (folder / "ablations").mkdir()
    small_run = ", ".join(f'"{override}"' for override in [*SMALL_RUN, f"data.root={corpus}"])
    text = (study + EVALUATION).replace("*small", small_run).format(corpus=corpus)
    (folder / "ablations/smoke.yaml").write_text(text)
    return folder


def results_by_arm(folder: Path) -> dict[str, list]:
    """Return all result lines and predictions of each arm."""
    results = {}
    for run in sorted((folder / "runs/smoke").glob("*/seed_0/")):
        files = [*run.glob("results.jsonl"), *sorted(run.glob("predictions/*.jsonl"))]
        results[run.parent.name] = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return results


class ForkedCommand:
    """A forked process that runs an `auris` command, with the attributes of `subprocess.Popen` that a study needs."""

    def __init__(self, arguments: list[str], log: Path):
        def run() -> None:
            sys.stdout = sys.stderr = log.open("a", buffering=1)
            GlobalHydra.instance().clear()
            code = 1
            try:
                code = cli.main(arguments)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)  # skip the exit handlers inherited from the parent process

        self.process = multiprocessing.get_context("fork").Process(target=run)
        self.process.start()

    def poll(self) -> int | None:
        return self.process.exitcode


def fork_job(job: studies.Job, arguments: list[str], threads: int) -> None:
    """Start a process of a job by forking, because the imports of a new process take seconds."""
    job.run_dir.mkdir(parents=True, exist_ok=True)
    job.process = ForkedCommand(arguments, job.log)


@pytest.fixture(scope="module")
def short_study(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a user's directory with a completed study of one arm."""
    folder = write_study(tmp_path_factory.mktemp("user"), corpus, SHORT_STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(studies, "_start", fork_job)
        code = cli.main(["train", "ablations=smoke", "jobs=2"])
    log = folder / "runs/smoke/tags/seed_0/log.txt"
    assert code == 0, log.read_text()[-3000:]
    return folder


@pytest.fixture(scope="module")
def full_study(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a user's directory with a completed study of two stages and two arms, trained in new processes."""
    folder = write_study(tmp_path_factory.mktemp("user"), corpus)
    completed = call(folder, "train", "ablations=smoke", "jobs=2")
    assert completed.returncode == 0, completed.stdout[-3000:] + completed.stderr[-3000:]
    return folder


@pytest.fixture
def working_dir(short_study: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to the directory of the short study, for commands that run in the test process."""
    monkeypatch.chdir(short_study)
    monkeypatch.setenv("COLUMNS", "200")
    return short_study


def assert_evaluated(folder: Path, arm: str) -> None:
    run = folder / "runs/smoke" / arm / "seed_0"
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert {"asr en", "asr zh", "s2tt de-en", "sec", "aqa"} <= {row["task"] for row in rows}
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"], row
        assert row["provenance"] in ("tts", "procedural") and row["n"] > 0
    assert (run / "recipe.yaml").is_file() and checkpoint_dir.find(run, "best").step > 0


def test_a_study_trains_and_evaluates_its_arm(short_study: Path):
    assert_evaluated(short_study, "tags")


@pytest.mark.slow
def test_a_study_trains_and_evaluates_every_arm(full_study: Path):
    assert_evaluated(full_study, "tags")
    assert_evaluated(full_study, "natural_conv")


@pytest.mark.slow
def test_repeating_a_command_does_not_train_again(full_study: Path):
    checkpoints = full_study / "runs/smoke/tags/seed_0/checkpoints"
    before = {path: path.stat().st_mtime_ns for path in checkpoints.rglob("*")}
    completed = call(full_study, "train", "ablations=smoke", "arm=tags", "seed=0")
    assert completed.returncode == 0, completed.stdout[-2000:]
    assert {path: path.stat().st_mtime_ns for path in checkpoints.rglob("*")} == before


@pytest.mark.slow
def test_arms_of_a_job_array_have_the_same_results_as_the_study(full_study: Path, corpus: Path, tmp_path: Path):
    write_study(tmp_path, corpus)
    for arm in ("natural_conv", "tags"):
        completed = call(tmp_path, "train", "ablations=smoke", f"arm={arm}", "seed=0")
        assert completed.returncode == 0, completed.stdout[-2000:]
    assert results_by_arm(tmp_path) == results_by_arm(full_study)


@pytest.mark.slow
def test_a_killed_study_resumes_to_the_same_results(full_study: Path, corpus: Path, tmp_path: Path):
    write_study(tmp_path, corpus)
    command = [sys.executable, "-m", "auris", "train", "ablations=smoke", "jobs=2"]
    study = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL)
    progress = tmp_path / "runs/smoke/tags/seed_0/progress.json"
    deadline = time.time() + 300
    while not progress.exists() and time.time() < deadline:
        time.sleep(0.05)
    os.killpg(study.pid, signal.SIGKILL)
    assert study.wait() == -signal.SIGKILL and not (progress.parent / "results.jsonl").exists()
    completed = call(tmp_path, "train", "ablations=smoke", "jobs=2")
    assert completed.returncode == 0, completed.stdout[-2000:]
    assert "4 runs (2 already done)" in completed.stdout
    assert results_by_arm(tmp_path) == results_by_arm(full_study)


@pytest.mark.slow
def test_a_failing_arm_is_reported_and_does_not_stop_the_others(corpus: Path, tmp_path: Path):
    failing_arm = '  broken: {{overrides: [experiment=qwen_audio_pretrain, *small, "data.train=[gone.jsonl]"]}}\n'
    write_study(tmp_path, corpus, FULL_STUDY + failing_arm)
    completed = call(tmp_path, "train", "ablations=smoke", "jobs=2")
    assert (
        completed.returncode == 1 and "broken, seed 0 failed" in completed.stdout and "gone.jsonl" in completed.stdout
    )
    assert {arm for arm, lines in results_by_arm(tmp_path).items() if lines} == {"tags", "natural_conv"}
    table = call(tmp_path, "results", "study=smoke")
    assert table.returncode == 0 and "natural_conv" in table.stdout and "broken, seed 0: waiting" in table.stdout


def test_the_results_command_writes_a_table_and_figures(working_dir: Path, capsys: pytest.CaptureFixture):
    assert cli.main(["results", "study=smoke"]) == 0
    output = capsys.readouterr().out
    assert "asr en" in output and "tags" in output
    for name in ("table.csv", "bars.png", "curves.png"):
        assert (working_dir / "runs/smoke" / name).stat().st_size > 0


def test_invalid_audio_files_are_reported_and_the_rest_is_evaluated(
    working_dir: Path, shared_data: Path, capsys: pytest.CaptureFixture
):
    """Evaluate a real recording together with a corrupt, an empty, a silent and a 40-second file."""
    import numpy as np
    import soundfile

    (working_dir / "corrupt.flac").write_bytes(b"fLaC nothing")
    (working_dir / "empty.wav").write_bytes(b"")
    soundfile.write(working_dir / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(working_dir / "long.wav", np.random.default_rng(0).normal(0, 0.1, 40 * 8000), 8000)
    real = shared_data / "real/ljspeech/LJ001-0002.flac"
    names = ["corrupt.flac", "empty.wav", "silent.wav", "long.wav", str(real)]
    rows = [{"id": name, "audio": name, "task": "asr", "language": "en", "text": "a b"} for name in names]
    (working_dir / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = "checkpoint=runs/smoke/tags/seed_0"
    assert cli.main(["evaluate", run, "data=manifest", "data.test=odd.jsonl", "generation.max_new_tokens=4"]) == 0
    predictions = [json.loads(line) for line in (working_dir / "runs/smoke/tags/seed_0/predictions/odd.jsonl").open()]
    assert {row["id"] for row in predictions} == {"silent.wav", "long.wav", str(real)}
    output = capsys.readouterr().out
    assert "rows that could not be used and are missing from the scores: 2" in output
    assert "corrupt.flac" in output and "empty.wav" in output


def test_an_evaluation_that_scores_no_row_fails(working_dir: Path, capsys: pytest.CaptureFixture):
    (working_dir / "corrupt.wav").write_bytes(b"RIFF")
    row = {"id": "x", "audio": "corrupt.wav", "task": "asr", "language": "en", "text": "a b"}
    (working_dir / "corrupt.jsonl").write_text(json.dumps(row) + "\n")
    results = working_dir / "runs/smoke/tags/seed_0/results.jsonl"
    before = results.read_text()
    run = "checkpoint=runs/smoke/tags/seed_0"
    assert cli.main(["evaluate", run, "data=manifest", "data.test=corrupt.jsonl"]) == 1
    captured = capsys.readouterr()
    assert "corrupt.wav: cannot be decoded" in captured.out
    assert captured.err.endswith("error: no row could be scored; the reasons are listed above\n")
    assert cli.main(["evaluate", run, "data=manifest", "data.test=[]"]) == 1
    assert capsys.readouterr().err.startswith("error: data.test=[]: expected at least one file")
    assert results.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "optim.lrr=1"], "lrr"),
        (["train", "data=manifest", "data.train=[missing.jsonl]"], "missing.jsonl"),
        (["results", "study=missing_study"], "missing_study"),
    ],
)
def test_a_user_error_is_reported_without_a_traceback(
    working_dir: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
):
    assert cli.main(arguments) != 0
    output = "".join(capsys.readouterr())
    assert message in output and "Traceback" not in output
