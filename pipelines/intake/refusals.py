"""What was refused: how much of it is too much, the list that ingest keeps, and the end of its run."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from domains.contract import Contract
from domains.outcome import Outcome
from domains.publish import write_text
from domains.quarantine import fault
from domains.sample import Piece

EXIT_CODE = 3
"""Of a command that was given more files to refuse than it may, so that a script can tell dirty data from a wrong
setting."""


class TooManyRefused(ValueError):
    """More files were quarantined than the run allows."""

    exit_code = EXIT_CODE


def check_share(name: str, allowed: float) -> None:
    """A share of files that may be refused, by the name of its setting. Raises ValueError."""
    if not 0 <= allowed <= 1:
        raise ValueError(f"{name}: found {allowed:g}, expected a share from 0 to 1, such as 0.01.")


def too_many(refused: int, files: int, allowed: float) -> bool:
    """Whether more than the allowed share was refused, or all there is, whatever is allowed."""
    return refused > allowed * files or refused == files


def of_contract(pieces: Sequence[Piece], contract: Contract) -> str:
    """A reader's mistake must not reach a shard: it would shift what all later samples mean."""
    num_dims = 2 if contract.kind == "points" else 1 + len(contract.size)
    for piece in pieces:
        found = fault(piece, contract.dtype, len(contract.channels), num_dims, contract.unknown)
        if found:
            return found
    if len({piece.suffix for piece in pieces}) != len(pieces):
        return "two pieces of the file have one name"
    return ""


def write_list(refused: Sequence[Outcome], *paths: Path) -> None:
    """quarantine.csv: which files were refused, and why."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "sha256", "stage", "reason"])
    writer.writerows([outcome.row.key, outcome.sha256, "ingest", outcome.reason] for outcome in refused)
    for path in paths:
        write_text(path, text.getvalue())


def refuse_if_too_many(refused: Sequence[Outcome], num_files: int, allowed: float, where: Path) -> None:
    """The end of a run in which more than the allowed share was quarantined."""
    if too_many(len(refused), num_files, allowed):
        common = ", ".join(f"{reason} ({count})" for reason, count in
                           Counter(outcome.reason for outcome in refused).most_common(3))
        raise TooManyRefused(
            f"files: found {len(refused)} of {num_files} refused, expected at most {allowed:.1%}. "
            f"Commonest reasons: {common}. All are listed in {where.parent.name}/{where.name} of the "
            "report. Remedy: mend or remove the files, or raise bad_files.")
