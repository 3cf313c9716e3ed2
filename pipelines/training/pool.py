"""Which rows may be learnt from without labels, and how their groups are remembered."""

from __future__ import annotations

import numpy as np

from domains.splits import pseudonym
from domains.store import Prepared


def pool_rows(prepared: Prepared, sources: tuple[str, ...]) -> np.ndarray:
    """Rows for self-supervision: training and unlabelled, no group of a validation or test row, of these sources."""
    rows = prepared.pool()
    return np.intersect1d(rows, prepared.rows(source=list(sources))) if sources else rows


def group_hashes(prepared: Prepared, rows: np.ndarray) -> list[str]:
    """Short hashes of the groups of these rows, so that a later stage can prove that none of them is tested on, without
    any patient's id leaving the data folder."""
    groups = prepared.column("group")
    return sorted({pseudonym(str(groups[row])) for row in rows})
