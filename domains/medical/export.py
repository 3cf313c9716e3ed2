"""Writes masks as users of medical files expect them: .nii.gz on the volume's own grid, .png on the film's own pixels.

Nothing of a file's header goes in but numbers that place it: no name, date or text.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from domains.medical.parsing import library
from domains.placement import Placement
from domains.publish import write_bytes

GZIP_LEVEL = 6
MILLIMETRES = 2
"""What xyzt_units calls them."""
SCANNER = 1
"""sform_code and qform_code of coordinates that the scanner gave."""


def ending(placement: Placement) -> str:
    """Of the files that `write` makes for a sample of that placement."""
    return ".nii.gz" if len(placement.shape) == 3 else ".png"


def write(path: Path, numbers: np.ndarray, placement: Placement, names: Mapping[int, str]) -> None:
    """Write uint8 numbers of classes of a whole file, atomically.

    Args:
        numbers: of `placement.shape`; UNKNOWN_CLASS where nothing was looked at.
        names: what the numbers mean; not written here: neither format has a place for names that other programs read.

    Raises:
        DiskFull, Unwritable: what lay there before still does.
    """
    write_bytes(path, _nifti(numbers, placement) if numbers.ndim == 3 else _png(numbers))


def measure(numbers: np.ndarray, placement: Placement,
            names: Mapping[int, str]) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Pixels of each number that has a name, their area or volume (None: the file does not say how large a pixel is),
    and its unit."""
    counts = np.bincount(numbers.ravel(), minlength=256)[list(names)]
    if not placement.affine:
        return counts, None, ""
    if len(placement.affine) == 16:
        return counts, counts * abs(float(np.linalg.det(np.reshape(placement.affine, (4, 4))[:3, :3]))), "mm3"
    a, b, _, d, e, _ = placement.affine
    return counts, counts * abs(a * e - b * d), "mm2"


def _nifti(numbers: np.ndarray, placement: Placement) -> bytes:
    nibabel = library("nibabel")
    affine = np.reshape(placement.affine, (4, 4))
    image = nibabel.Nifti1Image(numbers, affine)
    image.set_sform(affine, SCANNER)
    image.set_qform(affine, SCANNER)  # without any shear, which a quaternion cannot say; readers take the sform first
    image.header["xyzt_units"] = MILLIMETRES
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=GZIP_LEVEL, mtime=0) as stream:  # the same bytes again
        stream.write(image.to_bytes())
    return packed.getvalue()


def _png(numbers: np.ndarray) -> bytes:
    """Grey levels are class numbers: a palette would look better and be read as colours by half of all programs."""
    packed = io.BytesIO()
    library("PIL.Image").fromarray(numbers).save(packed, format="PNG", optimize=False)
    return packed.getvalue()
