"""A scene that is open but not read, and how samples are cut out of it.

Legend: C channels in the order of the settings' `bands`, H W rows and columns of the target grid, h w of a band's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from domains.placement import Placement
from domains.sample import UNKNOWN_CLASS, Fact, Part, Piece, Refused
from domains.satellite import decode, grid
from domains.satellite.decode import Band
from domains.satellite.settings import Multispectral
from domains.satellite.units import UNKNOWN

WHOLE_LIMIT = 4
"""With `cut: whole`, how many times `size` a side may measure: beyond, crops of one sample have little in common."""
BUDGET = 2**33
"""Bytes of samples that one scene may make; known from its header before anything is read. A whole Sentinel-2 granule
with twelve bands makes 2.9 GB."""
PART_BYTES = 2**28
"""Bytes of samples that are held at once: a larger scene comes in parts."""
MOST_TILES = 2**15
"""In a part: so many small ones that what is said of them outweighs what is in them."""
FEW_PIXELS = 16
"""Fewer known pixels may honestly hold one value."""


@dataclass(frozen=True)
class Layer:
    """One band of one file, not yet read."""

    shape: tuple[int, int]
    window: Callable[[int, int, int, int], tuple[np.ndarray, np.ndarray | None]]
    """(row start, row stop, column start, column stop) -> values as stored, and bool: the file does not disown them.
    None: it disowns none."""
    scaled: tuple[float, float] | None = None
    """Scale and offset of this band, where the file's own count."""
    ratio: tuple[float, float] | None = None
    """Own pixels per pixel of the finest grid, down and across; None: both cover the same ground."""
    start: tuple[float, float] = (0.0, 0.0)
    """Where the finest grid's upper left corner lies, in own pixels."""


@dataclass(frozen=True)
class Place:
    """Where a grid lies, as far as the file says."""

    step: tuple[float, float] | None = None
    """Metres per pixel, down and across."""
    epsg: int | None = None
    crs: str = ""
    """Code of a coordinate system that EPSG does not list: ESRI:102003."""
    affine: tuple[float, float, float, float, float, float] | None = None
    """a b c d e f: x = a column + b row + c, y = d column + e row + f, in the units of the CRS, (0, 0) being the upper
    left corner of the upper left pixel."""
    of_file: tuple[float, ...] | None = None
    """The same of the grid of the file, whatever it is brought to."""
    system: str = ""
    """The coordinate system so that it can be written again: a code, or its definition in PROJ's words."""


@dataclass(frozen=True)
class Scene:
    """What one manifest row holds: layers by what they stand for, and the grid that they are brought to."""

    layers: dict[str, Layer]
    shape: tuple[int, int]
    """H W of the target grid."""
    place: Place
    format: str
    native: tuple[int, int]
    """H W of the finest band's own grid."""
    files: tuple[Path, ...] = ()
    """What holds its bands."""
    wavelengths: dict[str, float] = field(default_factory=dict)
    """Nanometres of the bands that were found by them, by what they stand for."""


@dataclass(frozen=True)
class Reading:
    """One window of a scene."""

    values: np.ndarray
    """C H W uint16."""
    negative: float
    """Share of the known values that was below zero."""
    dead: tuple[str, ...]
    """Bands of the file that hold one value, or none, where another band varies."""


def check_size(scene: Scene, settings: Multispectral) -> None:
    """Refuse what is too large for its `cut`, by the header alone."""
    limit = tuple(WHOLE_LIMIT * side for side in settings.size)
    if settings.cut == "whole" and any(have > most for have, most in zip(scene.shape, limit, strict=True)):
        raise Refused(f"found {scene.shape[0]} x {scene.shape[1]} pixels, expected at most {limit[0]} x {limit[1]} "
                      f"({WHOLE_LIMIT} times `size`) for one sample. Remedy: set `cut: tiles`.")
    need = _bytes(scene, settings)
    if need > BUDGET:
        raise Refused(f"found {scene.shape[0]} x {scene.shape[1]} pixels in {len(settings.bands)} bands, {need} bytes; "
                      f"expected at most {BUDGET}. Remedy: cut the scene into several files.")


def _bytes(scene: Scene, settings: Multispectral) -> int:
    """What the scene's samples take."""
    return len(settings.bands) * scene.shape[0] * scene.shape[1] * 2


def whole(scene: Scene, mask: Layer | None, settings: Multispectral) -> Piece:
    """The scene as one sample, padded where it is smaller than `size`."""
    box = (0, scene.shape[0], 0, scene.shape[1])
    read = _read_window(scene, settings, box)
    share = _known_share(read.values)
    if share < settings.min_known:
        raise Refused(f"found {share:.0%} of the pixels with a value, expected {settings.min_known:.0%} (`min_known`).")
    margins = tuple(grid.margin(have, want) for have, want in zip(scene.shape, settings.size, strict=True))
    return Piece(values=grid.pad_to(read.values, settings.size, UNKNOWN, centred=True),
                 mask=None if mask is None else grid.pad_to(_classes(mask, scene, box), settings.size, UNKNOWN_CLASS,
                                                            centred=True),
                 facts=_facts(scene, settings, box, share, read, margins), placement=placed(scene, box, margins))


def tiles(scene: Scene, mask: Layer | None, settings: Multispectral, part: int) -> list[Piece] | Part:
    """The scene as a grid of samples; those with too little in them are left out and counted.

    A scene of more than PART_BYTES comes in parts. It is read twice: the first parts hold nothing and only see that
    all of it can be decoded, so that no sample is stored of a scene that is refused in the end.
    """
    need = _bytes(scene, settings)
    boxes = list(grid.tiles(scene.shape, settings.size))
    per_part = min(MOST_TILES, max(1, len(boxes) * PART_BYTES // need) if need > PART_BYTES else len(boxes))
    num_parts = -(-len(boxes) // per_part)
    if num_parts == 1:
        pieces, skipped = _tiles(scene, mask, settings, boxes)
        if not pieces:
            raise Refused(f"found no tile of {settings.size[0]} x {settings.size[1]} with {settings.min_known:.0%} of "
                          f"its pixels known (`min_known`) among {skipped}.")
        return pieces
    mine = boxes[part % num_parts * per_part:][:per_part]
    if part < num_parts:
        for box in mine:
            _read_window(scene, settings, box)
            if mask is not None:
                _classes(mask, scene, box)
        return Part([], more=True)
    return Part(_tiles(scene, mask, settings, mine)[0], more=part < 2 * num_parts - 1)


def _tiles(scene: Scene, mask: Layer | None, settings: Multispectral,
           boxes: list[tuple[int, int, int, int]]) -> tuple[list[Piece], int]:
    """The samples of some tiles, and how many were left out; each sample has that number among its facts."""
    pieces: list[Piece] = []
    skipped = 0
    for box in boxes:
        read = _read_window(scene, settings, box)
        values = grid.pad_to(read.values, settings.size, UNKNOWN, centred=False)
        share = _known_share(values)
        if share < settings.min_known:
            skipped += 1
            continue
        classes = None if mask is None else grid.pad_to(_classes(mask, scene, box), settings.size, UNKNOWN_CLASS,
                                                        centred=False)
        pieces.append(Piece(values=values, mask=classes, suffix=f"@r{box[0]}c{box[2]}",
                            facts=_facts(scene, settings, box, share, read), placement=placed(scene, box)))
    return [replace(piece, facts={**piece.facts, "tiles_skipped": skipped}) for piece in pieces], skipped


def _classes(mask: Layer, scene: Scene, box: tuple[int, int, int, int]) -> np.ndarray:
    """H W uint8 of one window of the target grid: the class of the mask's pixel that each middle lies in."""
    rows, columns = (((np.arange(*ends) + 0.5) * have / want).astype(int) for ends, have, want in
                     zip((box[:2], box[2:]), mask.shape, scene.shape, strict=True))
    values, known = mask.window(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
    if values.min() < 0 or values.max() > UNKNOWN_CLASS:
        raise Refused(f"mask: found values from {values.min():g} to {values.max():g}, expected 0 to {UNKNOWN_CLASS}.")
    classes = values if known is None else np.where(known, values, UNKNOWN_CLASS)
    return classes.astype(np.uint8)[np.ix_(rows - rows[0], columns - columns[0])]


def _read_window(scene: Scene, settings: Multispectral, box: tuple[int, int, int, int]) -> Reading:
    """One window of the target grid."""
    top, bottom, left, right = box
    stored = np.full((len(settings.bands), bottom - top, right - left), UNKNOWN, np.uint16)
    negative = total = 0
    flat, varied = [], False
    for channel, (name, identity) in enumerate(zip(settings.bands, settings.identities, strict=True)):
        if identity not in scene.layers:
            continue
        band = _on_grid(scene.layers[identity], scene, settings, box)
        negative += band.negative
        total += band.total
        if band.total == 0 or (band.total >= FEW_PIXELS and band.low == band.high):
            flat.append(name)
        varied |= band.low < band.high
        stored[channel] = band.stored
    return Reading(stored, negative / max(total, 1), tuple(flat) if varied else ())


def _on_grid(layer: Layer, scene: Scene, settings: Multispectral,
             box: tuple[int, int, int, int]) -> Band:
    """One band in one window of the target grid."""
    how = decode.scaling(settings, layer.scaled)
    if layer.shape == scene.shape and layer.ratio is None:
        raw, told = layer.window(*box)
        return decode.stored_of_few(raw, told, how) if decode.is_listed(raw) else \
            decode.stored(*decode.reflectance(raw, told, how))
    zoom = [have / want for have, want in zip(scene.native, scene.shape, strict=True)]
    ratios = ([have / want for have, want in zip(layer.shape, scene.shape, strict=True)] if layer.ratio is None
              else [own * finest for own, finest in zip(layer.ratio, zoom, strict=True)])
    sides = ((box[0], box[1]), (box[2], box[3]))
    spans = [grid.span(*side, ratio, length, start)
             for side, ratio, length, start in zip(sides, ratios, layer.shape, layer.start, strict=True)]
    values, known = decode.reflectance(*layer.window(*spans[0], *spans[1]), how)
    down, across = (grid.weights(side, span, ratio, settings.resampling, start)
                    for side, span, ratio, start in zip(sides, spans, ratios, layer.start, strict=True))
    values, known = grid.resample(values, known, down, across)
    covered = [np.abs(grid.centres(side, ratio, start) - (length - 1) / 2) <= length / 2
               for side, ratio, length, start in zip(sides, ratios, layer.shape, layer.start, strict=True)]
    return decode.stored(values, known & covered[0][:, None] & covered[1][None, :])


def _known_share(values: np.ndarray) -> float:
    known = values[0] != UNKNOWN
    for band in values[1:]:
        if known.all():
            break
        known |= band != UNKNOWN
    return float(known.mean())


def _facts(scene: Scene, settings: Multispectral, box: tuple[int, int, int, int], share: float, read: Reading,
           margins: tuple[int, ...] = (0, 0)) -> dict[str, Fact]:
    """Numbers and codes alone; the bands are told by the settings' names, never by a header's.

    Args:
        margins: rows and columns of padding before the window.
    """
    found = [(name, identity) for name, identity in zip(settings.bands, settings.identities, strict=True)
             if identity in scene.layers]
    facts: dict[str, Fact] = {
        "format": scene.format,
        "scene_shape": list(scene.shape),
        "bands": [name for name, _ in found],
        "known": round(share, 4),
        "negative": round(read.negative, 4),
    }
    if read.dead:
        facts["dead_bands"] = list(read.dead)
    if scene.wavelengths:
        facts["wavelengths_nm"] = [round(scene.wavelengths.get(identity, 0.0), 1) for _, identity in found]
    return facts | _where(scene.place, box, margins)


def placed(scene: Scene, box: tuple[int, int, int, int], margins: tuple[int, ...] = (0, 0)) -> Placement:
    """Where a window of the target grid, after `margins` rows and columns of padding, lies on the finest band's own
    grid."""
    steps = [have / want for have, want in zip(scene.native, scene.shape, strict=True)]
    starts = [(first - before + 0.5) * step - 0.5
              for first, before, step in zip((box[0], box[2]), margins, steps, strict=True)]
    return Placement(shape=scene.native, axes=(0, 1), starts=tuple(starts), steps=tuple(steps),
                     affine=scene.place.of_file or (), crs=scene.place.system)


def _where(place: Place, box: tuple[int, int, int, int], margins: tuple[int, ...]) -> dict[str, Fact]:
    """What puts a sample back on the map: resolution, coordinate system, affine of the stored pixels (padding
    included), and for upright grids the bounds of those that came from the file."""
    facts: dict[str, Fact] = {}
    if place.step is not None:
        facts["metres_per_pixel"] = [round(place.step[0], 4), round(place.step[1], 4)]
    if place.epsg is not None:
        facts["epsg"] = place.epsg
    if place.crs:
        facts["crs"] = place.crs
    if place.affine is not None:
        a, b, c, d, e, f = place.affine
        row, column = box[0] - margins[0], box[2] - margins[1]
        facts["affine"] = [a, b, a * column + b * row + c, d, e, d * column + e * row + f]
        if b == d == 0:
            across, down = sorted((c + box[2] * a, c + box[3] * a)), sorted((f + box[1] * e, f + box[0] * e))
            facts["bounds"] = [across[0], down[0], across[1], down[1]]
    return facts
