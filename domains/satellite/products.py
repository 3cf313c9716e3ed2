"""What the names of Sentinel-2 and Landsat products say of the numbers in them.

An archive of years mixes what looks alike: Sentinel-2 before and after processing baseline 04.00, which added 1000 to
every band, and Landsats whose band 4 is red or near infrared. A few files that are looked at first do not tell; each
product's own name does.

Source: ESA, Sentinel-2 Products Specification Document, naming convention and RADIO_ADD_OFFSET; USGS, Landsat
Collection 2 Level-2 science product guides.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

from domains.sample import Refused
from domains.satellite.bands import Sensor
from domains.satellite.settings import Multispectral

SENTINEL2 = re.compile(r"S2[A-D]_MSIL(?:1C|2A)_\d{8}T\d{6}_N(\d{4})_R\d{3}_")
LANDSAT = re.compile(r"L([COTEM]\d{2})_(L\w{3})_\d{6}_\d{8}_\d{8}_(\d{2})_")
WITH_OFFSET = 400
"""Processing baseline 04.00 of January 2022, also of what was processed anew since then."""
BY_HAND = 9999
"""Baseline of products that somebody made with ESA's own program: it does not say whether the offset is in them."""
SENTINEL2_SCALE, SENTINEL2_OFFSET = 0.0001, -0.1
LANDSATS: dict[str, Sensor] = {"C08": "landsat8", "O08": "landsat8", "C09": "landsat8", "O09": "landsat8",
                               "E07": "landsat7", "T05": "landsat7", "T04": "landsat7"}
"""Instrument and satellite, and the sensor by whose numbers its bands are called."""
SURFACE, COLLECTION = ("L2SP", "L2SR"), 2
LANDSAT_SCALE, LANDSAT_OFFSET = 0.0000275, -0.2


def check(texts: Iterable[str], sensor: Sensor, settings: Multispectral, scaled: bool) -> None:
    """Refuse a product whose name contradicts the settings; names that are no product's say nothing.

    Args:
        texts: folder and file names of one manifest row.
        scaled: whether the file's own scale and offset count.
    """
    if sensor == "other":  # takes any name for what it is
        return
    for text in texts:
        if found := SENTINEL2.search(text):
            _sensor("sentinel2", sensor)
            baseline = int(found[1])
            if settings.check_units and not scaled and baseline != BY_HAND:
                _check_sentinel2(baseline, settings)
        if found := LANDSAT.search(text):
            level, collection = found[2], int(found[3])
            _sensor(LANDSATS.get(found[1], "other"), sensor)
            if settings.check_units and not scaled and level in SURFACE and collection == COLLECTION:
                _expect("Landsat collection 2", LANDSAT_SCALE, LANDSAT_OFFSET, settings)


def with_nodata(texts: Iterable[str], sensor: Sensor, settings: Multispectral) -> Multispectral:
    """The settings, by which 0 is no data in products of Sentinel-2: these define it so, and their files do not say it.
    """
    if sensor == "sentinel2" and any(map(SENTINEL2.search, texts)):
        return dataclasses.replace(settings, zero_is_nodata=True)
    return settings


def _check_sentinel2(baseline: int, settings: Multispectral) -> None:
    if math.isclose(settings.scale, SENTINEL2_SCALE):  # with another scale the numbers are not the product's
        _expect(f"processing baseline {baseline // 100:02d}.{baseline % 100:02d}", SENTINEL2_SCALE,
                SENTINEL2_OFFSET if baseline >= WITH_OFFSET else 0.0, settings)


def _sensor(found: Sensor, sensor: Sensor) -> None:
    if found != sensor:
        raise Refused(f"found a product of sensor {found} by its name, expected {sensor}, whose bands have other "
                      f"numbers. Remedy: give it a source of its own, and under `by_source` set `sensor: {found}`.")


def _expect(what: str, scale: float, offset: float, settings: Multispectral) -> None:
    if math.isclose(settings.scale, scale, rel_tol=1e-4) and math.isclose(settings.offset, offset, abs_tol=1e-3):
        return
    raise Refused(f"found a product of {what} by its name, stored with scale {scale:g} and offset {offset:g}, expected "
                  f"{settings.scale:g} and {settings.offset:g} as set. Remedy: give such products a source of their "
                  "own and set both under `by_source`; where the numbers were changed since, set `check_units: false`.")
