"""Real files of four sources are read as their manifest stands, and the traps in them are found."""

import csv
from pathlib import Path

import numpy as np
import pytest

from domains.sample import ManifestRow, Piece
from domains.satellite import ingest
from domains.satellite.ingest import Encoding, Multispectral
from domains.satellite.units import UNKNOWN

pytest.importorskip("rasterio", reason="reads GeoTIFF: pip install 'lacuna[satellite]'")


def pieces(folder: Path, source: str, settings: Multispectral, most: int = 40) -> list[Piece]:
    """Of the first rows of a source."""
    with (folder / "multispectral/labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source][:most]
    return [piece for row in rows for piece in ingest.read(
        ManifestRow(folder / row["path"], row["path"], row["group"], row["split"], source,
                    folder / row["mask_path"] if row["mask_path"] else None, row), settings)]


def test_dead_bands_of_the_settlement_tiles_are_found_and_can_be_unknown(shared_data: Path) -> None:
    source = "satlab_slums_buenos_aires_s2"
    settings = Multispectral(bands=("B2", "B3", "B4", "B8A"), sensor="sentinel2", size=(32, 32), bands_column="bands",
                             resolution_m=10.0)
    told = ingest.implausible(pieces(shared_data, source, settings), settings)
    assert told is not None and "band B8A" in told and "`zero_is_nodata: true`" in told
    settings = Multispectral(bands=settings.bands, sensor="sentinel2", size=(32, 32), bands_column="bands",
                             by_source={source: Encoding(zero_is_nodata=True)})
    read = pieces(shared_data, source, settings)
    dead = [(piece.values[3] == UNKNOWN).all() for piece in read]
    assert any(dead) and not all(dead) and ingest.implausible(read, settings) is None
    assert {piece.facts["epsg"] for piece in read} == {32721}


def test_landsat_tiles_come_with_their_masks(shared_data: Path) -> None:
    settings = Multispectral(bands=("coastal", "blue", "green", "red", "nir", "swir1", "swir2"), sensor="landsat8",
                             size=(128, 128), bands_column="bands", resolution_m=30.0)
    read = pieces(shared_data, "landsat8_water_worldcover", settings)
    assert all(piece.values.shape == (7, 128, 128) and piece.mask is not None for piece in read)
    assert ingest.implausible(read, settings) is None
    # Water is dark in the near infrared: bands and masks lie on each other.
    nir = [(piece.values[4][piece.mask == 1].mean(), piece.values[4][piece.mask == 0].mean()) for piece in read
           if piece.mask is not None and 0.05 < (piece.mask == 1).mean() < 0.95]
    assert np.mean([water < land for water, land in nir]) > 0.8


def test_twelve_band_tiles_without_georeference_and_arrays_of_fires(shared_data: Path) -> None:
    twelve = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")
    settings = Multispectral(bands=twelve, sensor="sentinel2", size=(32, 32), bands_column="bands", resolution_m=10.0)
    read = pieces(shared_data, "s2_l2a_12band_hsg", settings)
    assert all(piece.values.shape == (12, 64, 64) for piece in read) and ingest.implausible(read, settings) is None
    fires = Multispectral(bands=("B2", "B3", "B4", "B8", "B12"), sensor="sentinel2", size=(64, 64), cut="tiles",
                          bands_column="bands", min_known=0.2)
    read = pieces(shared_data, "s2_california_burn", fires)
    assert len(read) == 64 and all(piece.mask is not None and piece.mask.shape == (64, 64) for piece in read)
    told = ingest.implausible(read, fires)
    assert told is not None and "bands B2, B3, B4: found a largest value of exactly 255" in told
