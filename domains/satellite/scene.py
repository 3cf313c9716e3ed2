"""A scene that is open but not read, and how samples are cut out of it.

Legend: C channels in the order of the settings' `bands`, H W rows and columns of the target grid, h w of a band's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from domains.sample import UNKNOWN_CLASS, Fact, Piece, Refused, nearest_integer
from domains.satellite import grid
from domains.satellite.settings import Multispectral
from domains.satellite.units import REFLECTANCE, UNKNOWN

WHOLE_LIMIT = 4
"""With `cut: whole`, how many times `size` a side may measure: beyond, crops of one sample have little in common."""
BUDGET = 2**29
"""Bytes that one row may decode to; known from the header before anything is allocated. A whole Sentinel-2 granule
must be cut into several files first."""
ENDING = 65534
"""The largest stored value: one below the sentinel."""


@dataclass(frozen=True)
class Layer:
    """One band of one file, not yet read."""

    shape: tuple[int, int]
    window: Callable[[int, int, int, int], tuple[np.ndarray, np.ndarray]]
    """(row start, row stop, column start, column stop) -> values as stored, and bool: the file does not disown them."""


@dataclass(frozen=True)
class Place:
    """Where a grid lies, as far as the file says."""

    step: tuple[float, float] | None = None
    """Metres per pixel, down and across."""
    epsg: int | None = None
    corner: tuple[float, float, float, float] | None = None
    """x and y of the upper left corner and per pixel across and down, in the units of the CRS, for upright grids."""


@dataclass(frozen=True)
class Scene:
    """What one manifest row holds: layers by what they stand for, and the grid that they are brought to."""

    layers: dict[str, Layer]
    shape: tuple[int, int]
    """H W of the target grid."""
    place: Place
    format: str


def whole(scene: Scene, mask: np.ndarray | None, settings: Multispectral) -> Piece:
    """The scene as one sample, padded where it is smaller than `size`."""
    limit = tuple(WHOLE_LIMIT * side for side in settings.size)
    if any(have > most for have, most in zip(scene.shape, limit, strict=True)):
        raise Refused(f"found {scene.shape[0]} x {scene.shape[1]} pixels, expected at most {limit[0]} x {limit[1]} "
                      f"({WHOLE_LIMIT} times `size`) for one sample. Remedy: set `cut: tiles`.")
    _fits(scene, settings, scene.shape)
    height, width = scene.shape
    values, negative = _read_window(scene, settings, (0, height, 0, width))
    share = _known_share(values)
    if share < settings.min_known:
        raise Refused(f"found {share:.0%} of the pixels with a value, expected {settings.min_known:.0%} (`min_known`).")
    return Piece(values=grid.pad_to(values, settings.size, UNKNOWN, centred=True),
                 mask=None if mask is None else grid.pad_to(mask, settings.size, UNKNOWN_CLASS, centred=True),
                 facts=_facts(scene, settings, (0, height, 0, width), share, negative))


def tiles(scene: Scene, mask: np.ndarray | None, settings: Multispectral) -> list[Piece]:
    """The scene as a grid of samples; those with too little in them are left out and counted."""
    _fits(scene, settings, scene.shape)
    pieces: list[Piece] = []
    skipped = 0
    for top, bottom, left, right in grid.tiles(scene.shape, settings.size):
        values, negative = _read_window(scene, settings, (top, bottom, left, right))
        values = grid.pad_to(values, settings.size, UNKNOWN, centred=False)
        share = _known_share(values)
        if share < settings.min_known:
            skipped += 1
            continue
        part = None if mask is None else mask[top:bottom, left:right]
        part = None if part is None else grid.pad_to(part, settings.size, UNKNOWN_CLASS, centred=False)
        pieces.append(Piece(values=values, mask=part, suffix=f"@r{top}c{left}",
                            facts=_facts(scene, settings, (top, bottom, left, right), share, negative)))
    if not pieces:
        raise Refused(f"found no tile of {settings.size[0]} x {settings.size[1]} with {settings.min_known:.0%} of its "
                      f"pixels known (`min_known`) among {skipped}.")
    return [replace(piece, facts={**piece.facts, "tiles_skipped": skipped}) for piece in pieces]


def _fits(scene: Scene, settings: Multispectral, shape: tuple[int, int]) -> None:
    need = len(settings.bands) * shape[0] * shape[1] * 2
    if need > BUDGET:
        raise Refused(f"found {shape[0]} x {shape[1]} pixels in {len(settings.bands)} bands, {need} bytes; expected at "
                      f"most {BUDGET}. Remedy: cut the scene into several files.")


def _read_window(scene: Scene, settings: Multispectral, box: tuple[int, int, int, int]) -> tuple[np.ndarray, float]:
    """C H W uint16 of one window of the target grid, and the share of known values that was below zero."""
    top, bottom, left, right = box
    stored = np.full((len(settings.bands), bottom - top, right - left), UNKNOWN, np.uint16)
    negative = total = 0
    for channel, identity in enumerate(settings.identities):
        if identity not in scene.layers:
            continue
        reflectance, known = _on_grid(scene.layers[identity], scene.shape, settings, box)
        numbers = nearest_integer(reflectance * REFLECTANCE)
        negative += int((numbers[known] < 0).sum())
        total += int(known.sum())
        stored[channel][known] = np.clip(numbers[known], 0, ENDING).astype(np.uint16)
    return stored, negative / max(total, 1)


def _on_grid(layer: Layer, shape: tuple[int, int], settings: Multispectral,
             box: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Reflectance and known, both H W, of one band in one window."""
    if layer.shape == shape:
        return _decode(*layer.window(*box), settings)
    ratios = [have / want for have, want in zip(layer.shape, shape, strict=True)]
    rows = grid.span(box[0], box[1], ratios[0], layer.shape[0])
    columns = grid.span(box[2], box[3], ratios[1], layer.shape[1])
    values, known = _decode(*layer.window(*rows, *columns), settings)
    return grid.resample(values, known,
                         grid.weights((box[0], box[1]), rows, ratios[0], settings.resampling),
                         grid.weights((box[2], box[3]), columns, ratios[1], settings.resampling))


def _decode(raw: np.ndarray, known: np.ndarray, settings: Multispectral) -> tuple[np.ndarray, np.ndarray]:
    """Stored numbers to reflectance; nodata, zeros where they mean it, and what is not finite become unknown."""
    values = raw.astype(np.float64)
    known = known & np.isfinite(values)
    if settings.nodata is not None:
        known &= values != settings.nodata
    if settings.zero_is_nodata:
        known &= values != 0
    return np.where(known, values, 0.0) * settings.scale + settings.offset, known


def _known_share(values: np.ndarray) -> float:
    return float((values != UNKNOWN).any(axis=0).mean())


def _facts(scene: Scene, settings: Multispectral, box: tuple[int, int, int, int], share: float,
           negative: float) -> dict[str, Fact]:
    """Numbers and codes alone; the bands are told by the settings' names, never by a header's."""
    facts: dict[str, Fact] = {
        "format": scene.format,
        "scene_shape": list(scene.shape),
        "bands": [name for name, identity in zip(settings.bands, settings.identities, strict=True)
                  if identity in scene.layers],
        "known": round(share, 4),
        "negative": round(negative, 4),
    }
    place = scene.place
    if place.step is not None:
        facts["metres_per_pixel"] = [round(place.step[0], 4), round(place.step[1], 4)]
    if place.epsg is not None:
        facts["epsg"] = place.epsg
    if place.corner is not None:
        x, y, across, down = place.corner
        facts["bounds"] = [x + box[2] * across, y + box[1] * down, x + box[3] * across, y + box[0] * down]
    return facts
