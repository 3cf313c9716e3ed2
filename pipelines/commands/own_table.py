"""A table that somebody has already, with headings of their own, made into a manifest: which column names the files is
found by comparing with the folder, which one names patients, scenes or objects by its heading.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from domains.labels import spelt_alike
from domains.manifest import ManifestError
from pipelines.commands.folder_names import Layout

MANIFESTS = "data/manifests"
"""Where manifests and settings of runs lie that no params.yaml has."""
OURS = ("path", "mask_path", "group", "split", "source")
"""Columns that a manifest has for itself."""
NUMBERED = r"(id|no|nr|num|number|code|key)"
GROUP_WORDS = re.compile(rf"(patient|subject|participant|scene|tile|recording|sequence|session|flight|group|block)"
                         rf"{NUMBERED}?|pid|mrn|(person|case|plot|field|object|instance){NUMBERED}")
"""Headings, as small letters alone, of what a split may never cut. A column `object` may well be a class."""
MOST_CLASSES = 12
"""Different values of a column that may be labels, when it is not said that it is."""
LABEL_WORDS = re.compile(r"(class|category|diagnosis|species|type)(name|id)?|label(name|id)?")
"""Headings, as small letters alone, of a column that may have more classes than that, up to a third of the rows."""
FEWEST_NUMBERS = 50
"""A column of numbers with more different values than this is a quantity, not a class."""
FEWEST_GROUPS = 5
"""With fewer than this, 60, 20 and 20 % of the groups are not one each."""
ENOUGH = 0.5
"""Share of rows that must name a file of the folder before their column is taken for that of the files."""


@dataclass(frozen=True)
class OwnTable:
    """A table as it is."""

    path: Path
    header: list[str]
    """Headings, without spaces around them."""
    lines: list[dict[str, str]]
    plain: bool
    """Whether it is written as a manifest is: UTF-8, commas, no spaces around headings."""
    said: tuple[str, ...] = ()
    """Sentences on what was guessed of the way it is written."""

    @property
    def is_manifest(self) -> bool:
        """Whether ingest reads it as it is."""
        return {"path", "group"} <= set(self.header) and self.plain


def read_table(path: Path) -> OwnTable:
    """The table in a text file whose cells are separated by commas, semicolons or tabs: UTF-8, marked as UTF-16, or as
    Excel writes "CSV" in western Europe and America, in Windows-1252 and maybe with commas in numbers.

    Raises:
        ManifestError: no such file, not such a table.
    """
    if not path.is_file():
        raise ManifestError(f"--labels: found no file at {path}, expected a table of files and labels (CSV).")
    try:
        written = path.read_bytes()
        wide = written.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text, said = (written.decode("utf-16"), []) if wide else _decoded(path, written)
        first = text.partition("\n")[0]
        separator = max(",;\t", key=first.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        found = list(reader.fieldnames or [])
        lines = [{name.strip(): (cell or "").strip() for name, cell in line.items() if name is not None}
                 for line in reader if any(line.values())]
        header = [name.strip() for name in found]
        ours = separator == "," and {"path", "group"} <= set(header)
        said += [] if ours else _with_points(lines)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: {error}. Expected a table as text in UTF-8, cells separated by commas, "
                            "semicolons or tabs. Remedy: save it as CSV in UTF-8 (in Excel: `CSV UTF-8`).") from error
    if len(header) < 2 or not lines or len(set(header)) < len(header):
        raise ManifestError(f"{path}: found {len(header)} columns ({', '.join(header)[:200]}) and {len(lines)} rows, "
                            "expected a first line of different headings, and rows that name files.")
    return OwnTable(path, header, lines, separator == "," and not wide and not said and found == header, tuple(said))


def _decoded(path: Path, written: bytes) -> tuple[str, list[str]]:
    """UTF-8, or else Windows-1252, and what to say of it. Raises UnicodeDecodeError with what UTF-8 says of it, also of
    a damaged file, some of whose letters are UTF-8: all of these would come out wrong."""
    try:
        return written.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        if not written.decode("utf-8", errors="ignore").isascii():
            raise
        try:
            text = written.decode("cp1252")
        except UnicodeDecodeError:
            raise error from None
    shown = next(word for word in re.split(r"[\s,;\"]+", text) if not word.isascii())
    return text, [f"{path.name} is not UTF-8 and was read as Windows-1252. CHECK: it says {shown}."]


def _with_points(lines: list[dict[str, str]]) -> list[str]:
    """Put points into numbers with commas, column by column, and say so. Where all of them have three digits after the
    comma it may part thousands, and stays."""
    said = []
    for name in lines[0] if lines else ():
        cells = [line[name] for line in lines if line[name]]
        comma = [cell for cell in cells if "," in cell]
        if not comma or not all(re.fullmatch(r"[-+]?\d+(,\d+)?([eE][-+]?\d+)?", cell) for cell in cells):
            continue
        if all(re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", cell) for cell in comma):
            said.append(f"CHECK: numbers of {name} have commas ({comma[0]}) that may part thousands, and were left as "
                        "they are. Write points, or numbers without commas.")
            continue
        for line in lines:
            line[name] = line[name].replace(",", ".")
        said.append(f"Numbers of {name} have points now instead of commas ({comma[0]}).")
    return said


def manifest_of(table: OwnTable, layout: Layout, file_column: str = "", group_column: str = "",
                all_files: bool = False) -> tuple[str, list[str]]:
    """The text of a manifest, and sentences on how it was made.

    Args:
        layout: of the folder with the files.
        file_column: which column names them; "": the one that does.
        group_column: which one names what a split may never cut; "": the one whose heading says so.
        all_files: keep files that no row names, as unlabelled ones; they then go by the layout's rule for groups.

    Raises:
        ManifestError: a column is not there or cannot be told, or two rows name one file.
    """
    _refuse_absent(table, file_column, group_column)
    find = _finder(layout.paths)
    file_column = file_column or _file_column(table, find, len(layout.paths))
    found = [find(line[file_column]) for line in table.lines]
    of_path = {path: line for path, line in zip(found, table.lines, strict=True) if path}
    if len(of_path) < sum(map(bool, found)):
        again = Counter(path for path in found if path).most_common(1)[0][0]
        raise ManifestError(f"{table.path}: found {len(found) - len(of_path)} rows that name a file again (the first: "
                            f"rows {', '.join(str(i + 1) for i, path in enumerate(found) if path == again)}), expected "
                            "one row per file. Remedy: join the rows of each file into one.")
    group_column, groups = _group_column(table, of_path, group_column, all_files)
    said = [sentence for sentence in layout.said
            if not sentence.startswith(("Labels: none", *(["Groups:"] if group_column else [])))]
    said += table.said
    said.append(f"Files: the column {file_column} of {table.path.name} names {len(of_path)} of {len(layout.paths)}.")
    missing = [i + 1 for i, path in enumerate(found) if not path]
    if missing:
        said.append(f"{len(missing)} rows of {table.path.name} name no file of the folder, or more than one, and are "
                    f"left out (the first: row {missing[0]}).")
    unnamed = len(layout.paths) - len(of_path)
    if unnamed:
        said.append(f"{unnamed} files are in no row: " + (
            "unlabelled, for pretraining, with groups guessed from their names. CHECK: none is of a labelled group."
            if all_files else "left out."))
    taken = layout.paths if all_files else [path for path in layout.paths if path in of_path]
    return _written(table, layout, of_path, taken, group_column), [*said, *groups]


def num_rows(manifest: str) -> int:
    """How many files the text of a manifest names; names may hold line breaks."""
    return sum(1 for _ in csv.reader(io.StringIO(manifest))) - 1


def could_be_labels(table: OwnTable, of: Sequence[str] = ()) -> dict[str, dict[str, int]]:
    """Columns with a few different values each, and how often each occurs: what one may want to learn."""
    counts = {name: Counter(line[name] for line in table.lines if line[name]) for name in table.header
              if name not in (*OURS, *of)}
    return {name: dict(sorted(found.items())) for name, found in counts.items()
            if 2 <= len(found) <= len(table.lines) // 3
            and (len(found) <= MOST_CLASSES or LABEL_WORDS.fullmatch(re.sub(r"[^a-z]", "", name.lower())))}


def kind_of(values: Iterable[str]) -> Literal["regression", "single_label"]:
    """Many different numbers are a quantity, and so are some of which hardly any comes again; else each value is a
    class."""
    cells = [value for value in values if value]
    found = set(cells)
    numbers = all(re.fullmatch(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?", value) for value in found)
    many = len(found) > FEWEST_NUMBERS or (len(found) > MOST_CLASSES and 3 * len(found) > len(cells))
    return "regression" if numbers and many else "single_label"


def _refuse_absent(table: OwnTable, *columns: str) -> None:
    for column in columns:
        if column and column not in table.header:
            raise ManifestError(f"{table.path}: found no column {column}, expected one of {', '.join(table.header)}.")


def _finder(paths: Sequence[str]) -> Callable[[str], str]:
    """From what a cell says to the one path that it can mean: whole, by its last parts, without its ending, in small or
    large letters; else ""."""
    exact: dict[str, dict[str, None]] = {}
    folded: dict[str, dict[str, None]] = {}
    for path in paths:
        for name in _names(path):
            exact.setdefault(name, {})[path] = None
            folded.setdefault(_folded(name), {})[path] = None
    whole = set(paths)

    def find(cell: str) -> str:
        text = cell.replace("\\", "/").removeprefix("./").rstrip("/")
        if text in whole:
            return text
        names = _names(text)  # longest first: a table may name folders above ours
        for meant in (*(exact.get(name, {}) for name in names), *(folded.get(_folded(name), {}) for name in names)):
            if len(meant) == 1:
                return next(iter(meant))
        return ""
    return find


def _names(path: str) -> list[str]:
    """What a path may be called: by its last parts, with its ending and without."""
    parts = path.split("/")
    return [name for i in range(len(parts)) for tail in ["/".join(parts[i:])] for name in (tail, _stem(tail))]


def _stem(path: str) -> str:
    return re.sub(r"(\.nii\.gz|\.[A-Za-z]\w{1,5})$", "", path)


def _folded(path: str) -> str:
    """As file systems compare that do not mind small and large letters, or how an umlaut is put together."""
    return unicodedata.normalize("NFC", path).casefold()


def _file_column(table: OwnTable, find: Callable[[str], str], num_files: int) -> str:
    shares = {name: sum(bool(find(line[name])) for line in table.lines) / len(table.lines) for name in table.header}
    best = max(shares, key=lambda name: (shares[name], name == "path"))
    if shares[best] < ENOUGH:
        raise ManifestError(f"{table.path}: found no column that names the {num_files} files of the folder (nearest: "
                            f"{best}, {shares[best]:.0%} of its rows), expected paths below the folder, or file names. "
                            "Remedy: give the folder that they are below, or say --files COLUMN (one of "
                            f"{', '.join(table.header)}).")
    return best


def _group_column(table: OwnTable, of_path: Mapping[str, Mapping[str, str]], given: str,
                  guess: bool) -> tuple[str, list[str]]:
    """The column, "" for the layout's rule, and what to say of it."""
    words = [name for name in table.header if GROUP_WORDS.fullmatch(re.sub(r"[^a-z]", "", name.lower()))]
    column = given or next((name for name in words if name == "group"), words[0] if len(words) == 1 else "")
    if not column and not guess:
        raise ManifestError(f"{table.path}: found {len(words)} columns whose heading says patient, scene or object"
                            f"{' (' + ', '.join(words) + ')' if words else ''}, expected one: a split must not "
                            f"cut their files. Remedy: --group COLUMN, one of {', '.join(table.header)}; that of the "
                            "file names if every file stands for itself.")
    if not column:
        return "", [f"CHECK: no column of {table.path.name} says whose the files are; --group COLUMN names it "
                    f"({', '.join(table.header)})."]
    groups = [line[column] for line in of_path.values()]
    said = [f"Groups: the column {column} ({len(set(groups))} groups of {len(groups)} files). CHECK: this is the "
            "patient, scene or object."]
    if len(set(groups)) < FEWEST_GROUPS:
        said.append(f"CHECK: {len(set(groups))} are too few to be divided: train, val and test each get whole groups; "
                    "a score has an interval from ten test groups on. Is it another column? --group COLUMN.")
    twice = spelt_alike(groups)
    if twice:
        said.append(f"CHECK: {len(twice)} groups look written in more than one way ({' and '.join(twice[0])}); each "
                    "way counts as another one and may lie in another split.")
    return column, said


def _written(table: OwnTable, layout: Layout, of_path: Mapping[str, Mapping[str, str]], taken: Sequence[str],
             group_column: str) -> str:
    more = [name for name in table.header if name not in OURS and name != "label"]
    has_label = "label" in table.header or any(layout.labels)
    has_mask = "mask_path" in table.header or any(layout.masks)
    header = [name for name, there in [("path", True), ("mask_path", has_mask), ("group", True), ("split", True),
                                       ("source", True), ("label", has_label)] if there]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*header, *more])
    guessed = dict(zip(layout.paths, zip(layout.masks, layout.groups, layout.splits, layout.labels, strict=True),
                       strict=True))
    for path in taken:
        mask, group, split, label = guessed[path]
        line = of_path.get(path, {})
        cells = {"path": path, "mask_path": line.get("mask_path") or mask, "source": line.get("source", ""),
                 "group": line.get(group_column, "") if line and group_column else group,
                 "split": line.get("split") or split or ("" if line else "unlabelled"),
                 "label": line.get("label") or label}
        writer.writerow([*(cells[name] for name in header), *(line.get(name, "") for name in more)])
    return text.getvalue()
