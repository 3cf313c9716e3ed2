"""Version floors, the pinned set, and what must stay out of it."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from benchmarks.faults import versions
from benchmarks.faults.versions import ADVISORIES, Advisory, faults
from pipelines.commands.doctor import LIBRARIES, OLDEST_PYTHON

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
OURS = [Requirement(text) for text in [*PROJECT["dependencies"], *(r for name, extra in EXTRAS.items() if name != "all"
                                                                   for r in extra)]]


def pins() -> dict[str, str]:
    """constraints.txt as name -> version."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    odd = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.!]+", line)]
    assert not odd, "only name==version belongs here: no build label, path or address"
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def requirement(name: str) -> Requirement:
    """Our own requirement of a package."""
    return next(one for one in OURS if canonicalize_name(one.name) == name)


def closure(first: list[Requirement]) -> Iterator[tuple[str, str]]:
    """(name, version) of everything that is installed for these requirements, dependencies of dependencies included."""
    todo, seen = list(first), set()
    while todo:
        one = todo.pop()
        key = (canonicalize_name(one.name), tuple(sorted(one.extras)))
        if key in seen or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        seen.add(key)
        found = importlib.metadata.distribution(one.name)
        yield key[0], found.version
        for text in found.requires or []:
            further = Requirement(text)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)):
                further.marker = None
                todo.append(further)


@pytest.mark.parametrize("advisory", ADVISORIES, ids=lambda advisory: f"{advisory.package} {advisory.names}")
def test_releases_with_a_published_weakness_are_neither_installed_nor_pinned_nor_allowed(advisory: Advisory) -> None:
    assert list(faults(advisory)) == []


def test_the_check_of_versions_sees_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that finds nothing would pass too."""
    monkeypatch.setattr(versions, "installed", lambda package: "2.9.1")
    monkeypatch.setattr(versions, "required", lambda package: SpecifierSet(">=2.6"))
    old = next(one for one in ADVISORIES if one.names == "CVE-2026-24747")
    assert len(list(faults(old))) == 2


def test_installed_files_of_a_package_are_those_of_its_wheel() -> None:
    looked, changed = versions.changed_files("pydicom")
    assert looked > 100 and changed == []


@pytest.mark.parametrize("one", OURS, ids=lambda one: one.name)
def test_installed_releases_and_pins_are_within_our_bounds(one: Requirement) -> None:
    if one.marker and not one.marker.evaluate():
        pytest.skip(f"{one.name} is for another platform: {one.marker}")
    assert one.specifier.contains(importlib.metadata.version(one.name), prereleases=True)
    assert one.specifier.contains(pins()[canonicalize_name(one.name)])


def test_everything_that_gets_installed_is_pinned() -> None:
    assert {name for name, _ in closure(OURS)} - set(pins()) == set()


def test_torchvision_and_timm_are_neither_pinned_nor_required_nor_installed() -> None:
    unwanted = {"torchvision", "timm", "torchaudio"}
    assert not unwanted & set(pins())
    assert not unwanted & {canonicalize_name(one.name) for one in OURS}
    assert not unwanted & {name for name, _ in closure(OURS)}


def test_the_minimal_set_is_what_the_design_says() -> None:
    minimal = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert minimal == {"torch", "lightning", "numpy", "pydantic", "pyyaml", "safetensors", "pyarrow"}


def test_every_bound_has_its_reason_beside_it() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    bounds = [line for line in lines if re.match(r'\s+"[A-Za-z].*(>=|<|!=)', line)]
    assert len(bounds) > 15
    assert not [line for line in bounds if "#" not in line]


def test_doctor_checks_the_floors_that_pyproject_names() -> None:
    floors = {canonicalize_name(one.name): min(Version(s.version) for s in one.specifier if s.operator == ">=")
              for one in OURS if one.specifier}
    assert {library.distribution: Version(library.floor) for library in LIBRARIES} == {
        library.distribution: floors[library.distribution] for library in LIBRARIES}
    assert PROJECT["requires-python"] == ">=" + ".".join(map(str, OLDEST_PYTHON))


def test_doctor_knows_which_extra_brings_a_library() -> None:
    for library in LIBRARIES:
        brought_by = EXTRAS[library.extra] if library.extra else PROJECT["dependencies"]
        assert library.distribution in {canonicalize_name(Requirement(text).name) for text in brought_by}
