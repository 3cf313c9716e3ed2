"""Operations on points: `python -m benchmarks.point_operations [--rounds 21] [--threads 1]`.

Farthest points while files are read, beside Open3D's older function and fpsample's at every height of its tree; and in
torch, for training, farthest points, neighbours and the Chamfer distance with its gradient, beside the plain forms that
method papers' code has. All are first compared with brute force; nothing is timed before they agree.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.paired import Stillness, in_turns, quartiles, report, speedup, told, verdict
from domains.pointcloud.farthest import farthest_first
from domains.pointcloud.libraries import library
from models.encoder.point_ops import chamfer_l2, farthest_point_sampling, nearest_neighbours

INGEST = ((1_024, 64), (8_192, 1_024), (100_000, 1_024))
"""Points of a cloud, and how many are chosen."""
HEIGHTS = (3, 5, 7, 9)
"""Of fpsample's tree: what its documentation names for small to large clouds."""
MOST_OF_BEST = 1.1
"""Ours may take this much of the fastest rival's time."""
LEAST_CHAMFER = 4.5
"""How many times faster than the plain form the Chamfer distance must be."""
GROUPS = 4_864
"""Hidden groups of a batch of Point-MAE: 128 clouds, 38 of 64 groups each."""


# ---- while files are read ----

def at_ingest(points: int, chosen: int, rounds: int, repeats: int) -> dict[str, Any]:
    """Ours beside the fastest rival, as times in the same round."""
    cloud = np.random.default_rng(points).normal(size=(points, 3))
    rivals = {"open3d": lambda: by_open3d(cloud, chosen)}
    for height in (height for height in HEIGHTS if 2**height <= points):
        rivals[f"fpsample h{height}"] = lambda height=height: by_fpsample(cloud, chosen, height)
    check_ingest(cloud, chosen)

    def several(run: Callable[[], object]) -> Callable[[], None]:
        return lambda: [run() for _ in range(repeats)] and None

    runs = {"ours": lambda: farthest_first(cloud, chosen), **rivals}
    seconds = in_turns({name: several(run) for name, run in runs.items()}, rounds)
    best = min(rivals, key=lambda name: statistics.median(seconds[name]))
    share = quartiles([own / other for own, other in zip(seconds["ours"], seconds[best], strict=True)])
    return {"farthest points at ingest": f"{points:,} -> {chosen:,}",
            "ours, ms": 1000 * statistics.median(seconds["ours"]) / repeats, "fastest rival": best,
            "its ms": 1000 * statistics.median(seconds[best]) / repeats,
            "Open3D, ms": 1000 * statistics.median(seconds["open3d"]) / repeats, "ours / rival": str(share),
            "verdict": told(share.middle <= MOST_OF_BEST, f"bar {MOST_OF_BEST}")}


def by_fpsample(cloud: np.ndarray, num: int, height: int) -> np.ndarray:
    """S indices; the start is the library's own."""
    chosen: np.ndarray = library("fpsample").bucket_fps_kdline_sampling(cloud, num, height, start_idx=0)
    return chosen


def by_open3d(cloud: np.ndarray, num: int) -> np.ndarray:
    """S 3 points in the cloud's order: the older function gives no indices."""
    open3d = library("open3d")
    points = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(cloud))
    return np.asarray(points.farthest_point_down_sample(num, 0).points)


def check_ingest(cloud: np.ndarray, num: int) -> None:
    """Raises AssertionError unless all choose what brute force chooses in their precision, from their own start."""
    ours = farthest_first(cloud, num)
    assert np.array_equal(ours, brute_force(cloud.astype(np.float32), num, int(ours[0]))), "ours"
    theirs = by_fpsample(cloud, num, 5).astype(np.int64)
    assert np.array_equal(theirs, brute_force(cloud.astype(np.float32), num, int(theirs[0]))), "fpsample"
    # Open3D gives what it has chosen in the cloud's order, not in that of choosing
    assert np.array_equal(by_open3d(cloud, num), cloud[np.sort(brute_force(cloud, num, 0))]), "open3d"


def brute_force(points: np.ndarray, num: int, start: int) -> np.ndarray:
    """S int64: farthest points in the precision of `points`, the first of equals."""
    x, y, z = np.ascontiguousarray(points.T)
    nearest = np.full(len(points), np.inf, points.dtype)
    chosen = np.empty(num, np.int64)
    at = start
    for i in range(num):
        chosen[i] = at
        dx, dy, dz = x - x[at], y - y[at], z - z[at]
        nearest = np.minimum(nearest, dx * dx + dy * dy + dz * dz)
        at = int(nearest.argmax())
    return chosen


# ---- while training ----

def plain_farthest(points: Tensor, num: int) -> Tensor:
    """B S: the usual loop over B M 3."""
    batch, available, _ = points.shape
    nearest = torch.full((batch, available), torch.inf)
    at, rows = torch.zeros(batch, dtype=torch.long), torch.arange(batch)
    chosen = torch.zeros(batch, num, dtype=torch.long)
    for i in range(num):
        chosen[:, i] = at
        gap = ((points - points[rows, at].unsqueeze(1)) ** 2).sum(-1)
        nearest = torch.minimum(nearest, gap)
        at = nearest.max(-1).indices
    return chosen


def plain_neighbours(centres: Tensor, points: Tensor, num: int) -> Tensor:
    """B G k: by all differences."""
    gap = ((centres.unsqueeze(2) - points.unsqueeze(1)) ** 2).sum(-1)
    return gap.topk(num, dim=-1, largest=False).indices


def plain_chamfer(pred: Tensor, target: Tensor) -> Tensor:
    """G: by all differences."""
    gap = ((pred.unsqueeze(2) - target.unsqueeze(1)) ** 2).sum(-1)
    return gap.min(2).values.mean(1) + gap.min(1).values.mean(1)


def in_training(rounds: int, batch: int, groups: int) -> list[dict[str, Any]]:
    """Ours beside the plain form: farthest points, neighbours, Chamfer distance forward and backward."""
    generator = torch.Generator().manual_seed(0)
    clouds = torch.randn(batch, 1024, 3, generator=generator)
    centres = clouds[:, :64]
    pred = (0.2 * torch.randn(groups, 32, 3, generator=generator)).requires_grad_()
    target = 0.2 * torch.randn(groups, 32, 3, generator=generator)
    check_training(clouds, centres, pred, target)

    def backward(chamfer: Callable[[Tensor, Tensor], Tensor]) -> None:
        chamfer(pred, target).mean().backward()
        pred.grad = None

    cases: dict[str, tuple[Callable[[], object], Callable[[], object], float]] = {
        f"farthest points, {batch} x 1,024 -> 64": (
            lambda: farthest_point_sampling(clouds, 64), lambda: plain_farthest(clouds, 64), 0),
        f"neighbours, {batch} x 64 of 1,024, k 32": (
            lambda: nearest_neighbours(centres, clouds, 32), lambda: plain_neighbours(centres, clouds, 32), 0),
        f"Chamfer with gradient, {groups:,} groups of 32": (
            lambda: backward(lambda a, b: chamfer_l2(a[None], b[None])[0]), lambda: backward(plain_chamfer),
            LEAST_CHAMFER)}
    rows = []
    for name, (ours, plain, bar) in cases.items():
        seconds = in_turns({"ours": ours, "plain": plain}, rounds)
        faster = speedup(seconds["plain"], seconds["ours"])
        rows.append({"in torch": name, "ours, ms": 1000 * statistics.median(seconds["ours"]),
                     "plain, ms": 1000 * statistics.median(seconds["plain"]), "times faster": str(faster),
                     "bar": verdict(faster, bar) if bar else "none"})
    return rows


def check_training(clouds: Tensor, centres: Tensor, pred: Tensor, target: Tensor) -> None:
    """Raises AssertionError unless both forms agree: the same points, the same neighbours, values and gradients of the
    Chamfer distance within 1e-5 of those in float64."""
    assert torch.equal(farthest_point_sampling(clouds, 64), plain_farthest(clouds, 64)), "farthest points"
    found, plain = nearest_neighbours(centres, clouds, 32), plain_neighbours(centres, clouds, 32)
    assert torch.equal(found.sort().values, plain.sort().values), "neighbours"
    exact = plain_chamfer(pred.double(), target.double())
    (slope,) = torch.autograd.grad(exact.sum(), pred)
    for chamfer in (plain_chamfer, lambda a, b: chamfer_l2(a[None], b[None])[0]):
        distance = chamfer(pred, target)
        torch.testing.assert_close(distance.double(), exact, rtol=1e-5, atol=0)
        (own,) = torch.autograd.grad(distance.sum(), pred)
        torch.testing.assert_close(own, slope, rtol=1e-5, atol=1e-7)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, time, print and write reports/bench/point_operations*.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="measured rounds")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; the readers' libraries use one")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it works")
    told = parser.parse_args(arguments)
    torch.set_num_threads(told.threads)
    sizes = ((256, 16), (1_024, 64)) if told.small else INGEST
    with Stillness() as still:
        at_reading = [at_ingest(points, chosen, told.rounds, max(1, 50_000 // points)) for points, chosen in sizes]
        training = in_training(told.rounds, 4 if told.small else 128, 16 if told.small else GROUPS)
    report("point_operations_at_ingest", at_reading, still)
    report("point_operations_in_training", training, still)


if __name__ == "__main__":
    main()
