"""An MLflow server that dies in the middle of a run: `python -m benchmarks.faults.tracking_down`.

A real `mlflow server` on loopback gets the curves of a real `lacuna pretrain` and is killed (-9, with all its workers)
half-way. The training must end well with every point in its metrics.jsonl. Then the server is started again on the same
store, `lacuna sync` is called, and every point of metrics.jsonl is looked for on the server, by name, step and value.
The time per step without the server is held against that with it, within the same run.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.faults.small_project import RUN, environment, lacuna, make, to_the_end


def main(steps: int = 1200) -> int:
    """Print points lost and the ratio of step times; 1 when a step or a point is missing."""
    with tempfile.TemporaryDirectory() as text:
        root = make(Path(text), steps=steps, log_every=10)
        port = free_port()
        where = f"http://127.0.0.1:{port}"
        server = start(root, port)
        process = lacuna(root, "pretrain", RUN, LACUNA_TRACKING="", MLFLOW_TRACKING_URI=where)
        while len(lines(root)) < steps // 20 and process.poll() is None:
            time.sleep(0.05)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        dead = time.time()
        said = to_the_end(process)
        spooled = len(list((root / "spool").glob("*.jsonl")))
        server = start(root, port)
        to_the_end(lacuna(root, "sync", LACUNA_TRACKING="", MLFLOW_TRACKING_URI=where))
        found, missing = compared(root, where)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        logged = sorted({line["step"] for line in lines(root) if "loss" in line})
        ratio = slower(root, dead)
    whole = logged == list(range(10, steps + 1, 10))
    print(f"tracking_down: warned {said.count('did not take')} time(s), {spooled} run spooled; steps "
          f"{'all there' if whole else 'MISSING'}; after `lacuna sync` {found} of {found + missing} points on the "
          f"server; median time per step without it {ratio:.3f} of that with it")
    return 0 if whole and not missing and spooled else 1


def start(root: Path, port: int) -> subprocess.Popen[bytes]:
    """A server that answers."""
    with (root / "server.log").open("ab") as log:
        server = subprocess.Popen([
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{root / 'server.db'}", "--artifacts-destination", str(root / "server")],
            env=environment(), cwd=root, stdout=log, stderr=log, start_new_session=True)
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return server
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError((root / "server.log").read_text()[-2000:])


def lines(root: Path) -> list[dict[str, float]]:
    """What the run has logged so far."""
    file = root / "reports/pretrain" / RUN / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def compared(root: Path, where: str) -> tuple[int, int]:
    """How many points of metrics.jsonl the server has, and how many it lacks."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=where)
    record = json.loads((root / "reports/pretrain" / RUN / "run.json").read_text())
    experiment = client.get_experiment_by_name(record["experiment"])
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id], f"tags.`lacuna.run` = '{record['key']}'")
    points = [(key, line["step"], value) for line in lines(root) for key, value in line.items()
              if key not in ("step", "time")]
    held = {key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
            for key in {key for key, _, _ in points}}
    there = [any(step == at and math.isclose(value, one, rel_tol=1e-9) for at, one in held[key])
             for key, step, value in points]
    return sum(there), len(there) - sum(there)


def slower(root: Path, dead: float) -> float:
    """Median time between two points after the server's death over that before."""
    times = [line["time"] for line in lines(root) if "loss" in line]
    gaps = [(later, later - earlier) for earlier, later in zip(times[2:], times[3:], strict=False)]
    return statistics.median(gap for at, gap in gaps if at > dead) / statistics.median(
        gap for at, gap in gaps if at <= dead)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
