"""Installed versions against published weaknesses: `python -m benchmarks.faults.versions`.

For every advisory: is the installed release clear of it, does the pin of constraints.txt keep clear of it, and does
pyproject.toml refuse the releases that have it? Then the files of these packages are compared with the hashes that
their wheels brought (RECORD), which shows what was changed after it was installed.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Advisory:
    """A published weakness of a package."""

    package: str
    names: str
    """What it is called."""
    releases: str
    """Those that have it, as a specifier."""
    last: tuple[str, ...]
    """Releases that must be refused: the last of those, and any others that must never come."""
    what: str


ADVISORIES = (
    Advisory("torch", "CVE-2025-32434", "<2.6", ("2.5.1",), "weights_only=True can run code"),
    Advisory("torch", "CVE-2026-24747", "<2.10", ("2.6.0", "2.9.1"), "weights_only=True can corrupt memory"),
    Advisory("lightning", "CVE-2026-31221", "<=2.6.0", ("2.5.0", "2.6.0"), "loads a pickle"),
    Advisory("lightning", "uploads of 30 April 2026", "==2.6.2", ("2.6.2",), "malicious"),
    Advisory("lightning", "uploads of 30 April 2026", "==2.6.3", ("2.6.3",), "malicious"),
    Advisory("pydicom", "CVE-2026-32711", "<3.0.2", ("2.4.4", "3.0.1"), "a DICOMDIR names files outside its folder"),
    Advisory("monai", "GHSA-89gg-p5r5-q6r4", "<1.5.2", ("1.4.0", "1.5.1"), "loads a pickle"),
    Advisory("monai", "CVE-2026-21851", "<1.5.2", ("1.5.1",), "an archive writes outside its folder"),
    Advisory("monai", "CVE-2025-58756", "<1.5.2", ("1.5.1",), "loads a pickle in checkpoints"),
    Advisory("mlflow", "CVE-2026-2614", "<3.10", ("3.9.0",), "files are read without a login"),
    Advisory("mlflow", "CVE-2025-11201", "<3.10", ("2.22.0",), "a crafted request runs code"),
    Advisory("mlflow", "CVE-2024-1560", "<3.10", ("2.9.2",), "a path leaves its folder"),
    Advisory("mlflow", "CVE-2023-1177", "<3.10", ("2.2.0",), "a path leaves its folder"),
)
"""mlflow's older weaknesses were mended before 3.10; the floor that keeps clear of all of them is named."""


def installed(package: str) -> str:
    """The release that is here; empty when none is."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def pinned(package: str) -> str:
    """The release that constraints.txt names."""
    lines = (line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    return {canonicalize_name(name): version for name, version in lines}[package]


def required(package: str) -> SpecifierSet:
    """What pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return next(one.specifier for one in map(Requirement, texts) if canonicalize_name(one.name) == package)


def faults(advisory: Advisory) -> Iterator[str]:
    """Sentences on what does not keep clear of an advisory."""
    has = SpecifierSet(advisory.releases)
    for what, version in (("installed", installed(advisory.package)), ("constraints.txt", pinned(advisory.package))):
        if version and has.contains(version, prereleases=True):
            yield f"{what}: found {advisory.package} {version}, which has {advisory.names} ({advisory.what})"
    allowed = [version for version in advisory.last if required(advisory.package).contains(version)]
    if allowed:
        yield f"pyproject.toml: allows {advisory.package} {', '.join(allowed)}, which has {advisory.names}"


def changed_files(package: str) -> tuple[int, list[str]]:
    """How many installed files of a package have a hash in its wheel's RECORD, and which differ from it now."""
    looked, changed = 0, []
    for file in importlib.metadata.files(package) or []:
        if file.hash is None or file.hash.mode != "sha256":
            continue
        looked += 1
        path = Path(str(file.locate()))
        if not path.is_file():
            changed.append(f"{file} (missing)")
            continue
        with path.open("rb") as stream:
            found = base64.urlsafe_b64encode(hashlib.file_digest(stream, "sha256").digest()).rstrip(b"=").decode()
        if found != file.hash.value:
            changed.append(str(file))
    return looked, changed


def main() -> int:
    """Print a line per advisory and per package; 1 when anything is wrong."""
    wrong = 0
    for advisory in ADVISORIES:
        found = list(faults(advisory))
        wrong += len(found)
        print(f"{advisory.package:<10} {installed(advisory.package) or 'not here':<8} {advisory.names:<26} "
              f"{'; '.join(found) or 'clear'}")
    for package in sorted({advisory.package for advisory in ADVISORIES if installed(advisory.package)}):
        looked, changed = changed_files(package)
        wrong += len(changed)
        print(f"{package:<10} {looked} files, changed since they were installed: {', '.join(changed[:5]) or 'none'}")
    print(f"{len(ADVISORIES)} advisories, {wrong} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
