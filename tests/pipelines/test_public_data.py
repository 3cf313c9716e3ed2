"""Every named data set, on a small folder laid out the same way, fetched from a server on this machine where it is
fetched at all."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from domains.manifest import read_manifest
from pipelines import cli
from pipelines.ingest import DataRun, domain_reader
from pipelines.intake import public_data
from pipelines.intake.public_data import SETS, fetch_named, listing
from pipelines.intake.transfer import NotFetched, Transfer
from pipelines.settings import build
from tests.pipelines.loopback import Site, serving

SCENE = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"


@pytest.fixture
def site(no_waiting: None) -> Iterator[Site]:
    with serving(Site()) as made:
        yield made


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return content.getvalue()


def without_sums(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The small archives of a test are not those whose sums are known."""
    archives = tuple(replace(archive, md5="", size=None) for archive in SETS[name].archives)
    monkeypatch.setitem(public_data.SETS, name, replace(SETS[name], archives=archives))


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run_of(fetched: tuple[str, bool]) -> DataRun:
    """The printed paragraph, as ingest would take it: settings that build, and a manifest that reads."""
    said, whole = fetched
    assert whole
    name, raw = next(iter(yaml.safe_load(said.split("For params.yaml:")[1])["ingest"].items()))
    run = build(DataRun, raw, name)
    reader = domain_reader(run.domain)
    settings = build(reader.settings, run.read, f"{name}.read")
    read_manifest(run.files, reader.ingest.suffixes(settings), Path())
    return run


def test_all_are_listed_with_what_is_known_of_them() -> None:
    text = listing()
    assert all(f"\n{name}" in f"\n{text}" for name in SETS)
    assert set(SETS) == {"chestxray14", "lidc", "eurosat_ms", "bigearthnet", "modelnet40", "scanobjectnn", "shapenet55"}
    assert all(archive.url.startswith("https://") for one in SETS.values() for archive in one.archives)


def test_chestxray14(tmp_path: Path, site: Site) -> None:
    for i in range(1, 13):
        site.files[f"images_{i:03d}.tar.gz"] = tarred({f"images/0000000{i % 3}_{i:03d}.png": b"film"})
    with pytest.raises(ValueError, match="put them into the folder"):
        fetch_named("chestxray14", tmp_path, site.url)
    assert not list(tmp_path.glob(".fetched/*.gz"))
    head = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text(head + "".join(
        f"0000000{i % 3}_{i:03d}.png,{'Effusion|Mass' if i % 2 else 'No Finding'},0,{i % 3},60,M,PA\n"
        for i in range(1, 14)))
    (tmp_path / "test_list.txt").write_text("00000000_003.png\n00000000_006.png\n00000000_009.png\n00000000_012.png\n")
    site.asked.clear()
    run = run_of(fetch_named("chestxray14", tmp_path, site.url))
    assert not site.asked
    found = rows(tmp_path)
    assert len(found) == 12
    assert {row["group"] for row in found if row["split"] == "test"} == {"0"}
    one = next(row for row in found if row["path"] == "images/00000001_001.png")
    assert (one["Effusion"], one["Mass"], one["Hernia"]) == ("1", "1", "0")
    assert len(run.tasks["chestxray14"].columns) == 14 and run.splits.test == 0


def series(uid: str, patient: str = "LIDC-IDRI-0001") -> dict[str, str]:
    return {"PatientID": patient, "StudyInstanceUID": "1.2", "SeriesInstanceUID": uid}


def test_lidc_by_the_interface_of_its_archive(tmp_path: Path, site: Site) -> None:
    slices = {"1-1.dcm": b"one", "1-2.dcm": b"two"}
    sums = "Filename,MD5Hash\n" + "".join(f"{name},{hashlib.md5(text).hexdigest()}\n" for name, text in slices.items())
    good = zipped({**slices, "md5hashes.csv": sums.encode()})
    site.queries["getSeries?Collection=LIDC-IDRI&Modality=CT&format=json"] = json.dumps(
        [series("1.2.3"), series("1.2.4"), series("1.2.5"), series("../../x"), series("1.2.6", "../x")]).encode()
    site.queries["getImageWithMD5Hash?SeriesInstanceUID=1.2.3"] = good
    site.queries["getImageWithMD5Hash?SeriesInstanceUID=1.2.4"] = zipped({**slices, "1-2.dcm": b"TWO",
                                                                         "md5hashes.csv": sums.encode()})
    said, whole = fetch_named("lidc", tmp_path, site.url, how=Transfer(parallel=1, retries=0))
    assert not whole and "NOT FETCHED: 2 series" in said and "the same command" in said
    assert "md5" in said and "answered 404" in said
    assert [(row["path"], row["group"]) for row in rows(tmp_path)] == [
        ("LIDC-IDRI/LIDC-IDRI-0001/1.2/1.2.3", "LIDC-IDRI-0001")]
    site.queries["getImageWithMD5Hash?SeriesInstanceUID=1.2.4"] = good
    site.queries["getImageWithMD5Hash?SeriesInstanceUID=1.2.5"] = good
    site.asked.clear()
    run_of(fetch_named("lidc", tmp_path, site.url))
    assert len(rows(tmp_path)) == 3 and len(site.asked) == 3
    assert not list(tmp_path.parent.glob("x"))


def test_the_command_fails_and_says_what_to_do_when_a_part_did_not_come(
        tmp_path: Path, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    slices = {"1-1.dcm": b"one", "md5hashes.csv": f"Filename,MD5Hash\n1-1.dcm,{hashlib.md5(b'one').hexdigest()}\n"
              .encode()}
    site.queries["getSeries?Collection=LIDC-IDRI&Modality=CT&format=json"] = json.dumps(
        [series("1.2.3"), series("1.2.4")]).encode()
    site.queries["getImageWithMD5Hash?SeriesInstanceUID=1.2.3"] = zipped(slices)
    command = ["fetch", "lidc", "--out", str(tmp_path), "--mirror", site.url]
    assert cli.main(command) != 0
    assert "NOT FETCHED: 1 series" in (said := capsys.readouterr().out) and "Remedy: the same command" in said
    site.queries["getImageWithMD5Hash?SeriesInstanceUID=1.2.4"] = zipped(slices)
    assert cli.main(command) == 0
    assert "NOT FETCHED" not in capsys.readouterr().out


def test_eurosat(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["EuroSAT_MS.zip"] = zipped({f"EuroSAT_MS/{name}/{name}_{i}.tif": b"tile"
                                           for name in ("Forest", "River") for i in (1, 2)})
    with pytest.raises(NotFetched, match="expected 2065402329"):
        fetch_named("eurosat_ms", tmp_path, site.url)
    without_sums(monkeypatch, "eurosat_ms")
    run = run_of(fetch_named("eurosat_ms", tmp_path, site.url))
    assert [(row["path"], row["label"]) for row in rows(tmp_path)][0] == ("EuroSAT_MS/Forest/Forest_1.tif", "Forest")
    assert len(rows(tmp_path)) == 4 and run.read["file_bands"][-1] == "B8A"


def test_bigearthnet_release_1(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    without_sums(monkeypatch, "bigearthnet")
    files = {}
    for patch, labels in ((f"{SCENE}_0_1", ["Pastures", "Sea and ocean"]), (f"{SCENE}_0_2", ["Pastures"])):
        files |= {f"BigEarthNet-v1.0/{patch}/{patch}_B{band}.tif": b"band" for band in ("02", "03", "8A")}
        files[f"BigEarthNet-v1.0/{patch}/{patch}_labels_metadata.json"] = json.dumps({"labels": labels}).encode()
    site.files["BigEarthNet-S2-v1.0.tar.gz"] = tarred(files)
    run = run_of(fetch_named("bigearthnet", tmp_path, site.url))
    assert [(row["group"], row["Pastures"], row["Sea and ocean"]) for row in rows(tmp_path)] == [
        (SCENE, "1", "1"), (SCENE, "1", "0")]
    assert run.tasks["bigearthnet"].columns == ("Pastures", "Sea and ocean")


def test_bigearthnet_release_2_with_its_official_split(tmp_path: Path) -> None:
    patches = [f"{SCENE}_26_5{i}" for i in range(3)]
    for patch in patches:
        (tmp_path / "BigEarthNet-S2" / SCENE / patch).mkdir(parents=True)
        (tmp_path / "BigEarthNet-S2" / SCENE / patch / f"{patch}_B02.tif").write_bytes(b"band")
    pq.write_table(pa.table({"patch_id": patches, "labels": [["Pastures"], ["Arable land"], ["Pastures"]],
                             "split": ["train", "validation", "test"]}), tmp_path / "metadata.parquet")
    run_of(fetch_named("bigearthnet", tmp_path, download=False))
    assert [(row["group"], row["split"], row["Pastures"]) for row in rows(tmp_path)] == [
        (patches[0], "train", "1"), (patches[1], "val", "0"), (patches[2], "test", "1")]


def test_modelnet40(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    without_sums(monkeypatch, "modelnet40")
    site.files["ModelNet40.zip"] = zipped({
        f"ModelNet40/{name}/{split}/{name}_000{i}.off": b"OFF" for name in ("chair", "night_stand")
        for i, split in enumerate(("train", "train", "test"))} | {"__MACOSX/x": b""})
    run = run_of(fetch_named("modelnet40", tmp_path, site.url))
    found = rows(tmp_path)
    assert [row["split"] for row in found if row["label"] == "night_stand"] == ["test", "", ""]
    assert len({row["group"] for row in found}) == 6 and run.splits.test == 0


def test_scanobjectnn_out_of_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    clouds = np.random.default_rng(0).normal(size=(600, 16, 3)).astype(np.float32)
    folder = tmp_path / "h5_files/main_split"
    folder.mkdir(parents=True)
    for part, number in (("training", 600), ("test", 5)):
        with h5py.File(folder / f"{part}_objectdataset.h5", "w") as file:
            file["data"], file["label"] = clouds[:number], np.arange(number) % 15
    (folder / "test_objectdataset_augmentedrot_scale75.h5").write_bytes(b"no HDF5")
    with h5py.File(folder / "training_objectdataset_augmentedrot_scale75.h5", "w") as file:
        file["data"], file["label"] = h5py.ExternalLink("training_objectdataset.h5", "data"), np.arange(600)
    said, whole = fetch_named("scanobjectnn", tmp_path)
    assert not whole and "REFUSED: 2 files" in said and "no array data of its own" in said
    run_of((said, True))
    found = rows(tmp_path)
    assert len(found) == 605 and sum(row["split"] == "test" for row in found) == 5
    one = next(row for row in found if row["path"].endswith("train/1_00586.npy"))
    assert one["label"] == "bin"
    assert np.array_equal(np.load(tmp_path / one["path"]), clouds[586])


def test_shapenet55(tmp_path: Path) -> None:
    for folder in ("shapenet_pc", "ShapeNet-55"):
        (tmp_path / folder).mkdir()
    with pytest.raises(ValueError, match="Register at ShapeNet"):
        fetch_named("shapenet55", tmp_path)
    for name in ("02691156-aa", "02691156-bb", "04379243-cc"):
        np.save(tmp_path / f"shapenet_pc/{name}.npy", np.zeros((8, 3), np.float32))
    (tmp_path / "ShapeNet-55/test.txt").write_text("02691156-bb.npy\n")
    run_of(fetch_named("shapenet55", tmp_path))
    assert [(row["group"], row["split"], row["label"]) for row in rows(tmp_path)] == [
        ("aa", "", "02691156"), ("bb", "test", "02691156"), ("cc", "", "04379243")]


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="eurosat_ms"):
        fetch_named("eurosat", tmp_path)
