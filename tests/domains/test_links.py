"""A series or a scene is a folder of strangers: a link in it reads nothing outside, unless links are trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.manifest import Files, read_manifest
from domains.medical.settings import CT
from domains.outcome import Outcome
from domains.quarantine import Limits, Reader, read_all
from tests.domains.medical import files as medical

pytest.importorskip("pydicom", reason="reads DICOM: pip install 'lacuna[medical]'")
VOLUMES = Reader("domains.medical.ingest", CT(size=(8, 8, 8), spacing=(2.0, 2.0, 2.0), check_units=False))


def outcome(root: Path, path: str, reader: Reader = VOLUMES, suffixes: tuple[str, ...] = (".dcm", ""),
            **settings: Any) -> Outcome:
    """What becomes of one row, through the manifest and a reading process."""
    (root / "labels.csv").write_text(f"path,group\n{path},1\n")
    rows = read_manifest(Files("raw", "labels.csv", **settings), suffixes, root).rows
    (found,) = read_all(rows, reader, Limits(workers=1))
    return found


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Six slices, the third of which lies elsewhere."""
    hu = np.random.default_rng(0).integers(-900, 900, (8, 8, 6))
    folder = medical.series(tmp_path / "raw/series", hu, np.diag([2.0, 2.0, 2.0, 1.0]))
    (folder / "003.dcm").rename(tmp_path / "secret.dcm")
    (folder / "003.dcm").symlink_to(tmp_path / "secret.dcm")
    return folder


@pytest.mark.parametrize("path", ["series", "series/001.dcm"])
def test_a_slice_that_is_a_link_out_of_the_data_folder_is_not_read(tmp_path: Path, series: Path, path: str) -> None:
    assert outcome(tmp_path, path).reason.startswith("links: found 1 that lead out of files.folder")
    assert outcome(tmp_path, path, follow_links=True).reason == ""


def test_a_link_to_a_folder_elsewhere_is_not_read_either(tmp_path: Path, series: Path) -> None:
    (series / "003.dcm").unlink()
    (tmp_path / "secret.dcm").rename(series / "003.dcm")
    assert outcome(tmp_path, "series").reason == ""
    (series / "more").symlink_to(tmp_path)
    assert outcome(tmp_path, "series").reason.startswith("links: found 1")


def test_a_link_that_stays_in_the_data_folder_is_followed(tmp_path: Path, series: Path) -> None:
    (series / "003.dcm").unlink()
    (tmp_path / "secret.dcm").rename(tmp_path / "raw/kept.dcm")
    (series / "003.dcm").symlink_to("../kept.dcm")
    found = outcome(tmp_path, "series")
    assert not found.reason and found.pieces[0].facts["shape"] == [6, 8, 8]


def test_a_band_that_is_a_link_out_of_the_data_folder_is_not_read(tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="reads GeoTIFF: pip install 'lacuna[satellite]'")
    from domains.satellite.settings import Multispectral
    from tests.domains.satellite.files import raster, scene

    scenes = Reader("domains.satellite.ingest", Multispectral(bands=("B2", "B3"), sensor="sentinel2", size=(32, 32)))
    raster(tmp_path / "raw/x/x_B02.tif", scene(1))
    raster(tmp_path / "secret.tif", scene(1))
    (tmp_path / "raw/x/x_B03.tif").symlink_to(tmp_path / "secret.tif")
    assert outcome(tmp_path, "x", scenes, ("/",)).reason.startswith("links: found 1 that lead out")
    found = outcome(tmp_path, "x", scenes, ("/",), follow_links=True)
    assert found.pieces[0].facts["bands"] == ["B2", "B3"]
