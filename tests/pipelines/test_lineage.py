"""Hashes are DVC's, stages of one invocation find each other, and a cached stage keeps its place in the lineage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.tracking import lineage

PROJECT = Path(lineage.__file__).parents[1]


def _folder(root: Path) -> Path:
    (root / "d/sub").mkdir(parents=True)
    (root / "d/a.txt").write_text("one")
    (root / "d/sub/b.txt").write_text("two")
    (root / "d/sub/ü c.txt").write_text("ä")
    return root / "d"


def test_a_folder_has_the_hash_that_dvc_gives_it(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    recorded = "09ae22e5bcf05e6d36d3e3cc0e14a02c.dir"  # `dvc add d` with DVC 3.67.1
    assert lineage.digest(folder) == recorded
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/x.pyc").write_bytes(b"compiled")
    assert lineage.digest(folder) == recorded
    (folder / "a.txt").write_text("One")
    assert lineage.digest(folder) != recorded


def test_digests_fit_what_mlflow_takes(tmp_path: Path) -> None:
    _folder(tmp_path)
    found = lineage.digests({"d": None, "known": "f" * 64, "not/there": None}, tmp_path)
    assert {path: len(text) <= 36 for path, text in found.items()} == dict.fromkeys(found, True)
    assert found["known"] == "f" * 36 and found["not/there"] == "missing"


def test_inside_a_stage_the_hash_of_an_earlier_output_is_taken_from_dvc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _folder(tmp_path)
    (tmp_path / "dvc.lock").write_text(
        json.dumps(
            {
                "schema": "2.0",
                "stages": {
                    "ingest@xray": {
                        "cmd": "x",
                        "outs": [{"path": "d", "hash": "md5", "md5": "abc.dir", "size": 8, "nfiles": 3}],
                    }
                },
            }
        )
    )
    assert lineage.digests({"d": None}, tmp_path)["d"].startswith("09ae"), "outside of DVC the lock may be stale"
    monkeypatch.setenv("DVC_STAGE", "pretrain@xray")
    assert lineage.digests({"d": None}, tmp_path)["d"] == "abc.dir"
    (tmp_path / "d/a.txt").write_text("another size")
    assert lineage.digests({"d": None}, tmp_path)["d"] != "abc.dir"


def test_dependencies_of_the_running_stage_are_read_with_their_values_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _folder(tmp_path)
    (tmp_path / "scratch").write_text("")
    (tmp_path / "params.yaml").write_text("runs:\n  xray: {data: d, start: scratch}\n")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  pretrain:\n    foreach: ${runs}\n    do:\n      cmd: x ${key}\n      deps:\n"
        "        - ${item.data}\n        - ${item.data}/sub\n        - ${item.start}\n        - ${item.nothing}/x\n"
        "  plain:\n    cmd: y\n    deps: [d]\n"
    )
    assert lineage.stage_dependencies(tmp_path) == {}
    monkeypatch.setenv("DVC_STAGE", "pretrain@xray")
    assert set(lineage.stage_dependencies(tmp_path)) == {"d", "d/sub", "scratch"}
    assert lineage.stage_dependencies(tmp_path)["scratch"] == "d41d8cd98f00b204e9800998ecf8427e"
    monkeypatch.setenv("DVC_STAGE", "plain")
    assert lineage.stage_dependencies(tmp_path) == {"d": lineage.digest(tmp_path / "d")}


def _keys_under_one_dvc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What two stages see that one process called `dvc` starts."""
    dvc = folder / "dvc"
    dvc.write_text("import subprocess, sys\nfor _ in range(2):\n    subprocess.run([sys.argv[1], '-c', sys.argv[2]])\n")
    code = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); " \
           "from pipelines.tracking.lineage import *; print(pipeline_key())"
    monkeypatch.setenv("DVC_STAGE", "x")
    monkeypatch.delenv("LACUNA_PIPELINE", raising=False)
    done = subprocess.run([sys.executable, str(dvc), sys.executable, code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc to see the processes above")
def test_stages_of_one_dvc_invocation_share_a_key_and_those_of_two_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = _keys_under_one_dvc(tmp_path, monkeypatch), _keys_under_one_dvc(tmp_path, monkeypatch)
    assert len(first) == 2 and first[0] == first[1]
    assert first[0] != second[0]


def test_a_key_may_be_given_and_is_else_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.delenv("LACUNA_PIPELINE", raising=False)
    own = lineage.pipeline_key()
    assert own == lineage.pipeline_key()
    monkeypatch.setenv("LACUNA_PIPELINE", "nightly-7")
    assert lineage.pipeline_key() == "nightly-7"
    monkeypatch.setenv("LACUNA_PIPELINE", "with 'quotes'")
    assert lineage.pipeline_key().isalnum()


def test_commit_and_dirty_come_from_git_itself(tmp_path: Path) -> None:
    assert lineage.git_state(tmp_path)["git.commit"] == "none"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(tmp_path), *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={
                **os.environ,
                "GIT_AUTHOR_NAME": "a",
                "GIT_AUTHOR_EMAIL": "a@b",
                "GIT_COMMITTER_NAME": "a",
                "GIT_COMMITTER_EMAIL": "a@b",
            },
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "first")
    assert lineage.git_state(tmp_path) == {"git.commit": git("rev-parse", "HEAD"), "git.dirty": "false"}
    (tmp_path / "file").write_text("2")
    assert lineage.git_state(tmp_path)["git.dirty"] == "true"


def test_upstream_runs_are_found_by_what_made_the_inputs(tmp_path: Path) -> None:
    for stage, name, record in (
        ("ingest", "xray", {"run_id": "a1", "key": "k1"}),
        ("pretrain", "xray", {"run_id": None, "key": "k2"}),
    ):
        lineage.write_record(lineage.run_file(stage, name, tmp_path), record)
    inputs = [
        "data/prepared/xray",
        "artifacts/pretrain/xray",
        "artifacts/pretrain/xray",
        "artifacts/pretrain/other",
        "elsewhere/x",
    ]
    assert lineage.upstream(inputs, tmp_path) == ["a1", "k2"]
    assert lineage.producer("artifacts/finetune/xray/scratch/seed0") == ("finetune", "xray")
