"""Writing files and folders so that a reader sees the old state or the new one, never half of either.

The temporary file or folder lies in the target's own folder: a rename is atomic within one filesystem only. Its name
holds the machine and the process that writes it, so that what a killed process left is known as such and taken away.
A disk that is full and a folder that may not be written are sentences, and what lay there stays.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOST = uuid.uuid5(uuid.NAMESPACE_DNS, socket.gethostname()).hex[:8]
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class DiskFull(OSError):
    """Nothing more can be written. The text says how many bytes are missing, and that the old state was kept."""

    exit_code = 4

    def __init__(self, sentence: str) -> None:
        super().__init__(errno.ENOSPC, sentence)

    def __str__(self) -> str:
        return str(self.strerror)


class Unwritable(PermissionError):
    """A folder may not be written. The text says which, by whom, and what to do."""

    def __init__(self, sentence: str) -> None:
        super().__init__(errno.EACCES, sentence)

    def __str__(self) -> str:
        return str(self.strerror)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically and durably; its folder is made when missing.

    Raises:
        DiskFull, Unwritable: what `path` held before is still there.
    """
    with _explaining(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        _take_away_leftovers(path)
        temporary = _beside(path, "tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically and durably. Raises what `write_bytes` does."""
    write_bytes(path, content.encode("utf-8"))


def sync_file(path: Path) -> None:
    """Have the kernel put a finished file on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    sync_file(folder)


@contextmanager
def folder_in_the_making(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well, and is removed otherwise.

    Raises:
        DiskFull, Unwritable: whoever wrote in the block; what `target` held before is still there.
    """
    temporary = _beside(target, "tmp")
    with _explaining(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _take_away_leftovers(target)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    with _explaining(target, forbidden=()):  # what the block may not do is seldom about this folder
        try:
            yield temporary
            for file in sorted(temporary.rglob("*")):
                sync_file(file)
            sync_folder(temporary)
            _swap_in(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def require_room(folder: Path, needed: int) -> None:
    """Raises DiskFull when `needed` bytes will not fit into a folder, before any of them is written."""
    free = shutil.disk_usage(_nearest(folder)).free
    if needed > free:
        raise DiskFull(_full(folder, needed, free))


def require_writable(folder: Path) -> None:
    """Raises Unwritable when nothing can be made in a folder (or where it would be made), and DiskFull when not even
    an empty file can: better said before a stage has begun than when it wants to save."""
    there = _nearest(folder)
    probe = _beside(there / "probe", "tmp")
    with _explaining(folder / "...", 1):
        probe.touch()
        probe.unlink()


@contextmanager
def _explaining(path: Path, needed: int = 0, forbidden: tuple[int, ...] = _FORBIDDEN) -> Iterator[None]:
    """Turn a full disk and a refused permission into a sentence. Libraries that write for us wrap the kernel's answer
    into errors of their own, so the text is looked at too."""
    try:
        yield
    except (DiskFull, Unwritable):
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        said = re.search(r"os error (\d+)|\[errno (\d+)\]", str(error), re.IGNORECASE)
        if number is None and said:
            number = int(said[1] or said[2])
        if number in _FULL:
            raise DiskFull(_full(path, needed, shutil.disk_usage(_nearest(path.parent)).free)) from error
        if number in forbidden:
            raise Unwritable(f"{path} cannot be written ({os.strerror(number or 0)}): found the folder "
                             f"{_nearest(path.parent)} closed to user {os.geteuid()}, expected one that can be written "
                             "to. What lies there is as it was. Remedy: change its owner or mode, or work in another "
                             "folder.") from error
        raise


def _full(path: Path, needed: int, free: int) -> str:
    size = (f"needs {needed} bytes and found {free} free, expected {max(needed - free, 1)} bytes more" if needed else
            f"needs more than the {free} bytes that are free there")
    return (f"the disk is full: {path} {size}. What lay there before is kept. Remedy: free some, and start again; "
            "finished work is taken up.")


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{_HOST}-{os.getpid()}.{what}")


def _take_away_leftovers(target: Path) -> None:
    """Remove what processes of this machine were writing for the same target when they were killed."""
    for left in target.parent.glob(glob.escape(f".{target.name}.{_HOST}-") + "*"):
        owner = re.fullmatch(re.escape(f".{target.name}.{_HOST}-") + r"(\d+)\.(tmp|old)", left.name)
        if owner is None or _lives(int(owner[1])):
            continue
        if owner[2] == "old" and not target.exists():
            os.replace(left, target)  # killed between the two renames: the old state is the whole one
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _swap_in(temporary: Path, target: Path) -> None:
    # A folder that holds files cannot be replaced in one call, so the old one steps aside first; if the machine stops
    # between the two renames, both states still exist whole.
    old = _beside(target, "old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(temporary, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
