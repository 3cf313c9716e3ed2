"""Random views of films and volumes, on the device, as a pure function of given draws.

Legend: B batch, C channels, D H W voxels (D is absent for films). Films are H W from top to bottom and as displayed;
volumes run superior, posterior, left (see ingest.ORIENTATION), so that the last axis is left-right for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.mask_moves import by_layers

NUM_DRAWS = 10
"""Uniforms per sample, by position: 0-3 crop (area, ratio, top, left), 4 intensity scale, 5 intensity shift,
6 left-right flip, 7-8 the two other flips of a volume, 9 quarter turns. Fixed, so that switching one thing off does not
re-deal the others."""


@dataclass(frozen=True)
class Augment:
    """How a view is varied. The crop applies to films only: volumes are cropped where they are fetched, in voxels,
    because their scale is known and carries meaning."""

    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Share of a film's area that a random crop keeps, stretched back to full size. [1, 1] switches cropping off."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the crop, relative to the film's own."""
    flip_left_right: float = 0.0
    """Chance of a mirror image. Published X-ray pretraining mirrors half of the films (0.5); off by default, because
    the side of the heart carries meaning."""
    flip_other_axes: float = 0.0
    """Volumes: the chance of turning superior and inferior about, and likewise anterior and posterior."""
    quarter_turns: float = 0.0
    """Volumes: chance of a turn by 0, 90, 180 or 270 degrees in the axial plane, which must be square."""
    intensity_scale: float = 0.0
    """Values are multiplied by 1 +- up to this."""
    intensity_shift: float = 0.0
    """Up to this is added or taken away, in standard deviations."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale: found {self.crop_scale}, expected two rising shares in (0, 1]. "
                             "Set crop_scale: [0.5, 1.0].")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio: found {self.crop_ratio}, expected two rising positive numbers. "
                             "Set crop_ratio: [0.75, 1.333].")
        for name in ("flip_left_right", "flip_other_axes", "quarter_turns"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected a chance from 0 to 1.")
        for name in ("intensity_scale", "intensity_shift"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 0 and under 1.")


def augment(x: Tensor, known: Tensor | None, draws: Tensor, settings: Augment,
            names: Sequence[str] = ()) -> tuple[Tensor, Tensor | None]:
    """One random view per sample.

    Args:
        x: B C H W or B C D H W, normalised; 0 where unknown.
        known: which of x are known, or None for all.
        draws: B NUM_DRAWS in [0, 1). Each sample's view depends on its own row alone.
        names: the channels of x, which are all treated alike.
    """
    if draws.shape != (x.shape[0], NUM_DRAWS):
        raise ValueError(f"draws: found {tuple(draws.shape)}, expected {(x.shape[0], NUM_DRAWS)}.")
    if x.dim() == 4 and settings.crop_scale != (1.0, 1.0):
        x, known = _random_resized_crop(x, known, draws, settings)
    x, known = _flips_and_turns(x, known, draws, settings)
    if settings.intensity_scale or settings.intensity_shift:
        gain = 1 + settings.intensity_scale * (2 * draws[:, 4] - 1)
        shift = settings.intensity_shift * (2 * draws[:, 5] - 1)
        x = x * _per_sample(gain, x) + _per_sample(shift, x)
        x = x if known is None else x.masked_fill(~known, 0.0)
    return x, known


def move_mask(classes: Tensor, num_classes: int, draws: Tensor, settings: Augment) -> Tensor:
    """The masks of samples, B H W or B D H W uint8, after the moves that `augment` makes with these draws."""
    still = replace(settings, intensity_scale=0.0, intensity_shift=0.0)
    return by_layers(classes, num_classes, lambda x, known: augment(x, known, draws, still))


def _random_resized_crop(x: Tensor, known: Tensor | None, draws: Tensor,
                         settings: Augment) -> tuple[Tensor, Tensor | None]:
    """Crop a share of the area and stretch it to the old size, bilinearly. Always magnifies, so nothing aliases.

    The usual way draws again until a crop fits; here the ratio's range is narrowed to those that fit, which needs a
    fixed number of draws and keeps the area as drawn.
    """
    low, high = settings.crop_scale
    area = low + (high - low) * draws[:, 0]
    shortest = area.log().clamp(min=math.log(settings.crop_ratio[0]))
    longest = (-area.log()).clamp(max=math.log(settings.crop_ratio[1]))
    ratio = (shortest + (longest - shortest).clamp(min=0) * draws[:, 1]).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)  # grid_sample's coordinates run from -1 to 1
    theta[:, 0, 0], theta[:, 0, 2] = width, (1 - width) * (2 * draws[:, 3] - 1)
    theta[:, 1, 1], theta[:, 1, 2] = height, (1 - height) * (2 * draws[:, 2] - 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if known is None:
        return x, None
    share = F.grid_sample(known.to(x.dtype), grid, mode="bilinear", padding_mode="border", align_corners=False)
    known = share > 0.999  # a pixel that took any part from an unknown one is unknown; rounding is below 0.001
    return x.masked_fill(~known, 0.0), known


def _flips_and_turns(x: Tensor, known: Tensor | None, draws: Tensor, settings: Augment) -> tuple[Tensor, Tensor | None]:
    moves = [(settings.flip_left_right, draws[:, 6], -1)]
    if x.dim() == 5:
        moves += [(settings.flip_other_axes, draws[:, 7], -2), (settings.flip_other_axes, draws[:, 8], -3)]
    for chance, draw, axis in moves:
        if chance > 0:
            x, known = _where(draw < chance, x, known, partial(torch.flip, dims=(axis,)))
    if x.dim() == 5 and settings.quarter_turns > 0:
        if x.shape[-1] != x.shape[-2]:
            raise ValueError(f"quarter_turns: found an axial plane of {x.shape[-2]} x {x.shape[-1]}, expected a square."
                             " Set quarter_turns: 0 or a square `size`.")
        turns = (draws[:, 9] / settings.quarter_turns * 4).floor()  # 4 and above: not this sample
        for k in (1, 2, 3):
            x, known = _where(turns == k, x, known, partial(torch.rot90, k=k, dims=(-2, -1)))
    return x, known


def _where(chosen: Tensor, x: Tensor, known: Tensor | None,
           move: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
    return (torch.where(_per_sample(chosen, x), move(x), x),
            None if known is None else torch.where(_per_sample(chosen, known), move(known), known))


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """B to B 1 1 1 (1)."""
    return values.view(-1, *(1,) * (like.dim() - 1))
