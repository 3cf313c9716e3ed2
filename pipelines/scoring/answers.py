"""What a tuned model says of some rows, as scores want it: probabilities, numbers, or counts of pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from domains.sample import Task
from models.heads.tuned import Tuned
from pipelines.prediction.segmenting import segment
from pipelines.scoring import overlap
from pipelines.scoring.metrics import Floats
from pipelines.scoring.temperature import probabilities
from pipelines.training.batches import Source
from pipelines.training.true_masks import true_mask
from pipelines.weights.tuned_checkpoints import predict

Truth = Callable[[int], np.ndarray]
"""Row of the index -> its true mask, as a task's class numbers."""
Look = Callable[[np.ndarray, np.ndarray], None]
"""The true and the called classes of a sample -> nothing."""


def answers(model: Tuned, source: Source, task: Task, task_name: str, temperature: float, device: torch.device,
            batch_size: int = 128, truth: Truth | None = None, look: Look | None = None) -> Floats:
    """n K calibrated probabilities or numbers, in the order of the source's rows; of masks n 3K counts of pixels.

    Args:
        truth: what masks are compared with; None: those of the prepared data.
        look: is shown the true and the called mask of each row.
    """
    if task.kind != "segmentation":
        return np.asarray(probabilities(predict(model, source, batch_size, device), task.kind, temperature))
    of_row = truth or partial(true_mask, source.prepared, task_name)
    found = []
    for row, called in masks(model, source, device):
        true = of_row(row)
        found.append(overlap.counts(true, called, len(task.outputs)))
        if look is not None:
            look(true, called)
    return np.stack(found) if found else np.zeros((0, 3 * len(task.outputs)))


def masks(model: Tuned, source: Source, device: torch.device) -> Iterator[tuple[int, np.ndarray]]:
    """Row of the index and the most probable class of each of its pixels."""
    model.to(device).eval()
    for row in tqdm(source.rows, desc="masks", unit="sample", leave=False, disable=None):
        yield int(row), np.asarray(segment(model, source, int(row), device)).argmax(0)
