"""`lacuna finetune medical --data DIR --labels CSV`: somebody's own folder through the same stages."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import lacuna

SIZE = "size: {width: 16, depth: 1, num_heads: 2}"
SMALL = ["--set", "read.size=[32,32]", "--set", "encoder.tokenizer.patch=[8,8]", "--steps", "2",
         "--set", "encoder.size={width: 16, depth: 1, num_heads: 2}", "--set", "seeds=[0]",
         "--set", "optimisation.batch_size=4", "--set", "machine.accelerator=cpu"]


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_tracking: None) -> Path:
    """36 grey pictures of 18 patients, a manifest with a class, two findings and an age."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "films"
    folder.mkdir()
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "group", "ill", "y_a", "y_b", "age"])
        for i in range(36):
            ill = int(rng.integers(2))
            Image.fromarray(rng.integers(0, 120 + 80 * ill, (40, 40), dtype=np.uint8)).save(folder / f"{i}.png")
            unknown_or = "" if i % 5 == 0 else i % 2
            writer.writerow([f"{i}.png", f"p{i // 2}", "yes" if ill else "no", ill, unknown_or, 20 + i * 1.5])
    monkeypatch.chdir(tmp_path)
    return folder


def tune(*arguments: str) -> int:
    return lacuna.main(["finetune", "medical", "--data", "films", "--labels", "labels.csv", *arguments, *SMALL])


@pytest.mark.parametrize(("label", "kind"), [(["ill"], "single_label"), (["y_a", "y_b"], "multi_label"),
                                             (["age"], "single_label")])
def test_a_folder_and_a_manifest_become_a_scored_model(films, capsys, label, kind):
    assert tune(*(part for column in label for part in ("--label", column)), "--name", "mine",
                *(["--task", "regression"] if label == ["age"] else [])) == 0
    assert "settings of this run" in capsys.readouterr().out
    record = json.loads(Path("reports/evaluate/mine/metrics.json").read_text())
    assert list(record["arms"]) == ["scratch"]
    pasted = yaml.safe_load(Path("reports/evaluate/mine/params.yaml").read_text())
    assert pasted["ingest"]["mine"]["tasks"]["task"]["kind"] == ("regression" if label == ["age"] else kind)


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_every_protocol_can_be_had(films, protocol):
    assert tune("--label", "ill", "--name", "p", "--protocol", protocol) == 0
    assert json.loads(Path("artifacts/finetune/p/summary.json").read_text())["protocol"] == protocol


@pytest.mark.parametrize(("arguments", "said"), [
    (["--label", "disease"], "expected disease among them"),
    (["--label", "ill", "--set", "colour=1"], "unknown key: finetune"),
    (["--label", "ill", "--start", "nowhere"], "is not a checkpoint"),
    (["--label", "ill", "--set", "x"], "found no '='")])
def test_what_cannot_be_used_is_said_in_a_sentence(films, capsys, arguments, said):
    assert tune(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_a_table_with_other_headings_is_taken_and_its_run_can_be_asked_for_names(films, capsys):
    lines = Path("labels.csv").read_text().replace("path,group", "File;Patient", 1).replace(",", ";")
    Path("labels.csv").write_text(lines)
    (films / "7.png").write_bytes(b"no picture")
    assert tune("--label", "ill", "--name", "mine", "--set", "bad_files=0.1") == 0
    said = capsys.readouterr().out
    assert "the column File of labels.csv names 36 of 36" in said and "the column Patient (18 groups" in said
    assert lacuna.main(["where", "mine"]) == 0
    assert "films/7.png" in capsys.readouterr().out
    assert tune("--label", "ill", "--name", "strict", "--set", "bad_files=0.01") == 3
    assert lacuna.main(["where", "strict"]) == 0
    Path("labels.csv").write_text(lines.replace("File;Patient", "File;Wer"))
    assert tune("--label", "ill") == 2
    assert "--group COLUMN, one of File, Wer, ill" in capsys.readouterr().err


def test_the_paragraphs_of_init_lead_to_a_comparison_and_other_splits_end_before_a_training(films, capsys):
    assert lacuna.main(["init", "films", "--labels", "labels.csv", "--label", "ill"]) == 0
    text = Path("params.yaml").read_text()
    for whole, small in (("[224, 224]", "[32, 32]"), ("[16, 16]", "[8, 8]"), ("size: small", SIZE), ("2000", "2"),
                         ("steps: 500", "steps: 2"), ("batch_size: 64", "batch_size: 8")):
        assert whole in text
        text = text.replace(whole, small)
    Path("params.yaml").write_text(text)
    for stage in ("ingest", "pretrain", "finetune", "evaluate"):
        assert lacuna.main([stage, "films"]) == 0
    assert "36 samples of 18 groups" in capsys.readouterr().out
    assert set(json.loads(Path("reports/evaluate/films/metrics.json").read_text())["arms"]) == {"scratch", "pretrained"}
    tune = ["finetune", "medical", "--data", "films", "--labels", "labels.csv", "--label", "ill", "--steps", "2",
            "--start", "artifacts/pretrain/films", "--set", "splits={seed: 5}", "--name", "anew"]
    assert lacuna.main(tune) == 2
    assert "test groups in what it was pretrained on" in capsys.readouterr().err
    assert not Path("artifacts/finetune/anew").exists()


def test_a_label_needs_a_table(films, capsys):
    assert lacuna.main(["finetune", "medical", "--data", "films", "--label", "ill"]) == 2
    assert "--labels CSV --label ill" in capsys.readouterr().err


@pytest.mark.parametrize("told", ["by names", "by a manifest"])
def test_a_folder_with_masks_becomes_a_model_that_writes_them(films, capsys, told):
    """Discs, in masks whose numbers are 0 and 5; another folder than the pictures says which are masks."""
    places = np.hypot(*np.meshgrid(np.arange(40) - 19, np.arange(40) - 17))
    (films / "masks").mkdir()
    for i in range(36):
        mask = np.where(places < 6 + i % 5, 5, 0).astype(np.uint8)
        grey = np.asarray(Image.open(films / f"{i}.png")) // 4 + 30 * mask
        Image.fromarray(grey.astype(np.uint8)).save(films / f"{i}.png")
        Image.fromarray(mask).save(films / f"masks/{i}.png")
    if told == "by a manifest":
        with Path("masks.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["path", "mask_path", "group"],
                                        *([f"{i}.png", f"masks/{i}.png", f"p{i // 2}"] for i in range(36))])
    named = ["--labels", "masks.csv", "--task", "segmentation"] if told == "by a manifest" else []
    assert lacuna.main(["finetune", "medical", "--data", "films", *named, "--name", "discs", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "hold the numbers 0, 5" in said
    pasted = yaml.safe_load(Path("reports/evaluate/discs/params.yaml").read_text())
    assert pasted["ingest"]["discs"]["tasks"]["task"] == {
        "kind": "segmentation", "classes": ["rest", "class_5"], "values": [0, 5]}
    assert json.loads(Path("reports/evaluate/discs/metrics.json").read_text())["arms"]
    assert lacuna.main(["predict", "artifacts/finetune/discs/scratch/seed0", "films/3.png", "--out", "out"]) == 0
    assert np.asarray(Image.open("out/masks/3.png")).shape == (40, 40)
