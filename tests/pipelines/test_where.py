"""From a pseudonym back to the file, for whoever has manifest and key; and nothing else prints a name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from domains.pseudonyms import KEY_FILE, VARIABLE
from domains.splits import pseudonym
from domains.store import open_prepared
from pipelines import evaluate, ingest, pretrain
from pipelines.cli import main
from pipelines.commands.where import Unknown, where
from pipelines.ingest import DataRun
from pipelines.intake.nameless import Fault
from pipelines.scoring.assessment import Unseen
from pipelines.settings import plain
from tests.pipelines import fake_domain
from tests.pipelines.fake_ingest import make_files
from tests.pipelines.test_ingest import settings, without_libraries_and_tracking

assert without_libraries_and_tracking  # the fixture: reading squares, no server


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 files of 30 patients ingested with pseudonyms, the first of them damaged."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    make_files(tmp_path, bad=1)
    run = settings(files={"pseudonymise": None}, bad_files=0.1)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"ingest": {"a": plain(run)}}))
    ingest.run("a", run, tmp_path)
    return tmp_path


def everything(folder: Path) -> bytes:
    """All bytes of a folder, and the index as text."""
    index = folder / "index.parquet"
    texts = [repr({name: open_prepared(folder).column(name) for name in ("key", "group", "source", "facts")}).encode()
             ] if index.is_file() else []
    return b"\n".join([*(path.read_bytes() for path in folder.rglob("*") if path.is_file()), *texts])


def test_names_are_nowhere_in_what_is_made_and_medical_files_need_no_setting_for_it(project: Path) -> None:
    for folder in (project / "data/prepared/a", project / "reports/ingest/a"):
        assert b"patient" not in everything(folder) and b".npy'" not in everything(folder)


def test_where_leads_from_keys_groups_and_short_codes_to_files_and_lists_the_quarantine(project: Path) -> None:
    prepared = open_prepared(project / "data/prepared/a")
    key, group = prepared.column("key")[4], prepared.column("group")[4]
    assert where("a", [key], project).split("\t")[1:] == [str(project / "data/raw/a/5.npy"), "group patient 2"]
    assert where("a", [key + "@0"], project).split("\t")[1] == str(project / "data/raw/a/5.npy")
    for code in (group, pseudonym(group)):
        assert [line.split("\t")[1] for line in where("a", [code], project).splitlines()] == [
            str(project / "data/raw/a/4.npy"), str(project / "data/raw/a/5.npy")]
    assert where("a", [], project).startswith(str(project / "data/raw/a/0.npy") + "\t")
    with pytest.raises(Unknown, match=r"stands for.*under key .* Remedy"):
        where("a", ["p_00000000-000000000000"], project)


def test_the_command_prints_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["where", "a"]) == 0
    assert "0.npy\t" in capsys.readouterr().out


def test_another_key_gives_other_names_and_the_same_splits(project: Path) -> None:
    run = settings(files={"pseudonymise": None}, bad_files=0.1)
    first = open_prepared(project / "data/prepared/a")
    (project / KEY_FILE).unlink()
    ingest.run("b", run, project)
    second = open_prepared(project / "data/prepared/b")
    assert first.column("split") == second.column("split") and first.column("sha256") == second.column("sha256")
    assert not set(first.column("group")) & set(second.column("group"))


def test_two_data_sets_of_one_key_can_be_compared_and_of_two_keys_it_is_said_that_they_cannot(project: Path) -> None:
    run = settings(files={"pseudonymise": None}, bad_files=0.1)
    first = open_prepared(project / "data/prepared/a")
    rows = first.rows(split="test", task="sick")
    record = {"provenance": {"data_digest": first.digest}, "pool_groups": pretrain.group_hashes(first, rows[:2])}
    with pytest.raises(evaluate.Leak, match=r"test groups in what .* was pretrained on \(p_") as caught:
        evaluate.check_unseen(record, Unseen(first, "sick", rows), Path("x"))
    assert "patient" not in str(caught.value)
    (project / KEY_FILE).unlink()
    ingest.run("b", run, project)
    other = open_prepared(project / "data/prepared/b")
    record["provenance"] = {"data_digest": other.digest}
    said = evaluate.check_unseen(record, Unseen(other, "sick", other.rows(split="test", task="sick")), Path("x"))
    assert "cannot be told" in said and first.column("group")[0][2:10] in said
    record["pool_groups"] = []
    assert evaluate.check_unseen(record, Unseen(other, "sick", other.rows(split="test", task="sick")), Path("x")) == ""


def test_a_failed_run_prints_and_writes_no_name(project: Path, capsys: pytest.CaptureFixture[str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(pieces: list[object], settings: object) -> None:
        raise OSError(2, "No such file or directory", str(project / "data/raw/a/patient Doe.npy"))

    monkeypatch.setattr(fake_domain, "implausible", crash)
    with pytest.raises(Fault) as caught:
        ingest.run("c", settings(files={"pseudonymise": True}), project)
    assert "Doe" not in str(caught.value) and caught.value.__suppress_context__
    assert main(["--debug", "ingest", "a"]) == 2
    shown = capsys.readouterr()
    assert "Doe" not in shown.out + shown.err and "crash" in shown.err  # the place stays


@pytest.mark.parametrize("text", [
    "Doe,1,\n", "path,group,sick\nDoe.npy,1,0\nDoe.npy,2,1\n", "path,group,sick\n../Doe.npy,1,0\n",
    "path,group,split,sick\n1.npy,1,Doe,0\n", "path,group,sick\n1.npy,1,Doe\n", "path,group,sick\nx.Doe,1,1\n",
])
def test_an_unusable_manifest_is_told_by_row_and_not_by_name(tmp_path: Path, text: str,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    make_files(tmp_path, 4)
    (tmp_path / "data/raw/a/labels.csv").write_text(text)
    run: DataRun = settings(files={"pseudonymise": True, "mask_column": ""},
                            tasks={"sick": {"kind": "single_label", "columns": ["sick"], "classes": ["0", "1"]}})
    with pytest.raises(ValueError, match="found") as caught:
        ingest.run("a", run, tmp_path)
    assert "Doe" not in str(caught.value) + capsys.readouterr().out
