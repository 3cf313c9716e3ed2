"""What may name a patient stays on the disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from pipelines.tracking import loggable


@dataclass(frozen=True)
class _Inner:
    width: int = 96
    rates: tuple[float, ...] = (0.1, 0.2)


@dataclass(frozen=True)
class _Outer:
    folder: str
    model: _Inner = field(default_factory=_Inner)
    start: str | None = None


def test_nested_settings_become_flat_text(tmp_path: Path) -> None:
    assert loggable.parameters(asdict(_Outer("data/raw")), tmp_path) == {
        "folder": "data/raw",
        "model.width": "96",
        "model.rates": "[0.1, 0.2]",
        "start": "None",
    }


def test_paths_inside_the_project_are_shortened_and_others_hidden(tmp_path: Path) -> None:
    found = loggable.parameters(
        {"in": str(tmp_path / "data/x"), "out": "/mnt/ward7/DOE^JOHN", "list": [{"p": "/mnt/DOE"}]}, tmp_path
    )
    assert found["in"] == "data/x"
    assert "DOE" not in str(found) and found["out"].startswith("outside:")


def test_long_values_fit_and_stay_told_apart(tmp_path: Path) -> None:
    long = ["a" * 20000 + end for end in ("x", "y")]
    found = loggable.parameters({"one": long[0], "two": long[1]}, tmp_path)
    assert max(map(len, found.values())) < 6000 and found["one"] != found["two"]


@pytest.mark.parametrize(
    "text", ["key,auroc\npatient-17/film.dcm,0.9\n", "auroc,group\n0.9,DOE^JOHN\n", "arm,step,file\nscratch,1,a.dcm\n"]
)
def test_a_table_with_free_text_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(loggable.NotLoggable, match="leave the column out"):
        loggable.check_table(path)


def test_a_table_of_numbers_by_arm_and_metric_is_let_in(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("arm,metric,value,low,high\nscratch,auroc,0.9,0.8,nan\npretrained,ap,not estimable,,1e-3\n")
    loggable.check_table(path)


def test_a_description_is_as_long_as_a_server_takes_and_says_where_it_was_cut() -> None:
    note = loggable.description(["one.", "two."], "x" * 9000)["mlflow.note.content"]
    assert note.startswith("**one.**\n\n**two.**\n\n```\nxxx") and note.endswith("\n```")
    assert len(note) == loggable.MAX_PARAM and "sha256:" in note


def test_tags_have_known_beginnings_and_metric_names_the_letters_that_stores_take() -> None:
    assert loggable.tag("lacuna.device", "cpu") == ("lacuna.device", "cpu")
    with pytest.raises(loggable.NotLoggable, match="expected one of"):
        loggable.tag("PatientName", "x")
    assert loggable.metric("auroc(nih)/Größe", True) == ("auroc_nih_/Größe", 1.0)
