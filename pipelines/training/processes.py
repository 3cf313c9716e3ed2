"""Which of the processes of one training this is, as torchrun, SLURM or Lightning's own launcher says it.

Every process runs the whole command. The first one alone prints, tracks, saves and publishes; the others follow.
"""

from __future__ import annotations

import os

_OWN_NUMBER = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def follows() -> bool:
    """Whether this is a process of a training on several devices, and not the first one."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in _OWN_NUMBER)


def started(devices: int, num_nodes: int) -> tuple[int, int]:
    """(devices per node, nodes): those that torchrun or srun has started processes for, or else the settings'."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    # sbatch sets these for the batch script too, where no process was started by srun: there SLURM_STEP_ID is missing
    if "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    return devices, num_nodes
