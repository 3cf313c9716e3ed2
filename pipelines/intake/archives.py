"""Zip and tar archives of strangers, unpacked inside one folder or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipelines.intake.transfer import is_safe

BLOCK = 2**20
MAX_RATIO = 200
"""Unpacked over packed bytes: what zlib gives on real images is below 20, on tables below 50, on a bomb 1,000."""
FREE_RATIO_BYTES = 100 * 2**20
"""Below this size the ratio does not matter."""
MAX_FILES = 10_000_000
"""More is no data set of files but an attack on a file system's tables, or it comes in several archives."""


class ArchiveRefused(ValueError):
    """An archive that would write elsewhere, or more than it may."""


def unpack(archive: Path, kind: str, target: Path, max_bytes: int) -> int:
    """Unpack into `target`; files get there when all of the archive was good. Returns how many files there were.

    Links, devices, absolute paths and `..` refuse the whole archive, and so does what unpacks to more than `max_bytes`
    or to more than 200 times its own size.

    Raises:
        ArchiveRefused: such an archive, or one that is damaged.
    """
    making = target / f".{archive.name}.making"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    limit = min(max_bytes, max(FREE_RATIO_BYTES, MAX_RATIO * archive.stat().st_size))
    total = number = 0
    try:
        for name, stream in _members(archive, kind, making):
            number += 1
            if number > MAX_FILES:
                raise ArchiveRefused(f"archive: found more than {MAX_FILES} files.")
            place = making / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with stream, place.open("xb") as file:
                while block := stream.read(BLOCK):
                    total += len(block)
                    if total > limit:
                        raise ArchiveRefused(f"archive: found more than {limit} bytes in it, expected at most "
                                             f"{MAX_RATIO} times its size and remote.max_total_gb.")
                    file.write(block)
        _move(making, target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, NotImplementedError, RuntimeError) as fault:
        raise ArchiveRefused(f"archive: could not be unpacked ({type(fault).__name__}). Remedy: fetch it again."
                             ) from fault
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return number


def _members(archive: Path, kind: str, making: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """(path, content) of every file, in the archive's order."""
    if kind == "zip":
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                mode = info.external_attr >> 16
                if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or not stat.S_IFMT(mode)):
                    raise ArchiveRefused("archive: found a link or device in it, expected files.")
                if info.flag_bits & 1:
                    raise ArchiveRefused("archive: found an encrypted file in it.")
                if not info.is_dir():
                    yield _checked(info.filename), opened.open(info)
        return
    with tarfile.open(archive, "r|*") as packed:
        for member in packed:
            if hasattr(tarfile, "data_filter"):  # since Python 3.11.4; what follows refuses the same without it
                tarfile.data_filter(member, str(making))
            if member.isdir():
                continue
            stream = packed.extractfile(member) if member.isreg() else None
            if stream is None:
                raise ArchiveRefused("archive: found a link or device in it, expected files.")
            yield _checked(member.name), stream


def _checked(name: str) -> str:
    name = name.removeprefix("./")
    if not is_safe(name):
        raise ArchiveRefused("archive: found a path in it that leads elsewhere.")
    return name


def _move(making: Path, target: Path) -> None:
    for parent, _, names in os.walk(making):
        place = target / Path(parent).relative_to(making)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            os.replace(Path(parent) / name, place / name)
