"""Series of The Cancer Imaging Archive by its REST interface (NBIA, version 1), each checked against its md5 sums."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines.intake.archives import ArchiveRefused, unpack
from pipelines.intake.download import fetch
from pipelines.intake.transfer import NotFetched, Transfer, Wanted

BASE = "https://services.cancerimagingarchive.net/nbia-api/services/v1"
SUMS = "md5hashes.csv"


def fetch_collection(collection: str, modality: str, out: Path, how: Transfer, base: str = "",
                     bar: Callable[[Iterable[str], int], Iterable[str]] = lambda items, _: items) -> list[str]:
    """Fetch every series of a collection to out/<collection>/<patient>/<study>/<series>/. A series that is there is not
    fetched again. Returns sentences on those that failed.

    Raises:
        NotFetched: the list of series did not come.
    """
    base = base.rstrip("/") or BASE
    listing = out / ".fetched/series.json"
    query = f"Collection={quote(collection)}&Modality={quote(modality)}&format=json"
    fetch(Wanted(f"{base}/getSeries?{query}", listing), how)
    series = [one for one in json.loads(listing.read_text(encoding="utf-8")) if _is_plain(one)]

    def get(one: dict[str, Any]) -> str:
        target = out / collection / one["PatientID"] / one["StudyInstanceUID"] / one["SeriesInstanceUID"]
        try:
            if not target.is_dir():
                _fetch_series(one["SeriesInstanceUID"], target, base, how, out / ".fetched")
        except (NotFetched, ArchiveRefused) as fault:
            return f"{target.relative_to(out)}: {fault}"
        return ""

    with ThreadPoolExecutor(how.parallel) as pool:
        return [failed for failed in bar(pool.map(get, series), len(series)) if failed]


def _is_plain(one: Any) -> bool:
    """Whether a series' names are what they must be to become folders."""
    uids = (str(one.get(name, "")) for name in ("StudyInstanceUID", "SeriesInstanceUID"))
    return all(re.fullmatch(r"[0-9]+(\.[0-9]+)*", uid) for uid in uids) and bool(
        re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", str(one.get("PatientID", ""))))


def _fetch_series(uid: str, target: Path, base: str, how: Transfer, work: Path) -> None:
    packed, making = work / f"{uid}.zip", work / uid
    fetch(Wanted(f"{base}/getImageWithMD5Hash?SeriesInstanceUID={uid}", packed), how)
    shutil.rmtree(making, ignore_errors=True)
    try:
        unpack(packed, "zip", making, int(how.max_file_gb * 2**30))
        _check(making)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(making, target)
    finally:
        packed.unlink(missing_ok=True)
        shutil.rmtree(making, ignore_errors=True)


def _check(folder: Path) -> None:
    """Compare every file with the list of sums that came with it, and take the list away."""
    listed = folder / SUMS
    if not listed.is_file():
        raise NotFetched("checksum: the archive sent no list of sums")
    with listed.open(newline="", encoding="utf-8") as file:
        sums = {row[0].strip(): row[1].strip().lower() for row in csv.reader(file) if len(row) == 2}
    listed.unlink()
    files = [path for path in folder.iterdir() if path.suffix == ".dcm"]
    for path in files:
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if found != sums.get(path.name, sums.get(path.stem)):
            raise NotFetched("checksum: found other bytes than md5 says")
    promised = sum(re.fullmatch("[0-9a-f]{32}", value) is not None for value in sums.values())
    if len(files) != promised or not files:
        raise NotFetched(f"download: found {len(files)} files of a series of {promised}")
