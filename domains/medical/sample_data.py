"""The embedded medical sample: phantoms with a task, written in the formats that hospitals export."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from domains.medical import chest, nodule

HOSPITALS = {
    "clinic": chest.View(shape=(128, 120), field_mm=330, photons=2e5, scatter=0.05, magnify_heart=1.0, tilt=0.03,
                         collimated=1.0),
    "ward": chest.View(shape=(112, 128), field_mm=320, photons=3e4, scatter=0.5, magnify_heart=1.15, tilt=0.05,
                       collimated=0.88),
}
"""clinic: an upright film from behind, well exposed, stored for viewing (MONOCHROME2). ward: a portable film from the
front: bigger heart, fog of scatter, noise, tilt, collimator edges, stored as measured (MONOCHROME1). The gap between
the two is the shift that a model trained in one of them pays for in the other."""

SCANNERS = {
    "lung-clinic": (nodule.Scanner(noise_hu=60, lung_hu=-870, blur_mm=1.0), (2.0, 2.0, 2.5)),
    "emergency": (nodule.Scanner(noise_hu=250, lung_hu=-790, blur_mm=2.2), (2.3, 2.3, 4.3)),
}
"""Each with its voxel in mm, in the plane and across slices. lung-clinic: thin slices, full breath, sharp kernel.
emergency: low dose, thick slices, shallow breath, soft kernel."""
SERIES_EVERY = 10
"""One volume in this many of the lung-clinic is a DICOM series of some 21 files; the others are single NIfTI files."""
VOLUME_MM = 52.0
"""Edge of the volumes: a little more than 24 voxels of 2 mm, so that training can move its crop."""
AXES = ("LPS", "RAS", "LAS", "ASR", "PIR")
"""Directions of the axes of NIfTI volumes, as different tools write them."""

SPLIT_SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}
"""Of the labelled films. The test share is large because the sample is small, and its intervals would be wide."""
LABEL_MISSING = 0.05
"""Share of labelled films whose label was lost: unknown, which must not count as negative."""


@dataclass(frozen=True)
class Sample:
    """What to generate."""

    kind: Literal["xray", "ct"] = "xray"
    """Chest films with or without a consolidation, or CT volumes around a solid or part-solid nodule."""
    labelled: int = 480
    """Samples with labels, over all splits and both sources."""
    unlabelled: int = 640
    """Samples for pretraining only."""
    seed: int = 0
    """The same seed writes the same bytes."""

    def __post_init__(self) -> None:
        if self.labelled < 0 or self.unlabelled < 0 or self.labelled + self.unlabelled < 1:
            raise ValueError(f"counts: found {self.labelled} labelled and {self.unlabelled} unlabelled, "
                             "expected numbers from 0 and at least one sample.")


def make(folder: Path, settings: Sample) -> None:
    """Write the files and labels.csv (path, mask_path for CT, group, split, source, labels, age ...) into `folder`."""
    rng = np.random.default_rng(settings.seed)
    rows: list[dict[str, Any]] = []
    sources = list(HOSPITALS if settings.kind == "xray" else SCANNERS)
    for i, source in enumerate(sources):
        for labelled, total in ((True, settings.labelled), (False, settings.unlabelled)):
            count = (total + i) // len(sources)
            first = len(rows)
            while len(rows) - first < count:  # patients come one to three times
                patient = f"{source}-{'p' if labelled else 'u'}{len(rows) - first:04d}"
                split = str(rng.choice(list(SPLIT_SHARES), p=list(SPLIT_SHARES.values()))) if labelled else "unlabelled"
                visits = min(int(rng.integers(1, 4)), count - len(rows) + first)
                visit = _films if settings.kind == "xray" else _volumes
                rows += [{**row, "group": patient, "split": split, "source": source}
                         for row in visit(folder, source, patient, visits, labelled, rng)]
    _write_manifest(folder / "labels.csv", rows)


def _films(folder: Path, source: str, patient: str, visits: int, labelled: bool,
           rng: np.random.Generator) -> list[dict[str, Any]]:
    """Films of one patient, who stays the same; the consolidation comes and goes."""
    anatomy, age = chest.draw_anatomy(rng), int(rng.integers(20, 90))
    rows: list[dict[str, Any]] = []
    for visit in range(visits):
        opacity = bool(rng.random() < 0.5)
        path = f"{source}/{patient}_{visit}.dcm"
        _write_film(folder / path, chest.film(anatomy, HOSPITALS[source], opacity, rng), source)
        known = labelled and rng.random() >= LABEL_MISSING
        rows.append({"path": path, "opacity": int(opacity) if known else "",
                     "heart_mm": round(2 * anatomy.heart, 1) if known else "", "age": age,
                     "view": "PA" if source == "clinic" else "AP"})
    return rows


def _volumes(folder: Path, source: str, patient: str, visits: int, labelled: bool,
             rng: np.random.Generator) -> list[dict[str, Any]]:
    """Volumes around one patient's nodules: a different one each time."""
    age, (scanner, voxel) = int(rng.integers(40, 90)), SCANNERS[source]
    rows: list[dict[str, Any]] = []
    for visit in range(visits):
        part_solid = bool(rng.random() < 0.5)
        lesion = nodule.draw_nodule(part_solid, rng)
        series = source == "lung-clinic" and rng.integers(SERIES_EVERY) == 0
        axes = "LPS" if series else str(rng.choice(AXES))
        affine, places, steps = _placed(axes, voxel, rng)
        hu, mask = nodule.scan(lesion, scanner, places, steps, rng)
        name = f"{source}/{patient}_{visit}"
        path = name if series else f"{name}.nii.gz" if visit else f"{name}.nii"
        if series:
            _write_series(folder / path, hu, affine, rng)
        else:
            _write_nifti(folder / path, hu, affine)
        if labelled:
            _write_nifti(folder / f"{name}_mask.nii.gz", mask, affine)
        known = labelled and rng.random() >= LABEL_MISSING
        rows.append({"path": path, "mask_path": f"{name}_mask.nii.gz" if labelled else "",
                     "part_solid": int(part_solid) if known else "",
                     "diameter_mm": round(2 * lesion.rim, 1) if known else "", "age": age})
    return rows


def _placed(axes: str, voxel: tuple[float, float, float],
            rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """An affine with these axes somewhere in a patient, the place of every voxel from the middle, mm per voxel."""
    towards = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    # The axis that runs along the body takes the slice distance.
    steps = [(voxel[2] if code in "SI" else voxel[0]) * rng.uniform(0.92, 1.08) for code in axes]
    shape = [round(VOLUME_MM / step) for step in steps]
    affine = np.eye(4)
    affine[:3, :3] = np.array([np.array(towards[code]) * step for code, step in zip(axes, steps, strict=True)]).T
    middle = (np.array(shape) - 1) / 2
    places = (np.moveaxis(np.indices(shape), 0, -1) - middle) @ affine[:3, :3].T
    affine[:3, 3] = rng.uniform(-120, 120, 3) - affine[:3, :3] @ middle
    return affine, places, (steps[0], steps[1], steps[2])


def _write_manifest(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# ---- DICOM ----

def _write_film(path: Path, counts: np.ndarray, source: str) -> None:
    """One exposure in the manner of its hospital: 12 bits in 16."""
    header = _header(path, "1.2.840.10008.5.1.4.1.1.1.1", "DX")
    attenuation = np.log(HOSPITALS[source].photons / np.maximum(counts, 1.0))
    if source == "clinic":  # bright is dense, with the window that the radiographer chose
        header.PhotometricInterpretation, header.PixelRepresentation = "MONOCHROME2", 0
        stored = np.clip(attenuation * 500, 0, 4095).astype(np.uint16)
        low, high = np.percentile(stored[attenuation > 0.7], [0.5, 99.5])
        header.WindowCenter, header.WindowWidth = f"{(low + high) / 2:.1f}", f"{high - low:.1f}"
        header.RescaleSlope, header.RescaleIntercept = "1", "0"
    else:  # the logarithm of the signal as measured, signed, with the shut part of the detector as padding
        header.PhotometricInterpretation, header.PixelRepresentation = "MONOCHROME1", 1
        # Direct exposure saturates this detector, which leaves the grey scale to the patient.
        stored = np.clip(1500 - np.maximum(attenuation, 0.9) * 400, -2047, 2047).astype(np.int16)
        stored[counts == 0] = -2048
        header.add_new(0x00280120, "SS", -2048)
        header.RescaleSlope, header.RescaleIntercept = "0.5", "1024"
    _write_pixels(header, path, stored)


def _write_series(folder: Path, hu: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> None:
    """One file per slice, in an order of names that is not their order in space. Axes: columns, rows, slices (LPS)."""
    from pydicom.uid import generate_uid

    series = generate_uid(entropy_srcs=[folder.parent.name, folder.name, "series"])
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    for name, k in enumerate(rng.permutation(hu.shape[2])):
        path = folder / f"{name:03d}.dcm"
        header = _header(path, "1.2.840.10008.5.1.4.1.1.2", "CT")
        header.SeriesInstanceUID = header.FrameOfReferenceUID = series
        header.PhotometricInterpretation, header.PixelRepresentation = "MONOCHROME2", 0
        header.ImagePositionPatient = [f"{mm:.5f}" for mm in (lps @ [0, 0, k, 1])[:3]]
        cosines = (*lps[:3, 0] / steps[0], *lps[:3, 1] / steps[1])
        header.ImageOrientationPatient = [f"{cosine:.5f}" for cosine in cosines]
        header.PixelSpacing, header.SliceThickness = [f"{steps[1]:.5f}", f"{steps[0]:.5f}"], f"{steps[2]:.5f}"
        header.RescaleSlope, header.RescaleIntercept = "1", "-1024"
        _write_pixels(header, path, (hu[:, :, k].T + 1024).astype(np.uint16))


def _write_nifti(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    import nibabel

    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = image.to_bytes()
    # A gzip header holds the time unless told otherwise; the same seed is to write the same bytes.
    path.write_bytes(gzip.compress(content, compresslevel=1, mtime=0) if path.suffix == ".gz" else content)


def _header(path: Path, sop_class: str, modality: str) -> Any:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    name = generate_uid(entropy_srcs=[path.parent.name, path.name])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), name
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID, header.Modality = sop_class, name, modality
    header.PatientID, header.PatientName = "phantom", "Phantom"
    return header


def _write_pixels(header: Any, path: Path, stored: np.ndarray) -> None:
    header.SamplesPerPixel, header.BitsAllocated, header.BitsStored, header.HighBit = 1, 16, 12, 11
    header.Rows, header.Columns = stored.shape
    # Signed numbers keep their twelve low bits alone: what lies above is the reader's to cut off.
    header.PixelData = (stored.view(np.uint16) & 0x0FFF).astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
