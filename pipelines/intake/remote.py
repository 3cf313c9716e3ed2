"""A data folder that lies elsewhere: files come to a local cache while those before them are read.

The cache is keyed by URL and by the version of each file; what was fetched and checked once is not asked for again.
With `keep: false` a file is removed as soon as it was read, so that the disk holds what is fetched or asked for
ahead: of small files up to some hundreds for each reading process.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import re
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, overload
from urllib.parse import quote, urlsplit

from domains.manifest import Files, folder_line
from domains.outcome import Outcome
from domains.publish import write_bytes, write_text
from domains.quarantine import Limits, Reader
from domains.sample import ManifestRow
from pipelines.intake import object_store
from pipelines.intake.download import fetch
from pipelines.intake.transfer import NotFetched, Transfer, Wanted, is_safe

RECORD, LISTING = "fetched.jsonl", "listing.csv"
AHEAD = 4
"""Rows fetched ahead of the one that is read next, per parallel download."""
_SUM = re.compile(r"([0-9a-fA-F]{32}|[0-9a-fA-F]{64}) [ *](.+)")

Read = Callable[[Sequence[ManifestRow], Reader, Limits], Iterator[Outcome]]
"""Rows to outcomes, in order: `domains.quarantine.read_all`, or the same on several machines."""


@dataclass(frozen=True)
class Remote:
    """What to do where files.folder is a URL."""

    keep: bool = True
    """Keep fetched files in the cache. false: remove each as soon as it was read."""
    cache: str = "data/remote"
    """Where they are kept, relative to the project's root."""
    checksums: str = ""
    """A file of sha256 or md5 sums in the way of `sha256sum`, on this disk or, if there is none, below files.folder.
    It is also taken as the list of what there is, which https servers do not give."""
    sha256_column: str = ""
    """Manifest column that holds sha256 sums."""
    md5_column: str = ""
    """Manifest column that holds md5 sums."""
    transfer: Transfer = dataclasses.field(default_factory=Transfer)
    """How files are fetched: how many at once, tries, limits."""


def is_url(folder: str) -> bool:
    """Whether a folder is an address."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", folder) is not None


def check_url(url: str) -> None:
    """Refuse addresses that must not stand in params.yaml.

    Raises:
        ValueError: another scheme, credentials inside, a query.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http", *object_store.STORES):
        raise ValueError(f"files.folder: found a URL that begins with {parts.scheme}:, expected https or one of "
                         f"{', '.join(object_store.STORES)}.")
    if "@" in parts.netloc or parts.query or parts.fragment or not parts.netloc:
        raise ValueError("files.folder: found a URL with a login, a query or no host, expected scheme://host/path. "
                         "Remedy: credentials come from the environment, ~/.netrc or the store's own files.")


class Source:
    """A folder elsewhere, its place in the cache, and what is known of its files."""

    def __init__(self, files: Files, settings: Remote, root: Path, folder: Path | None = None) -> None:
        check_url(files.folder)
        self.url, self.settings, self.how = files.folder.rstrip("/"), settings, settings.transfer
        self.base = root / settings.cache / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.folder = folder or self.base / "files"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._total = 0
        self._known = self._read_record()
        self.stored = urlsplit(self.url).scheme in object_store.STORES
        self.listed = self._list()
        self.sums = self._read_sums(root)
        self._names = sorted(self.listed or self.sums)
        self.files = dataclasses.replace(files, folder=str(self.folder), manifest=self._manifest(files, root))

    # ---- what there is ----

    def _list(self) -> dict[str, tuple[int, str]]:
        found = object_store.listing(self.url) if self.stored else {}
        safe = {path: known for path, known in found.items() if is_safe(path)}
        if len(safe) < len(found):
            print(f"remote: left out {len(found) - len(safe)} objects whose names are no paths below the prefix")
        for parent in {path.rpartition("/")[0] for path in safe}:  # a row may name a folder
            _make_folder(self.folder, parent)
        return safe

    def _read_sums(self, root: Path) -> dict[str, str]:
        if not self.settings.checksums:
            return {}
        local = root / self.settings.checksums
        place = local if local.is_file() else self._beside(self.settings.checksums, "checksums")
        sums = {}
        for line in place.read_text(encoding="utf-8").splitlines():
            match = _SUM.fullmatch(line)
            if match and is_safe(match[2].removeprefix("./")):
                sums[match[2].removeprefix("./")] = match[1].lower()
        if not sums:
            raise ValueError(f"remote.checksums: found no line with a sum and a path in {self.settings.checksums}, "
                             "expected what sha256sum or md5sum writes.")
        for parent in {path.rpartition("/")[0] for path in sums}:
            _make_folder(self.folder, parent)
        return sums

    def _beside(self, name: str, what: str) -> Path:
        """A file of the folder that is not data, always asked for anew."""
        if not is_safe(name):
            raise ValueError(f"{what}: found {name}, expected a path below files.folder or on this disk.")
        target = self.base / what
        try:
            fetch(Wanted(self._address(name), target), self.how)
        except NotFetched as fault:
            raise ValueError(f"{what}: found no file {name} on this disk, and none came from files.folder ({fault}). "
                             "Remedy: set its path.") from fault
        return target

    def _manifest(self, files: Files, root: Path) -> str:
        if files.manifest and (root / files.manifest).is_file():
            return files.manifest
        if files.manifest:
            name = files.manifest.removeprefix(self.url + "/")
            return str(self._beside(name, "manifest.csv"))
        if not self._names:
            raise ValueError("files.manifest: found none, and files.folder cannot be listed or is empty. Expected a "
                             "manifest, or remote.checksums, which lists what a web server has.")
        text = io.StringIO()
        writer = csv.DictWriter(text, ["path", "split", "label"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(folder_line(tuple(name.split("/"))) for name in self._names)
        write_text(self.base / LISTING, text.getvalue())
        return str(self.base / LISTING)

    # ---- fetching ----

    def read(self, rows: Sequence[ManifestRow], reader: Reader, limits: Limits, read: Read) -> Iterator[Outcome]:
        """Outcomes of rows whose files come while others are read; a failed download is a reason like any other."""
        with _Arriving(self, rows) as arriving:
            for outcome in read(arriving, reader, limits):
                reason = arriving.reason(outcome.index)
                if reason and outcome.row.part:  # said with the first part
                    continue
                if not outcome.more:
                    arriving.done(outcome.index)
                yield dataclasses.replace(outcome, pieces=[], more=False, reason=reason) if reason else outcome

    def fetch_row(self, row: ManifestRow) -> None:
        """Have a row's file, folder and mask here. Raises NotFetched."""
        sums = row.columns.get(self.settings.sha256_column, ""), row.columns.get(self.settings.md5_column, "")
        for path in filter(None, (row.path, row.mask_path)):
            name = path.relative_to(self.folder).as_posix()
            inside = [] if name in self.listed or name in self.sums else self._inside(name)
            for one in inside:
                self.fetch_file(one)
            if not inside:
                self.fetch_file(name, *(sums if path == row.path else ("", "")))

    def _inside(self, folder: str) -> list[str]:
        """What lies in a folder: neighbours among the sorted names, so that a row per folder does not go through all.
        """
        begin = bisect_left(self._names, folder + "/")
        return list(takewhile(lambda name: name.startswith(folder + "/"), islice(self._names, begin, None)))

    def fetch_file(self, name: str, sha256: str = "", md5: str = "") -> None:
        """Have one file here, in its current version. Raises NotFetched."""
        listed_sum = self.sums.get(name, "")
        sha256 = sha256 or (listed_sum if len(listed_sum) == 64 else "")
        md5 = md5 or (listed_sum if len(listed_sum) == 32 else "")
        if self.settings.checksums and not listed_sum and not (sha256 or md5):
            raise NotFetched("checksum: the file has none in remote.checksums")
        size, etag = self.listed.get(name, (None, ""))
        target, known = self.folder / name, self._known.get(name, {})
        here = _same_file(target, known)
        expected = sha256 or md5 or etag
        if here and expected and expected.lower() in (known["sha256"], known["md5"], known["etag"]):
            return
        wanted = Wanted(self._address(name), target, sha256, md5, etag or (known["etag"] if here else ""), size)
        got = fetch(wanted, self.how, self._count)
        if not got.unchanged:
            self._remember(name, {"sha256": got.sha256, "md5": got.md5, "etag": got.etag})

    def _address(self, name: str) -> str:
        return f"{self.url}/{name if self.stored else quote(name)}"

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self._total += num_bytes
            if self._total > self.how.max_total_gb * 2**30:
                raise NotFetched("download: more bytes than remote.max_total_gb allows for one run")

    def drop(self, row: ManifestRow) -> None:
        """Remove what a row has brought."""
        for path in filter(None, (row.path, row.mask_path)):
            for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
                file.unlink(missing_ok=True)

    # ---- what was fetched before ----

    def _read_record(self) -> dict[str, dict[str, Any]]:
        path, known = self.base / RECORD, {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the last line of a run that was killed; that file is fetched again
                continue
            known[entry.pop("path")] = entry
        return known

    def _remember(self, name: str, entry: dict[str, Any]) -> None:
        status = (self.folder / name).stat()
        entry = {**entry, "size": status.st_size, "mtime": status.st_mtime_ns}
        with self._lock, (self.base / RECORD).open("a", encoding="utf-8") as file:
            self._known[name] = entry
            file.write(json.dumps({"path": name, **entry}) + "\n")


class _Arriving(Sequence[ManifestRow]):
    """Rows that are there when they are asked for; those behind them are on their way."""

    def __init__(self, source: Source, rows: Sequence[ManifestRow]) -> None:
        self.source, self.rows = source, rows
        self._pool = ThreadPoolExecutor(source.how.parallel, "lacuna-fetch")
        self._coming: dict[int, Future[str]] = {}
        self._next = 0

    def __enter__(self) -> _Arriving:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: int) -> ManifestRow: ...
    @overload
    def __getitem__(self, i: slice) -> list[ManifestRow]: ...
    def __getitem__(self, i: int | slice) -> ManifestRow | list[ManifestRow]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        last = min(len(self), i + 1 + AHEAD * self.source.how.parallel)
        while self._next < last:
            self._coming[self._next] = self._pool.submit(self._fetch, self.rows[self._next])
            self._next += 1
        if i in self._coming:
            self._coming[i].result()
        return self.rows[i]

    def _fetch(self, row: ManifestRow) -> str:
        """Why the row's files are not there; empty when they are."""
        try:
            self.source.fetch_row(row)
        except NotFetched as fault:
            self.source.drop(row)  # half a series, or an older version, must not be read instead
            return str(fault)
        except OSError as fault:  # of this disk: full, or a name that is file and folder at once
            return f"download: could not be written here ({type(fault).__name__})"
        return ""

    def reason(self, i: int) -> str:
        """Why row i's files are not there."""
        return self._coming[i].result()

    def done(self, i: int) -> None:
        """Row i was read."""
        if not self.source.settings.keep:
            self.source.drop(self.rows[i])


def fetch_folder(url: str, out: Path, checksums: str, transfer: Transfer,
                 bar: Callable[[Iterable[str], int, str], Iterable[str]]) -> tuple[int, list[str]]:
    """Copy what lies below an address to `out`, which is then an ordinary folder; what was copied before is not copied
    again. Returns (files there, failures as "path: reason").

    Args:
        checksums: as `Remote.checksums`: a file here or below the address. A prepared folder's is SHA256SUMS.
    """
    settings = Remote(cache=f"{out.name}.fetched", checksums=checksums, transfer=transfer)
    source = Source(Files(url), settings, out.parent, out)
    names = sorted(name for name in source.listed or source.sums if name != checksums)

    def one(name: str) -> str:
        try:
            source.fetch_file(name)
        except (NotFetched, OSError) as fault:
            return f"{name}: {fault}"
        return ""

    with ThreadPoolExecutor(transfer.parallel) as pool:
        failures = [reason for reason in bar(pool.map(one, names), len(names), "fetch") if reason]
    if (source.base / "checksums").is_file():
        write_bytes(out / checksums, (source.base / "checksums").read_bytes())
    return len(names) - len(failures), failures


def _make_folder(base: Path, name: str) -> None:
    try:
        (base / name).mkdir(parents=True, exist_ok=True)
    except OSError:  # a name that is file and folder at once: told of the row that wants it
        return


def _same_file(path: Path, known: dict[str, Any]) -> bool:
    if not known or not path.is_file():
        return False
    status = path.stat()
    return (status.st_size, status.st_mtime_ns) == (known["size"], known["mtime"])
