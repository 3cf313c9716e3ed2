"""Ingest of a folder that lies elsewhere gives what ingest of the folder itself gives, and says what did not come."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from domains.sample import ManifestRow
from domains.store import open_prepared
from pipelines import ingest
from pipelines.ingest import DataRun
from pipelines.intake.remote import Source, check_url
from pipelines.intake.transfer import NotFetched
from pipelines.settings import build
from tests.pipelines.fake_ingest import make_files, stand_in
from tests.pipelines.loopback import Site, serving

MADE = ("shard-00000.npy", "index.parquet", "contract.json", "leaks.csv", "mask-00000.npy")


@pytest.fixture(autouse=True)
def without_libraries_and_tracking(monkeypatch: pytest.MonkeyPatch, no_waiting: None) -> None:
    stand_in(monkeypatch, ingest)


def settings(folder: str, manifest: str = "labels.csv", **remote: Any) -> DataRun:
    return build(DataRun, {
        "domain": "medical", "read": {"kind": "squares"}, "bad_files": 1.0, "limits": {"workers": 2},
        "files": {"folder": folder, "manifest": manifest, "pseudonymise": False, "mask_column": "mask"},
        "tasks": {"sick": {"kind": "single_label", "columns": ["sick"]}}, "remote": remote}, "ingest.a")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A project with raw files, ingested from this disk as `local`."""
    make_files(tmp_path, 24)
    ingest.run("local", settings("data/raw/a", "data/raw/a/labels.csv"), tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sums(files: dict[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()).encode()


def same(root: Path, name: str) -> None:
    for file in MADE:
        assert (root / "data/prepared" / name / file).read_bytes() == (root / "data/prepared/local" / file).read_bytes()


def quarantined(root: Path, name: str) -> dict[str, str]:
    with (root / "data/prepared" / name / "quarantine.csv").open(newline="") as file:
        return {line["path"]: line["reason"] for line in csv.DictReader(file)}


@pytest.fixture
def site(here: Path) -> Iterator[Site]:
    files = contents(here / "data/raw/a")
    with serving(Site({f"x/{name}": content for name, content in files.items()} | {"x/SUMS": sums(files)})) as made:
        yield made


@pytest.mark.parametrize("keep", [True, False])
def test_a_folder_on_a_web_server_gives_the_same_bytes(here: Path, site: Site, keep: bool) -> None:
    ingest.run("web", settings(f"{site.url}/x", checksums="SUMS", keep=keep), here)
    same(here, "web")
    assert len(list((here / "data/remote").rglob("*.npy"))) == (32 if keep else 0)


def test_what_was_fetched_and_checked_once_is_not_fetched_again(here: Path, site: Site) -> None:
    for checksums, requests in (("SUMS", []), ("", [path for path in site.files if path.endswith(".npy")])):
        ingest.run("web", settings(f"{site.url}/x", checksums=checksums), here)
        site.asked.clear()
        ingest.run("web", settings(f"{site.url}/x", checksums=checksums), here)
        assert set(site.paths()) - {"x/labels.csv", "x/SUMS"} <= set(requests)
        same(here, "web")


def test_a_file_of_other_bytes_is_quarantined_and_never_read(here: Path, site: Site) -> None:
    site.files["x/3.npy"] = site.files["x/5.npy"]
    del site.files["x/7.npy"]
    site.break_after["x/9.npy"] = 20
    ingest.run("web", settings(f"{site.url}/x", checksums="SUMS"), here)
    assert quarantined(here, "web") == {"3.npy": "checksum: found other bytes than sha256 says",
                                        "7.npy": "download: the server answered 404"}
    assert len(open_prepared(here / "data/prepared/web")) == 22


def test_checksums_may_stand_in_the_manifest(here: Path, site: Site) -> None:
    with (here / "data/raw/a/labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["sum"] = hashlib.sha256(site.files[f"x/{row['path']}"]).hexdigest()
    rows[0]["sum"] = "0" * 64
    with (here / "sums.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    ingest.run("web", settings(f"{site.url}/x", "sums.csv", sha256_column="sum"), here)
    assert list(quarantined(here, "web")) == ["0.npy"]


@pytest.mark.parametrize("stray", ["../secret.npy", "/etc/secret.npy", "http://127.0.0.1/a.npy", "a/../../b.npy"])
def test_a_row_does_not_lead_out_of_the_prefix(here: Path, site: Site, stray: str) -> None:
    (here / "m.csv").write_text(f"path,group,sick,mask\n0.npy,1,1,\n{stray},2,0,\n")
    site.asked.clear()
    with pytest.raises(ValueError, match="paths: found 1"):
        ingest.run("web", settings(f"{site.url}/x", "m.csv"), here)
    assert not [path for path in site.paths() if path.endswith(".npy")]


@pytest.mark.parametrize("url", ["file:///etc", "ftp://h/x", "https://me:secret@h/x", "https://h/x?token=1", "s3:///x"])
def test_addresses_with_credentials_or_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"files\.folder") as refusal:
        check_url(url)
    assert "secret" not in str(refusal.value) and "token" not in str(refusal.value)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A local S3 server, named as users name theirs: by the environment."""
    moto = pytest.importorskip("moto.server")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
                            "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null"}.items():
            patch.setenv(name, value)
        server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        import fsspec
        files = fsspec.filesystem("s3")
        files.mkdir("hospital")
        yield files
        server.stop()


@pytest.mark.parametrize("keep", [True, False])
def test_a_bucket_gives_the_same_bytes(here: Path, bucket: Any, keep: bool) -> None:
    prefix = f"hospital/{keep}"
    for name, content in contents(here / "data/raw/a").items():
        bucket.pipe_file(f"{prefix}/{name}", content)
    ingest.run("s3", settings(f"s3://{prefix}", keep=keep), here)
    same(here, "s3")
    assert len(list((here / "data/remote").rglob("*.npy"))) == (32 if keep else 0)


def test_objects_that_differ_from_their_sums_or_lie_outside_are_not_read(here: Path, bucket: Any) -> None:
    files = contents(here / "data/raw/a")
    for name, content in files.items():
        bucket.pipe_file(f"hospital/b/{name}", content[:-1] if name == "4.npy" else content)
    bucket.pipe_file("hospital/b/SUMS", sums(files))
    bucket.pipe_file("hospital/bb/0.npy", b"of another prefix")
    ingest.run("s3", settings("s3://hospital/b", checksums="SUMS"), here)
    assert quarantined(here, "s3") == {"4.npy": "checksum: found other bytes than sha256 says"}
    source = Source(settings("s3://hospital/b").files, settings("s3://hospital/b").remote, here)
    assert set(source.listed) == {*files, "SUMS"}


def test_a_bucket_without_a_manifest_is_read_as_folders_of_classes(here: Path, bucket: Any) -> None:
    content = (here / "data/raw/a/0.npy").read_bytes()
    for name in ("train/cat/a.npy", "train/dog/b.npy", "test/cat/c.npy"):
        bucket.pipe_file(f"hospital/classes/{name}", content)
    source = Source(settings("s3://hospital/classes", "").files, settings("s3://hospital/classes").remote, here)
    assert Path(source.files.manifest).read_text() == (
        "path,split,label\ntest/cat/c.npy,test,cat\ntrain/cat/a.npy,train,cat\ntrain/dog/b.npy,train,dog\n")


def test_a_series_that_is_a_folder_comes_whole_or_is_refused(tmp_path: Path, bucket: Any) -> None:
    for name in ("s1/1.dcm", "s1/2.dcm", "s10/1.dcm", "s1-1/1.dcm", "s2/1.dcm"):  # neighbours by name are not inside
        bucket.pipe_file(f"hospital/series/{name}", name.encode())
    (tmp_path / "m.csv").write_text("path,group\ns1,a\ns2,b\n")
    run = settings("s3://hospital/series", "m.csv")
    source = Source(run.files, run.remote, tmp_path)
    row = ManifestRow(source.folder / "s1", "s1", "a", "", "")
    source.fetch_row(row)
    assert sorted(path.name for path in row.path.iterdir()) == ["1.dcm", "2.dcm"]
    bucket.rm_file("hospital/series/s2/1.dcm")
    with pytest.raises(NotFetched, match="no such file"):
        source.fetch_row(ManifestRow(source.folder / "s2", "s2", "b", "", ""))
    source.drop(row)
    assert not [path for path in source.folder.rglob("*") if path.is_file()]


def test_an_object_that_changes_after_the_listing_is_not_taken_for_the_listed_one(tmp_path: Path, bucket: Any) -> None:
    bucket.pipe_file("hospital/moving/a.npy", b"before")
    run = settings("s3://hospital/moving", "")
    source = Source(run.files, run.remote, tmp_path)
    bucket.pipe_file("hospital/moving/a.npy", b"behind")
    with pytest.raises(NotFetched, match="the store's tag"):
        source.fetch_file("a.npy")
    assert not (source.folder / "a.npy").exists()
