"""The set-up script's decisions, on a copy of it beside stand-ins for what it calls; no package is installed."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files that the script reads, and a `system_libraries.sh` that finds nothing missing."""
    (tmp_path / "scripts").mkdir()
    for name in ("pyproject.toml", "constraints.txt", "scripts/setup.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "scripts/system_libraries.sh").write_text("exit 0\n")
    return tmp_path


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter's stand-in: makes environments of itself and writes down what pip is asked for."""
    path = tmp_path / "python"
    path.write_text(f"""#!/usr/bin/env bash
case "$*" in
    *"-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "$3" > "$3/bin/activate" ;;
    *"-m pip"*) echo "$*" >> {tmp_path}/pip.log
        [[ "$*" != *"$REFUSE"* || -z "$REFUSE" ]] ;;
    --version) echo "Python 3.11.0" ;;
    *"/torch/") exit "${{UNREACHABLE:-0}}" ;;
    *) exit 0 ;;
esac
""")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def setup(checkout: Path, python: Path | str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    clean = {name: value for name, value in os.environ.items() if name not in ("TORCH_INDEX", "LACUNA_TORCH")}
    return subprocess.run(["bash", "scripts/setup.sh"], cwd=checkout, capture_output=True, text=True, check=False,
                          env={**clean, "PYTHON": str(python), **environment})


def pip_calls(tmp_path: Path) -> list[str]:
    """What pip was asked for since the last look."""
    log = tmp_path / "pip.log"
    calls = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [call for call in calls if "pip install" in call]


def test_the_second_time_nothing_is_installed(checkout: Path, python: Path, tmp_path: Path) -> None:
    assert setup(checkout, python).returncode == 0
    assert len(pip_calls(tmp_path)) == 3
    again = setup(checkout, python)
    assert (again.returncode, again.stdout, pip_calls(tmp_path)) == (0, "", [])


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "scripts/setup.sh",
                                  "scripts/system_libraries.sh"])
def test_a_change_to_what_decides_the_environment_installs_again(checkout: Path, python: Path, tmp_path: Path,
                                                                 name: str) -> None:
    assert setup(checkout, python).returncode == 0
    pip_calls(tmp_path)
    with (checkout / name).open("a") as file:
        file.write("\n# changed\n")
    assert setup(checkout, python).returncode == 0
    assert pip_calls(tmp_path)


def test_an_installation_that_failed_is_not_taken_for_done(checkout: Path, python: Path, tmp_path: Path) -> None:
    failed = setup(checkout, python, REFUSE="--editable")
    assert failed.returncode != 0
    assert "Set-up stopped while installing the packages" in failed.stderr
    assert pip_calls(tmp_path)
    assert setup(checkout, python).returncode == 0
    assert pip_calls(tmp_path)


def test_torch_comes_as_the_cpu_build_and_the_extra_index_serves_torch_alone(checkout: Path, python: Path,
                                                                             tmp_path: Path) -> None:
    assert setup(checkout, python, TORCH_INDEX="https://mirror.example/cpu").returncode == 0
    with_index = [call for call in pip_calls(tmp_path) if "mirror.example" in call]
    assert len(with_index) == 1
    assert "--no-deps" in with_index[0]
    assert with_index[0].endswith("+cpu")


def test_a_cpu_index_that_answers_but_fails_never_leads_to_the_gpu_build(checkout: Path, python: Path,
                                                                         tmp_path: Path) -> None:
    failed = setup(checkout, python, REFUSE="+cpu")
    assert failed.returncode != 0
    assert "LACUNA_TORCH=cuda" in failed.stderr
    assert not [call for call in pip_calls(tmp_path) if "torch==" in call and "+cpu" not in call]


def test_without_a_cpu_index_torch_comes_from_what_pip_knows_and_that_is_said(checkout: Path, python: Path,
                                                                              tmp_path: Path) -> None:
    done = setup(checkout, python, REFUSE="+cpu", UNREACHABLE="1")
    assert done.returncode == 0
    assert "that may be the GPU build" in done.stdout
    assert any("torch==" in call and "+cpu" not in call for call in pip_calls(tmp_path))


def test_a_choice_is_kept_until_another_is_made(checkout: Path, python: Path, tmp_path: Path) -> None:
    assert setup(checkout, python, LACUNA_TORCH="cuda", TORCH_INDEX="https://mirror.example/cu").returncode == 0
    assert [call for call in pip_calls(tmp_path) if "mirror.example/cu" in call and "+cpu" not in call]
    assert setup(checkout, "").returncode == 0
    assert pip_calls(tmp_path) == []
    assert setup(checkout, "", LACUNA_TORCH="cpu").returncode == 0
    calls = pip_calls(tmp_path)
    assert [call for call in calls if "+cpu" in call]
    assert not [call for call in calls if "mirror.example" in call]


def test_a_moved_checkout_gets_a_new_environment(checkout: Path, python: Path, tmp_path: Path) -> None:
    assert setup(checkout, python).returncode == 0
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("pyproject.toml", "constraints.txt", "scripts", ".venv"):
        shutil.move(checkout / name, moved / name)
    assert "Making .venv anew" in setup(moved, python).stdout


def test_an_unknown_build_of_torch_is_refused_in_a_sentence(checkout: Path, python: Path) -> None:
    failed = setup(checkout, python, LACUNA_TORCH="rocm")
    assert failed.returncode != 0
    assert "found 'rocm', expected cpu or cuda" in failed.stderr


def test_a_machine_without_a_python_to_use_is_told_how_to_get_one(checkout: Path) -> None:
    failed = setup(checkout, "no-such-python")
    assert failed.returncode != 0
    assert "looked for no-such-python" in failed.stderr
    assert "apt-get install python3 python3-venv" in failed.stderr
