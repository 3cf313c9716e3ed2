"""What is asked of a download, what comes of it, and why it may fail."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import unquote

BLOCK = 2**20
"""Bytes read at once."""


class NotFetched(OSError):
    """A file could not be had. The text names no file, host or header, so that it may stand in quarantine.csv."""


class Again(Exception):
    """Worth another try; the text says why."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True)
class Transfer:
    """How files are fetched."""

    parallel: int = 8
    """Files at once."""
    retries: int = 4
    """Further tries after a broken connection, a time-out or a busy server; waits double, from one second."""
    seconds: int = 60
    """How long a connection may stay silent."""
    max_file_gb: float = 16.0
    """A larger file is refused, whatever its server says of its size."""
    max_total_gb: float = 1000.0
    """Bytes of one run, in GiB: above it nothing more is fetched."""
    etag: Literal["md5", "opaque"] = "md5"
    """What an object store's tag of a file written in one piece is. opaque: for buckets encrypted with keys of one's
    own (SSE-KMS, SSE-C), whose tags are no checksums."""

    def __post_init__(self) -> None:
        if min(self.parallel, self.seconds) < 1 or self.retries < 0 or min(self.max_file_gb, self.max_total_gb) <= 0:
            raise ValueError(f"remote: found parallel {self.parallel}, seconds {self.seconds}, retries {self.retries}, "
                             f"max_file_gb {self.max_file_gb}, max_total_gb {self.max_total_gb}; expected at least 1, "
                             "1, 0 and more than 0.")


@dataclass(frozen=True)
class Wanted:
    """One file, and what is known of it."""

    url: str
    target: Path
    sha256: str = ""
    md5: str = ""
    etag: str = ""
    """The version that is meant, or that is here already; empty where nobody knows."""
    size: int | None = None
    hosts: tuple[str, ...] = ()
    """Hosts besides the URL's own that redirects may lead to; credentials are never sent there."""


@dataclass(frozen=True)
class Fetched:
    """What came."""

    sha256: str
    md5: str
    size: int
    etag: str = ""
    unchanged: bool = False
    """The server says that the version of `etag` is still the current one; nothing was transferred."""


class Opened(Protocol):
    """Bytes of a file from `start` on."""

    start: int
    etag: str
    size: int | None

    def blocks(self) -> Iterator[bytes]:
        """The bytes, in pieces."""


def is_safe(name: str) -> bool:
    """Whether a remote name is a path below its folder, and stays one after a server has decoded it."""
    decoded = unquote(unquote(name))
    return not any(not part or part in (".", "..") or re.search(r"[\\\x00-\x1f\x7f]|^[a-zA-Z][a-zA-Z0-9+.-]*:$", part)
                   for text in (name, decoded) for part in text.split("/"))
