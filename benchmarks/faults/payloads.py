"""Files that carry a program, given to every command that reads files: `python -m benchmarks.faults.payloads`.

A project of one small pretraining and one fine-tuning is copied for each payload, which is planted where the command
will read it. Every payload would make a file of its own if any of it ran. Promised: none appears.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import yaml

from benchmarks.faults import payload_files, small_project
from benchmarks.faults.payload_files import PRETRAINED, RUN, TUNED
from pipelines import cli
from pipelines.training import resume

COMMANDS = {
    "verify": ("verify",), "describe": ("describe", RUN), "ingest": ("ingest", RUN), "pretrain": ("pretrain", RUN),
    "finetune": ("finetune", RUN), "evaluate": ("evaluate", RUN),
    "predict": ("predict", TUNED, "data/raw/xray", "--out", "out"),
    "embed": ("embed", PRETRAINED, "data/raw/xray", "--out", "out.parquet"),
    "merge": ("merge", TUNED, "--out", "merged"),
    "export": ("export", PRETRAINED, "--family", "mae", "--out", "out.pth"),
    "finetune --start": ("finetune", "medical", "--data", "data/raw/xray", "--labels", "data/raw/xray/labels.csv",
                         "--label", "opacity", "--kind", "xray", "--steps", "1", "--start", PRETRAINED),
    "import": ("import", "evil", "--out", "imported", "--set", "num_heads=3"),
    "init": ("init", "data/raw/xray", "--out", "begun"),
}


@dataclass(frozen=True)
class Verdict:
    """What became of one payload in one command."""

    payload: str
    command: str
    code: int
    """The command's exit code: 0 where what carries the payload is read as plain data."""
    said: str
    ran: bool

    def line(self) -> str:
        """For the table."""
        return (f"{self.payload:44} {self.command:17} {'RAN' if self.ran else 'nothing ran'}  exit {self.code}  "
                f"{self.said[:90]}")


def main() -> None:
    """Plant every payload, run the commands, print a table; exit code 1 when anything ran."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        verdicts = campaign(Path(folder))
    print("\n".join(verdict.line() for verdict in verdicts))
    print(f"{len({verdict.payload for verdict in verdicts})} payloads, {len(verdicts)} commands, "
          f"{sum(verdict.ran for verdict in verdicts)} ran")
    raise SystemExit(any(verdict.ran for verdict in verdicts))


def campaign(root: Path, names: Sequence[str] = ()) -> list[Verdict]:
    """The verdicts on all payloads, or on those of these names."""
    with warnings.catch_warnings(), patch.dict(os.environ, {"LACUNA_TRACKING": "off"}):
        warnings.simplefilter("ignore")
        whole = project(root / "whole")
        found = []
        for n, (name, (commands, plant)) in enumerate(payload_files.payloads().items()):
            if not names or name in names:
                found += tried(name, commands, plant, whole, root / f"{n:02d}")
        return found


def project(root: Path) -> Path:
    """A project with prepared films, a pretrained and a tuned checkpoint."""
    root.mkdir(parents=True)
    small_project.make(root, width=32, steps=2)
    params = yaml.safe_load((root / "params.yaml").read_text())
    shipped = small_project.PARAMS
    params["ingest"] = {RUN: shipped["ingest"][RUN]}
    params["finetune"] = {RUN: {**shipped["finetune"][RUN], "machine": {"accelerator": "cpu"}, "optimisation": {
        **shipped["finetune"][RUN]["optimisation"], "steps": 2}}}
    params["evaluate"] = {RUN: shipped["evaluate"][RUN]}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    for command in ("pretrain", "finetune"):
        code, said = called(COMMANDS[command], root)
        if code:
            raise RuntimeError(f"{command} of the whole project ended with {code}: {said}")
    return root


def tried(name: str, commands: Sequence[str], plant: Callable[[Path, Path], None], whole: Path,
          root: Path) -> list[Verdict]:
    """One payload in a copy of the project, through its commands."""
    shutil.copytree(whole, root)
    canary = root.parent / f"canary-{root.name}"
    plant(root, canary)
    verdicts = []
    for command in commands:
        if command.startswith("process"):
            code, said = started(COMMANDS[command.removeprefix("process ")], root)
        elif command.endswith(" resumed"):
            with planted_resume(payload_files.torch_pickle(canary)):
                code, said = called(COMMANDS[command.removesuffix(" resumed")], root)
        else:
            code, said = called(COMMANDS[command], root)
        made = [path for path in (canary, *root.rglob(canary.name)) if path.exists()]
        verdicts.append(Verdict(name, command, code, said, bool(made)))
        for path in made:
            path.unlink()
    shutil.rmtree(root)
    return verdicts


def called(arguments: Sequence[str], root: Path) -> tuple[int, str]:
    """A command in this process, which saves loading torch each time: its exit code and its last line."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.chdir(root), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = cli.main(list(arguments))
    return code, last_line(errors.getvalue() if code else out.getvalue())


def started(arguments: Sequence[str], root: Path) -> tuple[int, str]:
    """A command in a process of its own, as the installed script starts it."""
    done = subprocess.run([sys.executable, "-P", "-m", "lacuna", *arguments], cwd=root, capture_output=True, text=True,
                          env=small_project.environment(), timeout=300)
    return done.returncode, last_line(done.stderr if done.returncode else done.stdout)


def last_line(text: str) -> str:
    """What a command said at its end."""
    lines = [line for line in text.splitlines() if line.startswith("lacuna:")] or text.strip().splitlines() or [""]
    return lines[-1]


@contextlib.contextmanager
def planted_resume(content: bytes) -> Iterator[None]:
    """Where a run's unfinished work is looked for, a resume state lies already."""
    def folder(*given: object, **more: object) -> resume.Work:
        work = resume.work_folder(*given, **more)  # type: ignore[arg-type]
        (work.folder / "resume.pt").write_bytes(content)
        for name in ("pretrained", "scratch"):
            (work.folder / f"{name}-seed0-lr0.001.pt").write_bytes(content)
        return work

    with patch("pipelines.pretrain.work_folder", folder), patch("pipelines.finetune.work_folder", folder):
        yield


if __name__ == "__main__":
    main()
