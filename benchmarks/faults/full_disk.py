"""A disk that is full, folders that may not be written: `python -m benchmarks.faults.full_disk [NUMBER]` (as root).

NUMBER (10) times a real `lacuna pretrain` trains in a project on a small tmpfs. After its first save the rest
of the disk is filled. The command must end with exit code 4 within 5 s of its next save, say how many bytes are
missing, leave the last good state readable and no temporary file. Then folders are closed in turn to the user (root
without the right to ignore modes) before a start, and the state's folder while training: exit code 2, a sentence, and
before the first step for the former.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.small_project import RUN, first_save, lacuna, make, readable

NO_ROOT = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
STRANGER = 65534
LIMIT = 5.0


def main(number: int = 10) -> int:
    """Print each try and the sums; 1 when one went otherwise."""
    with small_disk() as root:
        make(root, width=192, steps=100_000)
        kept = [full(root) for _ in range(number)]
        for before, told in (("reports", "reports"), ("artifacts", "artifacts"), (".work", ".work")):
            shutil.rmtree(root / before, ignore_errors=True)
            kept.append(closed(root, root / before, told))
        kept.append(closed_while_training(root))
    print(f"full_disk: last good state kept {sum(kept[:number])} of {number}; closed folders refused "
          f"{sum(kept[number:])} of {len(kept) - number}")
    return 0 if all(kept) else 1


@contextmanager
def small_disk(megabytes: int = 450) -> Iterator[Path]:
    """A tmpfs of its own."""
    with tempfile.TemporaryDirectory() as text:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", text], check=True)
        try:
            yield Path(text)
        finally:
            subprocess.run(["umount", "-l", text], check=True)


def full(root: Path) -> bool:
    """One training whose disk fills up under it."""
    shutil.rmtree(root / ".work", ignore_errors=True)
    process = lacuna(root, "pretrain", RUN)
    folder = first_save(root, process)
    seconds, errors = fill_until_it_ends(process, root / "filler")
    said = re.search(r"the disk is full: \S+resume\.pt needs .*? expected (\d+) bytes more", errors)
    good = (process.returncode == 4 and seconds <= LIMIT and said is not None and readable(folder / "resume.pt")
            and not list(root.rglob("*.tmp")))
    print(f"full: exit code {process.returncode} after {seconds:.1f} s, {said[1] if said else 'no'} bytes missing: "
          f"{'kept' if good else 'NOT KEPT ' + errors[-600:]}", flush=True)
    return good


def fill_until_it_ends(process: subprocess.Popen[str], filler: Path) -> tuple[float, str]:
    """Seconds from the first moment without a free byte to the command's end, and what it said.

    A save frees the state before it, in which the next one finds room; so the filler takes what becomes free."""
    began = None
    with filler.open("wb", buffering=0) as file:
        while process.poll() is None:
            try:
                file.write(b"x" * 2**16)
            except OSError:
                began = began or time.monotonic()
                time.sleep(0.005)
    seconds = time.monotonic() - (began or time.monotonic())
    filler.unlink()
    return seconds, process.communicate(timeout=10)[1]


def closed(root: Path, folder: Path, told: str) -> bool:
    """A start with a folder that may not be written."""
    folder.mkdir(parents=True)
    shutil.chown(folder, STRANGER)
    folder.chmod(0o555)
    began = time.monotonic()
    process = lacuna(root, "pretrain", RUN, before=NO_ROOT)
    _, errors = process.communicate(timeout=120)
    seconds = time.monotonic() - began
    shutil.rmtree(folder)
    good = process.returncode == 2 and seconds <= LIMIT and told in errors and "cannot be written" in errors
    print(f"closed {told}: exit code {process.returncode} after {seconds:.1f} s from the start of the command: "
          f"{'refused' if good else 'NOT REFUSED ' + errors[-600:]}", flush=True)
    return good


def closed_while_training(root: Path) -> bool:
    """The folder of the resume state is closed between two saves."""
    process = lacuna(root, "pretrain", RUN, before=NO_ROOT)
    folder = first_save(root, process)
    shutil.chown(folder, STRANGER)
    folder.chmod(0o555)
    began = time.monotonic()
    _, errors = process.communicate(timeout=120)
    seconds = time.monotonic() - began
    good = (process.returncode == 2 and seconds <= LIMIT and "cannot be written" in errors
            and readable(folder / "resume.pt"))
    print(f"closed while training: exit code {process.returncode} after {seconds:.1f} s: "
          f"{'kept' if good else 'NOT KEPT ' + errors[-600:]}", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
