"""Masks from filtered noise: where patches are hidden is random, how large the hidden pieces are is not (ColorMAE,
Hinojosa et al. 2024, section 3).

Legend: B batch, N patches, K place coordinates, W waves, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.encoder.chance import Chance
from models.encoder.mask_lists import check_ratio, split_by_score
from models.encoder.patches import Mask, Patches

_WHITE, _RADIUS, _ANGLE, _PHASE = 31, 32, 33, 34  # streams of chance
_REACH = 3
"""Standard deviations after which a Gaussian is cut off."""
_FINEST = 0.25
"""Spacings. Waves of this Gaussian's spectrum are so short that neighbouring centres see unrelated values: white."""


@dataclass(frozen=True)
class ColourNoiseMasking:
    """Filter white noise, hide the patches where it is highest.

    With G(s) a Gaussian of width s: red is G(sigma), blue is what red leaves, green is G(sigma) - G(wide_sigma), a band
    of sizes, purple is what green leaves. On a grid the noise is drawn beyond its edges and cut, as if out of a larger
    picture; for points the field is a sum of random waves, evaluated at the centres, whose unit of length is the mean
    distance between neighbouring centres. Noise is drawn anew for every sample and step, from `chance`.
    """

    kind: Literal["colour_noise"] = "colour_noise"
    ratio: float = 0.75
    """Share of the patches with data that is hidden."""
    colour: Literal["red", "green", "blue", "purple"] = "green"
    """Sizes kept: red large, blue small, green those between, purple all but those between. Green was the best."""
    sigma: float = 0.75
    """Width of the narrow Gaussian, in patches."""
    wide_sigma: float = 1.5
    """Width of the wide Gaussian, in patches; red and blue have no use for it."""
    per_band: bool = False
    """The first axis of the grid is a band: each has a noise of its own. For the tokenizer bands."""
    num_waves: int = 128
    """Waves summed into the field, for points."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if not 0 < self.sigma < self.wide_sigma or self.num_waves < 1:
            raise ValueError(f"colour noise: found sigma {self.sigma}, wide_sigma {self.wide_sigma} and num_waves "
                             f"{self.num_waves}, expected 0 < sigma < wide_sigma and at least one wave.")

    def __call__(self, patches: Patches, chance: Chance) -> Mask:
        return split_by_score(self.noise(patches, chance), patches.usable(), self.ratio)

    def noise(self, patches: Patches, chance: Chance) -> Tensor:
        """-> B N float64: in float32, devices would round differently and order neighbours differently now and then."""
        if patches.grid is None:
            return self._at_centres(patches.place.double(), chance)
        return self._on_grid(patches.grid, chance)

    def _on_grid(self, grid: tuple[int, ...], chance: Chance) -> Tensor:
        """-> B N, N in the grid's own order: first axis slowest."""
        planes, axes = (grid[0], grid[1:]) if self.per_band else (1, grid)
        margin = math.ceil(_REACH * self.wide_sigma)
        padded = [size + 2 * margin for size in axes]
        white = chance.uniform(planes * math.prod(padded), _WHITE).double() - 0.5
        white = white.reshape(-1, *padded)                                   # B*planes, *padded
        narrow = _smooth(white, self.sigma, margin)                          # B*planes, *axes
        plain = white[(slice(None), *(slice(margin, -margin) for _ in axes))]
        match self.colour:
            case "red":
                field = narrow
            case "blue":
                field = plain - narrow
            case "green":
                field = narrow - _smooth(white, self.wide_sigma, margin)
            case "purple":
                field = plain - narrow + _smooth(white, self.wide_sigma, margin)
        return field.reshape(-1, planes * math.prod(axes))

    def _at_centres(self, place: Tensor, chance: Chance) -> Tensor:
        """place B N K -> B N: random Fourier features (Rahimi & Recht 2007). A wave's direction and length are drawn
        from the spectrum of one Gaussian; its amplitude turns that spectrum into the colour's."""
        dims = place.shape[-1]
        at = place / _spacing(place)[:, None, None]
        finest = min(_FINEST, self.sigma / 2)
        drawn = self.sigma if self.colour in ("red", "green") else finest
        # A field smoothed by a Gaussian of width s has the power spectrum of a normal with deviation 1 / (s sqrt 2)
        wave = _normal(chance, self.num_waves * dims).reshape(-1, self.num_waves, dims) / (drawn * math.sqrt(2))
        square = wave.square().sum(-1)                                       # B W
        narrow, wide = (torch.exp(-(s * s - drawn * drawn) * square / 2) for s in (self.sigma, self.wide_sigma))
        match self.colour:
            case "red":
                amplitude = narrow
            case "blue":
                amplitude = 1 - narrow
            case "green":
                amplitude = narrow - wide
            case "purple":
                amplitude = 1 - narrow + wide
        phase = 2 * math.pi * chance.uniform(self.num_waves, _PHASE).double()
        angle = at @ wave.transpose(1, 2) + phase[:, None]                   # B N W
        return (amplitude[:, None] * angle.cos()).sum(-1)


def _smooth(noise: Tensor, sigma: float, margin: int) -> Tensor:
    """B *padded -> B *axes: a Gaussian along every axis, cut where it would need more than the margin."""
    for _ in range(noise.dim() - 1):
        size = noise.shape[1] - 2 * margin
        to = torch.arange(size, device=noise.device, dtype=noise.dtype)[:, None] + margin
        distance = to - torch.arange(noise.shape[1], device=noise.device, dtype=noise.dtype)
        kernel = torch.exp(-0.5 * (distance / sigma).square()).masked_fill(distance.abs() > margin, 0)
        noise = torch.tensordot(noise, kernel / kernel.sum(1, keepdim=True), dims=([1], [1]))   # this axis goes last
    return noise


def _spacing(place: Tensor) -> Tensor:
    """place B N K -> B: mean distance from a centre to the nearest other one."""
    apart = (place[:, :, None] - place[:, None]).square().sum(-1)            # B N N
    apart.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest = apart.amin(-1).sqrt()
    return nearest.nan_to_num(posinf=1.0).mean(1).clamp(min=1e-12)


def _normal(chance: Chance, count: int) -> Tensor:
    """B count standard normals (Box & Muller 1958)."""
    radius = (-2 * torch.log1p(-chance.uniform(count, _RADIUS).double())).sqrt()
    return radius * (2 * math.pi * chance.uniform(count, _ANGLE).double()).cos()
