"""`lacuna doctor`: what this machine can do, and for all that it cannot, the sentence that says what to do about it.

Each library is imported in a process of its own: one that crashes, hangs or lacks a system library costs a line here,
not the report. Nothing is imported at the top but the standard library, since this is what runs when nothing else does.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.error import HTTPError
from urllib.request import urlopen

from pipelines.training.resources import cores, disk_free, memory, size_text

Level = Literal["ok", "note", "fault"]
OLDEST_PYTHON = (3, 11)
IMPORT_SECONDS = 120
"""A library that takes longer than this to import is broken, or its disk is."""
LITTLE_MEMORY, LITTLE_DISK, NO_DISK = 4 * 2**30, 5 * 2**30, 2**30
"""Below these a note (4 GB of memory, 5 GB of disk) or a fault (1 GB of disk)."""


class Library(NamedTuple):
    """A library that Lacuna uses, and the lowest release of it that it may be."""

    distribution: str
    """Its name on the package index."""
    module: str
    """What is imported."""
    extra: str
    """The extra that brings it; empty: Lacuna cannot do without."""
    floor: str = ""
    """As in pyproject.toml (tested), where the reason stands."""


LIBRARIES = (
    Library("torch", "torch", "", "2.10"),
    Library("lightning", "lightning", "", "2.6.6"),
    Library("numpy", "numpy", "", "2.1"),
    Library("pydantic", "pydantic", "", "2.11"),
    Library("pyyaml", "yaml", "", "6.0.2"),
    Library("safetensors", "safetensors", "", "0.5"),
    Library("pyarrow", "pyarrow.parquet", "", "18"),
    Library("pydicom", "pydicom", "medical", "3.0.2"),
    Library("pylibjpeg-libjpeg", "libjpeg", "medical", "2.2"),
    Library("pylibjpeg-openjpeg", "openjpeg", "medical", "2.3"),
    Library("nibabel", "nibabel", "medical", "5.3"),
    Library("isal", "isal.igzip", "medical", "1.9"),
    Library("monai", "monai", "medical", "1.5.2"),
    Library("rasterio", "rasterio", "satellite", "1.4"),
    Library("open3d-cpu", "open3d", "pointcloud", "0.19"),
    Library("laspy", "laspy", "pointcloud", "2.5"),
    Library("scipy", "scipy", "pointcloud", "1.14"),
    Library("fpsample", "fpsample", "pointcloud", "0.3.3"),
    Library("mlflow", "mlflow", "tracking", "3.10"),
    Library("scikit-learn", "sklearn", "tracking", "1.6"),
    Library("matplotlib", "matplotlib", "tracking", "3.9"),
    Library("pillow", "PIL.Image", "tracking", "11"),
    Library("dvc", "dvc.api", "pipeline", "3.66"),
)
STRANGERS = ("torchvision", "timm")
"""Not used, and able to break torchmetrics and Lightning at import when they do not match torch."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Level
    """fault: something that Lacuna was asked to do will fail. note: it works, but."""
    text: str
    """What was found; for notes and faults also what to do."""


def doctor(root: Path | None = None) -> tuple[str, bool]:
    """Look at the machine and at the project in `root` (default: the current folder).

    Returns:
        The report, and whether it holds no fault. An extra that is not installed is a note, not a fault.
    """
    root = (root or Path.cwd()).resolve()
    sections = {"python": python(), "libraries": libraries(), "torch": torch_and_devices(), "machine": machine(root),
                "project": project(root), "tracking": tracking_store(root)}
    lines, healthy = [], True
    for title, findings in sections.items():
        lines.append(title)
        for finding in findings:
            healthy = healthy and finding.level != "fault"
            lines.append(f"  {finding.level:5}  {finding.text}")
    lines.append("nothing in the way" if healthy else "there are faults: what to do stands beside each")
    return "\n".join(lines), healthy


def python() -> list[Finding]:
    """The interpreter and the system it runs on."""
    found = f"python {platform.python_version()} ({sys.executable}), {platform.platform()}"
    if sys.version_info < OLDEST_PYTHON:
        return [Finding("fault", f"{found}; expected {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or later. Install one, then "
                                 "`PYTHON=/path/to/it make setup`.")]
    return [Finding("ok", found)]


# ---- libraries ----

def libraries() -> list[Finding]:
    """Each library: installed, new enough, importable."""
    with ThreadPoolExecutor(max_workers=max(1, int(cores()))) as pool:
        findings = list(pool.map(_library, LIBRARIES))
    for name in STRANGERS:
        version = _version(name)
        if version:
            findings.append(Finding("note", f"{name} {version} is here and Lacuna does not use it; if torchmetrics or "
                                            f"lightning fail to import, it is the cause: pip uninstall {name}"))
    return findings


def _library(library: Library) -> Finding:
    name, extra = library.distribution, library.extra
    version = _version(name) or (_version("open3d") if name == "open3d-cpu" else "")
    remedy = f"pip install 'lacuna[{extra}]'" if extra else "pip install lacuna"
    if not version:
        if extra:
            return Finding("note", f"{name} is not installed: {remedy}")
        return Finding("fault", f"{name} is not installed, and nothing works without: {remedy}")
    if _numbers(version) < _numbers(library.floor):
        return Finding("fault", f"{name}: found {version}, expected {library.floor} or later: pip install --upgrade "
                                f"'{name}>={library.floor}'")
    wrong = import_fault(library.module)
    if wrong:
        return Finding("fault", f"{name} {version} cannot be imported: {wrong}")
    return Finding("ok", f"{name} {version}" + (f" ({extra})" if extra else ""))


def import_fault(module: str) -> str:
    """Why a module cannot be imported, with the remedy; empty when it can. It is tried in a process of its own."""
    command = [sys.executable, "-P", "-W", "ignore", "-c", f"import {module}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"it was still importing after {IMPORT_SECONDS} s. Look at the disk it lies on; then install it anew."
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"signal {-done.returncode} ended the import; this build does not fit the processor. Install it anew."
    return explain_import_error(done.stderr)


def explain_import_error(stderr: str) -> str:
    """The last line of a traceback, and for a missing system library the command that brings it."""
    last = (stderr.strip().splitlines() or ["no message"])[-1]
    library = re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file", last)
    if library:
        return (f"the system library {library[1]} is missing. In a checkout run `bash scripts/system_libraries.sh` (as "
                "root it installs what is missing, otherwise it prints the command).")
    missing = re.search(r"No module named '([\w.]+)'", last)
    if missing:
        return f"it needs {missing[1]}, which is not installed: pip install --force-reinstall it, or `make setup`."
    return f"{last}. Install it anew, or repeat `make setup`."


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    """2.13.0+cpu -> (2, 13, 0); enough to compare releases with floors."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[+a-zA-Z]", version)[0]))


# ---- torch ----

_ASK_TORCH = """
import json, torch
told = {"cuda_build": torch.version.cuda, "threads": torch.get_num_threads(), "devices": [], "bf16": False}
for i in range(torch.cuda.device_count()):
    one = torch.cuda.get_device_properties(i)
    told["devices"].append([one.name, one.total_memory])
if told["devices"]:
    told["bf16"] = torch.cuda.is_bf16_supported()
x = torch.ones(64, 64, device="cuda" if told["devices"] else "cpu")
told["product"] = float((x @ x)[0, 0])
print(json.dumps(told))
"""


def torch_and_devices() -> list[Finding]:
    """What torch computes on, and in which precision."""
    if not _version("torch"):
        return [Finding("fault", "no torch, see above")]
    done = subprocess.run([sys.executable, "-P", "-W", "ignore", "-c", _ASK_TORCH], capture_output=True, text=True,
                          timeout=IMPORT_SECONDS, check=False)
    if done.returncode != 0:
        return [Finding("fault", f"torch cannot multiply two matrices: {explain_import_error(done.stderr)}")]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return [*_devices(told), *_threads(told["threads"])]


def _devices(told: dict[str, object]) -> Iterator[Finding]:
    devices = told["devices"]
    assert isinstance(devices, list)
    for name, total in devices:
        precision = "bf16-mixed" if told["bf16"] else "32-true"
        yield Finding("ok", f"{name}, {size_text(total)}; precision auto takes {precision}")
    if devices:
        return
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if driver and not told["cuda_build"]:
        yield Finding("note", "an NVIDIA driver is here, but this torch is the CPU build: LACUNA_TORCH=cuda make setup")
    elif told["cuda_build"]:
        yield Finding("note", f"this torch is built for CUDA {told['cuda_build']} and finds no GPU; it computes on the "
                              "CPU. `nvidia-smi` tells whether the driver runs.")
    yield Finding("ok", f"CPU, float32; {_cpu_bf16()}")


def _cpu_bf16() -> str:
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.is_file() else ""
    fast = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
    return f"fast bfloat16 ({', '.join(fast)}): machine.precision bf16-mixed" if fast else "no fast bfloat16"


def _threads(threads: int) -> Iterator[Finding]:
    usable = cores()
    if threads > usable + 0.5:
        yield Finding("note", f"torch uses {threads} threads on {usable:g} cores, which is slower than one each: "
                              f"export OMP_NUM_THREADS={max(1, int(usable))}")
    else:
        yield Finding("ok", f"{threads} threads on {usable:g} cores")


# ---- machine and project ----

def machine(root: Path) -> list[Finding]:
    """Memory, disk and the programs that stages start."""
    available, total = memory()
    free = disk_free(root)
    findings = []
    if total:
        enough: Level = "ok" if total >= LITTLE_MEMORY else "note"
        findings.append(Finding(enough, f"memory: {size_text(total)}, {size_text(available)} available"
                                + ("" if enough == "ok" else "; little for CT: set ingest limits.num_workers: 1")))
    if free < NO_DISK:
        findings.append(Finding("fault", f"disk: found {size_text(free)} free at the project, expected "
                                         f"{size_text(NO_DISK)} or more. `dvc gc -w` frees what no current run uses."))
    else:
        level: Level = "ok" if free >= LITTLE_DISK else "note"
        findings.append(Finding(level, f"disk: {size_text(free)} free"
                                + ("" if level == "ok" else "; `dvc gc -w` frees what no current run uses")))
    if not os.access(root, os.W_OK):
        findings.append(Finding("fault", "the project folder cannot be written to. Work in a folder of your own, or "
                                         "mend its permissions."))
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        findings.append(Finding("note", "no C++ compiler: all works but machine.compile: true (apt-get install g++)"))
    return findings


def project(root: Path) -> list[Finding]:
    """git and DVC: what ties a result to the code and data that made it."""
    if shutil.which("git") is None:
        return [Finding("note", "git is not installed; runs will not say which code made them. apt-get install git")]
    commit = _run(["git", "rev-parse", "--short", "HEAD"], root)
    if not commit:
        return [Finding("note", "this folder is no git repository with a commit: stages run, but runs will not say "
                                "which code made them. `git init` and commit, or work in a clone.")]
    changed = len((_run(["git", "status", "--porcelain"], root) or "").splitlines())
    findings = [Finding("ok", f"git commit {commit}" + (f", {changed} files changed since" if changed else ""))]
    home = next((folder for folder in (root, *root.parents) if (folder / ".dvc").is_dir()), None)
    if home is None:
        findings.append(Finding("note", "no DVC repository: `lacuna <stage> <run>` works, `dvc repro` does not. "
                                        "`dvc init` makes one."))
    elif shutil.which("dvc") is None:
        findings.append(Finding("note", "the command dvc is not on the path: use `make`, or put .venv/bin on it."))
    else:
        findings.append(Finding("ok", "DVC repository"))
    return findings


def _run(command: list[str], folder: Path) -> str | None:
    """What a command prints; None where it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


# ---- tracking ----

def tracking_store(root: Path) -> list[Finding]:
    """Whether runs can be written where they go. A server that is down is a note: no step waits for it."""
    try:
        from pipelines.tracking.mlflow_server import store
    except ImportError as error:
        return [Finding("fault", f"cannot look: {error}; see libraries above")]
    where = store(root)
    if where.uri.startswith("sqlite:///"):
        wrong = database_fault(Path(where.uri.removeprefix("sqlite:///")))
        return [Finding("fault", wrong) if wrong else Finding("ok", f"{where.shown} can be written")]
    if where.uri.startswith(("http://", "https://")):
        return [_server(where.uri, where.shown)]
    return [Finding("note", f"{where.shown}: not looked at")]


def _server(uri: str, shown: str) -> Finding:
    try:
        urlopen(uri.rstrip("/") + "/health", timeout=5).close()  # http or https, checked above
    except HTTPError as error:
        return Finding("note", f"{shown} answers with status {error.code}; if it asks for a login, set "
                               "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.")
    except OSError as error:
        return Finding("note", f"{shown} does not answer ({error}). Stages run all the same and keep what they have to "
                               "say; `lacuna sync` sends it later.")
    return Finding("ok", f"{shown} answers")


def database_fault(path: Path) -> str:
    """Why a SQLite database cannot be written at `path`, with the remedy; empty when it can. Leaves nothing behind."""
    if path.exists():
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=5)) as database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
        except sqlite3.Error as error:
            return (f"{path.name}: found {error}, expected a database that can be written. Close what holds it (an "
                    "MLflow server?), mend its permissions, or move it away: a new one is made.")
        return ""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".doctor-") as folder:
            with closing(sqlite3.connect(Path(folder) / "trial.db")) as database:
                database.execute("CREATE TABLE trial (n INTEGER)")
    except (sqlite3.Error, OSError) as error:
        return (f"{path.name}: no SQLite database can be made in its folder ({error}). Use a local disk (network "
                "folders often cannot lock), or name a server with MLFLOW_TRACKING_URI.")
    return ""
