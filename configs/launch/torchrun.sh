#!/usr/bin/env bash
# One machine: bash configs/launch/torchrun.sh experiment=qwen2_audio_sft scale=full strategy=fsdp
# Several, on each of them: NODES=4 RANK=0..3 MASTER=HOST_OF_RANK_0 bash configs/launch/torchrun.sh ...
# A process that fails takes the others with it; all are started again, and go on from the last checkpoint.
set -euo pipefail
PYTHON=${PYTHON:-python}
GPUS=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}        # processes on this machine
NODES=${NODES:-1}
exec "$PYTHON" -m torch.distributed.run \
  --nnodes "$NODES" --node-rank "${RANK:-0}" --nproc-per-node "$GPUS" \
  --master-addr "${MASTER:-127.0.0.1}" --master-port "${PORT:-29500}" --max-restarts "${RESTARTS:-3}" \
  -m auris.train "$@" trainer.devices="$GPUS" trainer.num_nodes="$NODES"
