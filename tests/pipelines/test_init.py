from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import yaml

from domains.manifest import ManifestError, read_manifest
from domains.sample import Task
from pipelines.commands.folder_names import ENDINGS, look
from pipelines.commands.init import init
from pipelines.evaluate import EvaluateRun
from pipelines.ingest import DataRun, domain_reader
from pipelines.pretrain import PretrainRun
from pipelines.settings import build, load_run
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.verdict import VerdictRun


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def test_class_folders_become_labels_and_split_folders_splits(tmp_path: Path) -> None:
    touch(tmp_path / "films", *(f"{split}/{label}/{i}.jpeg" for split in ("train", "valid", "test")
                                for label in ("NORMAL", "PNEUMONIA") for i in range(3)))
    text = init(tmp_path / "films", tmp_path)
    rows = rows_of(tmp_path)
    assert len(rows) == 18
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert {row["label"] for row in rows} == {"NORMAL", "PNEUMONIA"}
    assert "EVERY FILE IS ITS OWN GROUP (18)" in text


@pytest.mark.parametrize(("names", "groups", "rule"), [
    (["00001280_004.jpg", "00001280_005.jpg", *(f"{p}_0.jpg" for p in range(8))], 9, "up to its first number"),
    ([f"case {p}/{i}.jpg" for p in range(4) for i in range(1 + p % 2)], 4, "the folder that a file lies in"),
    (["a.jpg", "b.jpg", "c.jpg"], 3, "EVERY FILE"),
    (["img_001.jpg", "img_002.jpg", "img_003.jpg"], 3, "EVERY FILE"),
    (["2024_a.jpg", "2024_b.jpg", "2025_c.jpg", "2025_d.jpg"], 4, "EVERY FILE"),
])
def test_the_rule_for_groups_is_said(tmp_path: Path, names: list[str], groups: int, rule: str) -> None:
    touch(tmp_path / "films", *names)
    text = init(tmp_path / "films", tmp_path)
    assert len({row["group"] for row in rows_of(tmp_path)}) == groups
    assert rule in text
    assert "CHECK" in text


@pytest.mark.parametrize(("kind", "domain"), [("xray", "medical"), ("ct", "medical"), ("multispectral", "satellite"),
                                              ("points", "pointcloud")])
def test_the_paragraph_is_one_that_ingest_takes(tmp_path: Path, kind: str, domain: str) -> None:
    touch(tmp_path / "data", *(f"{label}/{i}{ENDINGS[kind][0]}" for label in ("a", "no") for i in range(5)))
    init(tmp_path / "data", tmp_path)
    run = load_run("ingest", "data", DataRun, tmp_path)
    assert run.domain == domain
    reader = domain_reader(domain)
    read = build(reader.settings, run.read, "ingest.data.read")
    manifest = read_manifest(run.files, reader.ingest.suffixes(read), tmp_path)
    assert len(manifest.rows) == 10
    assert run.tasks["label"].classes == ("a", "no")


def test_folders_of_many_slices_are_volumes(tmp_path: Path) -> None:
    touch(tmp_path / "scans", *(f"p{p}/{i}.dcm" for p in range(5) for i in range(20)))
    text = init(tmp_path / "scans", tmp_path)
    assert [row["path"] for row in rows_of(tmp_path)] == [f"p{p}" for p in range(5)]
    assert "Kind: ct" in text
    touch(tmp_path / "films", *(f"{label}/{i}.dcm" for label in ("sick", "well") for i in range(20)))
    assert look(tmp_path / "films").kind == "xray"


@pytest.mark.parametrize("names", [("image/p1.nii.gz", "mask/p1.nii.gz"), ("p1.nii.gz", "p1_mask.nii.gz"),
                                   ("image/p1.nii.gz", "nodule_mask/p1.nii.gz"),
                                   ("p1.nii.gz", "segmentations/p1.nii.gz")])
def test_masks_are_put_beside_their_files(tmp_path: Path, names: tuple[str, str]) -> None:
    touch(tmp_path / "scans", *names)
    text = init(tmp_path / "scans", tmp_path)
    rows = rows_of(tmp_path)
    assert [(row["path"], row["mask_path"]) for row in rows] == [names]
    assert "mask_column: mask_path" in text


def test_dicom_files_without_an_ending_are_films_and_notes_are_not(tmp_path: Path) -> None:
    touch(tmp_path / "films", "a/README", "a/notes.txt")
    for name in ("a/IM0001", "b/1.2.840.113"):
        (tmp_path / "films" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "films" / name).write_bytes(bytes(128) + b"DICM")
    text = init(tmp_path / "films", tmp_path)
    assert [row["path"] for row in rows_of(tmp_path)] == ["a/IM0001", "b/1.2.840.113"]
    assert "2 without an ending" in text and "Left out: 1 without an ending, 1 .txt" in text


@pytest.mark.parametrize("name", ["{scene}/{scene}_{band}_10m.tif", "{scene}/R10m/{scene}_{band}.jp2"])
def test_folders_with_one_file_per_band_are_scenes(tmp_path: Path, name: str) -> None:
    bands = ("B02", "B8A", "B11")
    touch(tmp_path / "eo", *(name.format(scene=f"T32_{i}", band=band) for i in range(4) for band in bands
                             if (i, band) != (3, "B11")))
    text = init(tmp_path / "eo", tmp_path)
    assert [row["path"] for row in rows_of(tmp_path)] == [f"T32_{i}" for i in range(4)]
    assert "bands: [B02, B8A, B11]" in text and "file_bands" not in text
    run = load_run("ingest", "eo", DataRun, tmp_path)
    assert build(domain_reader("satellite").settings, run.read, "read").bands == ("B2", "B8A", "B11")


def own_table(folder: Path, text: str) -> Path:
    touch(folder, *(f"2023/IM{i:03d}.png" for i in range(8)))
    (folder / "labels.csv").write_text(text)
    return folder


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("spelling", ["2023/IM{i:03d}.png", "IM{i:03d}.png", "IM{i:03d}",
                                      "/mnt/pacs/2023/IM{i:03d}.png", "2023\\IM{i:03d}.png"])
def test_a_table_with_headings_of_its_own_is_matched_with_the_files(tmp_path: Path, separator: str,
                                                                   spelling: str) -> None:
    lines = [["Filename", "PatientID", "Pneumonia"], *([spelling.format(i=i), f"P{i // 2}", "yes" if i % 3 else "no"]
                                                       for i in range(6)), ["gone.png", "P9", "no"]]
    folder = own_table(tmp_path / "films", "\n".join(separator.join(line) for line in lines))
    text = init(folder, tmp_path)
    rows = rows_of(tmp_path)
    assert [row["path"] for row in rows] == [f"2023/IM{i:03d}.png" for i in range(8)]
    assert [row["group"] for row in rows[:6]] == ["P0", "P0", "P1", "P1", "P2", "P2"]
    assert [(row["split"], row["Pneumonia"]) for row in rows[5:]] == [("", "yes"), ("unlabelled", ""),
                                                                      ("unlabelled", "")]
    assert "names 6 of 8" in text and "1 rows of labels.csv name no file" in text
    assert "Pneumonia (no 3, yes 4)" in text and "the column PatientID" in text and "--label Pneumonia" in text


@pytest.mark.parametrize(("encoding", "separator", "end"), [("utf-8-sig", ";", "\r\n"), ("utf-16", "\t", "\r\n"),
                                                           ("utf-8", ",", "\n")])
def test_a_table_as_spreadsheets_write_it_is_read_with_headings_and_names_spelt_a_little_otherwise(
        tmp_path: Path, encoding: str, separator: str, end: str) -> None:
    touch(tmp_path / "films", "Röntgen/Bild 1 Müller.PNG", "Röntgen/Bild 2.png", "Röntgen/Bild 3.png")
    apart = unicodedata.normalize("NFD", "bild 1 müller.png")
    lines = [[" Filename", "PatientID ", " finding "], [apart, "P1", " yes"], ["BILD 2.PNG", "P2", "no "],
             ["Bild 3", "P3", "no"]]
    table = tmp_path / "labels.csv"
    table.write_bytes("".join(separator.join(line) + end for line in lines).encode(encoding))
    assert "CHECK: 3 are too few to be divided" in init(tmp_path / "films", tmp_path, table, label="finding")
    assert [(row["path"], row["group"], row["finding"]) for row in rows_of(tmp_path)] == [
        ("Röntgen/Bild 1 Müller.PNG", "P1", "yes"), ("Röntgen/Bild 2.png", "P2", "no"),
        ("Röntgen/Bild 3.png", "P3", "no")]


def test_a_column_called_class_may_have_many_and_where_none_looks_like_labels_the_option_is_named(
        tmp_path: Path) -> None:
    touch(tmp_path / "shapes", *(f"m{i}.off" for i in range(60)))
    (tmp_path / "a.csv").write_text("file,block,Class\n" + "".join(f"m{i}.off,b{i},kind{i % 20}\n" for i in range(60)))
    text = init(tmp_path / "shapes", tmp_path / "a", tmp_path / "a.csv")
    assert "... 20 classes" in text and "--label Class" in text and "the column block (60 groups" in text
    (tmp_path / "b.csv").write_text("file,block,name\n" + "".join(f"m{i}.off,b{i},kind{i % 20}\n" for i in range(60)))
    assert "Labels: no column looks like one" in init(tmp_path / "shapes", tmp_path / "b", tmp_path / "b.csv")


def test_files_that_differ_in_small_and_large_letters_alone_are_told_apart(tmp_path: Path) -> None:
    touch(tmp_path / "films", "x/a.png", "x/A.png", "x/b.png")
    (tmp_path / "labels.csv").write_text("file,patient\nA.png,1\na.png,2\nB.png,3\n")
    init(tmp_path / "films", tmp_path, tmp_path / "labels.csv")
    assert {row["path"]: row["group"] for row in rows_of(tmp_path)} == {"x/A.png": "1", "x/a.png": "2", "x/b.png": "3"}


@pytest.mark.parametrize(("kind", "domain"), [("xray", "medical"), ("ct", "medical"), ("multispectral", "satellite"),
                                              ("points", "pointcloud")])
def test_the_paragraphs_go_on_to_the_verdict(tmp_path: Path, kind: str, domain: str) -> None:
    touch(tmp_path / "mine", *(f"{label}/{i}{ENDINGS[kind][0]}" for label in ("a", "b") for i in range(5)))
    text = init(tmp_path / "mine", tmp_path)
    assert "lacuna pretrain mine" in text and "lacuna verdict mine" in text
    for stage, settings in (("pretrain", PretrainRun), ("finetune", FinetuneRun), ("evaluate", EvaluateRun),
                            ("verdict", VerdictRun)):
        assert load_run(stage, "mine", settings, tmp_path).domain == domain  # type: ignore[attr-defined]


def test_paragraphs_are_put_into_the_shipped_params_and_nothing_else_changes(tmp_path: Path) -> None:
    shipped = Path("params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(shipped)
    folder = own_table(tmp_path / "films", "file,patient,ill,age\n" + "".join(
        f"IM{i:03d},P{i},{i % 2},{40 + i}\n" for i in range(8)))
    assert "ill" in init(folder, tmp_path, label="ill", add=True)
    text = (tmp_path / "params.yaml").read_text()
    before, after = yaml.safe_load(shipped), yaml.safe_load(text)
    assert [line for line in shipped.splitlines() if "#" in line] == [
        line for line in text.splitlines() if "#" in line and "CHECK" not in line]
    assert after["finetune"].pop("films")["start"] == "artifacts/pretrain/films"
    for stage in ("ingest", "pretrain", "evaluate", "verdict"):
        del after[stage]["films"]
    assert after == before
    (tmp_path / "manifest.csv").unlink()
    with pytest.raises(ValueError, match="a run films under ingest already"):
        init(folder, tmp_path, label="ill", add=True)
    assert not (tmp_path / "manifest.csv").exists()


def test_a_column_of_many_numbers_is_a_quantity_and_empty_sections_are_filled(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("verdict: {}  # none yet\nadapt: {}\n")
    touch(tmp_path / "films", *(f"{i}.png" for i in range(60)))
    (tmp_path / "films/ages.csv").write_text("file,patient,age\n" + "".join(f"{i},p{i},{i}.5\n" for i in range(60)))
    init(tmp_path / "films", tmp_path, label="age", add=True)
    made = yaml.safe_load((tmp_path / "params.yaml").read_text())
    assert made["ingest"]["films"]["tasks"] == {"age": {"kind": "regression", "columns": ["age"]}}
    assert made["verdict"]["films"]["task"] == "age" and made["adapt"] == {}
    assert "# none yet" in (tmp_path / "params.yaml").read_text()


@pytest.mark.parametrize(("cell", "stored", "kind", "said"), [
    ("{},25", "{}.25", "regression", "Numbers of Größe have points now instead of commas (1,25)."),
    ("{},500", "{},500", "single_label", "CHECK: numbers of Größe have commas (1,500) that may part thousands"),
    ("{},25 kg", "{},25 kg", "single_label", "")])
def test_a_table_of_excel_in_western_europe_is_read_with_its_letters_and_commas_in_numbers(
        tmp_path: Path, cell: str, stored: str, kind: str, said: str) -> None:
    names = [f"Brüche\n{i}.png" for i in range(1, 31)]
    touch(tmp_path / "films", *names)
    lines = [f'"{name}";Jürgen {i};{cell.format(i)}\r\n' for i, name in enumerate(names, start=1)]
    table = tmp_path / "werte.csv"
    table.write_bytes("".join(["Datei;PatientID;Größe\r\n", *lines]).encode("cp1252"))
    text = init(tmp_path / "films", tmp_path, table, label="Größe")
    rows = {row["path"]: row for row in rows_of(tmp_path)}
    assert len(rows) == 30 and "Manifest with 30 rows" in text
    assert "werte.csv is not UTF-8 and was read as Windows-1252. CHECK: it says Größe." in text
    assert [rows[name]["Größe"] for name in names] == [stored.format(i) for i in range(1, 31)]
    assert rows[names[3]]["group"] == "Jürgen 4" and f"kind: {kind}" in text
    assert said in text and ("Größe have" in text) == bool(said)


def test_bytes_that_are_text_in_neither_encoding_are_refused_with_a_remedy(tmp_path: Path) -> None:
    touch(tmp_path / "films", "a.png", "b.png")
    (tmp_path / "t.csv").write_bytes(b"file,patient\na.png,\x81\x8d\n")
    with pytest.raises(ManifestError, match="Remedy: save it as CSV in UTF-8"):
        init(tmp_path / "films", tmp_path, tmp_path / "t.csv")


def test_a_damaged_utf_8_table_is_refused_and_not_read_as_windows_1252(tmp_path: Path) -> None:
    touch(tmp_path / "films", "a.png", "b.png")
    (tmp_path / "t.csv").write_bytes("file,patient\na.png,Jürgen\nb.png,Zo".encode() + b"\xeb\n")
    with pytest.raises(ManifestError, match="Remedy: save it as CSV in UTF-8"):
        init(tmp_path / "films", tmp_path, tmp_path / "t.csv")


def test_a_table_that_does_not_fit_is_said_and_one_that_was_named_is_refused(tmp_path: Path) -> None:
    folder = own_table(tmp_path / "films", "site,doctor\nnorth,A\nsouth,B\n")
    assert "labels.csv was not used" in init(folder, tmp_path)
    (tmp_path / "manifest.csv").unlink()
    with pytest.raises(ManifestError, match=r"no column that names the 8 files.*--files COLUMN"):
        init(folder, tmp_path, folder / "labels.csv")
    (folder / "labels.csv").write_text("file,who\nIM001,a\nIM001.png,a\nIM002,b\n")
    with pytest.raises(ManifestError, match=r"name a file again \(the first: rows 1, 2\)"):
        init(folder, tmp_path, folder / "labels.csv")
    with pytest.raises(ManifestError, match=r"no column patient, expected one of file, who"):
        init(folder, tmp_path, folder / "labels.csv", group_column="patient")


def test_patients_in_two_spellings_are_noticed(tmp_path: Path) -> None:
    rows = [f"IM{i:03d},{who},{i % 2}" for i, who in enumerate(["0017", "17", "P 3", "p-03", "4", "5"])]
    folder = own_table(tmp_path / "films", "\n".join(["file,patient,ill", *rows]))
    assert "CHECK: 2 groups look written in more than one way (0017 and 17)" in init(folder, tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    touch(tmp_path / "films", "a.png")
    (tmp_path / "params.yaml").write_text("mine: 1\n")
    text = init(tmp_path / "films", tmp_path)
    assert (tmp_path / "params.yaml").read_text() == "mine: 1\n"
    assert "were not written" in text and "ingest:" in text
    with pytest.raises(ManifestError, match="already"):
        init(tmp_path / "films", tmp_path)


def test_a_folder_without_known_files_names_the_endings(tmp_path: Path) -> None:
    touch(tmp_path / "docs", "a.docx", ".hidden.png")
    with pytest.raises(ManifestError, match=r"nothing to read among 1 files.*\.nii\.gz"):
        init(tmp_path / "docs", tmp_path)
    with pytest.raises(ManifestError, match="found no folder"):
        init(tmp_path / "none", tmp_path)


def test_other_files_are_counted(tmp_path: Path) -> None:
    touch(tmp_path / "films", "a.png", "b.png", "readme.txt", "c.tif")
    assert "Left out: 1 .tif, 1 .txt" in init(tmp_path / "films", tmp_path)


def test_masks_become_a_task_with_the_numbers_that_they_hold(tmp_path: Path) -> None:
    image_of = pytest.importorskip("PIL.Image", reason="reads PNG: pip install 'lacuna[medical]'")
    for name, numbers in (("image", None), ("mask", (0, 3, 7))):
        (tmp_path / "films" / name).mkdir(parents=True)
        for i in range(6):
            grid = np.add.outer(np.arange(64), np.arange(48))
            grey = grid * 2 if numbers is None else np.choose(grid // 40, numbers)
            image_of.fromarray(grey.astype(np.uint8)).save(tmp_path / f"films/{name}/case{i}.png")
    text = init(tmp_path / "films", tmp_path)
    assert "6 masks hold the numbers 0, 3, 7" in text and "CHECK: give them names" in text
    run = load_run("ingest", "films", DataRun, tmp_path)
    assert run.tasks["mask"] == Task("segmentation", classes=("rest", "class_3", "class_7"), values=(0, 3, 7))
    assert run.files.mask_column == "mask_path" and rows_of(tmp_path)[0]["mask_path"] == "mask/case0.png"


def test_masks_that_cannot_be_read_are_taken_for_marks_and_this_is_said(tmp_path: Path) -> None:
    touch(tmp_path / "films", *(f"{place}/{i}.png" for place in ("image", "mask") for i in range(5)))
    text = init(tmp_path / "films", tmp_path)
    assert "0 masks could be read and looked at, which is too little to tell" in text
    assert load_run("ingest", "films", DataRun, tmp_path).tasks["mask"].classes == ("rest", "marked")
