"""Two domains for one model: labelled rows of a source, and rows of a target that are seen without their labels.

Legend: B batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.contract import ContractMismatch, adopt, enforce
from domains.sample import Task
from domains.store import Prepared
from models.encoder.chance import Chance
from pipelines.training.batches import Source, domain_code
from pipelines.training.label_budget import labelled_rows
from pipelines.training.pool import group_hashes, pool_rows
from pipelines.training.true_masks import with_masks
from pipelines.weights.starts import Start

_BESIDE = 71  # branch of chance: the target's share of a batch; streams within it:
_ROW, _FETCH, _STRONG, _WEAK = 1, 2, 3, 4

View = tuple[Tensor, Tensor | None]
"""x and known of a batch."""


@dataclass(frozen=True)
class TwoDomains:
    """What every training of a run learns from."""

    train: Source
    """Labelled rows of the source."""
    val: Source
    """Likewise, to fit the temperature on."""
    target: Source
    """Rows without labels."""
    task: Task


def two_domains(labelled: Prepared, target: Prepared, start: Start, domain: str, task: str, names: tuple[str, str],
                sources: tuple[tuple[str, ...], tuple[str, ...]]) -> tuple[TwoDomains, list[str]]:
    """Both domains' rows as one model is to see them: by the start's numbers where it has some, else by those of the
    labelled data. With sentences on what was mapped.

    Args:
        names: of the labelled and of the target's data run, for messages.
        sources: values of the column `source` of either; none: all.

    Raises:
        ContractMismatch: target and labelled data do not fit one contract.
        ValueError: no rows, or no such task.
    """
    if task not in labelled.contract.tasks:
        raise ValueError(f"task: found {task}, expected one of {', '.join(labelled.contract.tasks) or 'none'}, which "
                         f"{names[0]} has labels of.")
    said = enforce(target.contract, start.contract)
    if target.contract.names != labelled.contract.names:
        raise ContractMismatch(f"channels: found {', '.join(target.contract.names)} in {names[1]}, expected "
                               f"{', '.join(labelled.contract.names)} in this order, as {names[0]} has them. "
                               "Remedy: list the bands of both data runs alike, and ingest again.")
    code = domain_code(domain, labelled.contract)
    labels = labelled.labels(task)
    train, val = (_of_sources(labelled, rows, sources[0], names[0]) for rows in labelled_rows(labelled, names[0], task))
    pool = pool_rows(target, sources[1], chosen_by="`target_sources`")
    own, other = start.contract, adopt(target.contract, start.contract)
    return TwoDomains(with_masks(Source(labelled, own, code, train, labels), task),
                      with_masks(Source(labelled, own, code, val, labels), task),
                      Source(target, other, code, pool), labelled.contract.tasks[task]), said


def _of_sources(prepared: Prepared, rows: np.ndarray, sources: tuple[str, ...], name: str) -> np.ndarray:
    kept = np.intersect1d(rows, prepared.rows(source=list(sources))) if sources else rows
    if len(kept) == 0:
        raise ValueError(f"labelled_sources: found no labelled training or validation row of {name} in "
                         f"{', '.join(sources)}, expected some of both. Look at `lacuna describe`.")
    return kept


def groups_seen_by(start: Start, data: TwoDomains) -> list[str]:
    """Short hashes of all groups that start, labels and target's files have shown: none of them may be tested on."""
    seen = set(start.record.get("pool_groups", []))
    for one in (data.train, data.val, data.target):
        seen |= set(group_hashes(one.prepared, one.rows))
    return sorted(seen)


def views_of_target(data: TwoDomains, augment: Any, weak: Any, chance: Chance,
                    device: torch.device) -> tuple[View, View]:
    """As many target samples as the batch has of the source, drawn anew for each of them by its own chance, so that a
    resumed run and another number of devices draw the same.

    Args:
        augment, weak: what disturbs the first and the second of the two views; None: nothing.
    """
    target, own = data.target, chance.branch(_BESIDE)
    at = (own.uniform(1, _ROW)[:, 0].double() * len(target.rows)).long().cpu().numpy()
    draws = own.uniform(target.code.dataset.NUM_FETCH_DRAWS, _FETCH).cpu().numpy()
    raw, _ = target.read(target.rows[at], draws)
    seen = target.normalise(raw.to(device, non_blocking=True))

    def view(augment: Any, stream: int) -> View:
        if augment is None:
            return seen
        drawn = own.uniform(target.code.augment.NUM_DRAWS, stream)
        changed: View = target.code.augment.augment(*seen, drawn, augment, target.contract.names)
        return changed

    return view(augment, _STRONG), view(weak, _WEAK)
