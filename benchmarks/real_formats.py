"""Formats of ingest_rate.py whose files are real ones: films, volumes, scenes, meshes, surveys of LACUNA_SHARED."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.ingest_rate import (
    MEDICAL,
    POINTS,
    SATELLITE,
    Format,
    decode_dicom,
    decode_geotiff,
    decode_mesh,
    decode_nifti,
    decode_picture,
    decode_survey,
)
from domains.medical.settings import CT, XRay
from domains.pointcloud.settings import Points
from domains.satellite.settings import Multispectral

SETTLEMENT = ("B2", "B3", "B4", "B8A")
TWELVE = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")
LANDSAT = ("coastal", "blue", "green", "red", "nir", "swir1", "swir2")


def decode_series(path: Path) -> object:
    """All slices of a folder."""
    return [decode_dicom(file) for file in sorted(path.iterdir())]


def decode_points(path: Path) -> object:
    """A PLY file without faces."""
    import open3d
    return open3d.io.read_point_cloud(str(path))


def real_formats(folder: Path) -> dict[str, Format]:
    """Those of which there are files in this folder.

    Raises:
        FileNotFoundError: there are none.
    """
    found = {each.name: each for each in (
        _of(folder, "JPEG film, 256 px", "cxr/nih/**/*.jpg", decode_picture, MEDICAL, XRay(), 100),
        _of(folder, "JPEG film in colour, 224 px", "cxr/kermany/**/*.jp*g", decode_picture, MEDICAL, XRay(), 100),
        _of(folder, "CT series, JPEG 2000", "ct/*/series", decode_series, MEDICAL, CT(), 2),
        _of(folder, "NIfTI.gz, nodules", "ct/lidc/image/*.nii.gz", decode_nifti, MEDICAL, CT(), 60),
        _of(folder, "NIfTI.gz, head and neck", "ct/openkbp/*/ct.nii.gz", decode_nifti, MEDICAL, CT(), 4),
        _of(folder, "GeoTIFF, 4 bands, 32 px", "multispectral/ba_settlement/*.tif", decode_geotiff, SATELLITE,
            _scenes("sentinel2", SETTLEMENT, 32), 60),
        _of(folder, "GeoTIFF, 12 bands, 64 px", "multispectral/s2_l2a_unlabelled/*.tif", decode_geotiff, SATELLITE,
            _scenes("sentinel2", TWELVE, 64), 60),
        _of(folder, "GeoTIFF, 7 bands, 128 px", "multispectral/l8_landcover/*.tif", decode_geotiff, SATELLITE,
            _scenes("landsat8", LANDSAT, 128), 60),
        _of(folder, "OFF mesh, up to 110 kB", "pointcloud/psb/**/*.off", decode_mesh, POINTS, Points(), 100),
        _of(folder, "PLY cloud, 2,048 points", "pointcloud/dales/**/*.ply", decode_points, POINTS, Points(), 100),
        _of(folder, "LAZ survey", "pointcloud/als/*.laz", decode_survey, POINTS, Points(), 4)) if each is not None}
    if not found:
        raise FileNotFoundError(f"{folder}: found no real file, expected the folder that LACUNA_SHARED/data is. "
                                "Remedy: name another folder, or time without --real.")
    return found


def _scenes(sensor: Any, names: tuple[str, ...], edge: int) -> Multispectral:
    return Multispectral(bands=names, file_bands=names, sensor=sensor, size=(edge, edge))


def _of(folder: Path, name: str, pattern: str, decode: Callable[[Path], object], module: str, settings: object,
        count: int) -> Format | None:
    """Files spread over all of this pattern; the same ones again where there are fewer."""
    files = sorted(folder.glob(pattern))
    if not files:
        return None
    step = max(1, len(files) // count)
    return Format(name, lambda _, seed: files[seed * step % len(files)], decode, None, module, settings, count)
