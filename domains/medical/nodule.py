"""A lung-nodule phantom: Hounsfield units as a function of the place in the patient. numpy only.

Legend: ... any shape of points; places are millimetres towards right, anterior, superior (RAS) from the middle of the
volume.

The task in it: is the nodule solid, or a small solid core in ground glass? Both are drawn with the same mass, so that
the mean tells nothing, and neither is the size alone a clue, since mass varies more than the two kinds differ. Vessels
cross the volume and its nodule, and a chest wall fills a side of some: what continues where can be predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TISSUE_HU = 40.0
"""Vessels, chest wall and solid nodules."""
SOLID_RADIUS_MM = (6.0, 10.0)
"""Radius of a solid nodule. Below 5 mm a 2 mm voxel shows neither kind."""
WANDER_MM = 9.0
"""How far a nodule may lie from the middle along each axis: most of a patch of 12 mm, so that it must be found."""
CORE_SHARE = (0.45, 0.75)
"""Core radius of a part-solid nodule, over that of the solid nodule of equal mass. At 1 the kinds are the same; with
0.6 to 0.88 a small transformer is still near chance after 200 steps on 180 volumes; with these it is at 0.6 after 120
and beyond 0.95 after 300, and at 0.7 after 120 when it was pretrained."""
GLASS_HU = (-560.0, -320.0)
"""Ground glass: denser lung through which vessels still show."""
LOBULATION = 0.18
"""Relative depth of the bumps on a nodule's surface: enough that the kind cannot be read off one profile."""


@dataclass(frozen=True)
class Scanner:
    """How one site scans."""

    noise_hu: float
    """Standard deviation in a 1 mm x 1 mm x 1 mm voxel; larger voxels average it."""
    lung_hu: float
    """Mean of aerated lung, which depends on how deeply patients are told to breathe in."""
    blur_mm: float
    """Width of an edge in the plane."""


@dataclass(frozen=True)
class Nodule:
    """One lesion and what surrounds it, in the patient."""

    centre: np.ndarray
    core: float
    """Radius of the solid part, mm."""
    rim: float
    """Radius of the ground glass around it; equal to `core` where there is none."""
    glass_hu: float
    bumps: np.ndarray
    """4 4: direction and phase of each bump wave."""
    vessels: np.ndarray
    """V 7: a point, a direction, a radius."""
    wall: np.ndarray | None
    """Inward normal and distance of the chest wall."""


def draw_nodule(part_solid: bool, rng: np.random.Generator) -> Nodule:
    """A lesion of one kind, its mass drawn before its kind matters."""
    solid, glass = rng.uniform(*SOLID_RADIUS_MM), float(rng.uniform(*GLASS_HU))
    core = solid * float(rng.uniform(*CORE_SHARE)) if part_solid else solid
    # Equal mass: solid^3 * contrast = core^3 * contrast + (rim^3 - core^3) * (contrast of glass), over lung at -850.
    share = (glass + 850.0) / (TISSUE_HU + 850.0)
    rim = float(np.cbrt(core ** 3 + (solid ** 3 - core ** 3) / share))
    count = int(rng.integers(4, 8))
    vessels = np.concatenate([rng.uniform(-24, 24, (count, 3)), _unit(rng.normal(size=(count, 3))),
                              rng.uniform(1.0, 2.6, (count, 1))], axis=1)
    vessels[0, :3] = rng.uniform(-4, 4, 3)  # one feeds the nodule
    wall = np.append(_unit(rng.normal(size=3)), rng.uniform(12, 22)) if rng.random() < 0.4 else None
    bumps = np.concatenate([_unit(rng.normal(size=(4, 3))), rng.uniform(0, 6.3, (4, 1))], axis=1)
    return Nodule(rng.uniform(-WANDER_MM, WANDER_MM, 3), core, rim, glass, bumps, vessels, wall)


def scan(nodule: Nodule, scanner: Scanner, places: np.ndarray, voxel_mm: tuple[float, float, float],
         rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """HU (int16) and the nodule's mask (uint8) at places ... 3, noise included."""
    blur = max(scanner.blur_mm, float(np.mean(voxel_mm)) / 2)
    places = places.astype(np.float32)  # half the time of float64, and 0.1 HU is plenty
    hu = scanner.lung_hu + 25 * _waves(places, rng)
    offset = places - nodule.centre.astype(np.float32)
    distance = np.linalg.norm(offset, axis=-1) / (1 + LOBULATION * _bumpiness(offset, nodule.bumps))
    if nodule.rim > nodule.core:
        hu = _blend(hu, nodule.glass_hu + 40 * _waves(places, rng), (nodule.rim - distance) / (2 * blur))
    hu = _blend(hu, TISSUE_HU, (nodule.core - distance) / blur)
    for vessel in nodule.vessels:
        start, direction = vessel[:3].astype(np.float32), vessel[3:6].astype(np.float32)
        from_start = places - start
        across = np.sqrt(np.maximum((from_start ** 2).sum(axis=-1) - (from_start @ direction) ** 2, 0))
        hu = np.maximum(hu, _blend(np.float32(-1000), TISSUE_HU, (np.float32(vessel[6]) - across) / blur))
    if nodule.wall is not None:
        inward, depth = nodule.wall[:3].astype(np.float32), float(nodule.wall[3])
        hu = _blend(hu, TISSUE_HU - 60, (places @ inward - depth) / blur)
    noise = scanner.noise_hu / np.sqrt(np.prod(voxel_mm))
    hu = hu + noise * rng.standard_normal(hu.shape, dtype=np.float32)
    return np.round(np.clip(hu, -1024, 3071)).astype(np.int16), (distance <= nodule.rim).astype(np.uint8)


def _blend(below: np.ndarray | np.float32, above: float | np.ndarray, edge: np.ndarray) -> np.ndarray:
    """`above` inside of an edge, `below` outside, and a smooth step of about one unit between."""
    step = np.clip(edge + np.float32(0.5), 0, 1)
    return below + (above - below) * (step * step * (3 - 2 * step))


def _waves(places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smooth random field of unit size: how perfusion and aeration vary within a lung."""
    waves = (_unit(rng.normal(size=(4, 3))) * rng.uniform(0.1, 0.5, (4, 1))).astype(np.float32)
    phases = rng.uniform(0, 6.3, 4).astype(np.float32)
    return np.sin(places @ waves.T + phases).sum(axis=-1) / np.float32(np.sqrt(2))


def _bumpiness(offset: np.ndarray, bumps: np.ndarray) -> np.ndarray:
    unit = offset / np.maximum(np.linalg.norm(offset, axis=-1, keepdims=True), np.float32(1e-6))
    return np.sin(unit @ (4 * bumps[:, :3].T).astype(np.float32) + bumps[:, 3].astype(np.float32)).mean(axis=-1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
