"""The scripts in scripts, against stand-ins of torchrun's module, `srun`, `sbatch` and `scontrol`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"

# A command that notes its arguments, one call a line, says what it is told to and ends with the status it is told to.
_STAND_IN = """\
#!/bin/sh
[ -z "${{TOLD:-}}" ] || trap 'touch "$AURIS_REQUEUE"; exit 1' TERM
echo "{name} $*" >> "$CALLS"
while [ -n "${{TOLD:-}}" ]; do sleep 0.05; done
[ -z "${says}" ] || echo "${says}"
exit "${{{status}:-0}}"
"""
# What `ablations=demo dry_run=true` prints (tests/test_studies.py).
LISTED = "0\tllm_text\t1\n0\tencoder_v2\t1\n1\tqwen_audio\t1\n0\tencoder_v3\t1\n1\tqwen2_audio\t1"


class Cluster:
    def __init__(self, folder: Path):
        self.calls = folder / "calls"
        self.bin = folder / "bin"
        self.bin.mkdir()
        told = {"srun": ("", "STATUS"), "sbatch": ("JOB", ""), "scontrol": ("", ""), "python": ("LISTED", "ENDS")}
        for name, (says, status) in told.items():
            stand_in = _STAND_IN.format(name=name, says=says or "NOTHING", status=status or "NOTHING")
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

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.is_file() else []


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_torchrun_and_the_trainer_get_the_same_machines(cluster):
    done = cluster.run("torchrun.sh", "experiment=qwen2_audio_sft", GPUS="4", NODES="2", RANK="1", MASTER="node0")
    assert done.returncode == 0, done.stderr
    [call] = cluster.called()
    assert "-m torch.distributed.run --nnodes 2 --node-rank 1 --nproc-per-node 4 --master-addr node0" in call
    assert call.endswith("-m auris train experiment=qwen2_audio_sft trainer.devices=4 trainer.num_nodes=2")


@pytest.mark.parametrize("status", [0, 1])
def test_without_a_signal_the_script_returns_torchrun_s_status(cluster, status):
    assert cluster.run("torchrun.sh", GPUS="1", ENDS=str(status)).returncode == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signalled_torchrun_script_asks_to_be_requeued(cluster, number):
    process = cluster.start("torchrun.sh", GPUS="1", TOLD="yes")
    deadline = time.monotonic() + 60
    while not cluster.called():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=60) == 75


@pytest.mark.parametrize(("status", "requeued"), [("0", False), ("1", False), ("75", True)])
def test_a_slurm_job_is_requeued_if_its_run_is_to_continue(cluster, status, requeued):
    job = {"SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "123"}
    done = cluster.run("slurm.sh", "strategy=fsdp", **job, STATUS=status)
    run, *after = cluster.called()
    assert run == (
        "srun --kill-on-bad-exit=0 --wait=60 python -m auris train strategy=fsdp trainer.devices=8 trainer.num_nodes=2"
    )
    assert after == ["scontrol requeue 123"] * requeued and done.returncode == int(status)


def test_a_study_is_submitted_level_by_level(cluster):
    done = cluster.run("slurm_study.sh", "demo", "max_steps=9", LISTED=LISTED, JOB="77", SBATCH="--mem=9G")
    assert done.returncode == 0, done.stderr
    listing, stages, arms = cluster.called()
    assert listing == "python -m auris train ablations=demo max_steps=9 dry_run=true"
    assert stages.startswith("sbatch --parsable --job-name=auris-demo --array=0-2 --ntasks=1")
    assert "--array=0-1 --dependency=afterok:77 " in arms
    assert arms.endswith(f"--mem=9G {SCRIPTS / 'slurm_study.sh'} demo max_steps=9")
    assert done.stdout.splitlines() == ["level 0: job 77, 3 runs", "level 1: job 77, 2 runs"]


@pytest.mark.parametrize(("status", "after"), [("0", []), ("1", []), ("75", ["scontrol requeue 77_1"])])
def test_a_task_of_a_study_is_one_run(cluster, status, after):
    task = {"LEVEL": "1", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "77", "LISTED": LISTED, "STATUS": status}
    done = cluster.run("slurm_study.sh", "demo", "max_steps=9", **task)
    _, run, *requeued = cluster.called()
    assert run == "srun python -m auris train ablations=demo max_steps=9 arm=qwen2_audio seed=1"
    assert requeued == after and done.returncode == int(status)


def test_every_script_is_looked_at_here():
    assert {path.name for path in SCRIPTS.iterdir()} == {"torchrun.sh", "slurm.sh", "slurm_study.sh"}
