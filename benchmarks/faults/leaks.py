"""Leaks that were planted across splits, and how many are found: `python -m benchmarks.faults.leaks [SHARE]`.

Three hundred with a bar: 100 patients cut by a manifest, 100 tiles on ground that another split has too, 100 films of
another split stored again. Beside them, without one: CT volumes resampled, multispectral tiles stored again, surfaces
sampled anew, and copies that were turned over or cropped. What is reported and was not planted is counted as well.
Real films, volumes, tiles and meshes are taken from the folder in LACUNA_SHARED. SHARE makes it smaller: 0.1.

Every planted leak goes twice through the code that ingest runs: once with splits that the manifest gives (is it
reported?), once with splits that are ours to choose (do both sides end in one?).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.faults import planted_copies as copies
from benchmarks.faults.planted_copies import Alteration
from domains import contract as contracts
from domains import duplicates, joining
from domains.integrity import cut_group_faults
from domains.manifest import read_manifest
from domains.sample import ManifestRow, Piece, Refused
from domains.splits import GroupCut, Splits, assign, cut_groups
from domains.store import Prepared, Writer, open_prepared
from pipelines.ingest import DataRun, domain_reader
from pipelines.settings import build

REAL = Path(__file__).parents[2] / "examples/real/params.yaml"


@dataclass(frozen=True)
class Found:
    """Of one sort of leak."""

    planted: int
    reported: int
    joined: int
    """How many ended in one split, where the split was ours to choose."""
    false: int
    """Pairs reported that were not planted."""
    clean: int
    """Samples that nothing was planted on."""

    def line(self, what: str) -> str:
        """As printed."""
        return (f"{what:<58} {self.reported:>4} of {self.planted:<4} reported, {self.joined:>4} joined, "
                f"{self.false:>3} false among {self.clean} clean")


def main(share: float) -> int:
    """Print a line per sort; 1 when a leak with a bar was missed."""
    num = max(1, round(100 * share))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        with_bar = [("patients cut by a manifest", patients(num)), ("tiles on the same ground", tiles(num, folder))]
        lines = [found.line(what) for what, found in with_bar]
        print("\n".join(lines), flush=True)
        shared = os.environ.get("LACUNA_SHARED", "")
        if not shared:
            print("LACUNA_SHARED is not set: no real files, the re-encoded duplicates are left out")
            return 1
        for kind, told, beyond in KINDS:
            real = Real(kind, Path(shared), folder)
            found = real.plant(told, num if kind == "films" else max(1, num // 2))
            print(found.line(f"{kind}: {', '.join(told)}"[:58]), flush=True)
            with_bar += [(kind, found)] if kind == "films" else []
            for what, alteration in {**told, **beyond}.items():
                one = real.plant({what: alteration}, max(1, num // 4))
                print("  " + one.line(what), flush=True)
    missed = [what for what, found in with_bar if (found.reported, found.joined) != (found.planted, found.planted)]
    total = sum(found.planted for _, found in with_bar)
    reported = sum(found.reported for _, found in with_bar)
    print(f"with a bar: {reported} of {total} reported; missed in: {missed or 'none'}")
    return 1 if missed else 0


# ---- patients ----

def patients(num: int) -> Found:
    """`num` patients of ten times as many, with files on both sides of a given split."""
    rng = np.random.default_rng(0)
    splits = ("train", "val", "test")
    rows = []
    for patient in range(10 * num):
        own = splits[rng.integers(3)]
        for film in range(int(rng.integers(2, 6))):
            other = splits[(splits.index(own) + 1) % 3] if patient < num and film == 1 else own
            rows.append(ManifestRow(Path(), f"{patient}-{film}", f"patient {patient}", other, ""))
    cut = cut_groups([row.group for row in rows], [row.split for row in rows])
    planted = {f"patient {patient}" for patient in range(num)}
    try:
        assign(rows, Splits(), {}, {})
        refused = False
    except GroupCut as error:
        refused = f"found {len(cut)} groups" in str(error)
    with tempfile.TemporaryDirectory() as folder:
        prepared = stored(Path(folder), [(row, Piece(rng.integers(0, 255, (1, 8, 8), np.uint8))) for row in rows])
        seen = any(f"found {len(cut)} groups" in fault for fault in cut_group_faults(prepared))
    reported = len(planted & set(cut)) if refused and seen else 0
    free = [ManifestRow(row.path, row.key, row.group, "", "") for row in rows]
    divided = assign(free, Splits(), {}, {})
    left = set(cut_groups([row.group for row in divided], [row.split for row in divided]))
    return Found(num, reported, num - len(left & planted), len(set(cut) - planted), 9 * num)


# ---- ground ----

def tiles(num: int, folder: Path) -> Found:
    """GeoTIFFs on a grid in training, and `num` in test that share from 2 to 98 % of a tile with one of them; as many
    again only touch. All random inside, so that nothing but the ground tells."""
    import rasterio
    from rasterio.transform import from_origin
    rng = np.random.default_rng(1)
    size, metres = 32, 10
    width = size * metres
    domain = domain_reader("satellite")
    settings = build(domain.settings, {"kind": "multispectral", "sensor": "sentinel2", "bands": ["B2", "B3"],
                                       "bands_column": "bands", "size": [size, size]}, "read")
    grid = [(x * width, y * width) for x in range(20) for y in range(max(1, num // 5))]
    at = [(x, y, "train") for x, y in grid]
    for n in range(num):
        x, y = grid[n * len(grid) // num]
        shift = round(rng.uniform(0.02, 0.95) * size) * metres
        at.append((x + shift, y, "test") if n % 2 else (x, y + shift, "test"))
    at += [(-width, y * width, "test") for y in range(max(1, num // 5))]  # only touch the first column
    rows = []
    for n, (x, y, split) in enumerate(at):
        path = folder / f"tile{n}.tif"
        with rasterio.open(path, "w", driver="GTiff", dtype="uint16", count=2, height=size, width=size,
                           crs="EPSG:32633", transform=from_origin(500_000 + x, 5_000_000 - y, metres, metres)) as out:
            out.write(rng.integers(200, 4000, (2, size, size)).astype(np.uint16))
        rows.append(ManifestRow(path, path.name, f"scene {n}", split, "", columns={"bands": "B2,B3"}))
    made = [(row, piece) for row in rows for piece in domain.ingest.read(row, settings)]
    prepared = stored(folder / "tiles", made, domain.ingest.contract(settings))
    return _count(prepared, [row for row, _ in made], [{len(grid) + n} for n in range(num)], by_test_row=True)


# ---- copies of real files ----

@dataclass(frozen=True)
class Kind:
    """Which real files, and how they are read."""

    run: str
    domain: str
    most: int
    """Files that are taken, one per group."""
    sources: tuple[str, ...] = ()


OF_KIND = {"films": Kind("cxr", "medical", 900), "CT": Kind("lidc", "medical", 200),
           "tiles": Kind("settlement", "satellite", 600, ("s2_l2a_12band_hsg",)),
           "surfaces": Kind("shapes", "pointcloud", 400, ("princeton_shape_benchmark",))}
CHANGES: dict[str, dict[str, Any]] = {"CT": {"cube": None, "size": [32, 32, 32]},
                                      "surfaces": {"points_per_sample": 4096}}
"""Settings beside those of examples/real: whole volumes, and as many points as near surfaces can be told by."""
KINDS: tuple[tuple[str, Mapping[str, Alteration], Mapping[str, Alteration]], ...] = (
    ("films", copies.FILMS, copies.FILMS_BEYOND), ("CT", copies.CT, copies.CT_BEYOND),
    ("tiles", copies.TILES, copies.TILES_BEYOND), ("surfaces", copies.CLOUDS, copies.CLOUDS_BEYOND))


class Real:
    """Real files of one kind, read once, of which altered copies are planted in the test split."""

    def __init__(self, kind: str, shared: Path, folder: Path) -> None:
        own = OF_KIND[kind]
        raw = yaml.safe_load(REAL.read_text())["ingest"][own.run]
        manifest = f"data/{Path(raw['files']['manifest']).relative_to('source')}"
        files = {**raw["files"], "folder": "data", "manifest": manifest, "mask_column": ""}
        files |= {"sources": list(own.sources)} if own.sources else {}
        read = {name: value for name, value in {**raw["read"], **CHANGES.get(kind, {})}.items() if value is not None}
        run = build(DataRun, {"domain": own.domain, "files": files, "read": read}, kind)
        self.domain = domain_reader(own.domain)
        self.settings = build(self.domain.settings, run.read, "read")
        self.folder = folder
        rows = read_manifest(run.files, self.domain.ingest.suffixes(self.settings), shared).rows
        one_each = list({row.group: row for row in rows}.values())
        picks = np.random.default_rng(0).permutation(len(one_each))[:own.most]
        self.read = list(self._pieces(one_each[i] for i in sorted(picks)))

    def _pieces(self, rows: Iterator[ManifestRow]) -> Iterator[tuple[ManifestRow, Piece]]:
        for row in rows:
            try:
                yield row, self.domain.ingest.read(row, self.settings)[0]
            except Refused:
                continue  # a real file that the reader does not take is no part of this

    def plant(self, alterations: Mapping[str, Alteration], num: int) -> Found:
        """Two thirds of the files in training, the others and `num` altered copies of the first in test."""
        rng = np.random.default_rng(2)
        kinds, made = list(alterations.values()), []
        for n, (row, piece) in enumerate(self.read):
            split = "train" if n % 3 or n < num else "test"
            made.append((ManifestRow(row.path, row.key, f"real {n}", split, row.source), piece))
        for n in range(num):
            row = self.read[n][0]
            path = kinds[n % len(kinds)](row.path, self.folder / f"copy{n}", rng)
            copy = ManifestRow(path, f"copy {n}", f"copy {n}", "test", row.source, columns=row.columns)
            made.append((copy, self.domain.ingest.read(copy, self.settings)[0]))
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            prepared = stored(Path(folder), made, self.domain.ingest.contract(self.settings))
            first = len(self.read)
            return _count(prepared, [row for row, _ in made], [{n, first + n} for n in range(num)])


# ---- counting ----

def stored(folder: Path, made: Sequence[tuple[ManifestRow, Piece]],
           contract: contracts.Contract | None = None) -> Prepared:
    """Prepared data of these pieces."""
    folder.mkdir(exist_ok=True)
    contract = contract or contracts.Contract("medical", "xray", (contracts.Channel("grey", "grey"),), "uint8", (8, 8))
    writer = Writer(folder, contract.dtype)
    for row, piece in made:
        writer.add(piece, row)
    writer.close()
    contracts.save(contract, folder / "contract.json")
    return open_prepared(folder, check_reads=False)


def _count(prepared: Prepared, rows: Sequence[ManifestRow], planted: Sequence[set[int]],
           by_test_row: bool = False) -> Found:
    """Reported under the given splits, and ending in one split under ours.

    Args:
        planted: the rows of each leak: a pair, or, with `by_test_row`, the test row alone.
    """
    leaks = duplicates.find(prepared)
    pairs = [{leak.a, leak.b} for leak in leaks]
    ours = [pair for one in planted for pair in pairs if (one <= pair if by_test_row else one == pair)]
    reported = sum(any(one <= pair for pair in pairs) for one in planted)
    groups = [row.group for row in rows]
    free = [ManifestRow(row.path, row.key, row.group, "", row.source) for row in rows]
    joined = joining.join(prepared, groups, np.ones(len(rows), bool), duplicates.NEAR[prepared.contract.kind])
    units = [joined.units.get(group, group) for group in groups]
    divided = {row.group: row.split for row in assign(free, Splits(), {}, {}, joined.units)}
    if by_test_row:
        partners = {row: next((pair - one for one in planted for pair in pairs if row in pair and one <= pair), set())
                    for one in planted for row in one}
        kept = sum(any(divided[groups[row]] == divided[groups[other]] for other in others)
                   for row, others in partners.items() if others)
    else:
        kept = sum(units[min(pair)] == units[max(pair)] for pair in planted)
    return Found(len(planted), reported, kept, len(pairs) - len(ours), len(rows) - len(set().union(*planted)))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0))
