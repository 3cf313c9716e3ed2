"""What is known of a named public data set, and how its folder becomes rows of a manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Row = dict[str, str]
"""path, group, and where there are some split and label columns; an empty text is unknown."""
Table = Callable[[Path], list[Row]]
"""Reads a CSV or Parquet file of the data set; lists become texts joined by "|"."""


@dataclass(frozen=True)
class Archive:
    """One file to fetch."""

    name: str
    """What it is called here."""
    url: str
    kind: Literal["zip", "tar"]
    md5: str = ""
    """As its publisher gives it. Empty: unknown; nothing is invented."""
    size: int | None = None
    """Bytes, where they are known."""
    hosts: tuple[str, ...] = ()
    """Hosts besides the URL's own that its server may send us to."""


@dataclass(frozen=True)
class PublicSet:
    """A named public data set."""

    name: str
    domain: Literal["medical", "satellite", "pointcloud"]
    about: str
    """What it holds, in a line."""
    licence: str
    """As far as known; the publisher's page is what counts."""
    home: str
    """The publisher's page."""
    layout: Callable[[Path, Table], Iterator[Row]]
    """Rows of the manifest, from the extracted folder, sorted."""
    read: str
    """The reader's settings as YAML."""
    archives: tuple[Archive, ...] = ()
    """What is fetched."""
    collection: str = ""
    """A collection of The Cancer Imaging Archive, fetched series by series."""
    by_hand: str = ""
    """What to do where a login or a form stands before the files. Empty: nothing."""
    clouds_in_hdf5: str = ""
    """A pattern of HDF5 files whose clouds are written as .npy files before the layout is looked at."""
    labels: Literal["single_label", "multi_label", ""] = "single_label"
    """Kind of the task. single_label: column `label`. multi_label: every column beyond path, group, split, source."""
    split_from_train: bool = False
    """The publisher gives training and test rows: validation rows are drawn from the former alone."""
    columns: str = ""
    """More keys of `files`, as YAML."""


class NotLikeIt(ValueError):
    """The folder is not laid out as the publisher's. The text says what was looked for."""


def expect(found: object, what: str, folder: Path) -> None:
    """Raise NotLikeIt where something that the layout needs is missing."""
    if not found:
        raise NotLikeIt(f"found no {what} in {folder}, expected it as its publisher lays it out.")
