"""Nothing that a file carries is run; and the payloads would run if they were let."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.faults import payload_files, payloads
from domains.quarantine import Limits, read_all
from tests.domains.medical.files import row

SOME = ("pickle as the weights of a checkpoint", "checkpoint.json that names modules and calls",
        "pickle as resume state", "params.yaml with !!python/object")


def test_the_program_in_the_payloads_runs_where_it_is_let(tmp_path: Path) -> None:
    function, given = payload_files._call(tmp_path / "canary").__reduce__()
    function(*given)
    assert (tmp_path / "canary").exists()
    assert b"system" in payload_files.plain_pickle(tmp_path) and b"system" in payload_files.old_torch_pickle(tmp_path)


def test_a_resume_state_that_carries_a_program_is_refused_in_a_sentence(tmp_path: Path) -> None:
    from pipelines.training.training import _left_by_a_killed_run

    for content in (payload_files.torch_pickle, payload_files.old_torch_pickle, payload_files.plain_pickle):
        (tmp_path / "resume.pt").write_bytes(content(tmp_path / "canary"))
        with pytest.raises(ValueError, match=r"no resume state that can be read .* Remedy: remove it"):
            _left_by_a_killed_run(tmp_path / "resume.pt")
    assert not (tmp_path / "canary").exists()


def test_a_reading_process_imports_nothing_from_the_folder_where_the_user_stands(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.faults.seeds import FILMS

    payload_files._modules(tmp_path, tmp_path / "canary")
    monkeypatch.chdir(tmp_path)
    (found,) = read_all([row(Path(os.devnull))], FILMS, Limits(workers=1))
    assert found.reason and not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_no_command_runs_what_checkpoints_settings_and_resume_states_carry(tmp_path: Path) -> None:
    verdicts = payloads.campaign(tmp_path, SOME)
    assert {verdict.payload for verdict in verdicts} == set(SOME)
    assert [verdict for verdict in verdicts if verdict.ran] == []
    assert [verdict.line() for verdict in verdicts if verdict.code == 1] == []
