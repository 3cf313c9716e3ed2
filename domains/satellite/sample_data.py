"""The embedded satellite sample: phantom farmland in two regions, written as the GeoTIFFs that catalogues give out.

Legend: C bands, H W pixels of 10 m.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.random import Generator

from domains.satellite import phantom
from domains.satellite.units import REFLECTANCE

REGIONS = {
    "plain-spring": (phantom.SPRING, 32633, (400_000, 5_300_000)),
    "valley-autumn": (phantom.AUTUMN, 32718, (300_000, 8_600_000)),
}
"""Each with its EPSG code and the corner of its first block. Another soil, season, sun, haze and layout: the shift that
a model trained in one region pays for in the other."""

BLOCK_METRES = 10_000
"""Blocks lie this far apart: what a split keeps whole."""
TILES_PER_BLOCK = 4
BLOCKS_PER_ROW = 20
COARSE = ("B11", "B12")
"""Bands that the instrument measures at 20 m; one-file-per-band scenes hold them so."""
NODATA = 0
"""As Sentinel-2 products define it; the files say so in their headers."""
WEDGE = 0.1
"""Share of the tiles that the edge of a swath cuts off."""
WEDGE_SHARE = (0.05, 0.3)
"""How much of such a tile is missing."""
BAND_MISSING = 0.08
"""Share of the tiles that lack one band."""
SPLIT_SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}
"""Of the labelled blocks. The test share is large because the sample is small, and its intervals would be wide."""
LABEL_MISSING = 0.05
"""Share of labelled tiles whose label was lost: unknown, which must not count as negative."""


@dataclass(frozen=True)
class Sample:
    """What to generate."""

    kind: Literal["multispectral"] = "multispectral"
    """Tiles of farmland, worked in small parcels or in large ones."""
    labelled: int = 480
    """Tiles with labels, over all splits and both regions."""
    unlabelled: int = 640
    """Tiles for pretraining only."""
    size: int = 32
    """Pixels per side."""
    seed: int = 0
    """The same seed writes the same bytes."""

    def __post_init__(self) -> None:
        if self.labelled < 0 or self.unlabelled < 0 or self.labelled + self.unlabelled < 1:
            raise ValueError(f"counts: found {self.labelled} labelled and {self.unlabelled} unlabelled, "
                             "expected numbers from 0 and at least one tile.")
        if self.size < 8 or self.size % 2:
            raise ValueError(f"size: found {self.size}, expected an even number from 8: a band of 20 m covers two "
                             "pixels.")


def make(folder: Path, settings: Sample) -> None:
    """Write the tiles and labels.csv (path, group, split, source, small_parcels, bands) into `folder`."""
    with _rasterio().Env():  # entered once: for each file of its own it would take as long as the writing
        rows = _tiles(folder, settings)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _tiles(folder: Path, settings: Sample) -> list[dict[str, Any]]:
    """Write all tiles; the manifest's rows."""
    rng = np.random.default_rng(settings.seed)
    rows: list[dict[str, Any]] = []
    for i, source in enumerate(REGIONS):
        block = 0
        for labelled, total in ((True, settings.labelled), (False, settings.unlabelled)):
            count, left = (total + i) // len(REGIONS), (total + i) // len(REGIONS)
            splits = _splits(-(-count // TILES_PER_BLOCK), rng) if labelled else []
            while left:
                split = splits.pop() if labelled else "unlabelled"
                rows += _block(folder, source, block, min(TILES_PER_BLOCK, left), split, settings.size, rng)
                left -= min(TILES_PER_BLOCK, left)
                block += 1
    return rows


def _splits(blocks: int, rng: Generator) -> list[str]:
    """A split for each labelled block, in shares as near as whole blocks allow."""
    shares = np.cumsum(list(SPLIT_SHARES.values()))
    names = list(SPLIT_SHARES)
    even = [names[int(np.searchsorted(shares, (i + 0.5) / blocks))] for i in range(blocks)]
    return [even[i] for i in rng.permutation(blocks)]


def _block(folder: Path, source: str, number: int, tiles: int, split: str, size: int,
           rng: Generator) -> list[dict[str, Any]]:
    """Tiles that share soil, sun and layout."""
    region, epsg, corner = REGIONS[source]
    block, group = phantom.draw_block(rng, region), f"{source}-{number:04d}"
    # As many of each class in every block, so that neither the region nor the block is a hint.
    sizes = rng.permutation(np.arange(TILES_PER_BLOCK) % 2 == 0)
    rows = []
    for i in range(tiles):
        small = bool(sizes[i])
        scene = phantom.tile(rng, region, block, small, size)
        place = (corner[0] + BLOCK_METRES * (number % BLOCKS_PER_ROW) + 20 * size * i,
                 corner[1] - BLOCK_METRES * (number // BLOCKS_PER_ROW))
        stored = _with_wedge(np.rint(scene * REFLECTANCE).astype(np.uint16), rng)
        bands = list(phantom.BANDS)
        if rng.random() < BAND_MISSING:
            bands.pop(int(rng.integers(len(bands))))
        stacked = bool(rng.random() < 0.5)
        path = f"{source}/{group}_{i}" + (".tif" if stacked else "")
        write = _write_stacked if stacked else _write_folder
        write(folder / path, {name: stored[phantom.BANDS.index(name)] for name in bands}, epsg, place)
        known = split != "unlabelled" and rng.random() >= LABEL_MISSING
        rows.append({"path": path, "group": group, "split": split, "source": source,
                     "small_parcels": int(small) if known else "", "bands": ",".join(bands)})
    return rows


def _with_wedge(stored: np.ndarray, rng: Generator) -> np.ndarray:
    """C H W, some tiles with a corner that the swath did not reach."""
    if rng.random() >= WEDGE:
        return stored
    y, x = np.mgrid[:stored.shape[1], :stored.shape[2]]
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    return np.where(along < np.quantile(along, rng.uniform(*WEDGE_SHARE)), NODATA, stored).astype(np.uint16)


def _write_stacked(path: Path, bands: dict[str, np.ndarray], epsg: int, place: tuple[int, int]) -> None:
    """One file; the band names stand inside it."""
    _write(path, np.stack(list(bands.values())), epsg, place, 10, list(bands))


def _write_folder(path: Path, bands: dict[str, np.ndarray], epsg: int, place: tuple[int, int]) -> None:
    """One file per band, named by its end, in the band's own resolution."""
    for name, values in bands.items():
        coarse = name in COARSE
        code = f"B{int(name[1:]):02d}"
        _write(path / f"{path.name}_{code}.tif", (_coarser(values) if coarse else values)[None], epsg, place,
               20 if coarse else 10, [])


def _coarser(values: np.ndarray) -> np.ndarray:
    """H W -> H/2 W/2 means; no data where any of the four is missing, as in the products."""
    four = values.reshape(values.shape[0] // 2, 2, values.shape[1] // 2, 2)
    return np.where((four == NODATA).any(axis=(1, 3)), NODATA, np.rint(four.mean(axis=(1, 3)))).astype(np.uint16)


def _write(path: Path, values: np.ndarray, epsg: int, place: tuple[int, int], metres: int, names: list[str]) -> None:
    rasterio = _rasterio()
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = rasterio.Affine(metres, 0, place[0], 0, -metres, place[1])
    with rasterio.open(path, "w", driver="GTiff", count=len(values), height=values.shape[1], width=values.shape[2],
                       dtype="uint16", crs=f"EPSG:{epsg}", transform=transform, nodata=NODATA,
                       compress="deflate") as file:
        file.write(values)
        for i, name in enumerate(names, start=1):
            file.set_band_description(i, name)


def _rasterio() -> Any:
    try:
        import rasterio
    except ImportError as error:
        raise ImportError("writing GeoTIFF needs rasterio: pip install 'lacuna[satellite]'") from error
    return rasterio
