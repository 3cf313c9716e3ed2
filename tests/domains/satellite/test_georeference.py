"""Samples can be put back on the map, and bands of any resolution lie on each other where their files say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.sample import Piece, Refused
from domains.satellite import georeference, ingest
from domains.satellite.ingest import Multispectral
from domains.satellite.units import UNKNOWN
from tests.domains.satellite.files import CANARY, raster, row, scene

pytest.importorskip("rasterio", reason="reads GeoTIFF: pip install 'lacuna[satellite]'")
BANDS = ("B2", "B3", "B4", "B8")
CORNER = (400_000.0, 5_300_000.0)


def settings(**changes: Any) -> Multispectral:
    return Multispectral(**{"bands": BANDS, "sensor": "sentinel2", "size": (32, 32), **changes})


def pieces(path: Path, chosen: Multispectral) -> list[Piece]:
    found = ingest.read(row(path), chosen)
    assert isinstance(found, list)
    return found


# ---- back on the map ----------------------------------------------------------------------------------------------


def eastings_and_northings(shape: tuple[int, int], transform: Any) -> np.ndarray:
    """2 H W uint16 whose values say where each pixel's middle lies, to a tenth of a pixel."""
    columns, rows = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    x, y = transform @ (columns, rows) if hasattr(transform, "__matmul__") else transform * (columns, rows)
    return np.stack([x - CORNER[0], CORNER[1] - y])


TRANSFORMS = {"north up": (10.0, 0, 0, -10.0), "south up": (10.0, 0, 0, 10.0), "oblong": (10.0, 0, 0, -15.0),
              "turned": (8.0, 3.0, 3.0, -8.0)}


@pytest.mark.parametrize("which", TRANSFORMS)
@pytest.mark.parametrize("resolution", [None, 20.0])
@pytest.mark.parametrize("cut", ["tiles", "whole"])
def test_a_sample_lies_on_the_map_to_within_half_a_pixel(tmp_path: Path, which: str, resolution: float | None,
                                                         cut: str) -> None:
    import rasterio

    a, b, d, e = TRANSFORMS[which]
    transform = rasterio.Affine(a, b, CORNER[0] + 500, d, e, CORNER[1] - 1500)
    told = eastings_and_northings((70, 90), transform)
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=2, height=70, width=90, dtype="float32",
                       crs="EPSG:32633", transform=transform) as file:
        file.write(told.astype("float32"))
        file.descriptions = ("B2", "B3")
    chosen = settings(bands=("B2", "B3"), scale=0.0001, cut=cut, resolution_m=resolution, min_known=0.01,
                      size=(32, 32) if cut == "tiles" else (120, 100))
    read = pieces(tmp_path / "a.tif", chosen)
    assert len(read) == (1 if cut == "whole" else 9 if resolution is None else len(read))
    for piece in read:
        assert piece.facts["epsg"] == 32633
        placed = rasterio.Affine(*piece.facts["affine"])  # type: ignore[misc]
        known = (piece.values != UNKNOWN).all(axis=0)
        here = eastings_and_northings(piece.values.shape[1:], placed)  # type: ignore[arg-type]
        step = max(np.hypot(placed.a, placed.d), np.hypot(placed.b, placed.e))
        inner = known & np.roll(known, 1, 0) & np.roll(known, -1, 0) & np.roll(known, 1, 1) & np.roll(known, -1, 1)
        assert inner.sum() > 0.2 * known.sum()
        assert np.abs(piece.values.astype(float) - here)[:, inner].max() <= step / 2


def test_bounds_are_those_of_the_pixels_that_came_from_the_file(tmp_path: Path) -> None:
    import rasterio

    for name, e, y in (("north.tif", -10.0, CORNER[1]), ("south.tif", 10.0, CORNER[1] - 480)):
        with rasterio.open(tmp_path / name, "w", driver="GTiff", count=4, height=48, width=40, dtype="uint16",
                           crs="EPSG:32633", transform=rasterio.Affine(10.0, 0, CORNER[0], 0, e, y)) as file:
            file.write(scene(4, 48, 40))
            file.descriptions = BANDS
        whole = pieces(tmp_path / name, settings(size=(64, 64)))[0]
        assert whole.facts["bounds"] == [CORNER[0], CORNER[1] - 480, CORNER[0] + 400, CORNER[1]]
        assert whole.facts["affine"] == [10.0, 0, CORNER[0] - 120, 0, e, y - 8 * e]
        tiles = pieces(tmp_path / name, settings(cut="tiles", min_known=0.01))
        assert [len(set(map(float, piece.facts["bounds"]))) for piece in tiles] == [4] * 4  # type: ignore[arg-type]
        assert all(b[0] < b[2] and b[1] < b[3] for b in (piece.facts["bounds"] for piece in tiles))  # type: ignore[index,operator]


def test_a_coordinate_system_is_told_by_its_code_and_never_by_its_text(tmp_path: Path) -> None:
    import rasterio

    def written(name: str, crs: Any) -> dict[str, Any]:
        path = raster(tmp_path / name, scene(), BANDS)
        with rasterio.open(path, "r+") as file:
            file.crs = crs
        return pieces(path, settings())[0].facts

    albers = written("a.tif", rasterio.CRS.from_string("ESRI:102003"))
    assert albers["crs"] == "ESRI:102003" and "epsg" not in albers and "affine" in albers
    own = written("b.tif", rasterio.CRS.from_wkt(rasterio.CRS.from_epsg(32633).to_wkt().replace(
        "UTM zone 33N", CANARY).replace('AUTHORITY["EPSG","32633"]', "").replace("500000", "500123")))
    assert CANARY not in str(own) and "crs" not in own and "affine" in own


# ---- bands of several resolutions ---------------------------------------------------------------------------------


def ramp(metres: float, shape: tuple[int, int], corner: tuple[float, float] = CORNER) -> np.ndarray:
    """Reflectance that rises along both axes of the map: what a pixel holds is where its middle lies."""
    x = corner[0] + (np.arange(shape[1]) + 0.5) * metres - CORNER[0]
    y = CORNER[1] - corner[1] + (np.arange(shape[0]) + 0.5) * metres
    return np.asarray(500 + 2 * x[None, :] + 3 * y[:, None], np.float64)


@pytest.mark.parametrize("cut", ["whole", "tiles"])
def test_ten_twenty_and_sixty_metre_bands_lie_on_each_other(tmp_path: Path, cut: str) -> None:
    for name, metres, pixels in (("R10m/T_B02_10m", 10, 96), ("R20m/T_B02_20m", 20, 48), ("R20m/T_B11_20m", 20, 48),
                                 ("R60m/T_B01_60m", 60, 16), ("QI/MSK_DETFOO_B02", 10, 96)):
        raster(tmp_path / "IMG_DATA" / f"{name}.tif", ramp(metres, (pixels, pixels)), metres=metres)
    chosen = settings(bands=("B1", "B2", "B11"), size=(96, 96) if cut == "whole" else (40, 40), cut=cut, min_known=0.01)
    told = ramp(10, (96, 96))
    for piece in pieces(tmp_path / "IMG_DATA", chosen):
        placed = piece.facts["affine"]
        top, left = round((CORNER[1] - placed[5]) / 10), round((placed[2] - CORNER[0]) / 10)  # type: ignore[index,operator]
        known = (piece.values != UNKNOWN).all(axis=0)
        rows, columns = np.nonzero(known)
        here = told[rows + top, columns + left]
        inner = (rows + top >= 3) & (rows + top < 93) & (columns + left >= 3) & (columns + left < 93)
        assert inner.any()
        assert np.abs(piece.values[:, rows, columns] - here)[:, inner].max() <= 1
        assert piece.facts["metres_per_pixel"] == [10.0, 10.0]


@pytest.mark.parametrize(("metres", "pixels", "shift"), [(30, 33, (-5.0, 5.0)), (20, 49, (0.0, 0.0)),
                                                         (30, 32, (15.0, -15.0)), (10, 96, (5.0, -5.0))])
def test_a_band_that_begins_beside_the_others_is_placed_by_its_own_corner(tmp_path: Path, metres: float, pixels: int,
                                                                          shift: tuple[float, float]) -> None:
    corner = (CORNER[0] + shift[0], CORNER[1] + shift[1])
    raster(tmp_path / "x" / "x_B02.tif", ramp(10, (96, 96)))
    raster(tmp_path / "x" / "x_B11.tif", ramp(metres, (pixels, pixels), corner), metres=metres, corner=corner)
    piece = pieces(tmp_path / "x", settings(bands=("B2", "B11"), size=(96, 96)))[0]
    inner = (slice(4, 92), slice(4, 92))
    assert np.abs(piece.values[1][inner].astype(int) - piece.values[0][inner]).max() <= 1
    covered = np.ones((96, 96), bool)
    middles = np.arange(96) * 10 + 5.0
    covered &= (middles >= shift[0])[None, :] & (middles <= shift[0] + metres * pixels)[None, :]
    covered &= (middles >= -shift[1])[:, None] & (middles <= -shift[1] + metres * pixels)[:, None]
    np.testing.assert_array_equal(piece.values[1] != UNKNOWN, covered)


def test_bands_that_run_in_different_directions_are_refused(tmp_path: Path) -> None:
    import rasterio

    raster(tmp_path / "x" / "x_B02.tif", scene(1))
    with rasterio.open(tmp_path / "x" / "x_B03.tif", "w", driver="GTiff", count=1, height=32, width=32, dtype="uint16",
                       crs="EPSG:32633", transform=rasterio.Affine(10, 0, CORNER[0], 0, 10, CORNER[1] - 320)) as file:
        file.write(scene(1))
    with pytest.raises(Refused, match="expected one grid"):
        pieces(tmp_path / "x", settings())


def test_a_mask_that_lies_elsewhere_than_its_scene_is_refused(tmp_path: Path) -> None:
    import rasterio

    path = raster(tmp_path / "a.tif", scene(), BANDS)
    classes = np.tile(np.arange(32) % 2, (32, 1)).astype(np.uint8)
    upside_down = rasterio.Affine(10, 0, 400_000, 0, 10, 5_300_000 - 320)
    wrong: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("next", {"corner": (400_320.0, 5_300_000.0)}, "32.0 pixels away"),
        ("turned", {"transform": upside_down}, "32.0 pixels away"),
        ("finer", {"metres": 5.0}, "16.0 pixels away"), ("zone", {"epsg": 32632}, "another coordinate system"))
    for name, placed, reason in wrong:
        with pytest.raises(Refused, match=f"mask: found .*{reason}"):
            ingest.read(row(path, raster(tmp_path / f"{name}.tif", classes, **placed)), settings())
    fine: tuple[tuple[str, dict[str, Any]], ...] = (
        ("same", {}), ("a little off", {"corner": (400_004.0, 5_300_000.0)}), ("nowhere", {"epsg": None}))
    for name, placed in fine:
        (piece,) = ingest.read(row(path, raster(tmp_path / f"{name}.tif", classes, **placed)), settings())
        assert piece.mask is not None and np.array_equal(piece.mask, classes)


def test_the_step_of_a_grid_in_feet_is_told_in_metres(tmp_path: Path) -> None:
    import rasterio

    with rasterio.open(raster(tmp_path / "a.tif", scene(), BANDS, epsg=2263, corner=(980_000.0, 200_000.0))) as file:
        found = georeference.place(file)
    assert found.step == pytest.approx((10 * 1200 / 3937,) * 2) and found.epsg == 2263       # feet of the US survey


def test_a_raster_placed_by_control_points_is_refused(tmp_path: Path) -> None:
    import rasterio
    from rasterio.control import GroundControlPoint

    path = raster(tmp_path / "a.tif", scene(), BANDS, epsg=None)
    points = [GroundControlPoint(r, c, 4e5 + 10 * c, 5.3e6 - 10 * r) for r, c in ((0, 0), (0, 32), (32, 0))]
    with rasterio.open(path, "r+") as file:
        file.gcps = points, rasterio.crs.CRS.from_epsg(32633)
    with pytest.raises(Refused, match="placed by control points"):
        ingest.read(row(path), settings())
