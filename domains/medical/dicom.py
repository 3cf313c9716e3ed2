"""One DICOM file: opened by an allow-list of compressions, and its numbers as stored."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from domains.medical.parsing import check_pixels, library, parsing
from domains.sample import Refused

MAX_INFLATED_BYTES = 2 ** 28
"""What a deflated DICOM file may inflate to: a film of MAX_PIXELS in 16 bits, and 68 MB for its header."""

TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2": "implicit little endian",
    "1.2.840.10008.1.2.1": "explicit little endian",
    "1.2.840.10008.1.2.1.99": "deflated explicit little endian",
    "1.2.840.10008.1.2.2": "explicit big endian",
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless, first order",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE",
}
"""What is decoded."""
DEFLATED = "1.2.840.10008.1.2.1.99"


def read(path: Path, pixels: bool = True, samples: tuple[int, ...] = (1,)) -> Any:
    """Parse one file whose compression is on the list and whose size is sane; without pixels for its header alone."""
    pydicom = library("pydicom")
    with parsing("DICOM"):
        meta = pydicom.filereader.read_file_meta_info(path)
        syntax = str(meta.get("TransferSyntaxUID", ""))
        if syntax not in TRANSFER_SYNTAXES:
            raise Refused("transfer syntax not supported; expected one of: " + ", ".join(TRANSFER_SYNTAXES.values()))
        header = pydicom.dcmread(_inflated(path, meta) if syntax == DEFLATED else path, stop_before_pixels=not pixels)
        check_pixels(int(header.Rows), int(header.Columns))
        if int(header.get("SamplesPerPixel", 1)) not in samples:
            raise Refused(f"{int(header.SamplesPerPixel)} samples per pixel, expected 1 (grey)")
    return header


def _inflated(path: Path, meta: Any) -> IO[bytes]:
    """A deflated file as the plain one that it stands for. pydicom would inflate it without a bound, and a few
    kilobytes can hold gigabytes."""
    begin = 144 + int(meta.FileMetaInformationGroupLength)  # 128 of preamble, 4 of magic, 12 of the length itself
    with path.open("rb") as stream:
        stream.seek(begin)
        deflated = stream.read()
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    body = inflater.decompress(deflated, MAX_INFLATED_BYTES + 1)
    if len(body) > MAX_INFLATED_BYTES:
        raise Refused(f"it inflates to more than {MAX_INFLATED_BYTES} bytes")
    if not inflater.eof:
        raise Refused("the file ends early")
    plain = io.BytesIO()
    plain.write(b"\0" * 128 + b"DICM")
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    library("pydicom.filewriter").write_file_meta_info(plain, meta)
    plain.write(body)
    plain.seek(0)
    return plain


def stored_values(header: Any, frame: int | None = None) -> np.ndarray:
    """Pixels as stored numbers, of one frame where there are several. Bits above BitsStored may hold overlays in old
    files, and are cut off."""
    pixels = np.asarray(library("pydicom.pixels").pixel_array(header, index=frame))
    stored, allocated = int(header.BitsStored), int(header.BitsAllocated)
    if not 1 <= stored <= allocated or int(header.HighBit) != stored - 1:
        raise Refused(f"bits: {stored} stored of {allocated}, highest {int(header.HighBit)}; "
                      "expected the highest to be one less than the stored")
    spare = 8 * pixels.dtype.itemsize - stored
    if spare <= 0 or pixels.dtype.kind not in "iu":
        return pixels
    return (pixels << spare) >> spare  # arithmetic shift: keeps the sign of signed pixels


def padding(stored: np.ndarray, header: Any) -> np.ndarray:
    """Where the file says that no X-ray was measured."""
    if header.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, dtype=bool)
    ends = [int(header.PixelPaddingValue)]
    if header.get("PixelPaddingRangeLimit") is not None:
        ends.append(int(header.PixelPaddingRangeLimit))
    return (stored >= min(ends)) & (stored <= max(ends))
