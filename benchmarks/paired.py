"""Fair timing: all variants alive in one process, taken in turns, judged by the ratios within a round.

A shared machine runs twice as fast in one minute as in the next, so that milliseconds say little. What two variants do
in the same round they do under the same load. A matrix product before and after tells whether the machine kept still.
With one thread on a CPU, time is the processor's: what other processes take is not counted.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

REPORTS = Path("reports/bench")
"""Where figures are written, under the folder that one stands in; git-ignored."""
MAX_DRIFT = 0.25
"""Matrix products before and after may differ by this share; beyond it the figures are discarded."""


class Quartiles(NamedTuple):
    """Where the middle half of some numbers lies."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def quartiles(numbers: Sequence[float]) -> Quartiles:
    """First quartile, median, third quartile; all equal for a single number."""
    return Quartiles(*statistics.quantiles(numbers, n=4, method="inclusive")) if len(numbers) > 1 \
        else Quartiles(*[numbers[0]] * 3)


def now() -> float:
    """Seconds: the processor's own with one thread and no GPU, the clock's otherwise."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


def in_turns(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round, after one warm-up of each. On a GPU, a variant ends when its work does."""
    for run in variants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            settle()
            began = now()
            run()
            settle()
            seconds[name].append(now() - began)
    return seconds


def settle() -> None:
    """Wait for what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def speedup(slow: Sequence[float], fast: Sequence[float]) -> Quartiles:
    """How many times faster, over the rounds."""
    return quartiles([a / b for a, b in zip(slow, fast, strict=True)])


def verdict(ratio: Quartiles, bar: float) -> str:
    """Whether a ratio is at least its bar. Quartiles that straddle 1 decide nothing."""
    if ratio.low < 1 < ratio.high:
        return f"none: the quartiles straddle 1 (bar {bar:g})"
    return told(ratio.middle >= bar, f"bar {bar:g}")


def told(met: bool, bar: str) -> str:
    """Met or missed, and what."""
    return f"{'met' if met else 'missed'} ({bar})"


def agree(what: str, found: float, expected: float, tolerance: float) -> None:
    """Raises AssertionError where two numbers differ by more than `tolerance` relative: variants that compute different
    things are not timed against each other."""
    if not abs(found - expected) <= tolerance * abs(expected):
        raise AssertionError(f"{what}: found {found!r}, expected {expected!r} within {tolerance:g} relative. "
                             "Nothing is timed before the results agree.")


def matmul_rate(dtype: torch.dtype = torch.float32, device: str = "cpu", size: int = 0, repeats: int = 5) -> float:
    """GFLOP/s of a square matrix product, the best of `repeats`."""
    size = size or (8192 if device == "cuda" else 1536)
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(repeats + 1):
        settle()
        began = now()
        a @ a
        settle()
        best = min(best, now() - began)
    return 2 * size**3 / best / 1e9


class Stillness:
    """Matrix products before and after what stands under `with`; `kept` says whether they agree."""

    def __init__(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.dtype, self.device = dtype, device
        self.before = self.after = 0.0

    def __enter__(self) -> Stillness:
        self.before = matmul_rate(self.dtype, self.device)
        return self

    def __exit__(self, *_: object) -> None:
        self.after = matmul_rate(self.dtype, self.device)
        print(f"matrix product {self.before:.0f} GFLOP/s before, {self.after:.0f} after"
              + ("" if self.kept else f": they differ by more than {MAX_DRIFT:.0%}, discard these figures"))

    @property
    def kept(self) -> bool:
        """Whether the machine ran as fast after as before."""
        return abs(self.after - self.before) <= MAX_DRIFT * max(self.before, self.after)


def peak_bytes() -> int:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def hardware() -> str:
    """What the figures were measured on."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor()) if Path("/proc/cpuinfo").exists() \
        else platform.processor()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {torch.get_num_threads()} threads used, torch {torch.__version__}{gpu}"


def report(name: str, rows: Sequence[Mapping[str, Any]], still: Stillness | None = None) -> None:
    """Print rows as a table and write them to reports/bench/<name>.json."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print(f"\n{name}: `{' '.join(['python -m ' + _module(), *sys.argv[1:]])}`, {hardware()}\n")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(_shown(row.get(column, '')) for column in columns)} |")
    REPORTS.mkdir(parents=True, exist_ok=True)
    written = {"benchmark": name, "hardware": hardware(), "rows": [dict(row) for row in rows],
               "matmul_gflops": None if still is None else [still.before, still.after],
               "kept_still": None if still is None else still.kept}
    (REPORTS / f"{name}.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else "benchmarks"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
