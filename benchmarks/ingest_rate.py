"""What reading a file in a limited child costs beside its bare decoder: `python -m benchmarks.ingest_rate [FORMAT...]`.

With `--real [FOLDER]` on real files (real_formats.py) instead of made ones.

Files of one format are written, then decoded by a library alone in this process, brought to the training grid by a
plain script of the usual libraries (plain_ingest.py), read by our reader in this process, and read as ingest does it:
in child processes, hashed, brought to the training grid, shipped back. Hashing is told apart, since every file that is
taken in is hashed, wherever it is read. Script and reader must make the same sample, or nothing is timed. All are
counted in seconds of the processor, of this process and of its children, without what starting a child costs. With as
many children as cores, files per second over (bare decoder x cores) is a ratio of these seconds, and what else the
machine does is not counted. `at best` is that ratio if all that we did were to decode and to hash: where it is below
the bar, no reader of ours could meet it. Every file must be read, or nothing is reported.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import plain_ingest
from benchmarks.paired import quartiles, report, told
from domains import worker
from domains.medical.settings import CT, XRay
from domains.pointcloud.settings import Points
from domains.quarantine import Limits, Reader, read_all
from domains.sample import ManifestRow
from domains.satellite.settings import Multispectral

BAR = 0.9


@dataclass(frozen=True)
class Format:
    """How files of one format are made, read by their library alone, and read by us."""

    name: str
    write: Callable[[Path, int], Path]
    """A file in this folder from this seed; returns its path."""
    decode: Callable[[Path], object]
    plain: Callable[[Path], np.ndarray] | None
    """None: no script is compared."""
    module: str
    settings: object
    count: int
    """Files per round."""


def film(seed: int, size: int = 1024, depth: int = 8) -> np.ndarray:
    """A smooth picture with noise, as a detector would give."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    smooth = 0.4 + 0.2 * np.sin(5 * x + seed) + 0.2 * np.cos(4 * y)
    values = np.clip(smooth + rng.normal(0, 0.01, (size, size)), 0, 1) * (2**depth - 1)
    return values.astype(np.uint8 if depth == 8 else np.uint16)


def dicom(folder: Path, seed: int, syntax: str = "") -> Path:
    """A 12-bit film of 1,024 x 1,024."""
    from pydicom import uid
    from pydicom.dataset import FileDataset, FileMetaDataset
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    path = folder / f"{seed}.dcm"
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    stored = film(seed, depth=12)
    for name, value in {"SOPClassUID": meta.MediaStorageSOPClassUID, "Modality": "DX", "SamplesPerPixel": 1,
                        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID, "Rows": 1024, "Columns": 1024,
                        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 12,
                        "HighBit": 11, "PixelRepresentation": 0, "PixelData": stored.tobytes()}.items():
        setattr(header, name, value)
    if syntax:
        header.compress(getattr(uid, syntax))
    header.save_as(path, enforce_file_format=True)
    return path


def decode_dicom(path: Path) -> object:
    import pydicom
    return pydicom.dcmread(path).pixel_array


def picture(folder: Path, seed: int, ending: str = "png") -> Path:
    """An 8-bit film of 1,024 x 1,024."""
    from PIL import Image
    path = folder / f"{seed}.{ending}"
    Image.fromarray(film(seed)).save(path)
    return path


def decode_picture(path: Path) -> object:
    from PIL import Image
    return np.asarray(Image.open(path))


def nifti(folder: Path, seed: int) -> Path:
    """A volume of 128 x 128 x 96 voxels of 1.5 mm, gzipped."""
    import nibabel
    rng = np.random.default_rng(seed)
    hu = (200 * np.sin(np.mgrid[:128, :128, :96] / 9).sum(0) + rng.normal(0, 20, (128, 128, 96))).astype(np.int16)
    path = folder / f"{seed}.nii.gz"
    image = nibabel.Nifti1Image(hu, np.diag([1.5, 1.5, 1.5, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def decode_nifti(path: Path) -> object:
    import nibabel
    return np.asarray(nibabel.load(path).dataobj)


BANDS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")


def geotiff(folder: Path, seed: int, names: tuple[str, ...] = BANDS, name: str = "") -> Path:
    """Bands of 120 x 120 pixels of 10 m, deflated."""
    import rasterio
    from rasterio.transform import from_origin
    rng = np.random.default_rng(seed)
    path = folder / (name or f"{seed}.tif")
    base = 2000 + 800 * np.sin(np.mgrid[:120, :120] / 15).sum(0)
    with rasterio.open(path, "w", driver="GTiff", width=120, height=120, count=len(names), dtype="uint16",
                       crs="EPSG:32632", transform=from_origin(5e5, 5e6, 10, 10), compress="deflate") as out:
        for i, band in enumerate(names, start=1):
            out.write((base + rng.normal(0, 30, base.shape)).astype(np.uint16), i)
            out.set_band_description(i, band)
    return path


def bands(folder: Path, seed: int) -> Path:
    """A folder with one file per band."""
    scene = folder / f"scene{seed}"
    scene.mkdir()
    for band in BANDS:
        geotiff(scene, seed, (band,), f"scene{seed}_{band}.tif")
    return scene


def decode_geotiff(path: Path) -> object:
    import rasterio
    with rasterio.open(path, driver="GTiff") as file:
        return file.read()


def decode_bands(path: Path) -> object:
    return [decode_geotiff(file) for file in sorted(path.iterdir())]


def mesh(folder: Path, seed: int, ending: str = "off") -> Path:
    """A bumpy sphere of 10,000 triangles."""
    import open3d
    shape = open3d.geometry.TriangleMesh.create_sphere(1.0, 50)
    points = np.asarray(shape.vertices)
    shape.vertices = open3d.utility.Vector3dVector(points * (1 + 0.1 * np.sin(5 * points[:, :1] + seed)))
    path = folder / f"{seed}.{ending}"
    open3d.io.write_triangle_mesh(str(path), shape)
    return path


def decode_mesh(path: Path) -> object:
    import open3d
    return open3d.io.read_triangle_mesh(str(path))


def survey(folder: Path, seed: int, ending: str = "las") -> Path:
    """100,000 points of an aerial scan."""
    import laspy
    rng = np.random.default_rng(seed)
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.scales, header.offsets = np.full(3, 0.001), np.zeros(3)
    cloud = laspy.LasData(header)
    x, y = rng.uniform(0, 100, (2, 100_000))
    cloud.x, cloud.y, cloud.z = x, y, 5 * np.sin(x / 9) + rng.normal(0, 0.1, x.shape)
    cloud.intensity = rng.integers(0, 4000, x.shape).astype(np.uint16)
    path = folder / f"{seed}.{ending}"
    cloud.write(path)
    return path


def decode_survey(path: Path) -> object:
    import laspy
    return laspy.read(path).xyz


MEDICAL, SATELLITE, POINTS = ("domains.medical.ingest", "domains.satellite.ingest", "domains.pointcloud.ingest")
FILMS, SCENES = XRay(), Multispectral(bands=BANDS, sensor="sentinel2", size=(120, 120))
FORMATS = {each.name: each for each in (
    Format("DICOM", dicom, decode_dicom, plain_ingest.film, MEDICAL, FILMS, 60),
    Format("DICOM JPEG 2000", lambda folder, seed: dicom(folder, seed, "JPEG2000Lossless"), decode_dicom,
           plain_ingest.film, MEDICAL, FILMS, 20),
    Format("PNG", picture, decode_picture, plain_ingest.film, MEDICAL, FILMS, 60),
    Format("JPEG", lambda folder, seed: picture(folder, seed, "jpg"), decode_picture, plain_ingest.film, MEDICAL, FILMS,
           60),
    Format("NIfTI.gz", nifti, decode_nifti, plain_ingest.volume, MEDICAL, CT(), 20),
    Format("GeoTIFF, 10 bands", geotiff, decode_geotiff, plain_ingest.scene, SATELLITE, SCENES, 60),
    Format("GeoTIFF, a file per band", bands, decode_bands, plain_ingest.scene, SATELLITE, SCENES, 40),
    Format("PLY mesh", lambda folder, seed: mesh(folder, seed, "ply"), decode_mesh, plain_ingest.mesh, POINTS, Points(),
           60),
    Format("OFF mesh", mesh, decode_mesh, plain_ingest.mesh, POINTS, Points(), 40),
    Format("LAS", survey, decode_survey, plain_ingest.survey, POINTS, Points(), 40),
    Format("LAZ", lambda folder, seed: survey(folder, seed, "laz"), decode_survey, plain_ingest.survey, POINTS,
           Points(), 40),
)}


def processor_seconds() -> float:
    """Of this process and of the children that have ended."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def reading(form: Format, rows: list[ManifestRow], workers: int) -> tuple[float, float]:
    """Processor and clock seconds of reading all rows, children's start included."""
    began, clock = processor_seconds(), time.perf_counter()
    for outcome in read_all(rows, Reader(form.module, form.settings), Limits(workers=workers)):
        if not outcome.pieces:
            raise AssertionError(f"{form.name}: {outcome.reason}. Expected every file to be read before it is timed.")
    return processor_seconds() - began, time.perf_counter() - clock


def cost(work: Callable[[ManifestRow], object], rows: list[ManifestRow]) -> float:
    """Processor seconds of a row in this process."""
    began = processor_seconds()
    for row in rows:
        work(row)
    return max(processor_seconds() - began, 1e-9) / len(rows)


def measure(form: Format, workers: int, rounds: int, share: float = 1.0) -> dict[str, Any]:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        few = [ManifestRow(path, path.name, path.name, "train", "") for path in
               (form.write(Path(scratch), seed) for seed in range(max(int(form.count * share), 2)))]
        rows = few * 5                                                      # the same files again: starting weighs less
        hashed = [replace(row, sha256=worker.hash_of(row.path)) for row in few]  # points are drawn by it
        cost(lambda row: form.decode(row.path), few)
        read = importlib.import_module(form.module).read
        if form.plain and not plain_ingest.same(form.plain(few[0].path), read(few[0], form.settings)[0]):
            raise AssertionError(f"{form.name}: found another sample than a plain script makes. Expected the same.")
        ours, alone, plain, here, hashing, files = [], [], [], [], [], []
        for _ in range(rounds):
            alone.append(cost(lambda row: form.decode(row.path), few))
            if script := form.plain:
                plain.append(cost(lambda row, script=script: script(row.path), few))  # type: ignore[misc]
            here.append(cost(lambda row: read(row, form.settings), hashed))
            hashing.append(cost(lambda row: worker.hash_of(row.path), few))
            start, start_clock = reading(form, few[:workers], workers)
            whole, clock = reading(form, rows, workers)
            ours.append((whole - start) / (len(rows) - workers))
            files.append((len(rows) - workers) / max(clock - start_clock, 1e-9))
    ratio = quartiles([a / max(b, 1e-9) for a, b in zip(alone, ours, strict=True)])
    best = quartiles([a / (a + b) for a, b in zip(alone, hashing, strict=True)])
    script_alone = {"plain script, ms": 1000 * quartiles(plain).middle} if plain else {}
    beside = {"files/s over plain script x cores": str(quartiles([a / b for a, b in zip(plain, ours, strict=True)]))} \
        if plain else {}
    isolated = quartiles([c / (a + b) for a, b, c in zip(here, hashing, ours, strict=True)])
    return {"format": form.name, "bare, ms": 1000 * quartiles(alone).middle, **script_alone,
            "our reader in this process, ms": 1000 * quartiles(here).middle,
            "hashing, ms": 1000 * quartiles(hashing).middle,
            "in a child, ms": 1000 * quartiles(ours).middle, "child over reading and hashing": str(isolated),
            **beside, "files/s over bare x cores": str(ratio), "at best": best.middle,
            "files/s now": quartiles(files).middle, "verdict": told(ratio.middle >= BAR, f"bar {BAR}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="*", help=", ".join(FORMATS))
    shared = Path(os.environ.get("LACUNA_SHARED", ".")) / "data"
    parser.add_argument("--real", nargs="?", type=Path, const=shared, help=f"folder of real files (default: {shared})")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    workers = min(len(os.sched_getaffinity(0)), 8)
    formats = FORMATS
    if chosen.real:
        from benchmarks.real_formats import real_formats
        formats = real_formats(chosen.real)
    rows = []
    for name in chosen.formats or formats:
        rows.append(measure(formats[name], workers, chosen.rounds))
        print(rows[-1], flush=True)
    report("ingest_rate", rows)


if __name__ == "__main__":
    main()
