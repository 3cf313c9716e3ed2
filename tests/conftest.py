"""What every test may count on: one thread, no server, and the real files where they are."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("LACUNA_SHARED") or ROOT.parent / "shared")
REQUIRED = "LACUNA_SHARED_REQUIRED"
WHY_SKIPPED = "LACUNA_SHARED names no folder with {what}; set it to where the real files are to run this test"

# One thread: sums come out in one order, and tiny tensors gain nothing from more. Before torch is imported, and
# inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
# Tests write to no server of anybody's, and report to nobody.
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "DVC_ROOT", "DVC_STAGE"):
    os.environ.pop(_name, None)
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DVC_NO_ANALYTICS"] = "true"
# What a shell starts in the background is deaf to Ctrl-C, and so would be the processes that tests stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real files: cxr, ct, multispectral, pointcloud, each with labels.csv."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Folder of recorded outputs of the reference implementations."""
    return _shared("golden")


def _shared(what: str) -> Path:
    folder = SHARED / what
    if not folder.is_dir():
        pytest.skip(WHY_SKIPPED.format(what=what))
    return folder


@pytest.fixture
def no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages keep no runs."""
    monkeypatch.setenv("LACUNA_TRACKING", "off")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads that failed are tried again at once."""
    monkeypatch.setattr("pipelines.intake.download.time", SimpleNamespace(sleep=lambda seconds: None))


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch
    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; this machine has none"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where the real files are promised (LACUNA_SHARED_REQUIRED), a test that skips for want of them is a failure."""
    if not os.environ.get(REQUIRED):
        return
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [report for report in reporter.stats.get("skipped", []) if "LACUNA_SHARED" in str(report.longrepr)]
    if skipped:
        reporter.write_line(f"{REQUIRED} is set, and {len(skipped)} tests were skipped for want of real files: "
                            + ", ".join(report.nodeid for report in skipped), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
