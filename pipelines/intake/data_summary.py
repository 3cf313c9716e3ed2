"""What an ingested data set holds, as plain numbers: summary.json, the table of splits, the metrics of the stage."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from domains import labels
from domains.duplicates import KINDS, Leak
from domains.store import Prepared

SPLITS = ("train", "val", "test", "unlabelled")


def summarise(prepared: Prepared, leaks: Sequence[Leak], said: Sequence[str]) -> dict[str, Any]:
    """Counts of samples, groups, labels and leaks. Holds no file name and no group."""
    splits, sources = prepared.column("split"), prepared.column("source")
    groups = prepared.column("group")
    num_masks = int(prepared.has_mask.sum())
    by_source = Counter(zip(sources, splits, strict=True))
    return {
        "domain": prepared.contract.domain,
        "kind": prepared.contract.kind,
        "samples": len(prepared),
        "groups": len(set(groups)),
        "bytes": sum(path.stat().st_size for path in prepared.folder.glob("*-*.npy")),
        "splits": {split: {"samples": splits.count(split),
                           "groups": len({g for g, s in zip(groups, splits, strict=True) if s == split})}
                   for split in SPLITS if split in splits},
        "sources": {source: {split: by_source[source, split] for split in SPLITS if by_source[source, split]}
                    for source in sorted(set(sources))},
        "pool": len(prepared.pool()),
        "masks": num_masks,
        "gaps": gaps(prepared),
        "tasks": {name: _label_counts(prepared, name) for name in prepared.contract.tasks},
        "leaks": leak_counts(prepared, leaks),
        "text_lines": sum(bool(facts.get("text_lines")) for facts in prepared.facts()),
        "said": list(said),
    }


def gaps(prepared: Prepared) -> dict[str, dict[str, int]]:
    """{"B8A": {"missing": 3, "dead": 120}}: samples whose file lacks a channel, or in which it holds a single value
    while others vary, as their readers recorded it. Channels without either are left out."""
    if prepared.contract.kind != "multispectral":
        return {}
    counts: dict[str, Counter[str]] = {name: Counter() for name in prepared.contract.names}
    for facts in prepared.facts():
        for name in set(prepared.contract.names) - set(facts.get("bands", prepared.contract.names)):
            counts[name]["missing"] += 1
        for name in facts.get("dead_bands", ()):
            counts[name]["dead"] += 1
    return {name: {what: found[what] for what in ("missing", "dead")} for name, found in counts.items() if found}


def _label_counts(prepared: Prepared, task: str) -> dict[str, dict[str, int]]:
    values = prepared.labels(task)
    rows = {split: prepared.rows(split=split) for split in SPLITS}
    return {split: labels.counts(prepared.contract.tasks[task], values[of_split])
            for split, of_split in rows.items() if len(of_split)}


def leak_counts(prepared: Prepared, leaks: Sequence[Leak]) -> dict[str, dict[str, int]]:
    """{"near": {"train-test": 3}}; always names every sort, so that a 0 is said and not left to guess."""
    splits = prepared.column("split")
    counts: dict[str, Counter[str]] = {what: Counter() for what in KINDS}
    for leak in leaks:
        counts[leak.what][f"{splits[leak.a]}-{splits[leak.b]}"] += 1
    return {what: dict(sorted(counter.items())) for what, counter in counts.items()}


def splits_table(prepared: Prepared) -> str:
    """CSV: split, source, samples, groups, and the number of samples with a label per task."""
    tasks = list(prepared.contract.tasks)
    groups = np.array(prepared.column("group"), dtype=object)
    known = {task: np.isfinite(prepared.labels(task)).any(axis=1) for task in tasks}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "source", "samples", "groups", *(f"labelled {task}" for task in tasks)])
    for split in SPLITS:
        for source in sorted(set(prepared.column("source"))):
            rows = prepared.rows(split=split, source=source)
            if len(rows):
                writer.writerow([split, source, len(rows), len(set(groups[rows])),
                                 *(int(known[task][rows].sum()) for task in tasks)])
    return text.getvalue()


def metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a summary that are worth comparing between runs."""
    found: dict[str, float] = {name: summary[name] for name in
                               ("files", "samples", "groups", "quarantined", "filtered_rows", "pool", "bytes")}
    found |= {f"{split}_samples": numbers["samples"] for split, numbers in summary["splits"].items()}
    found["joined_groups"] = summary["repeats"]["joined_groups"]
    found |= {f"{what}_leaks": sum(pairs.values()) for what, pairs in summary["leaks"].items()}
    return found
