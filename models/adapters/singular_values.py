"""Singular value tuning: a weight is written as U diag(s) V', and s alone is trained (CLIP-SVD, Koleilat et al. 2025,
"Singular Value Few-shot Adaptation of Vision-Language Models"). With `trained` it is the largest of s alone, as the
abstract of SVFit has it.

Legend: i inputs, o outputs of a layer, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models.adapters.seams import Beside, LayerName, chosen_linears, inner_blocks, linear_of, wrap_linear
from models.encoder.transformer import Encoder


@dataclass(frozen=True)
class SingularValues:
    """Stretch or shrink the directions that a layer has, without turning them."""

    kind: Literal["singular_values"] = "singular_values"
    layers: tuple[LayerName, ...] = ("query", "key", "value", "output", "mlp")
    """Which layers of every block are split; query, key and value are split one by one."""
    trained: int | None = None
    """How many of the largest singular values of a layer are trained; null: all."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("layers: found none, expected at least one of query, key, value, output, mlp.")
        if self.trained is not None and self.trained < 1:
            raise ValueError(f"trained: found {self.trained}, expected at least 1, or null for all.")


class SplitLinear(nn.Module):
    """U (s * (V' x)) + b. U, V and b are the layer's own weight in another form, s is what the adapter adds."""

    ADDED = ("values",)

    def __init__(self, left: Tensor, values: Tensor, right: Tensor, bias: Tensor | None,
                 trained: int | None = None) -> None:
        """left o r, values r in falling order, right r i, bias o; trained: how many of the values."""
        super().__init__()
        trained = len(values) if trained is None else min(trained, len(values))
        self.in_features, self.out_features = right.shape[1], left.shape[0]
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)
        self.values = nn.Parameter(values[:trained].clone())
        self.rest = nn.Parameter(values[trained:].clone()) if trained < len(values) else None
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """... i -> ... o"""
        return linear(linear(x, self.right) * self.all_values().to(x.dtype), self.left, self.bias)

    def all_values(self) -> Tensor:
        """r: trained ones first."""
        return self.values if self.rest is None else torch.cat([self.values, self.rest])

    def merged(self) -> nn.Linear:
        """The one layer that this equals, within rounding."""
        return linear_of(self.left * self.all_values() @ self.right, self.bias)


def split(layer: nn.Module, trained: int | None = None) -> SplitLinear:
    """A layer as its singular values and vectors, at full rank: it computes the same, within rounding.

    Raises:
        ValueError: it is split already.
    """
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"found a layer of kind {type(layer).__name__}, expected a plain one: its singular values are "
                         "an adapter already. Name this adapter once.")
    # in double precision, so that vectors of nearly equal values come out alike on every machine: an adapter's state
    # holds the values alone
    found = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
    left, values, right = (part.to(layer.weight.dtype).contiguous() for part in found)
    return SplitLinear(left, values, right, None if layer.bias is None else layer.bias.detach().clone(), trained)


def add_singular_values(encoder: Encoder, settings: SingularValues) -> list[nn.Parameter]:
    """Split layers of every block; nothing is frozen.

    Returns:
        The singular values that are to be trained, r each.

    Raises:
        ValueError: the layers are split already.
    """
    def replace(layer: nn.Module, parts: Sequence[bool]) -> nn.Module:
        if len(parts) == 1:
            return split(layer, settings.trained)
        if not isinstance(layer, nn.Linear):
            return split(layer)  # says why not
        return Beside([split(part, settings.trained) if chosen else part
                       for part, chosen in zip(_cut(layer, len(parts)), parts, strict=True)])

    out: list[nn.Parameter] = []
    for block in inner_blocks(encoder):
        for name, parts in chosen_linears(settings.layers).items():
            new = wrap_linear(block, name, lambda layer, parts=parts: replace(layer, parts))  # type: ignore[misc]
            out += [child.values for child in new.modules() if isinstance(child, SplitLinear)]
    return out


def _cut(layer: nn.Linear, count: int) -> list[nn.Linear]:
    """A layer as `count` layers, each with an equal share of the outputs."""
    biases = [None] * count if layer.bias is None else layer.bias.chunk(count)
    return [linear_of(weight, bias) for weight, bias in zip(layer.weight.chunk(count), biases, strict=True)]
