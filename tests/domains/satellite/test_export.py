"""A mask of a scene lies on the scene's own pixels, whatever grid a model saw."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.native_grid import native_classes
from domains.placement import Placement
from domains.sample import UNKNOWN_CLASS, Part, Piece
from domains.satellite import export, ingest
from domains.satellite.ingest import Multispectral
from tests.domains.satellite.files import CANARY, raster, row, scene

rasterio = pytest.importorskip("rasterio", reason="reads GeoTIFF: pip install 'lacuna[satellite]'")
BANDS = ("B2", "B3", "B4", "B8")
NAMES = {0: "land", 1: "water", 2: "ice"}
TRANSFORMS = {"north up": (10.0, 0, 0, -10.0), "south up": (10.0, 0, 0, 10.0), "oblong": (10.0, 0, 0, -15.0),
              "turned": (8.0, 3.0, 3.0, -8.0)}


def settings(**changes: Any) -> Multispectral:
    return Multispectral(**{"bands": BANDS, "sensor": "sentinel2", "size": (32, 32), "min_known": 0.01, **changes})


def truth_of(shape: tuple[int, int]) -> np.ndarray:
    out = np.zeros(shape, np.uint8)
    out[8:40, 10:33] = 1
    out[30:44, 28:70] = 2
    return out


def pieces(path: Path, mask: Path, chosen: Multispectral) -> list[Piece]:
    found = ingest.read(row(path, mask), chosen)
    return found.pieces if isinstance(found, Part) else found


def back(found: list[Piece]) -> np.ndarray:
    """What a model that is certain of the stored masks would have written for the file."""
    classes: np.ndarray | None = None
    for piece in found:
        assert piece.mask is not None and piece.placement is not None
        certain = np.stack([piece.mask == number for number in range(len(NAMES))]).astype(np.float32)
        classes = native_classes(certain, piece.mask != UNKNOWN_CLASS, piece.placement, classes)
    assert classes is not None
    return classes


def made(folder: Path, which: str, shape: tuple[int, int] = (70, 90)) -> tuple[Path, Path, np.ndarray, Any]:
    a, b, d, e = TRANSFORMS[which]
    transform = rasterio.Affine(a, b, 400_500.0, d, e, 5_298_500.0)
    truth = truth_of(shape)
    for name, values in (("a.tif", scene(4, *shape)), ("mask.tif", truth[None])):
        raster(folder / name, values, BANDS if name == "a.tif" else ())
        with rasterio.open(folder / name, "r+") as file:
            file.transform = transform
    return folder / "a.tif", folder / "mask.tif", truth, transform


@pytest.mark.parametrize("which", TRANSFORMS)
@pytest.mark.parametrize("cut", ["tiles", "whole"])
def test_a_mask_that_was_stored_comes_back_pixel_by_pixel(tmp_path: Path, which: str, cut: str) -> None:
    path, mask, truth, transform = made(tmp_path, which)
    found = pieces(path, mask, settings(cut=cut, size=(32, 32) if cut == "tiles" else (120, 100)))
    classes = back(found)
    assert np.array_equal(classes, truth)
    export.write(tmp_path / "out.tif", classes, found[0].placement, NAMES)  # type: ignore[arg-type]
    with rasterio.open(tmp_path / "out.tif") as file, rasterio.open(path) as source:
        assert file.count == 1 and file.dtypes == ("uint8",) and file.nodata == UNKNOWN_CLASS
        assert file.crs == source.crs and file.shape == source.shape
        rows, columns = np.divmod(np.arange(truth.size), truth.shape[1])
        assert np.array_equal(rasterio.transform.xy(file.transform, rows, columns),
                              rasterio.transform.xy(source.transform, rows, columns)), "every pixel lies where it did"
        assert np.array_equal(file.read(1), truth)
        assert file.compression.name == "deflate" and file.descriptions == ("class",)
        assert [file.tags(1)[f"CLASS_{i}"] for i in range(3)] == list(NAMES.values())
        table = file.colormap(1)
        assert len({table[i] for i in range(3)}) == 3 and table[255][3] in (0, 255)


@pytest.mark.parametrize("which", TRANSFORMS)
@pytest.mark.parametrize("resolution", [20.0, 7.0])
@pytest.mark.parametrize("cut", ["tiles", "whole"])
def test_a_mask_from_another_resolution_lies_over_its_classes(tmp_path: Path, which: str, resolution: float,
                                                              cut: str) -> None:
    path, mask, truth, _ = made(tmp_path, which)
    found = pieces(path, mask, settings(cut=cut, resolution_m=resolution,
                                        size=(32, 32) if cut == "tiles" else (120, 120)))
    classes = back(found)
    assert classes.shape == truth.shape and UNKNOWN_CLASS not in classes
    for number in (1, 2):
        a, b = classes == number, truth == number
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.93
        moved = np.abs(np.argwhere(a).mean(axis=0) - np.argwhere(b).mean(axis=0)) / found[0].placement.steps  # type: ignore[union-attr]
        assert moved.max() < 0.25, "of a stored pixel"


def test_what_holds_no_data_and_tiles_that_were_left_out_are_unknown(tmp_path: Path) -> None:
    path, mask, truth, transform = made(tmp_path, "north up")
    values = scene(4, 70, 90)
    values[:, :, 64:] = 0
    values[:, 3:5, 3:5] = 0
    raster(path, values, BANDS, transform=transform)
    found = pieces(path, mask, settings(cut="tiles", zero_is_nodata=True, min_known=0.1))
    classes = None
    for piece in found:
        assert piece.placement is not None
        certain = np.eye(3, dtype=np.float32)[:, np.zeros(piece.values.shape[1:], int)]
        known = (piece.values != 65535).any(axis=0)
        classes = native_classes(certain, known, piece.placement, classes)
    assert classes is not None
    assert (classes[:, 64:] == UNKNOWN_CLASS).all() and (classes[3:5, 3:5] == UNKNOWN_CLASS).all()
    assert (classes[5:, :64] == 0).all()


def test_a_system_that_no_list_has_is_written_by_its_parameters_and_never_by_its_name(tmp_path: Path) -> None:
    path, mask, truth, _ = made(tmp_path, "north up")
    own = rasterio.CRS.from_wkt(rasterio.CRS.from_epsg(32633).to_wkt().replace("UTM zone 33N", CANARY).replace(
        'AUTHORITY["EPSG","32633"]', "").replace("500000", "500123"))
    for crs in (own, rasterio.CRS.from_string("ESRI:102003")):
        for file_of in (path, mask):
            with rasterio.open(file_of, "r+") as file:
                file.crs = crs
        found = pieces(path, mask, settings())
        export.write(tmp_path / "out.tif", back(found), found[0].placement, NAMES)  # type: ignore[arg-type]
        assert CANARY.encode() not in (tmp_path / "out.tif").read_bytes()
        with rasterio.open(tmp_path / "out.tif") as file:
            assert file.crs.to_dict() == crs.to_dict()


def test_areas_are_square_metres_on_any_grid(tmp_path: Path) -> None:
    path, mask, truth, _ = made(tmp_path, "turned")
    place = pieces(path, mask, settings())[0].placement
    assert place is not None
    counts, sizes, unit = export.measure(truth, place, NAMES)
    assert unit == "m2" and sizes is not None and np.allclose(sizes, counts * 73.0)
    for file, values, names in ((path, scene(4, 70, 90), BANDS), (mask, truth, ())):
        raster(file, values, names, metres=0.0001, corner=(11.0, 60.0), epsg=4326)
    place = pieces(path, mask, settings())[0].placement
    assert place is not None
    counts, sizes, unit = export.measure(truth, place, NAMES)
    assert unit == "m2" and sizes is not None and np.allclose(sizes, counts * 11.132 ** 2 * 0.5, rtol=1e-3)


def test_areas_of_grids_in_feet_and_of_tall_ones_in_degrees_are_those_of_each_pixel() -> None:
    classes = np.repeat(np.arange(40) // 20, 3).reshape(40, 3).astype(np.uint8)
    feet = Placement((40, 3), (0, 1), (0.0, 0.0), (1.0, 1.0), (10.0, 0, 0, 0, -10.0, 0), "EPSG:2263")
    _, sizes, unit = export.measure(classes, feet, {0: "land", 1: "water"})
    assert unit == "m2" and sizes == pytest.approx([60 * (10 * 1200 / 3937) ** 2] * 2)
    tall = Placement((40, 3), (0, 1), (0.0, 0.0), (1.0, 1.0), (0.5, 0, 7.0, 0, -1.0, 70.0), "EPSG:4326")
    _, sizes, _ = export.measure(classes, tall, {0: "land", 1: "water"})
    degree = 111_320.0
    expected = [sum(3 * 0.5 * degree * np.cos(np.radians(70 - row - 0.5)) * degree for row in rows)
                for rows in (range(20), range(20, 40))]
    assert sizes == pytest.approx(expected, rel=1e-6)


def test_a_scene_that_lies_nowhere_becomes_a_mask_that_lies_nowhere(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif", scene(4, 40, 40), BANDS, epsg=None)
    raster(tmp_path / "mask.tif", truth_of((40, 40)), epsg=None)
    found = pieces(tmp_path / "a.tif", tmp_path / "mask.tif", settings())
    export.write(tmp_path / "out.tif", back(found), found[0].placement, NAMES)  # type: ignore[arg-type]
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.crs is None and np.array_equal(file.read(1), truth_of((40, 40)))
    assert export.measure(truth_of((40, 40)), found[0].placement, NAMES)[1:] == (None, "")  # type: ignore[arg-type]
