"""Adapter weights that were published without the model they belong to: layers by themselves, prompts by themselves.

Legend: i inputs, o outputs of a layer, r rank, E width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from models.adapters.lora import LoraLinear
from models.adapters.prompts import PromptedBlock, Prompts
from models.adapters.singular_values import SplitLinear


@dataclass(frozen=True)
class LooseLora:
    """A layer with a low-rank change."""

    kind: Literal["lora"] = "lora"
    rank: int = 8
    """Rows of A per part, columns of B."""
    alpha: float = 16.0
    """The change is scaled by alpha / rank."""
    parts: tuple[bool, ...] = (True,)
    """Equal shares of the outputs, and which of them are changed."""


@dataclass(frozen=True)
class LooseSplit:
    """A layer as singular values and vectors."""

    kind: Literal["singular_values"] = "singular_values"
    rank: int = 1
    """How many values there are."""


@dataclass(frozen=True)
class LooseLayer:
    """One linear layer."""

    name: str
    """As the file has it."""
    inputs: int
    """i."""
    outputs: int
    """o."""
    bias: bool = True
    """Whether it has one."""
    adapter: LooseLora | LooseSplit | None = None
    """What is on it; null: it is plain."""


@dataclass(frozen=True)
class LooseSettings:
    """What a file of adapter weights holds."""

    layers: tuple[LooseLayer, ...] = ()
    """Linear layers, plain or adapted."""
    prompts: Prompts | None = None
    """Prompts: the adapter that they fill."""
    width: int = 0
    """E of the prompts."""
    num_blocks: int = 0
    """How many sets of prompts there are, one per block."""


def build_loose(settings: LooseSettings) -> nn.ModuleDict:
    """Modules of these settings: `layers` by name, dots written as slashes; and prompts as `blocks.0`, `blocks.1` ...,
    so that `adapter_state` of it fits an encoder that was given `settings.prompts`."""
    out: dict[str, nn.Module] = {}
    if settings.layers:
        out["layers"] = nn.ModuleDict({key_of(layer.name): _layer(layer) for layer in settings.layers})
    if (about := settings.prompts) is not None:
        out["blocks"] = nn.ModuleList(
            PromptedBlock(nn.Identity(), 1, about.num_prompts, first=i == 0,
                          prompts=torch.zeros(about.num_prompts, settings.width)) for i in range(settings.num_blocks))
    return nn.ModuleDict(out)


def key_of(name: str) -> str:
    """A layer's name as a key of modules, which may hold no dots."""
    return name.replace(".", "/")


def _layer(about: LooseLayer) -> nn.Module:
    match about.adapter:
        case None:
            return nn.Linear(about.inputs, about.outputs, about.bias)
        case LooseLora(rank=rank, alpha=alpha, parts=parts):
            return LoraLinear(nn.Linear(about.inputs, about.outputs, about.bias), rank, alpha, parts)
        case LooseSplit(rank=rank):
            bias = torch.zeros(about.outputs) if about.bias else None
            return SplitLinear(torch.zeros(about.outputs, rank), torch.zeros(rank), torch.zeros(rank, about.inputs),
                               bias)
