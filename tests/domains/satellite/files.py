"""Small rasters for tests: written with rasterio, then bent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from domains.sample import ManifestRow

CANARY = "Mustermann"
"""A text in every header that must never come back out."""


def row(path: Path, mask: Path | None = None, source: str = "s", **columns: str) -> ManifestRow:
    """A manifest row for one file or folder."""
    return ManifestRow(path=path, key=path.name, group="g", split="train", source=source, mask_path=mask,
                       columns=columns)


def raster(path: Path, values: np.ndarray, names: tuple[str, ...] = (), metres: float = 10.0,
           corner: tuple[float, float] = (400_000.0, 5_300_000.0), epsg: int | None = 32633, **options: Any) -> Path:
    """C H W (or H W) as a GeoTIFF, or whatever `driver` says."""
    import rasterio

    values = values if values.ndim == 3 else values[None]
    placed = {} if epsg is None else {
        "crs": f"EPSG:{epsg}", "transform": rasterio.Affine(metres, 0, corner[0], 0, -metres, corner[1])}
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"transform": options.pop("transform")} if "transform" in options else {}
    scales, offsets = options.pop("scales", None), options.pop("offsets", None)
    with rasterio.open(path, "w", **{"driver": "GTiff", **options}, count=len(values), height=values.shape[1],
                       width=values.shape[2], dtype=values.dtype.name, **{**placed, **place}) as file:
        file.write(values)
        if options.get("driver", "GTiff") == "GTiff":
            file.update_tags(OWNER=CANARY)
        if scales:
            file.scales, file.offsets = scales, offsets
        for i, name in enumerate(names, start=1):
            file.set_band_description(i, name)
    return path


def scene(bands: int = 4, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """C H W uint16 of plausible reflectance x 10000."""
    rng = np.random.default_rng(seed)
    level = np.linspace(400, 3000, bands)[:, None, None]
    return np.clip(rng.normal(level, level / 5, (bands, height, width)), 1, 9000).astype(np.uint16)
