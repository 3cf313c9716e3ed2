"""What a run says about its multispectral files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from domains.satellite import bands as names
from domains.satellite import grid
from domains.satellite.bands import Sensor

Scaling = Literal["set", "file"]


@dataclass(frozen=True)
class Encoding:
    """How one source differs from the run's settings. What is left out is as in the run."""

    sensor: Sensor | None = None
    """Whose band names its files use."""
    file_bands: tuple[str, ...] | None = None
    """Names of the bands in its files, in file order."""
    scale: float | None = None
    """reflectance = value x scale + offset."""
    offset: float | None = None
    """See `scale`."""
    scaling: Scaling | None = None
    """Whose scale and offset count."""
    nodata: float | None = None
    """A value that means no data."""
    zero_is_nodata: bool | None = None
    """Whether 0 means no data."""


@dataclass(frozen=True)
class Multispectral:
    """How multispectral files are read."""

    bands: tuple[str, ...]
    """The channels a model gets: codes (B2, B8A) or common names (blue, nir). With several sources, the union: a file
    that lacks some has them unknown. Landsat's codes are stored as common names, since they clash with Sentinel-2's."""
    sensor: Sensor
    """sentinel2, landsat8 (also Landsat-9), landsat7 (also -4 and -5) or other: what the codes mean. `other` takes
    any name."""
    size: tuple[int, int]
    """Rows and columns of what a model gets, in pixels."""
    kind: Literal["multispectral"] = "multispectral"
    """Which reader this is."""
    file_bands: tuple[str, ...] = ()
    """Names of the bands in stacked files, in file order, where all files agree; "-" for a band to pass over (a quality
    or thermal band). Wins over `bands_column`."""
    bands_column: str = ""
    """Manifest column with the names per file ("B2,B3,B4"). Without it and `file_bands`, the names that the files carry
    as band descriptions are taken, and bands without a name are found by the wavelength that the file tells (GDAL's
    CENTRAL_WAVELENGTH_UM, ENVI's `wavelength`); a file that tells neither is refused."""
    wavelengths: dict[str, float] = field(default_factory=dict)
    """Nanometres of bands whose name does not say them (sensor `other`, hyperspectral cubes): {b550: 550, b865: 865}.
    A file's band is taken when it lies within 3 % and nearest."""
    scale: float = 0.0001
    """reflectance = value x scale + offset. Sentinel-2 0.0001; Landsat collection 2 0.0000275; 1 for float 0-1."""
    offset: float = 0.0
    """Added after scaling, so in reflectance. Sentinel-2 from processing baseline 04.00 (January 2022): -0.1, unless a
    catalogue has taken it off already; Landsat collection 2: -0.2."""
    scaling: Scaling = "set"
    """set: `scale` and `offset` count, and a file whose own tags say otherwise is refused. file: each band's own tags
    count, and `scale` and `offset` where it has none."""
    nodata: float | None = None
    """A value that means no data, besides the one that a file's own header names."""
    zero_is_nodata: bool = False
    """A 0 in a band means no data there, as Sentinel-2 products define it (of files that lie under a product's own name
    it always counts); also makes dead bands unknown."""
    resolution_m: float | None = None
    """Metres per pixel that samples are brought to. Georeferenced files within 10 % stay as they are, others are
    resampled; files that do not say are taken to have it. None: every file keeps its own."""
    resampling: grid.Method = "bilinear"
    """For bands that are coarser than the grid, and for `resolution_m`. nearest keeps the measured values."""
    cut: Literal["whole", "tiles"] = "whole"
    """whole: one sample per file, stored at its full extent (at most 4 x size), cropped to `size` when it is fetched,
    padded with unknown where it is smaller. tiles: a grid of samples of `size`, the last ones padded with unknown."""
    min_known: float = 0.5
    """Smallest share of pixels with a value in at least one band: whole files below are refused, tiles left out."""
    brightest: float = 1.0
    """Reflectance is clipped to [0, brightest] before it is normalised: clouds and glint must not set the scale."""
    check_units: bool = True
    """Stop when the values contradict reflectance (see domains/satellite/units.py)."""
    by_source: dict[str, Encoding] = field(default_factory=dict)
    """What is different for a source of the manifest: {landsat: {sensor: landsat8, scale: 0.0000275, offset: -0.2}}."""

    def __post_init__(self) -> None:
        if not self.bands:
            raise ValueError("bands: found none, expected at least one name. Remedy: list them, `bands: [B2, B3, B4]`.")
        spelt = tuple(names.spell(name, self.sensor) for name in self.bands)
        twice = sorted({name for name, identity in zip(spelt, self.identities, strict=True)
                        if self.identities.count(identity) > 1})
        if twice:
            raise ValueError(f"bands: found {', '.join(twice)} for one and the same band. "
                             "Remedy: name every band once.")
        object.__setattr__(self, "bands", spelt)
        if min(self.size) < 1:
            raise ValueError(f"size: found {list(self.size)}, expected rows and columns of at least 1.")
        if self.resolution_m is not None and self.resolution_m <= 0:
            raise ValueError(f"resolution_m: found {self.resolution_m}, expected metres per pixel above 0.")
        if not 0 < self.min_known <= 1:
            raise ValueError(f"min_known: found {self.min_known}, expected a share above 0 and up to 1.")
        strange = sorted(set(self.wavelengths) - set(self.bands))
        if strange or not all(nm > 0 for nm in self.wavelengths.values()):
            raise ValueError(f"wavelengths: found {self.wavelengths}, expected nanometres above 0 of names among "
                             f"{', '.join(self.bands)}.")
        everyone: list[Multispectral | Encoding] = [self, *self.by_source.values()]
        for one in everyone:
            _check_encoding(one, self.sensor)

    def of_source(self, source: str) -> Multispectral:
        """These settings with what is different for a source put in."""
        encoding = self.by_source.get(source)
        if encoding is None:
            return self
        numbers = ("scale", "offset", "scaling", "nodata", "zero_is_nodata")
        changed: dict[str, Any] = {name: value for name in numbers if (value := getattr(encoding, name)) is not None}
        return dataclasses.replace(self, **changed, by_source={})

    def naming(self, source: str) -> tuple[Sensor, tuple[str, ...]]:
        """Whose names the files of a source use, and the names of their bands where the settings say them."""
        encoding = self.by_source.get(source, Encoding())
        return encoding.sensor or self.sensor, self.file_bands if encoding.file_bands is None else encoding.file_bands

    @cached_property  # for a band of a cube, readers ask for all of them
    def wanted_wavelengths(self) -> dict[str, float]:
        """What `bands` stand for -> nanometres, where they are known."""
        known = {identity: self.wavelengths.get(name) or names.wavelength(identity, self.sensor)
                 for name, identity in zip(self.bands, self.identities, strict=True)}
        return {identity: nm for identity, nm in known.items() if nm}

    @cached_property
    def identities(self) -> tuple[str, ...]:
        """What `bands` stand for, whatever they are called."""
        return tuple(identity for name in self.bands if (identity := names.identify(name, self.sensor)) is not None)


def _check_encoding(one: Multispectral | Encoding, sensor: Sensor) -> None:
    if one.scale is not None and one.scale <= 0:
        raise ValueError(f"scale: found {one.scale}, expected above 0 (0.0001 for Sentinel-2).")
    if one.offset is not None and abs(one.offset) > 1:
        raise ValueError(f"offset: found {one.offset}, expected reflectance between -1 and 1. Remedy: multiply an "
                         "offset in stored values by `scale`: Sentinel-2's -1000 becomes -0.1.")
    for name in one.file_bands or ():
        if name != names.UNUSED and names.identify_loosely(name, one.sensor or sensor) is None:
            names.spell(name, one.sensor or sensor)  # says what is wrong with it
