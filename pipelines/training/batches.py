"""From prepared shards to batches on the device, in an order that is a pure function of (seed, step).

There is no loader state: a resumed run starts the loader at its step, and each rank takes its own slice of the same
global batch. Reading views of a memory map in the main process is faster than worker processes are (the copy between
processes costs more than the read).

Legend: B batch (of one rank and micro-batch), L numbers per label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from domains.contract import Contract, ContractMismatch
from domains.store import Prepared
from models.encoder.chance import Chance, chance_of, key_of, uniform
from pipelines.training.crops import around_a_class

if TYPE_CHECKING:  # pretraining loads no masks, and a change to how they are read re-runs none
    from pipelines.training.true_masks import TrueMasks

_FETCH, _AUGMENT, _SHUFFLE, _AROUND = 1, 2, 3, 4  # streams of chance


class DomainCode(NamedTuple):
    """The modules of one domain that a stage needs; each domain's have the same functions."""

    dataset: ModuleType
    """fetch, normalise, denormalise, NUM_FETCH_DRAWS"""
    augment: ModuleType
    """Augment, augment, NUM_DRAWS"""
    picture: ModuleType
    """picture"""


def domain_code(domain: str, data: Contract | None = None) -> DomainCode:
    """Import one domain and no other, so that a change in one never re-runs another's stages.

    Raises:
        ContractMismatch: `data` was ingested as another domain.
        ValueError: there is no such domain.
    """
    if data is not None and data.domain != domain:
        raise ContractMismatch(f"domain: found {domain}, expected {data.domain}, as which the data was ingested: its "
                               "samples are read and disturbed by that domain's code. Remedy: set `domain` of the run.")
    match domain:
        case "medical":
            from domains.medical import augment, dataset, picture
        case "satellite":
            from domains.satellite import augment, dataset, picture  # type: ignore[no-redef]
        case "pointcloud":
            from domains.pointcloud import augment, dataset, picture  # type: ignore[no-redef]
        case _:
            raise ValueError(f"domain: found {domain!r}, expected medical, satellite or pointcloud.")
    return DomainCode(dataset, augment, picture)


class RawBatch(NamedTuple):
    """What is read on the host and shipped: small integers, not floats."""

    raw: Tensor
    """B ... in the stored dtype."""
    labels: Tensor
    """B L float32, NaN unknown; L = 0 without a task."""
    ids: Tensor
    """B int64: rows of the index."""
    epochs: Tensor
    """B int64: how often each has been seen before."""
    step: int
    micro_batch: int
    masks: Tensor | None = None
    """B (D) H W or B N uint8, classes of a segmentation task; None without one."""


class Batch(NamedTuple):
    """What an objective gets."""

    x: Tensor
    """B C (D) H W or B M F float32, normalised; 0 where unknown."""
    known: Tensor | None
    """The same shape, bool; None when everything is known."""
    labels: Tensor
    """B L float32, NaN unknown."""
    ids: Tensor
    """B int64."""
    target: Tensor | None = None
    """B (D) H W or B N uint8, classes of a segmentation task, UNKNOWN_CLASS where unknown; None without one."""


@dataclass(frozen=True)
class Source:
    """Some rows of prepared data, as one model is to see them."""

    prepared: Prepared
    contract: Contract
    """The data's contract with the statistics to normalise by (`domains.contract.adopt`)."""
    code: DomainCode
    rows: np.ndarray
    """int64 rows of the index."""
    labels: np.ndarray | None = None
    """n L over the whole index, NaN unknown."""
    change: Callable[[int, np.ndarray], np.ndarray] | None = None
    """(row, stored sample) -> what is to be seen in its place; None: the sample itself."""
    masks: TrueMasks | None = None
    """Of a segmentation task; None without one."""
    around: float = 0.0
    """Share of training crops that are placed around a pixel of a class; the others lie anywhere. Not of points."""

    def fetch(self, row: int, draws: np.ndarray | None) -> np.ndarray:
        """One sample in the stored dtype, cut to the contract's size; a view where nothing had to be moved."""
        values = self.prepared.values(row)
        if self.change is not None:
            values = self.change(row, values)
        fetched: np.ndarray = self.code.dataset.fetch(values, self.contract, draws)
        return fetched

    def read(self, rows: np.ndarray, draws: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """The raw samples and labels of some rows. On a machine with a GPU they lie in pinned memory, from where they
        are copied to it while it works."""
        first = self.fetch(int(rows[0]), None if draws is None else draws[0])
        raw = torch.empty((len(rows), *first.shape), dtype=torch.from_numpy(np.empty(0, first.dtype)).dtype,
                          pin_memory=torch.cuda.is_available())
        held = raw.numpy()
        held[0] = first
        for i in range(1, len(rows)):
            sample = self.fetch(int(rows[i]), None if draws is None else draws[i])
            assert sample.shape == first.shape, (sample.shape, first.shape)
            held[i] = sample
        labels = np.empty((len(rows), 0), np.float32) if self.labels is None else self.labels[rows]
        return raw, torch.from_numpy(np.ascontiguousarray(labels, dtype=np.float32))

    def read_masks(self, rows: np.ndarray, draws: np.ndarray | None) -> Tensor | None:
        """The masks of some rows, cut as `read` cuts the samples."""
        if self.masks is None:
            return None
        return torch.from_numpy(np.stack([
            self.masks.class_of(int(row))[self.code.dataset.fetch_mask(
                self.masks.stored(int(row)), self.contract, None if draws is None else draws[i])]
            for i, row in enumerate(rows)]))

    def normalise(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raw values on the device -> (x, known)."""
        pair: tuple[Tensor, Tensor | None] = self.code.dataset.normalise(raw, self.contract)
        return pair


class TrainingBatches:
    """An endless, shuffled stream of samples, cut into steps and micro-batches; iterating begins at `start_step`."""

    def __init__(self, source: Source, seed: int, batch_size: int, steps: int, start_step: int = 0,
                 accumulate: int = 1, rank: int = 0, world: int = 1) -> None:
        if batch_size % (accumulate * world):
            raise ValueError(f"batch_size {batch_size} cannot be shared by {world} devices times {accumulate} "
                             "micro-batches. Choose a multiple of their product.")
        if len(source.rows) == 0:
            raise ValueError("no samples to train on. Look at `lacuna describe` for how many rows each split and "
                             "source has, and at `sources` and `task` of this run.")
        self.source, self.seed, self.batch_size = source, seed, batch_size
        self.steps, self.start_step, self.accumulate = steps, start_step, accumulate
        self.rank, self.world = rank, world
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return (self.steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[RawBatch]:
        for step in range(self.start_step, self.steps):
            for micro in range(self.accumulate):
                yield self.batch(step, micro)

    def batch(self, step: int, micro: int) -> RawBatch:
        """This rank's share of one micro-batch: the same for every way of getting there."""
        share = self.batch_size // (self.accumulate * self.world)
        first = step * self.batch_size + (micro * self.world + self.rank) * share
        rows, epochs = self._samples(np.arange(first, first + share))
        ids, seen = torch.from_numpy(rows), torch.from_numpy(epochs)
        draws = self._draws(ids, seen, step, micro)
        raw, labels = self.source.read(rows, draws)
        return RawBatch(raw, labels, ids, seen, step, micro, self.source.read_masks(rows, draws))

    def draws(self, batch: RawBatch) -> np.ndarray:
        """B NUM_FETCH_DRAWS uniforms: what places the crops of this batch."""
        return self._draws(batch.ids, batch.epochs, batch.step, batch.micro_batch)

    def _draws(self, ids: Tensor, epochs: Tensor, step: int, micro: int) -> np.ndarray:
        chance = chance_of(self.seed, step, micro, ids, epochs)
        draws: np.ndarray = chance.uniform(self.source.code.dataset.NUM_FETCH_DRAWS, _FETCH).numpy()
        masks, size = self.source.masks, self.source.contract.size
        if masks is not None and self.source.around and len(size) > 1:
            which = chance.uniform(3, _AROUND).numpy()
            for i in np.flatnonzero(which[:, 0] < self.source.around):
                row = int(ids[i])
                draws[i] = around_a_class(masks.stored(row), masks.numbers_held(row), size, draws[i], which[i, 1:])
        return draws

    def _samples(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and epochs at these positions of the endless stream."""
        epochs = positions // len(self.source.rows)
        rows = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._shuffled(int(epoch))[positions[here] % len(self.source.rows)]
        return rows, epochs

    def _shuffled(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            keys = torch.from_numpy(self.source.rows) ^ key_of(self.seed, epoch)
            order = uniform(keys, 1, _SHUFFLE)[:, 0].argsort(stable=True).numpy()
            self._order = (epoch, self.source.rows[order])
        return self._order[1]


def on_device(source: Source, raw: RawBatch, seed: int, augment: Any, device: torch.device) -> tuple[Batch, Chance]:
    """Ship, normalise and augment a batch.

    Args:
        augment: the domain's Augment settings, or None for none.
    """
    ids = raw.ids.to(device, non_blocking=True)
    chance = chance_of(seed, raw.step, raw.micro_batch, ids, raw.epochs.to(device, non_blocking=True))
    x, known = source.normalise(raw.raw.to(device, non_blocking=True))
    target = None if raw.masks is None else raw.masks.to(device, non_blocking=True)
    if augment is not None:
        draws = chance.uniform(source.code.augment.NUM_DRAWS, _AUGMENT)
        x, known = source.code.augment.augment(x, known, draws, augment, source.contract.names)
        if target is not None:
            assert source.masks is not None, "they are its own"
            target = source.code.augment.move_mask(target, source.masks.num_classes, draws, augment)
    return Batch(x, known, raw.labels.to(device, non_blocking=True), ids, target), chance


@torch.no_grad()
def in_order(source: Source, compute: Callable[[Batch], Tensor], batch_size: int, device: torch.device) -> np.ndarray:
    """Run something over all rows of a source, in order, without augmentation -> n ... float32."""
    out = []
    for first in range(0, len(source.rows), batch_size):
        rows = source.rows[first:first + batch_size]
        raw, labels = source.read(rows, None)
        x, known = source.normalise(raw.to(device))
        masks = source.read_masks(rows, None)
        batch = Batch(x, known, labels.to(device), torch.from_numpy(rows).to(device),
                      None if masks is None else masks.to(device))
        out.append(compute(batch).float().cpu())
    return torch.cat(out).numpy() if out else np.empty((0,), np.float32)
