#!/bin/bash
# Pretrain on several devices and nodes with torchrun. On every node, in the project's folder on a file system that all
# nodes share:
#
#   NNODES=2 HEAD=node-0:29500 PROCESSES=8 bash examples/cluster/torchrun.sh NAME
#
# On one machine: PROCESSES=8 bash examples/cluster/torchrun.sh NAME. Every process runs the whole command; the first
# alone prints, tracks, saves and publishes. Killed or failed, the same command goes on from the last save; torchrun
# does so by itself MAX_RESTARTS times. Ctrl-C, SIGTERM and SIGUSR1 are handed on by torchrun: the update is finished and
# saved, for which there are as many seconds as TORCH_ELASTIC_SHUTDOWN_TIMEOUT says.
set -euo pipefail

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}"
torchrun --nnodes "${NNODES:-1}" --nproc-per-node "${PROCESSES:-1}" --max-restarts "${MAX_RESTARTS:-3}" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    --rdzv-backend c10d --rdzv-endpoint "${HEAD:-localhost:0}" \
    --module lacuna pretrain "$1"
