"""What this machine has left: memory, disk, cores. Standard library only, so that `lacuna doctor` runs where nothing
else does."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def memory() -> tuple[int, int]:
    """(bytes available now, bytes in all), the container's limit included; (0, 0) where the system does not say."""
    available, total = _system_memory()
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    if limit is not None and used is not None and limit < total:
        return min(available, limit - used), limit
    return available, total


def peak_memory() -> int:
    """Most bytes that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def disk_free(folder: Path) -> int:
    """Bytes free where `folder` is, or will be once it is made."""
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def cores() -> float:
    """Cores that this process may use: its affinity, and a container's quota where that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = _CGROUP / "cpu.max"
    if quota.is_file():
        share, period = quota.read_text().split()
        if share != "max":
            return min(float(allowed), int(share) / int(period))
    return float(allowed)


def size_text(num_bytes: float) -> str:
    """A size for people: 3.2 GB, 170 MB."""
    return f"{num_bytes / 2**30:.1f} GB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MB"


def time_text(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _system_memory() -> tuple[int, int]:
    if not _MEMINFO.is_file():
        return 0, 0
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))  # type: ignore[return-value]


def _number(path: Path) -> int | None:
    """The number in a file of the kernel's; None where there is no such file or it says "max"."""
    if not path.is_file():
        return None
    text = path.read_text().strip()
    return int(text) if text.isdigit() else None
