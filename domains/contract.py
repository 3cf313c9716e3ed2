"""What the data was when the weights were made. Saved with prepared data and with every checkpoint, and enforced
whenever the two meet: a silent mismatch of preprocessing is the commonest way to lose a model's accuracy.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from domains.sample import Task

FORMAT_VERSION = 1
SPACING_TOLERANCE = 0.1
"""Relative difference of voxel spacing or ground resolution that is let pass: below what resampling itself blurs."""


class ContractMismatch(ValueError):
    """Data and weights do not belong together. The text says found, expected and remedy for each difference."""


@dataclass(frozen=True)
class Channel:
    """One channel of the input, with the numbers that normalise it."""

    name: str
    """B2, NIR, intensity, HU, x ..."""
    unit: str
    """HU, reflectance x 10000, grey 0-255, m ..."""
    wavelength_nm: float | None = None
    """Centre wavelength of a spectral band in nanometres."""
    low: float = 0.0
    """Values are clipped to [low, high] first, in the channel's unit."""
    high: float = 1.0
    """Upper end of the clip range."""
    mean: float = 0.0
    """Mean after clipping, over the known values of the training split."""
    std: float = 1.0
    """Standard deviation after clipping, likewise."""


@dataclass(frozen=True)
class Contract:
    """Everything a loader must agree on before numbers may meet weights."""

    domain: Literal["medical", "satellite", "pointcloud", "image"]
    """Which domain's dataset module reads the samples; image stands for the photographs that published weights have
    seen, which no domain here reads."""
    kind: Literal["xray", "ct", "multispectral", "points", "image"]
    """Which of the domain's kinds of sample."""
    channels: tuple[Channel, ...]
    """In stored order."""
    dtype: str
    """numpy dtype of the stored values."""
    size: tuple[int, ...]
    """What a model gets: (H, W), (D, H, W) or (number of points,)."""
    unknown: float | None = None
    """The stored value that means "no data here"; None when every value is real. NaN for float shards."""
    spacing: tuple[float, ...] | None = None
    """mm per voxel (z, y, x) or metres per pixel (y, x); None where the files do not say (X-ray films, unreferenced
    tiles) or where scale is taken out (points)."""
    orientation: str | None = None
    """Axis codes of stored volumes, first axis first: "SPL" means index 0 runs towards superior, and so on."""
    normalisation: Literal["standardise", "unit_sphere"] = "standardise"
    """standardise: (clip(value) - mean) / std per channel. unit_sphere: centroid to 0, farthest point to 1."""
    tasks: dict[str, Task] = field(default_factory=dict)
    """The labels that this data carries, by name."""
    statistics_of: str = ""
    """sha256 over the keys of the samples that mean and std were computed from: the training split alone."""
    format_version: int = FORMAT_VERSION

    @property
    def names(self) -> tuple[str, ...]:
        """Channel names in stored order."""
        return tuple(channel.name for channel in self.channels)


def save(contract: Contract, path: Path) -> None:
    """Write as JSON. The caller gives a path inside a folder that is published atomically."""
    path.write_text(json.dumps(dataclasses.asdict(contract), indent=2, allow_nan=True) + "\n")


def load(path: Path) -> Contract:
    """Read a contract. Raises FileNotFoundError or ValueError with the remedy."""
    if not path.is_file():
        raise FileNotFoundError(f"no contract at {path}. Expected contract.json beside prepared data or weights; "
                                "run `lacuna ingest` to make it.")
    return from_dict(json.loads(path.read_text()))


def from_dict(raw: dict[str, Any]) -> Contract:
    """The inverse of dataclasses.asdict, with the version checked first. Raises ValueError."""
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"contract format: found version {version}, expected {FORMAT_VERSION}. "
                         "Run `lacuna ingest` again with this release, or use the release that wrote it.")
    try:
        return Contract(**{
            **raw,
            "channels": tuple(Channel(**channel) for channel in raw["channels"]),
            "size": tuple(raw["size"]),
            "spacing": None if raw["spacing"] is None else tuple(raw["spacing"]),
            "tasks": {name: _task(task) for name, task in raw["tasks"].items()},
        })
    except (TypeError, KeyError, AttributeError) as error:  # keys that are missing or strange, values of another kind
        raise ValueError(f"contract: found something else ({type(error).__name__}), expected what `lacuna ingest` "
                         "writes. It was changed or is damaged. Remedy: copy or make it again.") from error


def _task(raw: dict[str, Any]) -> Task:
    lists: dict[str, Any] = {key: tuple(raw[key]) for key in ("columns", "classes", "sources", "values") if key in raw}
    return Task(**{**raw, **lists})


def map_channels(found: Contract, expected: Contract) -> list[int]:
    """For each channel of `found`, its position among the channels of `expected`, by name.

    Raises ContractMismatch when a name is unknown: bands are never matched by position.
    """
    position = {name: i for i, name in enumerate(expected.names)}
    strangers = [name for name in found.names if name not in position]
    if strangers:
        raise ContractMismatch(
            f"channels: found {', '.join(strangers)}, expected names among {', '.join(expected.names)}. "
            "Remedy: rename the bands in the data run to what they are, or start from weights that know them.")
    return [position[name] for name in found.names]


def adopt(found: Contract, expected: Contract) -> Contract:
    """The data's contract with the clip ranges and statistics of the weights' own: what a loader must normalise with,
    because the weights know no other scale. Call `enforce` first."""
    order = map_channels(found, expected)
    return dataclasses.replace(found, channels=tuple(expected.channels[i] for i in order),
                               statistics_of=expected.statistics_of)


def to_agree_with(found: Contract, weights: Contract, images_and_volumes: bool = False) -> tuple[Contract, list[str]]:
    """What data (`found`) must agree with, and sentences about it: the weights' contract, unless the encoder takes
    images and volumes, and its weights have seen the other of the two, in as many channels. Such data brings its own
    scale, since the weights know none for it."""
    other = len(found.size) != len(weights.size) and len(found.channels) == len(weights.channels)
    if not (images_and_volumes and other and found.domain == weights.domain):
        return weights, []
    return found, [f"weights of {weights.kind} go on with {found.kind}: the encoder takes both, each by a projection "
                   f"of its own; {found.kind} keeps its own normalisation."]


def enforce(found: Contract, expected: Contract, subset_of_channels: bool = False) -> list[str]:
    """Refuse data (`found`) that the weights (`expected`) were not made for.

    Args:
        subset_of_channels: the encoder takes any subset of its channels, in any order (one token per band).

    Returns:
        Sentences on what differs harmlessly and was mapped (band order, size).

    Raises:
        ContractMismatch: with one line per difference: found, expected, remedy.
    """
    wrong: list[str] = []
    said: list[str] = []

    def differ(what: str, a: object, b: object, remedy: str) -> None:
        if a != b:
            wrong.append(f"{what}: found {a}, expected {b}. Remedy: {remedy}")

    differ("kind of data", f"{found.domain}/{found.kind}", f"{expected.domain}/{expected.kind}",
           "start from weights of the same kind.")
    if not wrong:
        differ("normalisation", found.normalisation, expected.normalisation, "ingest with the same `normalisation`.")
        differ("orientation", found.orientation, expected.orientation,
               "ingest again; volumes are turned on the way in.")
        _compare_spacing(found, expected, wrong)
        _compare_channels(found, expected, subset_of_channels, wrong, said)
        if len(found.size) == len(expected.size) and found.size != expected.size:
            said.append(f"size differs: data {found.size}, weights {expected.size}; "
                        "positions are computed for the data.")
    if wrong:
        raise ContractMismatch("\n".join(wrong))
    return said


def _compare_spacing(found: Contract, expected: Contract, wrong: list[str]) -> None:
    if found.spacing is None and expected.spacing is None:
        return
    agree = (found.spacing is not None and expected.spacing is not None
             and len(found.spacing) == len(expected.spacing)
             and all(abs(a - b) <= SPACING_TOLERANCE * b for a, b in zip(found.spacing, expected.spacing, strict=True)))
    if not agree:
        wrong.append(f"spacing: found {found.spacing}, expected {expected.spacing} (within {SPACING_TOLERANCE:.0%}). "
                     "Remedy: set `spacing` in the data run to the expected one and ingest again.")


def _compare_channels(found: Contract, expected: Contract, subset: bool, wrong: list[str], said: list[str]) -> None:
    try:
        order = map_channels(found, expected)
    except ContractMismatch as error:
        wrong.append(str(error))
        return
    for channel, at in zip(found.channels, order, strict=True):
        if channel.unit != expected.channels[at].unit:
            wrong.append(f"unit of {channel.name}: found {channel.unit}, expected {expected.channels[at].unit}. "
                         "Remedy: set `unit`, `scale` or `offset` in the data run so that both agree.")
    if len(set(order)) != len(order):
        wrong.append(f"channels: found a name twice in {', '.join(found.names)}. Remedy: name every band once.")
    missing = [name for name in expected.names if name not in found.names]
    if missing and not subset:
        wrong.append(f"channels: found {', '.join(found.names)}, expected also {', '.join(missing)}. "
                     "Remedy: give these channels, or use an encoder with one token per band, which takes subsets.")
    elif missing or order != list(range(len(order))):
        said.append("bands mapped by name: " + ", ".join(f"{n}->{i}" for n, i in zip(found.names, order, strict=True))
                    + (f"; not in the data: {', '.join(missing)}" if missing else ""))
