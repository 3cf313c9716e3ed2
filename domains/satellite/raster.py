"""Rasters that GDAL opens: by allow-list, with nothing read beside the file itself, and small ones in one walk over
their blocks.

Legend: C bands of the file, H W its rows and columns.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from domains.sample import Refused
from domains.satellite import deflated
from domains.satellite.scene import Layer

MAGIC = {"GTiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "JP2OpenJPEG": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
         "PNG": (b"\x89PNG",)}
DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG", ".png": "PNG"}
BLOCK_BUDGET = 2**28
"""Bytes that one strip or tile inside a file may decode to: GDAL reads these whole."""
CACHE_BYTES = 2**28
"""Decoded blocks that GDAL keeps: a row of blocks of a Sentinel-2 granule in all its bands, so that none is decoded
again for the next tile."""
TOGETHER_BYTES = 2**26
"""Files of a row are decoded whole, and checked by their pixels, where these take no more than this."""


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
        GDAL_CACHEMAX=CACHE_BYTES,
        PROJ_NETWORK="OFF",
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # GDAL's messages quote headers; what went wrong is told by the exception's kind. A level would do as well, but
        # each change of one makes every logger of the process forget what it had looked up.
        log = logging.getLogger("rasterio")
        before = log.handlers, log.propagate
        log.handlers, log.propagate = [logging.NullHandler()], False
        try:
            yield rasterio
        finally:
            log.handlers, log.propagate = before


class Rasters:
    """The rasters of one manifest row, closed together with the stack that they were opened on."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._rasterio = stack, None
        self.opened: list[Raster] = []

    def open(self, path: Path) -> Raster:
        """The raster that the file's ending stands for, if its first bytes and its size agree. Raises Refused."""
        driver = DRIVERS.get(path.suffix.lower())
        if driver is None or not path.is_file():
            raise Refused(f"found a file that does not end in {', '.join(DRIVERS)}, expected one of them.")
        with path.open("rb", buffering=0) as file:
            start = file.read(12)
        if not start.startswith(MAGIC[driver]):
            raise Refused(f"found a file that does not begin like {driver}, expected one. It may be cut off or "
                          "misnamed.")
        if self._rasterio is None:
            self._rasterio = self._stack.enter_context(_gdal())
        self.opened.append(Raster(path, self._opened(self._rasterio, path, driver)))
        return self.opened[-1]

    def check(self, paths: Collection[Path | None]) -> None:
        """Refuse damage to deflated blocks of these files, as far as they are open here."""
        spare = TOGETHER_BYTES
        for raster in self.opened:
            if raster.path in paths:
                spare -= raster.check(spare)

    def _opened(self, rasterio: Any, path: Path, driver: str) -> Any:
        try:
            dataset = self._stack.enter_context(rasterio.open(path, driver=driver))
            # Asked for once here, because damaged ones raise when they are first decoded.
            _ = dataset.descriptions, dataset.scales, dataset.offsets, dataset.nodatavals, dataset.crs, \
                dataset.transform
        except (rasterio.errors.RasterioError, rasterio.errors.CRSError, UnicodeDecodeError) as error:
            raise Refused(f"{driver} could not be opened ({type(error).__name__}); the file is damaged, or this GDAL "
                          "has no such driver.") from error
        for (height, width), dtype in zip(dataset.block_shapes, dataset.dtypes, strict=True):
            if "complex" in dtype or height * width * np.dtype(dtype).itemsize > BLOCK_BUDGET:
                raise Refused(f"found blocks of {height} x {width} {dtype}, expected real numbers in at most "
                              f"{BLOCK_BUDGET} bytes. Remedy: rewrite the file with tiles of 512 x 512.")
        return dataset


class Raster:
    """One open file; where it is small, all of it is decoded once."""

    def __init__(self, path: Path, dataset: Any) -> None:
        self.path, self.dataset = path, dataset
        self._whole: np.ndarray | None = None
        """C H W where the file was decoded whole to be checked, and was found to be so."""

    @cached_property
    def _flags(self) -> Any:
        """What says which pixels are known, by band. GDAL makes them anew for all bands whenever it is asked, and looks
        for masks in the file then, of which a damaged one lacks more than its pixels."""
        return self.dataset.mask_flag_enums

    def layer(self, index: int, scaled: tuple[float, float] | None = None, alpha: bool = True) -> Layer:
        """Band `index` (from 1).

        Args:
            alpha: whether a band that the file calls alpha says what is known. Writers call the fourth of four 8-bit
                bands so by themselves; one that is named as a spectral band is none.
        """
        flags = {flag.name for flag in self._flags[index - 1]}
        masked = flags != {"all_valid"} and (alpha or "alpha" not in flags)
        return Layer((self.dataset.height, self.dataset.width), partial(self._window, index, masked), scaled)

    def _window(self, index: int, masked: bool, top: int, bottom: int, left: int,
                right: int) -> tuple[np.ndarray, np.ndarray | None]:
        from rasterio.errors import RasterioError
        box = ((top, bottom), (left, right))
        try:
            values = (self.dataset.read(index, window=box) if self._whole is None
                      else self._whole[index - 1, top:bottom, left:right])
            # Nodata, alpha and masks inside the file.
            return values, self.dataset.read_masks(index, window=box) > 0 if masked else None
        except RasterioError as error:
            raise Refused(f"{self.dataset.driver} could not be decoded ({type(error).__name__}); the file is "
                          "damaged.") from error

    def check(self, spare: int) -> int:
        """Refuse a TIFF of which a deflated block is damaged.

        Args:
            spare: bytes that may be kept of it, so that it need not be decoded again.

        Returns:
            The bytes that are.
        """
        if self.dataset.driver == "GTiff" and not deflated.check(self.path, BLOCK_BUDGET, lambda: self._decoded(spare)):
            self._whole = None
        return 0 if self._whole is None else self._whole.nbytes

    def _decoded(self, spare: int) -> np.ndarray | None:
        """C H W of all bands, None where they are large or cannot be decoded: then they are read window by window."""
        from rasterio.errors import RasterioError
        types = {np.dtype(dtype) for dtype in self.dataset.dtypes}
        if len(types) > 1 or self.dataset.count * math.prod(self.dataset.shape) * types.pop().itemsize > spare:
            return None
        try:
            self._whole = self.dataset.read()
        except RasterioError:  # told by whoever needs these pixels, after the checksums, which know more
            self._whole = None
        return self._whole
