"""Masks of native files lie on the files' own grids, are done once, and a bad file stops nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domains.quarantine import Limits
from domains.sample import UNKNOWN_CLASS, Task
from domains.store import Prepared
from models.encoder.transformer import Encoder, EncoderSettings
from models.heads.mask_loss import MaskLoss
from models.heads.segment_grid import SegmentHead
from models.heads.tuned import Tuned, build_head
from pipelines.cli import main
from pipelines.prediction import masks
from pipelines.prediction import predict as prediction
from pipelines.prediction.segmenting import segment
from pipelines.settings import build
from pipelines.training.batches import Source, domain_code
from pipelines.weights.tuned_checkpoints import save_tuned
from tests.pipelines.native_files import DOMAINS, TOKENIZERS, ingest_files

ONE = Limits(workers=1)
TASK = Task("segmentation", classes=("rest", "lake", "road"), values=(0, 7, 9))
LIBRARIES = {"xray": "PIL", "ct": "nibabel", "multispectral": "rasterio"}
FORMATS = {"xray": ".png", "ct": ".nii.gz", "multispectral": ".tif"}


def of_masks(folder: Path, prepared: Prepared, kind: str) -> Tuned:
    """An untrained model of masks, saved as finetune would save it."""
    torch.manual_seed(3)
    size = {"width": 24, "depth": 1, "num_heads": 2}
    encoder = Encoder(build(EncoderSettings, {"tokenizer": TOKENIZERS[kind], "size": size}, "test"),
                      len(prepared.contract.channels))
    if kind == "multispectral":
        encoder.tokenizer.read_channels((0, 1, 2))
    settings = SegmentHead(design="linear")
    model = Tuned(encoder, build_head(settings, encoder.width, 2, encoder=encoder), MaskLoss())
    for parameter in model.head.parameters():  # heads begin at zero, which would answer alike everywhere
        torch.nn.init.normal_(parameter)
    save_tuned(folder, model.eval(), prepared.contract, settings, TASK, {
        "domain": DOMAINS[kind], "temperature": 1.0,
        "reader": json.loads((prepared.folder / "reader.json").read_text()),
        "provenance": {"arm": "scratch", "seed": 0, "task": "m", "data_digest": prepared.digest}})
    return model


@pytest.fixture(params=sorted(LIBRARIES))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, list[Path], Prepared, Tuned]:
    """Three files, what ingest made of them, and a checkpoint."""
    kind = str(request.param)
    pytest.importorskip(LIBRARIES[kind], reason=f"reading {kind} needs {LIBRARIES[kind]}")
    files, prepared = ingest_files(tmp_path, kind, count=3)
    return kind, files, prepared, of_masks(tmp_path / "checkpoint", prepared, kind)


def opened(path: Path) -> np.ndarray:
    """The numbers of a mask file, as its format's own library reads them."""
    if path.name.endswith(".nii.gz"):
        import nibabel

        return np.asarray(nibabel.load(path).dataobj)
    if path.suffix == ".tif":
        import rasterio

        with rasterio.open(path) as file:
            return np.asarray(file.read(1))
    from PIL import Image

    return np.asarray(Image.open(path))


def run(folder: Path, files: list[Path], code: int = 0, **more: Any) -> list[dict[str, Any]]:
    assert prediction.predict_to_folder(folder / "checkpoint", files, folder / "out", limits=ONE, **more) == code
    results: list[dict[str, Any]] = json.loads((folder / "out/predictions.json").read_text())
    return results


def test_a_mask_says_at_every_pixel_of_the_file_what_the_model_says_of_the_sample(
        made: tuple[str, list[Path], Prepared, Tuned], tmp_path: Path) -> None:
    kind, files, prepared, model = made
    results = run(tmp_path, files)
    source = Source(prepared, prepared.contract, domain_code(DOMAINS[kind]), np.arange(len(prepared)))
    assert [result["mask"] for result in results] == [f"masks/f{i}{FORMATS[kind]}" for i in range(3)]
    said: set[int] = set()
    for row, result in enumerate(results):
        found = opened(tmp_path / "out" / result["mask"])
        stored = np.array([0, 7, 9])[segment(model, source, row, torch.device("cpu")).argmax(0)]
        if kind == "ct":  # stored towards superior, posterior, left; the files towards right, anterior, superior
            assert np.array_equal(found, stored.transpose(2, 1, 0)[::-1, ::-1])
        elif kind == "multispectral":
            assert np.array_equal(found, stored)
        else:
            assert found.shape == opened(files[row]).shape and (found[10, 12] == stored[8, 8])
        said |= set(found.ravel().tolist())
    assert len(said) > 1, "the test would not notice classes that are mixed up"


def test_the_tables_count_pixels_and_what_they_measure(made: tuple[str, list[Path], Prepared, Tuned],
                                                       tmp_path: Path) -> None:
    kind, files, _, _ = made
    run(tmp_path, files)
    with (tmp_path / "out/masks.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["class"], line["number"]) for line in lines[:3]] == [("rest", "0"), ("lake", "7"), ("road", "9")]
    each = {"xray": "", "ct": 8.0, "multispectral": 100.0}[kind]
    for line in lines:
        found = opened(tmp_path / "out" / line["mask"])
        assert int(line["pixels"]) == (found == int(line["number"])).sum()
        assert int(line["not_looked_at"]) == (found == UNKNOWN_CLASS).sum()
        assert line["unit"] == {"xray": "", "ct": "mm3", "multispectral": "m2"}[kind]
        assert line["size"] == "" if each == "" else float(line["size"]) == pytest.approx(each * int(line["pixels"]))


def test_what_was_done_is_not_done_again_unless_its_mask_is_gone(
        made: tuple[str, list[Path], Prepared, Tuned], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, files, _, _ = made
    first = run(tmp_path, files)
    (tmp_path / "out" / first[1]["mask"]).unlink()
    capsys.readouterr()
    assert sorted(map(str, run(tmp_path, files))) == sorted(map(str, first))
    assert "1 files done, 2 done before, 0 refused" in capsys.readouterr().out
    assert all((tmp_path / "out" / one["mask"]).is_file() for one in first)


def test_files_of_one_name_get_masks_of_their_own(made: tuple[str, list[Path], Prepared, Tuned],
                                                  tmp_path: Path) -> None:
    _, files, _, _ = made
    ending = "".join(files[0].suffixes)
    places = []
    for i, file in enumerate(files):
        place = tmp_path / f"case{i}" / f"scan{ending}"
        place.parent.mkdir()
        place.write_bytes(file.read_bytes())
        places.append(place)
    together = [result["mask"] for result in run(tmp_path, places[:2])]
    assert together == [f"masks/case{i}/scan{masks_ending(together[0])}" for i in range(2)]
    for place in places:  # one after the other, each called by its name alone
        run(tmp_path, [place])
    named = [result["mask"] for result in json.loads((tmp_path / "out/predictions.json").read_text())]
    assert len(named) == len(set(named)) == 3 and any(f"masks/scan{masks_ending(named[0])}" == one for one in named)


def masks_ending(name: str) -> str:
    return next(ending for ending in FORMATS.values() if name.endswith(ending))


def test_a_bad_file_and_an_answer_that_is_not_finite_are_refused_and_stop_nothing(
        made: tuple[str, list[Path], Prepared, Tuned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, files, _, _ = made
    files[1].write_bytes(files[1].read_bytes()[:60])
    results = run(tmp_path, files, code=3)
    assert [result["status"] for result in results] == ["done", "refused", "done"]
    assert not (tmp_path / "out/masks").joinpath(f"f1{masks_ending(results[0]['mask'])}").exists()
    monkeypatch.setattr(masks, "segment_of", lambda native: lambda values: np.full((3, *values.shape[1:]), np.nan))
    assert prediction.predict_to_folder(tmp_path / "checkpoint", files[:1], tmp_path / "other", limits=ONE) == 3
    (refused,) = json.loads((tmp_path / "other/predictions.json").read_text())
    assert refused["reason"] == "the model's answer is not finite"


def test_what_masks_do_not_go_with_is_said(made: tuple[str, list[Path], Prepared, Tuned], tmp_path: Path) -> None:
    _, files, _, _ = made
    with pytest.raises(ValueError, match="found tent for a model of masks, expected none"):
        run(tmp_path, files, test_time="tent")
    with pytest.raises(ValueError, match="whose answers are files"):
        prediction.predict(tmp_path / "checkpoint", files, limits=ONE)


def test_the_command_line_says_where_the_masks_lie(made: tuple[str, list[Path], Prepared, Tuned], tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    _, files, _, _ = made
    assert main(["predict", str(tmp_path / "checkpoint"), *map(str, files), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/out/masks.csv" in said and f"{tmp_path}/out/masks\n" in said


def test_tiles_of_a_large_scene_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rasterio = pytest.importorskip("rasterio", reason="reads GeoTIFF: pip install 'lacuna[satellite]'")
    from tests.domains.satellite.files import raster, scene
    from tests.pipelines import native_files

    monkeypatch.setitem(native_files.READ, "multispectral", {
        **native_files.READ["multispectral"], "cut": "tiles", "min_known": 0.01, "zero_is_nodata": True})
    _, prepared = ingest_files(tmp_path, "multispectral", count=3)
    of_masks(tmp_path / "checkpoint", prepared, "multispectral")
    values = scene(3, 70, 50)
    values[:, :20, :20] = 0
    truth = values[0] > values[0].mean()
    raster(tmp_path / "large.tif", values)
    monkeypatch.setattr("domains.satellite.scene.PART_BYTES", 4000)
    monkeypatch.setattr(masks, "segment_of", lambda native: lambda stored: np.stack(
        [stored[0] <= values[0].mean(), stored[0] > values[0].mean(), stored[0] < 0]).astype(np.float32))
    (result,) = run(tmp_path, [tmp_path / "large.tif"])
    found = opened(tmp_path / "out" / result["mask"])
    empty = (values == 0).all(axis=0)
    assert (found[empty] == UNKNOWN_CLASS).all() and np.array_equal(found[~empty], np.where(truth, 7, 0)[~empty])
    with rasterio.open(tmp_path / "out" / result["mask"]) as file, rasterio.open(tmp_path / "large.tif") as source:
        assert file.transform == source.transform and file.crs == source.crs
        assert file.tags(1)["CLASS_7"] == "lake"
