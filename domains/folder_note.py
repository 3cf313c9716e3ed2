"""A small file that stands for a folder of raw files: where it is, and a hash of its names, sizes and times.

DVC keeps the path of every file of a folder that a stage depends on, in a database outside of the project that others
can read. Where `files.folder` names such a note instead, DVC sees the note alone. It also hashes no terabytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from domains.publish import write_text

FORMAT = "lacuna folder note 1"
MAX_BYTES = 65536


class FolderChanged(ValueError):
    """The folder is not as it was when it was noted."""


def write_note(folder: Path, path: Path) -> int:
    """Note a folder as it is now, for its owner alone. Returns the number of files.

    Raises:
        FolderChanged: there is no such folder.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise FolderChanged("note: found no such folder, expected the one with the raw files.")
    state, count = _state(folder)
    write_text(path, json.dumps({"format": FORMAT, "folder": str(folder), "files": count, "state": state}) + "\n")
    path.chmod(0o600)
    return count


def noted(path: Path) -> Path:
    """The folder that `path` is, or that it is a note of; any other path as it is.

    Raises:
        FolderChanged: the folder is gone, or files in it were added, removed or written since.
    """
    note = _read(path)
    if note is None:
        return path
    folder = Path(note["folder"])
    state, count = _state(folder) if folder.is_dir() else ("", 0)
    if state != note["state"]:
        raise FolderChanged(f"{path.name}: found {count} files, expected the {note['files']} that were there when the "
                            "folder was noted, with the same names, sizes and times. Remedy: if the change is meant, "
                            "run `lacuna note` again, which makes the stages after it stale.")
    return folder


def _read(path: Path) -> dict[str, str] | None:
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return None
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


def _state(folder: Path) -> tuple[str, int]:
    digest, count = hashlib.sha256(), 0
    for name, size, time in _files(folder, ""):
        digest.update(f"{name}\0{size}\0{time}\n".encode("utf-8", "surrogateescape"))
        count += 1
    return digest.hexdigest(), count


def _files(folder: Path, inside: str) -> Iterator[tuple[str, int, int]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), f"{inside}{entry.name}/")
        else:
            about = entry.stat(follow_symlinks=False)
            yield f"{inside}{entry.name}", about.st_size, about.st_mtime_ns
