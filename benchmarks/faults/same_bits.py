"""The same bits again, however many read: `python -m benchmarks.faults.same_bits [TRAININGS]`.

The embedded samples of every domain are ingested by 1, 2 and 3 reading processes: every published file must have the
same bytes. Then TRAININGS (5) times a real `lacuna pretrain` from nothing, and once more for each number of batches
that a thread reads ahead (1 and 2): the hash of the weights must be one. All with one compute thread: sums over several
are added in another order where their number differs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.faults.small_project import PARAMS, RUN, draw, lacuna, make, read, to_the_end, weights_hash

WORKERS = (1, 2, 3)
AHEAD = (1, 2)


def main(trainings: int = 5) -> int:
    """Print what was compared; 1 when anything differs."""
    os.environ["LACUNA_TRACKING"] = "off"
    same = True
    for run in PARAMS["ingest"]:
        with tempfile.TemporaryDirectory() as text:
            folders = ingested(Path(text), run, WORKERS)
            other = differing(folders)
            print(f"ingest {run} by {', '.join(map(str, WORKERS))} processes: {len(contents(folders[0]))} files, "
                  f"{'the same bytes' if not other else 'NOT THE SAME: ' + ', '.join(other)}", flush=True)
            same &= not other
    with tempfile.TemporaryDirectory() as text:
        depths = [0] * trainings + list(AHEAD)
        hashes = trained(Path(text), depths)
    print(f"same_bits: {len(depths)} trainings with one seed, {trainings} that read in turn and one each that reads "
          f"{' and '.join(map(str, AHEAD))} batches ahead: {len(set(hashes))} hash(es) of weights")
    return 0 if same and len(set(hashes)) == 1 else 1


def ingested(root: Path, run: str, workers: Sequence[int], files: int = 24) -> list[Path]:
    """The prepared folders of one embedded sample, read by so many processes each."""
    draw(root, run, files, files // 2)
    published, kept = root / "data/prepared" / run, []
    for number in workers:
        read(root, run, limits={"workers": number})
        kept.append(root / f"by-{number}")
        published.rename(kept[-1])
    return kept


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def differing(folders: Sequence[Path]) -> list[str]:
    """Files that are not in all of these folders with the same bytes."""
    found = [contents(folder) for folder in folders]
    return sorted({name for one in found for name, _ in one.items() ^ found[0].items()})


def trained(root: Path, depths: Sequence[int], **optimisation: Any) -> list[str]:
    """The weights' hash of one training from nothing for each number of batches read ahead."""
    make(root, **optimisation)
    paragraph, hashes = yaml.safe_load((root / "params.yaml").read_text()), []
    for depth in depths:
        paragraph["pretrain"][RUN]["machine"]["prefetch"] = depth
        (root / "params.yaml").write_text(yaml.safe_dump(paragraph))
        for made in ("artifacts", "reports", ".work"):
            shutil.rmtree(root / made, ignore_errors=True)
        to_the_end(lacuna(root, "pretrain", RUN))
        hashes.append(weights_hash(root))
    return hashes


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
