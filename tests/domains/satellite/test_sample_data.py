"""The embedded sample: real formats, the same bytes per seed, a label that no shortcut gives away. That it can be
learnt, and what the shift between regions costs, is asserted on the pipeline's own results."""

import csv
from pathlib import Path

import numpy as np
import pytest

from domains.sample import ManifestRow, Piece
from domains.satellite import ingest
from domains.satellite.ingest import Multispectral
from domains.satellite.phantom import BANDS
from domains.satellite.sample_data import Sample, make
from domains.satellite.units import UNKNOWN

pytest.importorskip("rasterio", reason="writes GeoTIFF: pip install 'lacuna[satellite]'")
SETTINGS = Multispectral(bands=BANDS, sensor="sentinel2", size=(32, 32), resolution_m=10.0)
Made = tuple[Path, list[dict[str, str]], list[Piece]]


def read(folder: Path, row: dict[str, str]) -> Piece:
    (piece,) = ingest.read(ManifestRow(folder / row["path"], row["path"], row["group"], row["split"], row["source"]),
                           SETTINGS)
    return piece


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("sample")
    make(folder, Sample(labelled=480, unlabelled=20))
    rows = list(csv.DictReader((folder / "labels.csv").open()))
    return folder, rows, [read(folder, row) for row in rows]


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """AUROC, whichever way round is better."""
    order = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    value = float((order > 0).mean() + (order == 0).mean() / 2)
    return max(value, 1 - value)


def test_the_manifest_splits_by_block_and_leaves_labels_open(made: Made) -> None:
    _, rows, _ = made
    assert len(rows) == 500 and len({row["source"] for row in rows}) == 2
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["group"], set()).add(row["split"])
        assert row["split"] != "unlabelled" or row["small_parcels"] == ""
    assert all(len(names) == 1 for names in splits.values())
    for source in {row["source"] for row in rows}:
        blocks = {row["group"]: row["split"] for row in rows if row["source"] == source}
        assert sum(split == "test" for split in blocks.values()) >= 10
    assert any(row["split"] == "train" and row["small_parcels"] == "" for row in rows)


def test_all_promised_forms_are_there(made: Made) -> None:
    _, _, pieces = made
    facts = [piece.facts for piece in pieces]
    assert {fact["format"] for fact in facts} == {"GTiff", "GTiff per band"}
    assert {fact["epsg"] for fact in facts} == {32633, 32718}
    assert {len(fact["bands"]) for fact in facts} == {5, 6}  # type: ignore[arg-type]
    assert any(float(fact["known"]) < 0.95 for fact in facts)  # type: ignore[arg-type]
    assert len({tuple(fact["bounds"]) for fact in facts}) == len(facts)  # type: ignore[arg-type]
    assert ingest.implausible(pieces[::8], SETTINGS) is None


def features(piece: Piece) -> np.ndarray:
    """The mean of every band, and that of all."""
    known = np.where(piece.values == UNKNOWN, np.nan, piece.values.astype(float))
    means = [np.nanmean(band) if np.isfinite(band).any() else 0.0 for band in known]
    return np.array([*means, np.nanmean(known)])


def test_no_mean_of_a_band_and_no_metadata_tells_the_label(made: Made) -> None:
    _, rows, pieces = made
    chosen = [i for i, row in enumerate(rows) if row["small_parcels"]]
    labels = np.array([int(rows[i]["small_parcels"]) for i in chosen])
    table = {f"mean {k}": column for k, column in enumerate(np.array([features(pieces[i]) for i in chosen]).T)}
    table |= {
        "source": np.array([rows[i]["source"] == rows[0]["source"] for i in chosen], float),
        "form": np.array([pieces[i].facts["format"] == "GTiff" for i in chosen], float),
        "known": np.array([pieces[i].facts["known"] for i in chosen], float),
        "bands": np.array([len(rows[i]["bands"]) for i in chosen], float),
        "place": np.array([pieces[i].facts["bounds"][0] for i in chosen], float)}  # type: ignore[index]
    for name, column in table.items():
        assert area_under_curve(column, labels) <= 0.60, name


def test_simple_models_of_the_means_of_all_bands_fail_on_unseen_blocks(made: Made) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    ensemble = pytest.importorskip("sklearn.ensemble")
    _, rows, pieces = made
    x = np.array([features(piece) for piece in pieces]) / 1000
    y = np.array([float(row["small_parcels"] or "nan") for row in rows])
    train, test = ([i for i, row in enumerate(rows) if row["split"] == split and row["small_parcels"]]
                   for split in ("train", "test"))
    for model in (linear.LogisticRegression(max_iter=1000), ensemble.RandomForestClassifier(200, random_state=0)):
        scores = model.fit(x[train], y[train]).predict_proba(x[test])[:, 1]
        assert area_under_curve(scores, y[test]) <= 0.60


def test_a_seed_writes_the_same_bytes_and_another_writes_others(tmp_path: Path) -> None:
    def files(name: str, seed: int) -> dict[str, bytes]:
        make(tmp_path / name, Sample(labelled=6, unlabelled=4, seed=seed))
        return {str(file.relative_to(tmp_path / name)): file.read_bytes()
                for file in sorted((tmp_path / name).rglob("*")) if file.is_file()}

    first, again, other = files("a", 3), files("b", 3), files("c", 4)
    assert first == again and first["labels.csv"] != other["labels.csv"]


@pytest.mark.parametrize("wrong", [{"labelled": 0, "unlabelled": 0}, {"labelled": -1}, {"size": 31}, {"size": 4}])
def test_nothing_to_make_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Sample(**wrong)  # type: ignore[arg-type]
