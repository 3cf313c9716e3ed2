"""What a model of masks says of a whole sample, which may be larger than what it sees at once.

Legend: C channels, K classes without the background, D H W voxels (D is absent for images), M points with F values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from domains.contract import Contract
from models.heads.tuned import Tuned
from pipelines.training.batches import DomainCode, Source

AT_ONCE = 8
"""Windows that go through the model together."""
SHARPNESS = 8
"""Windows weigh most at their middle: a bell whose deviation is the window's size divided by this, as in nnU-Net
(Isensee et al. 2021), since a model knows least of what surrounds an edge."""
LEAST = 1e-3
"""Of the weight at the middle, so that a corner that a single window covers keeps its answer."""


class Sight(Protocol):
    """What tells how stored values are shown to a model: a `Source`, or a checkpoint that is ready for files."""

    @property
    def contract(self) -> Contract:
        """With the statistics to normalise by."""

    @property
    def code(self) -> DomainCode:
        """The domain's loader."""

    def normalise(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raw values on the device -> (x, known)."""


@torch.no_grad()
def segment(model: Tuned, source: Source, row: int, device: torch.device) -> np.ndarray:
    """Probabilities of every class at every pixel, voxel or point of a stored sample.

    A sample that is larger than the model's size is looked at through windows that overlap by half, and their answers
    are averaged with more weight at their middles; one that is smaller is filled up as in training.

    Args:
        model: in eval mode, on the device.
        row: of the index.

    Returns:
        K+1 (D) H W or K+1 M float32, the background's first, at the sample's own size.
    """
    values = source.prepared.values(row)
    if source.change is not None:
        values = source.change(row, values)
    return segment_values(model, source, values, device)


@torch.no_grad()
def segment_values(model: Tuned, source: Sight, values: np.ndarray, device: torch.device) -> np.ndarray:
    """`segment` of stored values C (D) H W or M F."""
    if len(source.contract.size) == 1:
        return _points(model, source, values, device)
    size, spatial = source.contract.size, values.shape[1:]
    weight = _bell(size, device)
    total = torch.zeros(0)
    seen = torch.zeros(spatial)
    every = list(itertools.product(*map(_starts, spatial, size)))
    for corners in (every[first:first + AT_ONCE] for first in range(0, len(every), AT_ONCE)):
        windows = [tuple(slice(at, at + wanted) for at, wanted in zip(corner, size, strict=True)) for corner in corners]
        raw = np.stack([source.code.dataset.fetch(values[:, *window], source.contract, None) for window in windows])
        x, known = source.normalise(torch.from_numpy(raw).to(device))
        told = model(x, known).float().softmax(1)                           # n K+1 (D) H W
        if not len(total):
            total = torch.zeros(told.shape[1], *spatial)
        for window, one in zip(windows, told, strict=True):
            inside = _inside(spatial, size)
            total[:, *window] += (one * weight)[:, *inside].cpu()
            seen[window] += weight[inside].cpu()
    return (total / seen).numpy()


def _points(model: Tuned, source: Sight, values: np.ndarray, device: torch.device) -> np.ndarray:
    """Every point once: the model gets its number of them, as they are stored, until all were asked about; the last
    portion is filled up from the first."""
    wanted, stored = source.contract.size[0], len(values)
    told = []
    for first in range(0, stored, wanted):
        portion = values if stored <= wanted else values[(first + np.arange(wanted)) % stored]
        raw = source.code.dataset.fetch(portion, source.contract, None)
        x, known = source.normalise(torch.from_numpy(raw[None]).to(device))
        told.append(model(x, known).float().softmax(1)[0, :, :min(wanted, stored - first)].cpu())
    return torch.cat(told, 1).numpy()


def _starts(stored: int, wanted: int) -> list[int]:
    """Where windows begin along an axis: half a window apart at most, the last one at the end."""
    if stored <= wanted:
        return [0]
    count = 1 + math.ceil((stored - wanted) / max(wanted // 2, 1))
    return sorted({round(i * (stored - wanted) / (count - 1)) for i in range(count)})


def _inside(spatial: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """The part of a window that a sample fills: all of it, or its middle where the sample is smaller."""
    first = [(wanted - min(stored, wanted)) // 2 for stored, wanted in zip(spatial, size, strict=True)]
    return tuple(slice(at, at + min(stored, wanted)) for at, stored, wanted in zip(first, spatial, size, strict=True))


def _bell(size: Sequence[int], device: torch.device) -> Tensor:
    """The weight of each place of a window."""
    bell = torch.ones((), device=device)
    for wanted in size:
        far = (torch.arange(wanted, device=device) - (wanted - 1) / 2) / (wanted / SHARPNESS)
        bell = bell[..., None] * torch.exp(-far.square() / 2)
    return bell.clamp(min=LEAST)
