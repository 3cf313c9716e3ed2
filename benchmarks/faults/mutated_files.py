"""Whole files of every format, damaged a thousand times each in four ways, and read as `lacuna ingest` reads them.

`python -m benchmarks.faults.mutated_files` prints a table. Promised: this process neither ends nor waits longer than
5 s beyond a file's own limit; every file is accepted or quarantined, with path, hash and reason. Told besides: how many
are accepted though what they give differs from what the whole file gives (`differ`), which no reader can know where a
format has no checksum. The same seed damages the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.faults import seeds
from benchmarks.faults.seeds import Format
from domains.outcome import Outcome
from domains.quarantine import Limits, read_all
from domains.reading_process import MOST_PATIENCE

WAYS = ("truncate", "flip", "header", "splice")
PATIENCE = 5.0
"""Seconds beyond its own limit for which a file may keep this process waiting."""
LIMITS = Limits(workers=1, seconds=5)


@dataclass
class Tally:
    """What became of one format's files."""

    name: str
    files: int = 0
    same: int = 0
    """Accepted, and what they give is what the whole file gives."""
    differ: Counter[str] = field(default_factory=Counter)
    """Accepted, and it is not: by the way of damage."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Quarantined, by reason."""
    crashed: int = 0
    """Of those, how many took their child with them."""
    untold: int = 0
    """Quarantined without a hash or a reason. Promised: none."""
    slowest: float = 0.0
    """Longest wait for an outcome, in seconds."""

    @property
    def quarantined(self) -> int:
        """Files refused."""
        return sum(self.reasons.values())

    @property
    def sound(self) -> bool:
        """Whether every file was told about, and none kept this process waiting."""
        told = self.same + sum(self.differ.values()) + self.quarantined
        return told == self.files and not self.untold and self.slowest <= MOST_PATIENCE * LIMITS.seconds + PATIENCE


def main() -> None:
    """Damage, read, print; the exit code says whether the promises were kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="damaged files per format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="formats whose name begins so")
    parser.add_argument("--reasons", type=Path, help="a JSON file for all reasons")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'format':18}{'files':>7}{'same':>7}{'differ':>8}{'refused':>9}{'crashed':>9}{'slowest s':>11}"
              f"{'parent MB':>11}")
        tallies = [told(fuzz(form, Path(folder) / "damaged", options.count, options.seed))
                   for form in seeds.formats(Path(folder) / "seeds") if form.name.startswith(options.only)]
    for tally in tallies:
        common = "; ".join(f"{reason} ({count})" for reason, count in tally.reasons.most_common(4))
        print(f"{tally.name}: differ by {dict(tally.differ)}; {common}")
    if options.reasons:
        options.reasons.write_text(json.dumps({tally.name: tally.reasons for tally in tallies}, indent=1))
    raise SystemExit(0 if all(tally.sound for tally in tallies) else 1)


def told(tally: Tally) -> Tally:
    """Print its line."""
    print(f"{tally.name:18}{tally.files:7}{tally.same:7}{sum(tally.differ.values()):8}{tally.quarantined:9}"
          f"{tally.crashed:9}{tally.slowest:11.2f}"
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:11.0f}", flush=True)
    return tally


def fuzz(form: Format, folder: Path, count: int, seed: int) -> Tally:
    """`count` damaged files of one format, read by its reader in children."""
    wholes = [path.read_bytes() for path in form.paths]
    expected = [digest(outcome) for outcome in
                read_all([seeds.row(path) for path in form.paths], form.reader, Limits(workers=1))]
    made = damaged(form, wholes, folder, count, seed)
    tally = Tally(form.name, files=count)
    began = time.monotonic()
    for outcome in read_all([seeds.row(path) for path, _, _ in made], form.reader, LIMITS):
        tally.slowest = max(tally.slowest, time.monotonic() - began)
        began = time.monotonic()
        _, way, whole = made[outcome.index]
        if outcome.reason:
            tally.reasons[re.sub(r"-?\d[\d.e+]*", "#", outcome.reason)] += 1
            tally.crashed += "crashed" in outcome.reason or "took longer" in outcome.reason
            tally.untold += len(outcome.sha256) != 64
        elif digest(outcome) == expected[whole]:
            tally.same += 1
        else:
            tally.differ[way] += 1
    shutil.rmtree(folder)
    return tally


def digest(outcome: Outcome) -> str:
    """What a file gives: its arrays and masks. Facts are about the file, and may differ."""
    found = hashlib.sha256()
    for piece in outcome.pieces:
        found.update(repr((piece.values.shape, piece.values.dtype)).encode() + piece.values.tobytes())
        found.update(b"" if piece.mask is None else piece.mask.tobytes())
    return found.hexdigest()


def damaged(form: Format, wholes: Sequence[bytes], folder: Path, count: int,
            seed: int) -> list[tuple[Path, str, int]]:
    """Write the damaged files; each with its way of damage and which whole file it was."""
    folder.mkdir(parents=True)
    ending = "".join(form.paths[0].suffixes)
    made = []
    for i in range(count):
        rng = np.random.default_rng([seed, i, *form.name.encode()])
        way, whole = WAYS[i % len(WAYS)], int(rng.integers(len(wholes)))
        content = mutate(wholes[whole], wholes[int(rng.integers(len(wholes)))], way, rng)
        path = folder / f"{i:05d}{ending}"
        path.write_bytes(content)
        made.append((path, way, whole))
    return made


def mutate(whole: bytes, other: bytes, way: str, rng: np.random.Generator) -> bytes:
    """One damaged copy, never equal to the whole file."""
    while True:
        content = bytearray(whole)
        match way:
            case "truncate":
                del content[int(rng.integers(len(whole))):]
            case "flip":
                for at in rng.integers(len(whole), size=int(rng.integers(1, 9))):
                    content[at] ^= 1 << int(rng.integers(8))
            case "header":
                at = int(rng.integers(min(512, len(whole))))
                wild = [b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", rng.bytes(int(rng.integers(1, 17)))]
                piece = wild[int(rng.integers(len(wild)))]
                content[at:at + len(piece)] = piece
            case "splice":
                begin, end = sorted(int(n) for n in rng.integers(len(whole), size=2))
                start = int(rng.integers(len(other)))
                content[begin:end] = other[start:start + int(rng.integers(1, 1 + len(other) - start))]
        if content != whole:
            return bytes(content)


if __name__ == "__main__":
    main()
