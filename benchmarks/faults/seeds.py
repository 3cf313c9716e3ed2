"""Whole files of every format that is read, by the project's own sample writers; the faults are worked on these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from domains.medical import sample_data as medical
from domains.medical.settings import CT, XRay
from domains.pointcloud import sample_data as pointcloud
from domains.pointcloud.cloud import Mesh
from domains.pointcloud.off import read_off
from domains.pointcloud.stl import FACET, HEADER
from domains.quarantine import Reader
from domains.sample import ManifestRow
from domains.satellite import sample_data as satellite
from domains.satellite.settings import Multispectral

FILMS = Reader("domains.medical.ingest", XRay(size=(64, 64)))
VOLUMES = Reader("domains.medical.ingest", CT(size=(24, 24, 24), spacing=(2.0, 2.0, 2.0)))
BANDS = ("B3", "B4", "B8", "B11")
SCENES = Reader("domains.satellite.ingest", Multispectral(bands=BANDS, sensor="sentinel2", size=(32, 32)))
ARRAYS = Reader("domains.satellite.ingest",
                Multispectral(bands=BANDS, sensor="sentinel2", size=(32, 32), file_bands=BANDS))
RLE, JPEG_2000 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90"


@dataclass(frozen=True)
class Format:
    """Whole files of one format, and what reads them."""

    name: str
    reader: Reader
    paths: tuple[Path, ...]


def row(path: Path) -> ManifestRow:
    """A manifest row for one file."""
    return ManifestRow(path=path, key=path.name, group=path.name, split="train", source="")


def formats(folder: Path) -> list[Format]:
    """Write the seeds of every format, a few files each, into `folder`. The same bytes every time."""
    return [*_of_films(folder / "films"), *_of_volumes(folder / "volumes"), *_of_scenes(folder / "scenes"),
            *_of_clouds(folder / "clouds")]


def of_domain(domain: str, folder: Path) -> tuple[Reader, list[ManifestRow]]:
    """One domain's reader and whole files for it, of all formats that it reads with those settings."""
    reader, made = {"medical": (FILMS, _of_films), "satellite": (SCENES, _of_scenes),
                    "pointcloud": (_points(), _of_clouds)}[domain]
    return reader, [row(path) for found in made(folder) for path in found.paths if found.reader == reader]


def _points() -> Reader:
    from domains.pointcloud.ingest import Points  # here, so that films alone need no other domain's library

    return Reader("domains.pointcloud.ingest", Points(size=(256,), points_per_sample=1024, min_points=16))


# ---- medical ----

def _of_films(folder: Path) -> list[Format]:
    from PIL import Image

    medical.make(folder, medical.Sample(kind="xray", labelled=6, unlabelled=0))
    plain = sorted(folder.rglob("*.dcm"))
    packed = [_compressed(path, folder / "packed", syntax) for path in plain[:3] for syntax in (RLE, JPEG_2000)]
    pictures: dict[str, list[Path]] = {".png": [], ".jpg": []}
    for path, found in pictures.items():
        (folder / path[1:]).mkdir()
        for i, source in enumerate(plain[:4]):
            found.append(folder / path[1:] / f"{i}{path}")
            grey = _stored(source).astype(np.float32)
            deep = path == ".png" and i % 2  # of the PNGs every other one has 16 bits
            scaled = (grey - grey.min()) / np.ptp(grey) * (65535 if deep else 255)
            Image.fromarray(scaled.astype(np.uint16 if deep else np.uint8)).save(found[-1])
    return [Format("DICOM", FILMS, tuple(plain)), Format("DICOM, compressed", FILMS, tuple(packed)),
            Format("PNG", FILMS, tuple(pictures[".png"])), Format("JPEG", FILMS, tuple(pictures[".jpg"]))]


def _stored(path: Path) -> np.ndarray:
    import pydicom

    return np.asarray(pydicom.dcmread(path).pixel_array)


def _compressed(path: Path, folder: Path, syntax: str) -> Path:
    import pydicom

    folder.mkdir(exist_ok=True)
    header = pydicom.dcmread(path)
    header.compress(syntax, generate_instance_uid=False)
    target = folder / f"{path.stem}_{'rle' if syntax == RLE else 'j2k'}.dcm"
    header.save_as(target, enforce_file_format=True)
    return target


def _of_volumes(folder: Path) -> list[Format]:
    medical.make(folder, medical.Sample(kind="ct", labelled=0, unlabelled=12))
    return [Format("NIfTI", VOLUMES, tuple(sorted(folder.rglob("*.nii"))[:4])),
            Format("NIfTI, gzip", VOLUMES, tuple(sorted(folder.rglob("*.nii.gz"))[:4]))]


# ---- satellite ----

def _of_scenes(folder: Path) -> list[Format]:
    import rasterio

    satellite.make(folder, satellite.Sample(labelled=0, unlabelled=16))
    stacked = sorted(path for path in folder.rglob("*.tif") if path.parent.parent == folder)[:6]
    arrays = folder / "arrays"
    arrays.mkdir()
    saved = []
    for i, path in enumerate(stacked[:3]):
        with rasterio.open(path) as file:
            values = file.read()
        whole = np.resize(values, (len(BANDS), *values.shape[1:]))
        np.save(arrays / f"{i}.npy", whole)
        saved.append(arrays / f"{i}.npy")
    return [Format("GeoTIFF", SCENES, tuple(stacked)), Format("NPY", ARRAYS, tuple(saved))]


# ---- point clouds ----

def _of_clouds(folder: Path) -> list[Format]:
    reader = _points()
    pointcloud.make(folder, pointcloud.Sample(labelled=0, unlabelled=60))
    found = {suffix: sorted(folder.rglob(f"*{suffix}"))[:5] for suffix in (".ply", ".off", ".las", ".laz")}
    (folder / "pcd").mkdir()
    found[".pcd"] = _written_by_open3d(folder / "pcd", found[".ply"][:1])
    formats = [Format(suffix[1:].upper(), reader, tuple(paths)) for suffix, paths in found.items()]
    meshes = [read_off(path, 10**6) for path in found[".off"][:2]]
    (folder / "written").mkdir()
    return formats + [Format(name, reader, tuple(paths)) for name, paths in {
        "PLY, text": _ply_as_text(folder / "written", meshes), "OBJ": _obj(folder / "written", meshes),
        "STL": _stl(folder / "written", meshes)}.items()]


def _lines(word: str, rows: np.ndarray) -> str:
    return "".join(f"{word}{' '.join(f'{number:g}' for number in row)}\n" for row in rows.tolist())


def _ply_as_text(folder: Path, meshes: list[Mesh]) -> list[Path]:
    """A mesh and a cloud with normals and colours."""
    mesh, other = meshes
    rng = np.random.default_rng(0)
    rich = np.concatenate([other.vertices, rng.normal(size=other.vertices.shape),
                           rng.integers(0, 256, other.vertices.shape)], axis=1)
    head = "ply\nformat ascii 1.0\nelement vertex {}\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    more = "".join(f"property float n{axis}\n" for axis in "xyz") + "".join(
        f"property uchar {colour}\n" for colour in ("red", "green", "blue"))
    texts = {"mesh": head.format(len(mesh.vertices)) + f"element face {len(mesh.triangles)}\n"
             "property list uchar int vertex_indices\nend_header\n" + _lines("", mesh.vertices)
             + _lines("3 ", mesh.triangles), "cloud": head.format(len(rich)) + more + "end_header\n" + _lines("", rich)}
    return _saved(folder, {f"{name}.ply": text.encode() for name, text in texts.items()})


def _obj(folder: Path, meshes: list[Mesh]) -> list[Path]:
    """Meshes, one with texture numbers that count back, and a cloud with colours."""
    mesh, other = meshes
    back = other.triangles - len(other.vertices)
    coloured = np.concatenate([mesh.vertices, np.linspace(0, 1, mesh.vertices.size).reshape(-1, 3)], axis=1)
    texts = {"mesh": "mtllib a.mtl\n" + _lines("v ", mesh.vertices) + _lines("f ", mesh.triangles + 1),
             "back": _lines("v ", other.vertices) + "".join(
                 f"f {a}/1/1 {b}//2 {c}\n" for a, b, c in back.tolist()), "cloud": _lines("v ", coloured)}
    return _saved(folder, {f"{name}.obj": text.encode() for name, text in texts.items()})


def _stl(folder: Path, meshes: list[Mesh]) -> list[Path]:
    """Text, and binary with and without the word by which text is told elsewhere."""
    corners = [mesh.vertices[mesh.triangles] for mesh in meshes]
    text = "solid a\n" + "".join("facet normal 0 0 0\nouter loop\n" + _lines("vertex ", facet)
                                 + "endloop\nendfacet\n" for facet in corners[0]) + "endsolid a\n"
    packed = []
    for title, of_mesh in zip((b"solid by a program", b"made by hand"), corners, strict=True):
        facets = np.zeros(len(of_mesh), FACET)
        facets["corners"] = of_mesh
        packed.append(title.ljust(HEADER) + len(facets).to_bytes(4, "little") + facets.tobytes())
    return _saved(folder, {"text.stl": text.encode(), "solid.stl": packed[0], "binary.stl": packed[1]})


def _saved(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    paths = [folder / name for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    return paths


def _written_by_open3d(folder: Path, sources: list[Path]) -> list[Path]:
    """One PCD of every layout: text, binary, compressed."""
    import open3d

    paths: list[Path] = []
    layouts: dict[str, dict[str, Any]] = {"text": {"write_ascii": True}, "binary": {}, "packed": {"compressed": True}}
    for source in sources:
        cloud = open3d.io.read_point_cloud(str(source))
        for name, options in layouts.items():
            paths.append(folder / f"{source.stem}_{name}.pcd")
            open3d.io.write_point_cloud(str(paths[-1]), cloud, **options)
    return paths
