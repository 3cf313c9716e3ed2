"""Whether an index, its shards and its contract fit each other, looked at sample by sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from domains.manifest import SPLITS
from domains.sample import Task
from domains.shards import fingerprint
from domains.splits import cut_groups, pseudonyms_of
from domains.store import Prepared

Progress = Callable[[Iterable[int], int], Iterable[int]]
"""Wraps an iteration over rows in a progress bar, given their number."""


def damaged_samples(prepared: Prepared, progress: Progress | None = None) -> list[int]:
    """Read every sample and mask; the rows whose bytes are not what was written."""
    unchecked = prepared.unchecked()
    values, masks = (unchecked.column(name) for name in ("sha256", "mask_sha256"))
    rows: Iterable[int] = range(len(unchecked))
    return [i for i in (progress(rows, len(unchecked)) if progress else rows)
            if fingerprint(unchecked.values(i)) != values[i] or fingerprint(unchecked.mask(i)) != masks[i]]


def index_faults(prepared: Prepared) -> list[str]:
    """Sentences on what no ingest writes: keys twice, samples that overlap or leave gaps in a shard, shapes, labels and
    splits that the contract does not know."""
    found = []
    twice = sum(count - 1 for count in Counter(prepared.column("key")).values())
    if twice:
        found.append(f"index: found {twice} keys that occur before, expected every sample once")
    strange = Counter(split for split in prepared.column("split") if split not in SPLITS)
    if strange:
        found.append(f"index: found {sum(strange.values())} rows whose split is none of {', '.join(SPLITS)}")
    gaps = prepared.gaps()
    if len(gaps):
        found.append(f"index: found {len(gaps)} samples that do not begin where the one before ends (first: row "
                     f"{gaps[0]}), expected shards without gaps or overlaps")
    found += _shape_faults(prepared)
    return found + [fault for name, task in prepared.contract.tasks.items()
                    if (fault := _label_fault(prepared.labels(name), name, task))]


def cut_group_faults(prepared: Prepared) -> list[str]:
    """A sentence when a group lies in two of train, val and test."""
    cut = cut_groups(prepared.column("group"), prepared.column("split"))
    if not cut:
        return []
    return [f"splits: found {len(cut)} groups in more than one of train, val and test "
            f"({pseudonyms_of(cut)}), expected every group whole in one"]


def _shape_faults(prepared: Prepared) -> list[str]:
    contract = prepared.contract
    points = contract.kind == "points"
    num_dims = 2 if points else 1 + len(contract.size)
    wrong = []
    for i in range(len(prepared)):
        shape = prepared.shape(i)
        if len(shape) != num_dims or min(shape) < 1 or shape[-1 if points else 0] != len(contract.channels):
            wrong.append(i)
    return [f"index: found {len(wrong)} samples of another shape than {len(contract.channels)} channels in {num_dims} "
            f"dimensions (first: row {wrong[0]}, {prepared.shape(wrong[0])})"] if wrong else []


def _label_fault(labels: np.ndarray, name: str, task: Task) -> str:
    width = 1 if task.kind == "single_label" else len(task.outputs)
    if labels.shape[1] != width:
        return f"labels of {name}: found {labels.shape[1]} numbers per sample, expected {width}"
    known = labels[np.isfinite(labels)]
    allowed = len(task.classes) if task.kind == "single_label" else 2
    if task.kind != "regression" and not (np.isin(known, np.arange(allowed)).all()):
        return f"labels of {name}: found numbers that are no class of the contract, expected 0 to {allowed - 1}"
    if np.isinf(labels).any():
        return f"labels of {name}: found infinite numbers"
    return ""
