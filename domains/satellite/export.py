"""Writes masks of scenes as GeoTIFF: on the scene's own pixels, with its georeference, colours and names of classes."""

from __future__ import annotations

import colorsys
import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from domains.placement import Placement
from domains.publish import write_bytes
from domains.sample import UNKNOWN_CLASS
from domains.satellite.georeference import METRES_PER_DEGREE

BLOCK = 256
"""Pixels along a tile inside the file."""
GOLDEN = 0.618034
"""Of the circle of hues: neighbours in a list differ as much as they can, however many follow."""


def ending(placement: Placement) -> str:
    """Of the files that `write` makes."""
    return ".tif"


def write(path: Path, numbers: np.ndarray, placement: Placement, names: Mapping[int, str]) -> None:
    """Write uint8 numbers of classes of a whole scene, atomically: deflated, nodata UNKNOWN_CLASS, a colour table, and
    what the numbers mean as tags of the band (CLASS_0, CLASS_1 ...).

    Args:
        numbers: H W, of `placement.shape`; UNKNOWN_CLASS where nothing was looked at.

    Raises:
        DiskFull, Unwritable: what lay there before still does.
    """
    rasterio = _rasterio()
    told = {"crs": placement.crs or None, "transform": rasterio.Affine(*placement.affine)} if placement.affine else {}
    tiled = min(numbers.shape) >= BLOCK
    blocks = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK} if tiled else {}
    with warnings.catch_warnings(), rasterio.Env(GDAL_PAM_ENABLED="NO", PROJ_NETWORK="OFF"):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.MemoryFile() as memory:
            with memory.open(driver="GTiff", height=numbers.shape[0], width=numbers.shape[1], count=1, dtype="uint8",
                             nodata=UNKNOWN_CLASS, compress="deflate", bigtiff="if_safer", **blocks, **told) as file:
                file.write(numbers, 1)
                file.write_colormap(1, colours(names))
                file.set_band_description(1, "class")
                file.update_tags(1, **{f"CLASS_{i}": name for i, name in names.items()})
            write_bytes(path, memory.read())


def colours(numbers: Iterable[int]) -> dict[int, tuple[int, int, int, int]]:
    """Red, green, blue and opacity of each number. The first, which is what is left, and what is unknown are clear."""
    first, *others = numbers
    table = {first: (0, 0, 0, 0), UNKNOWN_CLASS: (0, 0, 0, 0)}
    for i, number in enumerate(others):
        red, green, blue = colorsys.hsv_to_rgb((i * GOLDEN) % 1.0, 0.8, 0.9)
        table[number] = (round(255 * red), round(255 * green), round(255 * blue), 255)
    return table


def measure(numbers: np.ndarray, placement: Placement,
            names: Mapping[int, str]) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Pixels of each number that has a name, their area (None: the file does not say where it lies), and its unit. Of
    grids in degrees each row counts by its own latitude, on a sphere."""
    rows = np.stack([(numbers == number).sum(axis=1) for number in names])
    counts = rows.sum(axis=1)
    if not placement.affine or not placement.crs:
        return counts, None, ""
    crs = _rasterio().crs.CRS.from_user_input(placement.crs)
    a, b, _, d, e, f = placement.affine
    area = abs(a * e - b * d)
    if not crs.is_geographic:
        return counts, counts * area * float(crs.linear_units_factor[1]) ** 2, "m2"
    latitudes = f + e * (np.arange(numbers.shape[0]) + 0.5) + d * numbers.shape[1] / 2
    return counts, rows @ np.cos(np.radians(latitudes)) * area * math.pow(METRES_PER_DEGREE, 2), "m2"


def _rasterio() -> Any:
    try:
        import rasterio
        import rasterio.errors
    except ImportError as error:
        raise ImportError("writing GeoTIFF needs rasterio: pip install 'lacuna[satellite]'") from error
    return rasterio
