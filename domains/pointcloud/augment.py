"""Random views of point clouds, on the device, as a pure function of given draws.

Legend: B batch, N points, F values per point: 3 coordinates, then features; z points up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_DRAWS = 8
"""Uniforms per sample, by position: 0-2 scale of x, y, z; 3-5 translation; 6 turn about z; 7 seed of the jitter. Fixed,
so that switching one thing off does not re-deal the others."""

TWO_TO_32 = 1 << 32


@dataclass(frozen=True)
class Augment:
    """How a view is varied. The defaults are Point-MAE's, for pretraining and fine-tuning alike."""

    scale: tuple[float, float] = (2 / 3, 3 / 2)
    """Each axis is stretched by its own factor from this range. [1, 1] switches it off."""
    translate: float = 0.2
    """Each axis is shifted by up to this, in normalised units (the radius of the cloud). 0: off."""
    turn: float = 0.0
    """Turned about the vertical axis by up to this share of a full turn, either way: 0.5 gives every heading."""
    jitter: float = 0.0
    """Standard deviation of the noise added to every coordinate, cut off at three of them; 0.01 is usual. 0: off."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale: found {self.scale}, expected two rising positive factors. "
                             "Set scale: [0.667, 1.5].")
        if not 0 <= self.turn <= 0.5:
            raise ValueError(f"turn: found {self.turn}, expected a share of a turn from 0 to 0.5.")
        for name in ("translate", "jitter"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected 0 (off) or more.")


def augment(x: Tensor, known: Tensor | None, draws: Tensor, settings: Augment,
            names: Sequence[str] = ("x", "y", "z")) -> tuple[Tensor, Tensor | None]:
    """One random view per sample: turn, jitter, scale, translate. Normals follow the turn and the stretch, so that they
    stay normal to the surface; other features stay as they are.

    Args:
        x: B N F, normalised; 0 where unknown.
        known: which of x are known, or None for all; passed through.
        draws: B NUM_DRAWS in [0, 1). Each sample's view depends on its own row alone.
        names: the channels of x.
    """
    if draws.shape != (x.shape[0], NUM_DRAWS):
        raise ValueError(f"draws: found {tuple(draws.shape)}, expected {(x.shape[0], NUM_DRAWS)}.")
    if x.shape[-1] != len(names):
        raise ValueError(f"x: found {x.shape[-1]} values per point, expected {len(names)}: {', '.join(names)}.")
    draws = draws.float()
    places, features = x[..., :3], list(x[..., 3:].unbind(-1))
    at = names.index("nx") - 3 if "nx" in names else None
    normals = None if at is None else torch.stack(features[at:at + 3], -1)
    if settings.turn:
        angle = (2 * draws[:, 6] - 1) * settings.turn * 2 * math.pi
        places, normals = _turn(places, angle), None if normals is None else _turn(normals, angle)
    if settings.jitter:
        places = places + settings.jitter * _noise(draws[:, 7], x.shape[1]).clamp(-3, 3)
    if settings.scale != (1.0, 1.0):
        low, high = settings.scale
        factor = low + (high - low) * draws[:, None, 0:3]
        places, normals = places * factor, None if normals is None else _unit(normals / factor)
    if settings.translate:
        places = places + settings.translate * (2 * draws[:, None, 3:6] - 1)
    if not features:
        return places if known is None else torch.where(known, places, 0.0), known
    if at is not None and normals is not None:
        features[at:at + 3] = normals.unbind(-1)
    x = torch.cat([places, torch.stack(features, -1)], -1)
    return x if known is None else torch.where(known, x, 0.0), known


def move_mask(classes: Tensor, num_classes: int, draws: Tensor, settings: Augment) -> Tensor:
    """The classes of points, B N: they keep them, wherever `augment` moves them to."""
    return classes


def _unit(normals: Tensor) -> Tensor:
    """B N 3 of length 1; 0 stays 0."""
    return normals / normals.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1], x[..., 2]], dim=-1)


def _noise(seed: Tensor, num_points: int) -> Tensor:
    """B in [0, 1) to B N 3 normal numbers, a function of each sample's seed and nothing else.

    A generator would give numbers that depend on the place in the batch, so each number is a hash of seed and place.
    """
    pairs = 2 * num_points  # each pair of uniforms gives two normals; 3 N are needed
    place = torch.arange(2 * pairs, device=seed.device, dtype=torch.int64)
    key = (seed.double() * TWO_TO_32).long()[:, None]
    uniform = (_hash(_hash(key) ^ place).double() + 0.5) / TWO_TO_32
    first, second = uniform[:, :pairs], uniform[:, pairs:]
    radius = (-2 * first.log()).sqrt()
    normal = torch.cat([radius * (2 * math.pi * second).cos(), radius * (2 * math.pi * second).sin()], dim=1)
    return normal[:, :3 * num_points].reshape(-1, num_points, 3).float()


def _hash(value: Tensor) -> Tensor:
    """Mix 32 bits (the "lowbias32" multipliers). int64 holds the products modulo 2^64, of which 32 bits are kept."""
    value = value & (TWO_TO_32 - 1)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        value = ((value ^ (value >> shift)) * factor) & (TWO_TO_32 - 1)
    return value ^ (value >> 16)
