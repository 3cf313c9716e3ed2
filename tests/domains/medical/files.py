"""Small medical files for tests: written with the libraries, then bent."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from domains.sample import ManifestRow

CANARY = "Mustermann^Erika"
"""A name in every header that must never come back out."""


def row(path: Path, mask: Path | None = None) -> ManifestRow:
    """A manifest row for one file."""
    return ManifestRow(path=path, key=path.name, group="g", split="train", source="s", mask_path=mask)


def dicom(path: Path, stored: np.ndarray, **tags: Any) -> Path:
    """One DICOM file: 12 bits in 16, MONOCHROME2, unless `tags` say otherwise. None removes a tag."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = tags.pop("TransferSyntaxUID", ExplicitVRLittleEndian)
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    signed = int(stored.dtype.kind == "i")
    values: dict[str, Any] = {
        "SOPClassUID": meta.MediaStorageSOPClassUID, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "PatientName": CANARY, "PatientID": CANARY, "Modality": "DX", "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11,
        "PixelRepresentation": signed, "Rows": stored.shape[0], "Columns": stored.shape[1],
        "PixelData": stored.astype("<i2" if signed else "<u2").tobytes()}
    for name, value in {**values, **tags}.items():
        if name == "PixelPaddingValue":
            header.add_new(0x00280120, "SS" if signed else "US", value)
        elif value is not None:
            setattr(header, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, hu: np.ndarray, affine: np.ndarray, **tags: Any) -> Path:
    """A CT series of `hu` (columns, rows, slices) at a RAS affine; file names run against the slices."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    for k in range(hu.shape[2]):
        place = {
            "Modality": "CT", "SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4",
            "ImagePositionPatient": [f"{mm:.6f}" for mm in (lps @ [0, 0, k, 1])[:3]],
            "ImageOrientationPatient": [f"{c:.8f}" for c in (*lps[:3, 0] / steps[0], *lps[:3, 1] / steps[1])],
            "PixelSpacing": [f"{steps[1]:.6f}", f"{steps[0]:.6f}"], "RescaleSlope": "1", "RescaleIntercept": "-1024"}
        dicom(folder / f"{hu.shape[2] - k:03d}.dcm", (hu[:, :, k].T + 1024).astype(np.uint16), **{**place, **tags})
    return folder


def enhanced(path: Path, hu: np.ndarray, affine: np.ndarray, order: list[int] | None = None, **tags: Any) -> Path:
    """`hu` (columns, rows, slices) at a RAS affine as one enhanced CT; `order` says which slice each frame holds. What
    all frames have in common stands in the shared groups."""
    from pydicom.dataset import Dataset

    def group(**fields: Any) -> list[Dataset]:
        item = Dataset()
        for name, value in fields.items():
            setattr(item, name, value)
        return [item]

    order = list(range(hu.shape[2])) if order is None else order
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    frames = [group(PlanePositionSequence=group(
        ImagePositionPatient=[f"{mm:.6f}" for mm in (lps @ [0, 0, k, 1])[:3]]))[0] for k in order]
    shared = group(
        PlaneOrientationSequence=group(ImageOrientationPatient=[
            f"{c:.8f}" for c in (*lps[:3, 0] / steps[0], *lps[:3, 1] / steps[1])]),
        PixelMeasuresSequence=group(PixelSpacing=[f"{steps[1]:.6f}", f"{steps[0]:.6f}"]),
        PixelValueTransformationSequence=group(RescaleSlope="1", RescaleIntercept="-1024", RescaleType="HU"))
    stored = (hu.transpose(2, 1, 0)[order] + 1024).astype("<u2")
    about = {"Modality": "CT", "SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4",
             "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1", "NumberOfFrames": len(order),
             "PixelData": stored.tobytes(), "SharedFunctionalGroupsSequence": shared,
             "PerFrameFunctionalGroupsSequence": frames}
    return dicom(path, stored[0], **{**about, **tags})


def nifti(path: Path, values: np.ndarray, affine: np.ndarray, **fields: Any) -> Path:
    """A NIfTI-1 file; `fields` overwrite header fields after everything else."""
    import nibabel

    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    content = bytearray(image.to_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content), mtime=0) if path.suffix == ".gz" else bytes(content))
    return path
