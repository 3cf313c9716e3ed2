"""Every format that is timed is read by us, by its own library, and by a script of the usual libraries."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks import plain_ingest
from benchmarks.ingest_rate import FORMATS
from benchmarks.real_formats import real_formats
from domains.sample import ManifestRow


@pytest.mark.parametrize("name", FORMATS)
def test_a_plain_script_makes_the_same_sample_of_a_file_of_each_format(name: str, tmp_path: Path) -> None:
    form = FORMATS[name]
    path = form.write(tmp_path, 0)
    pieces = importlib.import_module(form.module).read(ManifestRow(path, path.name, "g", "train", ""), form.settings)
    assert form.decode(path) is not None and len(pieces) == 1
    assert form.plain is not None and plain_ingest.same(form.plain(path), pieces[0])
    assert not plain_ingest.same(form.plain(path)[..., ::-1] * 0.5, pieces[0])


def test_real_files_of_a_folder_are_read_by_us_and_by_their_own_library(shared_data: Path, tmp_path: Path) -> None:
    formats = real_formats(shared_data)
    assert len(formats) == 11
    for form in formats.values():
        if form.name not in ("CT series, JPEG 2000", "NIfTI.gz, head and neck"):  # which take half a second
            path = form.write(tmp_path, 0)
            read = importlib.import_module(form.module).read
            assert form.decode(path) is not None
            assert len(read(ManifestRow(path, path.name, "g", "train", ""), form.settings)) == 1
    with pytest.raises(FileNotFoundError, match="no real file"):
        real_formats(tmp_path)
