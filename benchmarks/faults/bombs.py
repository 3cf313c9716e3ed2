"""Small files that claim or unfold to far more than they are: each is refused, soon, in a child that stays small.

`python -m benchmarks.faults.bombs` prints a table. Promised: refused in 5 s or less, the child's peak at 1 GiB or less,
and 50 MB or less added to this process.
"""

from __future__ import annotations

import argparse
import gzip
import io
import resource
import struct
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.faults import seeds
from domains.quarantine import Limits, Reader, read_all

UNFOLDED = 5 * 2**28
"""Bytes that the compressed ones unfold to: more than a child may take."""
SECONDS, PEAK_BYTES, PARENT_BYTES = 5.0, 2**30, 50 * 2**20
"""What a bomb may cost at most: until it is refused, in its child, in this process."""


@dataclass(frozen=True)
class Verdict:
    """What became of one bomb."""

    name: str
    size: int
    reason: str
    seconds: float
    """From the moment that the child was ready for it."""
    peak: int
    """Bytes: most that the child held, as it told with its answer."""
    grown: int
    """Bytes by which this process grew."""

    @property
    def held(self) -> bool:
        """Whether it was refused within what it may cost."""
        return bool(self.reason) and self.seconds <= SECONDS and self.peak <= PEAK_BYTES and self.grown <= PARENT_BYTES


def main() -> None:
    """Write every bomb, read it, print what became of it."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        verdicts = list(all_of(Path(folder)))
    print(f"{'bomb':44}{'bytes':>9}{'s':>7}{'child MB':>10}{'parent +MB':>12}  reason")
    for verdict in verdicts:
        print(f"{verdict.name:44}{verdict.size:9}{verdict.seconds:7.2f}{verdict.peak / 2**20:10.0f}"
              f"{verdict.grown / 2**20:12.1f}  {verdict.reason[:90]}{'' if verdict.held else '   NOT HELD'}")
    raise SystemExit(0 if all(verdict.held for verdict in verdicts) else 1)


def all_of(folder: Path) -> list[Verdict]:
    """The verdict on every bomb, each read after a harmless file in a child of its own."""
    whole = {form.name: form for form in seeds.formats(folder / "seeds")}
    return [defuse(name, write(folder / f"{n:02d}{ending}"), whole[form].reader, whole[form].paths[0])
            for n, (name, (form, ending, write)) in enumerate(bombs().items())]


def defuse(name: str, path: Path, reader: Reader, harmless: Path) -> Verdict:
    """Read one bomb. The harmless file before it has loaded the reader's libraries."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = read_all([seeds.row(harmless), seeds.row(path)], reader, Limits(workers=1))
    first = next(outcomes)
    assert not first.reason, first.reason
    began = time.monotonic()
    (bomb,) = outcomes
    seconds = time.monotonic() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Verdict(name, path.stat().st_size, bomb.reason, seconds, bomb.peak_bytes, grown * 1024)


Writer = Callable[[Path], Path]


def bombs() -> dict[str, tuple[str, str, Writer]]:
    """Name -> format whose reader gets it, ending, and what writes it."""
    return {
        "PNG, 1.2 GB of zeros": ("PNG", ".png", _png(12_800, 104_857, UNFOLDED)),
        "PNG that inflates beyond its own size": ("PNG", ".png", _png(64, 64, UNFOLDED)),
        "JPEG that claims 65,500 x 65,500": ("JPEG", ".jpg", _jpeg),
        "DICOM, deflated, 1.2 GB of zeros": ("DICOM", ".dcm", _deflated),
        "DICOM that claims 60,000 x 60,000": ("DICOM", ".dcm", _dicom_claim),
        "DICOM with an element of 4 GB": ("DICOM", ".dcm", _long_element),
        "DICOM, 100,000 nested sequences": ("DICOM", ".dcm", _nested),
        "DICOM, JPEG 2000 of 60,000 x 60,000": ("DICOM, compressed", ".dcm", _claimed_stream),
        "NIfTI that claims 30,000 cubed": ("NIfTI", ".nii", _nifti_claim),
        "NIfTI, gzip, 1.2 GB of zeros": ("NIfTI, gzip", ".nii.gz", _gzip),
        "GeoTIFF, sparse, 320 GB": ("GeoTIFF", ".tif", _tiff(200_000, 512, "YES")),
        "BigTIFF, tiles of 2 GB": ("GeoTIFF", ".tif", _tiff(65_536, 32_768, "YES")),
        "NPY that claims 8 TB": ("NPY", ".npy", _npy),
        "PLY that claims 2,000,000,000 points": ("PLY", ".ply", _ply("format binary_little_endian 1.0")),
        "PLY, text, with lists of 2,000,000,000": ("PLY", ".ply", _ply_lists),
        "PCD that claims 900,000,000 points": ("PCD", ".pcd", _pcd("binary")),
        "PCD, packed, that unfolds to 4 GB": ("PCD", ".pcd", _pcd_packed),
        "LAS that claims 4,000,000,000 points": ("LAS", ".las", _las_claim),
        "LAZ that claims 4,000,000,000 points": ("LAZ", ".laz", _las_claim),
        "OFF that claims 40,000,000 points": ("OFF", ".off", _off),
    }


# ---- pictures and films ----

def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _zeros(count: int, wbits: int) -> bytes:
    """`count` zeros, compressed, without ever holding them."""
    packer = zlib.compressobj(1, zlib.DEFLATED, wbits)
    block = bytes(2**24)
    return b"".join([*(packer.compress(block) for _ in range(count // len(block))), packer.flush()])


def _png(height: int, width: int, count: int) -> Writer:
    def write(path: Path) -> Path:
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", _zeros(count, 15))
                         + _chunk(b"IEND", b""))
        return path
    return write


def _jpeg(path: Path) -> Path:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    frame = content.index(b"\xff\xc0")
    content[frame + 5:frame + 9] = struct.pack(">HH", 65_500, 65_500)
    path.write_bytes(content)
    return path


def _element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    """One element in explicit little endian."""
    long = kind in (b"OB", b"OW", b"SQ", b"UN")
    return struct.pack("<HH2s", group, number, kind) + (
        struct.pack("<xxI", len(value)) if long else struct.pack("<H", len(value))) + value


def _begun(syntax: bytes) -> bytes:
    """Preamble and meta information of a DICOM file."""
    syntax += b"\0" * (len(syntax) % 2)
    meta = _element(2, 0x10, b"UI", syntax)
    return b"\0" * 128 + b"DICM" + _element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta


PLAIN, DEFLATED, JPEG_2000 = b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.90"


def _film(rows: int, columns: int) -> bytes:
    shorts = [(0x02, 1), (0x10, rows), (0x11, columns), (0x100, 16), (0x101, 12), (0x102, 11), (0x103, 0)]
    elements = [(number, _element(0x28, number, b"US", struct.pack("<H", value))) for number, value in shorts]
    elements.append((0x04, _element(0x28, 0x04, b"CS", b"MONOCHROME2 ")))
    return b"".join(element for _, element in sorted(elements))


def _deflated(path: Path) -> Path:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    block = bytes(2**24)
    film = _film(1000, 1000) + struct.pack("<HH2sxxI", 0x7fe0, 0x10, b"OW", UNFOLDED)
    parts = [packer.compress(film), *(packer.compress(block) for _ in range(UNFOLDED // len(block)))]
    path.write_bytes(_begun(DEFLATED) + b"".join(parts) + packer.flush())
    return path


def _dicom_claim(path: Path) -> Path:
    path.write_bytes(_begun(PLAIN) + _film(60_000, 60_000) + _element(0x7fe0, 0x10, b"OW", bytes(64)))
    return path


def _long_element(path: Path) -> Path:
    path.write_bytes(_begun(PLAIN) + struct.pack("<HH2sxxI", 0x09, 0x10, b"UN", 0xfffffff0) + bytes(64))
    return path


def _nested(path: Path) -> Path:
    item = struct.pack("<HH2sxxI", 0x08, 0x1140, b"SQ", 0xffffffff) + struct.pack("<HHI", 0xfffe, 0xe000, 0xffffffff)
    path.write_bytes(_begun(PLAIN) + item * 100_000)
    return path


def _claimed_stream(path: Path) -> Path:
    """The header says 1,000 x 1,000, the JPEG 2000 stream in it 60,000 x 60,000."""
    siz = b"\xff\x51" + struct.pack(">HHIIIIIIIIH", 41, 0, 60_000, 60_000, 0, 0, 60_000, 60_000, 0, 0, 1) + bytes(
        [11, 1, 1])
    cod = b"\xff\x52" + struct.pack(">HBBHBBBBBB", 12, 0, 0, 1, 0, 5, 4, 4, 0, 1)
    qcd = b"\xff\x5c" + struct.pack(">HB", 19, 0x40) + bytes([0x48] * 16)
    sot = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 0, 0, 1) + b"\xff\x93" + bytes(64) + b"\xff\xd9"
    stream = b"\xff\x4f" + siz + cod + qcd + sot
    stream += b"\0" * (len(stream) % 2)
    items = struct.pack("<HHI", 0xfffe, 0xe000, 0) + struct.pack("<HHI", 0xfffe, 0xe000, len(stream)) + stream
    path.write_bytes(_begun(JPEG_2000) + _film(1000, 1000) + struct.pack("<HH2sxxI", 0x7fe0, 0x10, b"OB", 0xffffffff)
                     + items + struct.pack("<HHI", 0xfffe, 0xe0dd, 0))
    return path


# ---- volumes and rasters ----

def _nifti_header(shape: tuple[int, int, int]) -> bytes:
    import nibabel

    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.diag([1.5, 1.5, 1.5, 1.0]))
    image.header.set_xyzt_units("mm")
    content = bytearray(image.to_bytes()[:352])
    content[42:48] = struct.pack("<hhh", *shape)
    return bytes(content)


def _nifti_claim(path: Path) -> Path:
    path.write_bytes(_nifti_header((30_000, 30_000, 30_000)) + bytes(64))
    return path


def _gzip(path: Path) -> Path:
    """An honest small header, and gigabytes behind it."""
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(_nifti_header((24, 24, 24)))
        for _ in range(UNFOLDED // 2**24):
            stream.write(bytes(2**24))
    return path


def _tiff(side: int, block: int, big: str) -> Writer:
    def write(path: Path) -> Path:
        import rasterio

        with rasterio.open(path, "w", driver="GTiff", count=len(seeds.BANDS), height=side, width=side, dtype="uint16",
                           sparse_ok=True, tiled=True, blockxsize=block, blockysize=block, bigtiff=big,
                           interleave="band") as file:
            for i, name in enumerate(seeds.BANDS, start=1):
                file.set_band_description(i, name)
        return path
    return write


def _npy(path: Path) -> Path:
    text = b"{'descr': '<u2', 'fortran_order': False, 'shape': (4, 1000000, 1000000), }".ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64))
    return path


# ---- point clouds ----

AXES = "property float x\nproperty float y\nproperty float z\n"


def _ply(form: str) -> Writer:
    def write(path: Path) -> Path:
        path.write_bytes(f"ply\n{form}\nelement vertex 2000000000\n{AXES}end_header\n".encode() + bytes(240))
        return path
    return write


def _ply_lists(path: Path) -> Path:
    """As many faces as there is room for, each of which says that it has two thousand million corners."""
    head = (f"ply\nformat ascii 1.0\nelement vertex 100\n{AXES}element face 1000\n"
            "property list uint int vertex_indices\nend_header\n")
    path.write_text(head + "0 1 2\n" * 100 + "2000000000 0 1 2\n" * 1000)
    return path


def _pcd(layout: str) -> Writer:
    def write(path: Path) -> Path:
        path.write_bytes(_pcd_header(900_000_000, layout) + bytes(240))
        return path
    return write


def _pcd_header(count: int, layout: str) -> bytes:
    return (f"VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {count}\nHEIGHT 1\n"
            f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA {layout}\n").encode()


def _pcd_packed(path: Path) -> Path:
    """Honest about its points, but not about what it unfolds to."""
    path.write_bytes(_pcd_header(1000, "binary_compressed") + struct.pack("<II", 2**20, 2**32 - 16) + bytes(2**20))
    return path


def _las_claim(path: Path) -> Path:
    import laspy

    las = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
    las.x, las.y, las.z = np.random.default_rng(0).normal(size=(3, 1000))
    las.write(path)
    content = bytearray(path.read_bytes())
    content[107:111] = struct.pack("<I", 4_000_000_000)
    path.write_bytes(content)
    return path


def _off(path: Path) -> Path:
    path.write_text("OFF\n40000000 40000000 0\n" + "0 1 2\n" * 1000)
    return path


if __name__ == "__main__":
    main()
