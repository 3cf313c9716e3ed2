"""What `lacuna import` says it did: a few lines for the screen, every tensor for report.txt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def short(record: Mapping[str, Any]) -> str:
    """Counts, notes and licence."""
    said, origin = record["report"], record["provenance"]
    wrapped = f", wrapped in {' '.join(origin['wrappers'])}" if origin["wrappers"] else ""
    coverage = ", ".join(f"{part} {found} of {expected}" for part, (found, expected) in said["coverage"].items())
    lines = [f"{origin['file']}: read as {record['family']}{wrapped}",
             f"  mapped    {len(said['mapped'])} tensors, which fill {coverage}",
             f"  resized   {'; '.join(said['resized']) or 'nothing'}",
             f"  dropped   {_reasons(said['dropped'])}",
             f"  missing   {', '.join(said['missing']) + ': left random' if said['missing'] else 'nothing'}",
             f"  licence   {origin['licence']}"]
    return "\n".join([*lines, *(f"  note      {note}" for note in origin["notes"])])


def full(record: Mapping[str, Any]) -> str:
    """The same, and then a line for each tensor."""
    said, origin = record["report"], record["provenance"]
    lines = [short(record), f"  sha256    {origin['file_sha256']}",
             f"  said      {', '.join(f'{key}={value}' for key, value in origin['given'].items()) or 'nothing'}", ""]
    lines += [f"{theirs} -> {', '.join(ours)}" for theirs, ours in said["mapped"].items()]
    lines += [f"{theirs} dropped: {reason}" for theirs, reason in said["dropped"].items()]
    lines += [f"{ours} not in the file: left random" for ours in said["missing"]]
    return "\n".join(lines) + "\n"


def _reasons(dropped: Mapping[str, str]) -> str:
    """How many for which reason."""
    counts: dict[str, int] = {}
    for reason in dropped.values():
        counts[reason] = counts.get(reason, 0) + 1
    return "; ".join(f"{count} ({reason})" for reason, count in counts.items()) or "nothing"
