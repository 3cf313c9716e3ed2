"""Reads radiographs and CT volumes into pieces on the training grid.

`read` runs in a child process that may be killed, so it may trust nothing: every library call on file content is
wrapped, and a refusal names formats and numbers only, never a header's text.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from domains.contract import Channel, Contract
from domains.links import refuse_leading_out
from domains.medical import burned_in, dicom, film, foreground, nifti, png, slices, volume
from domains.medical.parsing import check_pixels, check_voxels, library, parsing
from domains.medical.settings import CT, Settings, XRay
from domains.medical.volume import Volume
from domains.sample import Fact, ManifestRow, Piece, Refused

__all__ = ["CT", "Settings", "XRay", "contract", "implausible", "read", "suffixes"]

RASTER_FORMATS = ("PNG", "JPEG")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
"""Photometric interpretations that the decoders turn into red, green and blue."""
FILM_SPACING_MM = (0.01, 5.0)
FLAT_BELOW = 2.0
"""A film with a smaller standard deviation shows nothing."""


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


# ---- radiographs ----

def _read_film(row: ManifestRow, settings: XRay) -> Piece:
    if row.path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        (grey, facts), spacing = _grey_of_raster(row.path, settings, row.content), None
    else:
        grey, facts, spacing = _grey_of_dicom(row.path, settings)
    _look_for_text(grey, settings, facts)
    mask = None if row.mask_path is None else _mask_of_film(row.mask_path, grey.shape)
    whole, box = grey.shape, tuple(slice(0, n) for n in grey.shape)
    if settings.foreground == "exposed":
        box = foreground.exposed(film.as_grey(grey))
        facts["foreground"] = [edge for side in box for edge in (side.start, side.stop)]
        grey, mask = grey[box], None if mask is None else mask[box]
    return Piece(values=film.fit(grey, settings.size, settings.fit)[None], facts=facts,
                 placement=film.placed(whole, box, settings.size, settings.fit, spacing),
                 mask=None if mask is None else film.fit_mask(mask, settings.size, settings.fit))


def _look_for_text(grey: np.ndarray, settings: XRay, facts: dict[str, Fact]) -> None:
    """On the whole film at its own size: what lies under a margin that is cut off was there all the same."""
    found = [] if settings.burned_in == "ignore" else burned_in.lines_of_text(grey)
    if found and settings.burned_in == "refuse":
        raise Refused(f"looks as if text were burned into the picture ({len(found)} lines); burned_in: flag would take "
                      "it")
    if found:
        facts["text_lines"] = len(found)


def _grey_of_raster(path: Path, settings: XRay, content: bytes | None) -> tuple[np.ndarray, dict[str, Fact]]:
    """Grey in [0, 1], or as bytes where the picture has those, and facts.

    Args:
        content: of the file, where it is here already.
    """
    image_of, turned = library("PIL.Image"), library("PIL.ImageOps")
    file = path if content is None else io.BytesIO(content)
    with parsing("PNG or JPEG"), image_of.open(file, formats=RASTER_FORMATS) as image:
        check_pixels(image.height, image.width)
        if image.format == "PNG":
            png.check(path, content)
        deep = image.mode.startswith("I") or image.mode == "F"
        turned.exif_transpose(image, in_place=True)
        pixels = np.asarray(image if image.mode in ("L", "I;16") else image.convert("F" if deep else "L"))
        if image.has_transparency_data and not deep:  # what lies under transparent pixels is not part of the picture
            seen = np.asarray(image.convert("RGBA").getchannel("A"), dtype=np.float32) / 255
            pixels = film.to_grey(pixels.astype(np.float32) * seen, (0.0, 255.0))
        facts: dict[str, Fact] = {"format": str(image.format), "shape": list(pixels.shape),
                                  "stored_bits": 16 if deep else 8}
        coloured = 0.0 if image.mode in ("1", "L", "LA") or deep else film.coloured(np.asarray(image.convert("RGB")))
        if coloured > film.MOST_COLOURED:  # taken as its brightness, as any viewer of grey films would show it
            facts["coloured"] = round(coloured, 4)
    if not deep:
        return pixels, facts
    finite = None if pixels.dtype.kind in "iu" else np.isfinite(pixels)
    window = film.percentile_window(pixels, finite, settings.percentiles)
    return film.in_bands(lambda some: film.to_grey(some, window), pixels), facts


def _grey_of_dicom(path: Path, settings: XRay) -> tuple[np.ndarray, dict[str, Fact], tuple[float, float] | None]:
    """Grey in [0, 1], facts, and millimetres between rows and columns where the header tells them."""
    header = dicom.read(path, samples=(1, 3))
    with parsing("DICOM"):
        photometric = str(header.get("PhotometricInterpretation", ""))
        if photometric not in ("MONOCHROME1", "MONOCHROME2", *COLOURS):
            raise Refused("not a grey film: photometric interpretation is none of MONOCHROME1, MONOCHROME2, "
                          + ", ".join(COLOURS))
        if int(header.get("NumberOfFrames") or 1) != 1:
            raise Refused(f"{int(header.NumberOfFrames)} frames in one file, expected 1")
        if str(header.get("BurnedInAnnotation", "")).upper() == "YES" and not settings.allow_burned_in_text:
            raise Refused("its header says that text is burned into the picture; allow_burned_in_text would take it")
        if photometric in COLOURS:
            stored, contrast = _brightness(header), "stored"
            grey, exposed = stored, None
        else:
            stored, padding = dicom.stored_values(header)
            exposed = None if padding is None else ~padding
            if exposed is not None and not exposed.any():
                raise Refused("every pixel is padding")
            grey, contrast = _contrast(stored, exposed, header, settings)
    if photometric == "MONOCHROME1":  # there the smallest number is white
        np.subtract(1.0, grey, out=grey)
    facts: dict[str, Fact] = {"format": "DICOM", "shape": list(grey.shape), "photometric": photometric,
                              "stored_bits": int(header.BitsStored), "contrast": contrast}
    spacing = _spacing(header)
    _refuse_oblong(spacing or header.get("PixelAspectRatio") or (1, 1))
    return grey if exposed is None else np.where(exposed, grey, np.float32(0.0)), facts, spacing


def _spacing(header: Any) -> tuple[float, float] | None:
    """Millimetres between rows and between columns: in the patient where that was calibrated, else on the detector,
    where things look larger than they are."""
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            found = [float(number) for number in header.get(name) or ()]
        except (TypeError, ValueError, OverflowError):  # no number: the film is good all the same
            continue
        if len(found) == 2 and all(FILM_SPACING_MM[0] <= number <= FILM_SPACING_MM[1] for number in found):
            return found[0], found[1]
    return None


def _refuse_oblong(sides: Sequence[float]) -> None:
    """Films are stored pixel by pixel, so that oblong ones would squeeze the patient."""
    down, across = (float(side) for side in sides)
    if not max(down, across) <= film.MOST_UNEQUAL * min(down, across):
        raise Refused(f"pixels of {down:g} by {across:g}, expected square ones. Remedy: save it with square pixels")


def _brightness(header: Any) -> np.ndarray:
    """Grey in [0, 1] of a film that was saved in colour: screenshots and secondary captures show a grey film in three
    equal channels, ready for viewing. A picture that is coloured in truth is refused."""
    colours = np.asarray(library("pydicom.pixels").pixel_array(header))  # converted to RGB by the decoder
    if colours.ndim != 3 or colours.shape[2] != 3 or colours.dtype != np.uint8:
        raise Refused(f"colours of {colours.dtype} and shape {list(colours.shape)}, expected 8 bits of three channels")
    coloured = film.coloured(colours)
    if coloured > film.MOST_COLOURED:
        raise Refused(f"not a grey film: {coloured:.1%} of its pixels are coloured")
    return film.to_grey(colours.mean(axis=2), (0.0, 255.0))


def _mask_of_film(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """H W uint8 of classes, on the film's pixels."""
    if path.suffix.lower() != ".png":
        raise Refused("masks of films are read from .png")
    image_of = library("PIL.Image")
    with parsing("PNG"), image_of.open(path, formats=("PNG",)) as image:
        check_pixels(image.height, image.width)
        png.check(path)
        classes = np.asarray(image)
    if classes.shape != shape:
        raise Refused(f"its mask has shape {list(classes.shape)}, expected {list(shape)} like the film")
    if classes.dtype.kind not in "biu" or classes.min() < 0 or classes.max() > 255:
        raise Refused(f"its mask holds {classes.dtype} up to {classes.max():g}, expected whole numbers from 0 to 255")
    return classes.astype(np.uint8)


def _contrast(stored: np.ndarray, exposed: np.ndarray | None, header: Any, settings: XRay) -> tuple[np.ndarray, str]:
    """Grey in [0, 1] before any inversion, and where its contrast came from.

    Args:
        exposed: H W bool; None: everywhere.
    """
    pixels = library("pydicom.pixels")
    if header.get("RescaleSlope") is not None and float(header.RescaleSlope) == 0:
        raise Refused("its RescaleSlope is 0, by which every pixel would be the same")
    values, plus = stored, _whole_shift(header)
    if plus is None:
        values, plus = film.in_bands(lambda some: pixels.apply_modality_lut(some, header), stored), 0.0
    if settings.contrast == "voi" and header.get("VOILUTSequence"):
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        table = np.asarray(pixels.apply_voi(_plus(values, plus).astype(np.int32), header))
        return film.to_grey(table, (0.0, float(2 ** bits - 1))), "table"
    centre, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    if (settings.contrast == "percentile" or centre is None or width is None
            or not film.shows(_plus(values, plus), exposed, centre, width)):
        window = film.percentile_window(values, exposed, settings.percentiles, plus)
        return film.in_bands(lambda some: film.to_grey(_plus(some, plus), window), values), "percentile"
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    return film.in_bands(lambda some: film.viewed(_plus(some, plus), centre, width, function), values), "window"


def _whole_shift(header: Any) -> float | None:
    """What is added to the stored numbers, where a whole number is and nothing else is done to them, as mostly."""
    if header.get("ModalityLUTSequence"):
        return None
    if "RescaleSlope" not in header or "RescaleIntercept" not in header:
        return 0.0
    slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
    return intercept if slope == 1 and intercept.is_integer() else None


def _plus(stored: np.ndarray, plus: float) -> np.ndarray:
    return (stored + plus).astype(np.float32) if plus else stored.astype(np.float32, copy=False)


def _first(value: Any) -> float | None:
    """The first of several windows is the one that the maker shows by default."""
    if value is None or value == "":
        return None
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)


# ---- CT ----

def _read_ct(row: ManifestRow, settings: CT) -> Piece:
    facts: dict[str, Fact] = {}
    if row.path.name.lower().endswith((".nii", ".nii.gz")):
        found, form = nifti.read(row.path, settings.max_voxels, row.content), "NIfTI"
    else:
        found, form = _read_series(row, settings), "DICOM series"
        if (tilt := volume.shear_degrees(found)) > volume.TILT_TOLERANCE_DEGREES:
            found, facts["tilt_degrees"] = volume.straighten(found, settings.max_voxels), round(tilt, 1)
    image = volume.orient(found)
    mask = None if row.mask_path is None else volume.orient(_read_mask(row.mask_path, settings.max_voxels))
    grid = _grid(image, mask, settings)
    if settings.foreground == "body":
        grid, inside = _body_grid(image, settings)
        facts["foreground"] = inside
    hu = volume.sample_hu(image, grid, settings.scale, settings.offset)
    if (hu == volume.UNKNOWN_HU).all():
        raise Refused("nothing of the cube lies inside the file")
    facts |= {
        "format": form, "shape": list(image.values.shape), "spacing": [round(float(mm), 4) for mm in image.spacing],
        "oblique_degrees": round(volume.obliqueness(image), 1),
        "known": round(float((hu != volume.UNKNOWN_HU).mean()), 4)}
    return Piece(values=hu[None], mask=None if mask is None else volume.sample_mask(mask, image, grid), facts=facts,
                 placement=volume.placed(found, grid, backwards=form != "NIfTI"))


def _grid(image: Volume, mask: Volume | None, settings: CT) -> volume.Grid:
    if not settings.cube:
        return volume.whole_grid(image, settings.spacing)
    if settings.cube_at == "centre":
        return volume.cube_grid(image, settings.spacing, settings.cube_shape, None)
    if mask is None:
        raise Refused("the row has no mask to centre the cube at; cube_at: centre needs none")
    return volume.cube_grid(image, settings.spacing, settings.cube_shape, volume.centre_of_mask(mask))


def _body_grid(image: Volume, settings: CT) -> tuple[volume.Grid, list[int]]:
    """The grid over what is denser than air, and that box as first and last voxels of the oriented volume."""
    coarse = volume.whole_grid(image, (foreground.CELL_MM,) * 3)
    hu = volume.sample_hu(image, coarse, settings.scale, settings.offset)
    box = foreground.body(hu, hu != volume.UNKNOWN_HU)
    ends = [(max(0, math.floor(at[side.start] - step / 2 + 0.5)), min(n, math.ceil(at[side.stop - 1] + step / 2 + 0.5)))
            for n, at, step, side in zip(image.values.shape, coarse.centres, coarse.steps, box, strict=True)]
    return volume.box_grid(image, settings.spacing, ends), [edge for pair in ends for edge in pair]


def _read_series(row: ManifestRow, settings: CT) -> Volume:
    """All slices of one series: those of a folder, or those beside a file that belong to its series. Some files hold
    one slice, others (enhanced CT) many."""
    path = row.path
    beside = path if path.is_dir() else path.parent
    files = sorted(file for file in beside.iterdir() if file.is_file() and _may_be_slice(file))
    refuse_leading_out(files, row.within)
    headers = {file: dicom.header(file) for file in files}
    with parsing("DICOM series"):
        if path.is_file():
            wanted = str(headers[path].get("SeriesInstanceUID", ""))
            headers = {file: header for file, header in headers.items()
                       if str(header.get("SeriesInstanceUID", "")) == wanted}
        headers = {file: header for file, header in headers.items() if not slices.beside_pictures(header)}
        for header in headers.values():
            dicom.check(header)
        slices.check_one_series(list(headers.values()))
        by_file = {file: slices.of_header(header, told=settings.offset != 0) for file, header in headers.items()}
        found = [one for some in by_file.values() for one in some]
        order, affine = volume.order_slices([one.geometry for one in found],
                                            straight=settings.gantry_tilt == "refuse")
        shape = (len(found), *found[0].geometry.shape)
        check_voxels(shape, settings.max_voxels)
        values, known = np.empty(shape, dtype=np.float32), np.ones(shape, dtype=bool)
        places = iter(np.argsort(order))  # where each that was found belongs
        for file, some in by_file.items():
            header = dicom.read(file)
            for one in some:
                at, (stored, padding) = next(places), dicom.stored_values(header, one.frame)
                values[at] = stored * one.slope + one.intercept
                known[at] = True if padding is None else ~padding
    return Volume(values, affine, None if known.all() else known)


def _may_be_slice(file: Path) -> bool:
    """DICOM names end in .dcm, .ima or nothing, or are numbers with dots; other files beside them are not slices."""
    ending = file.suffix.lower()
    return (ending in ("", ".dcm", ".dicom", ".ima") or ending[1:].isdigit()) and file.name.upper() != "DICOMDIR" \
        and not file.name.startswith(".")


def _read_mask(path: Path, max_voxels: int) -> Volume:
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise Refused("masks are read from .nii and .nii.gz")
    mask = nifti.read(path, max_voxels)
    low, high = float(mask.values.min()), float(mask.values.max())
    if low < 0 or high > 255 or not np.array_equal(mask.values, np.round(mask.values)):
        raise Refused(f"its mask holds numbers from {low:g} to {high:g}, expected whole ones from 0 to 255")
    return mask
