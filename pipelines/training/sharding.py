"""FSDP: weights, gradients and optimiser state cut over the devices, for models that one device cannot hold.

The model is cut up in a copy of its parts, and gets its own parts back when training is over: what comes after (health,
checkpoint, pictures) sees an ordinary model, on the first process with the trained weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def shard(model: nn.Module, mesh: Any) -> None:
    """Cut up every block, and the rest as one. Does nothing where that was done.

    Args:
        mesh: the devices, of one dimension.
    """
    if isinstance(model, FSDPModule):
        return
    blocks = [child for module in model.modules() if isinstance(module, nn.ModuleList) for child in module
              if next(child.parameters(), None) is not None]
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh)


@contextmanager
def copied_parts(model: nn.Module) -> Iterator[None]:
    """Let the block cut up a copy of the parts of `model`; give it its own back."""
    kept, kind = dict(model.__dict__), model.__class__
    twin = copy.deepcopy(model)
    model.__dict__.clear()
    model.__dict__.update(twin.__dict__)
    try:
        yield
    finally:
        model.__class__ = kind
        model.__dict__.clear()
        model.__dict__.update(kept)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Within the block, parts outside the blocks can be called by themselves. Blocks gather their weights anyway."""
    sharded = cast(FSDPModule, model)
    sharded.unshard()
    try:
        yield
    finally:
        sharded.reshard()


def gather(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """{"model", "optimizer"}: all weights and optimiser state on the host of the first process, empty on others. Every
    process must call it. The optimiser's is None before its first step: torch would make one up, a step ahead."""
    if not optimizer.state:
        return {"model": get_model_state_dict(model, options=_WHOLE), "optimizer": None}
    weights, state = get_state_dict(model, optimizer, options=_WHOLE)
    return {"model": weights, "optimizer": state}


def spread(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Cut up what the first process has of `gather`. Every process must call it."""
    if state["optimizer"] is None:
        set_model_state_dict(model, state["model"], options=_SPREAD)
        optimizer.state.clear()
        return
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"],
                   options=_SPREAD)
