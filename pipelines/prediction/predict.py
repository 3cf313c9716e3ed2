"""`lacuna predict`: labels with calibrated probabilities for native files, as CSV and JSON.

A file of several pieces (tiles) gets the mean of its pieces' probabilities; the JSON holds every piece. What was done
before by the same checkpoint on the same bytes is not done again. An answer depends on its file alone, unless
`test_time` is asked for: then all files are answered together, and every answer says so.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from domains.publish import write_text
from domains.quarantine import Limits
from domains.sample import ManifestRow, Task
from domains.worker import hash_of
from pipelines.intake.refusals import check_share
from pipelines.prediction import clouds, masks
from pipelines.prediction.native import UNEDITED, Edits, Native, Read, open_checkpoint, rows_of
from pipelines.prediction.refused import code_of
from pipelines.prediction.test_time import way_of

TABLE, RECORDS, JOURNAL = "predictions.csv", "predictions.json", ".journal.jsonl"
"""In the output folder. The journal takes a line as soon as a file is done, so that a kill loses nothing."""
DONE, REFUSED = "done", "refused"
THRESHOLD = 0.5
"""A finding of a multi_label task is named when its calibrated probability reaches this."""


def predict(checkpoint: str | Path, inputs: Sequence[str | Path], *, source: str = "", limits: Limits | None = None,
            device: str = "auto", edits: Edits = UNEDITED, test_time: str = "") -> list[dict[str, Any]]:
    """Labels with calibrated probabilities for native files.

    Args:
        checkpoint: a tuned checkpoint folder.
        inputs: files, folders, or CSV manifests with a column `path`.
        source: the hospital or sensor, for readers that treat sources differently.
        edits: merge tokens, which is faster, or cut patches of another size; neither by default.
        test_time: norm, tent or lame, or settings of one such as "{kind: tent, steps: 5}"
            (pipelines/prediction/test_time.py): adapt to these files, without labels, and answer them together.

    Returns:
        One dictionary per file, in order: path, status (done or refused), reason, label (a class, a list of findings,
        or None for regression), probabilities (or numbers) by name, pieces, sha256, checkpoint; under test_time also
        test_time, what was adapted and with how many files.

    Raises:
        CheckpointError, ContractMismatch, ValueError: the checkpoint or the inputs cannot be used at all. A single file
            that cannot be used does not raise.
    """
    native = open_checkpoint(checkpoint, device, edits=edits)
    if of_masks(native):
        raise ValueError(f"{checkpoint}: found a model of masks, whose answers are files. Use predict_to_folder, or "
                         "`lacuna predict --out DIR`.")
    rows = rows_of(inputs, native, source)
    return _together(native, rows, test_time, limits) if test_time else list(_results(native, rows, limits))


def predict_to_folder(checkpoint: str | Path, inputs: Sequence[str | Path], out: Path, *, source: str = "",
                      limits: Limits | None = None, device: str = "auto", edits: Edits = UNEDITED,
                      test_time: str = "", bad_files: float = 0.0) -> int:
    """Predict into `out`, skipping what is done; under test_time, where answers depend on each other, nothing is
    skipped. Returns 0, or 3 when more than the share `bad_files` of the files were refused, or all of them."""
    check_share("--bad-files", bad_files)
    native = open_checkpoint(checkpoint, device, edits=edits)
    rows = rows_of(inputs, native, source)
    out.mkdir(parents=True, exist_ok=True)
    before = _read_journal(out / JOURNAL)
    skipped, todo = ({}, rows) if test_time else _split(rows, before, native, out)
    if of_masks(native):
        told = _masks(native, todo, before, limits, out, test_time)
    else:
        told = iter(_together(native, rows, test_time, limits)) if test_time else _results(native, todo, limits)
    results = dict(before)
    try:
        with (out / JOURNAL).open("a", encoding="utf-8") as journal:
            bar = tqdm(told, total=len(todo), desc="predict", disable=not todo, leave=False,
                       mininterval=0.5 if sys.stderr.isatty() else 30)
            for result in itertools.chain(skipped.values(), bar):
                if results.get(result["path"]) == result:
                    continue
                results.pop(result["path"], None)  # what was done last stands last
                results[result["path"]] = result
                journal.write(json.dumps(result) + "\n")
                journal.flush()
    finally:
        _publish(list(results.values()), out)
    refused = [results[row.key]["reason"] for row in todo if results[row.key]["status"] == REFUSED]
    print(f"predict: {len(todo) - len(refused)} files done, {len(skipped)} done before, {len(refused)} refused")
    for reason, count in Counter(refused).most_common(5):  # names stand in the table, not on a screen that is logged
        print(f"  refused {count}: {reason}")
    if test_time and len(refused) < len(rows):
        print(f"  {next(results[row.key] for row in rows if results[row.key]['status'] == DONE)['test_time']}")
    print(f"  {out / TABLE}\n  {out / RECORDS}")
    if of_masks(native) and len(refused) < len(rows):
        print(f"  {out / masks.TABLE}\n  {out / masks.FOLDER}")
    return code_of(len(refused), len(rows), bad_files)


def result_of(read: Read, native: Native) -> dict[str, Any]:
    """One file's answer as plain values."""
    task: Task = native.record["task"]
    result: dict[str, Any] = {"path": read.row.key, "status": REFUSED if read.reason else DONE, "reason": read.reason,
                              "label": None, "probabilities": {}, "pieces": [], "sha256": read.sha256,
                              "checkpoint": native.identity}
    if read.reason:
        return result
    mean = read.values.mean(axis=0)
    result["probabilities"] = _named(mean, task)
    if len(read.suffixes) > 1:
        result["pieces"] = [{"piece": suffix, "probabilities": _named(values, task)}
                            for suffix, values in zip(read.suffixes, read.values, strict=True)]
    match task.kind:
        case "single_label":
            result["label"] = task.outputs[int(mean.argmax())]
        case "multi_label":
            result["label"] = [name for name, value in zip(task.outputs, mean, strict=True) if value >= THRESHOLD]
    return result


def _named(values: Any, task: Task) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in zip(task.outputs, values, strict=True)}


def _results(native: Native, rows: Sequence[ManifestRow], limits: Limits | None) -> Iterator[dict[str, Any]]:
    return (result_of(read, native) for read in native.read(rows, native.answer, limits))


def of_masks(native: Native) -> bool:
    """Whether a checkpoint answers with masks, which are files, and not with labels."""
    task: Task = native.record["task"]
    return task.kind == "segmentation"


def _masks(native: Native, rows: Sequence[ManifestRow], before: dict[str, dict[str, Any]], limits: Limits | None,
           out: Path, test_time: str) -> Iterator[dict[str, Any]]:
    """Masks of native files, written as they come."""
    if test_time:
        raise ValueError(f"test_time: found {test_time} for a model of masks, expected none: what it adapts by is the "
                         "answer to a whole file. Leave it out.")
    taken = {result["mask"]: path for path, result in before.items() if "mask" in result}
    return masks_into(out, native, rows, masks.names_for(rows, taken), limits)


def masks_into(out: Path, native: Native, rows: Sequence[ManifestRow], names: dict[str, str],
               limits: Limits | None = None) -> Iterator[dict[str, Any]]:
    """Masks of native files below `out`: one dictionary per file, with the file's name under `mask`, as it is written.

    Args:
        native: of a model of masks.
        names: what the mask of each row is to be called, by the row's key, without an ending (`masks.names_for`).
    """
    segment = masks.segment_of(native)
    if native.contract.kind == "points":
        return clouds.written(native, rows, segment, limits, out, names)
    return masks.written(masks.masks(native, rows, segment, limits), native, out, names)


def _together(native: Native, rows: Sequence[ManifestRow], test_time: str,
              limits: Limits | None) -> list[dict[str, Any]]:
    """One answer per file, each of which says that it depends on the others; told apart from what a file gets alone or
    among other files."""
    way = way_of(test_time)
    reads, said = native.read_together(rows, way, limits)
    contents = sorted(read.sha256 for read in reads if not read.reason)
    digest = hashlib.sha256("\0".join([native.identity, repr(way), *contents]).encode()).hexdigest()
    note = f"{said}; {len(contents)} files answered together, so each answer depends on the others"
    told = dataclasses.replace(native, identity=digest)
    return [result_of(read, told) | ({} if read.reason else {"test_time": note}) for read in reads]


def _split(rows: Sequence[ManifestRow], before: dict[str, dict[str, Any]], native: Native,
           out: Path) -> tuple[dict[str, dict[str, Any]], list[ManifestRow]]:
    """What was done before by this checkpoint on these bytes (under whichever name, unless a mask lies there under
    it), and what is to be done. A file that was refused is tried again."""
    done = [result for result in before.values()
            if result["status"] == DONE and result["checkpoint"] == native.identity]
    known = {(result["sha256"], result["path"] if "mask" in result else ""): result for result in done
             if "mask" not in result or (out / result["mask"]).is_file()}
    skipped, todo = {}, []
    for row in rows:
        digest = _hash(row.path) if known else ""
        earlier = known.get((digest, "")) or known.get((digest, row.key))
        if earlier is None:
            todo.append(row)
        else:
            skipped[row.key] = {**earlier, "path": row.key}
    return skipped, todo


def _hash(path: Path) -> str:
    try:
        return hash_of(path)
    except OSError:  # the reader will say what is wrong with it
        return ""


def _read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """The last result of every path. A line that a kill cut short is left out; its file is done again."""
    results: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        results.pop(result["path"], None)
        results[result["path"]] = result
    return results


def _publish(results: Sequence[dict[str, Any]], out: Path) -> None:
    """CSV and JSON of everything done into this folder, each whole or not at all."""
    names = list(dict.fromkeys(name for result in results for name in result["probabilities"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    adapted = ["test_time"] if any("test_time" in result for result in results) else []
    writer.writerow(["path", "status", "label", *(f"p.{name}" for name in names), "pieces", "reason", "sha256",
                     "checkpoint", *adapted])
    for result in results:
        label = result["label"]
        writer.writerow([result["path"], result["status"], ";".join(label) if isinstance(label, list) else label or "",
                         *(result["probabilities"].get(name, "") for name in names), max(1, len(result["pieces"])),
                         result["reason"], result["sha256"], result["checkpoint"][:16],
                         *(result.get(name, "") for name in adapted)])
    write_text(out / TABLE, text.getvalue())
    if any("mask" in result for result in results):
        masks.publish(results, out)
    write_text(out / RECORDS, json.dumps(list(results), indent=1) + "\n")
