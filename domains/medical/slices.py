"""What DICOM headers say of the slices of a CT series: one slice per file, or many in the frames of an enhanced file.

Headers are pydicom's data sets, parsed already; nothing here opens a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from domains.medical.volume import SliceGeometry
from domains.sample import Refused

HOUNSFIELD = ("", "HU", "HU_MOD", "US")
"""What RescaleType may say: nothing, Hounsfield units, modified ones, unspecified."""


@dataclass(frozen=True)
class Slice:
    """One slice of a file, not yet decoded."""

    frame: int | None
    """Its place among the file's frames; None for a file of one slice."""
    geometry: SliceGeometry
    slope: float
    """HU = slope * stored number + intercept."""
    intercept: float


def beside_pictures(header: Any) -> bool:
    """Whether an object holds no pixels and is no CT that lost them: structure sets, reports and states of a viewer lie
    among the slices of many archives."""
    return "Rows" not in header and str(header.get("Modality", "")) != "CT"


def check_one_series(headers: Sequence[Any]) -> None:
    """Refuse what is not one CT series."""
    if any(str(header.get("Modality", "")) != "CT" for header in headers):
        raise Refused("not every slice has modality CT")
    for tag, what in (("SeriesInstanceUID", "series"), ("FrameOfReferenceUID", "frames of reference")):
        found = {str(header.get(tag, "")) for header in headers}
        if len(found) > 1:
            raise Refused(f"{len(found)} {what} among {len(headers)} files, expected 1; "
                          "a row that names one file takes that file's series alone")


def of_header(header: Any, told: bool = False) -> list[Slice]:
    """The slices of one file, in the order of its frames.

    Args:
        told: whether the settings say what must be added to numbers, so that a header may leave it open.
    """
    count = int(header.get("NumberOfFrames") or 1)
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if not groups:
        if count != 1:
            raise Refused(f"{count} frames in one file that does not say where each lies (no functional groups), "
                          "expected an enhanced CT or one file per slice")
        if header.get("ModalityLUTSequence"):
            raise Refused("a table in place of slope and intercept (ModalityLUTSequence), which is not read for CT")
        if not told and int(header.get("PixelRepresentation", 0)) == 0 and header.get("RescaleIntercept") in (None, ""):
            raise Refused("a slice without RescaleIntercept whose numbers have no sign: they are no Hounsfield units, "
                          "in which air is -1000. Remedy: set offset (often -1024) in the data run")
        return [Slice(None, _geometry(header, header, header, header), *_rescale(header))]
    if len(groups) != count:
        raise Refused(f"{count} frames and {len(groups)} descriptions of frames, expected as many")
    shared = header.get("SharedFunctionalGroupsSequence") or [{}]
    return [_of_frame(header, i, groups[i], shared[0]) for i in range(count)]


def _of_frame(header: Any, index: int, own: Any, shared: Any) -> Slice:
    """A frame says itself what differs among frames; the rest stands once for all of them."""
    position, orientation, measures, numbers = (
        _macro(own, shared, name) for name in ("PlanePositionSequence", "PlaneOrientationSequence",
                                               "PixelMeasuresSequence", "PixelValueTransformationSequence"))
    if not numbers:
        raise Refused("a frame without PixelValueTransformationSequence, which makes Hounsfield units of its numbers")
    return Slice(index, _geometry(header, position, orientation, measures), *_rescale(numbers))


def _macro(own: Any, shared: Any, name: str) -> Any:
    """The one item of a functional group, of the frame itself or of all; empty where neither has it."""
    found = own.get(name) or shared.get(name)
    return found[0] if found else {}


def _rescale(source: Any) -> tuple[float, float]:
    unit = str(source.get("RescaleType") or "").strip().upper()
    if unit not in HOUNSFIELD:  # maps of iodine, of effective atomic numbers or of electron density
        raise Refused("its header says that its numbers are no Hounsfield units (RescaleType), expected those of a CT")
    slope, intercept = (float(default if (number := source.get(tag)) in (None, "") else number)
                        for tag, default in (("RescaleSlope", 1), ("RescaleIntercept", 0)))
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope != 0):
        raise Refused(f"slope {slope:g} and intercept {intercept:g}, expected finite numbers and a slope other than 0")
    return slope, intercept


def _geometry(header: Any, position: Any, orientation: Any, measures: Any) -> SliceGeometry:
    told = {"ImagePositionPatient": position, "ImageOrientationPatient": orientation, "PixelSpacing": measures}
    for tag, where in told.items():
        if not where.get(tag):
            raise Refused(f"a slice without {tag}")
    x, y, z = (float(value) for value in position.get("ImagePositionPatient"))
    a, b, c, d, e, f = (float(value) for value in orientation.get("ImageOrientationPatient"))
    rows, columns = (float(value) for value in measures.get("PixelSpacing"))
    return SliceGeometry(position=(x, y, z), along_row=(a, b, c), along_column=(d, e, f), spacing=(rows, columns),
                         shape=(int(header.Rows), int(header.Columns)))
