"""Time and memory against image size and number of channels: `python -m benchmarks.growth [--rounds 3]`.

One process per point, since the most memory that a process has held is never given back. A step that is all matrix
products takes time as its operations do; the ratio of both growths says what else there is. Memory is what a step takes
beyond weights, and is set against operations and against tokens. Small widths, so that 1,024 pixels fit a CPU: at the
usual ones the share of attention is smaller.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch

from benchmarks import flops
from benchmarks.mae_step import our_optimiser, pair_of, stepper
from benchmarks.paired import now, peak_bytes, quartiles, report, told
from models.encoder.transformer import Shape
from models.objectives.decoders import DecoderSettings

SHAPE, DECODER = Shape(384, 2, 6), DecoderSettings(width=256, depth=2, num_heads=8)
POINTS = {"image size": [(224, 1), (448, 1), (1024, 1)], "channels": [(112, 1), (112, 4), (112, 12)]}
"""(pixels, channels); the first of each is what the others are set against."""
BATCH = 1
BAR = 1.15


def measure(pixels: int, channels: int, bands: bool, steps: int = 2) -> dict[str, float]:
    """Median seconds of a step, and bytes that the first step added to what the process had held."""
    torch.set_num_threads(1)
    settled = pair_of(SHAPE, (32, 32), (16, 16), BATCH, channels=channels, decoder=DECODER, bands=bands)
    _stepper(settled)()                                                     # libraries, threads, buffers
    pair = pair_of(SHAPE, (pixels, pixels), (16, 16), BATCH, channels=channels, decoder=DECODER, bands=bands)
    step = _stepper(pair)
    before = peak_bytes()
    step()
    grown = peak_bytes() - before
    seconds = []
    for _ in range(steps):
        began = now()
        step()
        seconds.append(now() - began)
    return {"seconds": quartiles(seconds).middle, "bytes": grown}


def _stepper(pair: Any) -> Any:
    return stepper(pair.ours, pair.our_loss, our_optimiser(pair.ours), torch.float32)


def operations(pixels: int, channels: int, bands: bool) -> tuple[float, int]:
    """Of a step, and tokens of a sample."""
    tokens = (pixels // 16) ** 2 * (channels if bands else 1)
    return BATCH * flops.mae(SHAPE, tokens, 256 * (1 if bands else channels), decoder=DECODER).train, tokens


def rows_of(axis: str, points: list[tuple[int, int]], rounds: int) -> list[dict[str, Any]]:
    """One row per point, the points in turns."""
    bands = axis == "channels"
    runs: list[list[dict[str, float]]] = [[] for _ in points]
    for _ in range(rounds):
        for (pixels, channels), found in zip(points, runs, strict=True):
            answer = subprocess.run([sys.executable, "-W", "ignore", "-m", "benchmarks.growth", "--point", str(pixels),
                                     str(channels), str(int(bands))], check=True, capture_output=True, text=True)
            found.append(json.loads(answer.stdout))
    least, fewest = operations(*points[0], bands)
    rows = []
    for (pixels, channels), found in zip(points, runs, strict=True):
        work, tokens = operations(pixels, channels, bands)
        slower = quartiles([a["seconds"] / b["seconds"] / (work / least) for a, b in zip(found, runs[0], strict=True)])
        larger = quartiles([a["bytes"] / b["bytes"] for a, b in zip(found, runs[0], strict=True)])
        rows.append({"what": f"{pixels} px, {channels} channel{'s' * (channels > 1)}", "tokens": tokens,
                     "operations, x": work / least, "time over operations": str(slower),
                     "memory, MB": quartiles([run["bytes"] / 1e6 for run in found]).middle,
                     "memory over operations": larger.middle / (work / least),
                     "memory over tokens": larger.middle / (tokens / fewest),
                     "verdict": "" if work == least else
                     told(max(slower.middle, larger.middle / (work / least)) <= BAR, f"bar {BAR}")})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--point", type=int, nargs=3, metavar=("PIXELS", "CHANNELS", "BANDS"), help="one, as JSON")
    chosen = parser.parse_args()
    if chosen.point:
        pixels, channels, bands = chosen.point
        print(json.dumps(measure(pixels, channels, bool(bands))))
        return
    torch.set_num_threads(1)
    report("growth", [row for axis, points in POINTS.items() for row in rows_of(axis, points, chosen.rounds)])


if __name__ == "__main__":
    main()
