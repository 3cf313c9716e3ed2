"""Reads multispectral scenes: GeoTIFF with several bands, one file per band, TIFF without georeference, .npy.

Bands are matched by name, never by position. Everything leaves as uint16 reflectance x 10000 with 65535 where there is
no data: nodata, not-a-number, padding, and bands that a file lacks. So sources with different bands can be pooled.

Legend: C channels in the order of `bands`, H W rows and columns of the target grid.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from domains.contract import Channel, Contract
from domains.sample import ManifestRow, Part, Piece, Refused
from domains.satellite import bands as names
from domains.satellite import georeference, npy, products, units
from domains.satellite import scene as scenes
from domains.satellite.bands import Sensor
from domains.satellite.raster import Raster, Rasters
from domains.satellite.scene import Layer, Place, Scene
from domains.satellite.settings import Encoding, Multispectral
from domains.satellite.units import REFLECTANCE, UNKNOWN

__all__ = ["Encoding", "Multispectral", "contract", "implausible", "read", "suffixes"]

RASTER_SUFFIXES = (".tif", ".tiff", ".jp2")
NOT_IMAGES = ("MSK_",)
"""How Sentinel-2 products begin the names of quality masks, which end like the band that they are about."""


def suffixes(settings: Multispectral) -> tuple[str, ...]:
    """Endings of the files read, in small letters. "/" stands for a folder with one file per band."""
    return (*RASTER_SUFFIXES, ".npy", "/")


def contract(settings: Multispectral) -> Contract:
    """What these settings make, without statistics."""
    channels = []
    for name in settings.bands:
        identity = names.identify(name, settings.sensor)
        assert identity is not None, "names are checked with the settings"
        channels.append(Channel(name=name, unit=f"reflectance x {REFLECTANCE}",
                                wavelength_nm=settings.wanted_wavelengths.get(identity),
                                low=0.0, high=settings.brightest * REFLECTANCE))
    spacing = None if settings.resolution_m is None else (settings.resolution_m, settings.resolution_m)
    return Contract(domain="satellite", kind="multispectral", channels=tuple(channels), dtype="uint16",
                    size=settings.size, unknown=UNKNOWN, spacing=spacing)


def implausible(pieces: list[Piece], settings: Multispectral) -> str | None:
    """A sentence when the pieces contradict reflectance as declared."""
    if not settings.check_units:
        return None
    negative = [share for piece in pieces if isinstance(share := piece.facts.get("negative"), float)]
    return units.contradiction([piece.values for piece in pieces], settings.bands, negative)


def read(row: ManifestRow, settings: Multispectral) -> list[Piece] | Part:
    """One manifest row as samples; a part of them where the scene is too large to be held whole.

    Raises:
        Refused: with the reason.
    """
    sensor, listed = settings.naming(row.source)
    encoded = products.with_nodata(row.path.parts, sensor, settings.of_source(row.source))
    with ExitStack() as stack:
        rasters = Rasters(stack)
        scene = _open(row, encoded, sensor, listed, rasters)
        mask = None if row.mask_path is None else _open_mask(row.mask_path, scene, rasters)
        scenes.check_size(scene, encoded)
        if row.part == 0:
            rasters.check((*scene.files, row.mask_path))
        if settings.cut == "whole":
            return [scenes.whole(scene, mask, encoded)]
        return scenes.tiles(scene, mask, encoded, row.part)


# ---- opening ----

def _open(row: ManifestRow, settings: Multispectral, sensor: Sensor, listed: tuple[str, ...],
          rasters: Rasters) -> Scene:
    """The row's file or folder as a scene on one grid."""
    path = _plain(row.path, row.content is not None)
    told: dict[str, float] = {}
    files: tuple[Path, ...] = (path,)
    if row.content is None and path.is_dir():
        layers, place, form, files = _open_folder(path, settings, sensor, rasters)
    else:
        listed = listed or _names_in_manifest(row, settings, sensor)
        if path.suffix.lower() == ".npy":
            layers, place, form = _open_npy(row, listed, sensor)
        else:
            layers, place, form, told = _open_stacked(path, listed, settings, sensor, rasters)
    layers = {identity: layer for identity, layer in layers.items() if identity in settings.identities}
    if not layers:
        raise Refused(f"found none of the bands {', '.join(settings.bands)} in it, expected at least one. "
                      "Remedy: correct `sensor`, `bands` or the names in the manifest.")
    products.check({*path.parts, *(file.name for file in files)}, sensor, settings,
                   any(layer.scaled for layer in layers.values()))
    finest = max((layer.shape for layer in layers.values()), key=math.prod)
    return Scene(layers, *georeference.target(finest, place, settings.resolution_m), format=form, native=finest,
                 files=files, wavelengths=told)


def _plain(path: Path, is_there: bool = False) -> Path:
    """The path, if it is a file or folder on a disk. GDAL would take URLs and its own virtual file systems as well."""
    text = str(path).lower()
    if "/vsi" in text or ":/" in text or not (is_there or path.is_file() or path.is_dir()):
        raise Refused("found no file or folder of this name. Remedy: correct the path in the manifest; addresses and "
                      "GDAL's virtual paths are never opened.")
    return path


def _names_in_manifest(row: ManifestRow, settings: Multispectral, sensor: Sensor) -> tuple[str, ...]:
    listed = names.split_names(row.columns.get(settings.bands_column, "")) if settings.bands_column else ()
    strange = [name for name in listed if name != names.UNUSED and names.identify_loosely(name, sensor) is None]
    if strange:
        raise Refused(f"found {', '.join(strange)} in column {settings.bands_column}, expected bands of {sensor}, or "
                      f"{names.UNUSED} for one to pass over. Remedy: correct the manifest or `sensor`.")
    return listed


def _scaled(dataset: Any, index: int, settings: Multispectral) -> tuple[float, float] | None:
    """A band's own scale and offset where they count; None where those of the settings do."""
    declared = (float(dataset.scales[index - 1]), float(dataset.offsets[index - 1]))
    if declared == (1.0, 0.0):  # what GDAL says of a file that says nothing
        return None
    if not all(map(math.isfinite, declared)):
        raise Refused("found a scale or offset in the file that is no finite number.")
    if settings.scaling == "file":
        return declared
    if not np.allclose(declared, (settings.scale, settings.offset), rtol=1e-4, atol=1e-9):
        raise Refused(f"found scale {declared[0]:g} and offset {declared[1]:g} in the file, expected "
                      f"{settings.scale:g} and {settings.offset:g} as set. Remedy: set `scale` and `offset` to the "
                      "file's, or `scaling: file` to take every band's own; for this source alone under `by_source`.")
    return None


def _identities(listed: tuple[str, ...], sensor: Sensor) -> list[str | None]:
    """What the names stand for; None for bands to pass over."""
    return [None if name == names.UNUSED else names.identify_loosely(name, sensor) for name in listed]


def _by_identity(found: list[tuple[str | None, Layer]]) -> dict[str, Layer]:
    layers: dict[str, Layer] = {}
    for identity, layer in found:
        if identity in layers:
            raise Refused(f"found band {identity} twice, expected every band once. Remedy: remove or rename one.")
        if identity is not None:
            layers[identity] = layer
    return layers


def _open_stacked(path: Path, listed: tuple[str, ...], settings: Multispectral, sensor: Sensor,
                  rasters: Rasters) -> tuple[dict[str, Layer], Place, str, dict[str, float]]:
    """One file with all bands, named by the settings, the manifest or the file itself, or found by the wavelengths that
    the file tells; never by position. Those wavelengths come last."""
    raster = rasters.open(path)
    dataset = raster.dataset
    described = [names.identify_loosely(text, sensor) if text else None for text in dataset.descriptions]
    identities = _identities(listed, sensor) or described
    if len(identities) != dataset.count:
        raise Refused(f"found {dataset.count} bands in the file, expected the {len(identities)} that are named. "
                      f"Remedy: correct the names in `file_bands` or in the manifest; {names.UNUSED} passes one over.")
    at_odds = [str(i) for i, (said, told) in enumerate(zip(identities, described, strict=True), start=1)
               if said and told and said != told]
    if at_odds:
        raise Refused(f"found other names inside the file than set for bands {', '.join(at_odds)}, expected both to "
                      "agree. Remedy: correct `file_bands` or the manifest, or drop them to take the file's own.")
    found = _wavelengths(dataset)
    matched = {} if listed else _by_wavelength(identities, found, settings, sensor)
    identities = [matched.get(i, identity) for i, identity in enumerate(identities)]
    if not any(identities):
        raise Refused(f"found {dataset.count} bands without names, expected to know each. Remedy: name them in file "
                      "order under `file_bands`, or per file in a manifest column named by `bands_column`.")
    _check_wavelengths(identities, found, settings, sensor)
    alpha = not any(identity and colour.name == "alpha"
                    for identity, colour in zip(identities, dataset.colorinterp, strict=True))
    layers = _by_identity([(identity, raster.layer(i, _scaled(dataset, i, settings), alpha))
                           for i, identity in enumerate(identities, start=1) if identity in settings.identities])
    told = {identity: nm for i, identity in matched.items() if (nm := found[i]) is not None}
    return layers, georeference.place(dataset), dataset.driver, told


def _wavelengths(dataset: Any) -> list[float | None]:
    """What the file says of each band's wavelength, in nm."""
    try:
        return [names.told_wavelength(text or "", {**dataset.tags(i), **dataset.tags(i, ns="IMAGERY")})
                for i, text in enumerate(dataset.descriptions, start=1)]
    except UnicodeDecodeError as error:
        raise Refused(f"{dataset.driver} could not be opened ({type(error).__name__}); the file is damaged.") from error


def _by_wavelength(identities: list[str | None], found: list[float | None], settings: Multispectral,
                   sensor: Sensor) -> dict[int, str]:
    """Place in the file -> what it stands for, of bands whose name says nothing. For sensor `other` any text is a name,
    so there all are looked at whose name is neither asked for nor common."""
    known = {identity for identity in identities if identity in settings.identities}
    free = [nm if identity is None or (sensor == "other" and identity not in names.GENERIC and identity not in known)
            else None for identity, nm in zip(identities, found, strict=True)]
    wanted = {identity: nm for identity, nm in settings.wanted_wavelengths.items() if identity not in known}
    return {i: identity for i, identity in enumerate(names.by_wavelength(free, wanted)) if identity is not None}


def _check_wavelengths(identities: list[str | None], found: list[float | None], settings: Multispectral,
                       sensor: Sensor) -> None:
    for i, (identity, nm) in enumerate(zip(identities, found, strict=True), start=1):
        if identity is None or nm is None or identity in names.BROAD:
            continue
        nominal = settings.wanted_wavelengths.get(identity) or names.wavelength(identity, sensor)
        if nominal and abs(nm - nominal) > names.CONTRADICTS * nominal:
            raise Refused(f"found {nm:g} nm in the file for band {i}, expected about {nominal:g} nm by its name. "
                          "Remedy: correct `sensor`, `file_bands` or the names in the manifest.")


def _open_folder(path: Path, settings: Multispectral, sensor: Sensor,
                 rasters: Rasters) -> tuple[dict[str, Layer], Place, str, tuple[Path, ...]]:
    """A folder with one file per band, in itself or in folders by resolution (R10m, R20m), named by how each file's
    name ends; of several resolutions the finest."""
    finest: dict[str, Raster] = {}
    for file in sorted(path.rglob("*")):
        identity = names.of_file(file.stem, sensor) if file.suffix.lower() in RASTER_SUFFIXES else None
        if identity not in settings.identities or file.name.startswith(NOT_IMAGES) or not file.is_file():
            continue
        raster = rasters.open(file)
        if raster.dataset.count != 1:
            raise Refused(f"found {raster.dataset.count} bands in one file of the folder, expected 1 in each.")
        other = finest.get(identity)
        if other is not None and other.dataset.shape == raster.dataset.shape:
            raise Refused(f"found band {identity} twice at one resolution, expected it once. Remedy: remove one file.")
        if other is None or raster.dataset.height > other.dataset.height:
            finest[identity] = raster
    if not finest:
        raise Refused(f"found no file whose name ends in one of {', '.join(settings.bands)}, expected e.g. "
                      "scene_B02.tif. Remedy: rename the files, or correct `bands` and `sensor`.")
    widest = max((raster.dataset for raster in finest.values()), key=lambda dataset: dataset.height)
    for raster in finest.values():
        georeference.check_same_ground(raster.dataset, widest)
    layers = {identity: georeference.on_reference(raster.layer(1, _scaled(raster.dataset, 1, settings)), raster.dataset,
                                                  widest) for identity, raster in finest.items()}
    return layers, georeference.place(widest), f"{widest.driver} per band", tuple(
        raster.path for raster in finest.values())


def _open_npy(row: ManifestRow, listed: tuple[str, ...],
              sensor: Sensor) -> tuple[dict[str, Layer], Place, str]:
    """An array C H W."""
    array = None if row.content is None else npy.array_of(row.content)
    if array is None:
        array = npy.mapped(row.path)
    if array.ndim != 3 or array.dtype.kind not in "iuf":
        raise Refused(f"found {array.dtype} of shape {array.shape}, expected real numbers of bands x rows x columns.")
    if len(listed) != array.shape[0]:
        raise Refused(f"found {array.shape[0]} bands and {len(listed)} names, expected as many. Remedy: name them in "
                      "order under `file_bands`, or in a manifest column named by `bands_column`.")

    def layer(index: int) -> Layer:
        def window(top: int, bottom: int, left: int, right: int) -> tuple[np.ndarray, None]:
            values = array[index, top:bottom, left:right]
            return (np.array(values) if row.content is None else values), None  # a mapped file may change
        return Layer(shape=(array.shape[1], array.shape[2]), window=window)

    named = [(identity, layer(i)) for i, identity in enumerate(_identities(listed, sensor))]
    return _by_identity(named), Place(), "npy"


def _open_mask(path: Path, scene: Scene, rasters: Rasters) -> Layer:
    """A mask with the pixels of the scene's finest band; nodata is UNKNOWN_CLASS."""
    raster = rasters.open(_plain(path))
    dataset = raster.dataset
    if dataset.count != 1 or dataset.shape != scene.native:
        raise Refused(f"mask: found {dataset.count} bands of {dataset.shape} pixels, expected 1 of {scene.native} like "
                      "the scene. Remedy: correct the mask column, or resample the mask.")
    if np.dtype(dataset.dtypes[0]).kind not in "iub":
        raise Refused(f"mask: found {dataset.dtypes[0]}, expected whole numbers from 0 to 255.")
    georeference.check_mask(dataset, scene.place)
    return raster.layer(1)
