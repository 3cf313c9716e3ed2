"""Parametric vessels for the embedded sample: a body with ribs that wind around it like a thread, and fittings.

Whether the thread is right-handed or left-handed is what is to be found. Mirroring an object turns one into the other
and changes nothing else, and everything that is drawn at random has a distribution that is its own mirror image. So
extents, moments, distances between points, areas and face counts are distributed alike in both classes: none of them
can say anything, and only the course of the ribs over the surface does.

Legend: V vertices, T triangles; a mesh is a pair of arrays V 3 and T 3; z points up; lengths are in body heights.
"""

from __future__ import annotations

import math

import numpy as np

Mesh = tuple[np.ndarray, np.ndarray]

RIB_WIDTH = (0.32, 0.45)
"""Distance between neighbouring ribs, from and to."""
RIB_DEPTH = (0.035, 0.06)
"""Height of ribs over the mean surface, from and to: how hard the task is."""
RIB_SLOPE = (0.7, 1.4)
"""Rise over run of a rib, from and to."""


def vessel(rng: np.random.Generator, right_handed: bool) -> tuple[Mesh, int]:
    """A vessel of about unit height whose axis is the z axis, and how many ribs it has."""
    profile = _profile(rng)
    body, num_ribs = _ribbed_body(profile, right_handed, rng)
    parts = [body]
    for _ in range(int(rng.integers(0, 3))):
        parts.append(_about_z(_handle(profile, rng), rng.uniform(0, 2 * math.pi)))
    parts += _fittings(profile, rng)
    vertices, triangles = join(parts)
    return (vertices * [rng.uniform(0.8, 1.25), 1.0, 1.0], triangles), num_ribs


def join(parts: list[Mesh]) -> Mesh:
    """One mesh of several; where they overlap they simply do, as in most meshes that people share."""
    starts = np.cumsum([0] + [len(vertices) for vertices, _ in parts])
    return (np.concatenate([vertices for vertices, _ in parts]),
            np.concatenate([triangles + start for (_, triangles), start in zip(parts, starts, strict=False)]))


def lathe(profile: np.ndarray, sides: int) -> Mesh:
    """Turn a profile (rows of radius, height) about z; it is closed where it begins and ends at radius 0."""
    angle = 2 * math.pi * np.arange(sides) / sides
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    vertices = np.concatenate([np.column_stack([radius * ring, np.full(sides, height)]) for radius, height in profile])
    return vertices, _strips(len(profile), sides)


def _profile(rng: np.random.Generator) -> np.ndarray:
    """Rows of radius and height: a smooth belly between foot and rim."""
    height = np.linspace(0, 1, 7)
    radius = rng.uniform(0.24, 0.42) * (1 + rng.uniform(-0.25, 0.35) * np.sin(math.pi * height)
                                        + rng.uniform(-0.3, 0.3) * (height - 0.5)
                                        + rng.uniform(-0.08, 0.08) * np.sin(3 * math.pi * height))
    return np.column_stack([radius, height])


def _ribbed_body(profile: np.ndarray, right_handed: bool, rng: np.random.Generator) -> tuple[Mesh, int]:
    rows, sides = int(rng.integers(26, 34)), int(rng.integers(40, 52))
    height = np.linspace(0, 1, rows)
    angle = 2 * math.pi * np.arange(sides) / sides
    radius = np.interp(height, profile[:, 1], profile[:, 0])[:, None]
    slope, width = rng.uniform(*RIB_SLOPE), rng.uniform(*RIB_WIDTH)
    num_ribs = max(2, round(2 * math.pi * radius.mean() / width * slope / math.hypot(1, slope)))
    per_height = num_ribs / radius.mean() / slope
    # Along a right-handed thread the angle grows with the height
    phase = num_ribs * angle + (-1 if right_handed else 1) * per_height * height[:, None]
    radius = radius + rng.uniform(*RIB_DEPTH) * np.cos(phase + rng.uniform(0, 2 * math.pi))
    level = np.broadcast_to(height[:, None], radius.shape)
    side = np.stack([radius * np.cos(angle), radius * np.sin(angle), level], axis=-1)
    floor, lid = np.zeros((sides, 3)), np.tile([0.0, 0.0, 1.0], (sides, 1))
    return (np.concatenate([floor, side.reshape(-1, 3), lid]), _strips(rows + 2, sides)), num_ribs


def _handle(profile: np.ndarray, rng: np.random.Generator) -> Mesh:
    """A bar of square section, bent into half a ring, that stands out along x."""
    steps = int(rng.integers(7, 15))
    length, reach = rng.uniform(0.45, 0.75), rng.uniform(0.2, 0.36)
    bar, side = rng.uniform(0.07, 0.12), rng.uniform(0.05, 0.1)
    middle = rng.uniform(0.08, 0.92 - length) + length / 2
    angle = np.linspace(-math.pi / 2, math.pi / 2, steps)
    roundness = rng.uniform(0.45, 1.0)  # 1: half an ellipse; less: squarer
    out, up = np.cos(angle).clip(0) ** roundness, np.abs(np.sin(angle)) ** roundness * np.sign(angle)
    rails = []
    for stand, half, across in ((reach, length / 2, -side), (reach, length / 2, side),
                                (reach - bar, length / 2 - bar, side), (reach - bar, length / 2 - bar, -side)):
        z = middle + half * up
        # Its ends sink into the body; in between it leaves the wall behind
        wall = np.interp(z, profile[:, 1], profile[:, 0]) - 0.04
        rails.append(np.column_stack([wall.mean() + stand * out, np.full(steps, across), z]))
    section = np.stack(rails, axis=1)  # steps x 4 corners
    return section.reshape(-1, 3), _strips(steps, 4)


def _fittings(profile: np.ndarray, rng: np.random.Generator) -> list[Mesh]:
    """A foot, a knob and a spout, each there or not."""
    parts = []
    if rng.random() < 0.5:
        radius, height = profile[0, 0] * rng.uniform(1.05, 1.4), rng.uniform(0.04, 0.12)
        parts.append(lathe(np.array([[0, -height], [radius, -height], [radius, 0.02], [0, 0.02]]), 16))
    if rng.random() < 0.5:
        radius, height = rng.uniform(0.05, 0.14), rng.uniform(0.06, 0.2)
        parts.append(lathe(np.array([[0, 1], [radius, 1], [radius, 1 + height], [0, 1 + height]]), 8))
    if rng.random() < 0.5:
        length, radius, tilt = rng.uniform(0.35, 0.6), rng.uniform(0.05, 0.1), rng.uniform(0.6, 1.2)
        vertices, triangles = lathe(np.array([[0, 0], [1.4 * radius, 0], [radius, length], [0, length]]), 8)
        x, y, z = vertices.T
        tilted = np.column_stack([math.cos(tilt) * x + math.sin(tilt) * z + 0.7 * profile[3, 0], y,
                                  math.cos(tilt) * z - math.sin(tilt) * x + rng.uniform(0.4, 0.7)])
        parts.append(_about_z((tilted, triangles), rng.uniform(0, 2 * math.pi)))
    return parts


def _about_z(mesh: Mesh, angle: float) -> Mesh:
    cos, sin = math.cos(angle), math.sin(angle)
    return mesh[0] @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]), mesh[1]


def _strips(rows: int, columns: int) -> np.ndarray:
    """Triangles between neighbouring rows of a grid of vertices, whose last column joins the first."""
    here = np.arange(rows - 1)[:, None] * columns + np.arange(columns)
    beside = np.arange(rows - 1)[:, None] * columns + (np.arange(columns) + 1) % columns
    return np.stack([here, beside, beside + columns, here, beside + columns, here + columns], -1).reshape(-1, 3)
