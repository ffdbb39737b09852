#!/usr/bin/env bash
# One machine: bash scripts/torchrun.sh experiment=qwen2_audio_sft scale=full strategy=fsdp
# Several, on each of them: NODES=4 RANK=0..3 MASTER=HOST_OF_RANK_0 bash scripts/torchrun.sh ...
# A process that fails takes the others with it; all are started again, and go on from the last checkpoint.
# On SIGTERM and SIGUSR1 the run saves, for which torchrun gives it 30 s, and this script ends with status 75, as the run
# does; torchrun's own status is another. slurm.sh needs no torchrun and has all the time that SLURM gives.
set -uo pipefail
PYTHON=${PYTHON:-python}
GPUS=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}        # processes on this machine
NODES=${NODES:-1}
told=$(mktemp -d)
export AURIS_REQUEUE=$told/requeue                      # a file that a run which is to be started again leaves
"$PYTHON" -m torch.distributed.run \
  --nnodes "$NODES" --node-rank "${RANK:-0}" --nproc-per-node "$GPUS" \
  --master-addr "${MASTER:-127.0.0.1}" --master-port "${PORT:-29500}" --max-restarts "${RESTARTS:-3}" \
  -m auris train "$@" trainer.devices="$GPUS" trainer.num_nodes="$NODES" &
torchrun=$!
trap 'kill -TERM "$torchrun" 2> /dev/null' TERM USR1
wait "$torchrun"
status=$?
while kill -0 "$torchrun" 2> /dev/null; do              # `wait` also ends with a signal
  wait "$torchrun"
  status=$?
done
[ "$status" -eq 0 ] || [ ! -e "$AURIS_REQUEUE" ] || status=75
rm -rf "$told"
exit "$status"
