"""Tables line up, exports are whole or absent, pictures are made where they can be and missed nowhere."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import report
from tests.fabricate import pretrained


def test_a_table_lines_up_and_shows_what_is_missing_as_a_dash() -> None:
    text = report.table([{"arm": "scratch", "auroc": 0.81234567, "note": ""}, {"arm": "pretrained", "auroc": None}])
    assert text.splitlines() == [
        "arm          auroc  note",
        "----------  ------  ----",
        "scratch     0.8123  -",
        "pretrained       -  -",
    ]
    assert report.table([]) == ""


def test_csv_takes_rows_with_different_columns_and_reads_back(tmp_path: Path) -> None:
    report.write_csv(tmp_path / "a.csv", [{"step": 1, "loss": 0.5}, {"step": 2, "rank": 3.0}])
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"step": "1", "loss": "0.5", "rank": ""},
                                              {"step": "2", "loss": "", "rank": "3.0"}]


def test_json_refuses_a_nan_and_leaves_the_old_file(tmp_path: Path) -> None:
    report.write_json(tmp_path / "m.json", {"a": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_json(tmp_path / "m.json", {"a": float("nan")})
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": 1.0}
    assert [file.name for file in tmp_path.iterdir()] == ["m.json"]


def test_every_picture_is_a_png_and_equal_numbers_give_equal_bytes(tmp_path: Path) -> None:
    line = np.linspace(0, 1, 20)
    draw = {
        "loss": lambda p: report.loss_curve(p, [{"step": s, "loss": 1 / s, "rank": 3.0} for s in range(1, 9)], "t"),
        "parts": lambda p: report.loss_curve(p, [{"step": s, "loss": 3 / s, "a": 1 / s, "b": 2 / s} for s in (1, 2)]),
        "forest": lambda p: report.forest(p, [("a", 0.8, 0.7, 0.9), ("b", 0.5, None, None), ("c", None, None, None)],
                                          "AUROC", zero=True),
        "curves": lambda p: report.curves(p, {"a": (line, line**0.5)}, ("x", "y")),
        "reliability": lambda p: report.reliability(p, {"a": (line, line, np.arange(20))}),
        "scatter": lambda p: report.scatter(p, {"a": (line, line**2), "b": (line, line)}, ("true", "predicted")),
    }
    for name, call in draw.items():
        paths = [tmp_path / f"{name}{i}.png" for i in range(2)]
        assert all(call(path) for path in paths), name
        assert Image.open(paths[0]).format == "PNG" and min(Image.open(paths[0]).size) > 100
        assert paths[0].read_bytes() == paths[1].read_bytes(), name


def test_long_names_and_labels_of_a_plot_of_rows_stay_within_the_picture(tmp_path: Path) -> None:
    label = "AUROC (test groups: 290 at a_hospital_for_children, 80 at another_hospital_with_a_long_name, 7 at a third)"
    rows = [("pretrained, adapted, at a_hospital_for_children", 0.8, 0.7, 0.9)]
    assert report.forest(tmp_path / "f.png", rows, label, label)
    picture = np.asarray(Image.open(tmp_path / "f.png").convert("L"))
    assert (picture[:, :3] == 255).all() and (picture[:, -3:] == 255).all()


def test_reconstructions_keep_colours_and_square_pixels(tmp_path: Path) -> None:
    left = np.zeros((16, 16, 3), np.uint8)
    left[:8] = (255, 0, 0)
    rows = [[left, left, np.full((16, 16), 128, np.uint8)], [np.full((16, 48, 3), 9, np.uint8)] * 3]
    assert report.reconstructions(tmp_path / "r.png", rows)
    sheet = np.asarray(Image.open(tmp_path / "r.png"))
    colours, counts = np.unique(sheet.reshape(-1, 3), axis=0, return_counts=True)
    found = {tuple(colour): count for colour, count in zip(colours.tolist(), counts.tolist(), strict=True)}
    assert found[255, 0, 0] == 2 * 160 * 80 and found[9, 9, 9] == 3 * 160 * 480
    assert found[128, 128, 128] >= 160 * 160  # the smoothed edges of the titles have greys of their own


def test_pictures_that_are_not_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found float64"):
        report.reconstructions(tmp_path / "r.png", [[np.zeros((4, 4, 3))]])


def test_without_the_library_one_sentence_is_printed_and_nothing_fails(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(report, "_said", set())
    history = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert not report.loss_curve(tmp_path / "a.png", history)
    assert not report.loss_curve(tmp_path / "b.png", history)
    assert not report.reconstructions(tmp_path / "c.png", [[np.zeros((4, 4, 3), np.uint8)]])
    assert capsys.readouterr().out.splitlines() == [
        "no pictures: matplotlib is not installed. To have them: pip install 'lacuna[tracking]'",
        "no pictures: pillow is not installed. To have them: pip install 'lacuna[tracking]'"]
    assert not list(tmp_path.iterdir())


def test_a_curve_of_one_point_is_no_picture(tmp_path: Path) -> None:
    assert not report.loss_curve(tmp_path / "a.png", [{"step": 1, "loss": 1.0}, {"step": 1, "rank": 2.0}])


@pytest.mark.parametrize("can_draw", [True, False])
def test_a_pretraining_of_two_steps_misses_no_picture_that_could_not_be_drawn(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, can_draw: bool) -> None:
    monkeypatch.setattr(report, "can_draw", lambda library="matplotlib": can_draw)
    pretrained(tmp_path, steps=2)
    assert (tmp_path / "reports/pretrain/xray/reconstruction.png").is_file() == can_draw
    assert "was not logged" not in caplog.text
