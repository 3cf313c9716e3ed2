"""A patch embedding at another patch size (FlexiViT, Beyer et al. 2023, "FlexiViT: One Model for All Patch Sizes",
section 3.4).

Resizing the weights like a picture would change what they answer. What is wanted are weights that answer of a resized
patch what the old ones answer of the patch: the old ones times the pseudo-inverse of the resizing. Exact when the patch
grows; when it shrinks, the nearest in the mean over patches of independent values.

Legend: E width, C channels, n o new and old size along an axis, P values per patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear


def resize_matrix(old: int, new: int) -> Tensor:
    """n o float64: linear interpolation along one axis, corners not aligned; a mean over what is merged when it
    shrinks, as FlexiViT's release has it. Along several axes, one such matrix each: bilinear, trilinear."""
    columns = torch.eye(old, dtype=torch.float64)[None, None]               # 1 1 o o: every unit vector is a column
    return interpolate(columns, size=(new, old), mode="bilinear", align_corners=False, antialias=True)[0, 0]


def resize_kernel(weight: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """E P -> E P': weights of a linear layer on patches of the size `new`, from those for `old`.

    Args:
        weight: values in (*patch, channel) order, as tokenizers cut them.
    """
    kernel = weight.unflatten(1, (*old, -1))                                # E *old C
    for axis, (before, after) in enumerate(zip(old, new, strict=True), start=1):
        kernel = torch.tensordot(kernel, _carry(before, after).to(weight), dims=([axis], [1])).movedim(-1, axis)
    return kernel.flatten(1)


def project_patches(values: Tensor, layer: nn.Linear, stored: Sequence[int], patch: Sequence[int]) -> Tensor:
    """values B N P' -> B N E: the layer at another size than it is stored at; gradients reach what is stored."""
    if tuple(stored) == tuple(patch):
        return layer(values)
    assert values.shape[-1] * math.prod(stored) == layer.in_features * math.prod(patch), (values.shape, stored, patch)
    return linear(values, resize_kernel(layer.weight, stored, patch), layer.bias)


@lru_cache(maxsize=64)
def _carry(old: int, new: int) -> Tensor:
    """n o: the pseudo-inverse of the transposed resizing. The pseudo-inverse of a Kronecker product is the product of
    pseudo-inverses, so that every axis has its own small matrix."""
    return torch.linalg.pinv(resize_matrix(old, new)).T.contiguous()
