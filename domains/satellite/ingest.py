"""Reads multispectral scenes: GeoTIFF with several bands, one file per band, TIFF without georeference, .npy.

Bands are matched by name, never by position. Everything leaves as uint16 reflectance x 10000 with 65535 where there is
no data: nodata, not-a-number, padding, and bands that a file lacks. So sources with different bands can be pooled.

Legend: C channels in the order of `bands`, H W rows and columns of the target grid.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from domains.contract import SPACING_TOLERANCE, Channel, Contract
from domains.sample import UNKNOWN_CLASS, ManifestRow, Piece, Refused
from domains.satellite import bands as names
from domains.satellite import scene as scenes
from domains.satellite import units
from domains.satellite.bands import Sensor
from domains.satellite.scene import BUDGET, Layer, Place, Scene
from domains.satellite.settings import Encoding, Multispectral
from domains.satellite.units import REFLECTANCE, UNKNOWN

__all__ = ["Encoding", "Multispectral", "contract", "implausible", "read", "suffixes"]

RASTER_SUFFIXES = (".tif", ".tiff", ".jp2")
MAGIC = {"GTiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "JP2OpenJPEG": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
         "PNG": (b"\x89PNG",)}
DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG", ".png": "PNG"}
BLOCK_BUDGET = 2**28
"""Bytes that one strip or tile inside a file may decode to: GDAL reads these whole."""
METRES_PER_DEGREE = 111_320.0
"""Along a meridian; grids in degrees get their ground resolution from it."""


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
                                wavelength_nm=names.wavelength(identity, settings.sensor),
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


def read(row: ManifestRow, settings: Multispectral) -> list[Piece]:
    """One manifest row as samples.

    Raises:
        Refused: with the reason.
    """
    encoded = settings.of_source(row.source)
    with ExitStack() as stack:
        scene = _open(row, encoded, *settings.naming(row.source), stack)
        mask = None if row.mask_path is None else _read_mask(row.mask_path, scene, stack)
        if settings.cut == "whole":
            return [scenes.whole(scene, mask, encoded)]
        return scenes.tiles(scene, mask, encoded)


# ---- opening: by allow-list, with nothing read beside the file itself ---------------------------------------------


@contextmanager
def _gdal() -> Iterator[Any]:
    """rasterio, told to look at nothing but the file it is given."""
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ImportError as error:
        raise ImportError("reading GeoTIFF needs rasterio: pip install 'lacuna[satellite]'") from error
    with warnings.catch_warnings(), rasterio.Env(
        GDAL_SKIP="VRT",  # a text file that makes GDAL open whatever it names
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",  # no side-car files
        GDAL_PAM_ENABLED="NO",
        GDAL_CACHEMAX=64,
        PROJ_NETWORK="OFF",
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # GDAL's messages quote headers; what went wrong is told by the exception's kind.
        log = logging.getLogger("rasterio")
        before = log.level
        log.setLevel(logging.CRITICAL + 1)
        try:
            yield rasterio
        finally:
            log.setLevel(before)


def _open(row: ManifestRow, settings: Multispectral, sensor: Sensor, listed: tuple[str, ...],
          stack: ExitStack) -> Scene:
    """The row's file or folder as a scene on one grid."""
    path = _plain(row.path)
    if path.is_dir():
        layers, place, form = _open_folder(path, settings, sensor, stack)
    else:
        listed = listed or _names_in_manifest(row, settings, sensor)
        if path.suffix.lower() == ".npy":
            layers, place, form = _open_npy(path, listed, sensor)
        else:
            layers, place, form = _open_stacked(path, listed, settings, sensor, stack)
    layers = {identity: layer for identity, layer in layers.items() if identity in settings.identities}
    if not layers:
        raise Refused(f"found none of the bands {', '.join(settings.bands)} in it, expected at least one. "
                      "Remedy: correct `sensor`, `bands` or the names in the manifest.")
    finest = max((layer.shape for layer in layers.values()), key=math.prod)
    return Scene(layers, *_target(finest, place, settings.resolution_m), format=form)


def _plain(path: Path) -> Path:
    """The path, if it is a file or folder on a disk. GDAL would take URLs and its own virtual file systems as well."""
    text = str(path).lower()
    if "/vsi" in text or ":/" in text or not (path.is_file() or path.is_dir()):
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


def _open_raster(path: Path, stack: ExitStack) -> Any:
    """A dataset opened by the driver that its ending stands for, if its first bytes and its size agree."""
    driver = DRIVERS.get(path.suffix.lower())
    if driver is None or not path.is_file():
        raise Refused(f"found a file that does not end in {', '.join(DRIVERS)}, expected one of them.")
    with path.open("rb") as file:
        start = file.read(12)
    if not start.startswith(MAGIC[driver]):
        raise Refused(f"found a file that does not begin like {driver}, expected one. It may be cut off or misnamed.")
    rasterio = stack.enter_context(_gdal())
    try:
        dataset = stack.enter_context(rasterio.open(path, driver=driver))
        # Asked for once here, because damaged ones raise when they are first decoded.
        _ = dataset.descriptions, dataset.scales, dataset.offsets, dataset.nodatavals, dataset.crs, dataset.transform
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError, UnicodeDecodeError) as error:
        raise Refused(f"{driver} could not be opened ({type(error).__name__}); the file is damaged, or this GDAL "
                      "has no such driver.") from error
    for (height, width), dtype in zip(dataset.block_shapes, dataset.dtypes, strict=True):
        if "complex" in dtype or height * width * np.dtype(dtype).itemsize > BLOCK_BUDGET:
            raise Refused(f"found blocks of {height} x {width} {dtype}, expected real numbers in at most "
                          f"{BLOCK_BUDGET} bytes. Remedy: rewrite the file with tiles of 512 x 512.")
    return dataset


def _layer(dataset: Any, index: int, settings: Multispectral) -> Layer:
    """Band `index` (from 1) of an open dataset."""
    declared = (dataset.scales[index - 1], dataset.offsets[index - 1])
    if declared != (1.0, 0.0) and not np.allclose(declared, (settings.scale, settings.offset), rtol=1e-4, atol=1e-9):
        raise Refused(f"found scale {declared[0]:g} and offset {declared[1]:g} in the file, expected "
                      f"{settings.scale:g} and {settings.offset:g} as set. Remedy: set `scale` and `offset` to the "
                      "file's, for this source alone under `by_source`.")

    def window(top: int, bottom: int, left: int, right: int) -> tuple[np.ndarray, np.ndarray]:
        from rasterio.errors import RasterioError
        box = ((top, bottom), (left, right))
        try:
            values = dataset.read(index, window=box)
            return values, dataset.read_masks(index, window=box) > 0  # nodata, alpha and masks inside the file
        except RasterioError as error:
            raise Refused(f"{dataset.driver} could not be decoded ({type(error).__name__}); the file is "
                          "damaged.") from error

    return Layer(shape=(dataset.height, dataset.width), window=window)


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
                  stack: ExitStack) -> tuple[dict[str, Layer], Place, str]:
    """One file with all bands, named by the settings, the manifest or the file itself; never by position."""
    dataset = _open_raster(path, stack)
    described = [names.identify_loosely(text, sensor) if text else None for text in dataset.descriptions]
    identities = _identities(listed, sensor) or described
    if len(identities) != dataset.count:
        raise Refused(f"found {dataset.count} bands in the file, expected the {len(identities)} that are named. "
                      "Remedy: correct the names in `file_bands` or in the manifest.")
    if not any(identities):
        raise Refused(f"found {dataset.count} bands without names, expected to know each. Remedy: name them in file "
                      "order under `file_bands`, or per file in a manifest column named by `bands_column`.")
    at_odds = [str(i) for i, (said, told) in enumerate(zip(identities, described, strict=True), start=1)
               if said and told and said != told]
    if at_odds:
        raise Refused(f"found other names inside the file than set for bands {', '.join(at_odds)}, expected both to "
                      "agree. Remedy: correct `file_bands` or the manifest, or drop them to take the file's own.")
    layers = _by_identity([(identity, _layer(dataset, i, settings))
                           for i, identity in enumerate(identities, start=1) if identity in settings.identities])
    return layers, _place(dataset), dataset.driver


def _open_folder(path: Path, settings: Multispectral, sensor: Sensor,
                 stack: ExitStack) -> tuple[dict[str, Layer], Place, str]:
    """A folder with one file per band, named by how each file's name ends; of several resolutions the finest."""
    finest: dict[str, Any] = {}
    for file in sorted(path.iterdir()):
        identity = names.of_file(file.stem, sensor) if file.suffix.lower() in RASTER_SUFFIXES else None
        if identity not in settings.identities or not file.is_file():
            continue
        dataset = _open_raster(file, stack)
        if dataset.count != 1:
            raise Refused(f"found {dataset.count} bands in one file of the folder, expected 1 in each.")
        other = finest.get(identity)
        if other is not None and other.shape == dataset.shape:
            raise Refused(f"found band {identity} twice at one resolution, expected it once. Remedy: remove one file.")
        if other is None or dataset.height > other.height:
            finest[identity] = dataset
    if not finest:
        raise Refused(f"found no file whose name ends in one of {', '.join(settings.bands)}, expected e.g. "
                      "scene_B02.tif. Remedy: rename the files, or correct `bands` and `sensor`.")
    widest = max(finest.values(), key=lambda dataset: dataset.height)
    for dataset in finest.values():
        _check_same_ground(dataset, widest)
    layers = {identity: _layer(dataset, 1, settings) for identity, dataset in finest.items()}
    return layers, _place(widest), f"{widest.driver} per band"


def _check_same_ground(dataset: Any, reference: Any) -> None:
    """Bands of one scene cover the same ground, to within one pixel of the coarser."""
    step = max(abs(dataset.transform.a), abs(reference.transform.a))
    gap = max(abs(a - b) for a, b in zip(dataset.bounds, reference.bounds, strict=True))
    if dataset.crs != reference.crs or (dataset.crs is not None and gap > step):
        raise Refused("found bands that cover different ground or use different coordinate systems, expected one grid. "
                      "Remedy: put the bands of one scene only into a folder.")
    ratios = [have / want for have, want in zip(dataset.shape, reference.shape, strict=True)]
    if dataset.crs is None and abs(ratios[0] - ratios[1]) > SPACING_TOLERANCE * ratios[0]:
        raise Refused(f"found bands of {dataset.shape} and {reference.shape} pixels, expected the same proportions.")


def _open_npy(path: Path, listed: tuple[str, ...], sensor: Sensor) -> tuple[dict[str, Layer], Place, str]:
    """An array C H W. It is mapped, so a header that claims more than the file holds is refused by numpy."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise Refused(f".npy could not be opened ({type(error).__name__}); expected an array of numbers.") from error
    if array.ndim != 3 or array.dtype.kind not in "iuf":
        raise Refused(f"found {array.dtype} of shape {array.shape}, expected real numbers of bands x rows x columns.")
    if len(listed) != array.shape[0]:
        raise Refused(f"found {array.shape[0]} bands and {len(listed)} names, expected as many. Remedy: name them in "
                      "order under `file_bands`, or in a manifest column named by `bands_column`.")

    def layer(index: int) -> Layer:
        def window(top: int, bottom: int, left: int, right: int) -> tuple[np.ndarray, np.ndarray]:
            values = np.array(array[index, top:bottom, left:right])
            return values, np.ones(values.shape, bool)
        return Layer(shape=(array.shape[1], array.shape[2]), window=window)

    named = [(identity, layer(i)) for i, identity in enumerate(_identities(listed, sensor))]
    return _by_identity(named), Place(), "npy"


# ---- where the pixels lie -----------------------------------------------------------------------------------------


def _place(dataset: Any) -> Place:
    """Resolution, CRS code and corner of a georeferenced dataset. Skewed grids keep their resolution alone."""
    crs, transform = dataset.crs, dataset.transform
    if crs is None or not (crs.is_geographic or crs.is_projected):  # a local system does not say where it lies
        return Place()
    step = (math.hypot(transform.b, transform.e), math.hypot(transform.a, transform.d))
    corner = (transform.c, transform.f, transform.a, transform.e) if transform.b == transform.d == 0 else None
    if crs.is_geographic:
        latitude = transform.f + transform.e * dataset.height / 2
        step = (step[0] * METRES_PER_DEGREE, step[1] * METRES_PER_DEGREE * math.cos(math.radians(latitude)))
    else:
        factor = crs.linear_units_factor[1]
        step = (step[0] * factor, step[1] * factor)
    if not all(math.isfinite(value) and value > 0 for value in step):
        raise Refused(f"found pixels of {step[0]:g} x {step[1]:g} m, expected both above 0; the georeference is "
                      "damaged.")
    return Place(step=step, epsg=crs.to_epsg(), corner=corner)


def _target(shape: tuple[int, int], place: Place, resolution: float | None) -> tuple[tuple[int, int], Place]:
    """The grid that everything is brought to: the finest band's, or that of `resolution_m`."""
    if resolution is None or place.step is None:
        return shape, place
    ratios = [step / resolution for step in place.step]
    if all(abs(ratio - 1) <= SPACING_TOLERANCE for ratio in ratios):
        return shape, place
    target = (max(1, round(shape[0] * ratios[0])), max(1, round(shape[1] * ratios[1])))
    corner = place.corner and (place.corner[0], place.corner[1], place.corner[2] * shape[1] / target[1],
                               place.corner[3] * shape[0] / target[0])
    return target, Place(step=(resolution, resolution), epsg=place.epsg, corner=corner)


def _read_mask(path: Path, scene: Scene, stack: ExitStack) -> np.ndarray:
    """H W uint8 of the classes on the scene's grid; nodata becomes UNKNOWN_CLASS."""
    dataset = _open_raster(_plain(path), stack)
    native = max((layer.shape for layer in scene.layers.values()), key=math.prod)
    if dataset.count != 1 or dataset.shape != native:
        raise Refused(f"mask: found {dataset.count} bands of {dataset.shape} pixels, expected 1 of {native} like the "
                      "scene. Remedy: correct the mask column, or resample the mask.")
    if dataset.height * dataset.width * 4 > BUDGET:
        raise Refused(f"mask: found {dataset.shape} pixels, expected at most {BUDGET} bytes.")
    values, known = dataset.read(1), dataset.read_masks(1) > 0
    if values.dtype.kind not in "iub" or values.min() < 0 or values.max() > UNKNOWN_CLASS:
        raise Refused(f"mask: found {values.dtype} up to {values.max():g}, expected whole numbers from 0 to "
                      f"{UNKNOWN_CLASS}.")
    mask = np.where(known, values, UNKNOWN_CLASS).astype(np.uint8)
    rows, columns = ((np.arange(want) + 0.5) * have / want for want, have in zip(scene.shape, native, strict=True))
    return mask[np.ix_(rows.astype(int), columns.astype(int))]
