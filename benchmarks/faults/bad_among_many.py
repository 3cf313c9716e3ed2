"""A few bad files planted among many: exactly those are quarantined, and the run ends well; too many, and it says so.

`python -m benchmarks.faults.bad_among_many` writes small films, ingests them by the command `lacuna ingest` clean, with
`--bad` of them damaged (1 in 100 by default, and exit code 0), and with three times as many (exit code 3). What bad
files cost is told in seconds of the processor, of the command and its reading processes, besides those of the clock,
which stand for what else the machine does as well.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.faults.mutated_files import WAYS, mutate

COMMAND = "import sys; from pipelines.cli import main; sys.exit(main(sys.argv[1:]))"
PARAMS = """ingest:
  films:
    domain: medical
    files: {folder: raw, manifest: raw/labels.csv, pseudonymise: false}
    read: {kind: xray, size: [32, 32]}
    near_duplicates: 2
"""


@dataclass(frozen=True)
class Run:
    """What one `lacuna ingest` did."""

    code: int
    seconds: float
    processor: float
    quarantined: set[str]
    published: bool


def main() -> None:
    """Three runs and a verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--bad", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_films(root, options.count)
        clean = ingest(root)
        few = damage(root, options.bad, seed=0)
        dirty = ingest(root)
        many = few | damage(root, 3 * options.bad, seed=1)
        worse = ingest(root)
    for name, run, planted in (("clean", clean, set()), ("few", dirty, few), ("many", worse, many)):
        print(f"{name:6} {options.count} files, {len(planted)} planted, {len(run.quarantined)} quarantined, "
              f"exactly those: {run.quarantined == planted}, exit {run.code}, {run.seconds:.1f} s, "
              f"{run.processor:.1f} s of the processor, published: {run.published}")
    print(f"against clean: {dirty.processor / clean.processor:.3f} of the processor's time, "
          f"{dirty.seconds / clean.seconds:.3f} of the clock's")
    kept = (clean.code, dirty.code, worse.code) == (0, 0, 3) and dirty.quarantined == few and worse.quarantined == many
    raise SystemExit(0 if kept else 1)


def write_films(root: Path, count: int) -> None:
    """`count` PNGs of smooth noise, a manifest and params.yaml."""
    from PIL import Image

    (root / "raw").mkdir()
    (root / "params.yaml").write_text(PARAMS)
    with (root / "raw/labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "group"])
        for i in range(count):
            coarse = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(np.kron(coarse, np.ones((6, 6), np.uint8))).save(root / f"raw/{i:05d}.png")
            writer.writerow([f"{i:05d}.png", f"patient{i:05d}"])


def damage(root: Path, count: int, seed: int) -> set[str]:
    """Damage `count` films in place, in four ways; their names."""
    paths = sorted((root / "raw").glob("*.png"))
    rng = np.random.default_rng(seed)
    chosen = [paths[i] for i in rng.choice(len(paths), count, replace=False)]
    for n, path in enumerate(chosen):
        path.write_bytes(mutate(path.read_bytes(), paths[0].read_bytes(), WAYS[n % len(WAYS)], rng))
    return {path.name for path in chosen}


def ingest(root: Path) -> Run:
    """`lacuna ingest films` in `root`."""
    place = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    began, before = time.monotonic(), os.times()
    code = subprocess.run([sys.executable, "-c", COMMAND, "ingest", "films"], cwd=root, check=False,
                          env={**os.environ, "PYTHONPATH": place}, stdout=subprocess.DEVNULL).returncode
    seconds, after = time.monotonic() - began, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    with (root / "reports/ingest/films/quarantine.csv").open(newline="") as file:
        quarantined = {line["path"] for line in csv.DictReader(file)}
    return Run(code, seconds, spent, quarantined, (root / "data/prepared/films/index.parquet").is_file())


if __name__ == "__main__":
    main()
