"""Every format that is timed is read by us and by its own library."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks.ingest_rate import FORMATS
from domains.sample import ManifestRow


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_each_format_is_read_and_decoded(name: str, tmp_path: Path) -> None:
    form = FORMATS[name]
    path = form.write(tmp_path, 0)
    pieces = importlib.import_module(form.module).read(ManifestRow(path, path.name, "g", "train", ""), form.settings)
    assert form.decode(path) is not None and len(pieces) == 1
