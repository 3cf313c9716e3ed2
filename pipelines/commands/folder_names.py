"""What the names in a folder say: kind of files, splits, classes, groups, masks, scenes of one file per band.

No file is opened, but for the first bytes of those without an ending, which tell a DICOM file.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from domains.manifest import ManifestError
from domains.satellite import bands as band_names

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
LARGEST_GROUP = 0.2
"""Share of all files; a common beginning that more files have is a camera's or a project's, not a patient's."""
MASK_WORD = re.compile(r"[_-]?(masks?|segmentations?)(?=[/._-]|$)", re.IGNORECASE)
"""What marks a mask in the name of a file or folder."""
MIN_SLICES = 12
"""DICOM files in one folder that make a series likely: few patients have a dozen films."""
MOST_IN_SCENES = 0.9
"""Share of files that are bands of scenes, from which folders are scenes: products hold masks and previews as well."""
RESOLUTION_FOLDER = re.compile(r"/R\d+m$")
MOST_ENDINGS = 4
"""Endings that a sentence names."""
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
    bands: tuple[str, ...] = ()
    """Of scenes that are folders with one file per band: the bands that most have, as their files spell them."""


def look(folder: Path) -> Layout:
    """Kind, splits, classes and groups, from names."""
    files = _files(folder)
    mask_of, masks = _masks(files)
    kind, said, units, bands = _kind([path for path in files if path not in masks], folder)
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
    return Layout(kind, units, split_of, labels, groups, paired, said, bands)


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


def _kinds_of(files: Sequence[str], folder: Path) -> dict[str, str]:
    """Kind by path, of those that have one."""
    kinds = {}
    for path in files:
        name = path.rsplit("/", 1)[-1].lower()
        kind = next((kind for kind, endings in ENDINGS.items() if name.endswith(endings)), "")
        # Hospitals export films as IM00001 or 1.2.840.113: a number behind the last point is no ending.
        bare = not kind and (name.rpartition(".")[2].isdigit() or "." not in name)
        if kind or (bare and _is_dicom(folder / path)):
            kinds[path] = kind or "xray"
    return kinds


def _is_dicom(path: Path) -> bool:
    """Whether a plain file has DICOM's mark behind its first 128 bytes. Links and devices are not opened."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # ingest says of each file that a row names why it cannot be read
        return False


def _kind(files: Sequence[str], folder: Path) -> tuple[str, list[str], list[str], tuple[str, ...]]:
    """The commonest kind, what to say of it, its units (files, or folders of DICOM series or bands), and the bands."""
    kinds = _kinds_of(files, folder)
    if not kinds:
        known = ", ".join(ending for endings in ENDINGS.values() for ending in endings)
        raise ManifestError(f"init: found nothing to read among {len(files)} files in {folder}. Expected names that "
                            f"end in {known}, or DICOM files without an ending.")
    kind = Counter(kinds.values()).most_common(1)[0][0]
    taken = [path for path in files if kinds.get(path) == kind]
    units = taken
    series = _series(taken) if kind == "xray" else []
    scenes, bands = _scenes(taken) if kind == "multispectral" else ([], tuple[str, ...]())
    if series:
        kind, units = "ct", series
        said = [f"Kind: ct, because DICOM files lie in {len(series)} folders with {MIN_SLICES} or more each: taken for "
                "one volume per folder. CHECK: films need read.kind: xray and a manifest that lists the files."]
    elif scenes:
        units = scenes
        said = [f"Kind: multispectral, {len(scenes)} folders with one file per band ({', '.join(bands)}): taken for "
                "one scene per folder."]
    else:
        said = [f"Kind: {kind}, from {len(units)} files ({_by_ending(taken)})."]
    left = sorted(set(files) - set(taken))
    return kind, [*said, *([f"Left out: {_by_ending(left)}."] if left else [])], units, bands


def _by_ending(paths: Sequence[str]) -> str:
    """"146 .dcm, 73 without an ending"; the commonest first."""
    endings: Counter[str] = Counter()
    for path in paths:
        ending = ".nii.gz" if path.endswith(".nii.gz") else Path(path).suffix.lower()
        endings[ending if ending and not ending[1:].isdigit() else "without an ending"] += 1
    named = [f"{count} {ending}" for ending, count in endings.most_common(MOST_ENDINGS)]
    return ", ".join(named) + (", ..." if len(endings) > MOST_ENDINGS else "")


def _scenes(paths: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Folders with one file per band, in themselves or in folders by resolution (R10m), and the bands of most of them;
    none unless nearly all files lie so."""
    found: dict[str, dict[str, str]] = {}
    for path in paths:
        parent, _, name = path.rpartition("/")
        stem = band_names.RESOLUTION_ENDING.sub("", name.rsplit(".", 1)[0])
        word = re.split(r"[_\-. ]", stem)[-1]
        band = band_names.of_file(stem, "sentinel2") or band_names.of_file(stem, "landsat8")
        if parent and band and band_names.CODE.fullmatch(word):
            found.setdefault(RESOLUTION_FOLDER.sub("", parent), {})[word] = path
    several = {scene: of_scene for scene, of_scene in found.items() if len(of_scene) > 1}
    if not several or sum(map(len, several.values())) < MOST_IN_SCENES * len(paths):
        return [], ()
    counts = Counter(word for of_scene in several.values() for word in of_scene)
    bands = [word for word, count in counts.items() if 2 * count > len(several)]
    return sorted(several), tuple(sorted(bands, key=_in_order))


def _in_order(band: str) -> tuple[int, str]:
    match = band_names.CODE.fullmatch(band)
    return (int(match[1]), match[2]) if match else (0, band)


def _series(paths: Sequence[str]) -> list[str]:
    """Folders that each hold one DICOM series; none unless all DICOM files lie so, in more than one folder."""
    if not all(not path.lower().endswith((".png", ".jpg", ".jpeg")) and "/" in path for path in paths):
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
