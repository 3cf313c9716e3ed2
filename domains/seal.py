"""The seal of a folder: sha256 of every file in it, so that later damage is seen and named.

It is a plain text file that `sha256sum --check SHA256SUMS` reads too. Its last line is the hash of what stands above
it, so that damage of the seal itself is seen as well. It finds accidents; who wants to deceive would write a new one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from domains.publish import write_text

SEAL = "SHA256SUMS"
_LAST = "# seal "
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")

Progress = Callable[[Iterable[tuple[str, str]], int], Iterable[tuple[str, str]]]
"""Wraps an iteration over (name, hash) in a progress bar, given its number of files."""


class DamagedData(ValueError):
    """Files on disk are not what was written."""


@dataclass(frozen=True)
class Seal:
    """What a folder held when it was sealed."""

    hashes: dict[str, str]
    """sha256 of every file, by its path relative to the folder."""
    digest: str
    """What the folder's content is called in checkpoints that were made from it; see `Prepared.digest`."""


def write(folder: Path, digest: str = "", progress: Progress | None = None,
          known: Mapping[str, str] | None = None) -> None:
    """Hash every file of a folder that is complete, and write the seal into it.

    Args:
        known: sha256 of files that the caller has just hashed, by name: weights are large.
    """
    known = known or {}
    names = files(folder)
    left = [name for name in names if name not in known]
    hashed = hash_files(folder, left)
    hashes = {**dict(progress(hashed, len(left)) if progress else hashed), **known}
    lines = [f"{hashes[name]}  {name}\n" for name in names]
    text = "".join([f"# every file here; `lacuna verify` compares, and so does `sha256sum --check {SEAL}`\n",
                    f"# digest {digest}\n", *lines])
    write_text(folder / SEAL, f"{text}{_LAST}{_sha256(text)}\n")


def read(folder: Path) -> Seal | None:
    """The seal of a folder, or None where there is none.

    Raises:
        DamagedData: the seal itself is damaged.
    """
    path = folder / SEAL
    if not path.is_file():
        return None
    text, _, last = path.read_bytes().decode("utf-8", errors="replace").rpartition(_LAST)
    if last != f"{_sha256(text)}\n":
        raise DamagedData(f"{SEAL} in {folder}: found a text whose hash is not that of its last line, expected the "
                          "seal that was written. It is damaged. Remedy: copy the folder again from where it is whole, "
                          "or make it again.")
    hashes = {match[2]: match[1] for match in map(_LINE.fullmatch, text.splitlines()) if match}
    return Seal(hashes, next((line.removeprefix("# digest ") for line in text.splitlines()
                              if line.startswith("# digest ")), ""))


def files(folder: Path) -> list[str]:
    """The names of a folder's files, without the seal's own, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                  if path.is_file() and path.name != SEAL)


def hash_files(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, sha256) of files, in order; several at once, since hashing leaves the interpreter free."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from zip(names, pool.map(lambda name: hash_file(folder / name), names), strict=True)


def hash_file(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(folder: Path, seal: Seal, names: Iterable[str] | None = None,
            progress: Progress | None = None) -> list[str]:
    """Sentences on files that are not what was sealed: other bytes, missing.

    Args:
        names: which of the sealed files to look at. None: all.
    """
    wanted = set(seal.hashes if names is None else names)
    names = [name for name in seal.hashes if name in wanted]
    there = [name for name in names if (folder / name).is_file()]
    hashed = hash_files(folder, there)
    other = [name for name, found in (progress(hashed, len(there)) if progress else hashed)
             if found != seal.hashes[name]]
    return [*(f"{name}: found other bytes than were sealed" for name in other),
            *(f"{name}: found no such file, expected the one that was sealed" for name in names if name not in there)]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()
