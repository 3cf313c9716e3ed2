"""Volumes in space: from slices or files in any orientation to Hounsfield units on the training grid. numpy only.

Legend: D H W voxels after `orient` (superior, posterior, left); world: millimetres towards right, anterior, superior
(RAS), as in NIfTI. An affine maps indices of the three axes to the world.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from domains.medical import resample
from domains.placement import Placement
from domains.sample import UNKNOWN_CLASS, Refused, nearest_integer

ORIENTATION = "SPL"
"""Stored axes run towards superior, posterior, left: an axial slice then looks as radiologists see it."""
_DIRECTIONS = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
"""Those three directions in the world."""
UNKNOWN_HU = -32768
"""Stored value of a voxel that no scanner saw."""

NO_AIR_ABOVE = -300.0
"""Fat is -100 and lung at least this dense, so a body in HU always reaches below."""
NO_TISSUE_BELOW = -400.0
IMPOSSIBLE_HU = (-1900.0, -1100.0)
"""Nothing is lighter than air at -1000; some scanners mark what they did not see with -2000 and less."""

SPACING_RANGE_MM = (0.05, 20.0)
GAP_TOLERANCE = 0.05
"""Relative difference between slice gaps that rounding in headers explains. A missing slice makes 1."""
TILT_TOLERANCE_DEGREES = 0.5
SHEAR_TOLERANCE = 0.02
"""Largest cosine between two axes of a volume: 1.1 degrees."""
MASK_TOLERANCE = 1.0
"""Voxels by which a mask with the image's shape may lie beside it."""
WANDER_TOLERANCE_MM = 0.5
"""How far one step between slices may differ sideways from the others."""


@dataclass(frozen=True)
class Volume:
    """Numbers at places."""

    values: np.ndarray
    """Three axes, any numeric dtype."""
    affine: np.ndarray
    """4 4, indices to world."""
    known: np.ndarray | None = None
    """Which voxels were measured; None: all."""

    @property
    def spacing(self) -> np.ndarray:
        """Millimetres per index, per axis."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))


@dataclass(frozen=True)
class SliceGeometry:
    """What a DICOM header says of one slice's place. LPS millimetres, as in DICOM."""

    position: tuple[float, float, float]
    """Centre of the first pixel."""
    along_row: tuple[float, float, float]
    """Unit vector of rising columns."""
    along_column: tuple[float, float, float]
    """Unit vector of rising rows."""
    spacing: tuple[float, float]
    """Between rows, between columns."""
    shape: tuple[int, int]
    """Rows, columns."""


def order_slices(slices: list[SliceGeometry], straight: bool = True) -> tuple[list[int], np.ndarray]:
    """The order of slices along their normal, and the affine of the stack (slice, row, column) in that order.

    Args:
        straight: refuse a tilted gantry. Otherwise the affine may be sheared, as `straighten` takes it.

    Raises:
        Refused: fewer than two, different planes or sizes, a place taken twice, a slice missing, a place that cannot
            be true.
    """
    if len(slices) < 2:
        raise Refused(f"{len(slices)} slice in the series, expected at least 2")
    first = slices[0]
    plane = np.array([first.along_row, first.along_column])
    for other in slices:
        if other.shape != first.shape or not np.allclose(other.spacing, first.spacing, rtol=1e-3):
            raise Refused("slices differ in size or pixel spacing: more than one series")
        if not np.allclose([other.along_row, other.along_column], plane, atol=1e-3):
            raise Refused("slices differ in orientation: more than one series, or a localizer among them")
    if not np.allclose(plane @ plane.T, np.eye(2), atol=1e-3):
        raise Refused("the slices' row and column directions are not two unit vectors at a right angle")
    normal = np.cross(*plane)
    positions = np.array([one.position for one in slices])
    order = np.argsort(positions @ normal, kind="stable")
    steps = np.diff(positions[order], axis=0)
    _check_gaps(steps @ normal, steps - np.outer(steps @ normal, normal), straight)
    affine = np.eye(4)
    affine[:3, 0] = steps.mean(axis=0)
    affine[:3, 1], affine[:3, 2] = plane[1] * first.spacing[0], plane[0] * first.spacing[1]
    affine[:3, 3] = positions[order[0]]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # LPS to RAS
    check_affine(affine, right_angles=straight)
    return order.tolist(), affine


def _check_gaps(gaps: np.ndarray, sideways: np.ndarray, straight: bool) -> None:
    usual = float(np.median(gaps))
    if gaps.min() < 0.01:
        raise Refused(f"{int((gaps < 0.01).sum())} slices lie where another one lies: more than one series or phase")
    if gaps.max() > usual * (1 + GAP_TOLERANCE) or gaps.min() < usual * (1 - GAP_TOLERANCE):
        raise Refused(f"slice gaps from {gaps.min():.2f} to {gaps.max():.2f} mm, usually {usual:.2f}: "
                      "slices are missing or unevenly spaced")
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(sideways, axis=1), gaps)).max())
    if straight and tilt > TILT_TOLERANCE_DEGREES:
        raise Refused(f"gantry tilt of {tilt:.1f} degrees; gantry_tilt: straighten would move its slices into place")
    wander = float(np.linalg.norm(sideways - sideways.mean(axis=0), axis=1).max())
    if wander > WANDER_TOLERANCE_MM:
        raise Refused(f"slices lie up to {wander:.2f} mm beside a straight line: they were not taken in one go")


def check_affine(affine: np.ndarray, right_angles: bool = True) -> None:
    """Refuse a place that cannot be true."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise Refused("its affine is not finite")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = SPACING_RANGE_MM
    if not ((spacing >= low) & (spacing <= high)).all():
        raise Refused(f"spacing {np.round(spacing, 4).tolist()} mm, expected {low} to {high} mm")
    axes = affine[:3, :3] / spacing
    if right_angles and np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR_TOLERANCE:
        raise Refused("its axes are not at right angles (a tilted gantry, or a damaged affine)")


def shear_degrees(volume: Volume) -> float:
    """Degrees by which the first axis (the slices) leans from the normal of the other two."""
    step, rows, columns = volume.affine[:3, :3].T
    normal = np.cross(rows, columns) / np.linalg.norm(np.cross(rows, columns))
    along = abs(float(step @ normal))
    return float(np.degrees(np.arctan2(np.linalg.norm(step - (step @ normal) * normal), along)))


def straighten(volume: Volume, max_voxels: int) -> Volume:
    """A stack of slices that lean (a tilted gantry) as one with three axes at right angles.

    Each slice is shifted within its own plane, by linear interpolation between neighbours along a row or column, until
    all lie above each other; nothing is mixed across slices. The stack grows by what they lean, and what no slice saw
    is unknown.

    Args:
        volume: first axis the slices, the other two at a right angle to each other.

    Raises:
        Refused: it would have more than `max_voxels`.
    """
    step, *plane = volume.affine[:3, :3].T
    normal = np.cross(*plane) / np.linalg.norm(np.cross(*plane))
    count = volume.values.shape[0]
    shifts = [np.arange(count) * float(step @ axis) / float(axis @ axis) for axis in plane]  # pixels, rows and columns
    starts = [int(np.floor(shift.min())) for shift in shifts]
    shape = [count, *(n + int(np.ceil(shift.max())) - start
                      for n, shift, start in zip(volume.values.shape[1:], shifts, starts, strict=True))]
    if np.prod(shape, dtype=np.float64) > max_voxels:
        raise Refused(f"straightened it would have {' x '.join(map(str, shape))} voxels, expected at most {max_voxels} "
                      "(max_voxels)")
    values, known = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for k in range(count):
        moved = volume.values[k].astype(np.float32)
        whole = np.ones(moved.shape, bool) if volume.known is None else volume.known[k]
        for axis in range(2):
            moved, whole = _shifted(moved, whole, float(shifts[axis][k]) - starts[axis], shape[1 + axis], axis)
        values[k], known[k] = moved, whole
    affine = volume.affine.copy()
    affine[:3, 0] = (step @ normal) * normal
    affine[:3, 3] += starts[0] * plane[0] + starts[1] * plane[1]
    return Volume(values, affine, known)


def _shifted(values: np.ndarray, known: np.ndarray, by: float, length: int,
             axis: int) -> tuple[np.ndarray, np.ndarray]:
    """One slice moved `by` pixels (at least 0) along an axis that becomes `length` long, and where it is known: where
    all pixels that count were."""
    whole = int(np.floor(by + 1e-6))
    part = max(by - whole, 0.0)
    edges = [(0, 0), (0, 0)]
    edges[axis] = (whole, max(0, length - whole - values.shape[axis]))
    values, known = np.pad(values, edges), np.pad(known, edges)
    if part > 1e-6:
        values = (1 - part) * values + part * np.roll(values, 1, axis)
        known = known & np.roll(known, 1, axis)
        np.moveaxis(known, axis, 0)[0] = False
    cut = (slice(None),) * axis + (slice(0, length),)
    return values[cut], known[cut]


def orient(volume: Volume) -> Volume:
    """Permute and flip axes so that they run as near to ORIENTATION as they can; nothing is interpolated."""
    order, turned = _turn(volume)
    turn = np.zeros((4, 4))                                                 # new indices to old ones
    turn[3, 3] = 1
    flips = []
    for new, (old, backwards) in enumerate(zip(order, turned, strict=True)):
        flips.append(slice(None, None, -1 if backwards else 1))
        turn[old, new] = -1 if backwards else 1
        turn[old, 3] = volume.values.shape[old] - 1 if backwards else 0
    known = None if volume.known is None else volume.known.transpose(order)[tuple(flips)]
    return Volume(volume.values.transpose(order)[tuple(flips)], volume.affine @ turn, known)


def _turn(volume: Volume) -> tuple[tuple[int, ...], list[bool]]:
    """For every axis of ORIENTATION the volume's own that runs nearest to it, and whether that runs backwards."""
    cosines = _DIRECTIONS @ (volume.affine[:3, :3] / volume.spacing)       # wanted axis, own axis
    order = max(permutations(range(3)), key=lambda axes: sum(abs(cosines[i, axis]) for i, axis in enumerate(axes)))
    return order, [bool(cosines[new, old] < 0) for new, old in enumerate(order)]


def placed(volume: Volume, grid: Grid, backwards: bool) -> Placement:
    """Where a grid in a volume that was oriented lies in the volume as it was before.

    Args:
        backwards: call the volume's axes in reverse: column, row, slice, as programs write a series into one file.
    """
    order, turned = _turn(volume)
    last = [volume.values.shape[axis] - 1 for axis in order]
    starts = [n - float(centres[0]) if back else float(centres[0])
              for n, centres, back in zip(last, grid.centres, turned, strict=True)]
    steps = [-step if back else step for step, back in zip(grid.steps, turned, strict=True)]
    shape, affine = volume.values.shape, volume.affine
    if backwards:
        shape, affine, order = shape[::-1], affine[:, [2, 1, 0, 3]], tuple(2 - axis for axis in order)
    return Placement(shape=shape, axes=order, starts=tuple(starts), steps=tuple(steps),
                     affine=tuple(affine.ravel().tolist()))


def obliqueness(volume: Volume) -> float:
    """Degrees between an oriented volume's axes and the patient's."""
    cosines = np.diag(_DIRECTIONS @ (volume.affine[:3, :3] / volume.spacing))
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


@dataclass(frozen=True)
class Grid:
    """Where the stored voxels lie in an oriented volume: per axis, indices of that volume."""

    centres: tuple[np.ndarray, np.ndarray, np.ndarray]
    """D, H and W positions."""
    steps: tuple[float, float, float]
    """Distance of neighbours."""


def whole_grid(volume: Volume, spacing: tuple[float, ...]) -> Grid:
    """The whole volume at `spacing`, around its middle."""
    steps = _steps(volume, spacing)
    counts = [max(1, round(n / step)) for n, step in zip(volume.values.shape, steps, strict=True)]
    return _grid([(n - 1) / 2 for n in volume.values.shape], counts, steps)


def cube_grid(volume: Volume, spacing: tuple[float, ...], shape: tuple[int, ...], centre: np.ndarray | None) -> Grid:
    """`shape` voxels around a world point, or around the volume's middle."""
    middle = np.array([(n - 1) / 2 for n in volume.values.shape])
    if centre is not None:
        middle = (np.linalg.inv(volume.affine) @ [*centre, 1.0])[:3]
    return _grid(middle.tolist(), list(shape), _steps(volume, spacing))


def box_grid(volume: Volume, spacing: tuple[float, ...], ends: list[tuple[int, int]]) -> Grid:
    """A part of the volume at `spacing`: per axis the first voxel and the one after the last."""
    steps = _steps(volume, spacing)
    counts = [max(1, round((high - low) / step)) for (low, high), step in zip(ends, steps, strict=True)]
    return _grid([(low + high - 1) / 2 for low, high in ends], counts, steps)


def _steps(volume: Volume, spacing: tuple[float, ...]) -> list[float]:
    return [float(wanted / own) for wanted, own in zip(spacing, volume.spacing, strict=True)]


def _grid(middle: list[float], counts: list[int], steps: list[float]) -> Grid:
    z, y, x = (m + (np.arange(n) - (n - 1) / 2) * step for m, n, step in zip(middle, counts, steps, strict=True))
    return Grid((z, y, x), (steps[0], steps[1], steps[2]))


def centre_of_mask(mask: Volume) -> np.ndarray:
    """World point of the centre of mass of everything that is neither 0 nor unknown."""
    inside = np.argwhere((mask.values != 0) & (mask.values != UNKNOWN_CLASS))
    if not len(inside):
        raise Refused("its mask is empty, so that there is nothing to centre the cube at")
    return np.asarray((mask.affine @ [*inside.mean(axis=0), 1.0])[:3])


def sample_hu(volume: Volume, grid: Grid, scale: float, offset: float) -> np.ndarray:
    """D H W int16: HU at the grid's places, antialiased; UNKNOWN_HU outside the volume and where most is unknown."""
    weights, inside = [], []
    for n, centres, step in zip(volume.values.shape, grid.centres, grid.steps, strict=True):
        weights.append(resample.linear_weights(n, np.clip(centres, -0.5, n - 0.5), step))
        inside.append(resample.nearest_index(n, centres)[1])
    seen = np.asarray(inside[0][:, None, None] & inside[1][:, None] & inside[2])
    hu = np.empty(seen.shape, np.int16)
    for slab in resample.slabs(tuple(weights)):
        hu[slab.outputs] = _hu(volume, slab, seen[slab.outputs], scale, offset)
    return hu


def _hu(volume: Volume, slab: resample.Slab, seen: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """A slab of `sample_hu`. seen: where the volume reaches."""
    values = volume.values[slab.inputs]
    if volume.known is None:
        mixed = resample.apply(values, slab.weights, slab.order)
    else:
        known = volume.known[slab.inputs]
        share = resample.apply(known, slab.weights, slab.order)
        mixed = resample.apply(np.where(known, values, 0), slab.weights, slab.order) / np.maximum(share, 1e-6)
        seen = seen & (share >= 0.5 - 1e-6)
    scaled = mixed * scale
    scaled += offset
    whole = nearest_integer(scaled)
    hu: np.ndarray = np.clip(whole, UNKNOWN_HU + 1, 32767, out=whole).astype(np.int16)
    return hu if seen.all() else np.where(seen, hu, np.int16(UNKNOWN_HU))


def sample_mask(mask: Volume, volume: Volume, grid: Grid) -> np.ndarray:
    """D H W uint8: the nearest class of an oriented mask at the grid's places; UNKNOWN_CLASS outside the mask.

    The mask may have another spacing, extent and orientation than the volume, but no rotation against it.
    """
    across = np.linalg.inv(mask.affine) @ volume.affine                     # volume's indices to the mask's
    sideways = np.abs(across[:3, :3] - np.diag(np.diag(across[:3, :3]))) @ np.array(volume.values.shape)
    if sideways.max() > 0.5:
        raise Refused(f"its mask is turned against the image, by {sideways.max():.1f} voxels at the far end")
    _refuse_elsewhere(across, mask.values.shape, volume.values.shape)
    index, inside = [], []
    for axis, (n, centres) in enumerate(zip(mask.values.shape, grid.centres, strict=True)):
        nearest, within = resample.nearest_index(n, across[axis, axis] * centres + across[axis, 3])
        index.append(nearest)
        inside.append(within)
    seen = inside[0][:, None, None] & inside[1][:, None] & inside[2]
    return np.where(seen, mask.values[np.ix_(*index)], UNKNOWN_CLASS).astype(np.uint8)


def _refuse_elsewhere(across: np.ndarray, of_mask: tuple[int, ...], of_image: tuple[int, ...]) -> None:
    """Programs that save a mask without the image's affine place it at the origin, where it would mean nothing, or
    something else.

    Args:
        across: 4 4, indices of the image to those of the mask.
    """
    last = np.array(of_image) - 1.0
    first, end = across[:3, 3], np.diag(across)[:3] * last + across[:3, 3]
    away = float(np.abs([first, end - (np.array(of_mask) - 1.0)]).max())
    if of_mask == of_image and away > MASK_TOLERANCE:
        raise Refused(f"its mask has as many voxels as the image but lies up to {away:.1f} voxels away: one of the two "
                      "affines is wrong. Remedy: save the mask with the image's affine")
    if (end < -0.5).any() or (first > np.array(of_mask) - 0.5).any():
        raise Refused("its mask lies wholly beside the image. Remedy: save the mask with its affine in millimetres")


def implausible_hu(samples: list[np.ndarray]) -> str | None:
    """A sentence when volumes that claim to be HU hold no air, or nothing denser than air."""
    known = [hu[hu != UNKNOWN_HU] for hu in samples]
    known = [hu for hu in known if hu.size]
    lowest = [float(np.percentile(hu, 0.1)) for hu in known]
    airless = sum(low > NO_AIR_ABOVE for low in lowest)
    if 2 * airless > len(known):
        return (f"units: found {airless} of {len(known)} volumes whose lowest numbers are around "
                f"{np.median(lowest):.0f}, expected HU, in which air is -1000. They look like HU + 1000. "
                "Remedy: set offset: -1000 in the data run, or check_units: false if they really hold no air.")
    low, high = IMPOSSIBLE_HU
    thin = sum(bool(((hu > low) & (hu < high)).mean() > 0.05 or np.percentile(hu, 99.9) < NO_TISSUE_BELOW)
               for hu in known)
    if 2 * thin > len(known):
        return (f"units: found {thin} of {len(known)} volumes with much that is lighter than air or with nothing as "
                "dense as tissue, expected HU, in which air is -1000 and tissue around 0. They look like HU - 1000. "
                "Remedy: check offset and scale in the data run, or set check_units: false.")
    return None
