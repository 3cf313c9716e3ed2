"""Identifiers planted in medical files, and a search for them in everything that Lacuna, DVC and MLflow write:
`python -m benchmarks.faults.patient_data`.

Ten identifiers go into each of 500 DICOM films: name, number, birth date, accession number, referring physician,
institution, study description (and comments), a private tag (and an overlay), the names of file and folder. Two more go
into manifest columns that nobody asked for, some into PNG text, EXIF, and files that are damaged, too large or missing.

Then `dvc repro` runs ingest, pretrain, finetune and evaluate with MLflow, predict and embed use the model, and runs are
made to end badly: by manifests that do not fit, by a fault in the middle of reading whose text quotes all that is known
of a row, by SIGKILL. Everything that this leaves is searched, DVC's site cache and the captured output included: as it
is and decoded (parquet, SQLite, gzip, text of PNG), in UTF-8 and UTF-16, and for plain md5, sha1 and sha256 of each
identifier, which could be guessed.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from PIL import Image, PngImagePlugin

ROOT = Path(__file__).resolve().parents[2]
MARK = "ZQX"
"""Begins every identifier, so that one search finds all; what follows tells which field of which file leaked."""
FIELDS = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "ReferringPhysicianName",
          "InstitutionName", "StudyDescription", "private", "file", "folder")
HASHES = ("md5", "sha1", "sha256")
SKIPPED = (".git", "raw", "named")
"""Below the project, what is not searched: the history of its source, the raw files, and what names them on purpose:
predictions and features by path, which the user asked for, and manifests."""


def identifier(i: int, field: str) -> str:
    """What is planted: eight capitals and digits, in dates eight digits that are no date."""
    digits = int(hashlib.sha256(f"{i} {field}".encode()).hexdigest(), 16)
    if field == "PatientBirthDate":
        return f"{19000000 + 9900 + i % 90 + 10000 * (i // 90):08d}"  # months from 99 on: no real date is like it
    return f"{MARK}{digits % 36**7:07d}"[:11]


# ---- files ----

def plant(folder: Path, count: int) -> dict[str, str]:
    """Write films, other files and the manifest; returns identifier -> where it was planted."""
    planted: dict[str, str] = {}
    rng = np.random.default_rng(0)
    lines = ["path,group,sick,note,guardian"]
    for i in range(count):
        known = {field: identifier(i, field) for field in FIELDS}
        planted |= {text: field for field, text in known.items()}
        path = folder / known["folder"] / f"{known['file']}.dcm"
        sick = i % 2
        film = rng.normal(900 + 1500 * sick, 300, (48, 48)) + 400 * np.sin(np.arange(48) / (3 + 4 * sick))
        _film(path, np.clip(film, 0, 4095).astype(np.uint16), known)
        extra = {text: f"manifest {text}" for text in ("note", "guardian")}
        notes = [identifier(i, what) for what in extra.values()]
        planted |= {note: f"column {name}" for note, name in zip(notes, extra, strict=True)}
        lines.append(",".join([path.relative_to(folder).as_posix(), known["PatientID"], str(sick), *notes]))
    lines += _others(folder, planted)
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return planted


def _film(path: Path, stored: np.ndarray, known: dict[str, str]) -> None:
    from tests.domains.medical.files import dicom

    tags = {field: known[field] for field in FIELDS[:7]}
    dicom(path, stored, **tags, ImageComments=known["StudyDescription"], PatientComments=known["PatientName"])
    import pydicom

    header = pydicom.dcmread(path)
    block = header.private_block(0x0029, "LACUNA TEST", create=True)
    block.add_new(0x10, "LO", known["private"])
    header.add_new(0x60000022, "LO", known["private"])  # the description of an overlay
    header.save_as(path, enforce_file_format=True)


def _others(folder: Path, planted: dict[str, str]) -> list[str]:
    """PNG text, EXIF, a damaged DICOM, a missing file and one whose reader must die; manifest lines."""
    lines = []
    for i, kind in enumerate(("png", "jpg", "damaged", "missing", "bomb", "frames")):
        name, inside = identifier(10_000 + i, f"{kind} file"), identifier(10_000 + i, kind)
        planted |= {name: f"name of a {kind} file", inside: f"inside a {kind} file"}
        path = folder / f"{name}.{kind if kind in ('png', 'jpg') else 'dcm'}"
        grey = Image.fromarray(np.random.default_rng(i).integers(0, 255, (48, 48), dtype=np.uint8))
        if kind == "png":
            text = PngImagePlugin.PngInfo()
            text.add_text("PatientName", inside)
            text.add_itxt("Comment", inside)
            grey.save(path, pnginfo=text)
        elif kind == "jpg":
            exif = Image.Exif()
            exif[0x010E] = exif[0x013B] = inside
            grey.save(path, exif=exif, comment=inside.encode())
        elif kind != "missing":
            tags: dict[str, Any] = {"frames": {"NumberOfFrames": 3}, "bomb": {"Rows": 60000, "Columns": 60000}}
            from tests.domains.medical.files import dicom
            dicom(path, np.zeros((48, 48), np.uint16), PatientName=inside, **tags.get(kind, {}))
            if kind == "damaged":
                content = path.read_bytes()
                path.write_bytes(content[:len(content) - 1500] + inside.encode())
        lines.append(f"{path.name},{name},{i % 2},,")
    return lines


# ---- runs ----

def project(root: Path, note: bool) -> dict[str, str]:
    """A copy of the project's source with DVC, a noted raw folder and tiny runs; returns the environment."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], text=True, capture_output=True, check=True).stdout
    for name in listed.split("\n"):
        if name and (ROOT / name).is_file() and name.split("/")[0] not in ("tests", "docs", "examples", ".dvc"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    folder = "raw.note" if note else "raw"
    runs: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    films = {"domain": "medical", "files": {"folder": folder, "manifest": "raw/labels.csv"}, "bad_files": 0.5,
             "read": {"kind": "xray", "size": [32, 32]}, "limits": {"workers": 2, "seconds": 20},
             "tasks": {"sick": {"kind": "single_label", "columns": ["sick"], "classes": ["0", "1"]}}}
    tiny = {"steps": 4, "batch_size": 8}
    pretrain = {**runs["pretrain"]["xray"], "data": "films", "optimisation": tiny,
                "gates": {"min_std": 0, "min_rank": 0}}
    finetune = {**runs["finetune"]["xray"], "data": "films", "task": "sick", "start": "artifacts/pretrain/films",
                "optimisation": tiny, "seeds": [0]}
    evaluate = {"domain": "medical", "finetune": "films", "data": "films", "resamples": 100}
    (root / "params.yaml").write_text(yaml.safe_dump({
        "sample": {}, "ingest": {"films": films}, "pretrain": {"films": pretrain}, "finetune": {"films": finetune},
        "evaluate": {"films": evaluate}}, sort_keys=False))
    described = yaml.safe_load((root / "dvc.yaml").read_text())
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {
        name: described["stages"][name] for name in ("ingest", "pretrain", "finetune", "evaluate")}}, sort_keys=False))
    (root / "dvc.lock").unlink(missing_ok=True)
    shim = root / "bin/lacuna"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from lacuna import main; raise SystemExit(main())" "$@"\n')
    shim.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACK", "LACUNA_PSEU"))}
    paths = f"{shim.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": paths, "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "2", "GIT_CONFIG_GLOBAL": "/dev/null",
            "DVC_SITE_CACHE_DIR": str(root / "site-cache"),
            "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


def run_all(root: Path, environment: dict[str, str], note: bool) -> None:
    """Every command, its output kept in output.txt; the crashing ones must fail, and the others not."""
    def call(*command: str, fails: bool = False, **more: str) -> None:
        done = subprocess.run(command, cwd=root, env={**environment, **more}, capture_output=True, timeout=3000)
        with (root / "output.txt").open("ab") as file:
            file.write(f"$ {command[:3]}\n".encode() + done.stdout + done.stderr)
        if (done.returncode != 0) != fails:
            raise RuntimeError(f"{' '.join(command[:3])} ended with {done.returncode}; see {root / 'output.txt'}")

    call("git", "init", "-q")
    call("dvc", "init", "-q")
    if note:
        call("lacuna", "note", "raw", "--out", "raw.note")
    call("dvc", "repro")
    for command in (("describe", "films"), ("verify", "films"), ("compare",)):
        call("lacuna", *command)
    model = "artifacts/finetune/films/pretrained/seed0"
    call("lacuna", "predict", model, "raw", "--out", "named/predictions", "--bad-files", "0.9")
    call("lacuna", "embed", model, "raw", "--out", "named/features.parquet", "--bad-files", "0.9")
    bad = root / "named/bad.csv"
    bad.write_text((root / "raw/labels.csv").read_text().replace("path,group", "where,who", 1))
    params = yaml.safe_load((root / "params.yaml").read_text())
    for name, change in (("headless", {"manifest": "named/bad.csv"}), ("cut", {"split_column": "note"}),
                         ("group", {"group_column": "sick", "split_column": "note"})):
        params["ingest"][name] = {**params["ingest"]["films"], "files": {
            **params["ingest"]["films"]["files"], "folder": "raw", **change}}
    params["ingest"]["few"] = {**params["ingest"]["films"], "files": {
        **params["ingest"]["films"]["files"], "folder": "raw"}, "bad_files": 0.0}
    params["ingest"]["label"] = {**params["ingest"]["few"], "tasks": {
        "note": {"kind": "regression", "columns": ["note"]}}}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for name in ("headless", "cut", "group", "few", "label"):
        call("lacuna", "--debug", "ingest", name, fails=True)
    crash = root / "crash/sitecustomize.py"
    crash.parent.mkdir()
    crash.write_text(CRASH)
    call("lacuna", "--debug", "ingest", "films", fails=True, PYTHONPATH=f"{root}:{crash.parent}")
    if not re.search(rb"ingest films: found KeyError at .*in add", (root / "output.txt").read_bytes()):
        raise RuntimeError("the fault in the middle of reading did not happen as planned")
    _killed(root, environment)


CRASH = """
import sys, threading, time
def break_it():
    while "domains.store" not in sys.modules or not hasattr(sys.modules["domains.store"], "Writer"):
        time.sleep(0.001)
    def add(self, piece, row, *rest, **more):
        raise KeyError(f"{row.path} {row.columns}")
    sys.modules["domains.store"].Writer.add = add
if sys.argv[0] in ("-c", "") and "ingest" in sys.orig_argv:
    threading.Thread(target=break_it, daemon=True).start()
"""
"""A fault of ours in the middle of reading, whose text quotes everything that is known of a row."""


def _killed(root: Path, environment: dict[str, str]) -> None:
    """SIGKILL in the middle of reading: what it leaves lies there for the search."""
    with (root / "output.txt").open("ab") as output:
        started = subprocess.Popen(["lacuna", "ingest", "films"], cwd=root, env=environment, stdout=output,
                                   stderr=output)
        while started.poll() is None and not list((root / "data/prepared").glob(".films.*/index.parquet")):
            time.sleep(0.005)
        started.kill()
        if started.wait() == 0:
            raise RuntimeError("the ingest that was to be killed ended before it was")


# ---- search ----

def contents(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what is inside where they are compressed or encoded."""
    raw = path.read_bytes()
    yield raw
    if raw[:4] == b"PAR1" and raw[-4:] == b"PAR1" and len(raw) > 12:  # one that a kill cut short has no table to decode
        table = pq.read_table(io.BytesIO(raw))
        yield repr(table.to_pydict()).encode()
        yield repr(table.schema.metadata).encode()
    elif raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    elif raw[:15] == b"SQLite format 3":
        yield from _cells(path)
    elif raw[:8] == b"\x89PNG\r\n\x1a\n":
        with Image.open(path) as picture:
            picture.load()
            yield repr(picture.info).encode()


def _cells(path: Path) -> Iterator[bytes]:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as store:
        names = [name for (name,) in store.execute("select name from sqlite_master where type = 'table'")]
        for name in names:
            for row in store.execute(f'select * from "{name}"'):
                yield repr(row).encode()


def search(root: Path, planted: Sequence[str]) -> tuple[dict[str, list[str]], int, int]:
    """file -> identifiers found in it; how many files and bytes were searched."""
    needles = {text.encode(): text for text in planted}
    for text in planted:
        needles[text.encode("utf-16-le")] = text
        for name in HASHES:
            # Twelve digits are as many as any message shows.
            needles[hashlib.new(name, text.encode(), usedforsecurity=False).hexdigest()[:12].encode()] = text
    lengths = sorted({len(needle) for needle in needles})
    found: dict[str, list[str]] = {}
    files = num_bytes = 0
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.relative_to(root).parts[0] not in SKIPPED:
            files += 1
            num_bytes += path.stat().st_size
            hits = {needles[hit] for content in (*contents(path), str(path.relative_to(root)).encode())
                    for hit in _hits(content, needles, lengths)}
            if hits:
                found[path.relative_to(root).as_posix()] = sorted(hits)
    return found, files, num_bytes


_WORDS = re.compile(rb"(?:ZQX[0-9A-Z]{0,12})|(?:Z\0Q\0X\0(?:.\0){0,12})|[0-9a-f]{12,}|[0-9]{8,}", re.DOTALL)


def _hits(content: bytes, needles: dict[bytes, str], lengths: Sequence[int]) -> Iterator[bytes]:
    """Needles in a content: only at places where one can begin, each of the few lengths tried."""
    for word in _WORDS.finditer(content):
        text = word[0]
        starts = range(len(text) - 7) if text[:1].isdigit() or text[:1] in b"abcdef" else (0,)
        for start in starts:
            for length in lengths:
                if text[start:start + length] in needles and len(text) >= start + length:
                    yield text[start:start + length]


def campaign(root: Path, count: int, note: bool) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Plant, run, search; prints what was searched. Returns what was found, and what was planted where."""
    (root / "raw").mkdir(parents=True)
    with warnings.catch_warnings():  # pydicom says that month 99 is none
        warnings.simplefilter("ignore")
        planted = plant(root / "raw", count)
    environment = project(root, note)
    run_all(root, environment, note)
    found, files, num_bytes = search(root, list(planted))
    # The search must be able to find: the raw folder itself holds all of them.
    raw = {hit for path in (root / "raw").rglob("*") if path.is_file() and path.suffix in (".dcm", ".csv")
           for hit in planted if hit.encode() in path.read_bytes() or hit in str(path)}
    leaked = {hit for hits in found.values() for hit in hits}
    print(f"{len(planted)} identifiers planted, {len(raw)} of them seen in the raw files; {files} files of "
          f"{num_bytes / 2**20:.0f} MB searched; {len(leaked)} identifiers found")
    for path, hits in found.items():
        print(f"  {path}: {len(hits)} ({', '.join(sorted({planted[hit] for hit in hits}))})")
    return found, planted


def main() -> None:
    """Run the campaign; exit code 1 when anything was found."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--films", type=int, default=500)
    options.add_argument("--keep", type=Path, help="leave the project here, for a look")
    options.add_argument("--no-note", action="store_true", help="let DVC depend on the raw folder itself")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found, _ = campaign(given.keep or Path(temporary) / "project", given.films, not given.no_note)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
