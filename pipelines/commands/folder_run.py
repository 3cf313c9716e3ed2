"""`lacuna finetune medical|satellite|pointcloud --data DIR --labels CSV`: from somebody's own folder to a scored model.
Where the folder holds masks and no labels are named, masks are what is learnt.

The same settings objects are built as params.yaml would build, and the same stages are called; what was built is
printed and saved, so that it can be pasted into params.yaml.
"""

from __future__ import annotations

import argparse
import copy
import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from domains.manifest import ManifestError
from domains.publish import write_text
from domains.store import open_prepared
from pipelines import evaluate, finetune, ingest
from pipelines.cli import print_result
from pipelines.commands.folder_names import Layout, look
from pipelines.commands.init import READ, reader_lines, table_of
from pipelines.commands.mask_classes import numbers_in_masks, task_of
from pipelines.commands.own_table import MANIFESTS, kind_of, manifest_of, num_rows, read_table
from pipelines.commands.starter import AUGMENT, ENCODERS
from pipelines.settings import SettingsError, build, changes_of
from pipelines.tracking import lineage
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.weights.checkpoints import SCRATCH, is_scratch, read_record

KINDS = {"medical": ("xray", "ct"), "satellite": ("multispectral",), "pointcloud": ("points",)}
MASKS = "mask_path"
"""The manifest's column of masks."""
OF_INGEST = ("read", "files", "splits", "bad_files", "tasks")
"""Settings that belong to the ingest run."""


def finetune_folder(options: argparse.Namespace, root: Path) -> None:
    """Ingest, fine-tune, evaluate, and print what came of it. Raises SettingsError and what the stages raise."""
    if options.data is None:
        raise SettingsError(f"lacuna finetune {options.run}: found no --data. Expected the folder with your files: "
                            f"lacuna finetune {options.run} --data DIR --labels CSV.")
    start = SCRATCH if options.start is None or is_scratch(options.start) else str(Path(options.start).resolve())
    record = {} if start == SCRATCH else read_record(Path(start))
    changes = changes_of(options.changes)
    layout, told, header = _table(options, changes)
    kind = options.kind or (record.get("reader") or {}).get("kind") or _kind(options, layout)
    if kind not in KINDS[options.run]:
        raise SettingsError(f"{options.data}: found files of kind {kind}, expected {' or '.join(KINDS[options.run])} "
                            f"for `lacuna finetune {options.run}`. Name another domain, or say --kind.")
    # Masks are learnt when that is asked for, or when they are all that is there.
    masks = options.task == "segmentation" if options.task or options.label else MASKS in header and (
        "label" not in header or options.labels is None)
    columns = options.label or (["mask"] if masks else ["label"])
    name = options.name or _slug(f"{options.data.resolve().name}_{'_'.join(columns)}")
    if told and (masks or options.labels is not None):
        text, said = told
        options.labels = root / MANIFESTS / f"{name}.csv"
        write_text(options.labels, text)
        print("\n".join([*said, f"Manifest with {num_rows(text)} rows: {MANIFESTS}/{name}.csv"]))
    paragraphs = {"ingest": {name: _data_paragraph(options, kind, columns, record, changes, masks)},
                  "finetune": {name: _tuning_paragraph(options, kind, name, start, changes, masks)},
                  "evaluate": {name: {"domain": options.run, "finetune": name}}}
    _refuse_unused(changes)
    data_run = build(ingest.DataRun, paragraphs["ingest"][name], f"ingest.{name}")
    tuning = build(FinetuneRun, paragraphs["finetune"][name], f"finetune.{name}")
    scoring = build(evaluate.EvaluateRun, paragraphs["evaluate"][name], f"evaluate.{name}")
    text = yaml.safe_dump(paragraphs, sort_keys=False, default_flow_style=None, width=120)
    print(f"# settings of this run, as params.yaml would have them\n{text}", flush=True)
    write_text(root / MANIFESTS / f"{name}.yaml", text)  # `lacuna where` needs it, also of a run that failed
    with lineage.together(f"finetune-{name}"):
        print_result("ingest", name, ingest.run(name, data_run, root), root)
        _refuse_seen(name, start, record, root)
        tuned = finetune.run(name, tuning, root)
        evaluate.run(name, scoring, root)
    write_text(root / "reports/evaluate" / name / "params.yaml", text)
    report = root / "reports/evaluate" / name / "summary.txt"
    print(report.read_text() if report.is_file() else "")
    model = f"artifacts/finetune/{name}/{tuned['arms'][-1]}/seed{tuning.seeds[0]}"
    print(f"settings   reports/evaluate/{name}/params.yaml\nscores     reports/evaluate/{name}\n"
          f"models     artifacts/finetune/{name}\npredict    lacuna predict {model} FILE... --out DIR")


def _refuse_seen(name: str, start: str, record: Mapping[str, Any], root: Path) -> None:
    """Before the training, which would be for nothing: evaluate scores no model on what it was pretrained on."""
    prepared = open_prepared(root / "data/prepared" / name)
    groups = {prepared.column("group")[row] for row in prepared.rows(split="test", task="task")}
    seen = evaluate.groups_seen(record, groups)
    if seen:
        raise evaluate.Leak(
            f"--start {start}: found {len(seen)} of {len(groups)} test groups in what it was pretrained on, expected "
            "none: these files were divided anew. Remedy: let fine-tuning share the splits of pretraining, in a run of "
            "the same `data` in params.yaml (`lacuna init DIR --label COLUMN` writes it; then `lacuna finetune NAME`), "
            "or give the manifest a column split before both.")


def _table(options: argparse.Namespace, changes: dict[str, Any]
           ) -> tuple[Layout | None, tuple[str, list[str]] | None, list[str]]:
    """What the folder's names say, where that is needed; the manifest that is to be written, with sentences on it,
    unless --labels is one as it is; its headings."""
    if options.labels is None:
        if options.label:
            raise SettingsError(f"--label {options.label[0]}: found no --labels, expected the table that has this "
                                f"column: --labels CSV --label {options.label[0]}. Without one each folder is a class.")
        layout = look(options.data)
        text = table_of(layout)
        return layout, (text, layout.said), ["label", *([MASKS] if any(layout.masks) else [])]
    table = read_table(options.labels)
    told = any(key.split(".")[0] == "files" for key in changes)
    if told or (table.is_manifest and not options.files and not options.group):
        return None, None, table.header
    layout = look(options.data)
    text, said = manifest_of(table, layout, options.files, options.group)
    return layout, (text, said), text.partition("\n")[0].split(",")


def _kind(options: argparse.Namespace, layout: Layout | None) -> str:
    """By the folder's names; where a manifest says which files count, by the domain if that has one kind alone."""
    kinds = KINDS[options.run]
    return kinds[0] if layout is None and len(kinds) == 1 else (layout or look(options.data)).kind


def _mask_task(options: argparse.Namespace, read: dict[str, Any]) -> dict[str, Any]:
    """The classes that some of the manifest's masks hold."""
    with options.labels.open(newline="", encoding="utf-8-sig") as file:
        rows = {line["path"]: line for line in csv.DictReader(file) if line.get("path") and line.get(MASKS)}
    if not rows:
        raise SettingsError(f"{options.labels}: found no row with a {MASKS}, expected masks for `--task segmentation`. "
                            f"Name the mask of each file in the column {MASKS}, relative to --data.")
    pairs = [(path, line[MASKS]) for path, line in rows.items()]
    task, said = task_of(*numbers_in_masks(options.data, pairs, options.run, read, rows))
    print(said)
    return task


def _data_paragraph(options: argparse.Namespace, kind: str, columns: list[str], record: dict[str, Any],
                    changes: dict[str, Any], masks: bool) -> dict[str, Any]:
    """Reader settings are the start's, so that its contract holds; otherwise what `lacuna init` would suggest."""
    read = record.get("reader") or yaml.safe_load("\n".join(_reader_lines(options, kind)))["read"]
    manifest = "" if options.labels is None else str(options.labels.resolve())
    paragraph: dict[str, Any] = {
        "domain": options.run, "files": {"folder": str(options.data.resolve()), "manifest": manifest},
        "read": dict(read)}
    if masks:
        _apply(paragraph, changes, ("read",))
        paragraph["files"]["mask_column"] = MASKS
        paragraph["tasks"] = {"task": _mask_task(options, paragraph["read"])}
    else:
        paragraph["tasks"] = {"task": {"kind": options.task or _task_kind(options.labels, columns), "columns": columns}}
    if options.labels is None:
        paragraph["files"]["group_by"] = "file"
        print("no --labels: one class per folder, and every file is its own group. If a patient, scene or object has "
              "several files, write a manifest with a group column (`lacuna init` begins one): otherwise splits leak.")
    return _apply(paragraph, changes, OF_INGEST)


def _reader_lines(options: argparse.Namespace, kind: str) -> list[str]:
    """By what lies in the folder; by the kind alone where it holds files of other sorts, as arrays."""
    try:
        layout = look(options.data)
    except ManifestError:
        return READ[kind]
    return reader_lines(layout) if layout.kind == kind else READ[kind]


def _tuning_paragraph(options: argparse.Namespace, kind: str, name: str, start: str,
                      changes: dict[str, Any], masks: bool) -> dict[str, Any]:
    linear = {"kind": "sample", "batch_norm": True}
    head = {"full": {"kind": "sample"}, "linear": linear, "knn": {"kind": "nearest"}}[options.protocol]
    if masks:
        if options.protocol != "full":
            raise SettingsError(f"--protocol: found {options.protocol} for masks, expected full. Leave --protocol out; "
                                "--set head.design=linear puts one layer on each token.")
        head = {"kind": "segment"}
    paragraph: dict[str, Any] = {
        "domain": options.run, "data": name, "task": "task", "start": start, "protocol": options.protocol, "head": head,
        "augment": dict(AUGMENT[kind]) if options.protocol == "full" else None,
        "optimisation": {"steps": options.steps or 500, "batch_size": 8 if masks else 32, "betas": [0.9, 0.999],
                         "layer_decay": 1.0 if start == SCRATCH or options.adapter else 0.75}}
    if options.adapter:
        if start == SCRATCH:
            raise SettingsError(f"--adapter {options.adapter[0]}: found no --start, expected the checkpoint that it is "
                                "put on: adapters on random weights learn little. Name one, or leave --adapter out.")
        paragraph["adapters"] = [{"kind": kind} for kind in options.adapter]
    if start == SCRATCH:
        paragraph["encoder"] = copy.deepcopy(ENCODERS[kind])  # --set writes into it
    return _apply(paragraph, changes, tuple(key for key in changes if key.split(".")[0] not in OF_INGEST))


def _task_kind(labels: Path | None, columns: list[str]) -> str:
    """several columns: findings. One column of many different numbers: a quantity. Else: classes."""
    if len(columns) > 1:
        return "multi_label"
    if labels is None:
        return "single_label"
    with labels.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if columns[0] not in (reader.fieldnames or []):
            raise SettingsError(f"{labels}: found columns {', '.join(reader.fieldnames or [])}, expected {columns[0]} "
                                "among them. Name the label column with --label.")
        return kind_of(row[columns[0]] or "" for row in reader)


def _apply(paragraph: dict[str, Any], changes: dict[str, Any], heads: tuple[str, ...]) -> dict[str, Any]:
    """Write the changes that belong to this paragraph into it, and take them off the list."""
    for key in [key for key in changes if key in heads or key.split(".")[0] in heads]:
        *path, last = key.split(".")
        here = paragraph
        for part in path:
            if not isinstance(here.get(part), dict):
                here[part] = {}
            here = here[part]
        here[last] = changes.pop(key)
    return paragraph


def _refuse_unused(changes: dict[str, Any]) -> None:
    if changes:
        raise SettingsError(f"--set: found {', '.join(changes)}, which no setting of ingest or finetune is called.")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:60]
