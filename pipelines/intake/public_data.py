"""`lacuna fetch NAME`: a named public data set to a folder with a manifest and the paragraph to start from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from domains.medical.public import SETS as MEDICAL
from domains.pointcloud.public import SETS as POINTCLOUD
from domains.public import Archive, NotLikeIt, PublicSet, Row
from domains.publish import write_bytes, write_text
from domains.quarantine import Limits, Reader, read_all
from domains.sample import ManifestRow
from domains.satellite.public import SETS as SATELLITE
from pipelines.intake.archives import unpack
from pipelines.intake.cancer_archive import fetch_collection
from pipelines.intake.download import fetch
from pipelines.intake.transfer import Transfer, Wanted

SETS = {one.name: one for one in (*MEDICAL, *SATELLITE, *POINTCLOUD)}
OWN = ("path", "group", "split", "source", "view")
"""Columns that are no labels."""
Bar = Callable[[Iterable[Any], int, str], Iterable[Any]]


def listing() -> str:
    """The named data sets, with what is fetched and what is by hand."""
    lines = []
    for one in SETS.values():
        fetched = "fetched, more by hand" if one.by_hand else "fetched"
        how = fetched if one.archives or one.collection else "by hand"
        sums = sum(bool(archive.md5) for archive in one.archives)
        known = (f"md5 of {sums} of {len(one.archives)} files known" if one.archives else
                 "md5 sums from the archive" if one.collection else "md5 unknown")
        lines.append(f"{one.name:13} {one.domain}: {one.about}\n{'':13} {how}; {known}; licence: {one.licence}; "
                     f"{one.home}")
    return "\n".join(lines)


def fetch_named(name: str, out: Path, mirror: str = "", download: bool = True, how: Transfer | None = None,
                bar: Bar = lambda items, total, what: items) -> tuple[str, bool]:
    """Fetch what can be fetched, unpack it, write manifest.csv of what is there. Returns what was done with the
    params.yaml paragraph, and whether all came; what did not is told with what to do.

    Args:
        mirror: an address that holds the same archives under their names (for The Cancer Imaging Archive: its REST
            interface elsewhere).
        download: False takes the folder as it is.

    Raises:
        ValueError: an unknown name; a folder that is not laid out so, with the steps that are left to do by hand.
        NotFetched: an archive did not come, or came with other bytes than its md5 says.
        ArchiveRefused: an archive that would write elsewhere.
    """
    if name not in SETS:
        raise ValueError(f"fetch: found {name}, expected one of {', '.join(SETS)}, or an address. `lacuna fetch` alone "
                         "lists them.")
    chosen, how = SETS[name], how or Transfer(max_file_gb=200.0)
    said: list[str] = []
    lacking: list[str] = []
    if download:
        for archive in chosen.archives:
            said.append(_fetch_archive(archive, out, mirror, how))
        if chosen.collection:
            failed = fetch_collection(chosen.collection, "CT", out, how, mirror,
                                      lambda items, total: bar(items, total, f"fetch {name}"))
            if failed:
                lacking += [f"NOT FETCHED: {len(failed)} series, which the manifest lacks. Remedy: the same command "
                            "fetches them again, and nothing else", *failed[:10]]
    if chosen.clouds_in_hdf5 and out.is_dir():
        refused = _write_clouds(out, chosen.clouds_in_hdf5)
        if refused:
            lacking += [f"REFUSED: {len(refused)} files, whose clouds the manifest lacks. Remedy: get them again from "
                        f"{chosen.home} and repeat the command, or remove them if they are not wanted", *refused[:10]]
    try:
        rows = list(chosen.layout(out, _table))
    except NotLikeIt as fault:
        steps = f" Remedy: {chosen.by_hand} Then repeat the command." if chosen.by_hand else ""
        raise ValueError(f"fetch {name}: {fault}{steps} ({chosen.home})") from fault
    write_text(out / "manifest.csv", _manifest(rows))
    said.append(f"{len(rows)} rows: {out / 'manifest.csv'}. Licence: {chosen.licence}.")
    return "\n".join([*lacking, *said, "For params.yaml:", "", paragraph(chosen, out, rows)]), not lacking


def _fetch_archive(archive: Archive, out: Path, mirror: str, how: Transfer) -> str:
    """Fetch and unpack once; a mark beside says that it was done."""
    work = out / ".fetched"
    done = work / f"{archive.name}.json"
    if done.is_file():
        return f"{archive.name}: was here"
    packed = work / archive.name
    url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
    got = fetch(Wanted(url, packed, md5=archive.md5, size=archive.size, hosts=() if mirror else archive.hosts), how)
    files = unpack(packed, archive.kind, out, int(how.max_total_gb * 2**30))
    packed.unlink()
    write_text(done, json.dumps({"url": url, "sha256": got.sha256, "md5": got.md5, "size": got.size}) + "\n")
    checked = "md5 as published" if archive.md5 else f"sha256 {got.sha256} (nothing published to compare with)"
    return f"{archive.name}: {files} files, {checked}"


def _write_clouds(out: Path, pattern: str) -> list[str]:
    """HDF5 files, read in limited processes, to clouds/<variant>/<train or test>/<class>_<number>.npy. Returns
    sentences on those that were refused."""
    refused = []
    files = sorted(path for path in out.rglob(pattern) if path.is_file())
    rows = [ManifestRow(path, path.relative_to(out).as_posix(), "", "", "") for path in files]
    from domains.pointcloud.hdf5_clouds import Clouds
    numbers = [count() for _ in rows]
    for outcome in read_all(rows, Reader("domains.pointcloud.hdf5_clouds", Clouds()), Limits()):
        if outcome.reason:
            refused.append(f"{outcome.row.key}: {outcome.reason}")
        part, _, rest = outcome.row.path.stem.partition("_")
        folder = out / "clouds" / f"{outcome.row.path.parent.name}.{rest}" / ("test" if part == "test" else "train")
        for piece in outcome.pieces:
            content = io.BytesIO()
            np.save(content, piece.values, allow_pickle=False)
            write_bytes(folder / f"{piece.facts['label']}_{next(numbers[outcome.index]):05d}.npy", content.getvalue())
    return refused


def _table(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        lines = pq.read_table(path).to_pylist()
        return [{name: "|".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
                 for name, value in line.items()} for line in lines]
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [{name: text or "" for name, text in line.items() if name} for line in csv.DictReader(file)]


def _manifest(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def paragraph(chosen: PublicSet, out: Path, rows: list[Row]) -> str:
    """The run of `ingest` that reads the folder, as YAML."""
    more = f", {chosen.columns}" if chosen.columns else ""
    lines = ["ingest:", f"  {chosen.name}:", f"    domain: {chosen.domain}",
             f"    files: {{folder: {json.dumps(str(out))}, manifest: {json.dumps(str(out / 'manifest.csv'))}{more}}}",
             f"    read: {chosen.read}"]
    columns = ["label"] if chosen.labels == "single_label" else [name for name in rows[0] if name not in OWN]
    if chosen.labels and columns:
        lines += ["    tasks:", f"      {chosen.name}: {{kind: {chosen.labels}, columns: {json.dumps(columns)}}}"]
    official = {row.get("split", "") for row in rows}
    if chosen.split_from_train and "test" in official:
        lines.append("    splits: {seed: 0, val: 0.1, test: 0.0}  # test rows are the publisher's")
    return "\n".join(lines) + "\n"
