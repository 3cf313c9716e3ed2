"""How steep an image is at each pixel: what the second decoder of Uni4Eye (Cai et al. 2022) is to predict.

Legend: B batch, C channels, D H W voxels or pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

DERIVATIVE = (-1.0, -2.0, 0.0, 2.0, 1.0)
SMOOTH = (1.0, 4.0, 6.0, 4.0, 1.0)
"""Sobel's kernel of size 5 is the derivative along one axis and the smoothing along the others."""


def gradient_map(x: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The mean over the axes of the absolute Sobel derivative (size 5), scaled so that a ramp that rises by 1 per pixel
    gives 1. Borders are mirrored.

    Args:
        x: B C (D) H W, every axis at least 3 long.
        known: likewise bool, or None.

    Returns:
        The map, and where it is known: where all pixels that went into it are. Both of x's shape.
    """
    axes = x.dim() - 2
    with torch.autocast(x.device.type, enabled=False):  # a target should not be coarser than the input
        padded = functional.pad(x.flatten(0, 1)[:, None].float(), (2, 2) * axes, mode="reflect")    # B*C 1 ...
        steep = torch.stack([_sobel(padded, along, axes).abs() for along in range(axes)]).mean(0)   # B*C 1 ...
    return steep[:, 0].unflatten(0, x.shape[:2]).to(x.dtype), None if known is None else _all_known(known, axes)


def _sobel(x: Tensor, along: int, axes: int) -> Tensor:
    """B*C 1 ..., padded by 2 on all sides -> the derivative along one axis, without the padding."""
    for axis in range(axes):
        kernel = x.new_tensor(DERIVATIVE) / 8 if axis == along else x.new_tensor(SMOOTH) / 16
        shape = [1] * (axes + 2)
        shape[axis + 2] = len(kernel)
        x = (functional.conv2d if axes == 2 else functional.conv3d)(x, kernel.reshape(shape))
    return x


def _all_known(known: Tensor, axes: int) -> Tensor:
    """B C ... bool -> True where no pixel within 2 along every axis is unknown; what lies outside counts as known."""
    unknown = (~known).flatten(0, 1)[:, None].float()
    near = (functional.max_pool2d if axes == 2 else functional.max_pool3d)(unknown, 5, stride=1, padding=2)
    return (near == 0)[:, 0].unflatten(0, known.shape[:2])
