"""`lacuna init`: look at a folder of files, write a manifest and the params.yaml paragraph to start from.

Names are looked at, the table of labels if there is one, and where there are masks, a few of them: these are parsed in
limited processes, as every file of strangers. What was guessed is said, above all the rule for groups, because a wrong
one lets a model be tested on patients that it was trained on.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from domains.manifest import ManifestError
from domains.publish import write_text
from pipelines.commands.folder_names import DOMAINS, Layout, look
from pipelines.commands.mask_classes import numbers_in_masks, task_of
from pipelines.commands.own_table import MOST_CLASSES, could_be_labels, kind_of, manifest_of, num_rows, read_table
from pipelines.commands.starter import added, starter

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


def init(folder: Path, out: Path, labels: Path | None = None, file_column: str = "", group_column: str = "",
         label: str = "", add: bool = False) -> str:
    """Write manifest.csv, and params.yaml unless there is one, into `out`. Returns what was found and guessed, and the
    paragraphs.

    Args:
        labels: a table with headings of its own (own_table.py); None: the one .csv in the folder, where there is one.
        file_column, group_column: of that table, what names files and what a split may never cut; "": by comparing.
        label: the column to learn; "": the one that has a few values, if it is one.
        add: put the paragraphs into a params.yaml that is there.

    Raises:
        ManifestError: nothing that can be read, a table that does not fit, or a manifest.csv that would be overwritten.
        ValueError: see `added`.
    """
    if not folder.is_dir():
        raise ManifestError(f"init: found no folder at {folder}. Expected one with images, volumes or point clouds.")
    manifest, params = out / "manifest.csv", out / "params.yaml"
    if manifest.exists():
        raise ManifestError(f"init: found {manifest} already, expected to write it. Remedy: move it away (it may "
                            "hold what you have corrected), or write elsewhere: --out DIR.")
    layout = look(folder)
    text, found, columns = _rows(folder, layout, labels, file_column, group_column)
    if label and label not in text.partition("\n")[0].split(","):
        raise ManifestError(f"--label: found no column {label}, expected one of {', '.join(columns) or 'a table'}.")
    columns = [label] if label else columns
    masks, sentence = task_of_masks(folder, layout) if any(layout.masks) else ({}, "")
    task = "mask" if masks else _task_name(columns[0]) if len(columns) == 1 else ""
    name = _name(folder)
    values = [line[columns[0]] for line in csv.DictReader(io.StringIO(text))] if len(columns) == 1 else []
    paragraphs = _paragraph(folder, out, layout, masks, columns, kind_of(values) if values else "") + starter(
        name, DOMAINS[layout.kind], layout.kind, task, bool(masks))
    new = paragraphs if not params.exists() else added(params.read_text(), paragraphs) if add else ""
    write_text(manifest, text)
    if new:
        write_text(params, new)
    where = (f"Written to {params}:" if new else
             f"The paragraphs were not written, because {params} exists; `--add` puts them into it, or do it by hand:")
    found += [*([sentence] if sentence else []), f"Manifest with {num_rows(text)} rows: {manifest}"]
    return "\n".join([*found, "", where, "", paragraphs, *_next(folder, manifest, layout, columns, task)])


def _rows(folder: Path, layout: Layout, labels: Path | None, file_column: str,
          group_column: str) -> tuple[str, list[str], list[str]]:
    """The manifest, what to say of it, and columns that could be labels."""
    tables = [labels] if labels else sorted(folder.glob("*.csv"))
    if len(tables) != 1:
        more = [f"Tables: found {len(tables)} .csv files; name the one with labels: --labels FILE."] if tables else []
        return table_of(layout), [*layout.said, *more], ["label"] if any(layout.labels) else []
    try:
        table = read_table(tables[0])
        text, said = manifest_of(table, layout, file_column, group_column, all_files=True)
    except ManifestError as error:
        if labels:
            raise
        return table_of(layout), [*layout.said, f"{tables[0].name} was not used: {error}"], []
    columns = could_be_labels(table)
    shown = "; ".join(f"{name} ({_counts(counts)})" for name, counts in columns.items())
    return text, [*said, f"Labels: columns with a few values: {shown}." if shown else
                  "Labels: no column looks like one (a few values, each in several rows); --label COLUMN names it "
                  f"({', '.join(table.header)})."], list(columns)


def _counts(counts: dict[str, int]) -> str:
    first = [f"{value} {count}" for value, count in list(counts.items())[:MOST_CLASSES]]
    return ", ".join([*first, *([f"... {len(counts)} classes"] if len(counts) > MOST_CLASSES else [])])


def _next(folder: Path, manifest: Path, layout: Layout, columns: list[str], task: str) -> list[str]:
    name = _name(folder)
    lines = ["Look at every CHECK. Then, to pretrain on these files" + (
        " and see what it gives:" if task else ":"), f"  lacuna ingest {name} && lacuna describe {name}",
        f"  lacuna pretrain {name}"]
    if task:
        lines += [f"  lacuna finetune {name} && lacuna evaluate {name}     # with and without pretraining, same splits",
                  f"  lacuna verdict {name}     # and on shares of the labels: what is pretraining worth?"]
    elif columns:
        lines += [f"To learn from labels, choose one: lacuna init ... --label COLUMN ({', '.join(columns)})."]
    label = f" --label {shlex.quote(columns[0])}" if len(columns) == 1 else " --label COLUMN" if columns else ""
    if columns or task:
        lines += ["Or at once, without pretraining:", f"  lacuna finetune {DOMAINS[layout.kind]} --data "
                  f"{shlex.quote(str(folder))} --labels {shlex.quote(str(manifest))}{label}"]
    return lines


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


def _paragraph(folder: Path, out: Path, layout: Layout, masks: dict[str, Any], columns: list[str],
               kind: str) -> str:
    """YAML, with a comment wherever somebody must look."""
    place = os.path.relpath(folder.resolve(), out.resolve())
    lines = ["ingest:", f"  {_name(folder)}:", f"    domain: {DOMAINS[layout.kind]}", "    files:",
             f"      folder: {_quoted(str(folder.resolve()) if place.startswith('..') else place)}",
             "      manifest: manifest.csv  # CHECK: the column group; see above"]
    lines += ["      mask_column: mask_path"] if any(layout.masks) else []
    lines += [f"    {line}" for line in reader_lines(layout)]
    lines += ["    tasks:"] if masks or any(layout.labels) else []
    if masks:
        classes, values = (", ".join(map(str, masks[key])) for key in ("classes", "values"))
        lines.append(f"      mask: {{kind: segmentation, classes: [{classes}], values: [{values}]}}  # CHECK: names")
    if any(layout.labels):
        classes = ", ".join(_quoted(name) for name in sorted(set(layout.labels)) if name)
        lines.append("      label: {kind: single_label, columns: [label], classes: [" + classes + "]}")
    elif kind:
        lines += [] if masks else ["    tasks:"]
        lines += [f"      {_task_name(columns[0])}: {{kind: {kind}, columns: [{_quoted(columns[0])}]}}"]
    elif columns:
        lines += ["    # tasks:  # what could be learnt; keep what you want"] if not masks else []
        lines += [f"    #   {_task_name(name)}: {{kind: single_label, columns: [{_quoted(name)}]}}" for name in columns]
    if not any(layout.splits):
        lines.append("    splits: {seed: 0, val: 0.2, test: 0.2}")
    return "\n".join(lines) + "\n"


def reader_lines(layout: Layout) -> list[str]:
    """The reader's paragraph of a folder."""
    lines = READ[layout.kind]
    if not layout.bands:
        return lines
    own = f"  bands: [{', '.join(layout.bands)}]  # CHECK: what a model gets"
    return [own if line.startswith("  bands:") else line for line in lines if not line.startswith("  file_bands:")]


def _task_name(column: str) -> str:
    return re.sub(r"\W+", "_", column.lower()).strip("_") or "label"


def _quoted(text: str) -> str:
    """Text as a YAML scalar: plain where that is a text for certain, else double-quoted, which takes JSON's escapes."""
    plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", text) and text.lower() not in YAML_WORDS
    return text if plain else json.dumps(text)
