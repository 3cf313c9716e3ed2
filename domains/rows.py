"""The rows of a manifest, by columns: a million of them in a few hundred megabytes.

As objects of their own they take a kilobyte each, for paths that begin alike and cells that say the same; here each
text is kept once, and a row is made when it is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from domains.sample import ManifestRow

MOST_SHARED = 4096
"""Different texts that are remembered, so that cells which say the same are one object: labels, sources, splits. Names
that occur once would take more to remember than to keep twice."""


class Rows(Sequence[ManifestRow]):
    """Rows whose files lie below one folder. Rows are added at the end, and otherwise do not change."""

    def __init__(self, folder: str, within: Path | None) -> None:
        """within: what every row's links may not leave."""
        self._folder, self._within = folder, within
        self._names: list[str] = []
        self._masks: list[str] = []
        self._columns: dict[str, list[str]] = {"key": self._names, "group": [], "split": [], "source": []}
        self._cells: dict[str, list[str]] = {}
        self._texts: dict[str, str] = {}

    def append(self, row: ManifestRow) -> None:
        """Add a row whose key is its path below the folder, and which has the columns of those before it."""
        for name in row.columns if not self._names else ():
            self._cells[name] = []
        self._names.append(row.key)
        self._masks.append(str(row.mask_path or "").removeprefix(self._folder.rstrip("/") + "/"))
        for name in ("group", "split", "source"):
            self._columns[name].append(self._once(getattr(row, name)))
        for name, cells in self._cells.items():
            cells.append(self._once(row.columns[name]))

    def _once(self, text: str) -> str:
        if len(self._texts) < MOST_SHARED:
            return self._texts.setdefault(text, text)
        return self._texts.get(text, text)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, i: int) -> ManifestRow: ...
    @overload
    def __getitem__(self, i: slice) -> list[ManifestRow]: ...
    def __getitem__(self, i: int | slice) -> ManifestRow | list[ManifestRow]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        key, group, split, source = (column[i] for column in self._columns.values())
        return ManifestRow(
            Path(self._folder, self._names[i]), key, group, split, source,
            mask_path=Path(self._folder, self._masks[i]) if self._masks[i] else None,
            columns={name: cells[i] for name, cells in self._cells.items()}, within=self._within)

    def __iter__(self) -> Iterator[ManifestRow]:
        return (self[i] for i in range(len(self)))

    def column(self, name: str) -> list[str]:
        """See `column_of`."""
        return self._columns[name]

    def cells(self, name: str) -> list[str]:
        """See `cells_of`."""
        return self._cells.get(name) or [""] * len(self)

    def masks(self) -> list[str]:
        """See `masks_of`."""
        return self._masks

    def changed(self, **columns: list[str]) -> Rows:
        """The same files with other keys, groups or splits; all else is shared with these."""
        other = Rows(self._folder, self._within)
        other._names, other._masks, other._cells = self._names, self._masks, self._cells
        other._columns = {**self._columns, **columns}
        return other


def column_of(rows: Sequence[ManifestRow], name: str) -> Sequence[str]:
    """`key`, `group`, `split` or `source` of all rows, without a row being made. Not to be written to."""
    return rows.column(name) if isinstance(rows, Rows) else [getattr(row, name) for row in rows]


def masks_of(rows: Sequence[ManifestRow]) -> list[bool]:
    """Whether each row names a mask."""
    return [bool(mask) for mask in (rows.masks() if isinstance(rows, Rows) else [row.mask_path for row in rows])]


def cells_of(rows: Sequence[ManifestRow], name: str) -> Sequence[str]:
    """The same of another column of the manifest; empty texts where there is no such column."""
    return rows.cells(name) if isinstance(rows, Rows) else [row.columns.get(name, "") for row in rows]


def changed(rows: Sequence[ManifestRow], **columns: list[str]) -> Sequence[ManifestRow]:
    """Rows with other texts in `key`, `group`, `split` or `source`: one for each."""
    if isinstance(rows, Rows):
        return rows.changed(**columns)
    made = list(rows)
    for name, column in columns.items():
        made = [dataclasses.replace(row, **{name: text}) for row, text in zip(made, column, strict=True)]  # type: ignore[arg-type]
    return made
