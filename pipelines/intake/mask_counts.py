"""What the masks of a data set hold, in pixels, as its segmentation tasks see them."""

from __future__ import annotations

from typing import Any

import numpy as np

from domains.sample import UNKNOWN_CLASS
from domains.store import Prepared

SPLITS = ("train", "val", "test")


def mask_counts(prepared: Prepared) -> dict[str, Any]:
    """{task: {"pixels": {split: {class: n}, ...}, "no class": {number: n}}}: how many pixels (voxels, points) of every
    class the masks of each split hold, and how many have a number that is no class of the task."""
    tasks = {name: task for name, task in prepared.contract.tasks.items() if task.kind == "segmentation"}
    if not tasks:
        return {}
    splits = np.array(prepared.column("split"))
    held = {split: np.zeros(256, np.int64) for split in SPLITS}
    told: dict[str, Any] = {}
    for name, task in tasks.items():
        for split, numbers in held.items():
            numbers[:] = 0
            for row in np.flatnonzero(np.isfinite(prepared.labels(name)).any(axis=1) & (splits == split)):
                mask = prepared.mask(int(row))
                assert mask is not None, "a row of a segmentation task has a mask"
                numbers += np.bincount(mask.ravel(), minlength=256)
        of_class = task.class_of()
        told[name] = {
            "pixels": {split: {cls: int(numbers[of_class == i].sum()) for i, cls in enumerate(task.classes)}
                       for split, numbers in held.items()},
            "unknown": int(sum(numbers[UNKNOWN_CLASS] for numbers in held.values())),
            "no class": {str(number): int(sum(held[split][number] for split in SPLITS))
                         for number in np.flatnonzero((of_class == UNKNOWN_CLASS) & (np.arange(256) != UNKNOWN_CLASS))
                         if any(held[split][number] for split in SPLITS)}}
    return told


def sentences(counts: dict[str, Any]) -> list[str]:
    """What somebody should know before training on them."""
    said = []
    for name, of_task in counts.items():
        empty = [cls for cls, pixels in of_task["pixels"]["train"].items() if not pixels]
        if empty:
            white = (f" {of_task['unknown']} pixels hold {UNKNOWN_CLASS}, or the nodata value of their file, which "
                     "means unknown: masks that mark something so must be written with smaller numbers."
                     if of_task["unknown"] else "")
            said.append(f"task {name}: no mask of the training split holds {', '.join(empty)}; it cannot be learnt. "
                        f"Look at `classes` and `values`.{white}")
        if of_task["no class"]:
            numbers = ", ".join(f"{number} ({count} pixels)" for number, count in of_task["no class"].items())
            said.append(f"task {name}: masks hold numbers that are no class, which count as unknown: {numbers}. Name "
                        "them under `classes` and `values` if they mean something.")
    return said
