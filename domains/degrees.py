"""Bounds on a map as bounds in degrees, so that samples of neighbouring zones can be compared.

Scenes along the border of two UTM zones lie on each other by kilometres, and no coordinate of one is near one of the
other. Written out here, because duplicates are looked for where no library of maps is installed.

Source: Karney 2011, "Transverse Mercator with an accuracy of a few nanometers", series of Krueger to the fourth order.
"""

from __future__ import annotations

import numpy as np

RADIUS, FLATTENING = 6_378_137.0, 1 / 298.257223563
"""Of the ellipsoid of WGS 84; those of other systems in use differ by less than a metre on the ground."""
SCALE, FALSE_EASTING, FALSE_NORTHING = 0.9996, 500_000.0, 10_000_000.0
DEGREES = (4326, 4258, 4269)
"""EPSG's codes of systems in degrees: WGS 84, ETRS89, NAD83."""
NORTH = (32600, 25800, 26900)
"""EPSG's codes of zone 0 of UTM north: WGS 84, ETRS89, NAD83."""
SOUTH = 32700


def in_degrees(epsg: int, bounds: np.ndarray) -> np.ndarray | None:
    """n 4 west, south, east, north of the boxes around boxes; None of a system that is not known here.

    Args:
        bounds: n 4 left, bottom, right, top in the unit of the system.
    """
    if epsg in DEGREES:
        return bounds
    zone, south = epsg % 100, epsg - epsg % 100 == SOUTH
    if not 1 <= zone <= 60 or epsg - zone not in (*NORTH, SOUTH):
        return None
    left, bottom, right, top = bounds.T
    longitude, latitude = _of_utm(np.stack([left, left, right, right]), np.stack([bottom, top, bottom, top]), zone,
                                  south)
    longitude -= 360 * np.floor((longitude.mean(axis=0) + 180) / 360)  # zone 60 goes on beyond the antimeridian
    return np.stack([longitude.min(axis=0), latitude.min(axis=0), longitude.max(axis=0), latitude.max(axis=0)], axis=1)


def _of_utm(easting: np.ndarray, northing: np.ndarray, zone: int, south: bool) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude in degrees."""
    n = FLATTENING / (2 - FLATTENING)
    rectifying = RADIUS / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    xi = (northing - FALSE_NORTHING * south) / (SCALE * rectifying)
    eta = (easting - FALSE_EASTING) / (SCALE * rectifying)
    beta = (n / 2 - 2 * n**2 / 3 + 37 * n**3 / 96, n**2 / 48 + n**3 / 15, 17 * n**3 / 480)
    xi_sphere = xi - sum(b * np.sin(2 * k * xi) * np.cosh(2 * k * eta) for k, b in enumerate(beta, start=1))
    eta_sphere = eta - sum(b * np.cos(2 * k * xi) * np.sinh(2 * k * eta) for k, b in enumerate(beta, start=1))
    chi = np.arcsin(np.sin(xi_sphere) / np.cosh(eta_sphere))
    delta = (2 * n - 2 * n**2 / 3 - 2 * n**3, 7 * n**2 / 3 - 8 * n**3 / 5, 56 * n**3 / 15)
    latitude = chi + sum(d * np.sin(2 * k * chi) for k, d in enumerate(delta, start=1))
    longitude = np.arctan2(np.sinh(eta_sphere), np.cos(xi_sphere))
    return np.degrees(longitude) + 6 * zone - 183, np.degrees(latitude)
