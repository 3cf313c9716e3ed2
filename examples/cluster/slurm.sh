#!/bin/bash
# Pretrain on several nodes under SLURM, one task per device:
#
#   sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 examples/cluster/slurm.sh NAME
#
# srun starts the processes; their number is read from SLURM and wins over machine.devices and
# machine.num_nodes. The project's folder lies on a file system that all nodes share.
#
# Two minutes before the time limit SLURM sends SIGUSR1: the update is finished and saved, lacuna ends with 138, and the
# job is put into the queue again, where it goes on. `scancel` sends SIGTERM: saved likewise, 143, and left at that.
#SBATCH --job-name lacuna-pretrain
#SBATCH --nodes 2
#SBATCH --ntasks-per-node 8
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 8
#SBATCH --signal USR1@120
#SBATCH --requeue
#SBATCH --open-mode append
#SBATCH --output lacuna-%j.log
set -euo pipefail

source .venv/bin/activate
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
code=0
srun --kill-on-bad-exit=1 lacuna pretrain "$1" || code=$?
if [ "$code" -eq 138 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
