"""Do the numbers look like reflectance? A wrong scale or offset trains without complaint and is worthless."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

REFLECTANCE = 10000
"""Stored value of reflectance 1."""
UNKNOWN = 65535
"""Stored value of a pixel that holds no data."""
TOO_BRIGHT = 12000
"""Fresh snow and thick cloud reach about 11,000; half of all pixels above 12,000 are a wrong scale."""
TOO_DARK = 30
"""Clear deep water reflects about 0.3 % in the near infrared, but several times more in some other band."""
HAZE_FLOOR = 950
"""Processing baseline 04.00 adds 1000 to every band. Haze does so only to the blue end: no scene without this offset
keeps its darkest pixels above 0.095 in every band, least of all in short-wave infrared."""
MIN_PIXELS_FOR_FLOOR = 20000
"""Fewer pixels may honestly hold no dark one (20 tiles of 32 x 32)."""
MAX_DEAD = 0.05
"""Share of samples in which a band may be zero everywhere."""
MAX_NEGATIVE = 0.2
"""Share of pixels that may fall below zero: atmospheric correction overshoots over dark water, but not everywhere."""


def contradiction(samples: Sequence[np.ndarray], names: Sequence[str], negative: Sequence[float]) -> str | None:
    """What in some samples speaks against reflectance x 10000, as found, expected, remedy; None when nothing does.

    Args:
        samples: C H W uint16 each, UNKNOWN where there is no data.
        names: of the C bands.
        negative: per sample, the share of pixels that was below zero before it was clipped.
    """
    if not samples:
        return None
    bands = [np.concatenate([sample[i].ravel() for sample in samples]) for i in range(len(names))]
    bands = [band[band != UNKNOWN] for band in bands]
    full = [(name, band) for name, band in zip(names, bands, strict=True) if band.size]
    if not full:
        return ("reflectance: found no known pixel in any sampled file, expected some. "
                "Remedy: check `nodata`, `zero_is_nodata` and the band names.")
    return (_too_dark(full) or _dead(samples, names) or _eight_bit(full) or _too_bright(full)
            or _offset(full) or _subtracted_twice(negative))


def _dead(samples: Sequence[np.ndarray], names: Sequence[str]) -> str | None:
    for i, name in enumerate(names):
        held = [sample[i] for sample in samples if (sample[i] != UNKNOWN).any()]
        dead = sum(not band[band != UNKNOWN].any() for band in held)
        if dead > MAX_DEAD * max(len(held), 1):
            return (f"band {name}: found {dead} of {len(held)} samples with zero everywhere, expected at most "
                    f"{MAX_DEAD:.0%}. Remedy: set `zero_is_nodata: true` so that a dead band counts as unknown, "
                    "or leave it out of `bands`.")
    return None


def _eight_bit(full: list[tuple[str, np.ndarray]]) -> str | None:
    stretched = [name for name, band in full if band.max() == 255]
    if stretched:
        return (f"bands {', '.join(stretched)}: found a largest value of exactly 255, expected reflectance x "
                f"{REFLECTANCE}. These are 8-bit picture values, and no scale turns them back into reflectance. "
                "Remedy: leave these bands out of `bands`, or get the original product.")
    return None


def _brightest(full: list[tuple[str, np.ndarray]]) -> tuple[str, float]:
    """The band with the largest median, and that as reflectance."""
    medians = {name: float(np.median(band)) / REFLECTANCE for name, band in full}
    name = max(medians, key=lambda name: medians[name])
    return name, medians[name]


def _too_dark(full: list[tuple[str, np.ndarray]]) -> str | None:
    name, median = _brightest(full)
    if median * REFLECTANCE >= TOO_DARK:
        return None
    return (f"reflectance: found a median of {median:.3g} even in the brightest band, {name}; expected more than "
            f"{TOO_DARK / REFLECTANCE}. Remedy: set `scale: 1` if the files hold reflectance between 0 and 1.")


def _too_bright(full: list[tuple[str, np.ndarray]]) -> str | None:
    name, median = _brightest(full)
    if median * REFLECTANCE <= TOO_BRIGHT:
        return None
    return (f"reflectance of {name}: found a median of {median:.3g}, expected 0 to {TOO_BRIGHT / REFLECTANCE}. Remedy: "
            "set `scale` and `offset` to what the product says (0.0001 for Sentinel-2; 0.0000275 and -0.2 for Landsat "
            "collection 2).")


def _offset(full: list[tuple[str, np.ndarray]]) -> str | None:
    if len(full) < 2 or min(band.size for _, band in full) < MIN_PIXELS_FOR_FLOOR:
        return None
    darkest = min(float(np.percentile(band, 0.1)) for _, band in full)
    if darkest < HAZE_FLOOR:
        return None
    return (f"reflectance: found no pixel below {darkest / REFLECTANCE:.3g} in any band, expected dark ones (shadow, "
            "water). Sentinel-2 products of processing baseline 04.00 and later are stored with 1000 added. "
            "Remedy: set `offset: -0.1`, or `check_units: false` if the scene is truly this bright.")


def _subtracted_twice(negative: Sequence[float]) -> str | None:
    share = float(np.mean(negative)) if len(negative) else 0.0
    if share <= MAX_NEGATIVE:
        return None
    return (f"reflectance: found {share:.0%} of the pixels below zero, expected at most {MAX_NEGATIVE:.0%}. "
            "Remedy: the offset was probably taken off before; set `offset: 0`.")
