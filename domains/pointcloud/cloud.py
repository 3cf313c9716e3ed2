"""Points and meshes as a file holds them, with what it says of each point besides its place.

Legend: M points, V vertices, T triangles, c numbers of an attribute.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from domains.sample import Refused

CHANNELS = {"normals": ("nx", "ny", "nz"), "intensity": ("intensity",), "colour": ("red", "green", "blue")}
"""Attributes, and the channels that each becomes, in stored order."""

WORDS = {"nx": "nx", "normal_x": "nx", "ny": "ny", "normal_y": "ny", "nz": "nz", "normal_z": "nz",
         "red": "red", "r": "red", "diffuse_red": "red", "green": "green", "g": "green", "diffuse_green": "green",
         "blue": "blue", "b": "blue", "diffuse_blue": "blue", "intensity": "intensity", "i": "intensity",
         "scalar_intensity": "intensity", "reflectance": "intensity", "x": "x", "y": "y", "z": "z",
         "class": "class", "label": "class", "classification": "class", "scalar_label": "class",
         "scalar_classification": "class"}
"""What files call a channel, in small letters, and what we do."""


@dataclass(frozen=True)
class Cloud:
    """Points of a file, or of a part of it."""

    xyz: np.ndarray
    """M 3 float64, in the file's unit."""
    more: dict[str, np.ndarray] = field(default_factory=dict)
    """M c per attribute that the file has, in the file's own numbers and type; under "class", M 1 classes of points."""

    @property
    def num(self) -> int:
        """Points."""
        return len(self.xyz)

    def take(self, index: np.ndarray) -> Cloud:
        """The points at these indices, or where this mask is true; these points themselves where that is everywhere."""
        if index.dtype == bool and index.all():
            return self
        return Cloud(self.xyz[index], {name: values[index] for name, values in self.more.items()})


@dataclass(frozen=True)
class Mesh:
    """Triangles of a file."""

    vertices: np.ndarray
    """V 3 float64, in the file's unit."""
    triangles: np.ndarray
    """T 3 int64 into the vertices."""
    more: dict[str, np.ndarray] = field(default_factory=dict)
    """V c per attribute of the vertices, without normals: those of a surface come from its triangles."""


def span(xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """M 3 -> the lowest and the highest of each axis. Axis by axis: numpy takes 20 times as long over rows of three."""
    return np.array([axis.min() for axis in xyz.T]), np.array([axis.max() for axis in xyz.T])


def join(clouds: list[Cloud]) -> Cloud:
    """Portions of one file, which all have the same attributes, one after the other."""
    if not clouds:
        return Cloud(np.zeros((0, 3)))
    if len(clouds) == 1:
        return clouds[0]
    return Cloud(np.concatenate([cloud.xyz for cloud in clouds]),
                 {name: np.concatenate([cloud.more[name] for cloud in clouds]) for name in clouds[0].more})


def attributes(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Named columns of a file (M each) to attributes; one that lacks any of its channels is left out."""
    known = {WORDS.get(name.lower(), ""): values for name, values in reversed(columns.items())}
    found = {name: np.stack([known[channel] for channel in channels], axis=1)
             for name, channels in CHANNELS.items() if all(channel in known for channel in channels)}
    return {**found, "class": known["class"][:, None]} if "class" in known else found


def largest(cloud: Cloud) -> dict[str, float]:
    """The largest finite number of each attribute, which tells its scale; 0 where there is none."""
    return {name: float(np.max(values, initial=0, where=np.isfinite(values))) for name, values in cloud.more.items()}


def stored(cloud: Cloud, features: tuple[str, ...], top: dict[str, float], full_intensity: float) -> np.ndarray:
    """M c float64 channels of the wanted attributes, NaN where the file has none.

    Normals become unit vectors. Intensity and colour become shares of full scale. An attribute that is 0 everywhere was
    not recorded: LAS has a place for intensity and colour in every point, filled or not.

    Args:
        top: the largest number of each attribute in the whole file, of which `cloud` may be a part.
        full_intensity: what a scanner that saturates writes, where numbers are not shares already.
    """
    parts = []
    for name in (name for name in CHANNELS if name in features):
        values = cloud.more.get(name)
        if values is None or (name != "normals" and top[name] <= 0):
            parts.append(np.full((len(cloud.xyz), len(CHANNELS[name])), np.nan))
        elif name == "normals":
            parts.append(_unit(values.astype(np.float64)))
        else:
            parts.append(_share(values, _full_scale(name, values.dtype, top[name], full_intensity)))
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(cloud.xyz), 0))


def _full_scale(name: str, dtype: np.dtype, top: float, full_intensity: float) -> float:
    """Bytes run to 255. Other colours are of 8 or of 16 bits whatever their type, as their largest number tells; floats
    up to 1 are shares already."""
    if dtype == np.uint8:
        return 255.0
    if dtype.kind == "f" and top <= 1 + 1e-6:  # mixed over a triangle, 1 may come out a rounding above
        return 1.0
    if name == "intensity":
        return full_intensity
    return 255.0 if top <= 255 else 65535.0


def _share(values: np.ndarray, full: float) -> np.ndarray:
    shares = values.astype(np.float64) / full
    return np.where(np.isfinite(shares), shares.clip(0, 1), np.nan)


def _unit(normals: np.ndarray) -> np.ndarray:
    """Unit vectors; NaN where a file writes zeros or worse for a normal that it does not know."""
    with np.errstate(invalid="ignore", over="ignore"):
        length = np.linalg.norm(normals, axis=1, keepdims=True)
    known = np.isfinite(length) & (length > 1e-12)
    return np.where(known, normals / np.where(known, length, 1), np.nan)


def classes_of(cloud: Cloud) -> np.ndarray | None:
    """M uint8 classes of the points, None where the cloud carries none. Raises Refused."""
    if "class" not in cloud.more:
        return None
    numbers = cloud.more["class"][:, 0]
    with np.errstate(invalid="ignore"):
        whole = np.isfinite(numbers) & (numbers >= 0) & (numbers <= 255) & (numbers == np.floor(numbers))
    if not whole.all():
        raise Refused(f"classes of points: found {int(np.count_nonzero(~whole))} numbers that are none, expected whole "
                      "ones from 0 to 255")
    return numbers.astype(np.uint8)
