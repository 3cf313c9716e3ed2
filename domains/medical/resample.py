"""Separable resampling of images and volumes: one matrix per axis, the same code for two and for three axes.

Legend: I inputs along an axis, O outputs along it.

Written out here, because neither library at hand does both things that stored data needs: float (not 8-bit) values
with a filter that widens when an axis is shrunk, and voxels that are unknown and must not bleed into known ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

MOST_ADDED = 16
"""Inputs of an output that are added one by one; with more, one product with the matrix is faster."""
IN_BAND = 2**19
"""Pixels of an image that are made ready at once: what is made of them stays near the processor."""


def linear_weights(num_in: int, centres: np.ndarray, step: float) -> np.ndarray:
    """O I: each output is the mean of the linearly interpolated inputs over a window around its centre.

    The window is step - 1 inputs wide: a point when the axis is refined (plain linear interpolation; the inputs
    themselves when step is 1), and just wide enough to keep noise and ribs from aliasing when it is coarsened. Unlike a
    sampled triangle or Gaussian it leaves a ramp exactly where it was. Beyond the border the last input goes on.

    Args:
        centres: where the outputs lie, in input indices. At most half an input outside [0, num_in - 1].
        step: distance of neighbouring outputs, in inputs.
    """
    offset = np.arange(num_in)[None, :] - centres[:, None]
    half = (step - 1) / 2
    if half < 1e-3:
        weights = np.clip(1 - np.abs(offset), 0, None)
    else:
        weights = _hat_up_to(offset + half) - _hat_up_to(offset - half)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _hat_up_to(x: np.ndarray) -> np.ndarray:
    """The integral up to x of the hat 1 - |x| on [-1, 1], which linear interpolation lends each input."""
    x = np.clip(x, -1, 1)
    return np.asarray(0.5 + x - 0.5 * x * np.abs(x))


def nearest_index(num_in: int, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The input nearest to each output, and whether the output lies within the inputs at all (both of length O)."""
    inside = (centres >= -0.5) & (centres <= num_in - 0.5)
    return np.clip(np.floor(centres + 0.5).astype(np.int64), 0, num_in - 1), inside


def centred(num_in: int, num_out: int, step: float) -> np.ndarray:
    """Centres of num_out outputs, `step` inputs apart, around the middle of num_in inputs."""
    return (num_in - 1) / 2 + (np.arange(num_out) - (num_out - 1) / 2) * step


class Taps(NamedTuple):
    """What few inputs each output of an axis takes, K of them."""

    inputs: np.ndarray
    """K O: the k-th input of an output."""
    shares: np.ndarray
    """K O float32: its weight; 0 beyond the last."""


def taps(weights: np.ndarray) -> Taps | None:
    """The few inputs that the outputs of an O I matrix take, which are neighbours; None where they are many."""
    used = weights != 0
    first = used.argmax(axis=1)
    width = int((weights.shape[1] - used[:, ::-1].argmax(axis=1) - first).max())
    if width > MOST_ADDED:
        return None
    last = weights.shape[1] - 1
    at = first + np.arange(width)[:, None]
    inputs = np.minimum(at, last)
    return Taps(inputs, np.where(at <= last, weights[np.arange(len(weights)), inputs], 0).astype(np.float32))


def apply(values: np.ndarray, weights: tuple[np.ndarray, ...], order: Sequence[int] = ()) -> np.ndarray:
    """Apply one O I matrix to each axis of `values`, float32. Axes that shrink most go first, which is cheapest; or in
    the `order` that is given. Where nothing changes, the result is `values` itself."""
    out = values.astype(np.float32, copy=False)
    for axis in order or _order(weights):
        out = _along(out, weights[axis], axis)
    return out


class Slab(NamedTuple):
    """Neighbouring outputs of a volume, and what `apply` needs to make them with the same bits as all at once."""

    outputs: tuple[slice, ...]
    inputs: tuple[slice, ...]
    weights: tuple[np.ndarray, ...]
    order: list[int]


def slabs(weights: tuple[np.ndarray, ...]) -> list[Slab]:
    """A volume cut along the axis that goes first, so that nothing as large as the volume is made on the way; uncut
    where an output takes many inputs, whose product would add up otherwise."""
    order = _order(weights)
    axis, whole = order[0], (slice(None),) * len(weights)
    if any(taps(some) is None for some in weights):
        return [Slab(whole, whole, weights, order)]
    count = len(weights[axis])
    step = max(1, IN_BAND * count // int(np.prod([len(some) for some in weights])))
    found = []
    for first in range(0, count, step):
        some = weights[axis][first:first + step]
        used = np.flatnonzero((some != 0).any(axis=0))
        cut = slice(int(used[0]), int(used[-1]) + 1)
        found.append(Slab((*whole[:axis], slice(first, first + step), *whole[axis + 1:]),
                          (*whole[:axis], cut, *whole[axis + 1:]),
                          (*weights[:axis], some[:, cut], *weights[axis + 1:]), order))
    return found


def apply_in_bands(values: np.ndarray, weights: tuple[np.ndarray, np.ndarray], few: tuple[Taps, Taps],
                   ready: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`apply` of what `ready` makes of an image, with the same bits; some rows after the other, so that nothing as
    large as the image is made.

    Args:
        values: H W.
        few: the `taps` of both matrices.
        ready: makes float32 of some rows.
    """
    rows, columns = few
    if _order(weights) == [1, 0]:
        step = max(1, IN_BAND // values.shape[1])
        return _added(np.concatenate([_added(ready(values[top:top + step]), columns, 1)
                                      for top in range(0, len(values), step)]), rows, 0)
    out = np.empty((len(weights[0]), len(weights[1])), np.float32)
    step = max(1, IN_BAND * len(out) // values.size)
    for top in range(0, len(out), step):
        inputs, shares = rows.inputs[:, top:top + step], rows.shares[:, top:top + step]
        low, high = inputs.min(), inputs.max() + 1
        out[top:top + step] = _added(_added(ready(values[low:high]), Taps(inputs - low, shares), 0), columns, 1)
    return out


def _order(weights: tuple[np.ndarray, ...]) -> list[int]:
    return sorted(range(len(weights)), key=lambda a: weights[a].shape[0] / weights[a].shape[1])


def _along(values: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """One matrix on one axis. An output takes from a few neighbouring inputs, and the matrix is nearly all zeros: so
    few are added up one by one, while a product with the whole matrix would do a hundred times the work."""
    few = taps(weights)
    if few is None:
        return np.asarray(np.moveaxis(np.moveaxis(values, axis, -1) @ weights.T, -1, axis))
    if len(few.inputs) == 1 and np.array_equal(weights, np.eye(len(weights))):
        return values
    return _added(values, few, axis)


def _added(values: np.ndarray, few: Taps, axis: int) -> np.ndarray:
    shape = [1] * values.ndim
    shape[axis] = few.inputs.shape[1]
    shares = few.shares.reshape(-1, *shape)
    out = np.take(values, few.inputs[0], axis)
    out *= shares[0]
    part = np.empty_like(out)
    for inputs, share in zip(few.inputs[1:], shares[1:], strict=True):
        out += np.multiply(np.take(values, inputs, axis, part, "clip"), share, out=part)  # "raise" would buffer it
    return out
