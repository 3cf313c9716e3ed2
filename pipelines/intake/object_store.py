"""Files of object stores, through fsspec."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipelines.intake.transfer import Again, NotFetched, Opened, Transfer, Wanted

RANGE = 8 * 2**20
"""Bytes asked of an object store at once: large enough that requests cost little, small enough to go on from."""
STORES = ("s3", "gs", "az", "abfs")
"""Object stores that fsspec may be asked for. Anything else it knows, such as local files, ssh or zip, is refused."""


def store(url: str) -> Any:
    """fsspec's file system for a URL. Credentials and endpoints come from where fsspec and the store's own library look
    for them: the environment and their files in the home folder.

    Raises:
        NotFetched: a scheme that is not let in.
        ImportError: the library is missing; the text names the extra.
    """
    scheme = urlsplit(url).scheme
    if scheme not in STORES:
        raise NotFetched(f"files.folder: found a URL that begins with {scheme}:, expected https or one of "
                         f"{', '.join(STORES)}.")
    try:
        import fsspec
        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise ImportError(f"{scheme}:// needs a library that is not here ({error.name}). Remedy: pip install "
                          f"'lacuna[remote]' for s3; gs and az need gcsfs or adlfs.") from error


@dataclass
class _Ranges:
    files: Any
    path: str
    start: int
    etag: str
    size: int | None
    look_again: bool

    def blocks(self) -> Iterator[bytes]:
        end = self.size or 0
        for begin in range(self.start, end, RANGE):
            yield _asked(self.files.cat_file, self.path, start=begin, end=min(end, begin + RANGE))
        if self.look_again and _tag(_asked(self.files.info, self.path, refresh=True)) != self.etag:
            raise Again("the file changed while it was fetched")


def open_at(wanted: Wanted, begun: int, tag: str, how: Transfer) -> Opened | None:
    """The file from byte `begun` on if `tag` is its version, else all of it. Raises NotFetched and Again."""
    files = store(wanted.url)
    if wanted.etag and wanted.size is not None:
        etag, size = wanted.etag, wanted.size
    else:
        info = _asked(files.info, wanted.url, refresh=True)
        etag, size = _tag(info), int(info["size"])
    # A small file whose sum is known needs one request; its bytes will tell whether it was the version that was meant.
    known = wanted.sha256 or wanted.md5 or (how.etag == "md5" and is_md5(etag))
    start = begun if tag and tag == etag and begun <= size else 0
    return _Ranges(files, wanted.url, start, etag, size, look_again=not known or size > RANGE)


def is_md5(tag: str) -> bool:
    """Whether a store's tag looks like the md5 of a file that was written in one piece."""
    return re.fullmatch('"?[0-9a-f]{32}"?', tag) is not None


def _tag(info: dict[str, Any]) -> str:
    return str(info.get("ETag") or info.get("etag") or info.get("content_md5") or info.get("mtime") or "")


def _asked(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Ask a store. Its errors quote names and keys: only their kind is passed on."""
    try:
        return call(*arguments, **named)
    except FileNotFoundError:
        raise NotFetched("download: no such file in the store") from None
    except PermissionError:
        raise NotFetched("download: the store refuses access") from None
    except Exception as fault:
        raise Again(f"the store failed ({type(fault).__name__})") from None


def listing(url: str) -> dict[str, tuple[int, str]]:
    """(bytes, tag) of every file below a prefix, by its path relative to it.

    Raises:
        NotFetched: nothing there, or no access.
    """
    files = store(url)
    try:
        base = files._strip_protocol(url).rstrip("/") + "/"
        found = _asked(files.find, url.rstrip("/") + "/", detail=True)
    except Again as fault:
        raise NotFetched(f"files.folder: could not be listed: {fault}") from fault
    return {path[len(base):]: (int(info["size"]), _tag(info)) for path, info in found.items()
            if path.startswith(base) and info.get("type", "file") == "file"}
