"""`lacuna init`: look at a folder of files, write a manifest and the params.yaml paragraph to start from.

Names are looked at, and where there are masks, a few of them: these are parsed in limited processes, as every file of
strangers. What was guessed is said, above all the rule for groups, because a wrong one lets a model be tested on
patients that it was trained on.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from domains.manifest import ManifestError
from domains.publish import write_text
from pipelines.commands.mask_classes import numbers_in_masks, task_of

ENDINGS = {
    "xray": (".png", ".jpg", ".jpeg", ".dcm", ".dicom"),
    "ct": (".nii.gz", ".nii"),
    "multispectral": (".tif", ".tiff", ".jp2"),
    "points": (".ply", ".off", ".obj", ".stl", ".pcd", ".las", ".laz", ".xyz"),
}
"""What each kind's files are called. A DICOM file may be a film or a slice; `_series` decides."""
DOMAINS = {"xray": "medical", "ct": "medical", "multispectral": "satellite", "points": "pointcloud"}
SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                 "test": "test", "testing": "test", "unlabelled": "unlabelled", "unlabeled": "unlabelled"}
READ = {
    "xray": ["read: {kind: xray, size: [224, 224]}"],
    "ct": ["read: {kind: ct, size: [64, 64, 64]}  # CHECK: spacing and the value range suit what is to be seen"],
    "multispectral": [
        "read:",
        "  kind: multispectral",
        "  sensor: sentinel2  # CHECK: sentinel2, landsat8, landsat7 or other",
        "  bands: [B2, B3, B4, B8]  # CHECK: what a model gets",
        "  file_bands: [B2, B3, B4, B8]  # CHECK: the bands of your files, in file order; \"-\" passes one over",
        "  size: [64, 64]",
        "  scale: 0.0001  # CHECK: reflectance = value x scale + offset"],
    "points": ["read: {kind: points, size: [1024]}  # CHECK: scale: metres where size tells classes apart"],
}
"""The reader's paragraph. Only what must be looked at; `lacuna ingest` names any other key that it takes."""
YAML_WORDS = ("yes", "no", "on", "off", "true", "false", "null", "y", "n", ".inf", ".nan")
"""Texts that YAML takes for something else."""
LARGEST_GROUP = 0.2
"""Share of all files; a common beginning that more files have is a camera's or a project's, not a patient's."""
MASK_WORD = re.compile(r"[_-]?(masks?|segmentations?)(?=[/._-]|$)", re.IGNORECASE)
"""What marks a mask in the name of a file or folder."""
MIN_SLICES = 12
"""DICOM files in one folder that make a series likely: few patients have a dozen films."""
MAX_CLASSES = 50
"""More folders than this side by side are patients or scenes, not classes."""


@dataclass(frozen=True)
class Layout:
    """What the names in a folder say."""

    kind: str
    """xray, ct, multispectral or points."""
    paths: list[str]
    """Relative to the folder, sorted."""
    splits: list[str]
    """Per path; empty where no folder says."""
    labels: list[str]
    """Per path the class folder; empty where there are none."""
    groups: list[str]
    """Per path."""
    masks: list[str]
    """Per path that of its mask; empty where there is none."""
    said: list[str]
    """Sentences on what was guessed."""


def init(folder: Path, out: Path) -> str:
    """Write manifest.csv, and params.yaml unless there is one, into `out`. Returns what was found and guessed, and the
    paragraph.

    Raises:
        ManifestError: nothing that can be read, or a manifest.csv that would be overwritten.
    """
    if not folder.is_dir():
        raise ManifestError(f"init: found no folder at {folder}. Expected one with images, volumes or point clouds.")
    manifest = out / "manifest.csv"
    if manifest.exists():
        raise ManifestError(f"init: found {manifest} already, expected to write it. Remedy: move it away, or choose "
                            "another --out.")
    layout = look(folder)
    write_text(manifest, table_of(layout))
    task, said = task_of_masks(folder, layout) if any(layout.masks) else ({}, "")
    paragraph = _paragraph(folder, out, layout, task)
    params = out / "params.yaml"
    where = f"The paragraph was not written, because {params} exists; put this into it:"
    if not params.exists():
        write_text(params, paragraph)
        where = f"Written to {params}:"
    steps = f"\nThen: lacuna ingest {_name(folder)} && lacuna describe {_name(folder)}"
    found = [*layout.said, *([said] if said else []), f"Manifest with {len(layout.paths)} rows: {manifest}"]
    return "\n".join([*found, where, "", paragraph + steps])


def look(folder: Path) -> Layout:
    """Kind, splits, classes and groups from names alone."""
    files = _files(folder)
    mask_of, masks = _masks(files)
    kind, said, units = _kind([path for path in files if path not in masks], folder)
    paired = [mask_of.get(path, "") for path in units]
    if masks:
        said.append(f"Masks: {len(masks)} files whose name or folder says mask or segmentation; "
                    f"{sum(map(bool, paired))} belong to a file of the same name. CHECK: values are classes from 0.")
    parts = [path.split("/") for path in units]
    split_of = [SPLIT_FOLDERS.get(names[0].lower(), "") if len(names) > 1 else "" for names in parts]
    named = sorted({names[0] for names, split in zip(parts, split_of, strict=True) if split})
    said.append(f"Splits: from the folders {', '.join(named)}." if named else
                "Splits: none found; ingest divides the groups into train, val and test.")
    inner = [names[1:] if split else names for names, split in zip(parts, split_of, strict=True)]
    labels, sentence = _labels(inner)
    said.append(sentence)
    groups, sentence = _groups(units, inner, labels)
    said.append(sentence)
    return Layout(kind, units, split_of, labels, groups, paired, said)


def _files(folder: Path) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(parent).relative_to(folder)
        found += [(inside / name).as_posix() for name in sorted(names) if not name.startswith(".")]
    return found


def _masks(files: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """Masks by the file that they belong to, and all of them: image/a.png with mask/a.png, or a.tif with a_mask.png."""
    masks = {path for path in files if MASK_WORD.search(path)}
    by_name: dict[str, list[str]] = {}
    for path in masks:
        by_name.setdefault(_bare(path), []).append(path)
    pairs = {path: by_name[_bare(path)] for path in files if path not in masks and _bare(path) in by_name}
    return {path: found[0] for path, found in pairs.items() if len(found) == 1}, masks


def _bare(path: str) -> str:
    """A file's name without its ending and without what marks it as a mask."""
    return MASK_WORD.sub("", re.sub(r"(\.nii\.gz|\.[^.]*)$", "", path.rsplit("/", 1)[-1].lower()))


def _kind_of(path: str) -> str:
    return next((kind for kind, endings in ENDINGS.items() if path.lower().endswith(endings)), "")


def _kind(files: Sequence[str], folder: Path) -> tuple[str, list[str], list[str]]:
    """The commonest kind, what to say of it, and its units: files, or folders of DICOM series."""
    counts = Counter(kind for path in files if (kind := _kind_of(path)))
    if not counts:
        known = ", ".join(ending for endings in ENDINGS.values() for ending in endings)
        raise ManifestError(f"init: found nothing to read among {len(files)} files in {folder}. Expected names that "
                            f"end in {known}.")
    kind = counts.most_common(1)[0][0]
    units = [path for path in files if _kind_of(path) == kind]
    said = [f"Left out: {len(files) - len(units)} other files."] if len(units) < len(files) else []
    series = _series(units) if kind == "xray" else []
    if series:
        kind, units = "ct", series
        said.append(f"Kind: ct, because DICOM files lie in {len(series)} folders with {MIN_SLICES} or more each: taken "
                    "for one volume per folder. CHECK: films need read.kind: xray and a manifest that lists the files.")
    else:
        endings = sorted({ending for ending in ENDINGS[kind] for path in units if path.lower().endswith(ending)})
        said.append(f"Kind: {kind}, from {len(units)} files that end in {', '.join(endings)}.")
    return kind, said, units


def _series(paths: Sequence[str]) -> list[str]:
    """Folders that each hold one DICOM series; none unless all DICOM files lie so, in more than one folder."""
    if not all(path.lower().endswith((".dcm", ".dicom")) and "/" in path for path in paths):
        return []
    per_folder = Counter(path.rsplit("/", 1)[0] for path in paths)
    # Two or three large folders side by side are classes of films rather than that many patients.
    many = len(per_folder) > 3 or all(name.count("/") >= 2 for name in per_folder)
    return sorted(per_folder) if many and min(per_folder.values()) >= MIN_SLICES else []


def _labels(inner: Sequence[Sequence[str]]) -> tuple[list[str], str]:
    """One folder per class: a few folders side by side that hold everything, with several files each."""
    tops = Counter(parts[0] for parts in inner if len(parts) > 1)
    if len(tops) >= 2 and sum(tops.values()) == len(inner) and len(tops) <= min(MAX_CLASSES, len(inner) // 2):
        shown = ", ".join(f"{name} ({count})" for name, count in sorted(tops.items())[:8])
        more = ", ..." if len(tops) > 8 else ""
        return [parts[0] for parts in inner], (f"Labels: one class per folder: {shown}{more}. CHECK: these are "
                                               "classes, not sites or patients.")
    return [""] * len(inner), ("Labels: none found; fill the column `label` of manifest.csv (empty means unknown), or "
                               "leave it for self-supervision only.")


def _groups(paths: Sequence[str], inner: Sequence[Sequence[str]], labels: Sequence[str]) -> tuple[list[str], str]:
    """The first of three rules that makes fewer groups than files: inner folder, beginning of the name, file."""
    depth = 1 if any(labels) else 0
    if all(len(parts) > depth + 1 for parts in inner):
        groups = [parts[depth] for parts in inner]
        if 2 < len(set(groups)):
            return groups, (f"Groups: the folder {'below the class ' if depth else ''}that a file lies in "
                            f"({len(set(groups))} groups). CHECK: one patient, scene or object never has two folders.")
    stems = [re.match(r"(.*?\d[^_\-.\s]*)[_\-]", parts[-1]) for parts in inner]
    begins = [match[1] if match else "" for match in stems]
    sizes = Counter(begins)
    if all(begins) and len(sizes) < len(begins) and max(sizes.values()) <= LARGEST_GROUP * len(begins):
        return begins, (f"Groups: a file's name up to its first number ({len(sizes)} groups). CHECK: this is the "
                        "patient, scene or object.")
    return list(paths), (f"Groups: EVERY FILE IS ITS OWN GROUP ({len(paths)}), since no folder and no common beginning "
                         "of names says more. CHECK: if a patient, scene or object has several files, write who into "
                         "the column `group`, or test scores will be too good.")


def table_of(layout: Layout) -> str:
    """manifest.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "mask_path", "group", "split", "source", "label"])
    for path, mask, group, split, label in zip(layout.paths, layout.masks, layout.groups, layout.splits, layout.labels,
                                               strict=True):
        writer.writerow([path, mask, group, split, "", label])
    return text.getvalue()


def _name(folder: Path) -> str:
    return re.sub(r"\W+", "_", folder.resolve().name.lower()).strip("_") or "data"


def task_of_masks(folder: Path, layout: Layout) -> tuple[dict[str, Any], str]:
    """A segmentation task with the classes that some masks hold, and what to say of it."""
    pairs = [(path, mask) for path, mask in zip(layout.paths, layout.masks, strict=True) if mask]
    read = yaml.safe_load("\n".join(READ[layout.kind]))["read"]
    try:
        return task_of(*numbers_in_masks(folder, pairs, DOMAINS[layout.kind], read))
    except ImportError as error:  # what reads such files is not installed here
        task, said = task_of([], 0)
        return task, f"{said} ({error})"


def _paragraph(folder: Path, out: Path, layout: Layout, masks: dict[str, Any]) -> str:
    """YAML, with a comment wherever somebody must look."""
    place = os.path.relpath(folder.resolve(), out.resolve())
    lines = ["ingest:", f"  {_name(folder)}:", f"    domain: {DOMAINS[layout.kind]}", "    files:",
             f"      folder: {_quoted(str(folder.resolve()) if place.startswith('..') else place)}",
             "      manifest: manifest.csv  # CHECK: the column group; see above"]
    lines += ["      mask_column: mask_path"] if any(layout.masks) else []
    lines += [f"    {line}" for line in READ[layout.kind]]
    lines += ["    tasks:"] if masks or any(layout.labels) else []
    if masks:
        classes, values = (", ".join(map(str, masks[key])) for key in ("classes", "values"))
        lines.append(f"      mask: {{kind: segmentation, classes: [{classes}], values: [{values}]}}  # CHECK: names")
    if any(layout.labels):
        classes = ", ".join(_quoted(name) for name in sorted(set(layout.labels)) if name)
        lines.append("      label: {kind: single_label, columns: [label], classes: [" + classes + "]}")
    if not any(layout.splits):
        lines.append("    splits: {seed: 0, val: 0.2, test: 0.2}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Text as a YAML scalar: plain where that is a text for certain, else double-quoted, which takes JSON's escapes."""
    plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", text) and text.lower() not in YAML_WORDS
    return text if plain else json.dumps(text)
