"""The README's tree says what every file is for, and names none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("pipelines", "domains", "models")


def tree() -> set[str]:
    """Source files that the README's tree names, as paths."""
    block = next(part for part in (ROOT / "README.md").read_text().split("```") if "\npipelines/" in part)
    named, folder = set(), ""
    for line in block.splitlines():
        heading = re.match(r"(\S+/) ", line)
        entry = re.match(r"  (\S+\.py) +\S", line)
        if heading:
            folder = heading[1]
        elif entry and folder.split("/")[0] in FOLDERS:
            named.add(folder + entry[1])
    return named


def sources() -> set[str]:
    """Source files there are."""
    return {path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")
            if path.name != "__init__.py"}


def test_every_source_file_has_its_line_in_the_readme() -> None:
    assert sources() - tree() == set()


def test_the_readme_names_no_source_file_that_is_gone() -> None:
    assert tree() - sources() == set()


def test_links_within_the_project_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
