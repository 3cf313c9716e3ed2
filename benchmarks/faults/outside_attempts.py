"""The files, paths and archives with which outside_reads.py tries to reach outside, and harmless ones of their kind."""

from __future__ import annotations

import io
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.domains.medical import files as medical
from tests.domains.satellite.files import raster

BANDS = ("B2", "B3", "B4", "B8")
RUNS: dict[str, dict[str, Any]] = {
    "films": {"domain": "medical", "read": {"kind": "xray", "size": [64, 64], "fit": "crop"}},
    "volumes": {"domain": "medical", "read": {"kind": "ct", "size": [8, 8, 8], "spacing": [2.0, 2.0, 2.0],
                                              "check_units": False}},
    "scenes": {"domain": "satellite", "read": {"kind": "multispectral", "sensor": "sentinel2", "bands": list(BANDS),
                                               "size": [32, 32], "check_units": False}},
    "clouds": {"domain": "pointcloud", "read": {"kind": "points", "size": [64], "points_per_sample": 64,
                                                "min_points": 16}},
}
ENDINGS = {"films": ".png", "volumes": ".dcm", "scenes": ".tif", "clouds": ".obj"}
SECRET, MARK = 99, b"LACUNA CANARY"
"""The seed of what lies outside, and what such files say of themselves."""


@dataclass(frozen=True)
class Case:
    """One attempt."""

    name: str
    run: str
    """Key of RUNS."""
    write: Callable[[Path, Path, str], str]
    """(data folder, the file outside, an address) -> the row's path, "PATH MASK" with a mask."""
    alone: bool = False
    """Whether it has a run of its own: its row ends the run."""


# ---- harmless files, and what lies outside ----

def good(run: str, raw: Path, i: int) -> str:
    """Write a file that the run takes; its path below `raw`."""
    if run == "volumes":
        return _series(raw / f"good{i}", i).name
    return _file(run, raw / f"good{i}{ENDINGS[run]}", i).name


def secret(run: str, path: Path) -> Path:
    """Write what must not be read: a file that the run would take, or a slice of a series."""
    return _file(run, path, SECRET)


def needles(run: str) -> list[bytes]:
    """Bytes that lie in a shard when a secret was stored. Volumes and clouds are resampled, so that theirs cannot be
    told; whether they were opened can."""
    values = _values(SECRET)
    return [MARK, *{"films": [values[0, 0].astype(np.uint8).tobytes()],
                    "scenes": [(values[0, 0, :32] * 20).astype(np.uint16).tobytes()]}.get(run, [])]


def _values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 250, (4, 64, 64))


def _file(run: str, path: Path, seed: int) -> Path:
    from PIL import Image

    values = _values(seed)
    match run:
        case "films":
            Image.fromarray(values[0].astype(np.uint8)).save(path)
        case "volumes":
            medical.dicom(path, values[0, :8, :8].astype(np.uint16), PatientName=MARK.decode())
        case "scenes":
            raster(path, (values[:, :32, :32] * 20).astype(np.uint16), BANDS)
        case _:
            points = "".join(f"v {x} {y} {z}\n" for x, y, z in values[:3].reshape(3, -1).T[:200] / 100)
            path.write_text(f"# {MARK.decode()}\n{points}")
    return path


def _series(folder: Path, seed: int) -> Path:
    hu = np.random.default_rng(seed).integers(-900, 900, (8, 8, 6))
    return medical.series(folder, hu, np.diag([2.0, 2.0, 2.0, 1.0]))


def vrt(source: str) -> str:
    """A virtual raster of four bands out of another file."""
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{i}"><Description>{name}</Description><SimpleSource><SourceFilename '
        f'relativeToVRT="0">{source}</SourceFilename><SourceBand>{i}</SourceBand></SimpleSource></VRTRasterBand>'
        for i, name in enumerate(BANDS, start=1))
    return f'<VRTDataset rasterXSize="32" rasterYSize="32">{bands}</VRTDataset>'


# ---- attempts ----

def cases() -> list[Case]:
    """All attempts on the stage `ingest`."""
    return [
        Case("VRT under a .tif name", "scenes", lambda raw, out, url: _text(raw / "vrt.tif", vrt(str(out)))),
        Case("VRT that names an address", "scenes",
             lambda raw, out, url: _text(raw / "far.tif", vrt(f"/vsicurl/{url}"))),
        Case("VRT as a band of a scene", "scenes", _vrt_as_band),
        Case("VRT as a mask", "scenes",
             lambda raw, out, url: f"{_masked(raw)} {_text(raw / 'mask.png', vrt(str(out)))}"),
        Case("tile service (XML) under a .jp2 name", "scenes", _tile_service),
        Case("GeoPackage under a .tif name", "scenes", _geopackage),
        Case("side-car .aux.xml with an overview outside", "scenes", _sidecar),
        Case("side-car .ovr, .msk: a VRT and a link", "scenes", _overview),
        Case("link as a band of a scene", "scenes", _linked_band),
        Case("link to a folder in a scene", "scenes", _linked_resolution),
        Case("link as a slice of a series", "volumes", _linked_slice),
        Case("link beside a slice that is named", "volumes", lambda *given: _linked_slice(*given) + "/001.dcm"),
        Case("DICOMDIR with .. beside a series", "volumes", lambda raw, out, url: _dicomdir(raw, out).parent.name),
        Case("DICOMDIR with .. as a row", "volumes",
             lambda raw, out, url: f"{_dicomdir(raw, out).parent.name}/DICOMDIR"),
        Case("NIfTI of two files, the second a link", "volumes", _nifti_pair),
        Case("OBJ that names materials outside", "clouds", _materials),
        *[Case(f"path {name}", "scenes", _path(text), alone=True) for name, text in PATHS.items()],
        *[Case(f"link to a file, {run}", run, linked, alone=True) for run in RUNS],
        Case("link to a folder", "scenes", _linked_folder, alone=True),
        Case("link to a mask", "scenes", lambda raw, *given: f"{_masked(raw)} {linked(raw, *given)}", alone=True),
    ]


PATHS = {
    "/vsicurl/": "/vsicurl/{url}", "/VSICURL/": "/VSICURL/{url}", "/vsizip/": "/vsizip/{out}/a.tif",
    "/vsis3/": "/vsis3/bucket/a.tif", "x/vsis3/": "x/vsis3/bucket/a.tif", "http://": "{url}", "HTTP://": "{upper}",
    "s3://": "s3://bucket/a.tif", "file://": "file://{out}", "zip+http://": "zip+{url}!/a.tif",
    "..": "../outside/{name}", "a/../..": "a/../../outside/{name}", "absolute": "{out}",
    "GTIFF_DIR:": "GTIFF_DIR:1:{out}",
}
"""What stands in the manifest."""


def _path(text: str) -> Callable[[Path, Path, str], str]:
    return lambda raw, out, url: text.format(url=url, upper=url.replace("http", "HTTP"), out=out, name=out.name)


def _text(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path.name


def linked(raw: Path, out: Path, url: str) -> str:
    """The row is a link to the file outside."""
    (raw / f"link{out.suffix}").symlink_to(out)
    return f"link{out.suffix}"


def _linked_folder(raw: Path, out: Path, url: str) -> str:
    (raw / "folder").symlink_to(out.parent)
    return f"folder/{out.name}"


def _masked(raw: Path) -> str:
    """A harmless scene that is to have a mask."""
    return _file("scenes", raw / "masked.tif", 57).name


def _vrt_as_band(raw: Path, out: Path, url: str) -> str:
    _text(raw / "virtual/x_B02.tif", vrt(str(out)))
    return "virtual"


def _tile_service(raw: Path, out: Path, url: str) -> str:
    return _text(raw / "tiles.jp2", f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}?${{z}}/${{x}}/${{y}}</ServerUrl>'
                 "</Service><DataWindow><SizeX>32</SizeX><SizeY>32</SizeY></DataWindow></GDAL_WMS>")


def _geopackage(raw: Path, out: Path, url: str) -> str:
    with sqlite3.connect(raw / "package.tif") as store:
        store.execute("PRAGMA application_id = 1196444487")
        store.execute(f"CREATE VIEW gpkg_contents AS SELECT '{out}' AS table_name")
    return "package.tif"


def _sidecar(raw: Path, out: Path, url: str) -> str:
    path = _file("scenes", raw / "side.tif", 50)
    (raw / "side.tif.aux.xml").write_text(
        f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{out}</MDI></Metadata><PAMRasterBand '
        f'band="1"><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/vsicurl/{url}</MDI></Metadata>'
        "</PAMRasterBand></PAMDataset>")
    return path.name


def _overview(raw: Path, out: Path, url: str) -> str:
    path = _file("scenes", raw / "over.tif", 51)
    (raw / "over.tif.ovr").write_text(vrt(str(out)))
    (raw / "over.tif.msk").symlink_to(out)
    return path.name


def _linked_band(raw: Path, out: Path, url: str) -> str:
    raster(raw / "bands/x_B02.tif", _values(52)[:1, :32, :32].astype(np.uint16))
    (raw / "bands/x_B03.tif").symlink_to(out)
    return "bands"


def _linked_resolution(raw: Path, out: Path, url: str) -> str:
    raster(raw / "granule/x_B02.tif", _values(53)[:1, :32, :32].astype(np.uint16))
    (raw / "granule/R10m").symlink_to(out.parent)
    return "granule"


def _linked_slice(raw: Path, out: Path, url: str) -> str:
    folder = _series(raw / f"series{out.stem}", 54)
    (folder / "003.dcm").rename(out)
    (folder / "003.dcm").symlink_to(out)
    return folder.name


def _dicomdir(raw: Path, out: Path) -> Path:
    """A directory of media whose records name a file outside."""
    from pydicom.dataset import Dataset

    folder = _series(raw / f"media{out.stem}", 55)
    record = Dataset()
    record.DirectoryRecordType = "IMAGE"
    record.ReferencedFileID = ["..", "..", "OUTSIDE", out.name.upper()]
    medical.dicom(folder / "DICOMDIR", np.zeros((8, 8), np.uint16), DirectoryRecordSequence=[record])
    return folder / "DICOMDIR"


def _nifti_pair(raw: Path, out: Path, url: str) -> str:
    """A header that says its voxels lie in another file, which is a link."""
    import nibabel

    nibabel.save(nibabel.Nifti1Pair(np.zeros((8, 8, 8), np.int16), np.diag([2.0, 2, 2, 1])), raw / "pair.hdr")
    (raw / "pair.hdr").rename(raw / "pair.nii")
    (raw / "pair.img").unlink()
    (raw / "pair.img").symlink_to(out)
    return "pair.nii"


def _materials(raw: Path, out: Path, url: str) -> str:
    points = "".join(f"v {x} {y} {z}\n" for x, y, z in _values(56)[:3].reshape(3, -1).T[:200] / 100)
    (raw / "a.mtl").write_text(f"newmtl a\nmap_Kd {out}\nmap_Ka {url}\n")
    (raw / "cube.obj").write_text(f"mtllib {out}\nmtllib ../outside/{out.name}\nmtllib {url}\nmtllib a.mtl\n{points}"
                                  f"usemtl a\ncall {out}\n")
    return "cube.obj"


# ---- archives ----

def archives() -> dict[str, tuple[str, Callable[[Path, Path], None]]]:
    """Name -> zip or tar, and what writes it: (archive, folder outside)."""
    members: dict[str, Callable[[Path], list[tuple[str, bytes, str]]]] = {
        "..": lambda out: [("../../outside/slipped", tarfile.REGTYPE, "")],
        "a/../..": lambda out: [("a/../../../outside/slipped", tarfile.REGTYPE, "")],
        "absolute path": lambda out: [(f"{out}/slipped", tarfile.REGTYPE, "")],
        "link to a file": lambda out: [("a", tarfile.SYMTYPE, f"{out}/secret")],
        "link to a folder, then a file in it": lambda out: [("d", tarfile.SYMTYPE, str(out)),
                                                            ("d/slipped", tarfile.REGTYPE, "")],
    }
    alone: dict[str, Callable[[Path], list[tuple[str, bytes, str]]]] = {
        "hard link": lambda out: [("a", tarfile.LNKTYPE, f"{out}/secret")],
        "hard link by ..": lambda out: [("a", tarfile.LNKTYPE, "../../outside/secret")],
        "device": lambda out: [("null", tarfile.CHRTYPE, "")],
        "named pipe": lambda out: [("pipe", tarfile.FIFOTYPE, "")],
    }
    return {**{f"zip, {name}": ("zip", _zipped(of)) for name, of in members.items()},
            **{f"tar, {name}": ("tar", _tarred(of)) for name, of in (members | alone).items()}}


Members = Callable[[Path], list[tuple[str, bytes, str]]]


def _zipped(members: Members) -> Callable[[Path, Path], None]:
    def write(path: Path, out: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, kind, link in members(out):
                info = zipfile.ZipInfo("x")
                info.filename = name  # as given: the constructor would mend it
                info.external_attr = (0o120777 if kind == tarfile.SYMTYPE else 0o100644) << 16
                archive.writestr(info, link or "slipped")
    return write


def _tarred(members: Members) -> Callable[[Path, Path], None]:
    def write(path: Path, out: Path) -> None:
        with tarfile.open(path, "w") as archive:
            for name, kind, link in members(out):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, link
                info.size = 7 if kind == tarfile.REGTYPE else 0
                archive.addfile(info, io.BytesIO(b"slipped"))
    return write
