from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from domains import seal
from pipelines.commands.fetch import fetch_any
from tests.pipelines.loopback import Site, serving


@pytest.fixture
def prepared(tmp_path: Path, no_waiting: None) -> Iterator[Site]:
    """A sealed folder on a web server."""
    folder = tmp_path / "far"
    (folder / "inner").mkdir(parents=True)
    for name in ("shard-00000.npy", "contract.json", "inner/more.bin"):
        (folder / name).write_bytes(name.encode() * 1000)
    seal.write(folder, "digest")
    with serving(Site({path.relative_to(tmp_path).as_posix(): path.read_bytes()
                       for path in folder.rglob("*") if path.is_file()})) as site:
        yield site


def test_a_sealed_folder_is_copied_whole_and_only_what_is_missing_is_fetched_again(tmp_path: Path, prepared: Site
                                                                                  ) -> None:
    out = tmp_path / "near"
    text, whole = fetch_any(f"{prepared.url}/far", out, checksums=seal.SEAL)
    assert whole and "3 files" in text
    sealed = seal.read(out)
    assert sealed is not None and not seal.damaged(out, sealed) and set(sealed.hashes) == set(seal.files(out))
    (out / "contract.json").unlink()
    prepared.asked.clear()
    assert fetch_any(f"{prepared.url}/far", out, checksums=seal.SEAL)[1]
    assert prepared.paths() == ["far/SHA256SUMS", "far/contract.json"]


def test_a_file_that_is_not_what_was_sealed_is_named_and_the_rest_comes(tmp_path: Path, prepared: Site) -> None:
    prepared.files["far/shard-00000.npy"] = b"other"
    text, whole = fetch_any(f"{prepared.url}/far", tmp_path / "near", checksums=seal.SEAL)
    assert not whole and "shard-00000.npy: checksum" in text
    assert not (tmp_path / "near/shard-00000.npy").exists() and (tmp_path / "near/inner/more.bin").exists()


def test_an_address_needs_a_folder_and_no_name_gives_the_list() -> None:
    with pytest.raises(ValueError, match="--out"):
        fetch_any("https://host/x", None)
    assert "chestxray14" in fetch_any("", None)[0]
