"""Large files that nothing is wrong with, under the limits that ingest has by default:
`python -m benchmarks.faults.large_files [NAME...]`.

Each is written anew, read as `lacuna ingest` reads it (2 GiB, 20 s), and taken away. It must be read, or be refused
with a sentence that names the setting which would allow it. Told: what it gives, the seconds from asking for it to
having all of it, and the most memory that its reading process held.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.seeds import row
from domains.medical.settings import CT, XRay
from domains.pointcloud.settings import Points
from domains.quarantine import Limits, Reader, read_all
from domains.satellite.settings import Multispectral

BANDS = ("B2", "B3", "B4", "B8")
SETTING = re.compile(r"limits\.\w+|\(?max_points\)?|tile_metres|cut: tiles|sample: ")
"""What a sentence must name, where a large file is refused."""
MILLION = 1_000_000


@dataclass(frozen=True)
class Large:
    """One kind of large file."""

    reader: Reader
    write: Callable[[Path], Path]
    """Writes it into a folder; the row's path."""


def reader_of(domain: str, settings: object) -> Reader:
    """What reads it."""
    return Reader(f"domains.{domain}.ingest", settings)


# ---- medical ----

def voxels(shape: tuple[int, int, int] = (400, 512, 512)) -> np.ndarray:
    """A body of soft tissue with grain, in air: int16 HU."""
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    inside = (y[:, None] / 0.7) ** 2 + (x[None] / 0.9) ** 2 < 1
    grain = np.random.default_rng(0).integers(-30, 90, shape, dtype=np.int16)
    return np.where(inside[None] & (np.abs(z) < 0.98)[:, None, None], grain, np.int16(-1000))


def series(folder: Path) -> Path:
    """400 slices of 512 x 512."""
    from tests.domains.medical.files import series as write
    return write(folder / "series", voxels().transpose(2, 1, 0), np.diag([-0.8, -0.8, 1.0, 1.0]))


def nifti(folder: Path) -> Path:
    """The same in one file, gzip."""
    import gzip

    import nibabel

    image = nibabel.Nifti1Image(voxels().transpose(2, 1, 0), np.diag([0.8, 0.8, 1.0, 1.0]))
    with gzip.open(folder / "large.nii.gz", "wb", compresslevel=1) as file:
        file.write(image.to_bytes())
    return folder / "large.nii.gz"


def grey(bits: int) -> np.ndarray:
    """10,000 x 10,000: a gradient with grain, as detectors have it."""
    side = np.linspace(0, 0.8, 10_000, dtype=np.float32)
    grain = np.random.default_rng(0).integers(0, 2 ** (bits - 4), (10_000, 10_000), dtype=np.uint16)
    return ((side[:, None] * side[None] * 2**bits).astype(np.uint16) + grain).astype(np.uint8 if bits == 8 else "<u2")


def dicom(folder: Path) -> Path:
    """A film of 100 million pixels."""
    from tests.domains.medical.files import dicom as write
    return write(folder / "large.dcm", grey(12))


def picture(ending: str, bits: int) -> Callable[[Path], Path]:
    """The same as PNG or JPEG."""
    def write(folder: Path) -> Path:
        from PIL import Image
        Image.fromarray(grey(bits)).save(folder / f"large{ending}", compress_level=1)
        return folder / f"large{ending}"
    return write


# ---- satellite ----

def scene(tiled: bool) -> Callable[[Path], Path]:
    """Four bands of 10,000 x 10,000, deflated: in tiles, or in strips, which lie across the whole width."""
    def write(folder: Path) -> Path:
        import rasterio
        from rasterio.windows import Window

        shape: dict[str, Any] = {"tiled": True, "blockxsize": 512, "blockysize": 512} if tiled else {}
        rng, rows = np.random.default_rng(0), 1000
        with rasterio.open(folder / "large.tif", "w", driver="GTiff", width=10_000, height=10_000, count=len(BANDS),
                           dtype="uint16", compress="deflate", zlevel=1, crs="EPSG:32633", bigtiff="yes",
                           transform=rasterio.Affine(10, 0, 400_000, 0, -10, 5_000_000), **shape) as file:
            for top in range(0, 10_000, rows):
                block = rng.integers(300, 4000, (len(BANDS), rows, 10_000), dtype=np.uint16)
                file.write(block, window=Window(0, top, 10_000, rows))
        return folder / "large.tif"
    return write


# ---- point clouds ----

def survey(ending: str, millions: int) -> Callable[[Path], Path]:
    """Ground of 2,500 by 2,000 metres with so many million points, written portion by portion."""
    def write(folder: Path) -> Path:
        import laspy

        header = laspy.LasHeader(point_format=1, version="1.2")
        header.scales, header.offsets = np.full(3, 0.001), np.array([400_000.0, 5_000_000.0, 0.0])
        rng = np.random.default_rng(0)
        with laspy.open(folder / f"large{ending}", "w", header=header) as file:
            for part in range(millions):
                xyz = rng.random((MILLION, 3)) * [2500, 2000 / millions, 20]
                xyz += header.offsets + [0, part * 2000 / millions, 0]
                points = laspy.ScaleAwarePointRecord.zeros(MILLION, header=header)
                points.x, points.y, points.z = xyz.T
                points.intensity = rng.integers(0, 4096, MILLION).astype(np.uint16)
                file.write_points(points)
        return folder / f"large{ending}"
    return write


def array(folder: Path) -> Path:
    """50 million points as NPY."""
    kept: np.ndarray = np.lib.format.open_memmap(folder / "large.npy", "w+", np.float32, (50 * MILLION, 3))
    rng = np.random.default_rng(0)
    for begin in range(0, len(kept), MILLION):
        kept[begin:begin + MILLION] = rng.random((MILLION, 3), dtype=np.float32) * [2500, 2000, 20]
    return folder / "large.npy"


def mesh(folder: Path) -> Path:
    """A binary PLY of 10 million triangles."""
    side = 2236
    y, x = np.mgrid[:side, :side].astype(np.float32)
    vertices = np.stack([x, y, 20 * np.sin(x / 50) * np.cos(y / 70)], axis=-1).reshape(-1, 3)
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1)
    faces = np.zeros((len(corner), 2), [("n", "u1"), ("corners", "<i4", 3)])
    faces["n"] = 3
    faces["corners"][:, 0] = np.stack([corner, corner + 1, corner + side], axis=-1)
    faces["corners"][:, 1] = np.stack([corner + 1, corner + side + 1, corner + side], axis=-1)
    head = (f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\nproperty float x\nproperty float y"
            f"\nproperty float z\nelement face {faces.size}\nproperty list uchar int vertex_indices\nend_header\n")
    with (folder / "large.ply").open("wb") as file:
        for part in (head.encode(), vertices.astype("<f4").tobytes(), faces.tobytes()):
            file.write(part)
    return folder / "large.ply"


FILMS = reader_of("medical", XRay(size=(224, 224)))
VOLUMES = reader_of("medical", CT(size=(96, 96, 96), spacing=(1.5, 1.5, 1.5)))
TILES = reader_of("satellite", Multispectral(bands=BANDS, sensor="sentinel2", size=(256, 256), cut="tiles",
                                             file_bands=BANDS))
WHOLE = reader_of("satellite", Multispectral(bands=BANDS, sensor="sentinel2", size=(256, 256), file_bands=BANDS))
CLOUDS, CHIPS = (reader_of("pointcloud", Points(tile_metres=metres, scale="metres", features=("intensity",)))
                 for metres in (0.0, 50.0))
FARTHEST = reader_of("pointcloud", Points(sample="farthest"))

FILES = {
    "CT series, 400 x 512 x 512": Large(VOLUMES, series),
    "NIfTI gzip, 400 x 512 x 512": Large(VOLUMES, nifti),
    "DICOM film, 100 Mpx": Large(FILMS, dicom),
    "PNG, 16 bit, 100 Mpx": Large(FILMS, picture(".png", 16)),
    "JPEG, 100 Mpx": Large(FILMS, picture(".jpg", 8)),
    "GeoTIFF in tiles, 4 x 100 Mpx, cut": Large(TILES, scene(True)),
    "GeoTIFF in strips, 4 x 100 Mpx, cut": Large(TILES, scene(False)),
    "GeoTIFF in tiles, 4 x 100 Mpx, whole": Large(WHOLE, scene(True)),
    "LAS, 50 M points, chips of 50 m": Large(CHIPS, survey(".las", 50)),
    "LAS, 50 M points, whole": Large(CLOUDS, survey(".las", 50)),
    "LAZ, 50 M points, chips of 50 m": Large(CHIPS, survey(".laz", 50)),
    "LAS, 60 M points, whole": Large(CLOUDS, survey(".las", 60)),
    "NPY, 50 M points": Large(CLOUDS, array),
    "PLY mesh, 10 M triangles": Large(FARTHEST, mesh),
}


def told(name: str, large: Large, limits: Limits) -> bool:
    """Write, read, print; whether it was read, or refused in a sentence that says what would allow it."""
    with tempfile.TemporaryDirectory() as text:
        path = large.write(Path(text))
        size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
        began, pieces, parts, peak, reason = time.monotonic(), 0, 0, 0, ""
        for outcome in read_all([row(path)], large.reader, limits):
            pieces, parts, peak = pieces + len(outcome.pieces), parts + 1, max(peak, outcome.peak_bytes)
            reason = reason or outcome.reason
        seconds = time.monotonic() - began
    good = not reason or SETTING.search(reason) is not None
    print(f"{name}: {size / 2**20:.0f} MB, {f'REFUSED: {reason}' if reason else f'{pieces} samples in {parts} parts'}, "
          f"{seconds:.1f} s, peak {peak / 2**20:.0f} MB{'' if good else ' NOT TOLD WHAT TO DO'}", flush=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of: " + "; ".join(FILES))
    parser.add_argument("--memory-gb", type=float, default=Limits().memory_gb)
    parser.add_argument("--seconds", type=int, default=Limits().seconds)
    chosen = parser.parse_args()
    limits = Limits(workers=1, memory_gb=chosen.memory_gb, seconds=chosen.seconds)
    good = [told(name, large, limits) for name, large in FILES.items()
            if not chosen.names or name.startswith(tuple(chosen.names))]
    sys.exit(0 if good and all(good) else 1)


if __name__ == "__main__":
    main()
