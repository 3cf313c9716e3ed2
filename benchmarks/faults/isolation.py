"""What it costs to read clean files in a child process: the same files in this process and through the pool, in turns.

`OPENBLAS_NUM_THREADS=1 python -m benchmarks.faults.isolation` prints a table of processor time per file: alone in this
process; in the child; in this process for the child's sake; and what both together are to the first, and to the same
reader where it is handed the bytes that were hashed, as a child hands them to it. Processor time,
because it hardly depends on what else the machine does; on a free processor the two sides overlap, and less is waited.
Hashing belongs to both: every file that is taken in is hashed. Starting a child is left out and told apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.faults import seeds
from benchmarks.faults.seeds import Format
from domains import worker
from domains.medical import sample_data
from domains.medical.settings import CT
from domains.quarantine import Limits, Reader, read_all
from domains.sample import ManifestRow, Piece

ROUNDS = 7
"""Turns per format; the median of their ratios is told."""
SECONDS_PER_TURN = 1.0


def main() -> None:
    """Measure every format and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", default="", help="formats whose name begins so")
    options = parser.parse_args()
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        parser.error("set OPENBLAS_NUM_THREADS=1: children compute in one thread, and so must their rival")
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'format':24}{'KB out':>9}{'alone ms':>10}{'child ms':>10}{'parent ms':>11}{'ratio':>8}{'handed':>8}"
              f"{'start s':>9}")
        for form in [*seeds.formats(Path(folder) / "seeds"), *large(Path(folder) / "large")]:
            if form.name.startswith(options.only):
                print(line(form, options.rounds), flush=True)


def line(form: Format, rounds: int) -> str:
    """One line of the table."""
    rows = _enough([seeds.row(path) for path in form.paths], form.reader)
    turns = []
    for _ in range(rounds):
        alone = seconds_alone(rows, form.reader)
        handed = seconds_alone(rows, form.reader, handed=True)
        child, parent, start = seconds_in_child(rows, form.reader)
        turns.append((alone / len(rows), child / len(rows), parent / len(rows), (child + parent) / alone,
                      (child + parent) / handed, start))
    alone, child, parent, ratio, of_handed, start = (statistics.median(column) for column in zip(*turns, strict=True))
    size = np.mean([piece.values.nbytes for row in rows[:len(form.paths)]
                    for piece in _read(row, form.reader)]) / 1024
    return (f"{form.name:24}{size:9.0f}{alone * 1000:10.2f}{child * 1000:10.2f}{parent * 1000:11.2f}{ratio:8.3f}"
            f"{of_handed:8.3f}{start:9.2f}")


def _read(row: ManifestRow, reader: Reader, handed: bool = False) -> list[Piece]:
    if handed and row.path.stat().st_size <= worker.HELD_WHOLE:
        content = row.path.read_bytes()
        row = dataclasses.replace(row, content=content, sha256=hashlib.sha256(content).hexdigest())
    else:
        worker.hash_of(row.path)
    return importlib.import_module(reader.module).read(row, reader.settings)


def seconds_alone(rows: Sequence[ManifestRow], reader: Reader, handed: bool = False) -> float:
    """Processor seconds for the rows in this process."""
    began = time.process_time()
    for row in rows:
        _read(row, reader, handed)
    return time.process_time() - began


def seconds_in_child(rows: Sequence[ManifestRow], reader: Reader) -> tuple[float, float, float]:
    """Processor seconds for the rows through one child: the child's, this process's, and the child's for starting.

    The rows are read once and three times; the difference is twice the rows without the start.
    """
    (child, parent), (more_child, more_parent) = (_spent(list(rows) * times, reader) for times in (1, 3))
    return (more_child - child) / 2, (more_parent - parent) / 2, child - (more_child - child) / 2


def _spent(rows: Sequence[ManifestRow], reader: Reader) -> tuple[float, float]:
    """Processor seconds of a child from start to end, and of this process meanwhile."""
    before = _used()
    for outcome in read_all(rows, reader, Limits(workers=1)):
        assert not outcome.reason, outcome.reason
    after = _used()
    return after[0] - before[0], after[1] - before[1]


def _used() -> tuple[float, float]:
    """Processor seconds so far of all children that have ended, and of this process."""
    of_children = resource.getrusage(resource.RUSAGE_CHILDREN)  # os.times counts in hundredths of a second
    return of_children.ru_utime + of_children.ru_stime, time.process_time()


def _enough(rows: list[ManifestRow], reader: Reader) -> list[ManifestRow]:
    """The rows, repeated until they take a turn's time."""
    seconds_alone(rows, reader)
    once = seconds_alone(rows, reader)
    return rows * max(1, round(SECONDS_PER_TURN / once))


def large(folder: Path) -> list[Format]:
    """Files whose arrays are large, where the way between the processes would cost most."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    coarse = rng.integers(-900, 200, (16, 16, 16), dtype=np.int16)
    volume = np.kron(coarse, np.ones((12, 12, 12), np.int16))
    sample_data._write_nifti(folder / "192.nii", volume, np.diag([1.5, 1.5, 1.5, 1.0]))
    scene = rng.integers(1, 3000, (len(seeds.BANDS), 1024, 1024), dtype=np.uint16)
    np.save(folder / "1024.npy", scene)
    whole = Reader("domains.medical.ingest", CT(spacing=(1.5, 1.5, 1.5)))
    wide = Reader(seeds.ARRAYS.module, type(seeds.ARRAYS.settings)(
        bands=seeds.BANDS, sensor="sentinel2", size=(256, 256), file_bands=seeds.BANDS))
    return [Format("NIfTI, 192 voxels", whole, (folder / "192.nii",)),
            Format("NPY, 1024 pixels", wide, (folder / "1024.npy",))]


if __name__ == "__main__":
    main()
