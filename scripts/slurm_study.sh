#!/usr/bin/env bash
# All arms of a study: bash scripts/slurm_study.sh STUDY [group=option] [key=value]
# Submits an array of jobs for each level of the study: first the stages, then the arms that start from them, and so on.
# Each run is one process with one GPU. Set options of sbatch in SBATCH, as SBATCH="--partition=gpu --time=8:00:00".
set -euo pipefail
PYTHON=${PYTHON:-python}
if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then             # submit
  runs=$("$PYTHON" -m auris train ablations="$1" "${@:2}" dry_run=true)
  after=
  for level in $(cut -f1 <<< "$runs" | sort -nu); do
    last=$(($(grep -c "^$level	" <<< "$runs") - 1))
    # shellcheck disable=SC2086
    after=$(LEVEL=$level sbatch --parsable --job-name="auris-$1" --array="0-$last" ${after:+--dependency=afterok:$after} \
      --ntasks=1 --gpus=1 --signal=SIGUSR1@300 --requeue --open-mode=append --output=slurm-%A_%a.out ${SBATCH:-} "$0" "$@")
    echo "level $level: job $after, $((last + 1)) runs"
  done
else                                                    # one run of the array
  run=$("$PYTHON" -m auris train ablations="$1" "${@:2}" dry_run=true | grep "^$LEVEL	" | sed -n "$((SLURM_ARRAY_TASK_ID + 1))p")
  IFS=$'\t' read -r _ arm seed <<< "$run"
  srun "$PYTHON" -m auris train ablations="$1" "${@:2}" arm="$arm" seed="$seed" && exit
  status=$?                                             # 75: stopped by a signal, the run can be resumed
  [ "$status" -ne 75 ] || scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  exit "$status"
fi
