"""What a band is called, and the wavelength that it stands for.

The same number means different bands on different satellites (B5 is red edge on Sentinel-2 and near infrared on
Landsat-8), so a number is only understood together with its sensor, and names are compared by what they stand for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

Sensor = Literal["sentinel2", "landsat8", "landsat7", "other"]

# Centre wavelengths in nm. Sentinel-2: those of satellite A (B's differ by at most 2 nm except B12, 17 nm);
# Landsat: OLI, the same instrument on Landsat-8 and -9.
SENTINEL2: dict[str, tuple[str, float]] = {
    "B1": ("coastal", 442.7), "B2": ("blue", 492.4), "B3": ("green", 559.8), "B4": ("red", 664.6),
    "B5": ("rededge1", 704.1), "B6": ("rededge2", 740.5), "B7": ("rededge3", 782.8), "B8": ("nir", 832.8),
    "B8A": ("nir_narrow", 864.7), "B9": ("water_vapour", 945.1), "B10": ("cirrus", 1373.5),
    "B11": ("swir1", 1613.7), "B12": ("swir2", 2202.4),
}
LANDSAT8: dict[str, tuple[str, float]] = {
    "B1": ("coastal", 443.0), "B2": ("blue", 482.0), "B3": ("green", 561.4), "B4": ("red", 654.6),
    "B5": ("nir", 864.7), "B6": ("swir1", 1608.9), "B7": ("swir2", 2200.7), "B8": ("pan", 589.5),
    "B9": ("cirrus", 1373.4),
}
LANDSAT7: dict[str, tuple[str, float]] = {
    "B1": ("blue", 483.0), "B2": ("green", 560.0), "B3": ("red", 662.0), "B4": ("nir", 835.0), "B5": ("swir1", 1648.0),
    "B7": ("swir2", 2206.0), "B8": ("pan", 706.0),
}
"""ETM+ of Landsat-7; TM of Landsat-4 and -5 has the same numbers, at wavelengths that differ by up to 2 %."""
GENERIC: dict[str, float] = {
    "coastal": 443.0, "blue": 490.0, "green": 560.0, "red": 660.0, "rededge1": 705.0, "rededge2": 740.0,
    "rededge3": 783.0, "nir": 840.0, "nir_narrow": 865.0, "water_vapour": 945.0, "cirrus": 1375.0, "swir1": 1610.0,
    "swir2": 2200.0, "pan": 590.0,
}
LANDSATS = ("landsat8", "landsat7")
SYNONYMS = {"nir08": "nir_narrow", "nir8a": "nir_narrow", "nirnarrow": "nir_narrow", "swir16": "swir1",
            "swir22": "swir2", "nir09": "water_vapour", "watervapour": "water_vapour", "watervapor": "water_vapour",
            "rededge071": "rededge1", "rededge075": "rededge2", "rededge078": "rededge3", "ultrablue": "coastal",
            "aerosol": "coastal", "coastalaerosol": "coastal", "panchromatic": "pan", "nearinfrared": "nir"}
CODE = re.compile(r"(?:SR_)?B0*([1-9]\d?)(A?)", re.IGNORECASE)
RESOLUTION_ENDING = re.compile(r"_\d{2}m$")
"""How Sentinel-2 products end a band's file name: T31UFS_20230601T105031_B02_10m."""
NEAR = 0.03
"""Relative distance within which a band is taken for one that is asked for: 15 nm at blue, 48 nm at 1600. Red and the
first red edge are 6 % apart, Sentinel-2's two near infrareds 4 %; the same band of two makers up to 2.5 %."""
CONTRADICTS = 0.05
"""Relative distance from which a band's wavelength speaks against its name."""
BROAD = ("pan",)
"""Bands that no wavelength stands for."""
WAVELENGTH_RANGE_NM = (300.0, 20_000.0)
IN_WORDS = re.compile(r"(\d+(?:\.\d+)?)\s*(nm|nanomet\w*|um|µm|micromet\w*|microns?)\b", re.IGNORECASE)
"""How a description tells a wavelength: "Band 43 (665.30 nm)", "0.665 um"."""
UNUSED = "-"
"""Written in a list of a file's bands for one to pass over."""


def table(sensor: Sensor) -> dict[str, tuple[str, float]]:
    """Code -> (what it stands for, wavelength) of a sensor; empty for `other`, whose codes we do not know."""
    return {"sentinel2": SENTINEL2, "landsat8": LANDSAT8, "landsat7": LANDSAT7, "other": {}}[sensor]


def identify(text: str, sensor: Sensor) -> str | None:
    """What a band's name stands for: `blue`, `nir_narrow`; None when this sensor has no such band.

    A name of `other` that is neither common nor a code stands for itself.
    """
    text = text.strip()
    code = CODE.fullmatch(text)
    if code:
        short = f"B{code[1]}{code[2].upper()}"
        known = table(sensor)
        return known[short][0] if short in known else (short if sensor == "other" else None)
    common = re.sub(r"[\s\-_]", "", text.lower())
    common = SYNONYMS.get(common, common)
    common = "water_vapour" if common == "watervapour" else common
    if sensor in LANDSATS and common == "nir_narrow":
        return "nir"  # catalogues call Landsat's only near-infrared band nir08
    if sensor == "other":
        return common or None
    return common if any(common == name for name, _ in table(sensor).values()) else None


def identify_loosely(text: str, sensor: Sensor) -> str | None:
    """As `identify`, also where words surround the name: "L8 SR coastal", "B2, central wavelength 492 nm"."""
    words = re.split(r"[\s,(]+", text.strip())
    exact = identify(text, sensor)
    if sensor == "other" or exact is not None:
        return exact
    found = {identity for word in (words[0], words[-1]) if (identity := identify(word, sensor)) is not None}
    return found.pop() if len(found) == 1 else None


def spell(text: str, sensor: Sensor) -> str:
    """The one spelling of a name in a contract: b02 -> B2. Landsat's codes become common names, because the weights of
    a Sentinel-2 encoder are matched by name and must never meet Landsat's B5 as Sentinel's.

    Raises:
        ValueError: this sensor has no such band.
    """
    identity = identify(text, sensor)
    if identity is None:
        codes = table(sensor)
        raise ValueError(f"band: found {text}, expected one of {', '.join(codes)} or "
                         f"{', '.join(name for name, _ in codes.values())} for sensor {sensor}. "
                         "Remedy: correct the name, or set `sensor` to the satellite that it belongs to "
                         "(`other` takes any name). Thermal bands hold no reflectance and have no place here.")
    code = CODE.fullmatch(text.strip())
    return f"B{code[1]}{code[2].upper()}" if code and sensor not in LANDSATS else identity


def wavelength(identity: str, sensor: Sensor) -> float | None:
    """Centre wavelength in nm of what `identify` gave; None where nobody has said it."""
    exact = dict(table(sensor).values())
    return exact.get(identity, GENERIC.get(identity))


def split_names(text: str) -> tuple[str, ...]:
    """The names in a manifest's cell: "B2,B3,B4,B8A", also with semicolons."""
    return tuple(part.strip() for part in re.split(r"[,;]", text) if part.strip())


def of_file(stem: str, sensor: Sensor) -> str | None:
    """What the band stands for that a file's name (without its ending) ends in: B02, x_B8A, x_nir_narrow, x_B02_10m."""
    parts = [part for part in re.split(r"[_\-. ]", RESOLUTION_ENDING.sub("", stem)) if part]
    for ending in ("_".join(parts[-2:]), parts[-1] if parts else ""):
        identity = identify(ending, sensor)
        if identity is not None and (sensor != "other" or ending == parts[-1] or identity in GENERIC):
            return identity
    return None


def told_wavelength(description: str, tags: Mapping[str, str]) -> float | None:
    """Nanometres that a file says of one of its bands; None where it says nothing that can be true.

    Args:
        tags: of the band: GDAL's CENTRAL_WAVELENGTH_UM, or `wavelength` with `wavelength_units` as ENVI's headers have.
    """
    plain = {name.lower(): text for name, text in tags.items()}
    for name in ("central_wavelength_um", "central_wavelength_nm", "center_wavelength", "central_wavelength",
                 "wavelength"):
        if name not in plain:
            continue
        unit = name.rpartition("_")[2] if name[-3:] in ("_um", "_nm") else plain.get("wavelength_units", "")
        number = re.match(r"\s*(\d+(?:\.\d+)?)\s*(\D*)$", plain[name])
        if number:
            return _nanometres(float(number[1]), number[2].strip() or unit)
    words = IN_WORDS.search(description)
    return _nanometres(float(words[1]), words[2]) if words else None


def _nanometres(value: float, unit: str) -> float | None:
    """Without a unit, numbers below 100 are micrometres: no sensor here sees either 50 nm or 50 micrometres."""
    nanometres = value if unit.lower().startswith("n") or (not unit and value >= 100) else value * 1000
    low, high = WAVELENGTH_RANGE_NM
    return nanometres if low <= nanometres <= high else None


def by_wavelength(found: Sequence[float | None], wanted: Mapping[str, float]) -> list[str | None]:
    """For each band of a file the wanted identity that it is nearest to, within NEAR; every identity goes to one band
    and every band to one identity, the closest pairs first."""
    pairs = sorted((abs(have - want) / want, place, identity) for place, have in enumerate(found) if have is not None
                   for identity, want in wanted.items() if identity not in BROAD and abs(have - want) <= NEAR * want)
    given: dict[int, str] = {}
    for _, place, identity in pairs:
        if place not in given and identity not in given.values():
            given[place] = identity
    return [given.get(place) for place in range(len(found))]
