"""`kill -9` of a training, again and again: `python -m benchmarks.faults.kill_training [NUMBER]`.

NUMBER (20) times a real `lacuna pretrain` is started anew and killed: every second time inside a save (its temporary
file is there, and still there after the kill), else at a random moment between its first save and its end. TMPDIR is
on another file system (/dev/shm). After the kill the saved state must load; the same command then goes on to the end,
and its weights must be, bit for bit, those of a run that was never killed, with no temporary file left.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.faults import small_project
from benchmarks.faults.small_project import RUN, first_save, lacuna, make, resume_files, to_the_end, weights_hash


def main(number: int = 20, steps: int = 60) -> int:
    """Print each kill and the sum; 1 when a run ended otherwise or a state was lost."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other, tempfile.TemporaryDirectory(dir=".") as text:
        os.environ["TMPDIR"] = other
        root = make(Path(text).resolve(), width=128, steps=steps)
        clean, seconds = uninterrupted(root)
        equal = inside = 0
        for i in range(number):
            in_a_save, step = killed(root, want_save=i % 2 == 0, seconds=seconds, rng=random.Random(i))
            to_the_end(lacuna(root, "pretrain", RUN))
            same = weights_hash(root) == clean and not list(root.rglob("*.tmp"))
            equal, inside = equal + same, inside + in_a_save
            print(f"kill {i}: {'inside a save' if in_a_save else 'at random'}, state of step {step}: "
                  f"{'equal' if same else 'NOT EQUAL'}", flush=True)
    print(f"kill_training: {equal} of {number} ended with the weights of the uninterrupted run; {inside} were killed "
          f"inside a save; TMPDIR on another file system; {steps} steps, {seconds:.1f} s between first save and end")
    return 0 if equal == number else 1


def uninterrupted(root: Path) -> tuple[str, float]:
    """(hash of the weights, seconds from the first save to the end) of a run that nobody kills."""
    process = lacuna(root, "pretrain", RUN)
    first_save(root, process)
    began = time.monotonic()
    to_the_end(process)
    return weights_hash(root), time.monotonic() - began


def killed(root: Path, want_save: bool, seconds: float, rng: random.Random) -> tuple[bool, int]:
    """Start afresh and kill. Returns whether a save was cut, and the step of the state that is left."""
    import torch
    while True:
        shutil.rmtree(root / ".work", ignore_errors=True)
        shutil.rmtree(root / "artifacts", ignore_errors=True)
        process = lacuna(root, "pretrain", RUN)
        folder = first_save(root, process)
        time.sleep(rng.uniform(0, 0.7 * seconds))
        while want_save and process.poll() is None and not list(folder.glob(".resume.pt.*.tmp")):
            pass
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        cut = bool(list(folder.glob(".resume.pt.*.tmp")))
        if process.returncode == -signal.SIGKILL and (cut or not want_save) and resume_files(root):
            break
    if not small_project.readable(folder / "resume.pt"):
        raise RuntimeError(f"{folder / 'resume.pt'}: found numbers that are not finite.")
    return cut, int(torch.load(folder / "resume.pt", weights_only=True)["step"])


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
