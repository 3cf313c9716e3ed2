from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.intake.download import fetch
from pipelines.intake.https import refuse_address
from pipelines.intake.object_store import store
from pipelines.intake.transfer import NotFetched, Transfer, Wanted
from tests.pipelines.loopback import Site, serving

FILM = bytes(range(256)) * 4096


@pytest.fixture
def site(no_waiting: None) -> Iterator[Site]:
    with serving(Site({"a.bin": FILM})) as made:
        yield made


def wanted(site: Site, folder: Path, name: str = "a.bin", **known: object) -> Wanted:
    return Wanted(f"{site.url}/{name}", folder / name, **known)  # type: ignore[arg-type]


def test_a_file_comes_whole_with_its_sums(site: Site, tmp_path: Path) -> None:
    got = fetch(wanted(site, tmp_path, sha256=hashlib.sha256(FILM).hexdigest()), Transfer())
    assert (tmp_path / "a.bin").read_bytes() == FILM
    assert (got.sha256, got.size) == (hashlib.sha256(FILM).hexdigest(), len(FILM))
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_broken_connection_is_taken_up_where_it_ended(site: Site, tmp_path: Path) -> None:
    site.break_after["a.bin"] = 300_000
    fetch(wanted(site, tmp_path), Transfer())
    assert (tmp_path / "a.bin").read_bytes() == FILM
    assert site.asked[1][1]["Range"] == "bytes=300000-"


def test_the_rest_of_another_version_is_not_put_behind_the_first_part(site: Site, tmp_path: Path) -> None:
    site.break_after["a.bin"] = 300_000
    with pytest.raises(NotFetched, match="the connection"):
        fetch(wanted(site, tmp_path), Transfer(retries=0))
    assert not (tmp_path / "a.bin").exists()
    site.files["a.bin"] = FILM[::-1]
    fetch(wanted(site, tmp_path), Transfer())
    assert (tmp_path / "a.bin").read_bytes() == FILM[::-1]


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(site: Site, tmp_path: Path) -> None:
    site.busy["a.bin"] = 2
    fetch(wanted(site, tmp_path), Transfer())
    assert len(site.asked) == 3
    with pytest.raises(NotFetched, match="answered 404"):
        fetch(wanted(site, tmp_path, "b.bin"), Transfer())
    assert len(site.asked) == 4


@pytest.mark.parametrize("known", [{"sha256": "0" * 64}, {"md5": "0" * 32}, {"size": 7}])
def test_other_bytes_than_promised_are_never_there(site: Site, tmp_path: Path, known: dict[str, object]) -> None:
    with pytest.raises(NotFetched, match="checksum|expected 7"):
        fetch(wanted(site, tmp_path, **known), Transfer())
    assert not (tmp_path / "a.bin").exists()


def test_a_file_larger_than_allowed_is_refused_before_it_is_fetched(site: Site, tmp_path: Path) -> None:
    with pytest.raises(NotFetched, match="max_file_gb"):
        fetch(wanted(site, tmp_path), Transfer(max_file_gb=1e-4))
    assert not list(tmp_path.glob("a.bin"))


def test_redirects_stay_on_their_host_and_scheme(site: Site, tmp_path: Path) -> None:
    for target in ("http://localhost:1/a.bin", "http://169.254.169.254/latest/meta-data", "file:///etc/passwd",
                   "ftp://127.0.0.1/a.bin", site.url.replace("127.0.0.1", "127.0.0.2") + "/a.bin"):
        site.redirects["moved"] = target
        with pytest.raises(NotFetched):
            fetch(wanted(site, tmp_path, "moved"), Transfer(retries=0))
    assert "a.bin" not in site.paths()
    site.redirects["moved"] = "/a.bin"
    fetch(wanted(site, tmp_path, "moved"), Transfer())
    assert (tmp_path / "moved").read_bytes() == FILM


def test_credentials_of_netrc_go_to_their_host_alone(site: Site, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving(Site({"a.bin": FILM})) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        site.redirects["moved"] = f"{elsewhere}/a.bin"
        fetch(wanted(site, tmp_path, "moved", hosts=("localhost",)), Transfer())
        assert "Authorization" in site.asked[0][1]
        assert "Authorization" not in other.asked[0][1]


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1%eth0", "0.0.0.0", "224.0.0.1",
                                     "::ffff:169.254.169.254", "fd00:ec2::254"])
def test_addresses_of_no_server_are_refused(address: str) -> None:
    with pytest.raises(NotFetched, match="no server"):
        refuse_address(address, encrypted=True)


def test_unencrypted_connections_do_not_leave_this_machine() -> None:
    refuse_address("127.0.0.1", encrypted=False)
    with pytest.raises(NotFetched, match="expected https"):
        refuse_address("10.0.0.1", encrypted=False)


@pytest.mark.parametrize("url", ["file:///etc", "ssh://host/x", "memory://x", "zip://x", "github://x", "local://x"])
def test_fsspec_is_asked_for_object_stores_alone(url: str) -> None:
    with pytest.raises(NotFetched, match="expected https or one of"):
        store(url)
