"""The shell scripts in `scripts/`, run with stand-ins for `python`, `srun`, `sbatch` and `scontrol`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"

# A command that appends its name and arguments to $CALLS, prints the environment variable {output} and exits with the
# status in {status}. If $WAIT is set, it runs until SIGTERM and then creates $AURIS_REQUEUE.
STAND_IN = """\
#!/bin/sh
[ -z "${{WAIT:-}}" ] || trap 'touch "$AURIS_REQUEUE"; exit 1' TERM
echo "{name} $*" >> "$CALLS"
while [ -n "${{WAIT:-}}" ]; do sleep 0.05; done
[ -z "${output}" ] || echo "${output}"
exit "${{{status}:-0}}"
"""
# The output of `auris train ablations=demo dry_run=true` (see tests/training/test_studies.py).
PLAN = "0\tllm_text\t1\n0\tencoder_v2\t1\n1\tqwen_audio\t1\n0\tencoder_v3\t1\n1\tqwen2_audio\t1"


class Cluster:
    """Directory with stand-in commands that are used instead of those of a cluster."""

    def __init__(self, folder: Path):
        self.calls = folder / "calls"
        self.bin = folder / "bin"
        self.bin.mkdir()
        variables = {
            "srun": ("", "STATUS"),
            "sbatch": ("JOB", ""),
            "scontrol": ("", ""),
            "python": ("PLAN", "PYTHON_STATUS"),
        }
        for name, (output, status) in variables.items():
            stand_in = STAND_IN.format(name=name, output=output or "NOTHING", status=status or "NOTHING")
            (self.bin / name).write_text(stand_in)
            (self.bin / name).chmod(0o755)

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        paths = {"PATH": f"{self.bin}:{os.environ['PATH']}", "CALLS": str(self.calls)}
        command = ["bash", str(SCRIPTS / script), *arguments]
        env = {**os.environ, **paths, **environment}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)

    def read_calls(self) -> list[str]:
        """Return the calls of stand-ins so far, each as one line."""
        return self.calls.read_text().splitlines() if self.calls.is_file() else []


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_torchrun_and_the_trainer_get_the_same_number_of_nodes_and_gpus(cluster):
    completed = cluster.run("torchrun.sh", "experiment=qwen2_audio_sft", GPUS="4", NODES="2", RANK="1", MASTER="node0")
    assert completed.returncode == 0, completed.stderr
    [call] = cluster.read_calls()
    assert "-m torch.distributed.run --nnodes 2 --node-rank 1 --nproc-per-node 4 --master-addr node0" in call
    assert call.endswith("-m auris train experiment=qwen2_audio_sft trainer.devices=4 trainer.num_nodes=2")


@pytest.mark.parametrize("status", [0, 1])
def test_without_a_signal_the_script_returns_torchrun_s_status(cluster, status):
    assert cluster.run("torchrun.sh", GPUS="1", PYTHON_STATUS=str(status)).returncode == status


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1])
def test_the_torchrun_script_requests_a_requeue_after_a_signal(cluster, signal_number):
    process = cluster.start("torchrun.sh", GPUS="1", WAIT="yes")
    deadline = time.monotonic() + 60
    while not cluster.read_calls():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal_number)
    assert process.wait(timeout=60) == 75


@pytest.mark.parametrize(("status", "requeued"), [("0", False), ("1", False), ("75", True)])
def test_a_slurm_job_is_requeued_if_its_run_exits_with_75(cluster, status, requeued):
    job = {"SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "123"}
    completed = cluster.run("slurm.sh", "strategy=fsdp", **job, STATUS=status)
    run, *later_calls = cluster.read_calls()
    assert run == (
        "srun --kill-on-bad-exit=0 --wait=60 python -m auris train strategy=fsdp trainer.devices=8 trainer.num_nodes=2"
    )
    assert later_calls == ["scontrol requeue 123"] * requeued and completed.returncode == int(status)


def test_a_study_is_submitted_as_one_job_array_per_level(cluster):
    completed = cluster.run("slurm_study.sh", "demo", "max_steps=9", PLAN=PLAN, JOB="77", SBATCH="--mem=9G")
    assert completed.returncode == 0, completed.stderr
    listing, level_0, level_1 = cluster.read_calls()
    assert listing == "python -m auris train ablations=demo max_steps=9 dry_run=true"
    assert level_0.startswith("sbatch --parsable --job-name=auris-demo --array=0-2 --ntasks=1")
    assert "--array=0-1 --dependency=afterok:77 " in level_1
    assert level_1.endswith(f"--mem=9G {SCRIPTS / 'slurm_study.sh'} demo max_steps=9")
    assert completed.stdout.splitlines() == ["level 0: job 77, 3 runs", "level 1: job 77, 2 runs"]


@pytest.mark.parametrize(("status", "expected_calls"), [("0", []), ("1", []), ("75", ["scontrol requeue 77_1"])])
def test_an_array_task_of_a_study_trains_one_run(cluster, status, expected_calls):
    task = {"LEVEL": "1", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "77", "PLAN": PLAN, "STATUS": status}
    completed = cluster.run("slurm_study.sh", "demo", "max_steps=9", **task)
    _, run, *later_calls = cluster.read_calls()
    assert run == "srun python -m auris train ablations=demo max_steps=9 arm=qwen2_audio seed=1"
    assert later_calls == expected_calls and completed.returncode == int(status)


def test_this_file_covers_every_script():
    assert {path.name for path in SCRIPTS.iterdir()} == {"torchrun.sh", "slurm.sh", "slurm_study.sh"}
