#!/usr/bin/env bash
# A command on all machines of a Slurm job, from the repository's root:
#
#   sbatch --nodes 2 --gpus-per-node 8 examples/slurm.sh bash run_all.sh mistral_7b
#   sbatch --gpus-per-node 4 examples/slurm.sh bash step3_gapo/training_scripts/train_policy.sh gapo_p1
#
# One launcher a machine, which starts a rank a GPU (RANKS=N: N ranks). The project, its .venv (make it before, on a machine
# that reaches the package index) and the output lie on a file system that all machines share. What a job's time does not
# suffice for goes on in the next one, by the same command.

#SBATCH --job-name=gapo
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.log

set -euo pipefail
if [ $# -eq 0 ]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "error: not in a Slurm job: sbatch ${BASH_SOURCE[0]} $*" >&2
    exit 2
fi

export RANKS=${RANKS:-${SLURM_GPUS_ON_NODE:-1}}
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export NNODES=$SLURM_JOB_NUM_NODES MASTER_ADDR=${hosts%%$'\n'*}
    export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # jobs that share a machine do not meet
    exec srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec "$@"' bash "$@"
fi
exec srun "$@"
