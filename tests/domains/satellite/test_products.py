"""A product whose own name contradicts the settings is refused, file by file: an archive of years mixes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.sample import Refused
from domains.satellite import ingest
from domains.satellite.ingest import Encoding, Multispectral
from tests.domains.satellite.files import raster, row, scene

OLD = "S2A_MSIL2A_20210705T100031_N0301_R122_T32TQM_20210705T131209"
NEW = "S2B_MSIL2A_20230705T100031_N0509_R122_T32TQM_20230705T131209"
BY_HAND = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_20170613T101031"
LANDSAT8 = "LC08_L2SP_193024_20200101_20200823_02_T1"
LANDSAT5 = "LT05_L2SP_193024_20100101_20200823_02_T1"


def settings(**changes: Any) -> Multispectral:
    return Multispectral(**{"bands": ("blue", "green", "red"), "sensor": "sentinel2", "size": (32, 32), **changes})


def landsat(**changes: Any) -> Multispectral:
    return settings(**{"sensor": "landsat8", "scale": 0.0000275, "offset": -0.2, **changes})


def product(folder: Path, name: str, ending: str, numbers: tuple[str, ...]) -> Path:
    """A folder with one file per band; band i holds about 9,000 + 1,000 i."""
    for i, number in enumerate(numbers):
        raster(folder / name / "IMG_DATA" / f"{name}_{number}{ending}", scene(1, seed=i) // 10 + 9000 + 1000 * i)
    return folder / name


@pytest.mark.parametrize(("name", "offset", "refused"), [
    (OLD, 0.0, ""), (NEW, -0.1, ""), (BY_HAND, 0.0, ""), (BY_HAND, -0.1, ""),
    (OLD, -0.1, "baseline 03.01"), (NEW, 0.0, "baseline 05.09")])
def test_the_offset_of_every_sentinel_2_product_must_be_the_one_set(tmp_path: Path, name: str, offset: float,
                                                                   refused: str) -> None:
    path = product(tmp_path, name, ".tif", ("B02", "B03", "B04"))
    if not refused:
        ingest.read(row(path), settings(offset=offset))
        return
    for there in (path, path / "IMG_DATA"):  # whichever folder the manifest names
        with pytest.raises(Refused, match=f"{refused} .*under `by_source`"):
            ingest.read(row(there), settings(offset=offset))
    ingest.read(row(path), settings(offset=offset, check_units=False))
    ingest.read(row(path, source="other"),
                settings(offset=offset, by_source={"other": Encoding(offset=-0.1 - offset)}))


def test_zero_is_no_data_in_sentinel_2_products_whose_files_do_not_say_it(tmp_path: Path) -> None:
    values = scene(1)
    values[:, :, :8] = 0
    for name in (NEW, "scene"):
        for number in ("B02", "B03", "B04"):
            raster(tmp_path / name / f"T32TQM_20230705T100031_{number}_10m.tif", values)
    read = {name: ingest.read(row(tmp_path / name), settings(offset=-0.1))[0].values  # type: ignore[index]
            for name in (NEW, "scene")}
    assert (read[NEW][:, :, :8] == 65535).all() and (read[NEW][:, :, 8:] < 65535).all()
    assert (read["scene"][:, :, :8] == 0).all()


def test_an_offset_that_a_file_tells_itself_counts_before_its_name(tmp_path: Path) -> None:
    folder = tmp_path / NEW
    for number in ("B02", "B03", "B04"):
        raster(folder / f"{NEW}_{number}.tif", scene(1), scales=(0.0001,), offsets=(-0.1,))
    ingest.read(row(folder), settings(scaling="file"))


def test_landsats_are_told_apart_by_their_names_since_their_bands_have_other_numbers(tmp_path: Path) -> None:
    five = product(tmp_path, LANDSAT5, ".TIF", ("SR_B1", "SR_B2", "SR_B3", "SR_B4"))
    with pytest.raises(Refused, match="product of sensor landsat7 .*under `by_source` set `sensor: landsat7`"):
        ingest.read(row(five), landsat())
    with pytest.raises(Refused, match="product of sensor landsat7"):
        ingest.read(row(five), settings())
    pooled = landsat(by_source={"old": Encoding(sensor="landsat7")})
    values = ingest.read(row(five, source="old"), pooled)[0].values  # type: ignore[index]
    expected = (np.array([9000, 10_000, 11_000]) * 0.0000275 - 0.2) * 10_000
    assert abs(np.median(values, axis=(1, 2)) - expected).max() < 25


def test_the_scale_of_a_landsat_product_must_be_the_one_set(tmp_path: Path) -> None:
    eight = product(tmp_path, LANDSAT8, ".TIF", ("SR_B2", "SR_B3", "SR_B4"))
    with pytest.raises(Refused, match="Landsat collection 2 .*scale 2.75e-05 and offset -0.2"):
        ingest.read(row(eight), landsat(scale=0.0001, offset=0.0))
    ingest.read(row(eight), landsat())
