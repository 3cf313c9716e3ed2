"""Keyed hashes that stand for patients and files in everything that is made of them.

A plain hash hides nothing: whoever can guess a patient number can hash it and compare. These are HMAC-SHA256 under a
secret key that is made once per project and lies outside of what DVC, git and MLflow see. The same key gives the same
stand-ins, so data sets and machines that share it can still be compared.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from domains.publish import sync_folder
from domains.rows import changed, column_of
from domains.sample import ManifestRow

VARIABLE = "LACUNA_PSEUDONYM_KEY_FILE"
"""Environment variable with the path of a key that several projects or machines share."""
KEY_FILE = Path(".lacuna/pseudonym.key")
"""Where a project's own key lies, relative to its root."""
NUM_BYTES = 32
DIGITS = 32
"""Hex digits of a stand-in: 128 bits, so that two of a billion files do not meet."""
CODE_DIGITS = 12
"""Digits that messages and checkpoints have of it."""

_STAND_IN = re.compile(rf"p_([0-9a-f]{{8}})-[0-9a-f]{{{DIGITS}}}")
_CODE = re.compile(rf"p_([0-9a-f]{{8}})-[0-9a-f]{{{CODE_DIGITS}}}")


class KeyProblem(ValueError):
    """The key cannot be used. The text says found, expected and remedy."""


@dataclass(frozen=True)
class Key:
    """A secret, and the stand-ins that it gives."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """Eight digits that tell keys apart; every stand-in has them in front."""
        return self._digest("key", "")[:8]

    def of_group(self, group: str) -> str:
        """What stands for a patient, scene or object: `p_<id>-<32 hex digits>`."""
        return f"p_{self.id}-{self._digest('group', group)[:DIGITS]}"

    def of_file(self, path: str) -> str:
        """What stands for a file, named by its path relative to the data folder."""
        return f"p_{self.id}-{self._digest('file', path)[:DIGITS]}"

    def of_place(self, path: str) -> str:
        """Twelve digits that tell folders of this machine apart."""
        return self._digest("place", path)[:12]

    def _digest(self, use: str, text: str) -> str:
        # The use goes first, so that a group and a file of the same name have nothing in common.
        return hmac.new(self.secret, f"{use}\0{text}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def key_of(text: str) -> str:
    """The id of the key that made a stand-in, or the code that is short for one; empty for a name in clear or a plain
    hash."""
    found = _STAND_IN.fullmatch(text) or _CODE.fullmatch(text)
    return found[1] if found else ""


def code_of(stand_in: str) -> str:
    """What is short for a stand-in in messages and checkpoints; nothing for any other text."""
    return stand_in[:len("p_") + 8 + len("-") + CODE_DIGITS] if _STAND_IN.fullmatch(stand_in) else ""


def hide(rows: Sequence[ManifestRow], key: Key) -> Sequence[ManifestRow]:
    """The rows with stand-ins for key and group. The path stays: the reading process needs it, and nothing else gets
    it."""
    names = column_of(rows, "group")
    groups = {name: key.of_group(name) for name in dict.fromkeys(names)}
    return changed(rows, key=[key.of_file(path) for path in column_of(rows, "key")],
                   group=[groups[name] for name in names])


def read_key(root: Path) -> Key:
    """The key of LACUNA_PSEUDONYM_KEY_FILE, or else the project's own, which is made when there is none.

    Raises:
        KeyProblem: the variable names no file, others may read it, or it holds no key.
    """
    shared = os.environ.get(VARIABLE, "")
    path = Path(shared) if shared else root / KEY_FILE
    if not path.exists():
        if shared:
            raise KeyProblem(f"{VARIABLE}: found no file at {path}, expected the key that pseudonyms are made with. "
                             f"Remedy: copy it there with mode 600, or unset {VARIABLE} to have one made for this "
                             "project.")
        _make(path)
    _refuse_open(path)
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if not re.fullmatch(rf"[0-9a-f]{{{2 * NUM_BYTES}}}", text):
        raise KeyProblem(f"{path}: found {len(text)} characters, expected {2 * NUM_BYTES} hexadecimal digits. Remedy: "
                         "copy the key again; without it, names cannot be matched with what was made before.")
    return Key(bytes.fromhex(text))


def _refuse_open(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise KeyProblem(f"{path}: found mode {mode:o}, expected 600: whoever reads the key can guess names and "
                         f"compare. Remedy: chmod 600 {path}.")


def _make(path: Path) -> None:
    """A new key. Of two processes that make one at once, the first wins and both read its."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The folder keeps itself out of git, in whichever project it lies.
    (path.parent / ".gitignore").write_text("*\n")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(NUM_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
