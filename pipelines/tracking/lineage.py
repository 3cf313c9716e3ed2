"""Where a result comes from: commit, hashes of what a stage read, the invocation that it belongs to, and run.json.

run.json lies in the stage's report, so DVC caches it: when a stage is restored and does not run, the stages after it
still find the run that really made its outputs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from domains import publish

RUN_FILE = "run.json"
IGNORED = ("__pycache__", ".ipynb_checkpoints")
"""Folders that .dvcignore leaves out, so that our hashes of folders are DVC's."""
MAX_HASHED = 2**30
"""Bytes of one dependency that are hashed here for a tag. Above, DVC's own hash is taken or the size is said: a tag is
not worth minutes of reading."""

_OWN_KEY = uuid.uuid4().hex[:16]


def store_root(root: Path) -> Path:
    """The folder that holds the tracking store. In a queued experiment DVC runs the stage in a copy that is deleted
    afterwards, and names the real project in DVC_ROOT."""
    return Path(os.environ.get("DVC_ROOT") or root).resolve()


def git_state(root: Path) -> dict[str, str]:
    """Tags git.commit and git.dirty of the working tree, read from git itself: MLflow finds no commit when the command
    was started from an environment that git ignores."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {"git.commit": "none", "git.dirty": "unknown"}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"git.commit": commit, "git.dirty": "unknown" if changed is None else str(bool(changed)).lower()}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None  # no git on this machine, or a tree so slow that a tag is not worth the wait
    return done.stdout.strip() if done.returncode == 0 else None


# ---------------------------------------------------------------------------------------------------------- invocation


def pipeline_key() -> str:
    """The same text for every stage of one pipeline invocation, in whichever process it runs.

    LACUNA_PIPELINE where it is set; else the `dvc` process above this one, by its number and start; else this process.
    """
    given = os.environ.get("LACUNA_PIPELINE", "")
    if given:
        return given if re.fullmatch(r"[\w.-]{1,64}", given) else _short(given)
    if "DVC_STAGE" in os.environ:
        for pid, start, command in ancestors(os.getpid()):
            if is_dvc(command):
                return _short(f"{socket.gethostname()} {_boot()} {pid} {start}")
    return _OWN_KEY


def called(stage: str, name: str) -> str:
    """What the invocation's run is called: as LACUNA_PIPELINE says, a number for `dvc repro`, and for a stage that was
    begun by hand what the stage is."""
    key = pipeline_key()
    if os.environ.get("LACUNA_PIPELINE"):
        return key
    return f"{stage}-{name}" if key == _OWN_KEY else f"pipeline-{key[:8]}"


@contextmanager
def together(called: str) -> Iterator[None]:
    """Stages that run inside belong to one invocation of this name, unless they do to another one already."""
    if "LACUNA_PIPELINE" in os.environ or "DVC_STAGE" in os.environ:
        yield
        return
    os.environ["LACUNA_PIPELINE"] = f"{called[:47]}-{uuid.uuid4().hex[:16]}"
    try:
        yield
    finally:
        del os.environ["LACUNA_PIPELINE"]


def ancestors(pid: int) -> Iterator[tuple[int, str, list[str]]]:
    """Number, start time and command line of the processes above `pid`, nearest first. Nothing where /proc is
    missing."""
    while pid > 1:
        try:
            pid = int(_stat(pid)[1])
            start = _stat(pid)[19]
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return  # not Linux, or a process that has just ended
        yield pid, start, [part.decode(errors="replace") for part in command if part]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on: [1] is the parent, [19] the start; the name before may hold
    blanks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def is_dvc(command: list[str]) -> bool:
    """`dvc repro`, `python /path/dvc repro` or `python -m dvc repro`; a shell whose text mentions dvc is not one."""
    words = [Path(part).name for part in command[:4]]
    return bool(words) and (words[0] == "dvc" or (words[0].startswith("python") and "dvc" in words[1:]))


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else ""


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -------------------------------------------------------------------------------------------------------------- hashes


def digest(path: Path) -> str:
    """DVC's hash of a file (md5) or of a folder (md5 of the sorted list of its files, then `.dir`)."""
    if path.is_file():
        return _md5(path)
    listing = [{"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in _files(path)]
    listing.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"
            and not any(part in IGNORED for part in file.relative_to(folder).parts)]


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def digests(paths: Mapping[str, str | None], root: Path) -> dict[str, str]:
    """A digest of at most 36 characters (MLflow's limit, and the length of DVC's) for each path relative to `root`.

    DVC's where it has just checked it, else the one that the caller knows, else it is computed.
    """
    locked = _locked(root)
    return {path: _cheapest_digest(path, root, locked, known)[:36] for path, known in paths.items()}


def stage_dependencies(root: Path) -> dict[str, str]:
    """Hash of every dependency of the DVC stage that runs now; empty outside of DVC.

    dvc.lock cannot tell: DVC writes a stage's own entry when the stage has ended.
    """
    paths = _dependencies_of(os.environ.get("DVC_STAGE", ""), root)
    locked = _locked(root) if paths else {}
    return {path: _cheapest_digest(path, root, locked, limit=MAX_HASHED) for path in paths}


def _cheapest_digest(path: str, root: Path, locked: Mapping[str, tuple[str, int]], known: str | None = None,
                     limit: int | None = None) -> str:
    full = root / path
    if not full.exists():
        return known or "missing"
    size = sum(file.stat().st_size for file in _files(full)) if full.is_dir() else full.stat().st_size
    checked_by_dvc, size_then = locked.get(path, ("", -1))
    if checked_by_dvc and size_then == size:
        return checked_by_dvc
    if known:
        return known
    return f"{size} bytes" if limit is not None and size > limit else digest(full)


def _locked(root: Path) -> dict[str, tuple[str, int]]:
    """Hash and size of every stage's outputs, from dvc.lock. Only inside a DVC stage, since DVC has then just made sure
    that the outputs before it are what the lock says."""
    path = root / "dvc.lock"
    if "DVC_STAGE" not in os.environ or not path.is_file():
        return {}
    stages = (yaml.safe_load(path.read_text()) or {}).get("stages") or {}
    return {out["path"]: (out["md5"], int(out.get("size", -1)))
            for stage in stages.values() for out in stage.get("outs", []) if "md5" in out}


def _dependencies_of(stage: str, root: Path) -> list[str]:
    """The `deps` of a stage in dvc.yaml, `pretrain@xray` included, with ${key}, ${item...} and params filled in."""
    path = root / "dvc.yaml"
    if not stage or not path.is_file():
        return []
    name, _, key = stage.rpartition(":")[2].partition("@")
    entry = ((yaml.safe_load(path.read_text()) or {}).get("stages") or {}).get(name) or {}
    params_file = root / "params.yaml"
    known: dict[str, Any] = (yaml.safe_load(params_file.read_text()) or {}) if params_file.is_file() else {}
    if "foreach" in entry:
        runs = entry["foreach"]
        runs = _fill_in(runs, known) if isinstance(runs, str) else runs
        known = {**known, "key": key, "item": runs.get(key) if isinstance(runs, dict) else key}
        entry = entry.get("do") or {}
    paths = [next(iter(dep)) if isinstance(dep, dict) else dep for dep in entry.get("deps", [])]
    filled = [_fill_in(path, known) for path in paths]
    return [path for path in filled if isinstance(path, str) and path]


def _fill_in(text: str, known: Mapping[str, Any]) -> Any:
    """Replace ${a.b.c}; a text that is one replacement gives the value itself; an unknown name gives None."""
    whole = re.fullmatch(r"\$\{([^}]+)\}", text)
    if whole:
        return _look_up(whole[1], known)
    values = {name: _look_up(name, known) for name in re.findall(r"\$\{([^}]+)\}", text)}
    if None in values.values():
        return None
    return re.sub(r"\$\{([^}]+)\}", lambda match: str(values[match[1]]), text)


def _look_up(dotted: str, known: Mapping[str, Any]) -> Any:
    value: Any = known
    for part in dotted.strip().split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


# ------------------------------------------------------------------------------------------------------------ run.json


def run_file(stage: str, name: str, root: Path) -> Path:
    """Where a stage's run.json lies: in its report, never in a folder that a later stage depends on (a new run id would
    make everything after it stale)."""
    return root / "reports" / stage / name / RUN_FILE


def seconds(path: str, root: Path) -> float | None:
    """How long the stage that made a path took, where its report is at hand. Time is told in reports alone, so that
    equal work leaves equal artifacts, and no stage is stale because an earlier one was slower."""
    made_by = producer(path)
    file = run_file(*made_by, root).with_name("metrics.json") if made_by else None
    if file is None or not file.is_file():
        return None
    took: float | None = json.loads(file.read_text()).get("seconds")
    return took


def producer(path: str) -> tuple[str, str] | None:
    """The stage and run name that make a path: data/prepared/xray -> ingest, xray; artifacts/pretrain/ct -> pretrain,
    ct."""
    parts = Path(path).parts
    if parts[:2] == ("data", "prepared") and len(parts) >= 3:
        return "ingest", parts[2]
    return (parts[1], parts[2]) if parts[:1] == ("artifacts",) and len(parts) >= 3 else None


def upstream(inputs: Iterable[str], root: Path) -> list[str]:
    """Ids of the runs that made the inputs, in order and once each. A run that no server has seen yet has no id: its
    key stands in, which is the tag `lacuna.run` that the run will have."""
    found: list[str] = []
    for path in inputs:
        made_by = producer(path)
        if made_by and run_file(*made_by, root).is_file():
            record = json.loads(run_file(*made_by, root).read_text())
            identity = record.get("run_id") or record.get("key")
            if identity and identity not in found:
                found.append(identity)
    return found


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write run.json atomically."""
    publish.write_text(path, json.dumps(record, indent=2) + "\n")
