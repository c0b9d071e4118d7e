#!/usr/bin/env bash
#SBATCH --job-name=crosr_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=crosr_jax-%j.log
# After preemption or the loss of a node SLURM starts the job again by itself,
# two minutes before the time limit it is told to by the trap below.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120

# Trains on GPU nodes of a SLURM cluster; the text of --help is below.
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains on GPU nodes: one task on each node, which takes all GPUs of the node.

  sbatch [FLAGS of sbatch] launch/slurm.sh FLAGS of crosr_jax.main

  sbatch --nodes=2 --gpus-per-node=4 --time=12:00:00 launch/slurm.sh \
    --config=configs/cifar10.py:paper --workdir=/shared/runs/cifar10 \
    --data_dir=/shared/data

Submit it from the folder of the project, in the environment that has it
installed. --workdir is needed, and lies where all nodes see it. So does
--data_dir, prepared beforehand where the nodes have no network:
`python -m crosr_jax.prepare cifar10 --data_dir=/shared/data`.

After preemption, the loss of a node, and when the time limit is near, the job
goes back into the queue and then goes on from the newest checkpoint; at most
MAX_RESTARTS times (default 50). scancel ends it for good.
TEXT
}

error() {
  echo "slurm.sh: error: $*" >&2
  exit 2
}

workdir=''
for argument; do
  case $argument in
    --help | -h)
      usage
      exit 0
      ;;
    --workdir=?*) workdir=${argument#*=} ;;
  esac
done
[[ -n ${SLURM_JOB_ID:-} ]] ||
  error 'this is for sbatch: sbatch launch/slurm.sh FLAGS; see --help'
[[ -n $workdir ]] ||
  error '--workdir=FOLDER is needed, where all nodes see it; see --help'
command -v python >/dev/null ||
  error 'no python; activate the environment of crosr_jax before sbatch'

restarts=${SLURM_RESTART_COUNT:-0}
echo "slurm.sh: job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, started again" \
  "$restarts times"

# Back into the queue, before the time limit kills the job.
again() {
  local step code=0
  step=$(jobs -p)
  echo 'slurm.sh: the time limit is near'
  if [[ -n $step ]]; then
    # Tasks save and end then. srun itself would kill them without that.
    scancel --signal=TERM "$SLURM_JOB_ID" ||
      kill -TERM "$step" 2>/dev/null || true
    wait "$step" || code=$?
    # It was done, or had failed, before it heard that.
    ((code >= 128)) || exit "$code"
  fi
  if ((restarts >= ${MAX_RESTARTS:-50})); then
    echo "slurm.sh: error: started again $restarts times already; raise" \
      "--time or MAX_RESTARTS" >&2
    exit 1
  fi
  scontrol requeue "$SLURM_JOB_ID"
  # SLURM ends the job now.
  exit 0
}
trap again USR1

# Newer versions of srun do not take it from the job.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
srun --label --kill-on-bad-exit=1 \
  python -m crosr_jax.main --distributed=on "$@" &
# A signal ends `wait`, and the trap has its turn.
wait $!
