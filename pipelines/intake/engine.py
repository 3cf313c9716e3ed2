"""Who reads the files: this machine, or a Dask cluster. The code that reads, and what comes of it, are the same.

Dask and not Ray: ingest is many independent tasks of the same kind, for which its scheduler of 1 MB of pure Python
suffices; it runs on SLURM, Kubernetes or ssh where people have it already, and it needs no object store of its own,
which Ray sizes at a third of a machine's memory.

What travels through the scheduler is small text: rows there, a number back. The samples go through a folder that all
machines see, one file per task, which the head reads in order and removes. At most two tasks per worker are under way,
so that neither the scheduler nor that folder grows with the number of files.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from domains import frames, worker
from domains.outcome import Outcome, outcome_of
from domains.quarantine import Limits, Reader, read_all, spare_children
from domains.sample import ManifestRow
from pipelines.intake.remote import Read

TASKS_PER_WORKER = 2
"""One that is worked on and one that waits."""
TRIES = 3
"""How often a task may be begun: machines of a cluster are taken away."""


@dataclass(frozen=True)
class Engine:
    """Who reads the files."""

    kind: Literal["local", "dask"] = "local"
    """local: processes on this machine. dask: those of a cluster, which see the same folders under the same paths and
    have the same code installed."""
    address: str = ""
    """The scheduler's address ("tls://head:8786"). Empty: a cluster of `processes` on this machine, to try it."""
    processes: int = 2
    """Workers of that cluster."""
    rows_per_task: int = 128
    """Rows that a worker reads at a time. Its reading processes start anew for each task, which many rows repay; what
    they hold lies in `scratch`, at most two tasks per worker."""
    scratch: str = ".work/engine"
    """A folder that all machines see, relative to the project's root."""

    def __post_init__(self) -> None:
        if self.processes < 1 or self.rows_per_task < 1:
            raise ValueError(f"engine: found processes {self.processes}, rows_per_task {self.rows_per_task}; expected "
                             "at least 1.")
        if self.kind == "local" and self.address:
            raise ValueError(f"engine.address: found {self.address} with kind: local. Remedy: set kind: dask.")


@contextmanager
def reading_here() -> Iterator[Read]:
    """`read_all` with children that serve one call after the other. They end with the block, also where it is left in
    the middle of a call."""
    with spare_children() as spare, ExitStack() as calls:
        def here(rows: Sequence[ManifestRow], reader: Reader, limits: Limits) -> Iterator[Outcome]:
            return calls.enter_context(closing(read_all(rows, reader, limits, spare)))

        yield here


def reading(engine: Engine, root: Path, here: Read = read_all) -> Read:
    """`read_all`, by this engine; by `here` where that is this machine."""
    if engine.kind == "local":
        return here

    def read(rows: Sequence[ManifestRow], reader: Reader, limits: Limits) -> Iterator[Outcome]:
        if rows:
            with _client(engine) as client, _scratch(root / engine.scratch) as folder:
                _refuse_other_code(client, reader)
                yield from _read_by(client, rows, reader, limits, engine, folder)

    return read


@contextmanager
def _client(engine: Engine) -> Iterator[Any]:
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError("engine.kind: dask needs `distributed`, which is not installed. Remedy: pip install "
                          "'lacuna[cluster]'.") from error
    if engine.address:
        with Client(engine.address, set_as_default=False, timeout=30) as client:
            yield client
        return
    with LocalCluster(engine.processes, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster, \
            Client(cluster, set_as_default=False) as client:
        yield client


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _read_by(client: Any, rows: Sequence[ManifestRow], reader: Reader, limits: Limits, engine: Engine, folder: Path
             ) -> Iterator[Outcome]:
    fixed = frames.encode([reader, limits])
    starts = iter(range(0, len(rows), engine.rows_per_task))
    under_way: deque[tuple[int, list[ManifestRow], Path, Any]] = deque()

    def submit() -> None:
        begin = next(starts, None)
        if begin is None:
            return
        chunk = list(rows[begin:begin + engine.rows_per_task])
        order, part = json.dumps([fixed, frames.encode(chunk)]), folder / f"{begin}.part"
        under_way.append((begin, chunk, part, client.submit(
            read_part, order, str(part), pure=False, retries=TRIES - 1)))

    for _ in range(TASKS_PER_WORKER * max(1, len(client.scheduler_info(n_workers=-1)["workers"]))):
        submit()
    while under_way:
        begin, chunk, part, future = under_way.popleft()
        try:
            future.result()
        except ImportError:
            raise
        except Exception as error:
            raise RuntimeError(f"engine: rows {begin + 1} to {begin + len(chunk)} were not read after {TRIES} tries "
                               f"({type(error).__name__}). Expected workers that stay up and see {folder.name} under "
                               "engine.scratch. Remedy: look at the workers' logs, or set kind: local.") from error
        yield from _outcomes(part, begin, chunk)
        part.unlink()
        submit()


# ---- on the worker ----

_ONE_AT_A_TIME = threading.Lock()
"""Reading processes are the parallelism of a worker, not its threads."""


def read_part(order: str, part: str) -> int:
    """Read the rows of an order and write what came of them to a file of frames. Returns how many outcomes there are.

    The rows are parsed by the same limited child processes as on one machine.
    """
    (reader, limits), rows = frames.decode(json.loads(order))
    number = 0
    # A task that was taken for lost may still be running elsewhere: each writes a file of its own.
    temporary = f"{part}.{os.uname().nodename}.{os.getpid()}"
    with _ONE_AT_A_TIME:
        with open(temporary, "wb", buffering=0) as file:
            for outcome in read_all(rows, reader, limits):
                frames.send(file.fileno(), *_described(outcome))
                number += 1
            os.fsync(file.fileno())
        os.replace(temporary, part)
    return number


def _described(outcome: Outcome) -> tuple[dict[str, Any], list[np.ndarray]]:
    header = {"index": outcome.index, "part": outcome.row.part, "more": outcome.more, "sha256": outcome.sha256,
              "peak_bytes": outcome.peak_bytes, "pieces": [frames.describe(piece) for piece in outcome.pieces]}
    if outcome.reason:
        header["refused"] = outcome.reason
    return header, [array for piece in outcome.pieces for array in (piece.values, piece.mask) if array is not None]


def _outcomes(part: Path, begin: int, chunk: Sequence[ManifestRow]) -> Iterator[Outcome]:
    """What a worker wrote, checked like what a reading process sends."""
    with part.open("rb") as file:
        while lengths := file.read(frames.LENGTHS.size):
            num_header, num_arrays = frames.LENGTHS.unpack(lengths)
            header, payload = json.loads(file.read(num_header)), bytearray(file.read(num_arrays))
            row = replace(chunk[header["index"]], part=header["part"])
            yield outcome_of(row, begin + header["index"], header, payload)


def code_hash(reader_module: str) -> str:
    """sha256 of the sources that reading depends on, on the machine that is asked."""
    digest = hashlib.sha256()
    own = Path(importlib.import_module(reader_module).__file__ or "").parent
    for file in sorted({*Path(worker.__file__).parent.glob("*.py"), *own.glob("*.py"), Path(__file__)}):
        digest.update(f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _refuse_other_code(client: Any, reader: Reader) -> None:
    own = code_hash(reader.module)
    others = [name for name, found in client.run(code_hash, reader.module).items() if found != own]
    if others:
        raise RuntimeError(f"engine: found other code of Lacuna on {len(others)} workers (first: {others[0]}), "
                           "expected the same everywhere, since the result must not depend on the machine. Remedy: "
                           "install this version there and restart the workers.")
