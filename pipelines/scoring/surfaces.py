"""How far the borders of predicted masks lie from true ones: 95 % Hausdorff distance and mean surface distance.

Overlap says little of a thin structure, and nothing of where a mask goes wrong. Grids alone: points have no surface.

Of one class in one sample: the surface of a mask is its pixels (voxels) with a neighbour outside of it, along an axis
or beyond the edge of the sample. From each pixel of one surface the distance to the nearest of the other is taken, both
ways. Hausdorff 95 % is the larger of the two ways' 95th percentiles; the surface distance is the mean over both ways
together (Maier-Hein et al. 2024, "Metrics reloaded"; MONAI computes the same).

- A sample whose truth lacks the class is left out, as it is of Dice: its wrong pixels are false alarms.
- Where the truth holds the class and nothing was called it, there is no distance. The diagonal of the sample counts,
  the largest distance that there can be in it, so that calling nothing never pays; how often is said in the notes.
- Pixels that nobody has looked at belong to neither mask.

Legend: n samples, K classes that are not background, S seeds, R resamples.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from domains.contract import Contract
from domains.sample import UNKNOWN_CLASS
from pipelines.scoring import metrics
from pipelines.scoring.metrics import Bools, Floats
from pipelines.scoring.uncertainty import Spread, draw_groups

NAMES = ("hausdorff95", "surface_distance")
"""In the order in which they are told of a class."""
SHARE = 0.95
"""Of a surface, which the first of them is about: a single stray pixel shall not decide."""
Gauge = Callable[[np.ndarray, np.ndarray], Floats]
"""True and called classes of a sample -> 2K."""


def gauge(contract: Contract, num_outputs: int) -> Gauge | None:
    """What measures samples of such data; None of points, and where scipy is not installed."""
    if contract.kind == "points" or importlib.util.find_spec("scipy") is None:
        return None
    return partial(distances, num_outputs=num_outputs, spacing=contract.spacing)


def unit(contract: Contract) -> str:
    """In which distances are told."""
    if contract.spacing is None:
        return "pixels"
    return "m" if contract.domain == "satellite" else "mm"


def distances(truth: np.ndarray, called: np.ndarray, num_outputs: int,
              spacing: Sequence[float] | None = None) -> Floats:
    """2K numbers of one sample, class by class, as NAMES; NaN where the truth lacks the class.

    Args:
        truth: (D) H W class numbers, 0 background, UNKNOWN_CLASS where nobody has looked. called: the same shape.
        spacing: of pixels along each axis; None: 1.
    """
    steps = np.array(spacing if spacing is not None else [1.0] * truth.ndim)
    known = truth != UNKNOWN_CLASS
    found = np.full((num_outputs, len(NAMES)), np.nan)
    for k in range(1, num_outputs + 1):
        true, said = truth == k, (called == k) & known
        if true.any() and said.any():
            found[k - 1] = between(true, said, steps)
        elif true.any():
            found[k - 1] = diagonal(truth.shape, steps)
    return found.reshape(-1)


def between(a: Bools, b: Bools, steps: Floats) -> tuple[float, float]:
    """The two distances of two masks, neither of which is empty; the same for both orders."""
    from scipy.ndimage import distance_transform_edt

    box = tuple(slice(max(int(at.min()) - 1, 0), int(at.max()) + 2) for at in np.nonzero(a | b))
    first, second = surface(a[box]), surface(b[box])  # the edge of the sample stays one, since the box holds both masks
    there = distance_transform_edt(~second, sampling=steps)[first]
    back = distance_transform_edt(~first, sampling=steps)[second]
    far = max(float(np.quantile(one, SHARE)) for one in (there, back))
    return far, float(np.concatenate([there, back]).mean())


def surface(mask: Bools) -> Bools:
    """Pixels of a mask with a neighbour along an axis that is not in it; beyond the edge nothing is."""
    inside = np.pad(mask, 1)
    kept = mask.copy()
    for axis in range(mask.ndim):
        for at in (0, 2):
            side = tuple(slice(at, at + n) if i == axis else slice(1, 1 + n) for i, n in enumerate(mask.shape))
            kept &= inside[side]
    return np.asarray(mask & ~kept)


def diagonal(shape: Sequence[int], steps: Floats) -> float:
    """From the middle of one corner pixel to that of the opposite one."""
    return float(np.linalg.norm((np.array(shape) - 1) * steps))


def with_surfaces(own: Spread, told: Floats | None, labels: npt.ArrayLike, groups: Sequence[str], resamples: int,
                  seed: int) -> Spread:
    """The spread of an arm with both distances among its metrics, on the same rows and draws: of each class the mean
    over the samples that hold it, then the mean over classes.

    Args:
        told: S n 2K; None: nothing was measured. labels, groups, resamples, seed: as the spread was made with.
    """
    if told is None:
        return own
    known = metrics.known_rows(labels)
    names, member = np.unique(np.asarray(groups, dtype=str)[known], return_inverse=True)
    drawn = np.concatenate([np.ones((len(names), 1), np.int64), draw_groups(len(names), resamples, seed)], axis=1)
    weights = drawn[member].astype(np.float64)                              # n 1+R
    looked = ~np.isnan(np.asarray(labels, dtype=np.float64)[known])         # n K
    more = {}
    for at, name in enumerate(NAMES):
        columns = []
        for one in told[:, known, at::len(NAMES)]:
            held = looked & ~np.isnan(one)
            total, count = np.where(held, one, 0.0).T @ weights, held.T.astype(np.float64) @ weights  # K 1+R
            by_class = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
            defined = ~np.isnan(by_class)
            columns.append(np.divide(np.where(defined, by_class, 0.0).sum(0), defined.sum(0),
                                     out=np.full(by_class.shape[1], np.nan), where=defined.any(0)))
        more[name] = np.stack(columns)
    return dataclasses.replace(own, metrics={**own.metrics, **more})


def note(contract: Contract, called: dict[str, Floats]) -> str:
    """In what the distances are, and how often nothing was called what the truth holds.

    Args:
        called: arm -> S n 3K counts of pixels (overlap.counts).
    """
    missed = []
    for arm, counts in called.items():
        hit, wrong, lost = (counts[..., part::3] for part in range(3))
        held = hit + lost > 0
        missed.append(f"{arm} {int((held & (hit + wrong == 0)).sum())} of {int(held.sum())}")
    return (f"surface distances are in {unit(contract)} of the prepared grid; where nothing was called a class that "
            f"the truth holds, the sample's diagonal counts: {', '.join(missed)} times over samples, classes and seeds")
