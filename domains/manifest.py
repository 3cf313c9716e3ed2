"""From a CSV manifest, or one folder per class, to rows. What is left out is counted and said, never silent.

A manifest is written by somebody else: no path in it may leave the data folder, and none may be an address that a
library would open over the network or inside an archive.
"""

from __future__ import annotations

import csv
import os
import re
import stat
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from domains.folder_note import noted
from domains.labels import canonical
from domains.rows import Rows, column_of
from domains.sample import ManifestRow

SPLITS = ("train", "val", "test", "unlabelled")
"""What a manifest's split column may say, besides nothing."""

ENDINGS = ("(none)", ".bmp", ".csv", ".db", ".dcm", ".dicom", ".gz", ".htm", ".html", ".ima", ".ini", ".jpeg", ".jpg",
           ".json", ".mha", ".mhd", ".nii", ".npy", ".nrrd", ".pdf", ".png", ".tif", ".tiff", ".txt", ".xlsx", ".xml",
           ".zip")
"""Endings that a message may show of files that could be named after a patient."""

_ADDRESS = re.compile(r"^[a-z][a-z0-9+.-]*:[\\/]{2}|^[a-z]:\\|/vsi|\0", re.IGNORECASE)
"""A URL, a drive of Windows, GDAL's virtual file systems (`/vsicurl/`, `/vsizip/`: also within a path), a NUL."""


class ManifestError(ValueError):
    """The manifest cannot be used as the run describes it."""


@dataclass(frozen=True)
class Files:
    """Where the files are and what the manifest's columns are called."""

    folder: str
    """The data folder; paths in the manifest are relative to it. Relative to the project's root itself. A file that
    `lacuna note` has written stands for the folder that it names."""
    manifest: str = ""
    """The CSV file. Empty: one folder per class below `folder`, optionally below train/, val/ and test/; the class is
    then in the column `label`."""
    sources: tuple[str, ...] = ()
    """Take only rows of these sources. Empty: all."""
    path_column: str = "path"
    """Column that holds a file's path, or that of the folder of a DICOM series or a band-per-file scene."""
    group_column: str = "group"
    """Column that holds what a split may never cut: patient, scene or block, object."""
    split_column: str = "split"
    """Column that holds train, val, test or unlabelled; empty cells and a missing column leave the choice to us."""
    source_column: str = "source"
    """Column that holds the hospital, sensor or campaign. May be missing."""
    mask_column: str = ""
    """Column that holds a mask's path. Empty: no masks are read."""
    where: dict[str, str] = field(default_factory=dict)
    """Keep rows whose column has this value ({kind: ct}). Numbers match as numbers: 1 and 1.0 are alike."""
    group_by: Literal["column", "file", "folder", "pattern"] = "column"
    """column: as the manifest says. file: every file is its own group (right only if no patient, scene or object has
    two). folder: files of one folder are one group. pattern: what `group_pattern` finds in the path."""
    group_pattern: str = ""
    """For group_by: pattern. A regular expression whose first bracket is the group: 'patient(\\d+)'."""
    follow_links: bool = False
    """Allow symbolic links that lead out of `folder`. Otherwise one that a row names ends the run before anything is
    read, and one inside a series or a scene puts that row into quarantine."""
    pseudonymise: bool | None = None
    """Keep keyed hashes in place of paths and groups, in everything that is made of the files. null: medical files yes,
    others no, whose names are those of tiles and objects. The key: domains/pseudonyms.py."""

    def __post_init__(self) -> None:
        if (self.group_by == "pattern") != bool(self.group_pattern):
            raise ValueError(f"group_by: found {self.group_by} with group_pattern {self.group_pattern!r}; a pattern is "
                             "needed for, and only for, group_by: pattern.")
        if self.group_pattern:
            try:
                brackets = re.compile(self.group_pattern).groups
            except re.error as error:
                raise ValueError(f"group_pattern {self.group_pattern!r} is no regular expression: {error}.") from error
            if brackets < 1:
                raise ValueError(f"group_pattern {self.group_pattern!r} has no bracket; put ( ) around the group.")


@dataclass(frozen=True)
class Manifest:
    """The rows to ingest, in the manifest's order, and how many others there were."""

    rows: Sequence[ManifestRow]
    """Rows to read. `split` is empty where the manifest leaves it open."""
    filtered: dict[str, dict[str, int]]
    """Why rows were left out: {"source": {"kermany": 2624}, "where kind": {"mr": 3}, "suffix": {".laz": 1}}."""

    def refuse_strange_sources(self, named: Mapping[str, Iterable[str]]) -> None:
        """Settings that name a source which no row has would change nothing, without a word.

        Args:
            named: sources that settings name, by the settings' own names.

        Raises:
            ManifestError: one of them occurs neither among the rows nor among those left out.
        """
        there = {*column_of(self.rows, "source"), *self.filtered.get("source", {})}
        for setting, sources in named.items():
            if absent := sorted(set(sources) - there):
                raise ManifestError(f"{setting}: found {', '.join(absent)}, which is the source of no row; expected "
                                    f"names among {', '.join(sorted(there - {''})) or '(none)'}. Remedy: correct it, "
                                    "or the manifest's source column.")

    def said(self) -> list[str]:
        """Sentences for whoever ingests."""
        names = set(column_of(self.rows, "group"))
        alike = sum(count for count in Counter(map(_bare, names)).values() if count > 1)
        if not alike:
            return []
        return [f"{alike} of {len(names)} groups differ from another in nothing but capitals, blanks or leading zeros, "
                "or in how an accent is coded; each counts as its own, so that one patient (scene, object) with two "
                "such names may lie on both sides of a split. Remedy: write them alike"]


def _bare(name: str) -> str:
    """What is left of a name without what hands and programs add: "P 007" and "p7", "12.0" and "12"."""
    bare = re.sub(r"\s+", "", unicodedata.normalize("NFKC", name)).casefold()
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"^(\d+)\.0+$", r"\1", bare))


def read_manifest(files: Files, suffixes: tuple[str, ...], root: Path) -> Manifest:
    """The rows that a run takes.

    Args:
        suffixes: file endings that the reader takes, lower case (".nii.gz"). "" also admits names without an ending
            and folders; "/" admits folders only.

    Raises:
        FolderChanged: see `noted`.
        ManifestError: nothing usable, a missing column, a path that leaves the folder, a path named twice.
    """
    folder = noted((root / files.folder).resolve())
    if not folder.is_dir():
        raise ManifestError(f"files.folder: found no folder at {files.folder}. Expected the data folder; "
                            "set it relative to the project's root.")
    lines = _csv_lines(files, root) if files.manifest else _folder_lines(folder)
    places = _Places(folder, files.follow_links)
    filtered: dict[str, Counter[str]] = {}
    rows, at, num_lines, sources = Rows(places.folder, places.within), array("q"), 0, set()
    for line in lines:
        num_lines += 1
        places.line = num_lines
        sources.add(line.get(files.source_column, ""))
        reason = _left_out(line, files) or _wrong_suffix(line[files.path_column], suffixes, places)
        if reason:
            filtered.setdefault(reason[0], Counter())[_countable(*reason) if files.pseudonymise else reason[1]] += 1
        else:
            rows.append(_row(line, files, places))
            at.append(num_lines)
    places.refuse_if_any_left()
    counts = {what: dict(sorted(counter.items())) for what, counter in sorted(filtered.items())}
    _refuse_unusable(rows, at, counts, num_lines, sources, files)
    return Manifest(rows, counts)


def _csv_lines(files: Files, root: Path) -> Iterator[dict[str, str]]:
    path = root / files.manifest
    if not path.is_file():
        raise ManifestError(f"files.manifest: found no file at {files.manifest}. Expected a CSV with the columns "
                            f"{files.path_column}, {files.group_column}; `lacuna init` writes one.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            found = list(reader.fieldnames or [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise _unreadable(files, 1, error) from error
        _refuse_header(found, files)
        needed = [files.path_column, *files.where, *([files.mask_column] if files.mask_column else [])]
        needed += [files.group_column] if files.group_by == "column" else []
        needed += [files.source_column] if files.sources else []
        missing = [name for name in needed if name not in found]
        if missing:
            remedy = ("name it under files.group_column, or say how groups are found with files.group_by"
                      if missing == [files.group_column] else "set the column names under files")
            # Where the header is missing, the first patient stands in its place.
            shown = f"{len(found)} columns" if files.pseudonymise else f"columns {', '.join(found)}"
            raise ManifestError(f"{files.manifest}: found {shown}, expected also "
                                f"{', '.join(missing)}. Remedy: {remedy}.")
        try:
            for line in reader:
                if None in line or None in line.values():
                    raise ManifestError(f"{files.manifest} line {reader.line_num}: found another number of cells than "
                                        f"the header has ({len(found)}). Quote cells that hold commas.")
                yield {name: (text or "").strip() for name, text in line.items()}
        except (csv.Error, UnicodeDecodeError) as error:
            raise _unreadable(files, reader.line_num, error) from error


def _unreadable(files: Files, line: int, error: Exception) -> ManifestError:
    what = "bytes that are no UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
    return ManifestError(f"{files.manifest} near line {line}: {what}. Expected a CSV in UTF-8. Remedy: save it as "
                         "\"CSV UTF-8\".")


def _refuse_header(found: Sequence[str], files: Files) -> None:
    """What programs for tables do to a header, and what would go unseen: of two columns with one name the last counts.
    """
    if len(found) == 1 and (sign := next((sign for sign in ";\t" if sign in found[0]), "")):
        raise ManifestError(f"{files.manifest}: found a header parted by {'semicolons' if sign == ';' else 'tabs'}, "
                            "expected commas. Remedy: save it with commas, and with points in numbers.")
    blank = [number for number, name in enumerate(found, start=1) if name != name.strip()]
    if blank:
        raise ManifestError(f"{files.manifest}: found blanks around the names of columns "
                            f"{', '.join(map(str, blank[:5]))}, expected none. Remedy: remove them from the header.")
    twice = [number for number, name in enumerate(found, start=1) if name and name in found[:number - 1]]
    if twice:
        raise ManifestError(f"{files.manifest}: found columns with the name of an earlier one (numbers "
                            f"{', '.join(map(str, twice[:5]))}), expected every name once. Remedy: rename or remove "
                            "them.")


def _folder_lines(folder: Path) -> Iterator[dict[str, str]]:
    """folder/[split/]class/.../file, sorted, so that the order does not depend on the disk."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        inside = Path(parent).relative_to(folder).parts
        for name in sorted(names):
            if not name.startswith("."):
                yield folder_line((*inside, name))


def folder_line(parts: tuple[str, ...]) -> dict[str, str]:
    """The row of a file that no manifest names, from the parts of its path: [split/]class/.../file."""
    split = parts[0] if len(parts) > 1 and parts[0] in SPLITS else ""
    label = parts[1:-1] if split else parts[:-1]
    return {"path": "/".join(parts), "split": split, "label": label[0] if label else ""}


def _left_out(line: Mapping[str, str], files: Files) -> tuple[str, str] | None:
    """(why, which) when the run does not want this row."""
    source = line.get(files.source_column, "")
    if files.sources and source not in files.sources:
        return "source", source
    for column, wanted in files.where.items():
        if canonical(line.get(column, "")) != canonical(wanted):
            return f"where {column}", line.get(column, "")
    return None


def _countable(why: str, which: str) -> str:
    """What may be said of rows left out where names must not show: the source, which the run names, and an ending that
    is one of many files'; 'Smith.John' has an ending as well."""
    return which if why == "source" or which in ENDINGS else "(other)"


def _wrong_suffix(text: str, suffixes: tuple[str, ...], places: _Places) -> tuple[str, str] | None:
    name = text.rstrip("/").rsplit("/", 1)[-1].lower()
    if any(ending not in ("", "/") and name.endswith(ending) for ending in suffixes):
        return None
    ending = re.search(r"\.[^.]*$", name)
    # DICOM exports are often named by number alone (1.2.840.113...), which is no ending.
    if "" in suffixes and (ending is None or ending[0][1:].isdigit()):
        return None
    if ("" in suffixes or "/" in suffixes) and places.is_folder(text):
        return None
    return "suffix", ending[0] if ending else "(none)"


def _row(line: Mapping[str, str], files: Files, places: _Places) -> ManifestRow:
    text = line[files.path_column]
    mask = line.get(files.mask_column, "") if files.mask_column else ""
    own = {files.path_column, files.group_column, files.split_column, files.source_column}
    return ManifestRow(
        path=places.find(text), key=places.key(text), group=_group(line, files), split=line.get(files.split_column, ""),
        source=line.get(files.source_column, ""), mask_path=places.find(mask) if mask else None,
        columns={name: cell for name, cell in line.items() if name not in own},
        within=places.within)


def _group(line: Mapping[str, str], files: Files) -> str:
    path = line[files.path_column]
    if files.group_by == "column":
        return line.get(files.group_column, "")
    if files.group_by == "file":
        return path
    if files.group_by == "folder":
        return path.rsplit("/", 1)[0] if "/" in path else "."
    found = re.search(files.group_pattern, path)
    return found[1] or "" if found else ""


class _Places:
    """Turns a manifest's paths into absolute ones and remembers those that would leave the data folder."""

    def __init__(self, folder: Path, follow_links: bool) -> None:
        self.folder, self.follow_links = str(folder), follow_links
        self.within = None if follow_links else folder
        self.strays: list[int] = []
        self.backwards = 0
        self.line = 0
        self._parents: dict[str, str] = {}

    def find(self, text: str) -> Path:
        """The absolute path; a stray one is remembered."""
        joined = os.path.normpath(os.path.join(self.folder, text))
        self.backwards += "\\" in text and not os.path.lexists(joined)
        if _ADDRESS.search(text) or not text or not self._inside(joined):
            self.strays.append(self.line)
        elif not self.follow_links and not self._inside(self._real(joined)):
            self.strays.append(self.line)
        return Path(joined)

    def key(self, text: str) -> str:
        """What the row is called: the path relative to the folder, with forward slashes."""
        return os.path.relpath(os.path.normpath(os.path.join(self.folder, text)), self.folder).replace(os.sep, "/")

    def is_folder(self, text: str) -> bool:
        """Asks the disk only about paths that may be asked about."""
        joined = os.path.normpath(os.path.join(self.folder, text))
        return not _ADDRESS.search(text) and self._inside(joined) and os.path.isdir(joined)

    def refuse_if_any_left(self) -> None:
        """Raise for the strays found so far, all at once."""
        if self.strays:
            raise ManifestError(
                f"paths: found {len(self.strays)} that are empty, lead out of files.folder, or are network or archive "
                f"addresses (first: rows {', '.join(map(str, dict.fromkeys(self.strays[:3])))}). Expected paths inside "
                "files.folder. Remedy: set files.folder to a folder that holds all files; for symbolic links that you "
                "trust set files.follow_links: true.")
        if self.backwards:
            raise ManifestError(f"paths: found {self.backwards} with backslashes that name no file, expected forward "
                                "slashes. Remedy: replace them.")

    def _inside(self, path: str) -> bool:
        return path == self.folder or path.startswith(self.folder.rstrip("/") + "/")

    def _real(self, path: str) -> str:
        # Resolving every component of every path costs ten system calls a row; files share parents.
        parent, name = os.path.split(path)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        joined = os.path.join(self._parents[parent], name)
        try:
            link = stat.S_ISLNK(os.lstat(joined).st_mode)
        except OSError:  # a missing file is quarantined later, with its reason
            return joined
        return os.path.realpath(joined) if link else joined


def _refuse_unusable(rows: Sequence[ManifestRow], at: Sequence[int], filtered: dict[str, dict[str, int]],
                     num_lines: int, sources: set[str], files: Files) -> None:
    """Messages name rows by number (the first below the header is 1) and not by path, which may name a patient."""
    if not rows:
        raise ManifestError(f"found no row to ingest among {num_lines}; left out: {filtered or 'nothing'}; sources: "
                            f"{', '.join(sorted(sources)) or '(none)'}. Remedy: check files.sources, files.where and "
                            "the reader's kind.")
    absent = [name for name in files.sources if name not in sources]
    if absent:
        raise ManifestError(f"files.sources: found no row of {', '.join(absent)}. Expected names among "
                            f"{', '.join(sorted(sources))}.")
    twice = [key for key, count in Counter(column_of(rows, "key")).items() if count > 1]
    if twice:
        first = [number for number, key in zip(at, column_of(rows, "key"), strict=True) if key == twice[0]]
        raise ManifestError(f"paths: found {len(twice)} named more than once (first: rows "
                            f"{', '.join(map(str, first[:3]))}). "
                            "Expected one row per file. Remedy: join the rows, or narrow them with files.where.")
    without = sum(not group for group in column_of(rows, "group"))
    if without:
        raise ManifestError(f"groups: found {without} of {len(rows)} rows without one. Expected the patient, scene or "
                            "object that a split must not cut. Remedy: fill the column, or set files.group_by to file, "
                            "folder or pattern if that is what a group is here.")
    strange = Counter(split for split in column_of(rows, "split") if split and split not in SPLITS)
    if strange:
        shown = f"{len(strange)} other values" if files.pseudonymise else ", ".join(sorted(strange)[:5])
        raise ManifestError(f"splits: found {shown} in {sum(strange.values())} rows. Expected "
                            f"{', '.join(SPLITS)} or nothing. Remedy: rename them, or set files.split_column: ''.")
