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


def read(path: Path, samples: tuple[int, ...] = (1,)) -> Any:
    """Parse one file whose compression is on the list and whose size is sane."""
    found = header(path, pixels=True)
    check(found, samples)
    return found


def header(path: Path, pixels: bool = False) -> Any:
    """What stands in one file besides its pixels, whatever kind of object it is; `check` says whether it is a picture
    that can be decoded."""
    pydicom = library("pydicom")
    with parsing("DICOM"):
        meta = pydicom.filereader.read_file_meta_info(path)
        deflated = str(meta.get("TransferSyntaxUID", "")) == DEFLATED
        return pydicom.dcmread(_inflated(path, meta) if deflated else path, stop_before_pixels=not pixels)


def check(found: Any, samples: tuple[int, ...] = (1,)) -> None:
    """Refuse what is no picture, is compressed otherwise than the list says, or claims a size that is not sane."""
    with parsing("DICOM"):
        if str(found.file_meta.get("TransferSyntaxUID", "")) not in TRANSFER_SYNTAXES:
            raise Refused("transfer syntax not supported; expected one of: " + ", ".join(TRANSFER_SYNTAXES.values()))
        if "Rows" not in found:
            raise Refused("an object without pixels (a report, a structure set or the like), expected a picture")
        check_pixels(int(found.Rows), int(found.Columns))
        if int(found.get("SamplesPerPixel", 1)) not in samples:
            raise Refused(f"{int(found.SamplesPerPixel)} samples per pixel, expected 1 (grey)")


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


def stored_values(header: Any, frame: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels as stored numbers, of one frame where there are several, and where the file says that no X-ray was
    measured (None: nowhere). Bits above BitsStored may hold overlays in old files, and are cut off."""
    pixels = np.asarray(library("pydicom.pixels").pixel_array(header, index=frame, correct_unused_bits=False))
    stored, allocated = int(header.BitsStored), int(header.BitsAllocated)
    if not 1 <= stored <= allocated or int(header.HighBit) != stored - 1:
        raise Refused(f"bits: {stored} stored of {allocated}, highest {int(header.HighBit)}; "
                      "expected the highest to be one less than the stored")
    spare = 8 * pixels.dtype.itemsize - stored
    if spare <= 0 or pixels.dtype.kind not in "iu":
        return pixels, _padding(pixels, pixels, header)
    if pixels.dtype.kind == "u" and int(pixels.max(initial=0)) < 1 << stored:
        return pixels, _padding(pixels, pixels, header)
    numbers = pixels << spare
    numbers >>= spare  # arithmetic shift: keeps the sign of signed pixels
    return numbers, _padding(numbers, pixels, header)


def _padding(numbers: np.ndarray, pixels: np.ndarray, header: Any) -> np.ndarray | None:
    """Where the padding value stands: among the numbers, or in whole words where it does not fit into BitsStored.

    Of signed pixels it is often declared as if they had no sign: 63536 for -2000.
    """
    if header.get("PixelPaddingValue") is None:
        return None
    ends = [int(end) for tag in ("PixelPaddingValue", "PixelPaddingRangeLimit") if (end := header.get(tag)) is not None]
    bits, signed = int(header.BitsStored), int(pixels.dtype.kind == "i")
    word = 8 * pixels.dtype.itemsize
    low, high = (-(2 ** (word - 1)), 2 ** (word - 1)) if signed else (0, 2**word)
    ends = [end - 2**word if end >= high else end + 2**word if end < low else end for end in ends]
    fit = -(2 ** (bits - 1)) * signed <= min(ends) and max(ends) < 2 ** (bits - signed)
    found = numbers if fit else pixels
    padding = (found >= min(ends)) & (found <= max(ends))
    return padding if padding.any() else None
