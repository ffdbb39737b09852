#!/usr/bin/env bash
# One run: sbatch --nodes=4 scripts/slurm.sh experiment=qwen2_audio_sft scale=full strategy=fsdp
# Options on the command line of sbatch take precedence over those below. A task is a process with one GPU.
#SBATCH --job-name=auris
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
# Five minutes before the time limit, or on preemption, SLURM signals the run, which saves a checkpoint and exits with
# status 75. This script then requeues the job under its own number, and the run resumes.
set -uo pipefail
# Status 75 is not a failure: all processes exit with it, some earlier than others. If a process fails, SLURM ends the
# others after a minute.
srun --kill-on-bad-exit=0 --wait=60 "${PYTHON:-python}" -m auris train "$@" \
  trainer.devices="$SLURM_NTASKS_PER_NODE" trainer.num_nodes="$SLURM_JOB_NUM_NODES"
status=$?
if [ "$status" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
