"""Symbolic links beside and below a row's file that lead out of the data folder.

The manifest looks at the path that a row names; a series or a scene is a folder, in which any file may be a link.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from domains.sample import Refused


def refuse_leading_out(paths: Iterable[Path], within: Path | None) -> None:
    """Look at files, and at all that lies below folders, without opening any of it.

    Args:
        within: the folder that links may not leave; None allows all.

    Raises:
        Refused: a link leads elsewhere.
    """
    if within is None:
        return
    links = [link for path in paths for link in _links(path)]
    if not links:  # resolving `within` would cost every file as much as all else here
        return
    inside = os.path.realpath(within)
    leading_out = sum(not _lies_in(os.path.realpath(link), inside) for link in links)
    if leading_out:
        raise Refused(f"links: found {leading_out} that lead out of files.folder, or of the folder that was named, "
                      "expected none. Remedy: put the files themselves there; for links that you trust set "
                      "files.follow_links: true, or name the files.")


def _links(path: Path) -> Iterable[str]:
    """`path`, if it is a link, and every link below it."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # nothing is there: whoever reads it will say so
        return
    if stat.S_ISREG(mode):  # to find that nothing lies below it would cost more than all else here
        return
    if stat.S_ISLNK(mode):
        yield str(path)
    for parent, folders, names in os.walk(path):  # goes into no linked folder
        yield from filter(os.path.islink, (os.path.join(parent, name) for name in (*folders, *names)))


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
