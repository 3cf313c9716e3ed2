"""Files, paths, links and archives that try to make ingest open something outside its data folder, or call somebody:
`python -m benchmarks.faults.outside_reads`.

Every attempt has a file of its own outside the data folder, which the kernel watches (inotify), and a path of its own
on a server that listens on this machine. All go through the stage `ingest`, archives through
pipelines/intake/archives.py.
Promised: no watched file is opened by anyone, nobody calls, no byte of those files lies in what was written, and
nothing is written beside them. Controls show that an open, a call and such bytes would be seen.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import os
import socketserver
import struct
import tempfile
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.faults.outside_attempts import (
    ENDINGS,
    MARK,
    RUNS,
    Case,
    archives,
    cases,
    good,
    linked,
    needles,
    secret,
    vrt,
)
from domains.manifest import ManifestError
from pipelines import ingest
from pipelines.ingest import DataRun
from pipelines.intake.archives import ArchiveRefused, unpack
from pipelines.settings import build

NUM_GOOD = 3
"""Harmless files that each run has besides: a run that can read nothing at all ends before."""
IN_OPEN, IN_ACCESS = 0x20, 0x1


@dataclass(frozen=True)
class Verdict:
    """What became of one attempt."""

    name: str
    outcome: str
    opened: tuple[str, ...] = ()
    called: tuple[str, ...] = ()
    stored: bool = False
    """Whether bytes of the file outside lie in what was written, or something lies beside it."""

    @property
    def held(self) -> bool:
        """Whether nothing outside was read, called or written."""
        return not (self.opened or self.called or self.stored)


def main() -> None:
    """Try everything, print a table; exit code 1 when anything outside was reached."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        verdicts = campaign(Path(folder))
    for verdict in verdicts:
        print(f"{verdict.name:46} opened {len(verdict.opened)}  called {len(verdict.called)}  stored "
              f"{int(verdict.stored)}  {verdict.outcome[:110]}{'' if verdict.held else '   NOT HELD'}")
    print(f"{sum(verdict.held for verdict in verdicts)} of {len(verdicts)} reached nothing outside")
    raise SystemExit(0 if all(verdict.held for verdict in verdicts) else 1)


def campaign(root: Path, names: Sequence[str] = ()) -> list[Verdict]:
    """The verdicts on all attempts, or on those of these names, after the controls."""
    with warnings.catch_warnings(), listening() as (url, calls), patch.dict(os.environ, {
        "LACUNA_TRACKING": "off", "AWS_S3_ENDPOINT": url.removeprefix("http://"),  # where a store would be asked
        "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
    }):
        warnings.simplefilter("ignore")
        if not names:
            controls(root / "controls", url, calls)
        chosen = [case for case in cases() if not names or case.name in names]
        together = [[case for case in chosen if case.run == run and not case.alone] for run in RUNS]
        verdicts = [verdict for n, group in enumerate([*together, *([case] for case in chosen if case.alone)])
                    if group for verdict in attempt(root / f"{n:02d}", group, url, calls)]
        return verdicts + [slip(root / f"archive{n}", name, *made) for n, (name, made) in enumerate(archives().items())
                           if not names or name in names]


# ---- what would be seen ----

class Watch:
    """Tells which of some files and folders were opened, by any process."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._kernel = ctypes.CDLL(None, use_errno=True)
        self._fd = self._kernel.inotify_init1(os.O_NONBLOCK)
        self._paths = {self._kernel.inotify_add_watch(self._fd, os.fsencode(path), IN_OPEN | IN_ACCESS): path
                       for path in paths}
        if self._fd < 0 or -1 in self._paths:
            raise OSError(ctypes.get_errno(), "inotify cannot watch here")

    def opened(self) -> set[Path]:
        """Those opened since this was last asked."""
        found: set[Path] = set()
        while True:
            try:
                events = os.read(self._fd, 65536)
            except BlockingIOError:
                return found
            while events:
                watch, _, _, length = struct.unpack_from("iIII", events)
                found.add(self._paths[watch])
                events = events[16 + length:]

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine: its address, and the first line of whatever it is sent."""
    calls: list[str] = []

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            calls.append(self.rfile.readline(4096).decode("latin-1").strip())
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", calls
        finally:
            server.shutdown()
            thread.join()


def controls(root: Path, url: str, calls: list[str]) -> None:
    """What is trusted is opened, its bytes are stored, and a library that is left alone does follow and call."""
    import rasterio

    for run in ("films", "scenes"):
        (found,) = attempt(root / run, [Case("control", run, linked)], url, calls, follow_links=True)
        if not (found.opened and found.stored):
            raise RuntimeError(f"control: a trusted link of {run} should be opened and stored, found {found}")
    outside = secret("scenes", root / "outside.tif")
    watch = Watch([outside])
    (root / "a.vrt").write_text(vrt(str(outside)))
    with rasterio.open(root / "a.vrt") as file:
        file.read()
    (root / "b.vrt").write_text(vrt(f"/vsicurl/{url}/control.tif"))
    try:
        with rasterio.open(root / "b.vrt") as file:
            file.read()
    except rasterio.errors.RasterioError as error:
        print(f"control: as it should, GDAL alone found nothing at the address ({type(error).__name__})")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"{url}/plain", timeout=5)
    except urllib.error.HTTPError as error:
        print(f"control: the server answers {error.code}")
    if outside not in watch.opened() or not any("control.tif" in call for call in calls):
        raise RuntimeError(f"control: GDAL alone should follow a virtual raster and call, found {calls}")
    watch.close()
    calls.clear()


# ---- through ingest ----

def attempt(root: Path, group: Sequence[Case], url: str, calls: list[str], **files: Any) -> list[Verdict]:
    """Ingest the files of some attempts of one kind, among harmless ones."""
    run = group[0].run
    raw, outside = root / "raw", root / "outside"
    raw.mkdir(parents=True), outside.mkdir()
    rows = [{"path": good(run, raw, i), "mask": ""} for i in range(NUM_GOOD)]
    secrets, keys = [], []
    for n, case in enumerate(group):
        secrets.append(secret(run, outside / f"{n:02d}{ENDINGS[run]}"))
        path, _, mask = case.write(raw, secrets[-1], f"{url}/{n:02d}.tif").partition(" ")
        keys.append(path)
        rows.append({"path": path, "mask": mask})
    watch, before = Watch([outside, *secrets]), len(calls)
    reasons = _ingest(root, run, rows, files)
    opened, called = watch.opened(), calls[before:]
    watch.close()
    beside = len(list(outside.iterdir())) > len(secrets)
    stored = beside or any(needle in path.read_bytes() for path in _written(root) for needle in needles(run))
    return [Verdict(f"{run}: {case.name}", reasons.get(key, reasons.get("", "taken; nothing beside it was read")),
                    tuple(path.name for path in opened if path == own or (path == outside and n == 0)),
                    tuple(call for call in called if f"/{n:02d}.tif" in call or len(group) == 1), stored)
            for n, (case, key, own) in enumerate(zip(group, keys, secrets, strict=True))]


def _ingest(root: Path, run: str, rows: Sequence[dict[str, str]], files: dict[str, Any]) -> dict[str, str]:
    """Path -> why it was refused; "" stands for the whole run."""
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "mask"])
        writer.writeheader()
        writer.writerows(rows)
    settings = build(DataRun, {**RUNS[run], "bad_files": 1.0, "limits": {"workers": 1}, "files": {
        "folder": "raw", "manifest": "labels.csv", "group_by": "file", "mask_column": "mask", "pseudonymise": False,
        **files}}, run)
    try:
        ingest.run(run, settings, root)
    except ManifestError as error:
        return {"": str(error)}
    with (root / "reports/ingest" / run / ingest.QUARANTINE).open(newline="") as file:
        return {line["path"]: line["reason"] for line in csv.DictReader(file)}


def _written(root: Path) -> Iterator[Path]:
    """Every file below a project that is not the data itself."""
    return (path for path in root.rglob("*") if path.is_file() and not path.is_symlink()
            and path.relative_to(root).parts[0] not in ("raw", "outside", "labels.csv"))


# ---- archives ----

def slip(root: Path, name: str, kind: str, write: Callable[[Path, Path], None]) -> Verdict:
    """Unpack one archive that would reach a file outside, or write beside it."""
    outside, out = root / "outside", root / "raw/out"
    outside.mkdir(parents=True), out.mkdir(parents=True)
    (outside / "secret").write_bytes(MARK)
    archive = root / f"a.{kind}"
    write(archive, outside)
    before = sorted(path for path in root.rglob("*"))
    watch, outcome = Watch([outside, outside / "secret"]), "unpacked"
    try:
        unpack(archive, kind, out, 2**30)
    except ArchiveRefused as error:
        outcome = str(error)
    opened = watch.opened()
    watch.close()
    intact = sorted(path for path in root.rglob("*")) == before and (outside / "secret").read_bytes() == MARK
    return Verdict(f"archive: {name}", outcome, tuple(path.name for path in opened), (), not intact)


if __name__ == "__main__":
    main()
