"""Separable resampling of images and volumes: one matrix per axis, the same code for two and for three axes.

Legend: I inputs along an axis, O outputs along it.

Written out here, because neither library at hand does both things that stored data needs: float (not 8-bit) values
with a filter that widens when an axis is shrunk, and voxels that are unknown and must not bleed into known ones.
"""

from __future__ import annotations

import numpy as np

MOST_ADDED = 16
"""Inputs of an output that are added one by one; with more, one product with the matrix is faster."""


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


def apply(values: np.ndarray, weights: tuple[np.ndarray, ...]) -> np.ndarray:
    """Apply one O I matrix to each axis of `values`, float32. Axes that shrink most go first, which is cheapest. Where
    nothing changes, the result is `values` itself."""
    out = values.astype(np.float32, copy=False)
    for axis in sorted(range(out.ndim), key=lambda a: weights[a].shape[0] / weights[a].shape[1]):
        out = _along(out, weights[axis], axis)
    return out


def _along(values: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """One matrix on one axis. An output takes from a few neighbouring inputs, and the matrix is nearly all zeros: so
    few are added up one by one, while a product with the whole matrix would do a hundred times the work."""
    rows = np.arange(len(weights))
    used = weights != 0
    first = used.argmax(axis=1)
    width = int((weights.shape[1] - used[:, ::-1].argmax(axis=1) - first).max())
    if width > MOST_ADDED:
        return np.asarray(np.moveaxis(np.moveaxis(values, axis, -1) @ weights.T, -1, axis))
    if width == 1 and np.array_equal(weights, np.eye(len(weights))):
        return values
    last = weights.shape[1] - 1
    shape = [1] * values.ndim
    shape[axis] = len(weights)
    out: np.ndarray | None = None
    for step in range(width):
        at = first + step
        share = np.where(at <= last, weights[rows, np.minimum(at, last)], 0).astype(np.float32).reshape(shape)
        part = np.take(values, np.minimum(at, last), axis=axis)
        part *= share
        out = part if out is None else np.add(out, part, out=out)
    assert out is not None
    return out
