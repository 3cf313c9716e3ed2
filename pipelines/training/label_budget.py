"""Which labelled groups a training gets: all, or a budget.

Legend: n rows, L numbers per label.
"""

from __future__ import annotations

import numpy as np

from domains.store import Prepared
from pipelines.training.true_masks import TrueMasks


def labelled_rows(prepared: Prepared, data: str, task: str, share: float = 1.0,
                  seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Training rows (a share of the groups, if asked) and validation rows with a label of the task.

    Args:
        data: what the prepared data is called, for messages.

    Raises:
        ValueError: there are none of either.
    """
    train, val = (prepared.rows(split=split, task=task) for split in ("train", "val"))
    if len(train) == 0 or len(val) == 0:
        groups = len(set(prepared.column("group")))
        few = " A split takes whole groups: these are too few, or `group` is not their column." if groups < 5 else ""
        raise ValueError(f"task {task} of {data}: found {len(train)} labelled training and {len(val)} labelled "
                         f"validation rows, of {groups} groups, expected some of both.{few} Look at `lacuna describe`.")
    return within_budget(prepared, task, train, share, seed), val


def within_budget(prepared: Prepared, task: str, train: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Those of some labelled rows whose group lies in the budget: a share of their groups."""
    if share >= 1:
        return train
    groups = np.array(prepared.column("group"))[train]
    order = label_order(groups, what_rows_hold(prepared, task, train), seed)
    return train[np.isin(groups, order[:max(1, round(share * len(order)))])]


def what_rows_hold(prepared: Prepared, task: str, rows: np.ndarray) -> np.ndarray:
    """n L: the labels of some rows; of masks 1 where the truth holds a class, else 0, NaN where it was not looked for:
    a budget without a single nodule would teach nothing."""
    labels: np.ndarray = prepared.labels(task)[rows]
    if prepared.contract.tasks[task].kind != "segmentation":
        return labels
    masks = TrueMasks(prepared, task)
    held = np.stack([masks.held(int(row)) for row in rows])
    return np.where(np.isnan(labels), np.nan, held).astype(np.float32)


def label_order(groups: np.ndarray, labels: np.ndarray, seed: int) -> list[str]:
    """The groups in an order whose every beginning is a fair budget: shuffled, and in turn by what their first row is
    labelled, in proportion. So a smaller budget is part of a larger one, and the first few hold every class there is.

    Args:
        groups: n names. labels: n L, NaN unknown; numbers of a regression count by quarters.
    """
    names, first = np.unique(groups, return_index=True)
    of_group = labels[first]
    known = of_group[~np.isnan(of_group)]
    if len(known) and not np.equal(known, np.round(known)).all():
        edges = np.nanquantile(of_group[:, 0], [0.25, 0.5, 0.75])
        of_group = np.searchsorted(edges, of_group[:, :1]).astype(np.float32)
    _, kind = np.unique(np.nan_to_num(of_group, nan=-1.0), axis=0, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    turn = np.empty(len(names))
    for one in np.unique(kind):
        members = shuffled[kind.reshape(-1)[shuffled] == one]
        turn[members] = np.arange(len(members)) / len(members)
    return [str(names[i]) for i in shuffled[np.argsort(turn[shuffled], kind="stable")]]
