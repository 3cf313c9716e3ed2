"""Masks of native files: what a model of masks says of each piece, put together on the file's own grid and written in
the format that users of such files expect.

Legend: K classes without the background, D H W stored voxels (D is absent for images).
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from domains.native_grid import native_classes
from domains.outcome import Outcome
from domains.placement import Placement
from domains.publish import write_text
from domains.quarantine import Limits, fault, read_all
from domains.sample import UNKNOWN_CLASS, ManifestRow, Piece, Task
from pipelines.prediction.native import Native
from pipelines.prediction.segmenting import segment_values

FOLDER, TABLE = "masks", "masks.csv"
"""In the output folder."""

Segment = Callable[[np.ndarray], np.ndarray]
"""Stored values C (D) H W -> probabilities K+1 (D) H W, the background's first."""


@dataclass(frozen=True)
class Mask:
    """What was said of one file."""

    row: ManifestRow
    sha256: str
    reason: str = ""
    """Why the file was refused; empty when it was not."""
    numbers: np.ndarray | None = None
    """uint8 on the file's own grid, as the task numbers its classes; UNKNOWN_CLASS where nothing was looked at."""
    placement: Placement | None = None
    num_pieces: int = 0


def masks(native: Native, rows: Sequence[ManifestRow], segment: Segment, limits: Limits | None) -> Iterator[Mask]:
    """One per row, in the rows' order. One file is held at a time."""
    table = numbers_of(native.record["task"])
    mask = None
    for outcome in read_all(rows, native.reader, limits or Limits()):
        mask = _more(mask or Mask(outcome.row, outcome.sha256), outcome, native, segment)
        if outcome.more:
            continue
        if not mask.reason and mask.numbers is None:
            mask = Mask(mask.row, mask.sha256, "no usable sample in it")
        if mask.numbers is not None:
            mask = Mask(mask.row, mask.sha256, "", table[mask.numbers], mask.placement, mask.num_pieces)
        yield mask
        mask = None


def numbers_of(task: Task) -> np.ndarray:
    """256 uint8: what every class is called in mask files; the inverse of `Task.class_of`."""
    table = np.full(256, UNKNOWN_CLASS, np.uint8)
    table[:len(task.classes)] = task.values or range(len(task.classes))
    return table


def _more(so_far: Mask, outcome: Outcome, native: Native, segment: Segment) -> Mask:
    """A file's mask with the pieces of another part of it in; refused as a whole when any of them is."""
    if so_far.reason or outcome.reason:
        return Mask(so_far.row, so_far.sha256, so_far.reason or outcome.reason)
    classes, place, count = so_far.numbers, so_far.placement, so_far.num_pieces
    for piece in outcome.pieces:
        reason, said = _said(piece, native, segment)
        if reason:
            return Mask(so_far.row, so_far.sha256, reason)
        assert piece.placement is not None
        if place is not None and piece.placement.shape != place.shape:
            return Mask(so_far.row, so_far.sha256, "its pieces do not lie on one grid")
        place = place or piece.placement
        classes = native_classes(said, _known(piece.values, native.contract.unknown), piece.placement, classes)
        count += 1
    return Mask(so_far.row, so_far.sha256, "", classes, place, count)


def _said(piece: Piece, native: Native, segment: Segment) -> tuple[str, np.ndarray]:
    """A reason against a piece, or what the model says of it."""
    contract = native.contract
    unlike = fault(piece, contract.dtype, len(contract.channels), len(contract.size) + 1, contract.unknown)
    if unlike or piece.placement is None:
        return unlike or "where its samples lie in it is not known, so that no mask can be written for it", np.empty(0)
    try:
        said = segment(piece.values)
    except ValueError as error:  # a shape that this model's size does not go with
        return str(error), np.empty(0)
    return ("" if np.isfinite(said).all() else "the model's answer is not finite"), said


def _known(values: np.ndarray, unknown: float | None) -> np.ndarray:
    """(D) H W bool: where a stored sample holds something in any channel."""
    return np.ones(values.shape[1:], bool) if unknown is None else np.asarray((values != unknown).any(axis=0))


def segment_of(native: Native) -> Segment:
    """What the checkpoint's model says of stored values, larger and smaller ones than it sees at once included."""
    assert native.model is not None, "a model of masks has a head"
    return partial(_segment, native)


def _segment(native: Native, values: np.ndarray) -> np.ndarray:
    assert native.model is not None
    return segment_values(native.model, native, values, native.device)


# ---- writing

def written(found: Iterable[Mask], native: Native, out: Path, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Masks as files below `out`, and what to say of each: one dictionary per file, as `lacuna predict` tells it.

    Args:
        names: what the mask of each row is to be called, by the row's key, without an ending (`names_for`).
    """
    meaning = meaning_of(native.record["task"])
    export = export_of(native)
    for mask in found:
        result = answer_of(mask.row, mask.sha256, mask.reason, native)
        if mask.numbers is not None and mask.placement is not None:
            name = f"{FOLDER}/{names[mask.row.key]}{export.ending(mask.placement)}"
            export.write(out / name, mask.numbers, mask.placement, meaning)
            counts, sizes, unit = export.measure(mask.numbers, mask.placement, meaning)
            left = int((mask.numbers == UNKNOWN_CLASS).sum())
            result |= {"mask": name, **counted(counts, meaning, left, sizes, unit)}
        yield result


def meaning_of(task: Task) -> dict[int, str]:
    """What the numbers in mask files mean, the background's first."""
    return dict(zip(numbers_of(task)[:len(task.classes)].tolist(), task.classes, strict=True))


def answer_of(row: ManifestRow, sha256: str, reason: str, native: Native) -> dict[str, Any]:
    """A file's answer without a mask, as plain values: all that there is of one that was refused."""
    return {"path": row.key, "status": "refused" if reason else "done", "reason": reason, "label": None,
            "probabilities": {}, "pieces": [], "sha256": sha256, "checkpoint": native.identity}


def counted(counts: Sequence[int] | np.ndarray, meaning: dict[int, str], left: int, sizes: np.ndarray | None = None,
            unit: str = "") -> dict[str, Any]:
    """What a mask holds: pixels (voxels, points) of each class and how large they are, and those without one."""
    return {"classes": [{"class": cls, "number": number, "pixels": int(counts[i]),
                         "size": None if sizes is None else float(f"{sizes[i]:.6g}"), "unit": unit}
                        for i, (number, cls) in enumerate(meaning.items())], "not_looked_at": left}


def export_of(native: Native) -> ModuleType:
    """The domain's module that writes masks."""
    return importlib.import_module(native.ingest.__name__.replace(".ingest", ".export"))


def names_for(rows: Sequence[ManifestRow], taken: dict[str, str]) -> dict[str, str]:
    """What the mask of each row is called, by the row's key, without an ending: as the file, in the folders between it
    and the folder that all rows lie in. A name that another file has gets eight letters of a hash of its own path.

    Args:
        taken: masks that lie there already -> the key that each belongs to.
    """
    above = Path(os.path.commonpath([row.path.parent for row in rows])) if rows else Path()
    owners = {_stem(Path(name).relative_to(FOLDER)): key for name, key in taken.items()}
    names = {}
    for row in rows:
        name = _stem(row.path.relative_to(above))
        if owners.setdefault(name, row.key) != row.key:
            name = f"{name}-{hashlib.sha256(row.key.encode()).hexdigest()[:8]}"
            owners[name] = row.key
        names[row.key] = name
    return names


def _stem(path: Path) -> str:
    """A path without the endings of images, volumes, rasters and clouds; dots in a series' number stay."""
    text = path.as_posix()
    for ending in (".nii.gz", ".nii", ".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".jp2", ".npy",
                   ".las", ".laz", ".ply", ".pcd", ".xyz", ".txt"):
        if text.lower().endswith(ending):
            return text[:-len(ending)]
    return text


def publish(results: Sequence[dict[str, Any]], out: Path) -> None:
    """The table of all masks in a folder: a line per file and class, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "mask", "class", "number", "pixels", "share", "size", "unit", "not_looked_at"])
    for result in results:
        counted = sum(entry["pixels"] for entry in result.get("classes", []))
        for entry in result.get("classes", []):
            writer.writerow([result["path"], result["mask"], entry["class"], entry["number"], entry["pixels"],
                             f"{entry['pixels'] / max(counted, 1):.6g}", "" if entry["size"] is None else entry["size"],
                             entry["unit"], result["not_looked_at"]])
    write_text(out / TABLE, text.getvalue())
