from pathlib import Path

import pytest

from pipelines.training import resume
from pipelines.training.resume import Work, work_folder


def begin(root: Path, monkeypatch: pytest.MonkeyPatch, code: str, despite: bool = False) -> Work:
    monkeypatch.setattr(resume, "code_hash", lambda: code)
    return work_folder(root, "pretrain", "xray", [{"steps": 3}], despite)


def test_a_first_run_is_not_called_resumed_although_another_process_made_its_folder(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not begin(tmp_path, monkeypatch, "a").resumed
    assert not begin(tmp_path, monkeypatch, "a").resumed, "the folder alone is no unfinished work"


def test_what_a_killed_run_left_is_taken_up_by_the_same_code_alone(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (begin(tmp_path, monkeypatch, "a").folder / "resume.pt").touch()
    again, other = (begin(tmp_path, monkeypatch, code) for code in ("a", "b"))
    assert again.resumed and not again.despite_code_change
    assert not other.resumed and not (other.folder / "resume.pt").exists()


def test_taking_up_the_work_of_other_code_is_still_known_after_a_second_kill_and_to_all_processes(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (begin(tmp_path, monkeypatch, "a").folder / "resume.pt").touch()
    for despite in (True, True, False):
        work = begin(tmp_path, monkeypatch, "b", despite)
        assert work.resumed and work.despite_code_change and (work.folder / "resume.pt").exists()


def test_with_nothing_to_take_up_the_run_is_a_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = begin(tmp_path, monkeypatch, "a", despite=True)
    assert not work.resumed and not work.despite_code_change


def test_a_process_that_comes_second_to_the_taking_over_goes_on_with_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = begin(tmp_path, monkeypatch, "a").folder
    (left / "resume.pt").touch()
    rename = Path.rename

    def overtaken(self: Path, target: Path) -> Path:
        rename(self, target)
        return rename(self, target)  # as if another process had just done the same

    monkeypatch.setattr(Path, "rename", overtaken)
    work = begin(tmp_path, monkeypatch, "b", despite=True)
    assert work.resumed and work.despite_code_change and not left.exists()
