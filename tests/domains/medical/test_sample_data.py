"""The embedded sample: real formats, the same bytes per seed, a task that no shortcut solves. That it can be learnt,
and what the shift between sources costs, is asserted on the pipeline's own results."""

import csv
from pathlib import Path

import numpy as np
import pytest

from domains.medical import ingest
from domains.medical.ingest import CT, XRay
from domains.medical.sample_data import Sample, make
from domains.sample import ManifestRow

READ = {"xray": XRay(size=(64, 64)), "ct": CT(size=(24, 24, 24), spacing=(2.0, 2.0, 2.0))}
LABEL = {"xray": "opacity", "ct": "part_solid"}


Made = tuple[str, Path, list[dict[str, str]]]
"""Kind, folder, manifest."""


@pytest.fixture(scope="module", params=["xray", "ct"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    make(folder, Sample(kind=request.param, labelled=300, unlabelled=20))
    return request.param, folder, list(csv.DictReader((folder / "labels.csv").open()))


def read(folder: Path, row: dict[str, str], kind: str) -> ingest.Piece:
    mask = row.get("mask_path")
    (piece,) = ingest.read(ManifestRow(folder / row["path"], row["path"], row["group"], row["split"], row["source"],
                                       folder / mask if mask else None), READ[kind])
    return piece


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """AUROC, whichever way round is better."""
    order = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    value = float((order > 0).mean() + (order == 0).mean() / 2)
    return max(value, 1 - value)


def test_manifest_splits_by_patient_and_leaves_labels_open(made: Made) -> None:
    kind, folder, rows = made
    assert len(rows) == 320 and len({row["source"] for row in rows}) == 2
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["group"], set()).add(row["split"])
        assert (folder / row["path"]).exists()
        assert row["split"] != "unlabelled" or row[LABEL[kind]] == ""
    assert all(len(names) == 1 for names in splits.values()) and len(splits) < len(rows)
    assert {row["split"] for row in rows} == {"train", "val", "test", "unlabelled"}
    assert any(row["split"] == "train" and row[LABEL[kind]] == "" for row in rows)


def test_mean_intensity_and_metadata_do_not_tell_the_label(made: Made) -> None:
    kind, folder, rows = made
    labelled = [row for row in rows if row[LABEL[kind]]]
    labels = np.array([int(row[LABEL[kind]]) for row in labelled])
    pieces = [read(folder, row, kind) for row in labelled]
    scores = {"mean": [piece.values.mean() for piece in pieces], "age": [float(row["age"]) for row in labelled],
              "source": [row["source"] == labelled[0]["source"] for row in labelled],
              "shape": [float(np.prod(piece.facts["shape"])) for piece in pieces],  # type: ignore[arg-type]
              "split": [row["split"] == "train" for row in labelled],
              "visits": [sum(other["group"] == row["group"] for other in rows) for row in labelled]}
    for name, values in scores.items():
        assert area_under_curve(np.array(values, dtype=float), labels) <= 0.60, name


def test_both_sources_and_all_promised_formats_are_there(made: Made) -> None:
    kind, folder, rows = made
    facts = [read(folder, row, kind).facts for row in rows[:60] + rows[150:210]]
    if kind == "xray":
        assert {fact["photometric"] for fact in facts} == {"MONOCHROME1", "MONOCHROME2"}
        assert {fact["stored_bits"] for fact in facts} == {12}
        assert {fact["contrast"] for fact in facts} == {"window", "percentile"}
    else:
        import nibabel

        assert {fact["format"] for fact in facts} == {"NIfTI", "DICOM series"}
        assert len({tuple(fact["spacing"]) for fact in facts}) > 20  # type: ignore[arg-type]
        files = [folder / row["path"] for row in rows if ".nii" in row["path"]]
        assert len({nibabel.aff2axcodes(nibabel.load(file).affine) for file in files[:40]}) >= 4
        assert {"".join(file.suffixes) for file in files} == {".nii", ".nii.gz"}


def test_samples_do_not_contradict_their_units(made: Made) -> None:
    kind, folder, rows = made
    assert ingest.implausible([read(folder, row, kind) for row in rows[:10]], READ[kind]) is None


def test_masks_lie_on_the_nodule(made: Made) -> None:
    kind, folder, rows = made
    if kind == "xray":
        pytest.skip("films have no masks")
    for row in [row for row in rows if row["split"] != "unlabelled"][::15]:
        piece = read(folder, row, kind)
        assert piece.mask is not None
        inside = piece.values[0][piece.mask == 1]
        assert len(inside) > 20 and inside.mean() > piece.values[0][piece.mask == 0].mean() + 150


@pytest.mark.parametrize("kind", ["xray", "ct"])
def test_a_seed_writes_the_same_bytes_and_another_writes_others(tmp_path: Path, kind: str) -> None:
    def files(name: str, seed: int) -> dict[str, bytes]:
        make(tmp_path / name, Sample(kind=kind, labelled=6, unlabelled=4, seed=seed))  # type: ignore[arg-type]
        return {str(file.relative_to(tmp_path / name)): file.read_bytes()
                for file in sorted((tmp_path / name).rglob("*")) if file.is_file()}

    first, again, other = files("a", 3), files("b", 3), files("c", 4)
    assert first == again and first.keys() and first["labels.csv"] != other["labels.csv"]


def test_nothing_to_make_is_refused() -> None:
    with pytest.raises(ValueError, match="counts: found"):
        Sample(labelled=0, unlabelled=0)
