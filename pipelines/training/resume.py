"""Where a run's unfinished work lies. The folder is keyed by settings, data and code, so that a changed setting never
resumes a stale run; it is outside DVC's outputs, which DVC deletes before a stage starts.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.settings import fingerprint

REPOSITORY = Path(__file__).resolve().parents[2]
_OURS = ("pipelines", "domains", "models")
_SHOWN_ONLY = ("pipelines/cli", "pipelines/told_to_stop", "pipelines/commands/overview", "pipelines/commands/endings",
               "pipelines/commands/under_dvc", "pipelines/tracking/tracking",
               "pipelines/tracking/tracked_run", "pipelines/tracking/lineage", "pipelines/tracking/loggable",
               "pipelines/tracking/spool", "pipelines/tracking/mlflow_server", "pipelines/report",
               "pipelines/training/estimate", "pipelines/training/processes", "pipelines/training/resources")
"""Modules that change what is shown and never what is computed: editing them discards no resume state."""
_OTHER_CODE = "made-by-other-code"
"""An empty file in a folder that was taken over; it stays, so that a second kill does not hide it."""


@dataclass(frozen=True)
class Work:
    """One run's folder for unfinished work."""

    folder: Path
    fingerprint: str
    """Of settings, data and code."""
    code: str
    """Hash of the project files that this process has imported."""
    resumed: bool
    """Whether an earlier, unfinished run left something here."""
    despite_code_change: bool
    """Whether what it left was made by other code, and the user said to go on all the same."""

    def finish(self) -> None:
        """Throw the unfinished work away: the result is published."""
        shutil.rmtree(self.folder, ignore_errors=True)


def project_files() -> list[Path]:
    """The project's own source files that are loaded right now."""
    files = {Path(origin).resolve() for name, module in list(sys.modules.items())
             if name.split(".")[0] in _OURS and (origin := getattr(module, "__file__", None))}
    return sorted(file for file in files if file.is_relative_to(REPOSITORY))


def code_hash() -> str:
    """Short hash of those files, without the ones that only show."""
    return hash_of_sources([file for file in project_files()
                            if file.relative_to(REPOSITORY).with_suffix("").as_posix() not in _SHOWN_ONLY])


def hash_of_sources(files: Iterable[Path]) -> str:
    """Short hash over names and contents of source files of the project."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(str(file.relative_to(REPOSITORY)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def work_folder(root: Path, stage: str, name: str, parts: list[Any], despite_code_change: bool = False) -> Work:
    """The folder for this run's unfinished work, made if need be.

    Args:
        parts: what must be equal for a resume: settings, digest of the data, hash of the start.
        despite_code_change: take up the work of other code too, if there is none of this.
    """
    importlib.import_module("pipelines.training.training_module")  # loaded when training begins: its code counts too
    code = code_hash()
    about = fingerprint(*parts)
    home = root / ".work" / stage
    folder = home / f"{name}-{about}-{code}"
    if not folder.exists() and despite_code_change:
        _take_over(home, f"{name}-{about}-*", folder)
    folder.mkdir(parents=True, exist_ok=True)
    left = any(folder.iterdir())  # the folder itself says nothing: another process of this training may have made it
    return Work(folder, f"{about}-{code}", code, left, (folder / _OTHER_CODE).exists())


def _take_over(home: Path, pattern: str, folder: Path) -> None:
    try:
        earlier = sorted(home.glob(pattern), key=lambda path: path.stat().st_mtime)
        if earlier:
            (earlier[-1] / _OTHER_CODE).touch()
            earlier[-1].rename(folder)
    except FileNotFoundError:
        if not folder.exists():
            raise  # otherwise another process of this training was faster
