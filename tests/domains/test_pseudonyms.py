"""Keyed hashes stand for names: the same under one key, nothing alike under another, and no key is made by mistake."""

from __future__ import annotations

import hashlib
import hmac
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from domains.pseudonyms import KEY_FILE, VARIABLE, Key, KeyProblem, code_of, hide, key_of, read_key
from domains.sample import ManifestRow
from domains.splits import pseudonym


@pytest.fixture(autouse=True)
def no_shared_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_a_stand_in_is_hmac_sha256_of_use_and_name() -> None:
    key = Key(bytes(range(32)))
    expected = hmac.new(bytes(range(32)), b"group\0Doe^Jane", hashlib.sha256).hexdigest()[:32]
    assert key.of_group("Doe^Jane") == f"p_{key.id}-{expected}"
    assert key.of_group("a") != key.of_file("a")
    assert Key(bytes(32)).of_group("Doe^Jane")[11:] != key.of_group("Doe^Jane")[11:]
    assert "secret" not in repr(key)


def test_a_project_makes_its_key_once_for_its_owner_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: read_key(tmp_path).secret, range(8)))
    path = tmp_path / KEY_FILE
    assert len(made) == 1 and path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert sorted(file.name for file in path.parent.iterdir()) == [".gitignore", "pseudonym.key"]
    assert (path.parent / ".gitignore").read_text() == "*\n"


def test_a_shared_key_gives_two_projects_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_key(tmp_path / "a")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "a" / KEY_FILE))
    assert read_key(tmp_path / "b") == read_key(tmp_path / "a")
    assert not (tmp_path / "b").exists()


def test_a_shared_key_that_is_missing_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(KeyProblem, match="found no file .* Remedy: copy it there"):
        read_key(tmp_path)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("mode", "text", "says"), [
    (0o644, "0" * 64, "found mode 644, expected 600"),
    (0o640, "0" * 64, "found mode 640"),
    (0o600, "0" * 63, "found 63 characters"),
    (0o600, "password", "found 8 characters"),
])
def test_a_key_that_others_can_read_or_that_is_none_is_refused(tmp_path: Path, mode: int, text: str, says: str) -> None:
    path = tmp_path / KEY_FILE
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(KeyProblem, match=says) as caught:
        read_key(tmp_path)
    assert text not in str(caught.value)


def test_rows_keep_their_path_for_the_reader_and_lose_their_names(tmp_path: Path) -> None:
    rows = [ManifestRow(tmp_path / f"Doe/{i}.dcm", f"Doe/{i}.dcm", "Doe", "train", "north") for i in range(3)]
    hidden = hide(rows, Key(bytes(32)))
    assert [row.path for row in hidden] == [row.path for row in rows]
    assert len({row.key for row in hidden}) == 3 and len({row.group for row in hidden}) == 1
    assert "Doe" not in "".join(row.key + row.group for row in hidden)


def test_codes_say_which_key_made_them_and_a_name_in_clear_is_never_taken_for_one() -> None:
    key = Key(bytes(32))
    group = key.of_group("x")
    assert pseudonym(group) == code_of(group) == group[:23] and key_of(group) == key_of(pseudonym(group)) == key.id
    for name in ("p_0123", "20240101-123456789012", group[:40], group + "0", "p_zz", ""):
        assert code_of(name) == "" and pseudonym(name) == hashlib.sha256(name.encode()).hexdigest()[:12]
