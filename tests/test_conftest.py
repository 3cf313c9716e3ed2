"""Tests on real files skip with a reason where there are none, and never where they are promised."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

USES_REAL_FILES = "def test_reads(shared_data):\n    assert shared_data.is_dir()\n"


def run_there(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a test that wants real files, under a copy of our conftest."""
    tests = folder / "tests"
    tests.mkdir()
    shutil.copy(Path(__file__).parent / "conftest.py", tests)
    (tests / "test_real.py").write_text(USES_REAL_FILES)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:dash -p no:cacheprovider\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LACUNA_")}
    return subprocess.run([sys.executable, "-m", "pytest", "-rs"], cwd=folder, capture_output=True, text=True,
                          check=False, env={**clean, **environment})


def test_without_real_files_the_reason_names_the_variable(tmp_path: Path) -> None:
    done = run_there(tmp_path, LACUNA_SHARED=str(tmp_path / "nothing"))
    assert done.returncode == 0
    assert "1 skipped" in done.stdout
    assert "LACUNA_SHARED names no folder with data" in done.stdout


def test_where_real_files_are_promised_a_skip_for_want_of_them_fails_the_run(tmp_path: Path) -> None:
    done = run_there(tmp_path, LACUNA_SHARED=str(tmp_path / "nothing"), LACUNA_SHARED_REQUIRED="1")
    assert done.returncode == 1
    assert "tests/test_real.py" in done.stdout


@pytest.mark.parametrize("by", ["variable", "place"])
def test_real_files_are_found_by_variable_or_beside_the_checkout(tmp_path: Path, by: str) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shared = tmp_path / ("elsewhere" if by == "variable" else "shared")
    (shared / "data").mkdir(parents=True)
    done = run_there(checkout, **({"LACUNA_SHARED": str(shared)} if by == "variable" else {}))
    assert "1 passed" in done.stdout
