#!/bin/bash
# Pretrain on several nodes under SLURM, one task per device:
#
#   sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 examples/cluster/slurm.sh NAME
#
# srun starts the processes; their number is read from SLURM and wins over machine.devices and
# machine.num_nodes. The project's folder lies on a file system that all nodes share.
#SBATCH --job-name lacuna-pretrain
#SBATCH --nodes 2
#SBATCH --ntasks-per-node 8
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 8
#SBATCH --requeue
#SBATCH --output lacuna-%j.log
set -euo pipefail

source .venv/bin/activate
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
srun --kill-on-bad-exit=1 lacuna pretrain "$1"
