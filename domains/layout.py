"""Where every sample of an index lies in its shards: file, offset, shape, and what that says of samples together.

Legend: n samples; a sample is C H W, C D H W or M F; a mask lacks the channels.
"""

from __future__ import annotations

import math

import numpy as np

from domains.sample import mask_shape


class Layout:
    """Places of n samples and of their masks, as arrays: a million of them take some 50 MB."""

    def __init__(self, shard: np.ndarray, offset: np.ndarray, mask_shard: np.ndarray, mask_offset: np.ndarray,
                 dims: np.ndarray, num_dims: np.ndarray) -> None:
        """dims: the extents of all samples end to end; num_dims n: how many each has. A mask that is not there has the
        shard -1."""
        self.shard, self.offset = shard.astype(np.int64), offset.astype(np.int64)
        self.mask_shard, self.mask_offset = mask_shard.astype(np.int64), mask_offset.astype(np.int64)
        self._dims = dims.astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum(num_dims)]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.shard)

    def shape(self, i: int) -> tuple[int, ...]:
        """Shape of sample i."""
        return tuple(int(n) for n in self._dims[self._starts[i]:self._starts[i + 1]])

    def place(self, i: int) -> tuple[str, int, tuple[int, ...]]:
        """Sample i's file, offset in values, and shape."""
        return f"shard-{self.shard[i]:05d}.npy", int(self.offset[i]), self.shape(i)

    def mask_place(self, i: int) -> tuple[str, int, tuple[int, ...]]:
        """The same of its mask, which must be there."""
        return f"mask-{self.mask_shard[i]:05d}.npy", int(self.mask_offset[i]), mask_shape(self.shape(i))

    def alike(self, rows: np.ndarray, most_values: int) -> np.ndarray:
        """The first of `rows` that have one shape: at most so many values, and at least one sample."""
        first = int(rows[0])
        some = rows[:max(1, most_values // math.prod(self.shape(first)))]
        same = self._shaped_as(some, first)
        return some if same.all() else some[:int(np.argmin(same))]

    def _shaped_as(self, rows: np.ndarray, i: int) -> np.ndarray:
        own = self._dims[self._starts[i]:self._starts[i + 1]]
        same = np.diff(self._starts)[rows] == len(own)
        for axis, extent in enumerate(own):
            at = np.minimum(self._starts[rows] + axis, len(self._dims) - 1)
            same &= self._dims[at] == extent
        return same

    def adjoin(self, rows: np.ndarray) -> bool:
        """Whether ascending rows of one shape lie end to end in one shard, nothing between them."""
        first, last = int(rows[0]), int(rows[-1])
        return bool(len(rows) == last - first + 1 and self.shard[first] == self.shard[last] and (
            self.offset[last] - self.offset[first] == (last - first) * math.prod(self.shape(first))))

    def lengths(self) -> dict[str, np.ndarray]:
        """How many values each shard ("shard") and each shard of masks ("mask") must hold, by its number."""
        sizes, mask_sizes = self._sizes()
        has = self.mask_shard >= 0
        return {"shard": _needed(self.shard, self.offset + sizes),
                "mask": _needed(self.mask_shard[has], (self.mask_offset + mask_sizes)[has])}

    def gaps(self) -> np.ndarray:
        """Rows of samples, and of masks, that do not begin where the one before them in their shard ends."""
        sizes, mask_sizes = self._sizes()
        has = np.flatnonzero(self.mask_shard >= 0)
        return np.union1d(_gaps(np.arange(len(self)), self.shard, self.offset, sizes),
                          _gaps(has, self.mask_shard[has], self.mask_offset[has], mask_sizes[has]))

    def _sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Number of values of every sample, and of a mask for it."""
        if not len(self):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        leading = self._dims[self._starts[:-1]]
        sizes = np.multiply.reduceat(self._dims, self._starts[:-1])
        return sizes, np.where(np.diff(self._starts) == 2, leading, sizes // np.maximum(leading, 1))


def _needed(shards: np.ndarray, ends: np.ndarray) -> np.ndarray:
    needed = np.zeros(int(shards.max(initial=-1)) + 1, np.int64)
    np.maximum.at(needed, shards, ends)
    return needed


def _gaps(rows: np.ndarray, shards: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    order = np.lexsort((offsets, shards))
    ends = (offsets + sizes)[order]
    first = np.diff(shards[order], prepend=-1) != 0
    begin = np.where(first, 0, np.concatenate([[0], ends[:-1]])[:len(ends)])
    return rows[order][offsets[order] != begin]
