"""`lacuna describe`: what was ingested, as text. Reads the prepared folder alone and needs no reading library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domains.contract import Contract
from domains.store import Prepared, open_prepared
from pipelines.training.resources import size_text

MAX_CLASSES = 12
"""Classes that a table shows; a task with more gets a line that counts the rest."""


def describe(folder: Path) -> str:
    """Samples per split and source, labels and unknowns, channels, what was left out and why, and what repeats.

    Raises:
        FileNotFoundError: no prepared data there.
        DamagedData: a shard is not what the index says.
    """
    prepared = open_prepared(folder)
    path = folder / "summary.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: found no summary.json, expected the one that `lacuna ingest` writes. "
                                "Remedy: ingest again.")
    summary = json.loads(path.read_text())
    parts = [_head(prepared, summary), _splits(summary), *_tasks(prepared.contract, summary),
             _channels(prepared.contract), _gaps(summary), _text(summary),
             _left_out(summary, folder), _leaks(summary, folder)]
    return "\n\n".join(part for part in parts if part)


def _head(prepared: Prepared, summary: Mapping[str, Any]) -> str:
    contract = prepared.contract
    shape = " x ".join(str(n) for n in prepared.shape(0)) if len(prepared) else "-"
    first = (f"{contract.domain}/{contract.kind}: {summary['samples']} samples from {summary['files']} files, "
             f"{summary['groups']} groups; {size_text(summary['bytes'])} of {contract.dtype}, the first {shape}; "
             f"a model gets {' x '.join(str(n) for n in contract.size)}")
    facts = [f"spacing {contract.spacing}" if contract.spacing else "",
             f"orientation {contract.orientation}" if contract.orientation else "",
             f"{summary['masks']} with a mask" if summary["masks"] else "",
             f"groups by {summary['group_by']}" if summary["group_by"] != "column" else "",
             f"digest {prepared.digest[:12]}"]
    return "\n".join([first, "; ".join(fact for fact in facts if fact), *summary["said"]])


def _splits(summary: Mapping[str, Any]) -> str:
    splits = list(summary["splits"])
    lines = [["samples", *splits]]
    lines += [[source or "(no source)", *(str(counts.get(split, 0)) for split in splits)]
              for source, counts in summary["sources"].items()]
    lines += [["groups", *(str(summary["splits"][split]["groups"]) for split in splits)]]
    return _aligned(lines) + f"\nself-supervised pool: {summary['pool']} samples"


def _tasks(contract: Contract, summary: Mapping[str, Any]) -> list[str]:
    parts = []
    for name, of_split in summary["tasks"].items():
        splits = list(of_split)
        classes = [label for label in next(iter(of_split.values()), {}) if label != "unknown"]
        lines = [[f"{name} ({contract.tasks[name].kind})", *splits]]
        lines += [[label, *(str(of_split[split][label]) for split in splits)] for label in classes[:MAX_CLASSES]]
        if len(classes) > MAX_CLASSES:
            rest = classes[MAX_CLASSES:]
            lines += [[f"{len(rest)} more", *(str(sum(of_split[split][label] for label in rest)) for split in splits)]]
        lines += [["unknown", *(str(of_split[split]["unknown"]) for split in splits)]]
        others = summary["other_values"].get(name) or {}
        note = f"\nno class of this task, so unknown: {_counted(others)}" if others else ""
        parts.append(_aligned(lines) + note)
    return parts


def _channels(contract: Contract) -> str:
    lines = [["channel", "unit", "nm", "low", "high", "mean", "std"]]
    lines += [[c.name, c.unit, "-" if c.wavelength_nm is None else f"{c.wavelength_nm:g}",
               *(f"{number:.4g}" for number in (c.low, c.high, c.mean, c.std))] for c in contract.channels]
    return _aligned(lines)


def _text(summary: Mapping[str, Any]) -> str:
    if not summary.get("text_lines"):
        return ""
    return (f"text: {summary['text_lines']} films look as if lines of text were burned into them, which may name the "
            "patient (fact text_lines of the index). Not all text is found. read.burned_in: refuse keeps these out")


def _gaps(summary: Mapping[str, Any]) -> str:
    """Channels that are not in every sample. Older summaries do not say."""
    what = {"missing": "missing in", "dead": "dead (one value while others vary) in"}
    return "\n".join(f"{name}: " + ", ".join(f"{what[kind]} {count}" for kind, count in found.items() if count)
                     + f" of {summary['samples']} samples" for name, found in summary.get("gaps", {}).items())


def _left_out(summary: Mapping[str, Any], folder: Path) -> str:
    lines = [f"left out by {what}: {_counted(counts)}" for what, counts in summary["filtered"].items()]
    lines.append(f"quarantined: {summary['quarantined']} of {summary['files']} files"
                 + (f" (listed in {folder / 'quarantine.csv'})" if summary["quarantined"] else ""))
    lines += [f"  {count} x {reason}" for reason, count in summary["reasons"].items()]
    return "\n".join(lines)


def _leaks(summary: Mapping[str, Any], folder: Path) -> str:
    found = {what: pairs for what, pairs in summary["leaks"].items() if pairs}
    if not found:
        return "across splits: no exact duplicate, no near duplicate, no overlapping ground was found"
    lines = [f"  {what}: " + ", ".join(f"{splits} {count}" for splits, count in pairs.items())
             for what, pairs in found.items()]
    return "\n".join([f"across splits, pairs that repeat each other (listed in {folder / 'leaks.csv'}; kept out of the "
                      "self-supervised pool, not out of fine-tuning):", *lines])


def _counted(counts: Mapping[str, int]) -> str:
    shown = [f"{name or '(empty)'} {count}" for name, count in list(counts.items())[:MAX_CLASSES]]
    return ", ".join(shown) + (f", and {len(counts) - MAX_CLASSES} more values" if len(counts) > MAX_CLASSES else "")


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, numbers to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                               for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
                     for line in lines)
