"""The search of the campaign finds what is planted, however it is packed; and the campaign finds nothing."""

from __future__ import annotations

import gzip
import hashlib
import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from benchmarks.faults.patient_data import FIELDS, campaign, identifier, search

NAME = identifier(0, "PatientName")


def hide_in(path: Path, how: str) -> None:
    """Write a file in which the name is not to be seen by a plain search, most of the time."""
    match how:
        case "text":
            path.write_text(f"xx{NAME}yy")
        case "utf16":
            path.write_bytes(NAME.encode("utf-16-le"))
        case "parquet":
            pq.write_table(pa.table({"key": [f"a/{NAME}.dcm"] * 50}), path, compression="zstd")
        case "sqlite":
            with sqlite3.connect(path) as store:
                store.execute("create table t (x)")
                store.execute("insert into t values (?)", (f"run of {NAME}",))
        case "gzip":
            path.write_bytes(gzip.compress(NAME.encode()))
        case "png":
            info = PngImagePlugin.PngInfo()
            info.add_text("c", NAME, zip=True)
            Image.new("L", (4, 4)).save(path, format="PNG", pnginfo=info)
        case "name":
            path.with_name(f"{NAME}.bin").write_bytes(b"")
        case _:
            path.write_text(f"group {hashlib.new(how, NAME.encode()).hexdigest()[:12]}, ...")


@pytest.mark.parametrize("how", ["text", "utf16", "parquet", "sqlite", "gzip", "png", "name", "md5", "sha1", "sha256"])
def test_the_search_finds_a_name_however_it_is_packed(tmp_path: Path, how: str) -> None:
    planted = [identifier(i, field) for i in range(20) for field in FIELDS]
    assert len(set(planted)) == len(planted)
    hide_in(tmp_path / "file", how)
    found, _, _ = search(tmp_path, planted)
    assert list(found.values()) == [[NAME]]


def test_a_birth_date_is_found_inside_a_longer_number(tmp_path: Path) -> None:
    date = identifier(7, "PatientBirthDate")
    (tmp_path / "log").write_text(f"1{date}4 and {date}")
    assert search(tmp_path, [date])[0] == {"log": [date]}


@pytest.mark.slow
def test_no_identifier_of_forty_films_is_in_anything_that_is_written(tmp_path: Path) -> None:
    found, planted = campaign(tmp_path / "project", 40, note=True)
    assert len(planted) > 480 and found == {}
