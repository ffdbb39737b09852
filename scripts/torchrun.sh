#!/usr/bin/env bash
# One machine: bash scripts/torchrun.sh experiment=qwen2_audio_sft scale=full strategy=fsdp
# Several machines, on each of them: NODES=4 RANK=0..3 MASTER=HOST_OF_RANK_0 bash scripts/torchrun.sh ...
# If a process fails, torchrun stops all processes and starts them again, and the run resumes from the last checkpoint.
# On Ctrl-C, SIGHUP, SIGTERM and SIGUSR1 the run saves a checkpoint, for which torchrun gives it 30 s, and exits with
# status 75. torchrun exits with another status, so this script returns 75 instead. slurm.sh runs without torchrun, and
# has as much time to save as SLURM allows.
set -uo pipefail
PYTHON=${PYTHON:-python}
GPUS=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}        # number of processes on this machine
NODES=${NODES:-1}
directory=$(mktemp -d)
export AURIS_REQUEUE=$directory/requeue                 # the run creates this file if it is to be started again
"$PYTHON" -m torch.distributed.run \
  --nnodes "$NODES" --node-rank "${RANK:-0}" --nproc-per-node "$GPUS" \
  --master-addr "${MASTER:-127.0.0.1}" --master-port "${PORT:-29500}" --max-restarts "${RESTARTS:-3}" \
  -m auris train "$@" trainer.devices="$GPUS" trainer.num_nodes="$NODES" &
torchrun=$!
trap 'kill -TERM "$torchrun" 2> /dev/null' INT HUP TERM USR1
wait "$torchrun"
status=$?
while kill -0 "$torchrun" 2> /dev/null; do              # a signal also ends `wait`
  wait "$torchrun"
  status=$?
done
[ "$status" -eq 0 ] || [ ! -e "$AURIS_REQUEUE" ] || status=75
rm -rf "$directory"
exit "$status"
