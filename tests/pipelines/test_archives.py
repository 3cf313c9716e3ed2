from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipelines.intake.archives import ArchiveRefused, unpack

LIMIT = 2**30


def make_zip(path: Path, files: dict[str, bytes], modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (modes or {}).get(name, 0o100644) << 16
            archive.writestr(info, content)
    return path


def make_tar(path: Path, *members: tuple[str, bytes, bytes, str]) -> Path:
    """(name, type, content, link) each."""
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, content, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), link
            archive.addfile(info, io.BytesIO(content))
    return path


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture(autouse=True, params=["with tarfile's filter", "before Python 3.11.4"])
def filtered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python before 3.11.4 has no filter of its own."""
    if request.param.startswith("before"):
        monkeypatch.delattr(tarfile, "data_filter", raising=False)


def test_files_come_out_where_they_belong(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert unpack(make_zip(tmp_path / "a.zip", {"x/1.png": b"1", "x/y/2.png": b"2"}), "zip", out, LIMIT) == 2
    assert unpack(make_tar(tmp_path / "a.tgz", ("./x/3.png", tarfile.REGTYPE, b"3", "")), "tar", out, LIMIT) == 1
    assert everything(out) == ["x", "x/1.png", "x/3.png", "x/y", "x/y/2.png"]
    assert (out / "x/3.png").read_bytes() == b"3"


@pytest.mark.parametrize("name", ["../slip", "/etc/slip", "a/../../slip", "a\\..\\slip", "a//slip", "%2e%2e/slip"])
def test_a_path_that_leads_elsewhere_refuses_the_whole_archive(tmp_path: Path, name: str) -> None:
    out = tmp_path / "deep/out"
    for archive, kind in ((make_zip(tmp_path / "a.zip", {"good": b"1", name: b"2"}), "zip"),
                          (make_tar(tmp_path / "a.tgz", ("good", tarfile.REGTYPE, b"1", ""),
                                    (name, tarfile.REGTYPE, b"2", "")), "tar")):
        with pytest.raises(ArchiveRefused):
            unpack(archive, kind, out, LIMIT)
        assert everything(tmp_path / "deep") == ["out"]
    assert not list(tmp_path.glob("slip"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    archive = make_tar(tmp_path / "a.tgz", ("good", tarfile.REGTYPE, b"1", ""), ("bad", kind, b"", "good"))
    with pytest.raises(ArchiveRefused):
        unpack(archive, "tar", tmp_path / "out", LIMIT)
    linked = make_zip(tmp_path / "a.zip", {"bad": b"/etc/passwd"}, {"bad": 0o120777})
    with pytest.raises(ArchiveRefused, match="link"):
        unpack(linked, "zip", tmp_path / "out", LIMIT)
    assert everything(tmp_path / "out") == []


def test_bombs_are_stopped_before_they_fill_the_disk(tmp_path: Path) -> None:
    zeros = bytes(120 * 2**20)
    for archive, kind in ((make_zip(tmp_path / "a.zip", {"zeros": zeros}), "zip"),
                          (make_tar(tmp_path / "a.tgz", ("zeros", tarfile.REGTYPE, zeros, "")), "tar")):
        with pytest.raises(ArchiveRefused, match="200 times"):
            unpack(archive, kind, tmp_path / "out", LIMIT)
        with pytest.raises(ArchiveRefused, match="more than 1000 bytes"):
            unpack(archive, kind, tmp_path / "out", 1000)
    assert everything(tmp_path / "out") == []


def test_a_damaged_archive_leaves_nothing(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"1": os.urandom(1000), "2": os.urandom(1000)})
    content = bytearray(archive.read_bytes())
    content[1200:1210] = bytes(10)
    archive.write_bytes(content)
    with pytest.raises(ArchiveRefused, match="could not be unpacked"):
        unpack(archive, "zip", tmp_path / "out", LIMIT)
    assert everything(tmp_path / "out") == []
