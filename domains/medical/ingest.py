"""Reads radiographs and CT volumes into pieces on the training grid.

`read` runs in a child process that may be killed, so it may trust nothing: every library call on file content is
wrapped, and a refusal names formats and numbers only, never a header's text.
"""

from __future__ import annotations

import gzip
import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

from domains.contract import Channel, Contract
from domains.medical import film, volume
from domains.medical.settings import CT, Settings, XRay
from domains.medical.volume import Volume
from domains.sample import Fact, ManifestRow, Piece, Refused

__all__ = ["CT", "Settings", "XRay", "contract", "implausible", "read", "suffixes"]

MAX_PIXELS = 100_000_000
"""Largest film or slice that is decoded: twice the largest detector on the market, and 400 MB as floats."""
MAX_VOXELS = 512 * 512 * 1024
"""Largest volume that is read: a whole body at 2 mm, and 1.1 GB as floats."""
MAX_TRAILING_BYTES = 2 ** 20
"""What may follow a NIfTI file's last voxel."""

TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2": "implicit little endian",
    "1.2.840.10008.1.2.1": "explicit little endian",
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
"""What is decoded. Deflated DICOM is left out: a few kilobytes of it can inflate to gigabytes before any check."""

RASTER_FORMATS = ("PNG", "JPEG")
FLAT_BELOW = 2.0
"""A film with a smaller standard deviation shows nothing."""

_REASONS = {"EOFError": "the file ends early", "BadGzipFile": "its checksum or compression is wrong",
            "error": "its compression is damaged", "MemoryError": "needs more memory than is allowed"}
"""What some exceptions mean here, by type name (zlib calls its own `error`)."""


def suffixes(settings: Settings) -> tuple[str, ...]:
    """File endings that this kind reads. "" stands for names without an ending, which DICOM exports often have, and for
    folders, which hold the slices of a series."""
    if isinstance(settings, XRay):
        return (".dcm", ".dicom", ".png", ".jpg", ".jpeg", "")
    return (".nii", ".nii.gz", ".dcm", ".dicom", "")


def contract(settings: Settings) -> Contract:
    """What the stored samples are; statistics and tasks are filled in by the stage."""
    if isinstance(settings, XRay):
        letterbox = settings.fit == "letterbox"
        grey = Channel("grey", "grey 0-255", low=float(film.UNKNOWN_GREY + 1) if letterbox else 0.0, high=255.0)
        return Contract(domain="medical", kind="xray", channels=(grey,), dtype="uint8", size=settings.size,
                        unknown=float(film.UNKNOWN_GREY) if letterbox else None)
    hounsfield = Channel("HU", "HU", low=settings.window[0], high=settings.window[1])
    return Contract(domain="medical", kind="ct", channels=(hounsfield,), dtype="int16", size=settings.size,
                    unknown=float(volume.UNKNOWN_HU), spacing=settings.spacing, orientation=volume.ORIENTATION)


def read(row: ManifestRow, settings: Settings) -> list[Piece]:
    """One manifest row to its pieces. Raises Refused with a reason that holds no header text."""
    if isinstance(settings, XRay):
        return [_read_film(row, settings)]
    return [_read_ct(row, settings)]


def implausible(pieces: list[Piece], settings: Settings) -> str | None:
    """A sentence when a sample of pieces contradicts the settings, else None."""
    if isinstance(settings, XRay):
        flat = sum(float(piece.values.std()) < FLAT_BELOW for piece in pieces)
        if 2 * flat <= len(pieces):
            return None
        return (f"contrast: found {flat} of {len(pieces)} films without structure (standard deviation under "
                f"{FLAT_BELOW} of 255 grey levels), expected films. Remedy: set contrast: percentile, or check the "
                "manifest's paths.")
    return volume.implausible_hu([piece.values for piece in pieces]) if settings.check_units else None


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name.split('.')[0]} is missing, which reads medical files. "
                          "Install it with: pip install 'lacuna[medical]'") from error


@contextmanager
def _parsing(what: str) -> Iterator[None]:
    """Turn whatever a parser raises on damaged bytes into a refusal. Parsers promise no exception types, and their
    messages may quote the header, so that only the type's name is passed on."""
    try:
        yield
    except (Refused, ImportError):
        raise
    except Exception as error:
        name = type(error).__name__
        raise Refused(f"not readable as {what} ({_REASONS.get(name, name)})") from error


# ---- radiographs ----

def _read_film(row: ManifestRow, settings: XRay) -> Piece:
    if row.path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        grey, facts = _grey_of_raster(row.path, settings)
    else:
        grey, facts = _grey_of_dicom(row.path, settings)
    return Piece(values=film.fit(grey, settings.size, settings.fit)[None], facts=facts)


def _grey_of_raster(path: Path, settings: XRay) -> tuple[np.ndarray, dict[str, Fact]]:
    image_of, turned = _library("PIL.Image"), _library("PIL.ImageOps")
    with _parsing("PNG or JPEG"), image_of.open(path, formats=RASTER_FORMATS) as image:
        _check_pixels(image.height, image.width)
        deep = image.mode.startswith("I") or image.mode == "F"
        pixels = np.asarray(turned.exif_transpose(image).convert("F" if deep else "L"), dtype=np.float32)
        facts: dict[str, Fact] = {"format": str(image.format), "shape": list(pixels.shape),
                                  "stored_bits": 16 if deep else 8}
    window = film.percentile_window(pixels, np.isfinite(pixels), settings.percentiles) if deep else (0.0, 255.0)
    return film.to_grey(pixels, window), facts


def _grey_of_dicom(path: Path, settings: XRay) -> tuple[np.ndarray, dict[str, Fact]]:
    header = _read_dicom(path)
    with _parsing("DICOM"):
        photometric = str(header.get("PhotometricInterpretation", ""))
        if photometric not in ("MONOCHROME1", "MONOCHROME2"):
            raise Refused("not a grey film: photometric interpretation is neither MONOCHROME1 nor MONOCHROME2")
        if int(header.get("NumberOfFrames") or 1) != 1:
            raise Refused(f"{int(header.NumberOfFrames)} frames in one file, expected 1")
        if str(header.get("BurnedInAnnotation", "")).upper() == "YES" and not settings.allow_burned_in_text:
            raise Refused("its header says that text is burned into the picture; allow_burned_in_text would take it")
        stored = _stored_values(header)
        exposed = ~_padding(stored, header)
        if not exposed.any():
            raise Refused("every pixel is padding")
        grey, contrast = _contrast(stored, exposed, header, settings)
    if photometric == "MONOCHROME1":  # there the smallest number is white
        grey = 1.0 - grey
    facts: dict[str, Fact] = {"format": "DICOM", "shape": list(grey.shape), "photometric": photometric,
                              "stored_bits": int(header.BitsStored), "contrast": contrast}
    return np.where(exposed, grey, np.float32(0.0)), facts


def _contrast(stored: np.ndarray, exposed: np.ndarray, header: Any, settings: XRay) -> tuple[np.ndarray, str]:
    """Grey in [0, 1] before any inversion, and where its contrast came from."""
    pixels = _library("pydicom.pixels")
    values = np.asarray(pixels.apply_modality_lut(stored, header), dtype=np.float32)
    if settings.contrast == "voi" and header.get("VOILUTSequence"):
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        table = np.asarray(pixels.apply_voi(values.astype(np.int32), header))
        return film.to_grey(table, (0.0, float(2 ** bits - 1))), "table"
    centre, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    if settings.contrast == "percentile" or centre is None or width is None:
        return film.to_grey(values, film.percentile_window(values, exposed, settings.percentiles)), "percentile"
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    return film.viewed(values, centre, width, function), "window"


def _first(value: Any) -> float | None:
    """The first of several windows is the one that the maker shows by default."""
    if value is None or value == "":
        return None
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)


# ---- DICOM ----

def _read_dicom(path: Path, pixels: bool = True) -> Any:
    """Parse one file whose compression is on the list and whose size is sane; without pixels for its header alone."""
    pydicom = _library("pydicom")
    with _parsing("DICOM"):
        meta = pydicom.filereader.read_file_meta_info(path)
        if str(meta.get("TransferSyntaxUID", "")) not in TRANSFER_SYNTAXES:
            raise Refused("transfer syntax not supported; expected one of: " + ", ".join(TRANSFER_SYNTAXES.values()))
        header = pydicom.dcmread(path, stop_before_pixels=not pixels)
        _check_pixels(int(header.Rows), int(header.Columns))
        if int(header.get("SamplesPerPixel", 1)) != 1:
            raise Refused(f"{int(header.SamplesPerPixel)} samples per pixel, expected 1 (grey)")
    return header


def _stored_values(header: Any) -> np.ndarray:
    """Pixels as stored numbers. Bits above BitsStored may hold overlays in old files, and are cut off."""
    pixels = np.asarray(header.pixel_array)
    stored, allocated = int(header.BitsStored), int(header.BitsAllocated)
    if not 1 <= stored <= allocated or int(header.HighBit) != stored - 1:
        raise Refused(f"bits: {stored} stored of {allocated}, highest {int(header.HighBit)}; "
                      "expected the highest to be one less than the stored")
    spare = 8 * pixels.dtype.itemsize - stored
    if spare <= 0 or pixels.dtype.kind not in "iu":
        return pixels
    return (pixels << spare) >> spare  # arithmetic shift: keeps the sign of signed pixels


def _padding(stored: np.ndarray, header: Any) -> np.ndarray:
    """Where the file says that no X-ray was measured."""
    if header.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, dtype=bool)
    ends = [int(header.PixelPaddingValue)]
    if header.get("PixelPaddingRangeLimit") is not None:
        ends.append(int(header.PixelPaddingRangeLimit))
    return (stored >= min(ends)) & (stored <= max(ends))


def _check_pixels(height: int, width: int) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise Refused(f"{height} x {width} pixels, expected between 1 and {MAX_PIXELS}")


# ---- CT ----

def _read_ct(row: ManifestRow, settings: CT) -> Piece:
    if row.path.name.lower().endswith((".nii", ".nii.gz")):
        found, form = _read_nifti(row.path), "NIfTI"
    else:
        found, form = _read_series(row.path), "DICOM series"
    image = volume.orient(found)
    mask = None if row.mask_path is None else volume.orient(_read_mask(row.mask_path))
    grid = _grid(image, mask, settings)
    hu = volume.sample_hu(image, grid, settings.scale, settings.offset)
    if (hu == volume.UNKNOWN_HU).all():
        raise Refused("nothing of the cube lies inside the file")
    facts: dict[str, Fact] = {
        "format": form, "shape": list(image.values.shape), "spacing": [round(float(mm), 4) for mm in image.spacing],
        "oblique_degrees": round(volume.obliqueness(image), 1),
        "known": round(float((hu != volume.UNKNOWN_HU).mean()), 4)}
    return Piece(values=hu[None], mask=None if mask is None else volume.sample_mask(mask, image, grid), facts=facts)


def _grid(image: Volume, mask: Volume | None, settings: CT) -> volume.Grid:
    if not settings.cube:
        return volume.whole_grid(image, settings.spacing)
    if settings.cube_at == "centre":
        return volume.cube_grid(image, settings.spacing, settings.cube_shape, None)
    if mask is None:
        raise Refused("the row has no mask to centre the cube at; cube_at: centre needs none")
    return volume.cube_grid(image, settings.spacing, settings.cube_shape, volume.centre_of_mask(mask))


def _read_series(path: Path) -> Volume:
    """All slices of one series: those of a folder, or those beside a file that belong to its series."""
    beside = path if path.is_dir() else path.parent
    files = sorted(file for file in beside.iterdir() if file.is_file() and _may_be_slice(file))
    headers = {file: _read_dicom(file, pixels=False) for file in files}
    with _parsing("DICOM series"):
        if path.is_file():
            wanted = str(headers[path].get("SeriesInstanceUID", ""))
            headers = {file: header for file, header in headers.items()
                       if str(header.get("SeriesInstanceUID", "")) == wanted}
        _check_one_series(list(headers.values()))
        order, affine = volume.order_slices([_slice_geometry(header) for header in headers.values()])
        volume.check_affine(affine)
        ordered = [list(headers)[i] for i in order]
        shape = (len(ordered), int(headers[ordered[0]].Rows), int(headers[ordered[0]].Columns))
        _check_voxels(shape)
        values, known = np.empty(shape, dtype=np.float32), np.ones(shape, dtype=bool)
        for i, file in enumerate(ordered):
            header = _read_dicom(file)
            stored = _stored_values(header)
            values[i] = stored * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
            known[i] = ~_padding(stored, header)
    return Volume(values, affine, None if known.all() else known)


def _may_be_slice(file: Path) -> bool:
    """DICOM names end in .dcm, .ima or nothing, or are numbers with dots; other files beside them are not slices."""
    ending = file.suffix.lower()
    return (ending in ("", ".dcm", ".dicom", ".ima") or ending[1:].isdigit()) and file.name.upper() != "DICOMDIR" \
        and not file.name.startswith(".")


def _check_one_series(headers: list[Any]) -> None:
    if any(str(header.get("Modality", "")) != "CT" for header in headers):
        raise Refused("not every slice has modality CT")
    if any(int(header.get("NumberOfFrames") or 1) != 1 for header in headers):
        raise Refused("several frames in one file (enhanced CT), expected one file per slice")
    for tag, what in (("SeriesInstanceUID", "series"), ("FrameOfReferenceUID", "frames of reference")):
        found = {str(header.get(tag, "")) for header in headers}
        if len(found) > 1:
            raise Refused(f"{len(found)} {what} among {len(headers)} slices, expected 1; "
                          "a row that names one file takes that file's series alone")


def _slice_geometry(header: Any) -> volume.SliceGeometry:
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        if not header.get(tag):
            raise Refused(f"a slice without {tag}")
    x, y, z = (float(value) for value in header.ImagePositionPatient)
    a, b, c, d, e, f = (float(value) for value in header.ImageOrientationPatient)
    rows, columns = (float(value) for value in header.PixelSpacing)
    return volume.SliceGeometry(position=(x, y, z), along_row=(a, b, c), along_column=(d, e, f),
                                spacing=(rows, columns), shape=(int(header.Rows), int(header.Columns)))


def _check_voxels(shape: tuple[int, ...]) -> None:
    if not 0 < int(np.prod(shape, dtype=np.float64)) <= MAX_VOXELS:
        raise Refused(f"{' x '.join(map(str, shape))} voxels, expected between 1 and {MAX_VOXELS}")


# ---- NIfTI ----

def _read_nifti(path: Path) -> Volume:
    """One .nii or .nii.gz, read to its last byte: gzip's checksum stands at the end."""
    nibabel = _library("nibabel")
    with _parsing("NIfTI"), _open_nifti(path) as stream:
        head = stream.read(348)
        header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(head), check=False)
        shape = _check_nifti_header(header)
        size = int(header["vox_offset"]) + int(np.prod(shape)) * header.get_data_dtype().itemsize
        body = stream.read(size - len(head))
        if len(head) + len(body) != size:
            raise Refused(f"the file ends early: {len(head) + len(body)} bytes, expected {size}")
        if len(stream.read(MAX_TRAILING_BYTES + 1)) > MAX_TRAILING_BYTES:
            raise Refused("more data follows than its header announces")
        image = nibabel.Nifti1Image.from_bytes(head + body)
        affine = np.asarray(image.affine, dtype=np.float64)
        values = np.asanyarray(image.dataobj).reshape(shape)
    volume.check_affine(affine)
    announced = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not np.allclose(np.linalg.norm(affine[:3, :3], axis=0), announced, rtol=0.05):
        raise Refused(f"its affine and its pixel sizes {np.round(announced, 4).tolist()} contradict each other")
    if not np.isfinite(values).all():
        raise Refused("voxels that are not finite numbers")
    return Volume(values, affine)


def _open_nifti(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _check_nifti_header(header: Any) -> tuple[int, int, int]:
    """The shape, once the header is known to be sane; nothing has been allocated by it so far."""
    if int(header["sizeof_hdr"]) != 348 or bytes(header["magic"]).rstrip(b"\0") != b"n+1":
        raise Refused("not a NIfTI-1 file of one piece")
    dims = [int(n) for n in header["dim"]]
    if dims[0] not in (3, 4) or (dims[0] == 4 and dims[4] != 1):
        raise Refused(f"{dims[0]} axes, expected 3 (or 4 with the last of length 1)")
    shape = (dims[1], dims[2], dims[3])
    if min(shape) < 1:
        raise Refused(f"shape {list(shape)}, expected positive numbers")
    _check_voxels(shape)
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


def _read_mask(path: Path) -> Volume:
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise Refused("masks are read from .nii and .nii.gz")
    mask = _read_nifti(path)
    low, high = float(mask.values.min()), float(mask.values.max())
    if low < 0 or high > 255 or not np.array_equal(mask.values, np.round(mask.values)):
        raise Refused(f"its mask holds numbers from {low:g} to {high:g}, expected whole ones from 0 to 255")
    return mask
