"""Graded damage to stored samples, in physical units, to see how a model's score falls with it: what all domains share.

Legend: C channels, D H W voxels or pixels (D is absent for flat samples).

A corruption is a function of one stored sample, a strength, and chance that depends on the sample alone. The same
sample is therefore damaged in the same manner for every model, and more of it at a higher strength: curves are paired
along both. The idea of graded corruptions is that of Hendrycks & Dietterich 2019, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from domains.contract import Contract
from domains.sample import UNKNOWN_CLASS, nearest_integer

Apply = Callable[[np.ndarray, Contract, float, np.random.Generator], np.ndarray]
"""(stored sample, contract, strength, chance) -> the sample in the same dtype, another one."""

Move = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
"""(mask, strength, the same chance) -> the mask of the damaged sample."""


@dataclass(frozen=True)
class Corruption:
    """One kind of damage."""

    unit: str
    """What the strength counts: HU, degrees, share of points."""
    strengths: tuple[float, ...]
    """Rising; what is tried unless a run says otherwise."""
    highest: float
    """A greater strength means nothing."""
    apply: Apply
    none: float = 0.0
    """The strength that does nothing."""
    moved: Move | None = None
    """Where a mask lies afterwards; None: damage leaves it in its place. Points carry their masks themselves."""


def resolution() -> Corruption:
    """Coarser pixels or voxels, the same for every kind of grid."""
    return Corruption("times coarser", (1.5, 2.0, 3.0, 4.0), 64.0, coarser, none=1.0)


def chance_for(key: str, name: str) -> np.random.Generator:
    """The chance of one sample under one corruption, the same at every strength and whatever other samples there are.

    Args:
        key: what the sample is called in the index. name: of the corruption.
    """
    digest = hashlib.sha256(f"{name}\0{key}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def noise(values: np.ndarray, contract: Contract, strength: float, chance: np.random.Generator) -> np.ndarray:
    """Normal noise with this standard deviation, in stored units, on every known value."""
    drawn = chance.standard_normal(values.shape, dtype=np.float32)
    return stored(values.astype(np.float32) + strength * drawn, known_of(values, contract), contract)


def coarser(values: np.ndarray, contract: Contract, strength: float, chance: np.random.Generator) -> np.ndarray:
    """As a sensor with pixels (voxels) this many times as wide would have seen it: averaged, then interpolated."""
    known = known_of(values, contract)
    size = tuple(max(1, round(n / strength)) for n in values.shape[1:])
    x, share = _with_share(values, known)
    linear = "bilinear" if len(size) == 2 else "trilinear"
    few = [F.interpolate(one, size=size, mode="area") for one in (x, share)]
    x, share = (F.interpolate(one, size=values.shape[1:], mode=linear, align_corners=False) for one in few)
    return stored((x / share.clamp(min=1e-6))[0].numpy(), known, contract)


def turned(values: np.ndarray, contract: Contract, strength: float, chance: np.random.Generator) -> np.ndarray:
    """Turned by so many degrees in the plane of the last two axes, to either side by chance. What comes from outside
    is unknown, or what lies at the edge where this data has nothing unknown."""
    known = known_of(values, contract)
    x, share = (one.reshape(1, -1, *values.shape[-2:]) for one in _with_share(values, known))
    height, width = values.shape[-2:]
    grid = F.affine_grid(_turn(strength, chance, height, width), [1, 1, height, width], align_corners=False)
    outside = "border" if contract.unknown is None else "zeros"
    x, share = (F.grid_sample(one, grid, mode="bilinear", padding_mode=outside, align_corners=False)
                for one in (x, share))
    seen = (share >= 0.5).numpy().reshape(values.shape) if contract.unknown is not None else known
    return stored((x / share.clamp(min=1e-6)).numpy().reshape(values.shape), seen, contract)


def turned_mask(mask: np.ndarray, strength: float, chance: np.random.Generator) -> np.ndarray:
    """The mask of a `turned` sample: the nearest class, UNKNOWN_CLASS where a pixel comes from outside."""
    height, width = mask.shape[-2:]
    grid = F.affine_grid(_turn(strength, chance, height, width), [1, 1, height, width], align_corners=False)
    shifted = torch.from_numpy(mask.astype(np.float32) + 1).reshape(1, -1, height, width)  # 0 is then outside
    found = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    classes = found.numpy().reshape(mask.shape).round().astype(np.int64)
    return np.where(classes == 0, UNKNOWN_CLASS, classes - 1).astype(np.uint8)


def mask_under(kind: Corruption, values: np.ndarray, mask: np.ndarray, contract: Contract, strength: float,
               chance: np.random.Generator) -> np.ndarray:
    """The mask that belongs to a sample under damage.

    Args:
        values: the sample before. mask: its mask before. chance: as fresh as that of the sample itself.
    """
    if contract.kind == "points":  # points are lost and turned, each with its class
        carried = np.concatenate([values, mask[:, None].astype(values.dtype)], axis=1)
        return kind.apply(carried, contract, strength, chance)[:, -1].astype(np.uint8)
    return mask if kind.moved is None else kind.moved(mask, strength, chance)


def known_of(values: np.ndarray, contract: Contract) -> np.ndarray:
    """Which values hold data; the same shape, bool."""
    if contract.unknown is None:
        return np.ones(values.shape, bool)
    return np.isfinite(values) if np.isnan(contract.unknown) else values != contract.unknown


def stored(x: np.ndarray, known: np.ndarray, contract: Contract) -> np.ndarray:
    """Floats as this data would have been stored: rounded, within the dtype, unknown where not `known`. A known value
    is kept from becoming the number that means unknown."""
    dtype = np.dtype(contract.dtype)
    if dtype.kind == "f":
        out = x.astype(dtype)
    else:
        limits = np.iinfo(dtype)
        out = np.clip(nearest_integer(x), limits.min, limits.max).astype(dtype)
        if contract.unknown is not None:
            unknown = int(contract.unknown)
            out[out == unknown] = unknown + 1 if unknown < limits.max else unknown - 1
    if contract.unknown is not None:
        out[~known] = contract.unknown
    return out


def _turn(strength: float, chance: np.random.Generator, height: int, width: int) -> Tensor:
    """1 2 3: the map of a turn by so many degrees to either side."""
    angle = np.radians(strength) * (1 if chance.random() < 0.5 else -1)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))  # the grid runs from -1 to 1 along both axes
    return torch.tensor([[[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]])


def _with_share(values: np.ndarray, known: np.ndarray) -> tuple[Tensor, Tensor]:
    """1 C ... floats, 0 where unknown, and 1 where known, else 0: a mean of both divides to a mean over the known."""
    share = torch.from_numpy(known.astype(np.float32))[None]
    x = np.where(known, values, 0).astype(np.float32)
    return torch.from_numpy(x)[None], share
