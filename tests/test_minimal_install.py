"""A training box needs torch, lightning, numpy, pydantic, pyyaml, safetensors and pyarrow, and what these require.

The environment is made of links into the one that runs the tests: of each distribution that the seven pull in, by their
own metadata, and of no other. That is what pip would install, without a download.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.fabricate import prepare, pretrain_settings
from tests.test_dependencies import PROJECT, ROOT, closure

pytestmark = pytest.mark.slow

ABSENT = ["mlflow", "dvc", "pydicom", "nibabel", "monai", "rasterio", "open3d", "laspy", "sklearn", "matplotlib", "PIL",
          "pandas", "torchvision", "timm", "scipy", "pytest"]


@pytest.fixture(scope="module")
def minimal_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the minimal set alone."""
    home = tmp_path_factory.mktemp("minimal")
    venv.create(home, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    target = home / "lib" / version / "site-packages"
    for name, _ in closure([Requirement(text) for text in PROJECT["dependencies"]]):
        link(importlib.metadata.distribution(name), target)
    return home / "bin" / "python"


def link(distribution: importlib.metadata.Distribution, target: Path) -> None:
    """Make a distribution importable from `target`, by links to its top-level modules and metadata."""
    for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
        source = Path(str(distribution.locate_file(top)))
        if not (target / top).exists() and not top.endswith(".pth"):
            (target / top).symlink_to(source)


def run(python: Path, *arguments: str, cwd: Path = ROOT) -> str:
    """What a command in the minimal environment prints; fails the test with its errors."""
    done = subprocess.run([str(python), *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def project(folder: Path) -> Path:
    """A project with prepared data and two runs of two steps, and no raw file."""
    prepare(folder / "data/prepared/xray")
    two_steps = {"steps": 2, "batch_size": 8}
    tune = {"domain": "medical", "data": "xray", "task": "bright", "start": "artifacts/pretrain/xray", "seeds": [0],
            "grid": [1.0e-3], "optimisation": two_steps, "machine": {"accelerator": "cpu"}}
    runs = {"pretrain": {"xray": pretrain_settings("xray", steps=2)}, "finetune": {"xray": tune}}
    (folder / "params.yaml").write_text(yaml.safe_dump(runs))
    (folder / "scratch").write_text("")
    return folder


def test_the_minimal_environment_holds_nothing_else(minimal_python: Path) -> None:
    code = f"import importlib.util as u; print(*[n for n in {ABSENT} if u.find_spec(n)])"
    assert run(minimal_python, "-c", code).split() == []


def test_the_training_stages_import_there(minimal_python: Path) -> None:
    run(minimal_python, "-c", "import pipelines.pretrain, pipelines.finetune, lacuna")


def test_pretraining_and_fine_tuning_from_prepared_data_work_there(minimal_python: Path, tmp_path: Path) -> None:
    root = project(tmp_path)
    run(minimal_python, str(ROOT / "lacuna.py"), "pretrain", "xray", cwd=root)
    assert (root / "artifacts/pretrain/xray/weights.safetensors").is_file()
    run(minimal_python, str(ROOT / "lacuna.py"), "finetune", "xray", cwd=root)
    assert list((root / "artifacts/finetune/xray").rglob("weights.safetensors"))


def test_doctor_names_the_extra_of_each_missing_library_there(minimal_python: Path, tmp_path: Path) -> None:
    report = run(minimal_python, "-c", "import sys; sys.path.insert(0, sys.argv[1])\n"
                 "from pipelines.commands.doctor import doctor\ntext, ok = doctor(); print(text); sys.exit(not ok)",
                 str(ROOT),
                 cwd=tmp_path)
    for library, extra in [("pydicom", "medical"), ("rasterio", "satellite"), ("open3d-cpu", "pointcloud"),
                           ("mlflow", "tracking"), ("dvc", "pipeline")]:
        assert f"{library} is not installed: pip install 'lacuna[{extra}]'" in report
