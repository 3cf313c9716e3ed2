"""Where the pixels of open rasters lie, and how those of two bands lie on each other.

Data sets are rasterio's, open already; nothing here opens a file.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from domains.contract import SPACING_TOLERANCE
from domains.placement import MOST_TEXT
from domains.sample import Refused
from domains.satellite.scene import Layer, Place

METRES_PER_DEGREE = 111_320.0
"""Along a meridian; grids in degrees get their ground resolution from it."""
ALIGNED = 0.01
"""Of a pixel: grids that lie this close are taken as one."""
MASK_TOLERANCE = 0.5
"""Pixels by which a mask's corners may lie beside the scene's."""
PARAMETER = re.compile(r"\+[a-z_0-9]{1,12}(=[-+.,0-9A-Za-z]{1,40})?")
AUTHORITY = re.compile(r"[A-Za-z]{2,10}:[A-Za-z0-9]{1,12}")


def place(dataset: Any) -> Place:
    """Resolution, code of the coordinate system and affine of a georeferenced data set."""
    crs, transform = dataset.crs, dataset.transform
    if crs is None and dataset.gcps[0]:
        raise Refused("found a raster placed by control points, expected a grid. Remedy: bring it to one (gdalwarp).")
    if crs is None or not (crs.is_geographic or crs.is_projected):  # a local system does not say where it lies
        return Place()
    step = (math.hypot(transform.b, transform.e), math.hypot(transform.a, transform.d))
    if crs.is_geographic:
        latitude = transform.f + transform.e * dataset.height / 2
        step = (step[0] * METRES_PER_DEGREE, step[1] * METRES_PER_DEGREE * math.cos(math.radians(latitude)))
    else:
        factor = crs.linear_units_factor[1]
        step = (step[0] * factor, step[1] * factor)
    if not all(math.isfinite(value) and value > 0 for value in step):
        raise Refused(f"found pixels of {step[0]:g} x {step[1]:g} m, expected both above 0; the georeference is "
                      "damaged.")
    epsg, a, b, c = crs.to_epsg(), transform.a, transform.b, transform.c
    affine = (a, b, c, transform.d, transform.e, transform.f)
    code = f"EPSG:{epsg}" if epsg is not None else _code(crs)
    return Place(step=step, epsg=epsg, crs="" if epsg is not None else code, affine=affine, of_file=affine,
                 system=code or _definition(crs))


def _code(crs: Any) -> str:
    """The code of a system that some authority other than EPSG lists; its text may hold anything and is left out."""
    found = ":".join(crs.to_authority() or ())
    return found if AUTHORITY.fullmatch(found) else ""


def _definition(crs: Any) -> str:
    """A system that no list has, by its parameters: words of PROJ and numbers, which leave out whatever name its maker
    gave it. Empty where PROJ's words do not say it."""
    text = " ".join(part for part in str(crs.to_proj4()).split() if PARAMETER.fullmatch(part))
    return text if "+proj=" in text and len(text) <= MOST_TEXT else ""


def target(shape: tuple[int, int], found: Place, resolution: float | None) -> tuple[tuple[int, int], Place]:
    """The grid that everything is brought to: the finest band's, or that of `resolution_m`."""
    if resolution is None or found.step is None:
        return shape, found
    ratios = [step / resolution for step in found.step]
    if all(abs(ratio - 1) <= SPACING_TOLERANCE for ratio in ratios):
        return shape, found
    wanted = (max(1, round(shape[0] * ratios[0])), max(1, round(shape[1] * ratios[1])))
    affine = found.affine
    if affine is not None:
        a, b, c, d, e, f = affine
        down, across = shape[0] / wanted[0], shape[1] / wanted[1]
        affine = (a * across, b * down, c, d * across, e * down, f)
    return wanted, replace(found, step=(resolution, resolution), affine=affine)


def check_mask(dataset: Any, scene: Place) -> None:
    """A mask has the pixels of its scene, and lies on the same ground where both say where they lie: the same number of
    pixels is also that of the next tile, or of the same one upside down."""
    if dataset.crs is None or scene.of_file is None:
        return
    own = place(dataset)
    if own.of_file is None:
        return
    codes = own.epsg or own.crs, scene.epsg or scene.crs
    if all(codes) and codes[0] != codes[1]:
        raise Refused("mask: found another coordinate system than the scene's. Remedy: resample the mask to the scene.")
    a, b, _, d, e, _ = scene.of_file
    pixel = min(math.hypot(a, d), math.hypot(b, e))
    away = max(math.dist(_at(own.of_file, *corner), _at(scene.of_file, *corner)) / pixel
               for corner in ((0, 0), (dataset.width, 0), (0, dataset.height)))
    if away > MASK_TOLERANCE:
        raise Refused(f"mask: found a corner {away:.1f} pixels away from the scene's, expected the same grid. Remedy: "
                      "correct the mask column, or resample the mask to the scene.")


def _at(affine: tuple[float, ...], column: float, row: float) -> tuple[float, float]:
    a, b, c, d, e, f = affine
    return a * column + b * row + c, d * column + e * row + f


def check_same_ground(dataset: Any, reference: Any) -> None:
    """Bands of one scene cover the same ground, to within one pixel of the coarser."""
    step = max(abs(dataset.transform.a), abs(reference.transform.a))
    gap = max(abs(a - b) for a, b in zip(dataset.bounds, reference.bounds, strict=True))
    if dataset.crs != reference.crs or (dataset.crs is not None and gap > step):
        raise Refused("found bands that cover different ground or use different coordinate systems, expected one grid. "
                      "Remedy: put the bands of one scene only into a folder.")
    ratios = [have / want for have, want in zip(dataset.shape, reference.shape, strict=True)]
    if dataset.crs is None and abs(ratios[0] - ratios[1]) > SPACING_TOLERANCE * ratios[0]:
        raise Refused(f"found bands of {dataset.shape} and {reference.shape} pixels, expected the same proportions.")


def on_reference(layer: Layer, dataset: Any, reference: Any) -> Layer:
    """The layer with its pixels placed by its own georeference: bands of 20 or 60 m may begin or end up to a pixel away
    from those of 10 m. Upright grids alone; others are taken to begin on one corner."""
    own, finest = dataset.transform, reference.transform
    if dataset.crs is None or any((own.b, own.d, finest.b, finest.d)):
        return layer
    ratio = (finest.e / own.e, finest.a / own.a)
    if min(ratio) <= 0:
        raise Refused("found bands of which one runs north and another south, expected one grid.")
    start = ((finest.f - own.f) / own.e, (finest.c - own.c) / own.a)
    ends = [edge + step * length - have for edge, step, length, have in
            zip(start, ratio, reference.shape, dataset.shape, strict=True)]
    if all(abs(edge) <= ALIGNED for edge in (*start, *ends)):
        return layer
    return Layer(layer.shape, layer.window, layer.scaled, ratio, start)
