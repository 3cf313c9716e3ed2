"""A scene that is too large to be held whole comes in parts, with the same samples, or not at all."""

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.quarantine import Limits, Reader, read_all
from domains.sample import Part, Piece, Refused
from domains.satellite import ingest
from domains.satellite import scene as scenes
from domains.satellite.ingest import Multispectral
from domains.satellite.raster import Rasters
from tests.domains.satellite.files import raster, row, scene

pytest.importorskip("rasterio", reason="reads GeoTIFF: pip install 'lacuna[satellite]'")
BANDS = ("B2", "B3", "B4", "B8")


def settings(**changes: Any) -> Multispectral:
    return Multispectral(**{"bands": BANDS, "sensor": "sentinel2", "size": (32, 32), "cut": "tiles", **changes})


def in_parts(path: Path, chosen: Multispectral, mask: Path | None = None) -> list[Part]:
    """What a reader gives when it is asked again and again."""
    asked, parts = row(path, mask), []
    while not parts or parts[-1].more:
        found = ingest.read(dataclasses.replace(asked, part=len(parts)), chosen)
        parts.append(found if isinstance(found, Part) else Part(found, more=False))
    return parts


def test_a_block_of_several_bands_is_decoded_once_for_all_of_them(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", scene(4, 64, 64), BANDS, interleave="pixel", compress="deflate")
    with ExitStack() as stack:
        dataset = Rasters(stack).open(path).dataset
        dataset.read(1)
        path.write_bytes(path.read_bytes()[:300] + bytes(path.stat().st_size - 300))  # nothing is left to decode
        assert np.array_equal(dataset.read(4), scene(4, 64, 64)[3])


def test_a_scene_in_parts_gives_the_samples_of_the_scene_at_once(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    values = scene(4, 200, 150)
    values[:, 40:130] = 0
    path = raster(tmp_path / "a.tif", values, BANDS, nodata=0, tiled=True, blockxsize=64, blockysize=64,
                  compress="deflate")
    mask = raster(tmp_path / "m.tif", (values[0] % 7).astype(np.uint8))
    (whole,) = in_parts(path, settings(), mask)
    monkeypatch.setattr(scenes, "PART_BYTES", 60_000)  # seven tiles of 32 x 32 in four bands
    parts = in_parts(path, settings(), mask)
    pieces = [piece for part in parts for piece in part.pieces]
    assert len(parts) == 10 and all(not part.pieces for part in parts[:5]) and len(pieces) == len(whole.pieces) == 15
    assert max(sum(piece.values.nbytes for piece in part.pieces) for part in parts) <= 60_000
    for a, b in zip(pieces, whole.pieces, strict=True):
        assert a.suffix == b.suffix and a.mask is not None and b.mask is not None
        np.testing.assert_array_equal(a.values, b.values)
        np.testing.assert_array_equal(a.mask, b.mask)
        assert {k: v for k, v in a.facts.items() if k != "tiles_skipped"} == {
            k: v for k, v in b.facts.items() if k != "tiles_skipped"}
    skipped = [part.pieces[0].facts["tiles_skipped"] for part in parts if part.pieces]
    assert 0 < sum(skipped) <= whole.pieces[0].facts["tiles_skipped"]  # type: ignore[arg-type,operator]


def test_damage_at_the_end_of_a_large_scene_is_seen_before_its_first_sample(tmp_path: Path,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    path = raster(tmp_path / "a.tif", scene(4, 200, 150), BANDS, blockysize=8, compress="lzw")
    whole = path.read_bytes()
    path.write_bytes(whole[:-3000])
    monkeypatch.setattr(scenes, "PART_BYTES", 60_000)
    stored: list[Piece] = []
    with pytest.raises(Refused):
        for part in range(100):
            found = ingest.read(dataclasses.replace(row(path), part=part), settings())
            stored += found.pieces if isinstance(found, Part) else found
    assert not stored


def sparse(path: Path, side: int, filled: list[tuple[int, int]]) -> Path:
    """A scene of side x side pixels in four bands, of which only some blocks of 512 x 512 were written."""
    import rasterio
    from rasterio.windows import Window

    with rasterio.open(path, "w", driver="GTiff", count=4, height=side, width=side, dtype="uint16", nodata=0,
                       sparse_ok=True, tiled=True, blockxsize=512, blockysize=512, compress="deflate",
                       crs="EPSG:32633", transform=rasterio.Affine(10, 0, 400_000, 0, -10, 5_300_000)) as file:
        file.descriptions = BANDS
        for top, left in filled:
            file.write(scene(4, 512, 512, seed=top), window=Window(left, top, 512, 512))
    return path


@pytest.mark.slow
def test_a_scene_of_ten_thousand_pixels_each_way_needs_a_fraction_of_its_size_in_memory(tmp_path: Path) -> None:
    filled = [(0, 0), (512, 512), (5120, 5632), (9216, 9216)]
    path = sparse(tmp_path / "a.tif", 10_000, filled)
    reader = Reader("domains.satellite.ingest", settings(size=(256, 256)))
    outcomes = list(read_all([row(path)], reader, Limits(memory_gb=2, seconds=120, workers=1)))
    assert not any(outcome.reason for outcome in outcomes)
    pieces = [piece for outcome in outcomes for piece in outcome.pieces]
    assert len(pieces) == 4 * len(filled)
    for piece in pieces:
        x, y = piece.facts["affine"][2], piece.facts["affine"][5]  # type: ignore[index]
        top, left = int((5_300_000 - y) / 10), int((x - 400_000) / 10)
        corner = (top // 512 * 512, left // 512 * 512)
        assert corner in filled
        told = scene(4, 512, 512, seed=corner[0])[:, top % 512:top % 512 + 256, left % 512:left % 512 + 256]
        np.testing.assert_array_equal(piece.values, told)
    assert max(outcome.peak_bytes for outcome in outcomes) < 500 * 2**20  # its samples would take 763 MiB
    assert max(outcome.num_bytes for outcome in outcomes) <= scenes.PART_BYTES
