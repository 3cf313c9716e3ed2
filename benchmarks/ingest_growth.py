"""Ingest of more and more small files: `python -m benchmarks.ingest_growth [NUMBER...]`.

1,000 to 20,000 films of 24 x 24 pixels, each of a patient of its own, with a manifest that leaves the split open, so
that the search for repeats and the division are in it too. Each number in a process of its own: peak memory of the
parent (the children that read are flat by themselves), and time per file from the first to the last.
"""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SIZES = (1000, 5000, 20_000)
SIDE = 24


def write_films(root: Path, num: int) -> None:
    """Films of noise under gradients, all unlike each other, and their manifest."""
    from PIL import Image
    folder = root / "data/raw/films"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "group", "label"])
        for i in range(num):
            coarse = np.kron(rng.integers(0, 200, (6, 6)), np.ones((4, 4)))
            Image.fromarray((coarse + rng.integers(0, 50, (SIDE, SIDE))).astype(np.uint8)).save(folder / f"{i}.png")
            table.writerow([f"{i}.png", f"patient {i}", i % 2])


def one(num: int) -> None:
    """Ingest `num` films in this process; prints its peak memory and times as JSON."""
    from pipelines import ingest
    from pipelines.ingest import DataRun
    from pipelines.settings import build
    run = {"domain": "medical", "files": {"folder": "data/raw/films", "manifest": "data/raw/films/labels.csv"},
           "read": {"kind": "xray", "size": [SIDE, SIDE]},
           "tasks": {"label": {"kind": "single_label", "columns": ["label"], "classes": ["0", "1"]}}}
    with tempfile.TemporaryDirectory() as text:
        root = Path(text)
        write_films(root, num)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        metrics = ingest.run("films", build(DataRun, run, "ingest.films"), root)
    print(json.dumps({"files": num, "samples": metrics["samples"], "seconds": metrics["seconds"], "before_mb":
                      before / 1024, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main(sizes: list[int]) -> int:
    """A line per number; 1 when memory grows by more than a fifth or a file takes longer than at first by as much."""
    measured = []
    for num in sizes:
        done = subprocess.run([sys.executable, "-m", "benchmarks.ingest_growth", "--one", str(num)],
                              capture_output=True, text=True, check=True)
        measured.append(json.loads(done.stdout.splitlines()[-1]))
        last = measured[-1]
        print(f"{last['files']:>7} files: peak {last['peak_mb']:.0f} MB ({last['before_mb']:.0f} before), "
              f"{1000 * last['seconds'] / last['files']:.2f} ms a file, {last['seconds']:.0f} s", flush=True)
    first, last = measured[0], measured[-1]
    memory = last["peak_mb"] / first["peak_mb"]
    time = (last["seconds"] / last["files"]) / (first["seconds"] / first["files"])
    print(f"{first['files']} -> {last['files']} files: memory x {memory:.2f}, time per file x {time:.2f}")
    return 0 if memory <= 1.2 and time <= 1.2 else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(int(sys.argv[2]))
    else:
        sys.exit(main([int(text) for text in sys.argv[1:]] or list(SIZES)))
