"""Farmland that never was, seen from above: parcels, crops, soils, woods, water and roads, as linear mixtures of the
spectra that such surfaces have.

The question put to a model is whether the land is worked in small parcels or in large ones. Small and large tiles hold
the same surfaces in the same shares, so no mean and no spread of a band answers: their arrangement does. Parcels differ
in what grows on them, which moves red and near infrared against each other. Irrigation and cultivation leave patches
with straight edges too, which move all bands together: large ones where parcels are small, small ones where they are
large. Within one band the two are much alike, so the answer lies in space and spectrum taken together. To restore a
hidden band or patch one must tell the two apart as well, which is why masked pretraining can help.

Legend: C bands, H W pixels of 10 m, h w sub-pixels of 5 m.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.random import Generator

BANDS = ("B2", "B3", "B4", "B8", "B11", "B12")
WAVELENGTHS = np.array([492.4, 559.8, 664.6, 832.8, 1613.7, 2202.4])

# Reflectance of pure surfaces in the order of BANDS, rounded from what such surfaces show in Sentinel-2 scenes: leaves
# absorb red, scatter near infrared and hold water that absorbs short-wave infrared; ripe ones do each less.
LEAF = np.array([0.030, 0.070, 0.035, 0.46, 0.21, 0.10])
RIPE_LEAF = np.array([0.050, 0.095, 0.100, 0.33, 0.29, 0.17])
GRASS = np.array([0.045, 0.085, 0.070, 0.33, 0.25, 0.14])
WOOD = np.array([0.022, 0.042, 0.024, 0.27, 0.13, 0.06])
WATER = np.array([0.055, 0.050, 0.030, 0.020, 0.010, 0.008])
ROAD = np.array([0.130, 0.150, 0.165, 0.20, 0.24, 0.23])
BROWN_SOIL = np.array([0.065, 0.095, 0.135, 0.21, 0.29, 0.25])
RED_SOIL = np.array([0.075, 0.125, 0.215, 0.31, 0.39, 0.34])

SUB = 2
"""Sub-pixels per pixel side: edges fall inside pixels, as they do."""
MARGIN = 8
"""Sub-pixels simulated around the tile, since a pixel sees a little beyond its own edges."""
OPTICS = 0.53
"""Standard deviation in pixels of what one pixel sees: optics 0.45, and the detector's cell."""


@dataclass(frozen=True)
class Region:
    """A place in a season. What differs between two of them is the shift that a model must stand."""

    soil: np.ndarray
    """Spectrum of bare soil, C."""
    cover: float
    """How much of the ground the crop hides: falls towards harvest, and the contrast between parcels with it."""
    ripe: float
    """Share of ripe leaf in the crop."""
    haze: float
    """Reflectance that air adds at 490 nm; falls with the cube of the wavelength."""
    light: float
    """Illumination relative to the reference: a low sun, unevenly corrected."""
    scale: float
    """Size of all parcels relative to the reference."""
    angle: float
    """Direction that most parcels have, radians: land is laid out by one survey."""


SPRING = Region(soil=BROWN_SOIL, cover=0.85, ripe=0.0, haze=0.010, light=1.0, scale=1.0, angle=0.2)
AUTUMN = Region(soil=RED_SOIL, cover=0.70, ripe=0.3, haze=0.025, light=0.85, scale=1.15, angle=0.6)

# Difficulty. Set so that a small transformer trained from scratch on about 240 labels reaches an AUROC between 0.70
# and 0.95 and means of bands stay below 0.60; tests/domains/satellite/test_sample_data.py holds them to it.
SMALL = (4.0, 7.0)
"""Widths of small parcels in pixels."""
LARGE = (9.0, 14.0)
"""Widths of large parcels in pixels."""
MIMIC = 0.18
"""Relative brightness of the patches that only look like parcels (standard deviation). At 0 one band is enough and the
question is easy; at 0.35 one band says nothing."""
TEXTURE = 0.05
"""Relative brightness of what varies within any surface, at about two pixels."""
SENSOR_NOISE = 0.003
"""Standard deviation of reflectance per pixel; Sentinel-2 has about 0.002 at this brightness, correction adds some."""
SHARES = (5.0, 3.0, 2.0, 1.5)
"""Dirichlet weights of crop, bare soil, grass and wood in a tile. Small sums make tiles differ more in their means than
the number of parcels in them could."""


@dataclass(frozen=True)
class Block:
    """What neighbouring tiles share. Two tiles of one block look more alike than two of the same class."""

    angle: float
    """Direction of the parcels, radians."""
    cover: float
    """Added to the region's."""
    haze: float
    """Multiplies the region's."""
    light: float
    """Multiplies the region's."""
    soil: float
    """Share of the other region's soil."""


def draw_block(rng: Generator, region: Region) -> Block:
    """One block of tiles."""
    return Block(angle=region.angle + rng.normal(0, 0.2), cover=rng.normal(0, 0.05), haze=rng.uniform(0.5, 1.5),
                 light=rng.normal(1, 0.06), soil=rng.uniform(0, 0.25))


def tile(rng: Generator, region: Region, block: Block, small: bool, size: int) -> np.ndarray:
    """C H W reflectance of one tile."""
    side = SUB * size + 2 * MARGIN
    parcels = _parcels(rng, SMALL if small else LARGE, region, block, side)
    crop, _, grass, wood = (parcels_of == 1 for parcels_of in _one_hot(_uses(rng, parcels)[parcels]))
    soil = _mix(region.soil, RED_SOIL if region.soil is BROWN_SOIL else BROWN_SOIL, block.soil)[:, None, None]
    cover = np.clip(region.cover + block.cover + 0.05 * _field(rng, side, 6.0), 0, 1)
    leaf = _mix(LEAF, RIPE_LEAF, region.ripe)[:, None, None]
    scene = np.where(crop, leaf * cover + soil * (1 - cover), soil)
    scene = np.where(grass, GRASS[:, None, None], scene)
    scene = np.where(wood, WOOD[:, None, None] * (1 + 0.2 * _field(rng, side, 1.5)), scene)
    patches = _parcels(rng, LARGE if small else SMALL, region, block, side)
    brightness = rng.normal(0, MIMIC, patches.max() + 1)[patches] + TEXTURE * _field(rng, side, 1.5 * SUB)
    scene = _lay_lines(rng, scene * np.exp(brightness), block.angle)
    return _look(rng, scene, region, block, size)


def _one_hot(uses: np.ndarray) -> np.ndarray:
    """h w numbers of uses -> 4 h w."""
    return (uses == np.arange(4)[:, None, None]).astype(int)


def _mix(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    return one * (1 - share) + other * share


def _field(rng: Generator, side: int, width: float) -> np.ndarray:
    """A smooth random field, h w, mean 0 and standard deviation 1, with a kernel this wide in sub-pixels."""
    kernel = _smoothing(side, side, width)
    field = kernel @ rng.standard_normal((side, side)) @ kernel.T
    return (field - field.mean()) / field.std()


@cache
def _smoothing(out: int, side: int, width: float) -> np.ndarray:
    """out side: Gaussian weights around the middle of each of `out` equal cells of an axis; rows sum to 1."""
    centres = (np.arange(out) + 0.5) * side / out - 0.5
    weight = np.exp(-(((centres[:, None] - np.arange(side)) / width) ** 2) / 2)
    return weight / weight.sum(axis=1, keepdims=True)


def _parcels(rng: Generator, widths: tuple[float, float], region: Region, block: Block, side: int) -> np.ndarray:
    """h w numbers of parcels: a turned grid whose rows are cut at different places."""
    y, x = np.mgrid[:side, :side] - side / 2
    u = x * np.cos(block.angle) + y * np.sin(block.angle)
    v = -x * np.sin(block.angle) + y * np.cos(block.angle)
    wide = (SUB * region.scale * widths[0], SUB * region.scale * widths[1])
    row = np.searchsorted(_cuts(rng, wide, side), v)
    number = np.zeros((side, side), int)
    for i in range(row.max() + 1):
        number[row == i] = 100 * i + np.searchsorted(_cuts(rng, wide, side), u[row == i])
    return np.unique(number, return_inverse=True)[1].reshape(side, side)


def _cuts(rng: Generator, widths: tuple[float, float], side: int) -> np.ndarray:
    steps = rng.uniform(*widths, size=int(2 * side / widths[0]) + 2)
    return np.cumsum(steps) - side - rng.uniform(0, steps[0])


def _uses(rng: Generator, parcels: np.ndarray) -> np.ndarray:
    """Per parcel 0 crop, 1 bare soil, 2 grass, 3 wood, in shares that do not depend on the parcels' size."""
    inner = parcels[MARGIN:-MARGIN, MARGIN:-MARGIN]
    wanted = rng.dirichlet(SHARES) * inner.size
    areas = np.bincount(inner.ravel(), minlength=parcels.max() + 1)
    uses = np.zeros(len(areas), int)
    for parcel in rng.permutation(len(areas)):
        left = np.cumsum(np.clip(wanted, 1e-9, None))  # chances in proportion to what is still wanted
        uses[parcel] = np.searchsorted(left, rng.random() * left[-1])
        wanted[uses[parcel]] -= areas[parcel]
    return uses


def _lay_lines(rng: Generator, scene: np.ndarray, angle: float) -> np.ndarray:
    """A road along the parcels in two tiles of five, a river across them in one of five."""
    side = scene.shape[-1]
    y, x = np.mgrid[:side, :side] - side / 2
    for chance, spectrum, turn, width in ((0.4, ROAD, 0.0, 1.6), (0.2, WATER, np.pi / 2, 5.0)):
        off = rng.uniform(-0.4, 0.4) * side
        wave = 2.0 * np.sin((x + y) / rng.uniform(8, 16)) if spectrum is WATER else 0.0
        distance = np.abs(-x * np.sin(angle + turn) + y * np.cos(angle + turn) - off + wave)
        if rng.random() < chance:
            scene = np.where(distance < width / 2, spectrum[:, None, None], scene)
    return scene


def _look(rng: Generator, scene: np.ndarray, region: Region, block: Block, size: int) -> np.ndarray:
    """What the instrument makes of it: optics, pixels, illumination, air, noise."""
    # Optics and pixels in one: a Gaussian around the middle of each pixel.
    sight = _smoothing(size + 2 * MARGIN // SUB, scene.shape[-1], OPTICS * SUB)[MARGIN // SUB:size + MARGIN // SUB]
    seen = sight @ scene @ sight.T
    air = region.haze * block.haze * (WAVELENGTHS / WAVELENGTHS[0]) ** -3
    seen = seen * region.light * block.light + air[:, None, None]
    return np.clip(seen + rng.normal(0, SENSOR_NOISE, seen.shape), 0.0001, 1.0)
