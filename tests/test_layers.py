"""Who may import whom. Read from the source, so that an import inside a function counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
READERS = {"pydicom", "nibabel", "isal", "rasterio", "open3d", "laspy", "fpsample", "PIL", "h5py"}
"""Libraries that parse native formats."""
FOLDERS = ("domains", "models", "pipelines", "tests", "benchmarks")


def files(folder: str) -> list[Path]:
    """The source files of a folder, relative to the root."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a file imports, `import_module("name")` included."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import; imports here start at the top"
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            if node.args and isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)


def strangers(path: Path, allowed: set[str]) -> list[str]:
    """Imports of a file beyond the standard library and `allowed` (top-level names)."""
    tops = [(line, name.split(".")[0]) for line, name in imports(path)]
    return [f"{path}:{line} imports {top}" for line, top in tops if top not in allowed | set(sys.stdlib_module_names)]


def allowed_in_domains(path: Path) -> set[str]:
    """What one file under domains/ may import."""
    allowed = {"domains", "torch", "numpy"}
    match path.name:
        case "export.py" if "pointcloud" in path.parts:
            return allowed - {"torch"} | {"laspy", "scipy"}
        case "ingest.py" | "sample_data.py" | "export.py":
            return allowed - {"torch"} | READERS | ({"monai"} if "medical" in path.parts else set())
        case "raster.py":
            return allowed - {"torch"} | {"rasterio"}
        case "hdf5_clouds.py":
            return allowed - {"torch"} | {"h5py"}
        case "store.py":
            return allowed - {"torch"} | {"pyarrow"}
        case "picture.py":
            return allowed - {"torch"}
        case "augment.py":
            return allowed | ({"monai"} if "medical" in path.parts else set())
    return allowed


@pytest.mark.parametrize("path", files("domains"), ids=str)
def test_domains_import_themselves_torch_numpy_and_readers_only_where_files_are_read(path: Path) -> None:
    assert not strangers(path, allowed_in_domains(path))


@pytest.mark.parametrize("path", files("models"), ids=str)
def test_models_import_themselves_and_torch(path: Path) -> None:
    assert not strangers(path, {"models", "torch"} | ({"monai"} if path.name == "swin.py" else set()))


@pytest.mark.parametrize("path", files("pipelines"), ids=str)
def test_pipelines_never_parse_native_formats_nor_import_what_is_beside_them(path: Path) -> None:
    tops = {name.split(".")[0]: line for line, name in imports(path)}
    forbidden = READERS - {"PIL"} | {"monai", "pandas", "dvc", "tests", "benchmarks", "pytorch_lightning"}
    assert not [f"{path}:{tops[top]} imports {top}" for top in forbidden & set(tops)]


def test_one_file_alone_imports_mlflow() -> None:
    importers = {str(path) for folder in ("domains", "models", "pipelines") for path in files(folder)
                 for _, name in imports(path) if name.split(".")[0] == "mlflow"}
    assert len(importers) == 1, importers


@pytest.mark.parametrize("path", [Path("lacuna.py"), *(path for folder in FOLDERS for path in files(folder))], ids=str)
def test_nothing_imports_torchvision_or_timm(path: Path) -> None:
    assert not [f"{path}:{line}" for line, name in imports(path) if name.split(".")[0] in {"torchvision", "timm"}]


@pytest.mark.parametrize("domain", ["medical", "satellite", "pointcloud"])
def test_a_domain_imports_no_other_domain(domain: str) -> None:
    others = {"medical", "satellite", "pointcloud"} - {domain}
    wrong = [f"{path}:{line} imports {name}" for path in files(f"domains/{domain}") for line, name in imports(path)
             if name.split(".")[:1] == ["domains"] and set(name.split(".")[1:2]) & others]
    assert not wrong


@pytest.mark.parametrize("domain", ["medical", "satellite", "pointcloud"])
def test_readers_run_without_torch_so_that_a_child_process_stays_small(domain: str) -> None:
    code = f"import sys, domains.{domain}.ingest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_training_stages_load_no_library_of_ingest_or_tracking() -> None:
    """Matplotlib and Pillow are not in the list: torchmetrics imports them where it finds them."""
    others = sorted(READERS - {"PIL"} | {"monai", "mlflow", "sklearn", "dvc", "pandas"})
    code = f"import sys, pipelines.pretrain, pipelines.finetune; print(*set({others}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
