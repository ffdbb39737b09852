#!/usr/bin/env bash
# One run: sbatch --nodes=4 scripts/slurm.sh experiment=qwen2_audio_sft scale=full strategy=fsdp
# What stands here are defaults; the command line of sbatch wins. A task is a process with one GPU.
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
# Five minutes before its time ends, or when its machines are wanted for another job, SLURM signals the run: it saves, and
# ends with status 75. Then the job goes back to the queue under its own number, and goes on from there.
set -uo pipefail
# Status 75 is no bad exit: all processes end with it, some before others. One that fails ends the rest after a minute.
srun --kill-on-bad-exit=0 --wait=60 "${PYTHON:-python}" -m auris train "$@" \
  trainer.devices="$SLURM_NTASKS_PER_NODE" trainer.num_nodes="$SLURM_JOB_NUM_NODES"
status=$?
if [ "$status" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
