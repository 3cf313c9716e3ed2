"""What a script does that brings raw files to a training grid with the usual libraries: the rival of ingest.

MONAI for films and volumes, rasterio for scenes, Open3D for meshes, laspy for surveys; one file after the other in one
process, without limits, hashes, facts, masks, placement, or a look for text that is burned in. `same` says whether a
result is ours: exactly where nothing is resampled, and as far as two ways of averaging pixels or of drawing points
agree elsewhere.

Legend: C channels, D H W voxels or pixels, M points.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from domains.sample import Piece

FILM, SPACING, POINTS = (224, 224), (1.5, 1.5, 1.5), 8192


@cache
def _film_steps(reader: str) -> Callable[[str], Any]:
    from monai import transforms
    return transforms.Compose([
        transforms.LoadImage(reader=reader, image_only=True, ensure_channel_first=True),
        transforms.ScaleIntensityRangePercentiles(0.5, 99.5, 0, 255, clip=True),
        transforms.Transpose((0, 2, 1)),
        transforms.Resize(FILM, mode="area")])


def film(path: Path) -> np.ndarray:
    """C H W uint8: percentiles of the film to 0 and 255, then the mean of what a pixel covers."""
    reader = "PydicomReader" if path.suffix == ".dcm" else "PILReader"
    return np.asarray(_film_steps(reader)(str(path)).round()).astype(np.uint8)


@cache
def _volume_steps() -> Callable[[str], Any]:
    from monai import transforms
    return transforms.Compose([
        transforms.LoadImage(reader="NibabelReader", image_only=True, ensure_channel_first=True),
        transforms.Orientation("LPS", labels=None),
        transforms.Spacing(SPACING, mode="bilinear"),
        transforms.Transpose((0, 3, 2, 1))])


def volume(path: Path) -> np.ndarray:
    """C D H W int16, towards superior, posterior and left, in steps of 1.5 mm."""
    return np.asarray(_volume_steps()(str(path)).round()).astype(np.int16)


def scene(path: Path) -> np.ndarray:
    """C H W uint16: a file of bands, or a folder with one file for each."""
    import rasterio
    if path.is_file():
        with rasterio.open(path) as file:
            return np.asarray(file.read())
    bands = []
    for file in sorted(path.iterdir()):
        with rasterio.open(file) as band:
            bands.append(band.read(1))
    return np.stack(bands)


def _unit_sphere(points: np.ndarray) -> np.ndarray:
    points = points - points.mean(0)
    return np.asarray(points / np.linalg.norm(points, axis=1).max(), np.float16)


def mesh(path: Path) -> np.ndarray:
    """M 3 float16 on the surface, by area, in the unit sphere."""
    import open3d
    shape = open3d.io.read_triangle_mesh(str(path))
    return _unit_sphere(np.asarray(shape.sample_points_uniformly(POINTS).points))


def survey(path: Path) -> np.ndarray:
    """M 3 float16 at random, in the unit sphere."""
    import laspy
    points = laspy.read(path).xyz
    return _unit_sphere(points[np.random.default_rng(0).choice(len(points), POINTS, replace=False)])


def same(plain: np.ndarray, ours: Piece) -> bool:
    """Whether both made the same sample of a file. Films: to 1 % of the range on average, after a linear fit, since
    where grey begins and ends is not cut alike. Points: each close to one of the other's."""
    found = ours.values
    if found.ndim == 2:
        apart = [cKDTree(a[:, :3]).query(b[:, :3])[0].mean() for a, b in ((plain, found), (found, plain))]
        return plain.shape[0] == found.shape[0] and max(apart) < 0.05
    if plain.shape != found.shape:
        return False
    if found.shape[0] > 1 or found.ndim == 4:
        return bool(np.array_equal(plain, found))
    a, b = plain.ravel().astype(float), found.ravel().astype(float)
    slope, offset = np.polyfit(a, b, 1)
    return bool(np.abs(slope * a + offset - b).mean() < 0.01 * np.ptp(b))
