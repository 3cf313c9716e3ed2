"""Which rows may be learnt from without labels, and how their groups are remembered."""

from __future__ import annotations

from typing import Literal

import numpy as np

from domains.splits import pseudonym
from domains.store import Prepared

Split = Literal["train", "unlabelled"]
SPLITS: tuple[Split, ...] = ("train", "unlabelled")
"""What may be learnt from without labels."""


def pool_rows(prepared: Prepared, sources: tuple[str, ...], splits: tuple[Split, ...] = SPLITS,
              chosen_by: str = "`splits` and `sources`") -> np.ndarray:
    """Rows for self-supervision: training and unlabelled, no group of a validation or test row, of these sources and
    splits.

    Args:
        chosen_by: the settings of the run that say which, for the message.

    Raises:
        ValueError: there is none.
    """
    rows = np.intersect1d(prepared.pool(), prepared.rows(split=list(splits)))
    if sources:
        rows = np.intersect1d(rows, prepared.rows(source=list(sources)))
    if not len(rows):
        raise ValueError(f"pool of {prepared.folder.name}: found no sample of splits {', '.join(splits)}"
                         f"{' and sources ' + ', '.join(sources) if sources else ''} to learn from, expected some. "
                         f"Remedy: name others under {chosen_by}, or ingest files without a label too.")
    return rows


def group_hashes(prepared: Prepared, rows: np.ndarray) -> list[str]:
    """Short hashes of the groups of these rows, so that a later stage can prove that none of them is tested on, without
    any patient's id leaving the data folder."""
    groups = prepared.column("group")
    return sorted({pseudonym(str(groups[row])) for row in rows})
