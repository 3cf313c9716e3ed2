"""Every format that is timed is read by us, by its own library, and by a script of the usual libraries."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks import plain_ingest
from benchmarks.ingest_rate import FORMATS
from domains.sample import ManifestRow


@pytest.mark.parametrize("name", FORMATS)
def test_a_plain_script_makes_the_same_sample_of_a_file_of_each_format(name: str, tmp_path: Path) -> None:
    form = FORMATS[name]
    path = form.write(tmp_path, 0)
    pieces = importlib.import_module(form.module).read(ManifestRow(path, path.name, "g", "train", ""), form.settings)
    assert form.decode(path) is not None and len(pieces) == 1
    assert plain_ingest.same(form.plain(path), pieces[0])
    assert not plain_ingest.same(form.plain(path)[..., ::-1] * 0.5, pieces[0])
