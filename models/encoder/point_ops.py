"""The three point operations that Point-MAE needs, in plain torch: farthest points, neighbours, Chamfer distance.

Farthest points come by two rules: the textbook's, and that of the CUDA operation `pointnet2_ops`, by which Point-MAE's
weights were made. The latter passes over points near the origin and breaks ties by thread, so its centres differ.

Legend: B batch, M points, S chosen points, G groups, K points per group. Coordinates are the last axis, always 3.

All are batched and run on any device; none draws random numbers. Points are expected finite and centred: the domain's
`ingest` drops non-finite points and its `normalise` moves the centroid to 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def farthest_point_sampling(points: Tensor, num: int, start: int | Tensor = 0,
                            usable: Tensor | None = None) -> Tensor:
    """Choose `num` points, each the farthest from all chosen before it.

    Textbook rule: begin at `start`; then always take the point whose distance to its nearest chosen point is largest,
    the lowest index among equals. No index is chosen twice, even when the cloud holds fewer than `num` distinct points.

    Args:
        points: B M 3.
        num: how many to choose, at most M.
        start: index of the first point, one for all samples or one per sample (B).
        usable: B M bool, which points may be chosen, the first among them; None for all. A sample with fewer than
            `num` of them gives index 0 from there on.

    Returns:
        B num indices into M, in the order of choosing.
    """
    batch, available, _ = points.shape
    _check_enough(available, num)
    x, y, z = points.float().permute(2, 0, 1).contiguous()  # 3 of B M: each step then reads memory in order
    chosen = torch.empty(batch, num, dtype=torch.long, device=points.device)
    last = torch.as_tensor(start, dtype=torch.long, device=points.device).expand(batch).unsqueeze(1)  # B 1
    nearest = torch.full((batch, available), torch.inf, device=points.device)
    if usable is not None:
        nearest = nearest.masked_fill(~usable, -1.0)
    for step in range(num):
        chosen[:, step] = last[:, 0]
        # -1 is below every distance, so that a chosen point stays chosen among exact duplicates
        nearest = torch.minimum(nearest, _squared_gap(x, y, z, last)).scatter_(1, last, -1.0)
        last = nearest.argmax(1, keepdim=True)  # torch takes the first of equal maxima
    return chosen


@torch.no_grad()
def pointnet2_sampling(points: Tensor, num: int) -> Tensor:
    """Farthest points as `pointnet2_ops` (Wijmans; after Qi et al. 2017) chooses them on a GPU, on any device.

    It begins at index 0. A point with x*x + y*y + z*z <= 1e-3 is never chosen after that. Distances to the chosen
    points begin at 1e10. Each of T threads looks at the points t, t + T ... and keeps its first best; then halves of
    the threads are compared, the lower one winning ties. So exact ties go by the bit-reversed thread, then by index.
    Chosen points stay in the race with distance 0: with fewer distinct points than `num`, some are chosen twice.

    Args:
        points: B M 3.
        num: how many to choose, at most M.

    Returns:
        B num indices into M, in the order of choosing. Index 0 where no point may be chosen.
    """
    batch, available, _ = points.shape
    _check_enough(available, num)
    order = torch.tensor(_tie_order(available), device=points.device)        # M: the first of equals wins
    x, y, z = points.float()[:, order].permute(2, 0, 1).contiguous()
    passed_over = x * x + y * y + z * z <= 1e-3                              # B M
    nearest = torch.full((batch, available), 1e10, device=points.device).masked_fill_(passed_over, -1.0)
    last = torch.zeros(batch, 1, dtype=torch.long, device=points.device)     # B 1 into `order`, whose first is 0
    chosen = [last]
    for _ in range(num - 1):
        # -1 stays the least, since no distance is below 0
        nearest = torch.minimum(nearest, _squared_gap(x, y, z, last))
        last = nearest.argmax(1, keepdim=True)
        chosen.append(last)
    return order[torch.cat(chosen, 1)]


def _tie_order(count: int) -> list[int]:
    """Indices 0 .. count - 1 in the order in which `pointnet2_ops` prefers equals."""
    bits = min(count.bit_length() - 1, 9)                                    # at most 512 threads
    reverse = [int(format(thread, f"0{bits}b")[::-1], 2) if bits else 0 for thread in range(1 << bits)]
    return sorted(range(count), key=lambda i: (reverse[i % (1 << bits)], i))


def _check_enough(available: int, num: int) -> None:
    if num > available:
        raise ValueError(f"farthest point sampling: found {available} points, expected at least {num}. "
                         "Give the model larger clouds, or ask for fewer groups.")


def _squared_gap(x: Tensor, y: Tensor, z: Tensor, to: Tensor) -> Tensor:
    """x, y, z: B M each, to: B 1 indices -> B M squared distances from that point."""
    return ((x - x.gather(1, to)).square_() + (y - y.gather(1, to)).square_()
            + (z - z.gather(1, to)).square_())


@torch.no_grad()
def nearest_neighbours(centres: Tensor, points: Tensor, num: int, usable: Tensor | None = None) -> Tensor:
    """The `num` points nearest to each centre, nearest first; equal distances come in any order.

    Args:
        centres: B G 3.
        points: B M 3.
        num: neighbours per centre, at most M.
        usable: B M bool, which points count; None for all. Of a sample with fewer than `num` of them the nearest is
            given again.

    Returns:
        B G num indices into M.
    """
    if num > points.shape[1]:
        raise ValueError(f"nearest neighbours: found {points.shape[1]} points, expected at least {num}. "
                         "Give the model larger clouds, or ask for smaller groups.")
    # By differences, not by a matrix product: |a|^2 + |b|^2 - 2ab loses the digits that tell close neighbours apart
    distance = torch.cdist(centres.float(), points.float(), compute_mode="donot_use_mm_for_euclid_dist")
    if usable is None:
        return distance.topk(num, dim=-1, largest=False, sorted=True).indices
    found = distance.masked_fill(~usable.unsqueeze(1), torch.inf).topk(num, dim=-1, largest=False, sorted=True)
    return torch.where(found.values.isinf(), found.indices[..., :1], found.indices)


def chamfer_l2(pred: Tensor, target: Tensor) -> Tensor:
    """Squared Chamfer distance of each group: mean over pred of the squared distance to the nearest target point, plus
    the same the other way round. Summed and not halved, as Point-MAE does. Differentiable; computed in float32.

    Args:
        pred: B G K 3 (or any leading axes).
        target: B G L 3, the same leading axes; L may differ from K.

    Returns:
        B G distances.
    """
    a, b = pred.flatten(0, -3), target.flatten(0, -3)                        # BG K 3, BG L 3
    with torch.autocast(a.device.type, enabled=False):
        distance = _chamfer_on_cpu(a, b) if a.device.type == "cpu" else _chamfer_by_differences(a.float(), b.float())
    return distance.reshape(pred.shape[:-2])


def chamfer_l1(pred: Tensor, target: Tensor) -> Tensor:
    """Chamfer distance of each group without squares: mean over pred of the distance to the nearest target point and
    the same the other way round, averaged (Point-MAE's `cdl1`). Differentiable, with gradient 0 where points coincide.

    Args:
        pred: B G K 3 (or any leading axes).
        target: B G L 3, the same leading axes; L may differ from K.

    Returns:
        B G distances.
    """
    with torch.autocast(pred.device.type, enabled=False):
        # By differences: a root would blow up what a matrix product loses near 0
        distance = torch.cdist(pred.flatten(0, -3).float(), target.flatten(0, -3).float(),
                               compute_mode="donot_use_mm_for_euclid_dist")  # BG K L
    forward = distance.min(dim=2).values.mean(1)
    backward = distance.min(dim=1).values.mean(1)
    return ((forward + backward) / 2).reshape(pred.shape[:-2])


def _chamfer_on_cpu(a: Tensor, b: Tensor) -> Tensor:
    """a: N K 3, b: N L 3 -> N. Double input stays double, so that gradients can be checked."""
    if a.dtype != torch.float64:
        a, b = a.float(), b.float()
    distance: Tensor = _NearestPairs.apply(a, b)
    return distance


def _chamfer_by_differences(a: Tensor, b: Tensor) -> Tensor:
    """a: N K 3, b: N L 3 -> N. For a GPU, which may be told to multiply in TF32, whose error is larger than these
    distances, and which adds up gradients in any order; differences are exact there, and cheap beside the encoder."""
    distance = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(3)             # N K L
    return distance.min(dim=2).values.mean(1) + distance.min(dim=1).values.mean(1)


class _NearestPairs(torch.autograd.Function):
    """Chamfer distance by who is nearest to whom: N K 3, N L 3 -> N.

    Only the pairs matter, so that neither K L differences nor their gradients are ever stored. Who is nearest is found
    by one matrix product, which rounds more than differences do; the distances themselves are differences. Of two
    points whose distances differ by less than that rounding either may be taken, and the value hardly depends on it.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        groups, rows_a, rows_b = len(a), a.shape[1], b.shape[1]
        to_b, to_a = _nearest_of_each(a, b)                                  # N K, N L
        group = torch.arange(groups, device=a.device).unsqueeze(1)
        to_b, to_a = (to_b + group * rows_b).flatten(), (to_a + group * rows_a).flatten()
        forward = a - b.reshape(-1, 3).index_select(0, to_b).view_as(a)
        backward = b - a.reshape(-1, 3).index_select(0, to_a).view_as(b)
        ctx.save_for_backward(forward, backward, to_b, to_a)
        return forward.square().sum((1, 2)) / rows_a + backward.square().sum((1, 2)) / rows_b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        forward, backward, to_b, to_a = ctx.saved_tensors
        pull_a = forward * (2 / forward.shape[1] * grad)[:, None, None]      # N K 3
        pull_b = backward * (2 / backward.shape[1] * grad)[:, None, None]    # N L 3
        to_pred = to_target = None
        if ctx.needs_input_grad[0]:
            to_pred = pull_a.reshape(-1, 3).index_add(0, to_a, pull_b.reshape(-1, 3), alpha=-1).view_as(pull_a)
        if ctx.needs_input_grad[1]:
            to_target = pull_b.reshape(-1, 3).index_add(0, to_b, pull_a.reshape(-1, 3), alpha=-1).view_as(pull_b)
        return to_pred, to_target


def _nearest_of_each(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a: N K 3, b: N L 3 -> N K indices into b, N L indices into a. |a|^2 + |b|^2 - 2 a b as one product of five-number
    rows; groups lie around 0, so that little is lost."""
    rows = torch.cat([a, a.square().sum(2, keepdim=True), torch.ones_like(a[..., :1])], 2)           # N K 5
    columns = torch.cat([-2 * b, torch.ones_like(b[..., :1]), b.square().sum(2, keepdim=True)], 2)   # N L 5
    distance = torch.bmm(rows, columns.transpose(1, 2))                      # N K L
    return distance.min(dim=2).indices, distance.min(dim=1).indices
