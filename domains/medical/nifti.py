"""One NIfTI file, read to its last byte."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Any

import numpy as np

from domains.medical import volume
from domains.medical.parsing import check_voxels, library, parsing
from domains.medical.volume import Volume
from domains.sample import Refused

MAX_TRAILING_BYTES = 2 ** 20
"""What may follow a NIfTI file's last voxel."""
SAME_DIRECTION = 0.7
"""Least cosine between an axis by one affine and by the other: 45 degrees."""


def read(path: Path, max_voxels: int, content: bytes | None = None) -> Volume:
    """One .nii or .nii.gz, read to its last byte: gzip's checksum stands at the end.

    Args:
        content: of the file, where it is here already.
    """
    nibabel = library("nibabel")
    with parsing("NIfTI"), _open_nifti(path, content) as stream:
        head = stream.read(348)
        header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(head), check=False)
        shape = _check_nifti_header(header, max_voxels)
        size = int(header["vox_offset"]) + int(np.prod(shape)) * header.get_data_dtype().itemsize
        body = stream.read(size - len(head))
        if len(head) + len(body) != size:
            raise Refused(f"the file ends early: {len(head) + len(body)} bytes, expected {size}")
        if len(stream.read(MAX_TRAILING_BYTES + 1)) > MAX_TRAILING_BYTES:
            raise Refused("more data follows than its header announces")
        image = nibabel.Nifti1Image.from_bytes(head + body)
        affine = np.asarray(image.affine, dtype=np.float64)
        _refuse_two_minds(image)
        values = np.asanyarray(image.dataobj).reshape(shape)
    volume.check_affine(affine)
    announced = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not np.allclose(np.linalg.norm(affine[:3, :3], axis=0), announced, rtol=0.05):
        raise Refused(f"its affine and its pixel sizes {np.round(announced, 4).tolist()} contradict each other")
    if not np.isfinite(values).all():
        raise Refused("voxels that are not finite numbers")
    return Volume(values, affine)


def _refuse_two_minds(image: Any) -> None:
    """A file may place itself twice. Where the two point an axis in different directions, one of them mirrors the
    patient, and programs differ in which they believe."""
    places = [place[:3, :3] for place in (image.get_sform(coded=True)[0], image.get_qform(coded=True)[0])
              if place is not None]
    if len(places) < 2 or not all(np.isfinite(place).all() for place in places):
        return
    one, other = (place / np.maximum(np.linalg.norm(place, axis=0), 1e-12) for place in places)
    if ((one * other).sum(axis=0) < SAME_DIRECTION).any():
        raise Refused("its two affines, sform and qform, point its axes in different directions, so that left and "
                      "right are not known. Remedy: correct the wrong one, or set its code to 0")


def _open_nifti(path: Path, content: bytes | None) -> IO[bytes]:
    if not path.name.lower().endswith(".gz"):
        return path.open("rb") if content is None else io.BytesIO(content)
    # Python's own gzip takes three times as long, which was most of what a volume takes.
    return library("isal.igzip").open(path if content is None else io.BytesIO(content))


def _check_nifti_header(header: Any, max_voxels: int) -> tuple[int, int, int]:
    """The shape, once the header is known to be sane; nothing has been allocated by it so far."""
    if int(header["sizeof_hdr"]) != 348 or bytes(header["magic"]).rstrip(b"\0") != b"n+1":
        raise Refused("not a NIfTI-1 file of one piece")
    dims = [int(n) for n in header["dim"]]
    if dims[0] not in (3, 4) or (dims[0] == 4 and dims[4] != 1):
        raise Refused(f"{dims[0]} axes, expected 3 (or 4 with the last of length 1)")
    shape = (dims[1], dims[2], dims[3])
    if min(shape) < 1:
        raise Refused(f"shape {list(shape)}, expected positive numbers")
    check_voxels(shape, max_voxels)
    kind = header.get_data_dtype()
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise Refused("voxels are not plain numbers (colour or complex), expected integers or floats")
    if not 352 <= int(header["vox_offset"]) <= MAX_TRAILING_BYTES:
        raise Refused(f"voxels begin at byte {int(header['vox_offset'])}, expected 352 to {MAX_TRAILING_BYTES}")
    if int(header["xyzt_units"]) & 7 not in (0, 2):
        raise Refused("its unit of length is not millimetres")
    if not (int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0):
        raise Refused("its orientation is not known: both sform_code and qform_code are 0")
    return shape
