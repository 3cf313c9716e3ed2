import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from pipelines.commands import doctor as module
from pipelines.commands.doctor import (
    Library,
    database_fault,
    explain_import_error,
    import_fault,
    project,
    tracking_store,
)


def levels(findings: list[module.Finding]) -> list[str]:
    """The levels of some findings."""
    return [finding.level for finding in findings]


def test_a_missing_system_library_is_named_with_the_command_that_brings_it() -> None:
    said = explain_import_error("Traceback ...\nOSError: libX11.so.6: cannot open shared object file: No such file\n")
    assert "libX11.so.6 is missing" in said
    assert "bash scripts/system_libraries.sh" in said


def test_a_module_that_kills_its_process_costs_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fatal.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "signal 11 ended the import" in import_fault("fatal")


def test_a_module_that_lacks_another_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy.py").write_text("import no_such_thing\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "no_such_thing, which is not installed" in import_fault("needy")
    assert import_fault("json") == ""


def test_a_missing_extra_is_a_note_and_a_missing_base_library_a_fault() -> None:
    extra = module._library(Library("no-such-package", "nothing", "satellite", "1"))
    base = module._library(Library("no-such-package", "nothing", "", "1"))
    assert (extra.level, base.level) == ("note", "fault")
    assert "pip install 'lacuna[satellite]'" in extra.text


def test_a_release_below_the_floor_is_a_fault_that_says_both_numbers() -> None:
    old = module._library(Library("pytest", "pytest", "dev", "999.1"))
    assert old.level == "fault"
    assert "expected 999.1 or later" in old.text


@pytest.mark.parametrize(("older", "newer"), [("2.9.1", "2.10"), ("2.10.0rc1", "2.10.1"), ("6.0.1", "6.0.2+local")])
def test_versions_compare_as_numbers_not_as_text(older: str, newer: str) -> None:
    assert module._numbers(older) < module._numbers(newer)


def test_the_trial_of_a_database_leaves_nothing_behind(tmp_path: Path) -> None:
    assert database_fault(tmp_path / "mlflow.db") == ""
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_somebody_holds_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mlflow.db"
    monkeypatch.setattr(sqlite3, "connect", _impatient(sqlite3.connect))
    with closing(sqlite3.connect(path)) as holder:
        holder.execute("CREATE TABLE t (n)")
        holder.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in database_fault(path)
        holder.execute("ROLLBACK")
        assert database_fault(path) == ""


def _impatient(connect: object) -> object:
    return lambda *given, **named: connect(*given, **{**named, "timeout": 0})  # type: ignore[operator]


def test_a_file_that_is_no_database_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but text that is long enough to be looked at" * 20)
    assert "found file is not a database" in database_fault(tmp_path / "mlflow.db")


def test_a_folder_where_no_database_can_be_made_is_a_fault(tmp_path: Path) -> None:
    assert "no SQLite database can be made" in database_fault(tmp_path / "nowhere" / "mlflow.db")


def test_a_server_that_is_down_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    found = tracking_store(tmp_path)
    assert levels(found) == ["note"]
    assert "lacuna sync" in found[0].text


def test_a_folder_without_git_or_dvc_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert levels(project(tmp_path)) == ["note"]
    quiet = {**os.environ, "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org", "GIT_COMMITTER_NAME": "t",
             "GIT_COMMITTER_EMAIL": "t@example.org"}
    for command in (["git", "init", "-q"], ["git", "commit", "-q", "--allow-empty", "-m", "start"]):
        subprocess.run(command, cwd=tmp_path, env=quiet, check=True)
    (tmp_path / "new.txt").write_text("changed")
    found = project(tmp_path)
    assert levels(found) == ["ok", "note"]
    assert "1 files changed" in found[0].text
    assert "dvc init" in found[1].text


def test_the_report_is_healthy_exactly_when_it_holds_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for section in ("libraries", "torch_and_devices"):
        monkeypatch.setattr(module, section, list)
    text, healthy = module.doctor(tmp_path)
    assert healthy
    assert "nothing in the way" in text
    monkeypatch.setattr(module, "libraries", lambda: [module.Finding("fault", "broken. Mend it.")])
    text, healthy = module.doctor(tmp_path)
    assert not healthy
    assert "  fault  broken. Mend it." in text


@pytest.mark.slow
def test_this_environment_is_healthy() -> None:
    text, healthy = module.doctor(Path(__file__).resolve().parents[2])
    assert healthy, text
