"""One file from elsewhere to this disk: whole and checked, or a sentence why not."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from domains.publish import sync_folder
from pipelines.intake import https, object_store
from pipelines.intake.transfer import BLOCK, Again, Fetched, NotFetched, Opened, Transfer, Wanted

LONGEST_WAIT = 60.0
"""Seconds between two tries, and what a server may ask for at most."""


def fetch(wanted: Wanted, how: Transfer, count: Callable[[int], None] = lambda _: None) -> Fetched:
    """Fetch one file to `wanted.target`, going on from where an earlier try ended. It is there whole or not at all.

    Args:
        count: called with the number of bytes that came; may raise NotFetched to stop.

    Raises:
        NotFetched: refused, not there, or other bytes than the checksum says.
    """
    open_at = https.open_at if urlsplit(wanted.url).scheme in ("https", "http") else object_store.open_at
    part = wanted.target.with_name(f".{wanted.target.name}.part")
    wanted.target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(how.retries + 1):
        try:
            return _attempt(wanted, part, how, open_at, count)
        except NotFetched:  # what came so far is of no use to another try
            part.unlink(missing_ok=True)
            _tag_file(part).unlink(missing_ok=True)
            raise
        except Again as fault:
            if attempt == how.retries:
                raise NotFetched(f"download: {fault} ({attempt + 1} tries)") from fault
            time.sleep(min(LONGEST_WAIT, max(fault.wait, 2.0**attempt * (0.75 + random.random() / 2))))
    raise AssertionError("the loop returns or raises")


def _attempt(wanted: Wanted, part: Path, how: Transfer, open_at: Callable[..., Opened | None],
             count: Callable[[int], None]) -> Fetched:
    tag_file = _tag_file(part)
    tag = tag_file.read_text() if tag_file.is_file() else ""
    # Without a tag or a checksum nobody could tell whether the rest belongs to the beginning.
    begun = part.stat().st_size if part.is_file() and (tag or wanted.sha256 or wanted.md5) else 0
    opened = open_at(wanted, begun, tag, how)
    if opened is None:
        return Fetched("", "", 0, wanted.etag, unchanged=True)
    limit = int(how.max_file_gb * 2**30)
    if opened.size is not None and opened.size > limit:
        raise NotFetched(f"download: found {opened.size} bytes, expected at most remote.max_file_gb")
    if wanted.size is not None and opened.size is not None and opened.size != wanted.size:
        raise NotFetched(f"download: found {opened.size} bytes, expected {wanted.size}")
    sha, md5, length = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with part.open("r+b" if opened.start else "wb") as file:
        while length < opened.start:
            block = file.read(min(BLOCK, opened.start - length))
            sha.update(block)
            md5.update(block)
            length += len(block)
        file.truncate()
        tag_file.write_text(opened.etag)
        for block in opened.blocks():
            length += len(block)
            if length > limit:
                raise NotFetched("download: found more bytes than remote.max_file_gb allows")
            count(len(block))
            file.write(block)
            sha.update(block)
            md5.update(block)
        file.flush()
        os.fsync(file.fileno())
    if opened.size is not None and length != opened.size:
        raise Again(f"the connection ended after {length} of {opened.size} bytes")
    got = Fetched(sha.hexdigest(), md5.hexdigest(), length, opened.etag)
    _refuse_other_bytes(wanted, got, how)
    tag_file.unlink()
    os.replace(part, wanted.target)
    sync_folder(wanted.target.parent)
    return got


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _refuse_other_bytes(wanted: Wanted, got: Fetched, how: Transfer) -> None:
    tag = got.etag.strip('"')
    stored = urlsplit(wanted.url).scheme in object_store.STORES and object_store.is_md5(tag)
    for name, expected, found in (("sha256", wanted.sha256, got.sha256), ("md5", wanted.md5, got.md5),
                                  ("the store's tag", tag if stored and how.etag == "md5" else "", got.md5)):
        if expected and expected.lower() != found:
            raise NotFetched(f"checksum: found other bytes than {name} says")
